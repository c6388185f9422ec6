//! Objects, their versions and their recent history: the part that etcd plays for a real API server.
//!
//! One counter numbers every write of every resource, as etcd's revision does; an object's `resourceVersion` is the number of its
//! last write. Each resource keeps a window of its last changes: watches resume from it, and lists at an older version are
//! rebuilt from it. What is older answers "expired" (410).
//!
//! Cost: a write is O(log objects + watchers of that resource): the change is offered to each watcher's bounded queue. A watcher
//! whose queue is full is cut off, never waited for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

mod persist;

pub use persist::PersistError;
use persist::Persister;

/// A stored resource: API group (empty for core) and plural name. Versions of a resource share its storage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupResource {
    /// API group; empty for the core group.
    pub group: String,
    /// Plural name, such as `pods`.
    pub resource: String,
}

impl GroupResource {
    /// Names `resource` in `group` (empty for the core group).
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "{}", self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// Where one object is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its resource.
    pub resource: GroupResource,
    /// Its namespace; empty for a cluster-scoped resource.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace` (empty for cluster-scoped resources).
    pub fn new(resource: GroupResource, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { resource, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
    }
}

/// One version of one object, immutable.
#[derive(Debug)]
pub struct Stored {
    /// The object in its storage version, `metadata.resourceVersion` included.
    pub value: Value,
    /// The write that made this version.
    pub revision: u64,
    json: OnceLock<Bytes>,
}

impl Stored {
    fn new(value: Value, revision: u64) -> Self {
        Self { value, revision, json: OnceLock::new() }
    }

    /// The object as JSON, encoded once however many watchers read it.
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string())).clone()
    }

    /// `metadata.<field>` where it is a string.
    pub fn meta(&self, field: &str) -> Option<&str> {
        self.value.get("metadata")?.get(field)?.as_str()
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The object is new.
    Added,
    /// A new version of the object.
    Modified,
    /// The object is gone; the change carries its last state.
    Deleted,
}

/// One write.
#[derive(Debug)]
pub struct Change {
    /// Its number.
    pub revision: u64,
    /// What it did.
    pub kind: ChangeKind,
    /// Where.
    pub key: ObjectKey,
    /// The object after the change; for a deletion its last state, with the deletion's `resourceVersion`.
    pub object: Arc<Stored>,
    /// The object before the change.
    pub previous: Option<Arc<Stored>>,
}

/// What the caller believes to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing under this key.
    Absent,
    /// The version made by this revision.
    Revision(u64),
}

/// Why a write did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An object of that name exists.
    #[error("{0} already exists")]
    Exists(ObjectKey),
    /// Another writer was faster: read again and retry.
    #[error("{0} has been modified since it was read")]
    Conflict(ObjectKey),
    /// No such object.
    #[error("{0} not found")]
    NotFound(ObjectKey),
}

/// The history needed to answer is no longer kept: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    /// Version asked for.
    pub asked: u64,
    /// Oldest version still known.
    pub oldest: u64,
}

/// A running watch: what the caller asked to see first, then a queue.
#[derive(Debug)]
pub struct Watch {
    /// The state at `revision`, if the watch starts with one.
    pub initial: Option<Vec<Arc<Stored>>>,
    /// Revision at which the watch starts.
    pub revision: u64,
    /// Changes between the version asked for and now.
    pub backlog: Vec<Arc<Change>>,
    /// Changes from now on. It ends when the watcher lags more than its queue holds or the store closes.
    pub changes: mpsc::Receiver<Arc<Change>>,
}

#[derive(Debug, Default)]
struct Table {
    objects: BTreeMap<(String, String), Arc<Stored>>,
    history: VecDeque<Arc<Change>>,
    /// Changes up to and including this revision have left the history.
    floor: u64,
    watchers: Vec<mpsc::Sender<Arc<Change>>>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    /// Revision at which this process started; history before it is unknown.
    started_at: u64,
    tables: HashMap<GroupResource, Table>,
    by_uid: HashMap<String, ObjectKey>,
    /// Owner UID → objects that name it in `ownerReferences`.
    dependents: HashMap<String, BTreeSet<ObjectKey>>,
    closed: bool,
}

/// What the garbage collector should look at; each entry once, however often it changed.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Objects being deleted and objects with owners.
    pub objects: BTreeSet<ObjectKey>,
    /// UIDs of objects that are gone.
    pub gone: BTreeSet<String>,
}

