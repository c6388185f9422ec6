//! How failures are told.

pub mod status;
