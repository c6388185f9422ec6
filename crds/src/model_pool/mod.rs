//! ModelPool: what a model's owner asks for.

mod convert;
mod spec;
mod status;
mod storage;

pub use spec::*;
pub use status::*;
