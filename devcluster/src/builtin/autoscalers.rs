//! The two faces of a HorizontalPodAutoscaler: `autoscaling/v2`, which is stored, and `autoscaling/v1`, which knows one target
//! for CPU and keeps all else in annotations, as the conversion in `k8s.io/kubernetes/pkg/apis/autoscaling/v1` does.

use serde_json::{Map, Value, json};

use super::in_order;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const KEPT: [&str; 4] = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR];
/// Utilization of CPU that is aimed at where nothing else is said, in percent.
const CPU_PERCENT: i64 = 80;
/// Fields of a scaling rule in the order in which a server writes them.
const RULE_FIELDS: [&str; 4] = ["stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance"];

/// Fields in the order in which a server writes them into annotations.
const ORDER: &[&str] = &[
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "target",
    "kind",
    "metricName",
    "name",
    "apiVersion",
    "metricSelector",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetValue",
    "currentValue",
    "targetAverageValue",
    "currentAverageValue",
    "container",
    "selector",
    "averageValue",
];
/// Where `v1` has what `v2` has: kind of metric, then pairs of pointers below it. Targets and current values stand in
/// the same places but for their names.
const METRIC_FIELDS: &[(&str, &[(&str, &str)])] = &[
    (
        "resource",
        &[
            ("/name", "/name"),
            ("/@AverageUtilization", "/@/averageUtilization"),
            ("/@AverageValue", "/@/averageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("/name", "/name"),
            ("/@AverageUtilization", "/@/averageUtilization"),
            ("/@AverageValue", "/@/averageValue"),
            ("/container", "/container"),
        ],
    ),
    (
        "pods",
        &[
            ("/metricName", "/metric/name"),
            ("/@AverageValue", "/@/averageValue"),
            ("/selector", "/metric/selector"),
        ],
    ),
    (
        "object",
        &[
            ("/target", "/describedObject"),
            ("/metricName", "/metric/name"),
            ("/@Value", "/@/value"),
            ("/selector", "/metric/selector"),
            ("/averageValue", "/@/averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("/metricName", "/metric/name"),
            ("/metricSelector", "/metric/selector"),
            ("/@Value", "/@/value"),
            ("/@AverageValue", "/@/averageValue"),
        ],
    ),
];

/// `autoscaling/v2` → `autoscaling/v1`.
pub fn to_v1(autoscaler: &Value) -> Value {
    let mut out = autoscaler.clone();
    out["apiVersion"] = "autoscaling/v1".into();
    let mut kept: Vec<(&str, String)> = Vec::new();
    let metrics = items(&autoscaler["spec"]["metrics"]);
    let cpu = |metric: &Value, part: &str| match metric["resource"]["name"] == "cpu"
        && metric["type"] == "Resource"
    {
        true => metric["resource"][part]["averageUtilization"].as_i64(),
        false => None,
    };
    if let Some(spec) = out.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("metrics");
        spec.remove("behavior");
        if let Some(percent) = metrics.iter().find_map(|metric| cpu(metric, "target")) {
            spec.insert("targetCPUUtilizationPercentage".into(), percent.into());
        }
    }
    let others: Vec<Value> = metrics
        .iter()
        .filter(|metric| cpu(metric, "target").is_none())
        .map(|metric| metric_to_v1(metric, "target"))
        .collect();
    if !others.is_empty() {
        kept.push((METRICS, in_order(&others.into(), ORDER)));
    }
    let current = items(&autoscaler["status"]["currentMetrics"]);
    let conditions = items(&autoscaler["status"]["conditions"]);
    if let Some(status) = out.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("currentMetrics");
        status.remove("conditions");
        if let Some(percent) = current.iter().rev().find_map(|metric| cpu(metric, "current")) {
            status.insert("currentCPUUtilizationPercentage".into(), percent.into());
        }
        status.entry("currentReplicas").or_insert_with(|| 0.into());
        status.entry("desiredReplicas").or_insert_with(|| 0.into());
    }
    if !current.is_empty() {
        let current: Vec<Value> = current.iter().map(|metric| metric_to_v1(metric, "current")).collect();
        kept.push((CURRENT_METRICS, in_order(&current.into(), ORDER)));
    }
    if autoscaler["spec"]["behavior"].is_object() {
        kept.push((BEHAVIOR, inner_behavior(&autoscaler["spec"]["behavior"])));
    }
    if !conditions.is_empty() {
        kept.push((CONDITIONS, in_order(&conditions.to_vec().into(), ORDER)));
    }
    if let Some(meta) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        forget_kept(meta);
        if !kept.is_empty()
            && let Some(annotations) = meta.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
        {
            annotations.extend(kept.into_iter().map(|(name, text)| (name.to_owned(), text.into())));
        }
    }
    out
}