/// The objects of one cluster. Share it in an [`Arc`].
pub struct Store {
    inner: RwLock<Inner>,
    dirty: Mutex<Dirty>,
    dirty_signal: Notify,
    persister: Option<Persister>,
    history_per_resource: usize,
    watch_queue: usize,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// An empty store, or the one kept in `data_dir`. `history_per_resource` changes of each resource are remembered;
    /// a watcher may lag by `watch_queue` changes.
    ///
    /// # Errors
    /// [`PersistError`] when the data directory cannot be read.
    pub fn open(
        data_dir: Option<&Path>,
        history_per_resource: usize,
        watch_queue: usize,
    ) -> Result<Self, PersistError> {
        let mut inner = Inner { revision: 1, ..Inner::default() };
        let persister = match data_dir {
            None => None,
            Some(dir) => {
                let (persister, snapshot) = Persister::open(dir)?;
                inner.revision = snapshot.revision.max(1);
                for (key, value) in snapshot.objects {
                    let revision = resource_version(&value).unwrap_or(inner.revision);
                    let stored = Arc::new(Stored::new(value, revision));
                    index(&mut inner, &key, None, Some(&stored));
                    let table = inner.tables.entry(key.resource).or_default();
                    table.objects.insert((key.namespace, key.name), stored);
                }
                Some(persister)
            }
        };
        inner.started_at = inner.revision;
        let floor = inner.started_at;
        for table in inner.tables.values_mut() {
            table.floor = floor;
        }
        let dirty = Dirty {
            objects: inner
                .tables
                .iter()
                .flat_map(|(resource, table)| {
                    table
                        .objects
                        .iter()
                        .filter(|(_, o)| needs_collector(&o.value))
                        .map(|((ns, name), _)| ObjectKey::new(resource.clone(), ns, name))
                })
                .collect(),
            gone: BTreeSet::new(),
        };
        Ok(Self {
            inner: RwLock::new(inner),
            dirty: Mutex::new(dirty),
            dirty_signal: Notify::new(),
            persister,
            history_per_resource: history_per_resource.max(1),
            watch_queue: watch_queue.max(1),
        })
    }

    /// Number of the last write.
    pub fn revision(&self) -> u64 {
        self.inner.read().revision
    }

