//! A node's cache of adapters on disk: downloaded once for all engines of the node, checked, kept below a cap.
//!
//! [`source`] reads where an adapter is, [`check`] judges its files, [`disk`] says what makes room: pure. Around them a [`Store`]
//! downloads ([`Store::obtain`]): one download an adapter however many ask, a few at once, each with a deadline; what is broken off is
//! gone on with. Files appear in the cache whole or not at all: they are renamed into place.

pub mod check;
mod credentials;
pub mod disk;
mod download;
mod error;
mod listing;
mod oci;
pub mod source;
mod web;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_fleet::{AdapterFiles, ReplicaId};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use self::check::{BadFiles, CONFIG, LONGEST_CONFIG, WEIGHTS};
use self::disk::{Disk, Key};
use self::source::Source;
use self::web::Web;
use super::eviction::Rule;
use crate::metrics::{AgentLabels, AgentMetrics, ReasonLabels};

pub use self::credentials::Credentials;
pub use self::error::StoreError;
pub use self::web::Hosts;

/// Where engines have the volumes of `pvc://` sources, a folder a claim.
pub const CLAIMS: &str = "/adapter-claims";

/// How a node's cache is kept.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Folder of the cache.
    pub dir: PathBuf,
    /// The same folder as engines see it.
    pub engine_dir: PathBuf,
    /// Most that it may take, bytes.
    pub cap_bytes: u64,
    /// What makes room.
    pub rule: Rule,
    /// Downloads at once.
    pub downloads: usize,
    /// Downloads that may wait for others; more are refused.
    pub most_waiting: usize,
    /// Longest time for one adapter.
    pub within: Duration,
    /// Hosts that adapters may come from.
    pub hosts: Hosts,
    /// Hugging Face, or a mirror of it.
    pub hf_endpoint: String,
    /// What is shown to them.
    pub credentials: Credentials,
}

impl StoreConfig {
    /// A cache in a folder that engines see under the same name; change what should be otherwise.
    pub fn new(dir: impl Into<PathBuf>, cap_bytes: u64) -> Self {
        let dir = dir.into();
        Self {
            engine_dir: dir.clone(),
            dir,
            cap_bytes,
            rule: Rule::Gdsf,
            downloads: 2,
            most_waiting: 64,
            within: Duration::from_secs(900),
            hosts: Hosts::default(),
            hf_endpoint: "https://huggingface.co".to_owned(),
            credentials: Credentials::default(),
        }
    }
}

/// An adapter that engines can load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obtained {
    /// Its folder, as engines see it.
    pub path: String,
    /// Bytes of its files, where they are in the cache.
    pub bytes: Option<u64>,
}

/// What is kept beside an adapter's files.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    source: String,
    fetch_ms: f64,
    /// Bytes by name.
    files: BTreeMap<String, u64>,
}

const INDEX: &str = "index.json";

type Flight = watch::Receiver<Option<Result<(), StoreError>>>;

/// What an engine needs of the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Adapters that it holds: engines read their files again when they move them back onto the device.
    pub held: BTreeSet<Key>,
    /// Adapters that it is about to load.
    pub coming: BTreeSet<Key>,
}

/// A node's cache.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    web: Web,
    disk: Mutex<Disk>,
    flights: Mutex<HashMap<Key, Flight>>,
    slots: Semaphore,
    kept: Mutex<BTreeMap<ReplicaId, Kept>>,
    agent: String,
    metrics: AgentMetrics,
}

/// The name of an adapter's files in the cache: another source, or another digest, is another adapter.
pub fn key(source: &str, files: &AdapterFiles) -> Key {
    let mut name = download::hex(digest(&SHA256, format!("{source}\n{}", files.sha256).as_bytes()).as_ref());
    name.truncate(32);
    name
}

impl Store {
    /// Opens a cache, with what is in its folder from before.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be used, or TLS cannot be set up.
    pub fn open(config: StoreConfig, agent: &str, metrics: AgentMetrics) -> Result<Self, StoreError> {
        let web = Web::new(config.hosts.clone()).map_err(|problem| StoreError::Unreachable { problem })?;
        for dir in [config.dir.join("adapters"), config.dir.join("partial")] {
            std::fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        }
        let mut disk = Disk::new(config.cap_bytes, config.rule);
        for (key, path) in folders(&config.dir.join("adapters"))? {
            match whole(&path) {
                Some((bytes, fetch_ms)) => disk.fetched(&key, bytes, false, fetch_ms),
                None => drop(std::fs::remove_dir_all(&path)),
            }
        }
        for (key, path) in folders(&config.dir.join("partial"))? {
            if disk.holds(&key) {
                drop(std::fs::remove_dir_all(&path));
            } else {
                disk.fetched(&key, size_of(&path), true, 0.0);
            }
        }
        let slots = Semaphore::new(config.downloads.max(1));
        let store = Self {
            config,
            web,
            disk: Mutex::new(disk),
            flights: Mutex::default(),
            slots,
            kept: Mutex::default(),
            agent: agent.to_owned(),
            metrics,
        };
        store.gauge();
        Ok(store)
    }

