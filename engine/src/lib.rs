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
//! Modelled: dense and mixture-of-experts decoders (distinct experts hit); grouped and latent attention, sliding
//! windows and recurrent layers; tensor, pipeline, expert and attention data parallelism over the links that a class
//! has; chunked prefill, cached and offloaded prefixes, weight and KV formats; LoRA adapters, speculative decoding,
//! launch floors; power. Prefill and decode replicas, and their pairing, are in [`PdModel`].

pub mod calibrate;
mod config;
mod experts;
mod kv;
pub mod links;
mod load_line;
pub mod lora;
pub mod measurements;
mod memory;
mod mix;
mod offload;
pub mod outlook;
mod pd;
pub mod power;
mod predict;
mod quantile;
mod queue;
mod ranks;
mod replica;
pub mod sim;
mod speculation;
mod step;

pub use config::{EngineConfig, Scheduling};
pub use links::LinkTier;
pub use load_line::{Binding, InfeasibleReason, Limit, LoadLine, MAX_UTILISATION, UnloadedLatency};
pub use lora::{Lora, LoraTargets, adapter_parameters};
pub use memory::{DoesNotFit, MemoryFit};
pub use offload::{KvOffload, Restore};
pub use pd::{KvTransfer, PdClassPrediction, PdError, PdLine, PdModel, PdPrediction, Phase};
pub use predict::{ClassPrediction, LoadPrediction};
pub use replica::ReplicaModel;
pub use speculation::{Draft, Speculation};
pub use step::{Resource, StepBreakdown, StepLoad};
