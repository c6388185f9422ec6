//! HorizontalPodAutoscaler.

use serde_json::Value;

use super::field::{At, Faults, items, text};
use super::{names, resources};

/// The longest windows and periods, in seconds.
const MAX_WINDOW_SECONDS: i64 = 3600;
const MAX_PERIOD_SECONDS: i64 = 1800;
/// Types of metrics, with the fields that describe them, in the order in which a server looks.
const METRICS: &[(&str, &str)] = &[
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
const METRIC_TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

/// Checks a HorizontalPodAutoscaler.
pub(super) fn autoscaler(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    let (least, most) = (spec["minReplicas"].as_i64(), spec["maxReplicas"].as_i64().unwrap_or(0));
    if let Some(least) = least.filter(|n| *n < 1) {
        faults.invalid(&at.child("minReplicas"), least, "must be greater than or equal to 1");
    }
    if most < 1 {
        faults.invalid(&at.child("maxReplicas"), most, "must be greater than 0");
    }
    // Without a least number it is one.
    if most < least.unwrap_or(1) {
        let why = "must be greater than or equal to `minReplicas`";
        faults.invalid(&at.child("maxReplicas"), most, why);
    }
    let (target, target_at) = (&spec["scaleTargetRef"], at.child("scaleTargetRef"));
    reference(target, &target_at, faults);
    // What was without a group before may stay so.
    let grouped = |object: &Value| text(&object["spec"]["scaleTargetRef"]["apiVersion"]).contains('/');
    if !grouped(new) && old.is_none_or(grouped) {
        let version = text(&target["apiVersion"]);
        faults.invalid(&target_at.child("apiVersion"), version, "apiVersion must specify API group");
    }
    for (i, metric) in items(&spec["metrics"]).enumerate() {
        self::metric(metric, &at.child("metrics").index(i), faults);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_object() {
            self::rules(rules, &at.child("behavior").child(direction), faults);
        }
    }
}

fn reference(reference: &Value, at: &At, faults: &mut Faults) {
    for field in ["kind", "name"] {
        let value = text(&reference[field]);
        if value.is_empty() {
            faults.required(&at.child(field), "");
        } else {
            faults.invalid_for(&at.child(field), value, names::path_segment(value));
        }
    }
    let version = text(&reference["apiVersion"]);
    if version.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {version}");
        faults.invalid(&at.child("apiVersion"), version, &why);
    }
}

fn rules(rules: &Value, at: &At, faults: &mut Faults) {
    let (window, window_at) = (&rules["stabilizationWindowSeconds"], at.child("stabilizationWindowSeconds"));
    if window.as_i64().is_some_and(|s| s < 0) {
        faults.invalid(&window_at, window.clone(), "must be greater than or equal to zero");
    }
    if window.as_i64().is_some_and(|s| s > MAX_WINDOW_SECONDS) {
        let why = format!("must be less than or equal to {MAX_WINDOW_SECONDS}");
        faults.invalid(&window_at, window.clone(), &why);
    }
    let choices = ["Disabled", "Max", "Min"];
    faults.one_of(&at.child("selectPolicy"), &rules["selectPolicy"], &choices);
    // Rules without policies have those of a server by now.
    for (i, policy) in items(&rules["policies"]).enumerate() {
        let at = at.child("policies").index(i);
        let kind = text(&policy["type"]);
        if !["Percent", "Pods"].contains(&kind) {
            faults.not_supported(&at.child("type"), kind, &["Percent", "Pods"]);
        }
        for field in ["value", "periodSeconds"] {
            let number = policy[field].as_i64().unwrap_or(0);
            faults.positive(&at.child(field), &number.into());
        }
        let period = &policy["periodSeconds"];
        if period.as_i64().is_some_and(|s| s > MAX_PERIOD_SECONDS) {
            let why = format!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            faults.invalid(&at.child("periodSeconds"), period.clone(), &why);
        }
    }
    resources::not_negative(&rules["tolerance"], &at.child("tolerance"), faults);
}