    /// What a replica's engine needs is not put out.
    pub fn keep(&self, replica: &ReplicaId, needs: Kept) {
        let mut kept = self.kept.lock();
        if needs == Kept::default() {
            kept.remove(replica);
        } else {
            kept.insert(replica.clone(), needs);
        }
    }

    /// Bytes of an adapter's files, if they are there.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.disk.lock().size(key)
    }

    /// Bytes that the cache takes, what is set aside for downloads with it.
    pub fn bytes(&self) -> u64 {
        self.disk.lock().bytes()
    }

    /// Has an adapter's files at hand: from the cache, else from its source; then judges them. `limit` is the largest rank that the
    /// pool's engines have room for (0: unknown). Who stops waiting stops nothing.
    ///
    /// # Errors
    /// [`StoreError`], in words that say what to do.
    pub async fn obtain(
        self: &Arc<Self>,
        source: &str,
        files: &AdapterFiles,
        limit: u32,
    ) -> Result<Obtained, StoreError> {
        match Source::parse(source)? {
            Source::Claim { claim, path } => {
                let folder = format!("{CLAIMS}/{claim}/{path}");
                return Ok(Obtained { path: folder.trim_end_matches('/').to_owned(), bytes: None });
            }
            // The engine's own folder: an agent that copied it would show engines what is the agent's.
            Source::File { path } => return Ok(Obtained { path: path.display().to_string(), bytes: None }),
            _ => {}
        }
        let key = key(source, files);
        self.at_hand(&key, source).await?;
        let dir = self.config.dir.join("adapters").join(&key);
        let expected = files.clone();
        let judged = tokio::task::spawn_blocking(move || judge(&dir, &expected, limit)).await;
        let judged = judged.unwrap_or_else(|e| {
            Err(StoreError::Io { action: "read", path: self.config.dir.clone(), problem: e.to_string() })
        });
        if let Err(error) = judged {
            // Whoever mends the source gets what is there then. The files stay for others who are judging them, and are the first to
            // make room.
            if !self.kept.lock().values().any(|needs| needs.held.contains(&key)) {
                self.drop_index(&key);
                let mut disk = self.disk.lock();
                if let Some(bytes) = disk.size(&key) {
                    disk.fetched(&key, bytes, true, 0.0);
                }
            }
            return Err(error);
        }
        let mut disk = self.disk.lock();
        disk.used(&key);
        let folder = self.config.engine_dir.join("adapters").join(&key);
        Ok(Obtained { path: folder.display().to_string(), bytes: disk.size(&key) })
    }

    /// Waits until an adapter's files are in the cache.
    async fn at_hand(self: &Arc<Self>, key: &Key, source: &str) -> Result<(), StoreError> {
        if self.disk.lock().holds(key) && whole(&self.config.dir.join("adapters").join(key)).is_some() {
            return Ok(());
        }
        let mut flight = {
            let mut flights = self.flights.lock();
            match flights.get(key) {
                Some(flight) => flight.clone(),
                None if flights.len() >= self.config.downloads + self.config.most_waiting => {
                    self.count("busy");
                    return Err(StoreError::Busy { waiting: flights.len() });
                }
                None => {
                    let (tell, flight) = watch::channel(None);
                    flights.insert(key.clone(), flight.clone());
                    let (store, key, source) = (self.clone(), key.clone(), source.to_owned());
                    tokio::spawn(async move {
                        // Dropped with the task, however it ends.
                        let landing = Landing { store: &store, key: &key };
                        let result = store.download(&key, &source).await;
                        store.count(if result.is_ok() { "ok" } else { "failed" });
                        drop(landing);
                        let _ = tell.send(Some(result));
                    });
                    flight
                }
            }
        };
        match flight.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(StoreError::Unreachable { problem: "the download was given up".to_owned() }),
        }
    }

    /// Downloads within the deadline, in turn.
    async fn download(&self, key: &Key, source: &str) -> Result<(), StoreError> {
        let within = self.config.within;
        let began = tokio::time::Instant::now();
        let whole = async {
            let _slot = self.slots.acquire().await;
            self.fetch(key, source, began).await
        };
        let result = tokio::time::timeout(within, whole)
            .await
            .unwrap_or(Err(StoreError::TooLate { seconds: within.as_secs() }));
        if result.is_err() {
            let left = ["partial", "adapters"].map(|dir| size_of(&self.config.dir.join(dir).join(key)));
            self.disk.lock().fetched(key, left.iter().sum(), true, 0.0);
        }
        self.gauge();
        result
    }

    async fn fetch(&self, key: &Key, source: &str, began: tokio::time::Instant) -> Result<(), StoreError> {
        let parsed = Source::parse(source)?;
        let credentials = &self.config.credentials;
        let mut listing = listing::list(&self.web, credentials, &self.config.hf_endpoint, &parsed).await?;
        let bytes = download::measure(&mut listing).await?;
        let in_use: BTreeSet<Key> = self
            .kept
            .lock()
            .values()
            .flat_map(|needs| needs.held.iter().chain(&needs.coming))
            .cloned()
            .collect();
        let out = self.disk.lock().make_room(key, bytes, &in_use)?;
        for gone in &out {
            tracing::info!(key = %gone, "an adapter makes room in the cache");
            self.drop_files(gone);
        }
        let place = self.config.dir.join("adapters").join(key);
        // Files that were lost in part, or found bad.
        self.drop_index(key);
        drop(tokio::fs::remove_dir_all(&place).await);
        let partial = self.config.dir.join("partial").join(key);
        tokio::fs::create_dir_all(&partial).await.map_err(StoreError::io("create", &partial))?;
        let mut files = BTreeMap::new();
        for file in &listing.files {
            download::fetch(listing.store.as_ref(), file, &partial).await?;
            files.insert(file.name.to_owned(), file.bytes.unwrap_or(0));
        }
        for file in &listing.files {
            drop(tokio::fs::remove_file(partial.join(format!("{}.etag", file.name))).await);
        }
        let fetch_ms = began.elapsed().as_secs_f64() * 1000.0;
        let index =
            serde_json::to_vec(&Index { source: source.to_owned(), fetch_ms, files }).unwrap_or_default();
        let written = partial.join(INDEX);
        tokio::fs::write(&written, index).await.map_err(StoreError::io("write", &written))?;
        tokio::fs::rename(&partial, &place).await.map_err(StoreError::io("rename onto", &place))?;
        self.disk.lock().fetched(key, bytes, false, fetch_ms);
        tracing::info!(source, bytes, seconds = fetch_ms / 1000.0, "an adapter is in the cache");
        Ok(())
    }

    fn drop_index(&self, key: &str) {
        drop(std::fs::remove_file(self.config.dir.join("adapters").join(key).join(INDEX)));
    }

    /// The index goes first: what is left if this breaks off is not taken for an adapter.
    fn drop_files(&self, key: &str) {
        self.drop_index(key);
        for dir in ["adapters", "partial"] {
            drop(std::fs::remove_dir_all(self.config.dir.join(dir).join(key)));
        }
    }

    fn count(&self, reason: &'static str) {
        self.metrics
            .adapter_downloads
            .get_or_create(&ReasonLabels { agent: self.agent.clone(), reason })
            .inc();
    }

    fn gauge(&self) {
        let bytes = i64::try_from(self.bytes()).unwrap_or(i64::MAX);
        self.metrics.adapter_cache_bytes.get_or_create(&AgentLabels { agent: self.agent.clone() }).set(bytes);
    }
}

