//! Delete: at once, or by a mark that finalizers, a kubelet or a namespace's content hold.

use jiff::Timestamp;
use serde_json::Value;

use super::Cluster;
use super::write::{counts_generations, crd_ending, object_meta};
use crate::resources::{CRD_FINALIZER, Resource};
use crate::server::status::ApiError;
use crate::store::{CommitError, Expected, GroupResource, ObjectKey, bump_generation};

/// Longest grace period: about thirty years.
const MAX_GRACE_S: i64 = 1_000_000_000;
/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// What a delete did.
#[derive(Debug, Clone)]
pub enum Deletion {
    /// The object is gone; its last state.
    Gone(Value),
    /// The object is marked and waits.
    Marked(Value),
}

impl Cluster {
    /// Deletes an object: at once, or by marking it where finalizers or a grace period hold it.
    ///
    /// # Errors
    /// 404 if it is not there, 409 if a precondition fails, 403 for the namespaces that every cluster has, 422 for an
    /// unknown propagation policy.
    pub fn delete(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        options: &Value,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<Deletion, ApiError> {
        let gone = || ApiError::not_found(&resource.group_resource(), &key.name);
        // The pods of a job are kept, for a look at them, unless it is said otherwise.
        let policy = policy(options).or_else(|| {
            let silent = options["propagationPolicy"].is_null() && options["orphanDependents"].is_null();
            let job = resource.custom.is_none() && resource.kind == "Job";
            (silent && job).then_some(Policy::Orphan)
        });
        let definition = resource.kind == "CustomResourceDefinition" && resource.custom.is_none();
        // A real server names the kind here where it names the resource elsewhere.
        let by_kind = GroupResource::new(&resource.group, &resource.kind);
        if resource.kind == "Namespace" && IMMORTAL.contains(&key.name.as_str()) {
            let why = "this namespace may not be deleted";
            return Err(ApiError::forbidden(&resource.group_resource(), &key.name, why));
        }
        loop {
            let current = self.store.get(key).ok_or_else(gone)?;
            let wanted = &options["preconditions"];
            if wanted["uid"].as_str().is_some_and(|uid| Some(uid) != current.meta("uid")) {
                let why = format!(
                    "the UID in the precondition ({}) does not match the UID in record ({}). The object might have been deleted \
                     and then recreated",
                    wanted["uid"].as_str().unwrap_or_default(),
                    current.meta("uid").unwrap_or_default()
                );
                return Err(ApiError::conflict(&by_kind, &key.name, &why));
            }
            if let Some(version) =
                wanted["resourceVersion"].as_str().filter(|v| *v != current.revision.to_string())
            {
                let why = format!(
                    "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The \
                     object might have been modified",
                    current.revision
                );
                return Err(ApiError::conflict(&by_kind, &key.name, &why));
            }
            let mut value = current.value.clone();
            let grace = grace_seconds(resource, &value, options);
            let before: Vec<Value> = value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            let mut finalizers = before.clone();
            let cleanup = Value::from(CRD_FINALIZER);
            if definition && !finalizers.contains(&cleanup) {
                finalizers.push(cleanup);
            }
            if let Some(policy) = policy {
                // The collector's own finalizers follow the policy asked for last.
                let wanted = match policy {
                    Policy::Foreground => Some("foregroundDeletion"),
                    Policy::Orphan => Some("orphan"),
                    Policy::Background => None,
                };
                finalizers.retain(|f| {
                    !["foregroundDeletion", "orphan"].iter().any(|own| f == own)
                        || wanted.is_some_and(|w| f == w)
                });
                if let Some(wanted) = wanted
                    && !finalizers.iter().any(|f| f == wanted)
                {
                    finalizers.push(wanted.into());
                }
            }
            let namespace_held = resource.kind == "Namespace";
            let held = !finalizers.is_empty() || grace > 0 || namespace_held;
            let next = if held {
                let marked = !value["metadata"]["deletionTimestamp"].is_null();
                let without = namespace_held || definition;
                let none = if without { 0 } else { i64::MAX };
                let left = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(none);
                if marked && grace >= left && before == finalizers {
                    return Ok(Deletion::Marked(current.value.clone()));
                }
                let meta = object_meta(&mut value)?;
                if !marked || grace < left {
                    let at = now + jiff::SignedDuration::from_secs(grace);
                    meta.insert(
                        "deletionTimestamp".into(),
                        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
                    );
                    if !namespace_held && !definition {
                        meta.insert("deletionGracePeriodSeconds".into(), grace.into());
                    }
                }
                match finalizers.is_empty() {
                    true => meta.remove("finalizers"),
                    false => meta.insert("finalizers".into(), finalizers.into()),
                };
                if !marked && counts_generations(resource) && !definition {
                    bump_generation(&mut value);
                }
                if definition && !marked {
                    crd_ending(&mut value, now);
                }
                if namespace_held {
                    value["status"]["phase"] = "Terminating".into();
                }
                Some(value)
            } else {
                None
            };
            if dry_run {
                return Ok(match next {
                    Some(marked) => Deletion::Marked(marked),
                    None => Deletion::Gone(current.value.clone()),
                });
            }
            match self.store.commit(key, Expected::Revision(current.revision), next) {
                Ok(stored) if held => return Ok(Deletion::Marked(stored.value.clone())),
                Ok(stored) => {
                    if resource.kind == "CustomResourceDefinition" {
                        self.registry.undefine(&key.name);
                    }
                    let mut last = stored.value.clone();
                    if resource.storage == GroupResource::new("", "pods") {
                        let meta = object_meta(&mut last)?;
                        meta.insert("deletionGracePeriodSeconds".into(), 0.into());
                        if !meta.contains_key("deletionTimestamp") {
                            let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                            meta.insert("deletionTimestamp".into(), at.into());
                            bump_generation(&mut last);
                        }
                    }
                    return Ok(Deletion::Gone(last));
                }
                Err(CommitError::Conflict(_)) => {}
                Err(_) => return Err(gone()),
            }
        }
    }
}

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// The policy asked for, once the options are checked; `None` leaves it to what the object's finalizers say.
fn policy(options: &Value) -> Option<Policy> {
    match (options["propagationPolicy"].as_str(), options["orphanDependents"].as_bool()) {
        (Some("Foreground"), _) => Some(Policy::Foreground),
        (Some("Orphan"), _) | (None | Some(""), Some(true)) => Some(Policy::Orphan),
        (Some("Background"), _) | (None | Some(""), Some(false)) => Some(Policy::Background),
        _ => None,
    }
}

fn grace_seconds(resource: &Resource, object: &Value, options: &Value) -> i64 {
    if resource.storage != GroupResource::new("", "pods") {
        return 0;
    }
    // A pod that no kubelet has seen goes at once, and so does one that has ended.
    let bound = object["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || ended {
        return 0;
    }
    let asked = options["gracePeriodSeconds"].as_i64();
    // A negative period counts as the shortest one.
    asked
        .map(|seconds| if seconds < 0 { 1 } else { seconds })
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .clamp(0, MAX_GRACE_S)
}
