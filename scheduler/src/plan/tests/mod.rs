//! The planner as a whole.

pub(crate) mod support;

mod optimal;
mod provision;
mod reasons;
mod rollout;
mod spread;
mod stable;
mod whole;
