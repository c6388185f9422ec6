//! What this API knows about Kubernetes' own kinds: their schemas, how requests decode into them, defaults, checks, conversions.

pub mod autoscalers;
pub mod decode;
pub mod defaults;
pub mod definitions;
pub mod events;
mod ordered;
pub mod quantity;
pub mod validate;
pub mod warnings;
pub mod zero;

pub use ordered::in_order;
