//! The environment of a container, and references to fields of its pod.

use serde_json::Value;

use super::super::field::{At, Faults, items, text};
use super::super::names;
use super::volumes::no_steps_back;
use crate::builtin::quantity;

/// Fields that a variable may hold.
const OF_VARIABLES: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that a file may hold.
pub(super) const OF_FILES: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// All fields that there are names of.
const KNOWN: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const AMOUNTS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks variables.
pub(super) fn variables(variables: &Value, at: &At, faults: &mut Faults) {
    for (i, variable) in items(variables).enumerate() {
        let (at, name) = (at.index(i), text(&variable["name"]));
        if name.is_empty() {
            faults.required(&at.child("name"), "");
        } else {
            faults.invalid_for(&at.child("name"), name, names::variable(name));
        }
        value_from(variable, &at.child("valueFrom"), faults);
    }
}

fn value_from(variable: &Value, at: &At, faults: &mut Faults) {
    let from = &variable["valueFrom"];
    if from.is_null() {
        return;
    }
    let mut sources = 0;
    for (source, check) in [
        ("fieldRef", (|f, at, faults| field(f, OF_VARIABLES, at, faults)) as fn(&Value, &At, &mut Faults)),
        ("resourceFieldRef", |f, at, faults| amount(f, false, at, faults)),
        ("configMapKeyRef", key),
        ("secretKeyRef", key),
        ("fileKeyRef", file),
    ] {
        if from[source].is_object() {
            sources += 1;
            check(&from[source], &at.child(source), faults);
        }
    }
    let why = match sources {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !text(&variable["value"]).is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    faults.invalid(at, "", why);
}

/// Checks where more variables come from.
pub(super) fn sources(sources: &Value, at: &At, faults: &mut Faults) {
    for (i, source) in items(sources).enumerate() {
        let own = at.index(i);
        let prefix = text(&source["prefix"]);
        if !prefix.is_empty() {
            faults.invalid_for(&own.child("prefix"), prefix, names::variable(prefix));
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            if source[kind].is_object() {
                count += 1;
                let (at, name) = (own.child(kind).child("name"), text(&source[kind]["name"]));
                if name.is_empty() {
                    faults.required(&at, "");
                } else {
                    faults.invalid_for(&at, name, names::dns_subdomain(name));
                }
            }
        }
        match count {
            0 => faults.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => faults.invalid(at, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Checks a reference to a key of a ConfigMap or Secret.
fn key(selector: &Value, at: &At, faults: &mut Faults) {
    let (name, key) = (text(&selector["name"]), text(&selector["key"]));
    faults.invalid_for(&at.child("name"), name, names::dns_subdomain(name));
    if key.is_empty() {
        faults.required(&at.child("key"), "");
    } else {
        faults.invalid_for(&at.child("key"), key, names::data_key(key));
    }
}

fn file(selector: &Value, at: &At, faults: &mut Faults) {
    let part = |field: &str| text(&selector[field]);
    for (field, rule) in
        [("key", names::variable as fn(&str) -> Vec<String>), ("volumeName", names::dns_label)]
    {
        if part(field).is_empty() {
            faults.required(&at.child(field), "");
        } else {
            faults.invalid_for(&at.child(field), part(field), rule(part(field)));
        }
    }
    if part("path").is_empty() {
        faults.required(&at.child("path"), "");
    } else {
        no_steps_back(part("path"), &at.child("path"), faults);
    }
}

/// Checks a reference to a field of the pod.
pub(super) fn field(selector: &Value, allowed: &[&str], at: &At, faults: &mut Faults) {
    let path = text(&selector["fieldPath"]);
    let at_path = at.child("fieldPath");
    if path.is_empty() {
        return faults.required(&at_path, "");
    }
    let version = selector["apiVersion"].as_str().unwrap_or("v1");
    let unreadable = |why: String| format!("error converting fieldPath: {why}");
    if version != "v1" {
        return faults.invalid(&at_path, path, &unreadable(format!("unsupported pod version: {version}")));
    }
    if let Some((base, subscript)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        return match base {
            "metadata.annotations" => {
                let lower = subscript.to_lowercase();
                faults.invalid_for(at, &lower, names::qualified_name(&lower));
            }
            "metadata.labels" => faults.invalid_for(at, subscript, names::qualified_name(subscript)),
            _ => {
                let why = unreadable(format!("field label does not support subscript: {path}"));
                faults.invalid(&at_path, path, &why);
            }
        };
    }
    let path = if path == "spec.host" { "spec.nodeName" } else { path };
    if !KNOWN.contains(&path) {
        faults.invalid(&at_path, path, &unreadable(format!("field label not supported: {path}")));
    } else if !allowed.contains(&path) {
        faults.not_supported(&at_path, path, allowed);
    }
}

/// Checks a reference to an amount that a container asks for or may use.
pub(super) fn amount(selector: &Value, container_too: bool, at: &At, faults: &mut Faults) {
    let resource = text(&selector["resource"]);
    let huge = ["requests.hugepages-", "limits.hugepages-"].iter().any(|p| resource.starts_with(p));
    if container_too && text(&selector["containerName"]).is_empty() {
        faults.required(&at.child("containerName"), "");
    } else if resource.is_empty() {
        faults.required(&at.child("resource"), "");
    } else if !AMOUNTS.contains(&resource) && !huge {
        faults.not_supported(&at.child("resource"), resource, AMOUNTS);
    }
    let divisor = text(&selector["divisor"]);
    if quantity::nanos(divisor).is_none_or(|d| d == 0) {
        return;
    }
    let (good, what): (&[&str], _) = match resource.split_once('.').map(|(_, kind)| kind) {
        Some("cpu") => (&["1m", "1"], "1m and 1 are supported with the cpu resource"),
        Some(kind) => {
            let what = match kind {
                "memory" => "memory resource",
                "ephemeral-storage" => "local ephemeral storage resource",
                _ if huge => "hugepages resource",
                _ => return,
            };
            let all: &[&str] =
                &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
            if !all.contains(&divisor) {
                let why = format!("only divisor's values {} are supported with the {what}", all.join(", "));
                faults.invalid(&at.child("divisor"), resource, &why);
            }
            return;
        }
        None => return,
    };
    if !good.contains(&divisor) {
        faults.invalid(&at.child("divisor"), resource, &format!("only divisor's values {what}"));
    }
}
