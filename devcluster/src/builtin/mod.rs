//! What this API knows about Kubernetes' own kinds: their schemas, how requests decode into them, defaults, checks, conversions.

pub mod decode;
pub mod defaults;
pub mod definitions;
pub mod events;
pub mod quantity;
pub mod validate;
pub mod zero;
