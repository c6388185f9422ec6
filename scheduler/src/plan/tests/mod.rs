//! The planner as a whole.

pub(crate) mod support;

mod reasons;
mod whole;
