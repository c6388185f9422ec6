//! The parts of an object that a write keeps, compares and converts: pure functions.

use jiff::Timestamp;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::builtin::{autoscalers, defaults, events};
use crate::resources::Resource;
use crate::server::status::ApiError;
use crate::store::GroupResource;

/// Whether a create starts without status: nodes alone register with theirs.
pub(super) fn drops_status(resource: &Resource) -> bool {
    resource.has_status() && resource.kind != "Node"
}

/// Whether a deleted object has nothing left to wait for. Namespaces wait for what is in them, pods for their kubelet.
pub(super) fn ends(resource: &Resource, object: &Value) -> bool {
    let meta = &object["metadata"];
    let pod = resource.storage == GroupResource::new("", "pods");
    !meta["deletionTimestamp"].is_null()
        && meta["finalizers"].as_array().is_none_or(Vec::is_empty)
        && resource.kind != "Namespace"
        && !(pod && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0)
}

/// Whether objects of a kind count their changes: those whose strategies in `k8s.io/kubernetes/pkg/registry` say so.
pub(in crate::api) fn counts_generations(resource: &Resource) -> bool {
    resource.custom.is_some()
        || matches!(
            resource.kind.as_str(),
            "Pod"
                | "PodTemplate"
                | "ReplicationController"
                | "DaemonSet"
                | "Deployment"
                | "ReplicaSet"
                | "StatefulSet"
                | "CronJob"
                | "Job"
                | "EndpointSlice"
                | "Ingress"
                | "IngressClass"
                | "NetworkPolicy"
                | "PodDisruptionBudget"
                | "PriorityClass"
                | "CustomResourceDefinition"
                | "MutatingWebhookConfiguration"
                | "ValidatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "DeviceClass"
                | "ResourceSlice"
                | "FlowSchema"
                | "PriorityLevelConfiguration"
        )
}

/// Whether a change of metadata counts for a kind.
pub(super) fn counts_metadata(resource: &Resource, object: &Value, before: &Value) -> bool {
    let changed = |field: &str| object["metadata"].get(field) != before["metadata"].get(field);
    match resource.kind.as_str() {
        _ if resource.custom.is_some() => false,
        "Deployment" => changed("annotations"),
        "EndpointSlice" => changed("labels"),
        _ => false,
    }
}

