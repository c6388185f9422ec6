//! Where pods may go: affinity, tolerations, spreading, gates.

use serde_json::Value;

use super::super::field::{At, Faults, entries, items, text, texts};
use super::super::{names, selectors};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks what is done to pods that do not tolerate a taint.
pub(in super::super) fn taint_effect(effect: &Value, at: &At, faults: &mut Faults) {
    match text(effect) {
        "" => faults.required(at, ""),
        effect if !EFFECTS.contains(&effect) => faults.not_supported(at, effect, EFFECTS),
        _ => {}
    }
}

/// Checks tolerations.
pub(super) fn tolerations(tolerations: &Value, at: &At, faults: &mut Faults) {
    for (i, toleration) in items(tolerations).enumerate() {
        let at = at.index(i);
        let part = |field: &str| text(&toleration[field]);
        let (key, operator, value, effect) = (part("key"), part("operator"), part("value"), part("effect"));
        if !key.is_empty() {
            faults.invalid_for(&at.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.invalid(&at.child("operator"), operator, why);
        }
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.invalid(&at.child("effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    faults.invalid(&at.child("operator"), value, &wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                faults.invalid(&at.child("operator"), value, why);
            }
            "Exists" => {}
            "Lt" | "Gt" => {
                let all = ["Equal", "Exists", "Lt", "Gt"];
                faults.not_supported(&at.child("operator"), operator, &all);
            }
            other => faults.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(&toleration["effect"], &at.child("effect"), faults);
        }
    }
}

/// Checks affinities.
pub(super) fn affinity(affinity: &Value, at: &At, faults: &mut Faults) {
    let (nodes, nodes_at) = (&affinity["nodeAffinity"], at.child("nodeAffinity"));
    if nodes[REQUIRED].is_object() {
        selectors::nodes(&nodes[REQUIRED], &nodes_at.child(REQUIRED), faults);
    }
    for (i, term) in items(&nodes[PREFERRED]).enumerate() {
        let at = nodes_at.child(PREFERRED).index(i);
        weight(term, &at, faults);
        selectors::node_term(&term["preference"], &at.child("preference"), false, faults);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pods, at) = (&affinity[kind], at.child(kind));
        for (i, term) in items(&pods[REQUIRED]).enumerate() {
            pod_term(term, &at.child(REQUIRED).index(i), faults);
        }
        for (i, term) in items(&pods[PREFERRED]).enumerate() {
            let at = at.child(PREFERRED).index(i);
            weight(term, &at, faults);
            pod_term(&term["podAffinityTerm"], &at.child("podAffinityTerm"), faults);
        }
    }
}

fn weight(term: &Value, at: &At, faults: &mut Faults) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        faults.invalid(&at.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_term(term: &Value, at: &At, faults: &mut Faults) {
    for field in ["labelSelector", "namespaceSelector"] {
        if term[field].is_object() {
            selectors::labels(&term[field], &at.child(field), faults);
        }
    }
    for namespace in texts(&term["namespaces"]) {
        faults.invalid_for(&at.child("namespace"), namespace, names::dns_label(namespace));
    }
    label_keys(term, at, faults);
    let (key, at) = (text(&term["topologyKey"]), at.child("topologyKey"));
    if key.is_empty() {
        faults.required(&at, "can not be empty");
    }
    faults.invalid_for(&at, key, names::qualified_name(key));
}

/// Checks the keys whose values of the pod itself are selected, or are not.
fn label_keys(term: &Value, at: &At, faults: &mut Faults) {
    let selector = &term["labelSelector"];
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let at = at.child(field);
        if items(&term[field]).next().is_some() && !selector.is_object() {
            faults.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in texts(&term[field]).enumerate() {
            faults.invalid_for(&at.index(i), key, names::qualified_name(key));
        }
    }
    let matched: Vec<&str> = texts(&term["matchLabelKeys"]).collect();
    let mut seen: Vec<&str> = entries(&selector["matchLabels"]).map(|(key, _)| key.as_str()).collect();
    for expression in items(&selector["matchExpressions"]) {
        let key = text(&expression["key"]);
        if let Some(i) = matched.iter().position(|m| *m == key)
            && seen.contains(&key)
        {
            faults.invalid(&at.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.push(key);
    }
    for (i, key) in matched.iter().enumerate() {
        if texts(&term["mismatchLabelKeys"]).any(|m| m == *key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            faults.invalid(&at.child("matchLabelKeys").index(i), *key, why);
        }
    }
}

/// Checks how pods are spread.
pub(super) fn spread(constraints: &Value, at: &At, faults: &mut Faults) {
    let all: Vec<&Value> = items(constraints).collect();
    for (i, one) in all.iter().enumerate() {
        let at = at.index(i);
        let (key, action) = (text(&one["topologyKey"]), text(&one["whenUnsatisfiable"]));
        let skew = one["maxSkew"].as_i64().unwrap_or(0);
        faults.positive(&at.child("maxSkew"), &skew.into());
        if key.is_empty() {
            faults.required(&at.child("topologyKey"), "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            faults.not_supported(&at.child("whenUnsatisfiable"), action, &actions);
        }
        let same = |other: &&&Value| {
            text(&other["topologyKey"]) == key && text(&other["whenUnsatisfiable"]) == action
        };
        if all[i + 1..].iter().any(|other| same(&other)) {
            let at = at.child("{topologyKey, whenUnsatisfiable}");
            faults.duplicate(&at, format!("{{{key}, {action}}}"));
        }
        let domains = &one["minDomains"];
        if !domains.is_null() {
            let at = at.child("minDomains");
            faults.positive(&at, domains);
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                faults.invalid(&at, domains.clone(), &why);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = one[field].as_str().filter(|p| !["Honor", "Ignore"].contains(p)) {
                faults.not_supported(&at.child(field), policy, &["Honor", "Ignore"]);
            }
        }
        label_keys(one, &at, faults);
        if one["labelSelector"].is_object() {
            selectors::labels(&one["labelSelector"], &at.child("labelSelector"), faults);
        }
    }
}

/// Checks what holds a pod back from being scheduled.
pub(super) fn gates(gates: &Value, at: &At, faults: &mut Faults) {
    let mut seen = Vec::new();
    for (i, gate) in items(gates).enumerate() {
        let name = text(&gate["name"]);
        faults.invalid_for(&at.index(i), name, names::qualified_name(name));
        if seen.contains(&name) {
            faults.duplicate(&at.index(i), name);
        }
        seen.push(name);
    }
}
