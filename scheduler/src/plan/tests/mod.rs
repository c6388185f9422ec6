//! The planner as a whole.

pub(crate) mod support;

mod adapters;
mod adopted;
mod apart;
mod budgets;
mod fuzz;
mod optimal;
mod pains;
mod provision;
mod ranks;
mod reasons;
mod rollout;
mod spread;
mod stable;
mod whole;
