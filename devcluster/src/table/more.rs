//! Columns of the kinds that few look at: storage, quotas, revisions, and what the cluster has one list of.

use serde_json::{Value, json};

use super::builtin::{
    Compute, age_column, column, containers, created_at, int_at, is_true, labels, list, name_column, or_none,
    str_at, text, wide,
};
use super::workloads::{integer, modes_of, scalar};
use super::{Column, control};
use crate::gvk::GroupKind;

/// The columns of these kinds.
pub(super) fn columns(kind: &GroupKind) -> Option<Vec<Column>> {
    let mut out = vec![name_column()];
    let (middle, last) = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "LimitRange") | ("storage.k8s.io", "CSIStorageCapacity") => {
            out.push(created_at());
            return Some(out);
        }
        ("", "PodTemplate") => {
            out.extend([
                text("Containers", |o, _| names(o, "/template/spec/containers", "/name")),
                text("Images", |o, _| names(o, "/template/spec/containers", "/image")),
                text("Pod Labels", |o, _| labels(o.pointer("/template/metadata/labels"))),
            ]);
            return Some(out);
        }
        ("", "ReplicationController") => (
            vec![
                integer("Desired", |o, _| json!(int_at(o, "/spec/replicas"))),
                integer("Current", |o, _| json!(int_at(o, "/status/replicas"))),
                integer("Ready", |o, _| json!(int_at(o, "/status/readyReplicas"))),
            ],
            vec![
                wide("Containers", |o, _| containers(o, "name")),
                wide("Images", |o, _| containers(o, "image")),
                wide("Selector", |o, _| labels(o.pointer("/spec/selector"))),
            ],
        ),
        ("", "ResourceQuota") => (
            vec![text("Request", |o, _| json!(quota(o, false))), text("Limit", |o, _| json!(quota(o, true)))],
            Vec::new(),
        ),
        ("", "PersistentVolume") => (volume(), vec![wide("VolumeMode", volume_mode)]),
        ("apps", "ControllerRevision") => (
            vec![
                text("Controller", |o, _| json!(controller(o))),
                text("Revision", |o, _| json!(int_at(o, "/revision"))),
            ],
            Vec::new(),
        ),
        ("networking.k8s.io", "IngressClass") => (
            vec![
                text("Controller", |o, _| json!(str_at(o, "/spec/controller"))),
                text("Parameters", |o, _| json!(parameters(o))),
            ],
            Vec::new(),
        ),
        ("storage.k8s.io", "CSIDriver") => (driver(), Vec::new()),
        ("storage.k8s.io", "CSINode") => {
            (vec![integer("Drivers", |o, _| json!(list(o.pointer("/spec/drivers")).len()))], Vec::new())
        }
        ("storage.k8s.io", "VolumeAttachment") => (
            vec![
                Column {
                    format: "name".into(),
                    ..text("Attacher", |o, _| json!(str_at(o, "/spec/attacher")))
                },
                text("PV", |o, _| json!(str_at(o, "/spec/source/persistentVolumeName"))),
                text("Node", |o, _| json!(str_at(o, "/spec/nodeName"))),
                flag("Attached", |o, _| json!(truth(o, "/status/attached", false))),
            ],
            Vec::new(),
        ),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => (
            vec![text("Role", |o, _| {
                json!(format!("{}/{}", str_at(o, "/roleRef/kind"), str_at(o, "/roleRef/name")))
            })],
            vec![
                wide("Users", |o, _| json!(subjects(o, "User"))),
                wide("Groups", |o, _| json!(subjects(o, "Group"))),
                wide("ServiceAccounts", |o, _| json!(subjects(o, "ServiceAccount"))),
            ],
        ),
        ("scheduling.k8s.io", "PriorityClass") => (
            vec![
                integer("Value", |o, _| json!(int_at(o, "/value"))),
                flag("Global-Default", |o, _| json!(truth(o, "/globalDefault", false))),
            ],
            vec![text("PreemptionPolicy", |o, _| json!(str_at(o, "/preemptionPolicy")))],
        ),
        ("node.k8s.io", "RuntimeClass") => {
            (vec![text("Handler", |o, _| json!(str_at(o, "/handler")))], Vec::new())
        }
        ("apiregistration.k8s.io", "APIService") => (
            vec![text("Service", |o, _| json!(served_by(o))), text("Available", |o, _| json!(available(o)))],
            Vec::new(),
        ),
        _ => return control::columns(kind),
    };
    out.extend(middle);
    out.push(age_column());
    out.extend(last);
    Some(out)
}

fn flag(name: &str, compute: Compute) -> Column {
    column(name, "boolean", 0, compute)
}

fn truth(object: &Value, pointer: &str, absent: bool) -> bool {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(absent)
}

