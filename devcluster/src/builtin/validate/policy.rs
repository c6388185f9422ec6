//! Limits: PodDisruptionBudget, PriorityClass, LimitRange, ResourceQuota.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, entries, inner, is_empty, items, text, texts};
use super::{names, resources, selectors, workloads};
use crate::builtin::quantity::NANO;

/// The highest priority of a class that is not the system's own.
const MAX_PRIORITY: i64 = 1_000_000_000;
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "VolumeAttributesClass",
    "CrossNamespacePodAffinity",
];

/// Checks a PodDisruptionBudget.
pub(super) fn budget(new: &Value, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        let fields = ["minAvailable", "selector", "maxUnavailable", "unhealthyPodEvictionPolicy"];
        let shown = inner_selector(spec, &fields);
        faults.invalid_as(&at, &shown, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        workloads::share(&spec[field], &at.child(field), faults);
        workloads::not_above_all(&spec[field], &at.child(field), faults);
    }
    if spec["selector"].is_object() {
        selectors::labels(&spec["selector"], &at.child("selector"), faults);
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    faults.one_of(&at.child("unhealthyPodEvictionPolicy"), &spec["unhealthyPodEvictionPolicy"], &policies);
}

/// A spec as a server's inner type writes it, but for its selector, which is written as it is.
fn inner_selector(spec: &Value, fields: &[&str]) -> String {
    let mut without = spec.clone();
    let selector = without.as_object_mut().and_then(|s| s.remove("selector"));
    let shown = inner(&without, fields);
    match selector {
        Some(selector) => {
            shown.replacen("\"Selector\":null", &format!("\"Selector\":{}", selectors::shown(&selector)), 1)
        }
        None => shown,
    }
}

/// Checks a PodDisruptionBudget's status.
pub(super) fn budget_status(new: &Value, faults: &mut Faults) {
    let at = At::root("status");
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        faults.not_negative(&at.child(field), &new["status"][field]);
    }
}

/// Checks a PriorityClass.
pub(super) fn priority_class(class: &Value, faults: &mut Faults) {
    let name = text(&class["metadata"]["name"]);
    let value = class["value"].as_i64().unwrap_or(0);
    if name.starts_with("system-") {
        let why = match name {
            "system-node-critical" if value != 2_000_001_000 => {
                Some(format!("value of {name} PriorityClass must be 2000001000"))
            }
            "system-cluster-critical" if value != 2_000_000_000 => {
                Some(format!("value of {name} PriorityClass must be 2000000000"))
            }
            "system-node-critical" | "system-cluster-critical" => None,
            _ => Some(format!("{name} is not a known system priority class")),
        };
        if let Some(why) = why {
            let why = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            faults.forbidden(&At::root("metadata").child("name"), &why);
        }
    } else if value > MAX_PRIORITY {
        let why = format!("maximum allowed value of a user defined priority is {MAX_PRIORITY}");
        faults.forbidden(&At::root("value"), &why);
    }
    let policies = ["PreemptLowerPriority", "Never"];
    faults.one_of(&At::root("preemptionPolicy"), &class["preemptionPolicy"], &policies);
}

/// What a PriorityClass keeps.
pub(super) fn priority_class_kept(new: &Value, old: &Value, faults: &mut Faults) {
    if new["value"] != old["value"] {
        faults.forbidden(&At::root("value"), "may not be changed in an update.");
    }
    if new["preemptionPolicy"] != old["preemptionPolicy"] {
        faults.invalid(&At::root("preemptionPolicy"), new["preemptionPolicy"].clone(), IMMUTABLE);
    }
}

