//! Kubernetes API types of plimsoll.dev, their schemas, and conversion to the domain.
//!
//! Each kind has its schema (what `kubectl explain` shows and the API server enforces) beside its conversion to
//! `plimsoll-fleet`. The conversion validates everything again: objects may have been stored before a rule existed, or
//! come from files that no API server has seen. It reports every invalid field at once, each with a remedy.

#![allow(clippy::duplicated_attributes, reason = "printer columns of one kind share types and priorities")]

pub mod accelerator_class;
pub mod budget;
pub mod conditions;
pub mod duration;
pub mod fleet_plan;
pub mod invalid;
pub mod lora_adapter;
pub mod manifests;
pub mod model_pool;
pub mod names;
pub mod presets;
pub mod quantity;
pub mod tenant;
mod tolerations;

pub use accelerator_class::{AcceleratorClass, AcceleratorClassSpec, AcceleratorClassStatus};
pub use budget::{Budget, BudgetSpec, BudgetStatus};
pub use fleet_plan::{FleetPlan, FleetPlanSpec};
pub use invalid::InvalidField;
pub use lora_adapter::{AdapterPlace, LoraAdapter, LoraAdapterSpec, LoraAdapterStatus};
pub use manifests::{accelerator_manifests, all, all_yaml};
pub use model_pool::{ModelPool, ModelPoolSpec, ModelPoolStatus};
pub use tenant::{Tenant, TenantSpec, TenantStatus};

/// API group of all kinds.
pub const GROUP: &str = "plimsoll.dev";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";
