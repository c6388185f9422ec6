//! One file a command.

pub mod agent;
pub mod crds;
pub mod devcluster;
pub mod engine_sim;
pub mod explain;
pub mod operator;
mod operator_health;
pub mod plan;
pub mod predict;
pub mod profile;
pub mod release;
pub mod replay;
pub mod scheduler;
pub mod simulate;
pub mod top;
pub mod up;
