//! Ends what is to end: objects whose finalizers are gone, objects whose owners are gone, namespaces, definitions.
//!
//! Driven by the store's list of objects to look at, so an idle cluster costs nothing.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::resources::{CRD_FINALIZER, Registry};
use crate::store::{CommitError, Expected, GroupResource, ObjectKey, Store};

/// Runs until `stop`.
pub async fn run(store: Arc<Store>, registry: Arc<Registry>, stop: CancellationToken) {
    // Definitions that wait for their last object: looked at again whenever anything ends.
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
            if key.resource.resource == "customresourcedefinitions"
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
        if orphaned(store, key, value) {
            mark_deleted(store, key, value);
        }
        return;
    }
    let finalizers: Vec<&str> =
        value["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if finalizers.contains(&"orphan") {
        let uid = current.meta("uid").unwrap_or_default();
        for dependent in store.dependents(uid) {
            let _ = store.update(&dependent, |object| drop_owner(object, uid));
        }
        remove_finalizer(store, key, "orphan");
        return;
    }
    if finalizers.contains(&"foregroundDeletion") {
        let dependents = store.dependents(current.meta("uid").unwrap_or_default());
        if dependents.is_empty() {
            remove_finalizer(store, key, "foregroundDeletion");
        } else {
            for dependent in dependents {
                if let Some(object) = store.get(&dependent)
                    && object.meta("deletionTimestamp").is_none()
                {
                    mark_deleted(store, &dependent, &object.value);
                }
            }
        }
        return;
    }
    if finalizers.contains(&CRD_FINALIZER) {
        end_definition(store, registry, key, value);
        return;
    }
    if !finalizers.is_empty() {
        return;
    }
    if key.resource == GroupResource::new("", "namespaces") {
        end_namespace(store, key);
        return;
    }
    // A pod with a grace period is its kubelet's to end.
    let grace = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if key.resource == GroupResource::new("", "pods") && grace > 0 {
        return;
    }
    remove(store, registry, key, current.revision);
}

fn remove(store: &Store, registry: &Registry, key: &ObjectKey, revision: u64) {
    match store.commit(key, Expected::Revision(revision), None) {
        Ok(_) if key.resource.resource == "customresourcedefinitions" => registry.undefine(&key.name),
        // Changed meanwhile: that change has put it on the list again.
        Ok(_) | Err(CommitError::Conflict(_) | CommitError::NotFound(_) | CommitError::Exists(_)) => {}
    }
}

/// Whether an object has owners and none of them is left.
fn orphaned(store: &Store, key: &ObjectKey, value: &Value) -> bool {
    let owners = value["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    !owners.is_empty()
        && owners.iter().filter_map(|o| o["uid"].as_str()).all(|uid| {
            store.key_of_uid(uid).is_none_or(|owner| !owner.namespace.is_empty() && owner.namespace != key.namespace)
        })
}

/// Deletes in the background: removes, or marks where finalizers or a kubelet hold it.
fn mark_deleted(store: &Store, key: &ObjectKey, value: &Value) {
    let held = value["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let pod = key.resource == GroupResource::new("", "pods")
        && value["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty())
        && !matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !held && !pod {
        if let Some(current) = store.get(key) {
            let _ = store.commit(key, Expected::Revision(current.revision), None);
        }
        return;
    }
    let grace = if pod { value["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30) } else { 0 };
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let _ = store.update(key, |object| {
        if !object["metadata"]["deletionTimestamp"].is_null() {
            return false;
        }
        object["metadata"]["deletionTimestamp"] = at.clone().into();
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
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

fn drop_owner(object: &mut Value, uid: &str) -> bool {
    let Some(owners) = object["metadata"]["ownerReferences"].as_array_mut() else { return false };
    let before = owners.len();
    owners.retain(|o| o["uid"] != uid);
    owners.len() != before
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
            mark_deleted(store, &at, &object.value);
        }
    }
    let (left, _) = store.list(&resource, None);
    if left.is_empty() {
        registry.undefine(&key.name);
        remove_finalizer(store, key, CRD_FINALIZER);
    }
}

/// A namespace ends when nothing is left in it.
fn end_namespace(store: &Store, key: &ObjectKey) {
    for inside in store.keys_in_namespace(&key.name) {
        if let Some(object) = store.get(&inside)
            && object.meta("deletionTimestamp").is_none()
        {
            mark_deleted(store, &inside, &object.value);
        }
    }
    if store.keys_in_namespace(&key.name).is_empty()
        && let Some(current) = store.get(key)
    {
        let _ = store.commit(key, Expected::Revision(current.revision), None);
    }
}
