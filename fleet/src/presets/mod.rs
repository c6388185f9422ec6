//! Presets: accelerator classes and well-known open models.

mod accelerators;
mod models;

pub use accelerators::{accelerator, accelerators};
pub use models::{model, models};
