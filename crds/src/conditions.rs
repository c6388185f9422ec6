//! Conditions: the machine-readable part of a status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The spec was understood and takes part in planning.
pub const ACCEPTED: &str = "Accepted";
/// The current plan covers this generation of the spec.
pub const PLANNED: &str = "Planned";
/// As many replicas serve as the plan wants.
pub const READY: &str = "Ready";
/// Observed (else predicted) latencies meet the objectives.
pub const SLO_MET: &str = "SLOMet";
/// Replicas run at another speed than predicted; there once that has been so.
pub const PREDICTION_DRIFT: &str = "PredictionDrift";
/// A budget keeps demand from being served.
pub const BUDGET_LIMITED: &str = "BudgetLimited";
/// Accelerators are too few to serve the demand.
pub const CAPACITY_LIMITED: &str = "CapacityLimited";
/// Condition of AcceleratorClasses that name a DeviceClass: replicas claim devices, instead of the extended resource.
pub const CLAIMS_DEVICES: &str = "ClaimsDevices";
/// Condition of LoraAdapters: all replicas that are to hold it do.
pub const LOADED: &str = "Loaded";

/// Builds a condition. `reason` is one CamelCase word; `message` is for people.
pub fn condition(
    type_: &str,
    status: Option<bool>,
    reason: &str,
    message: impl Into<String>,
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: match status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
        .to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation,
        last_transition_time: Time(now),
    }
}

/// Keeps the transition time of conditions whose status did not change.
pub fn carry_transition_times(old: &[Condition], new: &mut [Condition]) {
    for condition in new {
        if let Some(before) = old.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status)
        {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}

/// Whether two sets of conditions say the same, times aside.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    a.len() == b.len()
        && a.iter().all(|x| {
            b.iter().any(|y| {
                x.type_ == y.type_
                    && x.status == y.status
                    && x.reason == y.reason
                    && x.message == y.message
                    && x.observed_generation == y.observed_generation
            })
        })
}

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}