/// A download that is on its way; it is not, once this is dropped.
struct Landing<'a> {
    store: &'a Store,
    key: &'a Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.store.flights.lock().remove(self.key);
    }
}

/// The folders in one, by name.
fn folders(dir: &Path) -> Result<Vec<(Key, PathBuf)>, StoreError> {
    let all = std::fs::read_dir(dir).map_err(StoreError::io("read", dir))?;
    Ok(all.flatten().filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect())
}

fn size_of(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum()
}

/// Bytes and download time of an adapter whose files are all there, as long as they came.
fn whole(dir: &Path) -> Option<(u64, f64)> {
    let index: Index = serde_json::from_slice(&std::fs::read(dir.join(INDEX)).ok()?).ok()?;
    let there =
        |(name, bytes): (&String, &u64)| std::fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == *bytes);
    index.files.iter().all(there).then(|| (index.files.values().sum(), index.fetch_ms))
}

/// Judges the files of a folder.
fn judge(dir: &Path, expected: &AdapterFiles, limit: u32) -> Result<check::Facts, StoreError> {
    let path = dir.join(CONFIG);
    let mut config = Vec::new();
    let file = std::fs::File::open(&path).map_err(StoreError::io("open", &path))?;
    file.take(LONGEST_CONFIG as u64).read_to_end(&mut config).map_err(StoreError::io("read", &path))?;
    let path = dir.join(WEIGHTS);
    let mut file = std::fs::File::open(&path).map_err(StoreError::io("open", &path))?;
    let length = file.metadata().map_err(StoreError::io("read", &path))?.len();
    let mut begin = Vec::new();
    file.by_ref().take(8).read_to_end(&mut begin).map_err(StoreError::io("read", &path))?;
    let mut header = Vec::new();
    let header_bytes = check::header_length(&begin, length)?;
    file.take(header_bytes).read_to_end(&mut header).map_err(StoreError::io("read", &path))?;
    let facts = check::check(&config, &header, length, expected, limit)?;
    if !expected.sha256.is_empty() {
        let found = download::sha256(&path).map_err(StoreError::io("read", &path))?;
        if found != expected.sha256 {
            return Err(BadFiles::Digest { found, wanted: expected.sha256.clone() }.into());
        }
    }
    Ok(facts)
}