/// Gives a new object what the server alone says of it.
pub(super) fn stamp(resource: &Resource, meta: &mut Map<String, Value>, now: Timestamp) {
    meta.insert("uid".into(), new_uid().into());
    meta.insert("creationTimestamp".into(), now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
    match counts_generations(resource) {
        true => meta.insert("generation".into(), 1.into()),
        // Kinds that do not count keep what they are given.
        false => meta.get("generation").cloned(),
    };
}

/// What the generation counts: everything but metadata and status.
pub(super) fn spec_of(object: &Value) -> Map<String, Value> {
    let mut out = object.as_object().cloned().unwrap_or_default();
    out.remove("metadata");
    out.remove("status");
    out
}

/// Keeps a write to its part: the main resource leaves status alone, `status` leaves all else alone.
pub(super) fn confine(resource: &Resource, subresource: Option<&str>, before: &Value, object: &mut Value) {
    match subresource {
        Some("status") => {
            let mut confined = before.clone();
            if let Some(out) = confined.as_object_mut() {
                match object.get("status") {
                    Some(status) => out.insert("status".into(), status.clone()),
                    None => out.remove("status"),
                };
            }
            for field in ["managedFields", "labels", "annotations"] {
                // A real server lets `/status` change labels and annotations of built-in kinds only.
                if field == "managedFields" || resource.custom.is_none() {
                    copy_meta(object, &mut confined, field);
                }
            }
            if resource.kind == "Node" || resource.kind == "Pod" {
                copy_meta(object, &mut confined, "finalizers");
            }
            *object = confined;
        }
        Some("approval") => {
            let mut confined = before.clone();
            if object["status"]["conditions"].is_array() {
                confined["status"]["conditions"] = object["status"]["conditions"].clone();
            }
            copy_meta(object, &mut confined, "managedFields");
            *object = confined;
        }
        _ if resource.has_status() => {
            let status = before.get("status").cloned();
            if let Some(out) = object.as_object_mut() {
                match status {
                    Some(status) => out.insert("status".into(), status),
                    None => out.remove("status"),
                };
            }
        }
        _ => {}
    }
}

fn copy_meta(from: &Value, to: &mut Value, field: &str) {
    if let Some(meta) = to["metadata"].as_object_mut() {
        match from["metadata"].get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
}

/// Metadata that only the server writes stays as it is.
pub(super) fn keep_system_fields(before: &Value, object: &mut Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "namespace",
        "name",
        "generateName",
    ] {
        copy_meta(before, object, field);
    }
}

pub(super) fn same_but_version(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(meta) = v["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            // Times of managers move with every write; they alone are no change.
            meta.remove("managedFields");
        }
        v
    };
    let managers = |v: &Value| {
        let entries = v["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        entries
            .into_iter()
            .map(|mut e| {
                e.as_object_mut().map(|o| o.remove("time"));
                e
            })
            .collect::<Vec<_>>()
    };
    strip(a) == strip(b) && managers(a) == managers(b)
}

pub(in crate::api) fn object_meta(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

/// An object's name, made from its prefix if it has none; empty if it has neither.
pub(super) fn name_of(object: &mut Value) -> String {
    if let Some(name) = object["metadata"]["name"].as_str().filter(|n| !n.is_empty()) {
        return name.to_owned();
    }
    let Some(prefix) = object["metadata"]["generateName"].as_str().filter(|n| !n.is_empty()) else {
        return String::new();
    };
    let prefix: String = prefix.chars().take(58).collect();
    let name = format!("{prefix}{}", random_suffix());
    object["metadata"]["name"] = name.clone().into();
    name
}

/// Five letters that make a generated name unlike others.
pub(super) fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

pub(crate) fn new_uid() -> String {
    let bits: u128 = rand::rng().random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A stored object in the version of `resource`.
pub fn present(resource: &Resource, stored: &Value) -> Value {
    let api_version = resource.api_version();
    if stored["apiVersion"] == api_version.as_str() {
        return stored.clone();
    }
    if resource.custom.is_none() {
        match resource.plural.as_str() {
            "events" => return events::to_events_v1(stored),
            "horizontalpodautoscalers" => return autoscalers::to_v1(stored),
            _ => {}
        }
    }
    let mut out = stored.clone();
    out["apiVersion"] = api_version.into();
    out
}

/// An object of `resource`'s version in the version that is stored.
pub(super) fn to_storage(resource: &Resource, mut object: Value) -> Value {
    if resource.custom.is_none() {
        defaults::forget_empty_lists(&resource.kind, &mut object);
    }
    if resource.storage_api_version == resource.api_version() {
        return object;
    }
    if resource.custom.is_none() {
        match resource.plural.as_str() {
            "events" => return events::to_core_v1(&object),
            "horizontalpodautoscalers" => {
                let mut stored = autoscalers::to_v2(&object);
                defaults::apply(&resource.kind, &mut stored);
                return stored;
            }
            _ => {}
        }
    }
    let mut out = object;
    out["apiVersion"] = resource.storage_api_version.clone().into();
    out
}

/// What a new definition says of itself until its names are looked at.
pub(super) fn unnamed(object: &mut Value) {
    let version = storage_versions(object);
    let names = json!({"plural": "", "kind": ""});
    object["status"] = json!({"acceptedNames": names, "storedVersions": version, "conditions": null});
}

fn storage_versions(definition: &Value) -> Vec<Value> {
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    versions.filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect()
}

/// A definition with its names accepted, and in force.
pub(super) fn crd_status(object: &mut Value, now: Timestamp) {
    let names = object["spec"]["names"].clone();
    let mut versions: Vec<Value> = object["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    for version in storage_versions(object) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let before = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let kept = |kind: &str| {
        let old = before.iter().find(|c| c["type"] == kind)?;
        (old["status"] == "True").then(|| old["lastTransitionTime"].clone())
    };
    let mut conditions = vec![
        json!({"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found",
         "lastTransitionTime": kept("NamesAccepted").unwrap_or_else(|| at.clone().into())}),
        json!({"type": "Established", "status": "True", "reason": "InitialNamesAccepted",
         "message": "the initial names have been accepted",
         "lastTransitionTime": kept("Established").unwrap_or_else(|| at.into())}),
    ];
    conditions
        .extend(before.into_iter().filter(|c| c["type"] != "NamesAccepted" && c["type"] != "Established"));
    object["status"] = json!({"acceptedNames": names, "storedVersions": versions, "conditions": conditions});
}

/// Says of a definition that it is about to go.
pub(in crate::api) fn crd_ending(object: &mut Value, now: Timestamp) {
    let condition = json!({
        "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    if let Some(conditions) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        conditions.retain(|c| c["type"] != "Terminating");
        conditions.push(condition);
    }
}
