//! Ends what is to end: objects whose finalizers are gone, objects whose owners are gone, namespaces, definitions.
//!
//! Driven by the store's list of objects to look at, so an idle cluster costs nothing.

mod namespaces;

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::apply;
use crate::builtin::defaults::{ATTRIBUTES_FINALIZER, CLAIM_FINALIZER, VOLUME_FINALIZER};
use crate::resources::{CRD_FINALIZER, Registry};
use crate::store::{CommitError, Expected, GroupResource, ObjectKey, Store, Stored};

/// Who does all this in a real cluster.
const CONTROLLER: &str = "kube-controller-manager";
/// Resources whose objects wait for others, and are looked at again whenever anything ends.
const WAITING: &[&str] = &["customresourcedefinitions", "persistentvolumeclaims", "volumeattributesclasses"];

/// Runs until `stop`.
pub async fn run(store: Arc<Store>, registry: Arc<Registry>, stop: CancellationToken) {
    let mut waiting = std::collections::BTreeSet::new();
    loop {
        let dirty = tokio::select! {
            dirty = store.take_dirty() => dirty,
            () = stop.cancelled() => return,
        };
        let mut again = std::mem::take(&mut waiting);
        again.extend(dirty.objects);
        for uid in dirty.gone {
            for key in store.dependents(&uid) {
                collect(&store, &registry, &key);
            }
        }
        for key in again {
            collect(&store, &registry, &key);
            if WAITING.contains(&key.resource.resource.as_str())
                && store.get(&key).is_some_and(|c| c.meta("deletionTimestamp").is_some())
            {
                waiting.insert(key);
            }
        }
    }
}

/// Looks at one object, until it needs nothing more or another writer's change has put it on the list again.
fn collect(store: &Store, registry: &Registry, key: &ObjectKey) {
    let Some(current) = store.get(key) else { return };
    let value = &current.value;
    let deleting = !value["metadata"]["deletionTimestamp"].is_null();
    if !deleting {
        follow_owners(store, registry, key, &current);
        return;
    }
    if key.resource == GroupResource::new("", "namespaces") {
        end_namespace(store, registry, key, value);
        return;
    }
    let finalizers: Vec<&str> =
        value["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if finalizers.contains(&"orphan") {
        let uid = current.meta("uid").unwrap_or_default();
        for dependent in store.dependents(uid) {
            drop_owners(store, registry, &dependent, &[uid]);
        }
        remove_finalizer(store, key, "orphan");
        return;
    }
    if finalizers.contains(&"foregroundDeletion") {
        // Dependents that block go first; the others follow once the owner is gone.
        let uid = current.meta("uid").unwrap_or_default();
        let mut blocked = false;
        for dependent in store.dependents(uid) {
            if let Some(object) = store.get(&dependent)
                && object.meta("deletionTimestamp").is_none()
            {
                follow_owners(store, registry, &dependent, &object);
            }
            blocked |= store.get(&dependent).is_some_and(|d| blocks(&d.value, uid));
        }
        if !blocked {
            remove_finalizer(store, key, "foregroundDeletion");
        }
        return;
    }
    if finalizers.contains(&CRD_FINALIZER) {
        end_definition(store, registry, key, value);
        return;
    }
    let unused = match finalizers.as_slice() {
        [CLAIM_FINALIZER] if !in_use(store, key) => Some(CLAIM_FINALIZER),
        [ATTRIBUTES_FINALIZER] if !has_volumes(store, &key.name) => Some(ATTRIBUTES_FINALIZER),
        [VOLUME_FINALIZER] if value["status"]["phase"] != "Bound" => Some(VOLUME_FINALIZER),
        _ => None,
    };
    if let Some(finalizer) = unused {
        return remove_finalizer(store, key, finalizer);
    }
    if !finalizers.is_empty() {
        return;
    }
    // A pod with a grace period is its kubelet's to end.
    let grace = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if key.resource == GroupResource::new("", "pods") && grace > 0 {
        return;
    }
    remove(store, registry, key, current.revision);
}

/// Whether volumes or claims are of a class of attributes.
fn has_volumes(store: &Store, class: &str) -> bool {
    ["persistentvolumes", "persistentvolumeclaims"].iter().any(|resource| {
        let (all, _) = store.list(&GroupResource::new("", *resource), None);
        all.iter().any(|object| object.value["spec"]["volumeAttributesClassName"] == class)
    })
}

