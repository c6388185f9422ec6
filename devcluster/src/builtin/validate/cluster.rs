//! Node, Namespace, Lease, RuntimeClass, Event, ControllerRevision, APIService, CustomResourceDefinition.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::{At, Faults, IMMUTABLE, entries, in_order, is_empty, items, same, text, texts};
use super::{addresses, meta, names, pod, resources};

/// The longest texts of an event.
const MAX_TEXT: usize = 128;
const MAX_NOTE: usize = 1024;

/// Checks a Node's taints and what it has.
pub(super) fn node(node: &Value, faults: &mut Faults) {
    // A server names the taints as if they were metadata.
    taints(&node["spec"]["taints"], &At::root("metadata").child("taints"), faults);
    node_resources(node, faults);
    for (i, range) in texts(&node["spec"]["podCIDRs"]).enumerate() {
        addresses::cidr(range, &At::root("spec").child("podCIDRs").index(i), faults);
    }
}

fn taints(taints: &Value, at: &At, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, taint) in items(taints).enumerate() {
        let at = at.index(i);
        let (key, value) = (text(&taint["key"]), text(&taint["value"]));
        faults.invalid_for(&at.child("key"), key, names::qualified_name(key));
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            faults.invalid(&at.child("value"), value, &wrong.join(";"));
        }
        pod::taint_effect(&taint["effect"], &at.child("effect"), faults);
        if !seen.insert((key, text(&taint["effect"]))) {
            let mut whole = taint.clone();
            whole["value"] = value.into();
            let shown = super::field::inner(&whole, &["key", "value", "effect", "timeAdded"]);
            faults.duplicate_as(&at, &format!("{shown}: taints must be unique by key and effect pair"));
        }
    }
}

fn node_resources(node: &Value, faults: &mut Faults) {
    for field in ["capacity", "allocatable"] {
        for (resource, amount) in entries(&node["status"][field]) {
            let at = At::root("status").child(field).child(resource);
            resources::amount_of(resource, amount, &at, faults);
        }
    }
}

/// What a Node keeps.
pub(super) fn node_kept(new: &Value, old: &Value, faults: &mut Faults) {
    node_resources(new, faults);
    let mut seen = Vec::new();
    for (i, address) in items(&new["status"]["addresses"]).enumerate() {
        if seen.contains(&address) {
            let shown = super::field::inner(address, &["type", "address"]);
            faults.duplicate_as(&At::root("status").child("addresses").index(i), &shown);
        }
        seen.push(address);
    }
    let (spec, before, at) = (&new["spec"], &old["spec"], At::root("spec"));
    if !is_empty(&before["podCIDRs"]) && spec["podCIDRs"] != before["podCIDRs"] {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        faults.forbidden(&at.child("podCIDRs"), why);
    }
    if !text(&before["providerID"]).is_empty() && spec["providerID"] != before["providerID"] {
        let why = "node updates may not change providerID except from \"\" to valid";
        faults.forbidden(&at.child("providerID"), why);
    }
    taints(&spec["taints"], &At::root("metadata").child("taints"), faults);
}

/// Checks a Namespace's status.
pub(super) fn namespace_status(new: &Value, faults: &mut Faults) {
    let (phase, at) = (text(&new["status"]["phase"]), At::root("status").child("Phase"));
    let (wanted, is) = match new["metadata"]["deletionTimestamp"].is_null() {
        true => ("Active", "empty"),
        false => ("Terminating", "not empty"),
    };
    if phase != wanted {
        let why = format!("may only be '{wanted}' if `deletionTimestamp` is {is}");
        faults.invalid(&at, phase, &why);
    }
}

/// Checks a Lease.
pub(super) fn lease(new: &Value, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    let duration = &spec["leaseDurationSeconds"];
    if duration.as_i64().is_some_and(|s| s <= 0) {
        faults.invalid(&at.child("leaseDurationSeconds"), duration.clone(), "must be greater than 0");
    }
    faults.not_negative(&at.child("leaseTransitions"), &spec["leaseTransitions"]);
    let strategy = text(&spec["strategy"]);
    if !text(&spec["preferredHolder"]).is_empty() && strategy.is_empty() {
        let why = "may only be specified if `strategy` is defined";
        faults.forbidden(&at.child("preferredHolder"), why);
    }
}

/// Checks a RuntimeClass.
pub(super) fn runtime_class(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let handler = text(&new["handler"]);
    faults.invalid_for(&At::root("handler"), handler, names::dns_label(handler));
    for (resource, amount) in entries(&new["overhead"]["podFixed"]) {
        let at = At::root("overhead").child("limits").key(resource);
        resources::container_resource(resource, &at, faults);
        resources::amount_of(resource, amount, &at, faults);
    }
    let selector = &new["scheduling"]["nodeSelector"];
    meta::labels(selector, &At::root("scheduling").child("nodeSelector"), faults);
    if let Some(old) = old
        && old["handler"] != new["handler"]
    {
        faults.invalid(&At::root("handler"), handler, IMMUTABLE);
    }
}

