//! The OpenAI-compatible proxy.

pub(crate) mod account;
mod choosing;
pub(crate) mod forward;
pub(crate) mod handler;
pub(crate) mod handover;
pub(crate) mod headers;
pub(crate) mod hop;
mod idle;
pub(crate) mod lanes;
pub(crate) mod relay;
pub(crate) mod resumption;
pub(crate) mod routing;
pub(crate) mod server;
pub(crate) mod upstream;