/// Whether a pod that has not ended uses a claim.
fn in_use(store: &Store, claim: &ObjectKey) -> bool {
    let (pods, _) = store.list(&GroupResource::new("", "pods"), Some(&claim.namespace));
    pods.iter().any(|pod| {
        let ended = matches!(pod.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let mut volumes = pod.value["spec"]["volumes"].as_array().into_iter().flatten();
        !ended && volumes.any(|v| v["persistentVolumeClaim"]["claimName"] == claim.name.as_str())
    })
}

/// Deletes an object that is left without owners, or drops those that are gone.
fn follow_owners(store: &Store, registry: &Registry, key: &ObjectKey, current: &Stored) {
    match owners_of(store, key, &current.value) {
        Owners::Keep => {}
        Owners::Drop(uids) => {
            drop_owners(store, registry, key, &uids.iter().map(String::as_str).collect::<Vec<_>>());
        }
        Owners::Follow { foreground } => {
            let holds = foreground && !store.dependents(current.meta("uid").unwrap_or_default()).is_empty();
            mark_deleted(store, registry, key, &current.value, holds);
        }
    }
}

fn remove(store: &Store, registry: &Registry, key: &ObjectKey, revision: u64) {
    match store.commit(key, Expected::Revision(revision), None) {
        Ok(_) if key.resource.resource == "customresourcedefinitions" => registry.undefine(&key.name),
        // Changed meanwhile: that change has put it on the list again.
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_) | CommitError::Exists(_)) => {}
    }
}

/// What an object's owners mean for it.
enum Owners {
    /// Nothing.
    Keep,
    /// Some are gone or going, others stay: it belongs to those only from now on.
    Drop(Vec<String>),
    /// None stays, so it goes; `foreground` if an owner waits for it.
    Follow { foreground: bool },
}

fn owners_of(store: &Store, key: &ObjectKey, value: &Value) -> Owners {
    let (mut solid, mut gone, mut waiting) = (0, Vec::new(), Vec::new());
    for reference in value["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        let uid = reference["uid"].as_str().unwrap_or_default();
        let owner = store
            .key_of_uid(uid)
            // An owner in another namespace is no owner.
            .filter(|owner| owner.namespace.is_empty() || owner.namespace == key.namespace)
            .and_then(|owner| store.get(&owner));
        match owner {
            None => gone.push(uid.to_owned()),
            Some(owner) if in_foreground(&owner.value) && reference["blockOwnerDeletion"] == true => {
                waiting.push(uid.to_owned());
            }
            Some(_) => solid += 1,
        }
    }
    match (solid, gone.is_empty() && waiting.is_empty()) {
        (_, true) => Owners::Keep,
        (0, false) => Owners::Follow { foreground: !waiting.is_empty() },
        (_, false) => {
            gone.extend(waiting);
            Owners::Drop(gone)
        }
    }
}

fn in_foreground(object: &Value) -> bool {
    let meta = &object["metadata"];
    !meta["deletionTimestamp"].is_null()
        && meta["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == "foregroundDeletion"))
}

/// Whether an object keeps its owner `uid` from ending in the foreground.
fn blocks(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|o| o["uid"] == uid && o["blockOwnerDeletion"] == true)
}

