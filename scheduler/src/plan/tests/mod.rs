//! The planner as a whole.

pub(crate) mod support;

mod optimal;
mod reasons;
mod stable;
mod whole;
