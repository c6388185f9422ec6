//! gRPC between operator, scheduler and agents.
//!
//! [`v1`] is generated from `protos/` and committed; `tests/generated.rs` keeps it true. [`document`] carries domain
//! documents (snapshots, plans); [`convert`] maps the typed messages that agents exchange to the domain and back.
//! [`ext_proc`] is the part of Envoy's external processing that an endpoint picker speaks, [`health`] gRPC's health protocol.
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

/// What is used of Envoy's external processing, API v3, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::disallowed_types, clippy::disallowed_methods)]
pub mod ext_proc {
    include!("generated/envoy.service.ext_proc.v3.rs");
}

/// The gRPC health checking protocol, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::disallowed_types, clippy::disallowed_methods)]
pub mod health {
    include!("generated/grpc.health.v1.rs");
}

pub use convert::InvalidMessage;
pub use document::DocumentError;
