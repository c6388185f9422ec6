//! Kubernetes operator: reads resources, applies plans, writes status.
//!
//! One pipeline, a module a step: [`watch`] reads the cluster into a [`world::World`]; [`validate`] turns resources into
//! the domain; [`observe`] turns pods and nodes into replicas and capacity; [`build`] decides, purely, what to change
//! so that the cluster follows the plan; [`apply`] does it; [`status`] says what was done and why. The scheduler is
//! reached through [`brain::Brain`], over gRPC in production ([`grpc`]). Only the holder of the Lease ([`lease`]) acts.

pub mod adopt;
pub mod apply;
mod apply_group;
pub mod backoff;
pub mod blackout;
pub mod brain;
pub mod build;
pub mod config;
pub mod devices;
pub mod disruption;
pub mod events;
pub mod fault;
pub mod group;
pub mod grpc;
pub mod inference_pool;
pub mod lease;
pub mod lws;
pub mod names;
pub mod objectives;
pub mod observe;
mod optional;
pub mod record;
pub mod release;
pub mod revision;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod validate;
pub mod watch;
pub mod world;

pub use brain::{
    AdapterObservation, Brain, BrainError, CanaryReport, FleetUpdate, Observations, PoolObservation,
};
pub use config::{EngineImages, Groups, OperatorConfig};
pub use fault::FaultCondition;
pub use record::{GroupRecord, ReplicaRecord};
pub use run::{Operator, OperatorError};
