//! What may change of a pod.

use serde_json::Value;

use super::super::field::{At, Faults, IMMUTABLE, entries, items, same, text};
use super::super::{meta, names};
use super::{containers, scheduling, whole};

const NOTHING_ELSE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
     tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks a changed pod.
pub(in super::super) fn updated(new: &Value, old: &Value, faults: &mut Faults) {
    meta::updated("Pod", &new["metadata"], faults);
    whole(new, faults);
    let (spec, before, at) = (&new["spec"], &old["spec"], At::root("spec"));
    for list in ["containers", "initContainers"] {
        if !containers::updated(&spec[list], &before[list], &at.child(list), faults) {
            return;
        }
    }
    if !deadline(spec, before, &at.child("activeDeadlineSeconds"), faults) {
        return;
    }
    added_tolerations(&spec["tolerations"], &before["tolerations"], &at.child("tolerations"), faults);
    let gates: Vec<&str> = items(&before["schedulingGates"]).map(|g| text(&g["name"])).collect();
    for (i, gate) in items(&spec["schedulingGates"]).enumerate() {
        let name = text(&gate["name"]);
        if !gates.contains(&name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            faults.forbidden(&at.child("schedulingGates").index(i).child("name"), &why);
        }
    }
    let gated = !gates.is_empty();
    if gated {
        more_of_selector(&spec["nodeSelector"], &before["nodeSelector"], &at.child("nodeSelector"), faults);
    }
    if !same(&fixed(spec, before, gated), &fixed(before, before, gated)) {
        faults.forbidden(&at, NOTHING_ELSE);
    }
}

/// A deadline may be set, and made shorter; whether it was changed so.
fn deadline(spec: &Value, before: &Value, at: &At, faults: &mut Faults) -> bool {
    let (new, old) = (&spec["activeDeadlineSeconds"], &before["activeDeadlineSeconds"]);
    match (new.as_i64(), old.as_i64()) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            faults.in_range(at, new, 0, i64::from(i32::MAX));
            false
        }
        (Some(n), Some(o)) if n > o => {
            faults.invalid(at, n, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            faults.invalid(at, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn added_tolerations(new: &Value, old: &Value, at: &At, faults: &mut Faults) {
    let timeless = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.as_object_mut().map(|t| t.remove("tolerationSeconds"));
        toleration
    };
    if items(old).any(|o| !items(new).any(|n| timeless(n) == timeless(o))) {
        return faults.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
    }
    scheduling::tolerations(new, at, faults);
}

/// While a pod is held back, its node selector may be narrowed.
fn more_of_selector(new: &Value, old: &Value, at: &At, faults: &mut Faults) {
    if entries(old).any(|(key, value)| new.get(key) != Some(value)) {
        faults.invalid(at, new.clone(), "only additions are allowed (no mutations or deletions)");
    }
}

/// What of a pod's spec must stay, made from one spec, where `before` says what is allowed.
fn fixed(spec: &Value, before: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
            fields.remove(field);
        }
        let grace = |spec: &Value| spec["terminationGracePeriodSeconds"].as_i64();
        if grace(before).is_some_and(|g| g < 0)
            && fields.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1)
        {
            fields.insert(
                "terminationGracePeriodSeconds".into(),
                before["terminationGracePeriodSeconds"].clone(),
            );
        }
        if gated {
            fields.remove("nodeSelector");
            if let Some(affinity) = fields.get_mut("affinity").and_then(Value::as_object_mut) {
                affinity.remove("nodeAffinity");
                if affinity.is_empty() {
                    fields.remove("affinity");
                }
            }
        }
        for list in ["containers", "initContainers"] {
            for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container.as_object_mut().map(|c| c.remove("image"));
            }
        }
    }
    spec
}

/// Checks a pod's changed status.
pub(in super::super) fn status(new: &Value, old: &Value, faults: &mut Faults) {
    meta::updated("Pod", &new["metadata"], faults);
    let (status, before, at) = (&new["status"], &old["status"], At::root("status"));
    for (i, condition) in items(&status["conditions"]).enumerate() {
        let kind = text(&condition["type"]);
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind) {
            let at = at.child("conditions").index(i).child("Type");
            faults.invalid_for(&at, kind, names::qualified_name(kind));
        }
    }
    if status["qosClass"] != before["qosClass"] {
        faults.invalid(&at.child("qosClass"), text(&status["qosClass"]), IMMUTABLE);
    }
    if new["spec"]["restartPolicy"] == "Always" {
        return;
    }
    // What has ended and is not restarted stays ended.
    for (i, was) in items(&before["containerStatuses"]).enumerate() {
        let ended = &was["state"]["terminated"];
        let again = new["spec"]["restartPolicy"] == "OnFailure" && ended["exitCode"] != 0;
        if !ended.is_object() || again {
            continue;
        }
        let is = items(&status["containerStatuses"]).find(|is| is["name"] == was["name"]);
        if is.is_some_and(|is| !is["state"]["terminated"].is_object()) {
            faults.forbidden(
                &at.child("containerStatuses").index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}
