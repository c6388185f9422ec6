//! Checks of built-in kinds beyond their schemas, as `k8s.io/kubernetes/pkg/apis` has them: every fault names its field, in a
//! server's own words and order. What applies to many kinds is checked in one place: names in [`names`], metadata in
//! [`meta`], selectors in [`selectors`], amounts in [`resources`], addresses in [`addresses`].

mod addresses;
mod autoscaling;
mod cluster;
mod config;
mod cron;
mod field;
mod jobs;
mod meta;
mod names;
mod networking;
mod pod;
mod policy;
mod rbac;
mod resources;
mod selectors;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod workloads;

use serde_json::Value;

use crate::server::status::Cause;
use field::{At, Faults};
pub use names::dns_1035_label;

/// What is written.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// Kind of the object.
    pub kind: &'a str,
    /// Its API version, as it was asked for.
    pub api_version: &'a str,
    /// The object as it is to be stored.
    pub new: &'a Value,
    /// Its present state; `None` if it is new.
    pub old: Option<&'a Value>,
    /// The part of it that is written, such as `status`; `None` for all.
    pub subresource: Option<&'a str>,
}

/// Kinds whose changed objects have their metadata checked once more as that of new ones.
const CHECKED_AS_NEW: &[&str] = &[
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Endpoints",
    "EndpointSlice",
    "Ingress",
    "IngressClass",
    "NetworkPolicy",
    "ControllerRevision",
    "Node",
    "Namespace",
    "LimitRange",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "StorageClass",
    "CSINode",
    "CSIStorageCapacity",
    "VolumeAttachment",
    "RuntimeClass",
    "Job",
    "APIService",
];

/// Checks an object of a built-in kind.
pub fn check(write: &Write<'_>) -> Vec<Cause> {
    let mut faults = Faults::default();
    match (write.subresource, write.old) {
        (Some("status"), Some(old)) => status(write.kind, write.new, old, &mut faults),
        _ => whole(write, &mut faults),
    }
    if faults.count() == 0 && field::text(&write.new["metadata"]["name"]).is_empty() {
        faults.required(&At::root("metadata").child("name"), "name or generateName is required");
    }
    faults.into_causes()
}

/// Checks the metadata of an object of a kind that a definition made; `updated` is whether it is not new.
pub fn custom_metadata(metadata: &Value, updated: bool) -> Vec<Cause> {
    let mut faults = Faults::default();
    meta::custom(metadata, updated, &mut faults);
    faults.into_causes()
}

/// Why a text is no value of a label; the first reason.
pub fn label_value(text: &str) -> Option<String> {
    names::label_value(text).into_iter().next()
}

fn status(kind: &str, new: &Value, old: &Value, faults: &mut Faults) {
    if kind == "Pod" {
        return pod::status(new, old, faults);
    }
    meta::updated(kind, &new["metadata"], faults);
    match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" => {
            workloads::status(kind, new, faults);
        }
        "Job" => jobs::status(new, old, faults),
        "HorizontalPodAutoscaler" => autoscaling::status(new, faults),
        "PodDisruptionBudget" => policy::budget_status(new, faults),
        "Namespace" => cluster::namespace_status(new, faults),
        "Node" => cluster::node_kept(new, old, faults),
        _ => {}
    }
}

fn whole(write: &Write<'_>, faults: &mut Faults) {
    let Write { kind, api_version, new, old, .. } = *write;
    match (kind, old) {
        ("Pod", None) => return pod::created(new, faults),
        ("Pod", Some(old)) => return pod::updated(new, old, faults),
        // Events of `v1` have no rules for their metadata.
        ("Event", _) => {
            cluster::event(new, api_version != "v1", faults);
            if api_version == "v1" {
                return;
            }
        }
        _ => {}
    }
    match old {
        None => meta::created(kind, &new["metadata"], faults),
        Some(_) => {
            meta::updated(kind, &new["metadata"], faults);
            if CHECKED_AS_NEW.contains(&kind) {
                meta::created(kind, &new["metadata"], faults);
            }
        }
    }
    match kind {
        "Deployment" => workloads::deployment(new, old, faults),
        "ReplicaSet" => workloads::replica_set(new, old, faults),
        "StatefulSet" => workloads::stateful_set(new, old, faults),
        "DaemonSet" => workloads::daemon_set(new, old, faults),
        "ReplicationController" => workloads::replication_controller(new, faults),
        "PodTemplate" => pod::template(&new["template"], &At::root("template"), faults),
        "Job" => match old {
            None => jobs::created(new, faults),
            Some(old) => jobs::updated(new, old, faults),
        },
        "CronJob" => jobs::cron_job(new, old, faults),
        "Service" => service::service(new, old, faults),
        "ConfigMap" => {
            kept(new, old, config::config_map_kept, faults);
            config::config_map(new, faults);
        }
        "Secret" => {
            kept(new, old, config::secret_kept, faults);
            config::secret(new, faults);
        }
        "PersistentVolumeClaim" => {
            storage::claim_spec(&new["spec"], &At::root("spec"), faults);
            kept(new, old, storage::claim_kept, faults);
        }
        "PersistentVolume" => {
            storage::volume(new, faults);
            kept(new, old, storage::volume_kept, faults);
        }
        "StorageClass" => {
            storage::class(new, faults);
            kept(new, old, storage::class_kept, faults);
        }
        "CSIDriver" => {
            storage::csi_driver(new, faults);
            kept(new, old, storage::csi_driver_kept, faults);
        }
        "CSINode" => storage::csi_node(new, faults),
        "CSIStorageCapacity" => storage::csi_capacity(new, old, faults),
        "VolumeAttachment" => storage::attachment(new, old, faults),
        "Role" => rbac::role(new, true, faults),
        "ClusterRole" => rbac::role(new, false, faults),
        "RoleBinding" => rbac::binding(new, old, true, faults),
        "ClusterRoleBinding" => rbac::binding(new, old, false, faults),
        "Ingress" => networking::ingress(new, old.is_some(), faults),
        "IngressClass" => networking::ingress_class(new, old, faults),
        "NetworkPolicy" => networking::policy(new, faults),
        "Endpoints" => networking::endpoints(new, old, faults),
        "EndpointSlice" => networking::slice(new, old, faults),
        "HorizontalPodAutoscaler" => autoscaling::autoscaler(new, old, faults),
        "PodDisruptionBudget" => policy::budget(new, faults),
        "PriorityClass" => match old {
            None => policy::priority_class(new, faults),
            Some(old) => policy::priority_class_kept(new, old, faults),
        },
        "LimitRange" => policy::limits(new, faults),
        "ResourceQuota" => policy::quota(new, old, faults),
        "Node" => {
            cluster::node(new, faults);
            kept(new, old, cluster::node_kept, faults);
        }
        "Lease" => cluster::lease(new, faults),
        "RuntimeClass" => cluster::runtime_class(new, old, faults),
        "Event" if old.is_none() => cluster::new_event(new, faults),
        "ControllerRevision" => cluster::revision(new, old, faults),
        "APIService" => cluster::api_service(new, faults),
        "CustomResourceDefinition" => kept(new, old, cluster::definition_kept, faults),
        _ => {}
    }
}

/// What an update must keep.
fn kept(new: &Value, old: Option<&Value>, check: fn(&Value, &Value, &mut Faults), faults: &mut Faults) {
    if let Some(old) = old {
        check(new, old, faults);
    }
}
