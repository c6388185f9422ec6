//! Server-side apply and field ownership, after `sigs.k8s.io/structured-merge-diff`.

pub(crate) mod builtin;
mod fieldset;
mod last_applied;
mod managers;
#[cfg(test)]
mod tests;
mod typed;
pub(crate) mod typing;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::builtin::zero;
use fieldset::Set;
use managers::{Entry, ManagerId, Managers, Operation};

pub use last_applied::apply_with_last;
pub use typing::Typing;

/// One apply request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The `fieldManager` query parameter.
    pub manager: String,
    /// Take over fields that other managers own instead of failing.
    pub force: bool,
    /// Subresource that is written (`status`, `scale`), if any.
    pub subresource: Option<String>,
    /// Time recorded in `managedFields`.
    pub now: Timestamp,
    /// List and map kinds of the object's fields.
    pub typing: Typing,
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldConflict {
    /// The other manager as the API server prints it, such as `"kubectl" using v1`.
    pub manager: String,
    /// Path of the field, such as `.spec.replicas`.
    pub field: String,
}

/// Every conflict of a failed apply; HTTP 409 with one `FieldManagerConflict` cause for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The conflicts, by manager and then by path.
    pub conflicts: Vec<FieldConflict>,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [only] = self.conflicts.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field);
        }
        write!(f, "Apply failed with {} conflicts: ", self.conflicts.len())?;
        let mut last = None;
        for conflict in &self.conflicts {
            if last != Some(&conflict.manager) {
                if last.is_some() {
                    writeln!(f)?;
                }
                write!(f, "conflicts with {}:", conflict.manager)?;
                last = Some(&conflict.manager);
            }
            write!(f, "\n- {}", conflict.field)?;
        }
        Ok(())
    }
}

impl std::error::Error for Conflict {}

/// Why an apply failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own fields with other values (HTTP 409).
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The configuration cannot be applied at all (HTTP 400).
    #[error("{0}")]
    Invalid(String),
    /// The configuration does not fit its type (HTTP 500 without a reason, on a real server).
    #[error("{0}")]
    Untypable(String),
}