/// Deletes in the background, or, with `foreground`, after the object's own dependents: removes, or marks where finalizers
/// or a kubelet hold it.
fn mark_deleted(store: &Store, registry: &Registry, key: &ObjectKey, value: &Value, foreground: bool) {
    let held = value["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let pod = key.resource == GroupResource::new("", "pods")
        && value["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty())
        && !matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !held && !pod && !foreground {
        if let Some(current) = store.get(key) {
            remove(store, registry, key, current.revision);
        }
        return;
    }
    let grace = if pod {
        value["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30).clamp(0, 1_000_000_000)
    } else {
        0
    };
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let _ = store.update(key, |object| {
        if !object["metadata"]["deletionTimestamp"].is_null() {
            return false;
        }
        object["metadata"]["deletionTimestamp"] = at.clone().into();
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if foreground {
            let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            let own = Value::from("foregroundDeletion");
            object["metadata"]["finalizers"] = finalizers.into_iter().chain([own]).collect();
        }
        true
    });
}

fn remove_finalizer(store: &Store, key: &ObjectKey, name: &str) {
    let _ = store.update(key, |object| {
        let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() else { return false };
        finalizers.retain(|f| f != name);
        true
    });
}

/// Takes owners off an object, and off the record of who set them.
fn drop_owners(store: &Store, registry: &Registry, key: &ObjectKey, uids: &[&str]) {
    let _ = store.update(key, |object| {
        let before = object.clone();
        let dropped = uids.iter().filter(|uid| drop_owner(object, uid)).count();
        tracked(registry, key, &before, object, None);
        dropped > 0
    });
}

/// Puts on record what is changed here.
fn tracked(registry: &Registry, key: &ObjectKey, before: &Value, object: &mut Value, part: Option<&str>) {
    if let Some(resource) = registry.served().of_storage(&key.resource) {
        let now = jiff::Timestamp::now();
        *object = apply::track_update(Some(before), object, CONTROLLER, part, now, &resource.typing);
    }
}

fn drop_owner(object: &mut Value, uid: &str) -> bool {
    let Some(owners) = object["metadata"]["ownerReferences"].as_array_mut() else { return false };
    let before = owners.len();
    owners.retain(|o| o["uid"] != uid);
    let (left, changed) = (owners.len(), owners.len() != before);
    if let (0, Some(meta)) = (left, object["metadata"].as_object_mut()) {
        meta.remove("ownerReferences");
    }
    changed
}

/// A definition ends when no object of its kind is left.
fn end_definition(store: &Store, registry: &Registry, key: &ObjectKey, value: &Value) {
    let resource = GroupResource::new(
        value["spec"]["group"].as_str().unwrap_or_default(),
        value["spec"]["names"]["plural"].as_str().unwrap_or_default(),
    );
    let (left, _) = store.list(&resource, None);
    for object in &left {
        let at = ObjectKey::new(
            resource.clone(),
            object.meta("namespace").unwrap_or_default(),
            object.meta("name").unwrap_or_default(),
        );
        if object.meta("deletionTimestamp").is_none() {
            mark_deleted(store, registry, &at, &object.value, false);
        }
    }
    let (left, _) = store.list(&resource, None);
    if left.is_empty() {
        registry.undefine(&key.name);
        remove_finalizer(store, key, CRD_FINALIZER);
    }
}

/// A namespace ends when nothing is left in it and nobody's finalizer holds it.
fn end_namespace(store: &Store, registry: &Registry, key: &ObjectKey, value: &Value) {
    for inside in store.keys_in_namespace(&key.name) {
        if let Some(object) = store.get(&inside)
            && object.meta("deletionTimestamp").is_none()
        {
            mark_deleted(store, registry, &inside, &object.value, false);
        }
    }
    let held = |list: &Value| {
        list.as_array().is_some_and(|all| {
            all.iter().any(|f| !["kubernetes", "orphan", "foregroundDeletion"].iter().any(|own| f == own))
        })
    };
    let left: Vec<(String, Vec<String>)> = store
        .keys_in_namespace(&key.name)
        .iter()
        .filter_map(|inside| Some((inside, store.get(inside)?)))
        .map(|(inside, object)| {
            let finalizers = object.value["metadata"]["finalizers"].as_array().into_iter().flatten();
            let finalizers = finalizers.filter_map(Value::as_str).map(str::to_owned).collect();
            (format!("{}.{}", inside.resource.resource, inside.resource.group), finalizers)
        })
        .collect();
    if !left.is_empty() {
        let _ = store.update(key, |namespace| {
            let before = namespace.clone();
            let told = namespaces::conditions(&before["status"]["conditions"], &left, jiff::Timestamp::now());
            namespace["status"]["conditions"] = told.into();
            if namespace["status"] == before["status"] {
                return false;
            }
            tracked(registry, key, &before, namespace, Some("status"));
            true
        });
    }
    if left.is_empty()
        && !held(&value["metadata"]["finalizers"])
        && !held(&value["spec"]["finalizers"])
        && let Some(current) = store.get(key)
    {
        let _ = store.commit(key, Expected::Revision(current.revision), None);
    }
}
