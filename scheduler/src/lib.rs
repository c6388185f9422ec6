//! Demand forecast, plan, placement, explanation; then the service around them.

pub mod explain;
pub mod place;
pub mod plan;
pub mod routes;