/// One field of each item, joined.
fn names(object: &Value, items: &str, field: &str) -> Value {
    let found: Vec<&str> = list(object.pointer(items)).iter().map(|item| str_at(item, field)).collect();
    json!(found.join(","))
}

fn volume() -> Vec<Column> {
    vec![
        text("Capacity", |o, _| match str_at(o, "/spec/capacity/storage") {
            "" => json!("0"),
            amount => json!(amount),
        }),
        text("Access Modes", |o, _| json!(modes_of(o.pointer("/spec/accessModes")))),
        text("Reclaim Policy", |o, _| json!(str_at(o, "/spec/persistentVolumeReclaimPolicy"))),
        text("Status", |o, _| {
            let ending = o.pointer("/metadata/deletionTimestamp").is_some();
            json!(if ending { "Terminating" } else { str_at(o, "/status/phase") })
        }),
        text("Claim", |o, _| match o.pointer("/spec/claimRef") {
            Some(claim) => json!(format!("{}/{}", str_at(claim, "/namespace"), str_at(claim, "/name"))),
            None => json!(""),
        }),
        text("StorageClass", |o, _| json!(str_at(o, "/spec/storageClassName"))),
        text("VolumeAttributesClass", |o, _| scalar(o.pointer("/spec/volumeAttributesClassName"), "<unset>")),
        text("Reason", |o, _| json!(str_at(o, "/status/reason"))),
    ]
}

fn volume_mode(object: &Value, _: jiff::Timestamp) -> Value {
    scalar(object.pointer("/spec/volumeMode"), "<unset>")
}

fn driver() -> Vec<Column> {
    vec![
        flag("AttachRequired", |o, _| json!(truth(o, "/spec/attachRequired", true))),
        flag("PodInfoOnMount", |o, _| json!(truth(o, "/spec/podInfoOnMount", false))),
        flag("StorageCapacity", |o, _| json!(truth(o, "/spec/storageCapacity", false))),
        text("TokenRequests", |o, _| match o.pointer("/spec/tokenRequests") {
            None => json!("<unset>"),
            Some(_) => names(o, "/spec/tokenRequests", "/audience"),
        }),
        flag("RequiresRepublish", |o, _| json!(truth(o, "/spec/requiresRepublish", false))),
        text("Modes", |o, _| {
            let modes: Vec<&str> =
                list(o.pointer("/spec/volumeLifecycleModes")).iter().filter_map(Value::as_str).collect();
            or_none(&modes.join(","))
        }),
    ]
}

/// What a quota counts, as used/hard: its limits, or everything else.
fn quota(object: &Value, limits: bool) -> String {
    let hard = object.pointer("/status/hard").and_then(Value::as_object);
    let amounts = hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits.") == limits);
    let shown: Vec<String> = amounts
        .map(|(name, hard)| {
            let used = object.pointer("/status/used").and_then(|used| used.get(name));
            let used = used.and_then(Value::as_str).unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"))
        })
        .collect();
    shown.join(", ")
}

/// The owner that controls an object, as `kind.group/name`.
fn controller(object: &Value) -> String {
    let owners = list(object.pointer("/metadata/ownerReferences"));
    let Some(owner) = owners.iter().find(|owner| truth(owner, "/controller", false)) else {
        return "<none>".into();
    };
    let kind = str_at(owner, "/kind").to_lowercase();
    match str_at(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", str_at(owner, "/name")),
        None => format!("{kind}/{}", str_at(owner, "/name")),
    }
}

fn parameters(class: &Value) -> String {
    match class.pointer("/spec/parameters") {
        None => "<none>".into(),
        Some(of) => {
            let kind = str_at(of, "/kind");
            let kind = match str_at(of, "/apiGroup") {
                "" => kind.to_owned(),
                group => format!("{kind}.{group}"),
            };
            format!("{kind}/{}", str_at(of, "/name"))
        }
    }
}

/// The subjects of one kind; service accounts with their namespace.
fn subjects(binding: &Value, kind: &str) -> String {
    let named = list(binding.get("subjects")).iter().filter(|subject| str_at(subject, "/kind") == kind);
    let shown: Vec<String> = named
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", str_at(subject, "/namespace"), str_at(subject, "/name")),
            _ => str_at(subject, "/name").to_owned(),
        })
        .collect();
    shown.join(", ")
}

fn served_by(service: &Value) -> String {
    match service.pointer("/spec/service") {
        None | Some(Value::Null) => "Local".into(),
        Some(of) => format!("{}/{}", str_at(of, "/namespace"), str_at(of, "/name")),
    }
}

fn available(service: &Value) -> String {
    let conditions = list(service.pointer("/status/conditions"));
    match conditions.iter().find(|condition| str_at(condition, "/type") == "Available") {
        None => "Unknown".into(),
        Some(_) if is_true(service, "Available") => "True".into(),
        Some(found) => format!("{} ({})", str_at(found, "/status"), str_at(found, "/reason")),
    }
}