/// Checks a LimitRange.
pub(super) fn limits(new: &Value, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, limit) in items(&new["spec"]["limits"]).enumerate() {
        let at = At::root("spec").child("limits").index(i);
        let kind = text(&limit["type"]);
        let wrong = names::qualified_name(kind);
        if wrong.is_empty() {
            if !kind.contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind) {
                let why = "must be a standard limit type or fully qualified";
                faults.invalid(&at.child("type"), kind, why);
            }
        } else {
            faults.invalid_for(&at.child("type"), kind, wrong);
        }
        if !seen.insert(kind) {
            faults.duplicate(&at.child("type"), kind);
        }
        let mut keys = BTreeSet::new();
        for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            if field == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
                storage_limit(limit, &at, faults);
            }
            if kind == "Pod" && field.starts_with("default") {
                if !is_empty(&limit[field]) {
                    faults.forbidden(&at.child(field), "may not be specified when `type` is 'Pod'");
                }
                continue;
            }
            for (resource, _) in entries(&limit[field]) {
                let at = at.child(field).key(resource);
                match kind {
                    "Pod" | "Container" => resources::container_resource(resource, &at, faults),
                    _ => {
                        resources::name(resource, &at, faults);
                    }
                }
                keys.insert(resource.as_str());
            }
        }
        keys.iter().for_each(|resource| bounds(limit, resource, &at, faults));
    }
}

fn storage_limit(limit: &Value, at: &At, faults: &mut Faults) {
    if limit["min"]["storage"].is_null() && limit["max"]["storage"].is_null() {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        faults.required(&at.child("limits"), why);
    }
}

/// The bounds of one resource must go with each other.
fn bounds(limit: &Value, resource: &str, at: &At, faults: &mut Faults) {
    let of = |field: &str| &limit[field][resource];
    let amount = |field: &str| resources::amount(of(field));
    let mut above = |low: &str, high: &str, blamed: (&str, &str), what: (&str, &str)| {
        if let (Some(l), Some(h)) = (amount(low), amount(high))
            && l > h
        {
            let why = format!(
                "{} value {} is greater than {} value {}",
                what.0,
                text(of(low)),
                what.1,
                text(of(high))
            );
            faults.invalid(&at.child(blamed.0).key(resource), of(blamed.1).clone(), &why);
        }
    };
    above("min", "max", ("min", "min"), ("min", "max"));
    let request = ("defaultRequest", "defaultRequest");
    above("min", "defaultRequest", request, ("min", "default request"));
    above("defaultRequest", "max", request, ("default request", "max"));
    above("defaultRequest", "default", request, ("default request", "default limit"));
    above("min", "default", ("default", "min"), ("min", "default"));
    above("default", "max", ("default", "max"), ("default", "max"));
    if amount("maxLimitRequestRatio").is_some_and(|ratio| ratio < NANO) {
        let ratio = of("maxLimitRequestRatio");
        let at = at.child("maxLimitRequestRatio").key(resource);
        faults.invalid(&at, ratio.clone(), &format!("ratio {} is less than 1", text(ratio)));
    }
}

/// Checks a ResourceQuota.
pub(super) fn quota(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    for (resource, amount) in entries(&spec["hard"]) {
        let at = at.child("hard").key(resource);
        resources::quota_resource(resource, &at, faults);
        resources::amount_of(resource, amount, &at, faults);
    }
    let scopes: Vec<&str> = texts(&spec["scopes"]).collect();
    let (list, scopes_at) = (&spec["scopes"], at.child("scopes"));
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            faults.invalid(&scopes_at, list.clone(), "unsupported scope");
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["NotTerminating", "Terminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            faults.invalid(&scopes_at, list.clone(), "conflicting scopes");
        }
    }
    for wanted in items(&spec["scopeSelector"]["matchExpressions"]) {
        let at = at.child("scopeSelector").child("matchExpressions");
        let (scope, operator) = (text(&wanted["scopeName"]), text(&wanted["operator"]));
        if !SCOPES.contains(&scope) {
            faults.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        match operator {
            "In" | "NotIn" if is_empty(&wanted["values"]) => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                faults.required(&at.child("values"), why);
            }
            "Exists" | "DoesNotExist" if !is_empty(&wanted["values"]) => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                faults.invalid(&at.child("values"), wanted["values"].clone(), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
    }
    if let Some(old) = old {
        let before: BTreeSet<&str> = texts(&old["spec"]["scopes"]).collect();
        if before != scopes.iter().copied().collect() {
            faults.invalid(&scopes_at, list.clone(), IMMUTABLE);
        }
    }
}