/// `autoscaling/v1` → `autoscaling/v2`.
pub fn to_v2(autoscaler: &Value) -> Value {
    let mut out = autoscaler.clone();
    out["apiVersion"] = "autoscaling/v2".into();
    let annotation = |name: &str| {
        let text = autoscaler["metadata"]["annotations"][name].as_str()?;
        serde_json::from_str::<Value>(text).ok()
    };
    let cpu = |percent: i64| {
        json!({"type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
    };
    if let Some(spec) = out.get_mut("spec").and_then(Value::as_object_mut) {
        let percent = spec.remove("targetCPUUtilizationPercentage").and_then(|percent| percent.as_i64());
        let others = annotation(METRICS).unwrap_or_default();
        let mut metrics: Vec<Value> =
            items(&others).iter().map(|metric| metric_to_v2(metric, "target")).collect();
        metrics.extend(percent.map(cpu));
        if metrics.is_empty() {
            metrics.push(cpu(CPU_PERCENT));
        }
        spec.insert("metrics".into(), metrics.into());
        if let Some(behavior) = annotation(BEHAVIOR).filter(|b| b.as_object().is_some_and(|b| !b.is_empty()))
        {
            spec.insert("behavior".into(), renamed(&behavior, lower));
        }
    }
    let status = out.get_mut("status").and_then(Value::as_object_mut);
    if let Some(status) = status.filter(|status| !status.is_empty()) {
        let percent = status.remove("currentCPUUtilizationPercentage").and_then(|percent| percent.as_i64());
        let current = match (annotation(CURRENT_METRICS), percent) {
            (Some(kept), _) => items(&kept).iter().map(|metric| metric_to_v2(metric, "current")).collect(),
            (None, Some(percent)) => json!([{"type": "Resource",
                "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]),
            (None, None) => Value::Null,
        };
        status.insert("currentMetrics".into(), current);
        // `v1` writes it whatever it is.
        if status.get("currentReplicas").is_some_and(|count| *count == 0) {
            status.remove("currentReplicas");
        }
        if let Some(conditions) = annotation(CONDITIONS) {
            status.insert("conditions".into(), conditions);
        }
    }
    if let Some(meta) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        forget_kept(meta);
    }
    out
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn forget_kept(meta: &mut Map<String, Value>) {
    if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| !KEPT.contains(&name.as_str()));
        if annotations.is_empty() {
            meta.remove("annotations");
        }
    }
}

/// The kind of a metric's field, and where each of its values is in both versions.
fn places(metric: &Value, part: &str) -> Vec<(String, String)> {
    let kind = metric["type"].as_str().unwrap_or_default();
    let field = lower(kind);
    let of_kind = METRIC_FIELDS.iter().find(|(name, _)| *name == field);
    let place = |pointer: &str| format!("/{field}{}", pointer.replace('@', part));
    of_kind.into_iter().flat_map(|(_, pairs)| *pairs).map(|(v1, v2)| (place(v1), place(v2))).collect()
}

fn metric_to_v1(metric: &Value, part: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (v1, v2) in places(metric, part) {
        if let Some(value) = metric.pointer(&v2).filter(|value| !value.is_null()) {
            put(&mut out, &v1, value.clone());
        }
    }
    if part == "current" {
        // One amount is written whatever it is.
        let kind = lower(metric["type"].as_str().unwrap_or_default());
        let amount = if matches!(kind.as_str(), "object" | "external") {
            "currentValue"
        } else {
            "currentAverageValue"
        };
        if out[&kind][amount].is_null() {
            out[&kind][amount] = "0".into();
        }
    }
    out
}

fn metric_to_v2(metric: &Value, part: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    let mut target = None;
    for (v1, v2) in places(metric, part) {
        // A current amount of nothing is one that is not known.
        let unknown = |value: &Value| value.is_null() || (part == "current" && value == "0");
        if let Some(value) = metric.pointer(&v1).filter(|value| !unknown(value)) {
            put(&mut out, &v2, value.clone());
            let (whole, last) = v2.rsplit_once('/').unwrap_or_default();
            let kind = match last {
                "averageUtilization" => "Utilization",
                "averageValue" => "AverageValue",
                "value" => "Value",
                _ => continue,
            };
            target = Some((format!("{whole}/type"), kind));
        }
    }
    if let Some((place, kind)) = target.filter(|_| part == "target") {
        put(&mut out, &place, kind.into());
    }
    out
}

/// Sets what a pointer names; objects on the way are made.
fn put(target: &mut Value, pointer: &str, value: Value) {
    let mut at = target;
    for field in pointer.split('/').skip(1) {
        at = &mut at[field];
    }
    *at = value;
}

fn lower(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn upper(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The same with other names, and without what is not set.
fn renamed(value: &Value, name: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(field, value)| (name(field), renamed(value, name)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| renamed(item, name)).collect(),
        other => other.clone(),
    }
}

/// A behaviour as a server's inner type is written: all fields, by Go's names, in Go's order.
fn inner_behavior(behavior: &Value) -> String {
    let rules = |rules: &Value| {
        if rules.is_null() {
            return "null".to_owned();
        }
        let field = |name: &&str| {
            let shown = match (*name, items(&rules["policies"])) {
                ("policies", []) => "null".to_owned(),
                ("policies", policies) => {
                    let one = |policy: &Value| {
                        let field = |name| format!("\"{}\":{}", upper(name), policy[name]);
                        format!("{{{}}}", ["type", "value", "periodSeconds"].map(field).join(","))
                    };
                    format!("[{}]", policies.iter().map(one).collect::<Vec<_>>().join(","))
                }
                (name, _) => rules[name].to_string(),
            };
            format!("\"{}\":{shown}", upper(name))
        };
        format!("{{{}}}", RULE_FIELDS.iter().map(field).collect::<Vec<_>>().join(","))
    };
    format!("{{\"ScaleUp\":{},\"ScaleDown\":{}}}", rules(&behavior["scaleUp"]), rules(&behavior["scaleDown"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_for_cpu_is_a_metric() {
        let v1 = json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        let v2 = to_v2(&v1);
        assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert_eq!(to_v1(&v2), v1);
        let silent = json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3}});
        assert_eq!(to_v2(&silent)["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }

    #[test]
    fn all_else_comes_back_from_annotations() {
        let metric = json!({"name": "m", "selector": {"matchLabels": {"a": "b"}}});
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "metadata": {"name": "h", "annotations": {"a": "b"}},
            "spec": {
                "maxReplicas": 3,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 5}}},
                    {"type": "Pods", "pods": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": metric,
                        "target": {"type": "Value", "value": "7"}}},
                    {"type": "External", "external": {"metric": metric, "target": {"type": "Value", "value": "7"}}},
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 9, "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            },
            "status": {
                "currentReplicas": 1, "desiredReplicas": 2,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 3, "averageValue": "30m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        });
        let v1 = to_v1(&v2);
        assert_eq!(v1["status"]["currentCPUUtilizationPercentage"], 3);
        assert!(v1["spec"].get("metrics").is_none());
        assert_eq!(to_v2(&v1), v2);
    }
}
