//! A small in-process Kubernetes API and node simulator for laptops and tests; never for production.

pub mod apply;
pub mod gvk;
pub mod nodes;
pub mod patch;
pub mod schema;
pub mod selector;
pub mod store;
pub mod table;
