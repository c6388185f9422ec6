//! Performance and memory model of one replica, and its step-level simulation. Pure.
//!
//! Three questions, one model ([`ReplicaModel`]):
//! - *does it fit*: [`ReplicaModel::new`] and [`MemoryFit`], or a [`DoesNotFit`] that says what to do;
//! - *how fast*: [`ReplicaModel::step_ms`] and, under a load, [`ReplicaModel::predict`];
//! - *how much*: [`ReplicaModel::load_line`], the highest rate at which every objective holds.
//!
//! Two tiers answer them: the closed form in [`ReplicaModel`] (microseconds), and the iteration-level simulation in
//! [`sim`], which follows the scheduling rules of vLLM and is also what drives the simulated engine server.
//!
//! Modelled: dense and mixture-of-experts decoders (distinct experts hit), grouped and latent attention, tensor and
//! plain pipeline parallelism, chunked prefill, cached prefixes, weight and KV formats. Replicas that serve one phase
//! only ([`plimsoll_fleet::Role::Prefill`], [`plimsoll_fleet::Role::Decode`]) are refused.

pub mod calibrate;
mod config;
mod load_line;
pub mod measurements;
mod memory;
mod mix;
pub mod outlook;
mod predict;
mod quantile;
mod queue;
mod replica;
pub mod sim;
mod step;

pub use config::EngineConfig;
pub use load_line::{Binding, InfeasibleReason, Limit, LoadLine, MAX_UTILISATION, UnloadedLatency};
pub use memory::{DoesNotFit, MemoryFit};
pub use predict::{ClassPrediction, LoadPrediction};
pub use replica::ReplicaModel;
pub use step::{Resource, StepBreakdown, StepLoad};
