//! The planner as a whole.

pub(crate) mod support;

mod adopted;
mod apart;
mod budgets;
mod optimal;
mod provision;
mod reasons;
mod rollout;
mod spread;
mod stable;
mod whole;