/// Checks an Event, as it is stored; `new_api` is whether it came by `events.k8s.io`.
pub(super) fn event(event: &Value, new_api: bool, faults: &mut Faults) {
    let part = |field: &str| text(&event[field]);
    let of = text(&event["involvedObject"]["namespace"]);
    let namespace = text(&event["metadata"]["namespace"]);
    let mismatch = "does not match event.namespace";
    let place = At::root("involvedObject").child("namespace");
    if event["eventTime"].is_null() {
        let wrong = if of.is_empty() { namespace != "default" } else { of != namespace };
        if wrong {
            faults.invalid(&place, of, mismatch);
        }
    } else {
        if of.is_empty() && namespace != "default" && namespace != "kube-system" {
            faults.invalid(&place, of, mismatch);
        }
        let reporter = part("reportingComponent");
        let at = At::root(if new_api { "reportingController" } else { "reportingComponent" });
        if reporter.is_empty() {
            faults.required(&at, "");
        }
        faults.invalid_for(&at, reporter, names::qualified_name(reporter));
        for (field, most) in [
            ("reportingInstance", MAX_TEXT),
            ("action", MAX_TEXT),
            ("reason", MAX_TEXT),
            ("message", MAX_NOTE),
        ] {
            let at = At::root(field);
            if part(field).is_empty() && field != "message" {
                faults.required(&at, "");
            }
            if part(field).len() > most {
                faults.invalid(&at, "", &format!("can have at most {most} characters"));
            }
        }
    }
}

/// What only new Events of `events.k8s.io` must be.
pub(super) fn new_event(event: &Value, faults: &mut Faults) {
    let series = &event["series"];
    if series.is_object() {
        if series["count"].as_i64().unwrap_or(0) < 2 {
            faults.invalid(&At::root("series.count"), "", "should be at least 2");
        }
        if series["lastObservedTime"].is_null() {
            faults.required(&At::root("series.lastObservedTime"), "");
        }
    }
    if event["eventTime"].is_null() {
        faults.required(&At::root("eventTime"), "");
    }
    let kind = text(&event["type"]);
    if !["Normal", "Warning"].contains(&kind) {
        faults.invalid(&At::root("type"), "", &format!("has invalid value: {kind}"));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if !event[field].is_null() {
            faults.invalid(&At::root(field), "", "needs to be unset");
        }
    }
    if event["count"].as_i64().unwrap_or(0) != 0 {
        faults.invalid(&At::root("count"), "", "needs to be unset");
    }
    if ["component", "host"].iter().any(|field| !text(&event["source"][*field]).is_empty()) {
        faults.invalid(&At::root("source"), "", "needs to be unset");
    }
}

/// Checks a ControllerRevision.
pub(super) fn revision(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    faults.not_negative(&At::root("revision"), &new["revision"]);
    let data = &new["data"];
    match old {
        None if data.is_null() => faults.required(&At::root("data"), "data is mandatory"),
        None if !data.is_object() => {
            faults.required(&At::root("data"), "data must be a valid JSON object");
        }
        Some(old) if !same(data, &old["data"]) => {
            faults.invalid_as(&At::root("data"), &in_order(data, &[]), IMMUTABLE);
        }
        _ => {}
    }
}

/// Checks an APIService.
pub(super) fn api_service(new: &Value, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    let name = text(&new["metadata"]["name"]);
    let wanted = format!("{version}.{group}");
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        faults.invalid(&At::root("metadata").child("name"), name, &why);
    }
    if group.is_empty() && version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        faults.required(&at.child("group"), why);
    }
    if !group.is_empty() {
        faults.invalid_for(&at.child("group"), group, names::dns_subdomain(group));
    }
    faults.invalid_for(&at.child("version"), version, names::dns_1035_label(version));
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let value = spec[field].as_i64().unwrap_or(0);
        if value <= 0 || value > most {
            let why = format!("must be positive and less than {most}");
            faults.invalid(&at.child(field), value, &why);
        }
    }
    let service = &spec["service"];
    if service.is_object() {
        let at = at.child("service");
        faults.some_text(&at.child("namespace"), &service["namespace"]);
        faults.some_text(&at.child("name"), &service["name"]);
        if service["port"].as_i64().is_some_and(|p| !(1..=65_535).contains(&p)) {
            let why = "port is not valid: must be between 1 and 65535, inclusive";
            faults.invalid(&at.child("port"), service["port"].clone(), why);
        }
    }
}

/// What a CustomResourceDefinition keeps: what identifies the kind to clients and to stored objects.
pub(super) fn definition_kept(new: &Value, old: &Value, faults: &mut Faults) {
    for (field, pointer) in [
        ("spec.group", "/spec/group"),
        ("spec.names.plural", "/spec/names/plural"),
        ("spec.scope", "/spec/scope"),
        ("spec.names.kind", "/spec/names/kind"),
    ] {
        let now = new.pointer(pointer).unwrap_or(&Value::Null);
        if old.pointer(pointer) != Some(now) {
            faults.invalid(&At::root(field), now.clone(), IMMUTABLE);
        }
    }
}