/// Applies `config` on behalf of `req.manager` and returns the new object with its `managedFields`.
/// Returns an object equal to `live` if the apply changes nothing: the caller then writes nothing.
///
/// # Errors
/// [`ApplyError::Conflict`] unless `req.force`; [`ApplyError::Invalid`] for a configuration with duplicate or missing
/// list keys, with undeclared fields, or with `managedFields`.
pub fn apply(live: Option<&Value>, config: &Value, req: &Request) -> Result<Value, ApplyError> {
    let ty = &*req.typing.root;
    if config.pointer("/metadata/managedFields").is_some_and(Value::is_array) {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".into()));
    }
    let config = reset(config, req);
    let mut errors = Vec::new();
    typed::check(&config, ty, "", &mut errors);
    if !errors.is_empty() {
        let said = match errors.as_slice() {
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        let what = describe(&config);
        return Err(ApplyError::Untypable(format!("failed to create typed patch object ({what}): {said}")));
    }
    let (live_object, mut owners) = match live {
        Some(live) => (without_managed_fields(live), managers::decode(live)),
        None => (identity(&config), Managers::new()),
    };
    let before = owners.clone();
    let api_version = text(&config, "apiVersion");
    if live.is_some() && owners.is_empty() {
        // Fields from before anybody kept track have an owner, so that an apply does not silently take them.
        let unset = unset(&live_object, &req.typing);
        let comparison = typed::compare(&unset, &live_object, ty);
        let mut set = comparison.added.union(&comparison.modified).difference(managers::unowned());
        if req.typing.status_subresource {
            set.drop_below("f:status");
        }
        let id = ManagerId::new("before-first-apply", Operation::Update, &api_version, None);
        let time = Some(managers::print_time(req.now));
        owners.insert(id, Entry { set, api_version: api_version.clone(), time });
    }

    let me = ManagerId::new(&req.manager, Operation::Apply, &api_version, req.subresource.as_deref());
    let last = owners.get(&me).cloned();
    // What nobody owns counts as this manager's until it is known what goes: a name must not go with all else in `metadata`.
    let mine = Entry {
        set: typed::to_set(&config, ty),
        api_version,
        time: last.as_ref().and_then(|e| e.time.clone()),
    };
    owners.insert(me.clone(), mine);
    let merged = typed::merge(Some(&live_object), &config, ty);
    let object = match &last {
        Some(last) if !last.set.is_empty() => prune(&merged, &owners, &last.set, &req.typing),
        _ => merged,
    };
    if let Some(entry) = owners.get_mut(&me) {
        entry.set = entry.set.difference(managers::unowned());
    }

    let comparison = typed::compare(&live_object, &object, ty);
    settle(&comparison, &mut owners, &me, req.force)?;
    let unchanged = comparison.is_same();
    if unchanged && owners == before {
        return Ok(live.cloned().unwrap_or(live_object));
    }
    if let Some(entry) = owners.get_mut(&me).filter(|_| !unchanged) {
        entry.time = Some(managers::print_time(req.now));
    }
    // An unchanged object keeps its own form: list order, for one, is no change.
    let mut out = if unchanged { live_object } else { object };
    managers::encode(&mut out, &owners);
    Ok(out)
}

/// Records in `managedFields` what an update (create, replace or patch) by `manager` changed.
/// Returns `new` with `metadata.managedFields` set. An update that changes nothing leaves the entries as they were.
///
/// `new` may carry `managedFields` of its own: entries replace the recorded ones (as client-side migration does), and
/// `[{}]` forgets them all.
pub fn track_update(
    old: Option<&Value>,
    new: &Value,
    manager: &str,
    subresource: Option<&str>,
    now: Timestamp,
    typing: &Typing,
) -> Value {
    let given = new.pointer("/metadata/managedFields").and_then(Value::as_array);
    let forget = given.is_some_and(|entries| entries.is_empty() || *entries == [json!({})]);
    let mut owners = match (managers::decode(new), old) {
        _ if forget => Managers::new(),
        (theirs, _) if !theirs.is_empty() => theirs,
        (_, Some(old)) => managers::decode(old),
        (theirs, None) => theirs,
    };
    let mut object = without_managed_fields(new);
    // Nobody keeps track of an object again once its managers were forgotten, until it is applied.
    if forget || (old.is_some() && owners.is_empty()) {
        return object;
    }
    let old = old.map_or_else(|| unset(&object, typing), without_managed_fields);
    let comparison = typed::compare(&old, &object, &typing.root);
    let api_version = text(&object, "apiVersion");
    let me = ManagerId::new(manager, Operation::Update, &api_version, subresource);
    // Everybody, this manager included, loses what changed; it then gains what it wrote.
    let nobody = ManagerId::new("", Operation::Update, "", None);
    let _ = settle(&comparison, &mut owners, &nobody, true);
    let mut written = comparison.added.union(&comparison.modified).difference(managers::unowned());
    if subresource.is_none() && typing.status_subresource {
        written.drop_below("f:status");
    }
    if !written.is_empty() {
        let set = owners.get(&me).map_or_else(|| written.clone(), |entry| entry.set.union(&written));
        // Who scales is on record without a time.
        let time = (subresource != Some("scale")).then(|| managers::print_time(now));
        owners.insert(me, Entry { set, api_version, time });
    }
    managers::encode(&mut object, &owners);
    object
}

/// Takes changed and removed fields from every manager but `me`; fails on changed ones unless `force`.
fn settle(
    comparison: &typed::Comparison,
    owners: &mut Managers,
    me: &ManagerId,
    force: bool,
) -> Result<(), Conflict> {
    let changed = comparison.modified.union(&comparison.added);
    let mut conflicts: BTreeMap<ManagerId, Set> = BTreeMap::new();
    for (id, entry) in owners.iter().filter(|(id, _)| *id != me) {
        let lost = entry.set.intersection(&changed);
        if !lost.is_empty() {
            conflicts.insert(id.clone(), lost);
        }
    }
    if !force && !conflicts.is_empty() {
        let each = |(id, set): (&ManagerId, &Set)| {
            let manager = id.print();
            set.paths().into_iter().map(move |field| FieldConflict { manager: manager.clone(), field })
        };
        return Err(Conflict {
            conflicts: conflicts.iter().flat_map(|(id, set)| each((id, set)).collect::<Vec<_>>()).collect(),
        });
    }
    for (id, entry) in owners.iter_mut().filter(|(id, _)| *id != me) {
        if let Some(lost) = conflicts.get(id) {
            entry.set = entry.set.difference(lost);
        }
        entry.set = entry.set.difference(&comparison.removed);
    }
    owners.retain(|_, entry| !entry.set.is_empty());
    Ok(())
}

/// Removes what the manager applied last time and neither it nor anybody else owns any more.
fn prune(merged: &Value, owners: &Managers, last: &Set, typing: &Typing) -> Value {
    let ty = &*typing.root;
    let remove = |set: &Set| typed::remove(merged, set, ty).unwrap_or_else(|| Value::Object(Map::new()));
    let named = |set: &Set| typed::with_named_fields(set, ty);
    let merged_set = named(&typed::to_set(merged, ty));
    let last = named(last);
    let pruned = remove(&last);
    // Owned fields come back, this manager's new ones among them.
    let mut keep = named(&typed::to_set(&pruned, ty));
    for entry in owners.values() {
        keep = keep.union(&named(&entry.set));
    }
    let pruned = remove(&merged_set.difference(&keep));
    // So do fields that went only because what held them went, unless they were applied last time.
    let kept = named(&typed::to_set(&pruned, ty));
    remove(&merged_set.difference(&kept).intersection(&last))
}

/// `config` without what this endpoint does not write, and without `null`s, which mean absent.
fn reset(config: &Value, req: &Request) -> Value {
    let mut out = config.clone();
    drop_nulls(&mut out);
    let Some(object) = out.as_object_mut() else { return out };
    match req.subresource.as_deref() {
        Some("status") => {
            object.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"))
        }
        None if req.typing.status_subresource => {
            object.remove("status");
        }
        _ => {}
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink"] {
            metadata.remove(name);
        }
        if req.subresource.as_deref() == Some("status") {
            metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "uid"));
        }
    }
    out
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, child| !child.is_null());
        map.values_mut().for_each(drop_nulls);
    }
    if let Value::Array(items) = value {
        items.iter_mut().for_each(drop_nulls);
    }
}

/// What an object is before its first write.
fn identity(object: &Value) -> Value {
    let mut out = Map::new();
    for key in ["apiVersion", "kind"] {
        if let Some(value) = object.get(key) {
            out.insert(key.into(), value.clone());
        }
    }
    Value::Object(out)
}

/// An object of the same kind of which nothing is set.
fn unset(object: &Value, typing: &Typing) -> Value {
    let mut out = identity(object);
    if let (true, Value::Object(fields), Some(map)) =
        (typing.built_in, zero::object(&text(object, "kind")), out.as_object_mut())
    {
        map.extend(fields);
    }
    out
}

fn without_managed_fields(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    out
}

fn text(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn describe(object: &Value) -> String {
    let meta = |key: &str| {
        object.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let version = text(object, "apiVersion");
    let slash = if version.contains('/') { "" } else { "/" };
    format!("{}/{}; {slash}{version}, Kind={}", meta("namespace"), meta("name"), text(object, "kind"))
}
