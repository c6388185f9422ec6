//! AcceleratorClass: one kind of GPU (or CPU socket) as the planner sees it.

mod convert;
mod spec;

pub use spec::*;
