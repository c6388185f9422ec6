//! A small in-process Kubernetes API and node simulator for laptops and tests; never for production.
//!
//! [`DevCluster`] serves the API on a real port: what kubectl, kube-rs and controllers use of it, answered as a real API
//! server answers. [`nodes`] adds simulated nodes whose pods run in this process.

pub mod api;
pub mod apply;
pub mod builtin;
mod cluster;
mod gc;
pub mod gvk;
pub mod nodes;
pub mod patch;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod server;
pub mod store;
pub mod table;
mod upkeep;

pub use cluster::{DevCluster, DevClusterConfig, DevClusterError};