    /// The current version of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Stored>> {
        let inner = self.inner.read();
        inner.tables.get(&key.resource)?.objects.get(&(key.namespace.clone(), key.name.clone())).cloned()
    }

    /// The object that has this UID.
    pub fn key_of_uid(&self, uid: &str) -> Option<ObjectKey> {
        self.inner.read().by_uid.get(uid).cloned()
    }

    /// Objects that name `owner_uid` as an owner.
    pub fn dependents(&self, owner_uid: &str) -> Vec<ObjectKey> {
        self.inner
            .read()
            .dependents
            .get(owner_uid)
            .map(|keys| keys.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// The objects of a resource, ordered by namespace and name, in one namespace or in all, with the revision they are from.
    pub fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> (Vec<Arc<Stored>>, u64) {
        let inner = self.inner.read();
        let objects = inner.tables.get(resource).map(|t| select(&t.objects, namespace)).unwrap_or_default();
        (objects, inner.revision)
    }

    /// The objects of a resource as they were at `revision`.
    ///
    /// # Errors
    /// [`Expired`] when the history does not reach back that far.
    pub fn list_at(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<Vec<Arc<Stored>>, Expired> {
        let inner = self.inner.read();
        let Some(table) = inner.tables.get(resource) else {
            return match revision < inner.started_at {
                true => Err(Expired { asked: revision, oldest: inner.started_at }),
                false => Ok(Vec::new()),
            };
        };
        if revision < table.floor {
            return Err(Expired { asked: revision, oldest: table.floor });
        }
        let later: Vec<_> = table.history.iter().rev().take_while(|c| c.revision > revision).collect();
        if later.is_empty() {
            return Ok(select(&table.objects, namespace));
        }
        let mut objects = table.objects.clone();
        for change in later {
            let at = (change.key.namespace.clone(), change.key.name.clone());
            match &change.previous {
                Some(previous) => objects.insert(at, previous.clone()),
                None => objects.remove(&at),
            };
        }
        Ok(select(&objects, namespace))
    }

    /// Namespaces in which any namespaced object exists, and those objects' keys, for one namespace.
    pub fn keys_in_namespace(&self, namespace: &str) -> Vec<ObjectKey> {
        let inner = self.inner.read();
        let mut keys = Vec::new();
        for (resource, table) in &inner.tables {
            for (ns, name) in table.objects.range((namespace.to_owned(), String::new())..).map(|(k, _)| k) {
                if ns != namespace {
                    break;
                }
                keys.push(ObjectKey::new(resource.clone(), ns, name));
            }
        }
        keys.sort();
        keys
    }

    /// Writes `value` under `key`, or deletes the object for `None`. Sets `metadata.resourceVersion`.
    /// Returns the version written; for a deletion the last state.
    ///
    /// # Errors
    /// [`CommitError`] when what is stored is not what `expected` says.
    pub fn commit(
        &self,
        key: &ObjectKey,
        expected: Expected,
        value: Option<Value>,
    ) -> Result<Arc<Stored>, CommitError> {
        let (stored, kind, previous) = {
            let mut guard = self.inner.write();
            let inner = &mut *guard;
            let revision = inner.revision + 1;
            let started_at = inner.started_at;
            let at = (key.namespace.clone(), key.name.clone());
            let table = inner
                .tables
                .entry(key.resource.clone())
                .or_insert_with(|| Table { floor: started_at, ..Table::default() });
            let previous = table.objects.get(&at).cloned();
            match (expected, &previous) {
                (Expected::Absent, Some(_)) => return Err(CommitError::Exists(key.clone())),
                (Expected::Absent, None) if value.is_none() => {
                    return Err(CommitError::NotFound(key.clone()));
                }
                (Expected::Revision(_), None) => return Err(CommitError::NotFound(key.clone())),
                (Expected::Revision(r), Some(p)) if p.revision != r => {
                    return Err(CommitError::Conflict(key.clone()));
                }
                _ => {}
            }
            let (kind, mut object) = match (value, &previous) {
                (Some(value), None) => (ChangeKind::Added, value),
                (Some(value), Some(_)) => (ChangeKind::Modified, value),
                (None, Some(previous)) => (ChangeKind::Deleted, previous.value.clone()),
                (None, None) => return Err(CommitError::NotFound(key.clone())),
            };
            set_resource_version(&mut object, revision);
            let stored = Arc::new(Stored::new(object, revision));
            match kind {
                ChangeKind::Deleted => table.objects.remove(&at),
                ChangeKind::Added | ChangeKind::Modified => table.objects.insert(at, stored.clone()),
            };
            let change = Arc::new(Change {
                revision,
                kind,
                key: key.clone(),
                object: stored.clone(),
                previous: previous.clone(),
            });
            table.history.push_back(change.clone());
            while table.history.len() > self.history_per_resource {
                if let Some(old) = table.history.pop_front() {
                    table.floor = old.revision;
                }
            }
            // Dropping the sender ends the stream after what is queued.
            table.watchers.retain(|watcher| watcher.try_send(change.clone()).is_ok());
            inner.revision = revision;
            let after = (kind != ChangeKind::Deleted).then_some(&stored);
            index(inner, key, previous.as_ref(), after);
            // Under the lock, so that writes reach the disk in order.
            if let Some(persister) = &self.persister {
                persister.record(key, after.cloned(), revision);
            }
            (stored, kind, previous)
        };
        self.mark_dirty(key, kind, &stored, previous.as_deref());
        Ok(stored)
    }

    /// Reads, changes and writes an object, again if another writer interferes. `change` returns whether to write.
    /// This is for components of the cluster itself: nothing is defaulted or validated, and `metadata.generation`, where
    /// there is one, is raised when `spec` changes.
    ///
    /// # Errors
    /// [`CommitError::NotFound`].
    pub fn update(
        &self,
        key: &ObjectKey,
        change: impl FnMut(&mut Value) -> bool,
    ) -> Result<Arc<Stored>, CommitError> {
        self.change(key, true, change)
    }

    /// Changes an object as [`update`](Self::update) does, and leaves its generation as it is.
    ///
    /// # Errors
    /// Those of [`update`](Self::update).
    pub fn update_uncounted(
        &self,
        key: &ObjectKey,
        change: impl FnMut(&mut Value) -> bool,
    ) -> Result<Arc<Stored>, CommitError> {
        self.change(key, false, change)
    }

    fn change(
        &self,
        key: &ObjectKey,
        counted: bool,
        mut change: impl FnMut(&mut Value) -> bool,
    ) -> Result<Arc<Stored>, CommitError> {
        loop {
            let current = self.get(key).ok_or_else(|| CommitError::NotFound(key.clone()))?;
            let mut value = current.value.clone();
            if !change(&mut value) || value == current.value {
                return Ok(current);
            }
            let counts = counted && value["metadata"]["generation"].is_i64();
            if counts && value.get("spec") != current.value.get("spec") {
                bump_generation(&mut value);
            }
            match self.commit(key, Expected::Revision(current.revision), Some(value)) {
                Err(CommitError::Conflict(_)) => {}
                done => return done,
            }
        }
    }

    /// Watches a resource: from `since` on, or, for `None`, starting with the present state.
    ///
    /// # Errors
    /// [`Expired`] when the history does not reach back to `since`.
    pub fn watch(&self, resource: &GroupResource, since: Option<u64>) -> Result<Watch, Expired> {
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        let started_at = inner.started_at;
        let table = inner
            .tables
            .entry(resource.clone())
            .or_insert_with(|| Table { floor: started_at, ..Table::default() });
        let (initial, backlog) = match since {
            None => (Some(table.objects.values().cloned().collect()), Vec::new()),
            Some(since) if since < table.floor => {
                return Err(Expired { asked: since, oldest: table.floor });
            }
            Some(since) => {
                let mut missed: Vec<_> =
                    table.history.iter().rev().take_while(|c| c.revision > since).cloned().collect();
                missed.reverse();
                (None, missed)
            }
        };
        let (sender, changes) = mpsc::channel(self.watch_queue);
        if !inner.closed {
            table.watchers.retain(|w| !w.is_closed());
            table.watchers.push(sender);
        }
        Ok(Watch { initial, revision: inner.revision, backlog, changes })
    }

    /// Whether a watch from `since` could start now.
    pub fn oldest(&self, resource: &GroupResource) -> u64 {
        let inner = self.inner.read();
        inner.tables.get(resource).map_or(inner.started_at, |t| t.floor)
    }

    /// Ends every watch and writes everything to disk.
    ///
    /// # Errors
    /// [`PersistError`] when the last write to disk failed.
    pub fn close(&self) -> Result<(), PersistError> {
        {
            let mut inner = self.inner.write();
            inner.closed = true;
            for table in inner.tables.values_mut() {
                table.watchers.clear();
            }
        }
        self.persister.as_ref().map_or(Ok(()), Persister::close)
    }

    /// Waits until the collector has something to do, and takes it.
    pub(crate) async fn take_dirty(&self) -> Dirty {
        loop {
            let signal = self.dirty_signal.notified();
            {
                let mut dirty = self.dirty.lock();
                if !dirty.objects.is_empty() || !dirty.gone.is_empty() {
                    return std::mem::take(&mut *dirty);
                }
            }
            signal.await;
        }
    }

    fn mark_dirty(&self, key: &ObjectKey, kind: ChangeKind, stored: &Stored, previous: Option<&Stored>) {
        let mut marked = false;
        let mut dirty = self.dirty.lock();
        if kind == ChangeKind::Deleted {
            if let Some(uid) = stored.meta("uid") {
                dirty.gone.insert(uid.to_owned());
                marked = true;
            }
            // A namespace or an owner in foreground deletion may have been waiting for this one.
            for owner in owners(&stored.value) {
                if let Some(owner) = self.key_of_uid(owner) {
                    dirty.objects.insert(owner);
                }
            }
            if !key.namespace.is_empty() {
                let namespace = ObjectKey::new(GroupResource::new("", "namespaces"), "", &key.namespace);
                dirty.objects.insert(namespace);
            }
        } else if needs_collector(&stored.value) || previous.is_some_and(|p| needs_collector(&p.value)) {
            dirty.objects.insert(key.clone());
            marked = true;
        }
        drop(dirty);
        if marked {
            self.dirty_signal.notify_one();
        }
    }
}

fn needs_collector(object: &Value) -> bool {
    let meta = &object["metadata"];
    !meta["deletionTimestamp"].is_null() || meta["ownerReferences"].as_array().is_some_and(|o| !o.is_empty())
}

fn owners(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten().filter_map(|o| o["uid"].as_str())
}

fn index(inner: &mut Inner, key: &ObjectKey, before: Option<&Arc<Stored>>, after: Option<&Arc<Stored>>) {
    if let Some(before) = before {
        for owner in owners(&before.value) {
            if let Some(set) = inner.dependents.get_mut(owner) {
                set.remove(key);
                if set.is_empty() {
                    inner.dependents.remove(owner);
                }
            }
        }
        if after.is_none()
            && let Some(uid) = before.meta("uid")
        {
            inner.by_uid.remove(uid);
        }
    }
    if let Some(after) = after {
        for owner in owners(&after.value) {
            inner.dependents.entry(owner.to_owned()).or_default().insert(key.clone());
        }
        if let Some(uid) = after.meta("uid") {
            inner.by_uid.insert(uid.to_owned(), key.clone());
        }
    }
}

fn select(objects: &BTreeMap<(String, String), Arc<Stored>>, namespace: Option<&str>) -> Vec<Arc<Stored>> {
    match namespace {
        None => objects.values().cloned().collect(),
        Some(ns) => objects
            .range((ns.to_owned(), String::new())..)
            .take_while(|((n, _), _)| n == ns)
            .map(|(_, o)| o.clone())
            .collect(),
    }
}

/// Raises `metadata.generation` by one.
pub(crate) fn bump_generation(object: &mut Value) {
    let next = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    object["metadata"]["generation"] = next.into();
}

/// `metadata.resourceVersion` as a number.
pub(crate) fn resource_version(object: &Value) -> Option<u64> {
    object.get("metadata")?.get("resourceVersion")?.as_str()?.parse().ok()
}

fn set_resource_version(object: &mut Value, revision: u64) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("resourceVersion".into(), revision.to_string().into());
    }
}

#[cfg(test)]
mod tests;
