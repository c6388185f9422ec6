//! ModelPool: what a model's owner asks for.

mod adopt;
mod convert;
mod spec;
mod status;
mod storage;

pub use adopt::*;
pub use spec::*;
pub use status::*;
