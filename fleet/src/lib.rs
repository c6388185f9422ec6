//! Domain types of Plimsoll: models, accelerators, objectives, demand, shapes, plans, routes, leases.
//!
//! Nothing here performs I/O, reads a clock, or knows Kubernetes or gRPC. Every other crate speaks to its
//! neighbours in these types; `plimsoll-crds` converts Kubernetes resources into them at the edge and
//! `plimsoll-proto` carries them over the wire.
//!
//! Units are in the names: `_ms` milliseconds, `_bytes`, `_rps` requests per second, `usd_per_hour`, `watts`.

pub mod accelerator;
pub mod adapter;
pub mod budget;
pub mod canary;
pub mod cluster;
pub mod demand;
pub mod dtype;
pub mod hf_config;
pub mod ids;
pub mod lease;
pub mod model;
pub mod pairing;
pub mod plan;
pub mod pool;
pub mod presets;
pub mod rollout;
pub mod route;
pub mod shape;
pub mod slo;
pub mod telemetry;
pub mod tenant;

pub use accelerator::{AcceleratorClass, Calibration, Electricity, NodeLink, Vendor};
pub use adapter::{Adapter, AdapterRoom};
pub use budget::{Budget, BudgetScope, BudgetUnit, Consumption, OnLimit};
pub use cluster::{AdoptedReplica, ClusterSnapshot, NodeInfo, ReplicaPhase, ReplicaStatus, RequestPriority};
pub use demand::{DemandEstimate, DemandPrior, LengthDistribution, RequestClass};
pub use dtype::Dtype;
pub use ids::{InvalidName, NodeName, PoolId, ReplicaId};
pub use model::{Attention, ModelArchitecture, Moe, RecurrentState, SlidingWindow};
pub use plan::{Plan, PoolPlan, ReplicaAssignment};
pub use pool::{EngineKind, EngineSpec, ModelPool};
pub use route::{
    AdapterFiles, AdapterRoute, Endpoint, HandOver, HandOverProtocol, PoolRoute, RouteTable, StepCoefficients,
};
pub use shape::{Role, Shape};
pub use slo::{Objective, Percentile, Slo, SloClass};
pub use tenant::Tenant;
