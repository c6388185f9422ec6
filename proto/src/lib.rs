//! gRPC between operator, scheduler and agents.
//!
//! [`v1`] is generated from `protos/` and committed; `tests/generated.rs` keeps it true. [`document`] carries domain
//! documents (snapshots, plans); [`convert`] maps the typed messages that agents exchange to the domain and back.
//! [`tls`] is what they trust each other by. [`etcd`] is the part of etcd's API that the scheduler's store calls.

pub mod convert;
pub mod document;
pub mod tls;

/// Version 1 of the wire format, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::disallowed_types, clippy::disallowed_methods)]
pub mod v1 {
    include!("generated/plimsoll.v1.rs");
}

/// What is used of etcd's v3 API, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::disallowed_types, clippy::disallowed_methods)]
pub mod etcd {
    include!("generated/etcdserverpb.rs");
}

pub use convert::InvalidMessage;
pub use document::DocumentError;