fn metric(metric: &Value, at: &At, faults: &mut Faults) {
    let kind = text(&metric["type"]);
    if kind.is_empty() {
        faults.required(&at.child("type"), "must specify a metric source type");
    }
    let known = METRIC_TYPES.contains(&kind);
    if !known {
        faults.not_supported(&at.child("type"), kind, METRIC_TYPES);
    }
    let given: Vec<&str> =
        METRICS.iter().map(|(_, field)| *field).filter(|field| metric[*field].is_object()).collect();
    if let Some(first) = given.first() {
        source(first, &metric[*first], &at.child(first), faults);
    }
    let expected = METRICS.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
    match expected {
        Some(field) if !metric[field].is_object() => {
            faults.required(&at.child(field), "must populate information for the given metric source");
        }
        Some(_) => {}
        None => faults.not_supported(&at.child("type"), kind, METRIC_TYPES),
    }
    if given.len() != 1 {
        for other in given.iter().filter(|field| Some(**field) != expected) {
            faults.forbidden(&at.child(other), "must populate the given metric source only");
        }
    }
}

fn source(kind: &str, source: &Value, at: &At, faults: &mut Faults) {
    let target = &source["target"];
    let target_at = at.child("target");
    let has = |field: &str| !target[field].is_null();
    match kind {
        "resource" | "containerResource" => {
            let name = text(&source["name"]);
            if name.is_empty() {
                faults.required(&at.child("name"), "must specify a resource name");
            } else if kind == "containerResource" {
                resources::container_resource(name, &at.child("name"), faults);
            }
            if kind == "containerResource" {
                let container = text(&source["container"]);
                if container.is_empty() {
                    faults.required(&at.child("container"), "must specify a container");
                } else {
                    faults.invalid_for(&at.child("container"), container, names::dns_label(container));
                }
            }
            self::target(target, &target_at, faults);
            match (has("averageUtilization"), has("averageValue")) {
                (false, false) => {
                    let why = "must set either a target raw value or a target utilization";
                    faults.required(&target_at.child("averageUtilization"), why);
                }
                (true, true) => {
                    let why = "may not set both a target raw value and a target utilization";
                    faults.forbidden(&target_at.child("averageValue"), why);
                }
                _ => {}
            }
        }
        _ => {
            if kind == "object" {
                reference(&source["describedObject"], &at.child("describedObject"), faults);
            }
            let (name, name_at) = (text(&source["metric"]["name"]), at.child("metric").child("name"));
            if name.is_empty() {
                faults.required(&name_at, "must specify a metric name");
            } else {
                faults.invalid_for(&name_at, name, names::path_segment(name));
            }
            self::target(target, &target_at, faults);
            let (value, average) = (has("value"), has("averageValue"));
            let at = target_at.child("averageValue");
            match kind {
                "pods" if !average => faults.required(&at, "must specify a positive target averageValue"),
                "object" if !value && !average => {
                    faults.required(&at, "must set either a target value or averageValue");
                }
                "external" if !value && !average => {
                    faults.required(&at, "must set either a target value for metric or a per-pod target");
                }
                "external" if value && average => {
                    let why = "may not set both a target value for metric and a per-pod target";
                    faults.forbidden(&target_at.child("value"), why);
                }
                _ => {}
            }
        }
    }
}

fn target(target: &Value, at: &At, faults: &mut Faults) {
    let kind = text(&target["type"]);
    if kind.is_empty() {
        faults.required(&at.child("type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        faults.invalid(&at.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        if resources::amount(&target[field]).is_some_and(|a| a <= 0) {
            faults.invalid(&at.child(field), target[field].clone(), "must be positive");
        }
    }
    let share = &target["averageUtilization"];
    if share.as_i64().is_some_and(|n| n < 1) {
        faults.invalid(&at.child("averageUtilization"), share.clone(), "must be greater than 0");
    }
}

/// Checks a HorizontalPodAutoscaler's status.
pub(super) fn status(new: &Value, faults: &mut Faults) {
    let at = At::root("status");
    for field in ["currentReplicas", "desiredReplicas"] {
        faults.not_negative(&at.child(field), &new["status"][field]);
    }
}
