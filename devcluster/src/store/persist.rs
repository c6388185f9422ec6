//! Keeps a store's objects in an embedded database.
//!
//! Writes are coalesced by key and committed in batches by one thread, so that a burst of writes to one object costs one disk
//! write; a crash loses at most the last batch, a shutdown loses nothing. After a crash the revision counter jumps ahead, so
//! that no number is given twice and clients that saw lost writes list again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use super::{GroupResource, ObjectKey, Stored};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// How long writes gather before they are committed together.
const BATCH_DELAY: Duration = Duration::from_millis(20);
/// How far the revision jumps after a crash: more writes than a batch can hold.
const CRASH_SKIP: u64 = 1_000_000;

/// Why state could not be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("devcluster data in {path}: {message}")]
pub struct PersistError {
    /// The database file or directory.
    pub path: PathBuf,
    /// What went wrong.
    pub message: String,
}

/// What was on disk.
pub(super) struct Snapshot {
    pub revision: u64,
    pub objects: Vec<(ObjectKey, Value)>,
}

#[derive(Default)]
struct Pending {
    objects: BTreeMap<String, Option<Arc<Stored>>>,
    revision: u64,
    closing: bool,
    failed: Option<PersistError>,
}

struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
}

pub(super) struct Persister {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Persister {
    pub fn open(dir: &Path) -> Result<(Self, Snapshot), PersistError> {
        let path = dir.join("devcluster.redb");
        let fail = |e: &dyn std::fmt::Display| PersistError { path: path.clone(), message: e.to_string() };
        std::fs::create_dir_all(dir).map_err(|e| fail(&e))?;
        let db = Database::create(&path).map_err(|e| fail(&e))?;
        let snapshot = load(&db).map_err(|e| fail(&e))?;
        let shared = Arc::new(Shared { pending: Mutex::new(Pending::default()), wake: Condvar::new() });
        let worker = shared.clone();
        let at = path.clone();
        let thread = std::thread::Builder::new()
            .name("devcluster-store".into())
            .spawn(move || run(&db, &worker, &at))
            .map_err(|e| fail(&e))?;
        Ok((Self { shared, thread: Mutex::new(Some(thread)) }, snapshot))
    }

    pub fn record(&self, key: &ObjectKey, object: Option<Arc<Stored>>, revision: u64) {
        let mut pending = self.shared.pending.lock();
        pending.objects.insert(encode_key(key), object);
        pending.revision = revision;
        self.shared.wake.notify_one();
    }

    pub fn close(&self) -> Result<(), PersistError> {
        self.shared.pending.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.shared.pending.lock().failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "could not keep the cluster's state");
        }
    }
}

fn run(db: &Database, shared: &Shared, path: &Path) {
    loop {
        let (batch, revision, closing) = {
            let mut pending = shared.pending.lock();
            while pending.objects.is_empty() && !pending.closing {
                shared.wake.wait(&mut pending);
            }
            if !pending.closing {
                // Gather a burst; `closing` cuts the wait short.
                let _ = shared.wake.wait_while_for(&mut pending, |p| !p.closing, BATCH_DELAY);
            }
            (std::mem::take(&mut pending.objects), pending.revision, pending.closing)
        };
        if let Err(error) = write(db, &batch, revision, closing) {
            let error = PersistError { path: path.to_owned(), message: error.to_string() };
            tracing::error!(%error, "could not keep the cluster's state");
            shared.pending.lock().failed = Some(error);
        }
        if closing && shared.pending.lock().objects.is_empty() {
            return;
        }
    }
}

fn write(
    db: &Database,
    batch: &BTreeMap<String, Option<Arc<Stored>>>,
    revision: u64,
    clean: bool,
) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    {
        let mut objects = txn.open_table(OBJECTS)?;
        for (key, object) in batch {
            match object {
                Some(object) => objects.insert(key.as_str(), object.json().as_ref())?,
                None => objects.remove(key.as_str())?,
            };
        }
        let mut counters = txn.open_table(COUNTERS)?;
        if revision > 0 {
            counters.insert("revision", revision)?;
        }
        counters.insert("clean", u64::from(clean))?;
    }
    txn.commit()?;
    Ok(())
}

fn load(db: &Database) -> Result<Snapshot, redb::Error> {
    // Opening for writing creates the tables of a new database.
    let txn = db.begin_write()?;
    {
        txn.open_table(OBJECTS)?;
        txn.open_table(COUNTERS)?;
    }
    txn.commit()?;
    let txn = db.begin_read()?;
    let counters = txn.open_table(COUNTERS)?;
    let mut revision = counters.get("revision")?.map_or(0, |v| v.value());
    if revision > 0 && counters.get("clean")?.is_some_and(|v| v.value() == 0) {
        revision += CRASH_SKIP;
    }
    let mut objects = Vec::new();
    for entry in txn.open_table(OBJECTS)?.iter()? {
        let (key, value) = entry?;
        let key_text = key.value();
        match (decode_key(key_text), serde_json::from_slice(value.value())) {
            (Some(key), Ok(value)) => objects.push((key, value)),
            _ => tracing::warn!(key = key_text, "skipping an unreadable stored object"),
        }
    }
    Ok(Snapshot { revision, objects })
}

fn encode_key(key: &ObjectKey) -> String {
    format!("{}\0{}\0{}\0{}", key.resource.group, key.resource.resource, key.namespace, key.name)
}

fn decode_key(text: &str) -> Option<ObjectKey> {
    let mut parts = text.split('\0');
    let (group, resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(ObjectKey::new(GroupResource::new(group, resource), namespace, name))
}
