//! The planner as a whole.

pub(crate) mod support;

mod whole;
