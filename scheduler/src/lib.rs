//! Demand forecast, plan, placement, explanation; then the service around them.

pub mod adapters;
pub mod advice;
pub mod baselines;
pub mod canary;
pub mod clock;
pub mod cold_start;
pub mod control;
pub mod demand;
pub mod drain;
pub mod explain;
pub mod fast;
pub mod ledger;
pub mod place;
pub mod plan;
pub mod planner;
pub mod records;
mod rollout;
pub mod routes;
pub mod service;
pub mod speed;
pub mod store;

#[cfg(test)]
mod testing;
