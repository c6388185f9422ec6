//! A store in etcd, for more than one scheduler: only the leader writes, and every write proves that it still leads.

mod client;
mod election;
mod encode;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use plimsoll_proto::etcd::request_op::Request;
use plimsoll_proto::etcd::response_op::Response;
use plimsoll_proto::etcd::{
    Compare, DeleteRangeRequest, KeyValue, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};
use prost::Message;
use tokio::runtime::Handle;

use client::Client;
pub use election::{Election, Leader, Seat, Seen};
use encode::{CHUNK_BYTES, Chunks, Head, INLINE_BYTES, Keys, MOST_BYTES, MOST_OPERATIONS};

use super::{Require, Store, StoreError, Write};

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// What every key begins with: one for each installation.
    pub prefix: String,
    /// Certificate authority of the members, PEM.
    pub ca: Option<PathBuf>,
    /// Certificate to show to them, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// Wall time that one call to one member may take.
    pub timeout: Duration,
    /// Wall time after which a leader that is not heard of is replaced.
    pub lease: Duration,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password.
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

impl EtcdConfig {
    /// These members, without TLS or user.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/plimsoll".to_owned(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            timeout: Duration::from_secs(4),
            lease: Duration::from_secs(10),
        }
    }
}

/// The store of a leader's term.
#[derive(Debug)]
pub struct EtcdStore {
    client: Client,
    keys: Keys,
    term: i64,
    runtime: Handle,
    /// Names of chunks are this and the term.
    next_chunks: AtomicU64,
    /// One transaction at a time: a large one takes several steps.
    writing: Mutex<()>,
    /// Whether a journal may be left that was not carried out.
    unsettled: AtomicBool,
}

/// A transaction as prepared: its steps, and chunks that were written for it.
struct Prepared {
    ops: Vec<RequestOp>,
    ids: Vec<String>,
}

impl EtcdStore {
    /// The store as seen and written by the holder of a seat. Carries out what an earlier leader left half done, and
    /// removes chunks that nothing names any more. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if etcd does not answer, or somebody else leads by now.
    pub fn open(election: &Election, seat: &Seat, runtime: Handle) -> Result<Self, StoreError> {
        let store = Self {
            client: election.client.clone(),
            keys: election.keys.clone(),
            term: seat.term,
            runtime,
            next_chunks: AtomicU64::new(0),
            writing: Mutex::new(()),
            unsettled: AtomicBool::new(true),
        };
        {
            let _one = store.writing.lock();
            store.settle()?;
            store.collect()?;
        }
        Ok(store)
    }

    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    fn broken(&self, key: &[u8], problem: &str) -> StoreError {
        StoreError::EtcdValue { key: String::from_utf8_lossy(key).into_owned(), problem: problem.to_owned() }
    }

    /// Runs operations if the term lasts and `also` holds: what they answered, or `None` if `also` does not hold.
    fn guarded(&self, ops: Vec<RequestOp>, also: Vec<Compare>) -> Result<Option<TxnResponse>, StoreError> {
        let leader = self.keys.leader();
        let again = also.is_empty();
        let mut compare = vec![election::created_at(leader.clone(), self.term)];
        compare.extend(also);
        let look = RangeRequest { key: leader, ..RangeRequest::default() };
        let failure = vec![RequestOp { request: Some(Request::RequestRange(look)) }];
        let answer = self.wait(self.client.txn(TxnRequest { compare, success: ops, failure }, again))?;
        if answer.succeeded {
            return Ok(Some(answer));
        }
        let held = answer.responses.first().and_then(|r| match &r.response {
            Some(Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        });
        match held {
            Some(kv) if kv.create_revision == self.term => Ok(None),
            _ => Err(StoreError::Deposed { term: self.term }),
        }
    }

    fn write(&self, ops: Vec<RequestOp>) -> Result<TxnResponse, StoreError> {
        // Without further conditions, what fails is the term.
        self.guarded(ops, Vec::new())?.ok_or(StoreError::Deposed { term: self.term })
    }

    fn read(&self, key: Vec<u8>) -> Result<Option<KeyValue>, StoreError> {
        let request = RangeRequest { key, ..RangeRequest::default() };
        Ok(self.wait(self.client.range(request))?.kvs.into_iter().next())
    }

    /// Keys of a range, in order, all as of one revision.
    fn range(&self, from: Vec<u8>, keys_only: bool) -> Result<Vec<KeyValue>, StoreError> {
        let end = encode::end_of(&from);
        let (mut key, mut revision, mut out) = (from, 0, Vec::new());
        loop {
            let request = RangeRequest { key, range_end: end.clone(), limit: 500, revision, keys_only };
            let answer = self.wait(self.client.range(request))?;
            revision = answer.header.map_or(revision, |h| if revision == 0 { h.revision } else { revision });
            let more = answer.more;
            out.extend(answer.kvs);
            match out.last() {
                Some(last) if more => key = [last.key.as_slice(), &[0]].concat(),
                _ => return Ok(out),
            }
        }
    }

    fn value(&self, kv: &KeyValue) -> Result<Vec<u8>, StoreError> {
        match Head::decode(&kv.value) {
            Some(Head::Inline(value)) => Ok(value),
            Some(Head::Chunked(chunks)) => self.chunked(&kv.key, &chunks),
            None => Err(self.broken(&kv.key, "it is not what a scheduler writes")),
        }
    }

    fn chunked(&self, key: &[u8], chunks: &Chunks) -> Result<Vec<u8>, StoreError> {
        let mut value = Vec::with_capacity(chunks.bytes);
        for n in 0..chunks.count {
            let chunk = self.read(self.keys.chunk(&chunks.id, n))?;
            value.extend(chunk.ok_or_else(|| self.broken(key, "a part of it is missing"))?.value);
        }
        if value.len() == chunks.bytes { Ok(value) } else { Err(self.broken(key, "its length is wrong")) }
    }

    /// Writes a value's chunks, which nothing names yet.
    fn cut(&self, value: &[u8]) -> Result<Chunks, StoreError> {
        let id = format!("{:x}-{:x}", self.term, self.next_chunks.fetch_add(1, Ordering::Relaxed));
        let mut count = 0;
        for chunk in value.chunks(CHUNK_BYTES) {
            self.write(vec![encode::put(self.keys.chunk(&id, count), chunk.to_vec())])?;
            count += 1;
        }
        Ok(Chunks { id, count, bytes: value.len() })
    }

    fn prepare(&self, writes: &[Write]) -> Result<Prepared, StoreError> {
        let mut prepared = Prepared { ops: Vec::new(), ids: Vec::new() };
        for write in encode::last_of_each(writes) {
            prepared.ops.push(match write {
                Write::Put(key, value) => {
                    let head = if value.len() > INLINE_BYTES {
                        let chunks = self.cut(value)?;
                        prepared.ids.push(chunks.id.clone());
                        Head::Chunked(chunks)
                    } else {
                        Head::Inline(value.clone())
                    };
                    encode::put(self.keys.data(key), head.encode())
                }
                Write::Delete(key) => encode::delete(self.keys.data(key)),
            });
        }
        Ok(prepared)
    }

    /// Conditions as etcd compares them; `None` if one does not hold already.
    fn conditions(&self, require: &[Require]) -> Result<Option<Vec<Compare>>, StoreError> {
        let mut out = Vec::new();
        for r in require {
            let key = self.keys.data(&r.key);
            let held = self.read(key.clone())?;
            let value = held.as_ref().map(|kv| self.value(kv)).transpose()?;
            if value != r.value {
                return Ok(None);
            }
            // What was read must still be there, untouched.
            let revision = held.map_or(0, |kv| kv.mod_revision);
            out.push(Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key,
                target_union: Some(TargetUnion::ModRevision(revision)),
            });
        }
        Ok(Some(out))
    }

    /// Carries out the journal, if there is one.
    fn settle(&self) -> Result<(), StoreError> {
        if !self.unsettled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let key = self.keys.journal();
        if let Some(kv) = self.read(key.clone())? {
            let bytes = self.value(&kv)?;
            let journal = TxnRequest::decode(bytes.as_slice())
                .map_err(|e| self.broken(&key, &format!("the journal cannot be read: {e}")))?;
            let named = encode::chunks_named(&journal.success);
            let mut replaced = Vec::new();
            for piece in encode::pieces(journal.success) {
                replaced.extend(encode::chunks_replaced(&self.write(piece)?, &named));
            }
            replaced.extend(encode::chunks_replaced(&self.write(vec![encode::delete(key)])?, &named));
            self.discard(replaced);
        }
        self.unsettled.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Removes chunks. What fails is collected at the next start.
    fn discard(&self, ids: Vec<String>) {
        for id in ids {
            let key = self.keys.chunks(&id);
            let range_end = encode::end_of(&key);
            let delete = DeleteRangeRequest { key, range_end, prev_kv: false };
            let op = RequestOp { request: Some(Request::RequestDeleteRange(delete)) };
            if let Err(error) = self.write(vec![op]) {
                tracing::debug!(%error, "chunks of an old value were not removed");
            }
        }
    }

    /// Removes chunks that no key names: of a leader that died between writing them and naming them.
    fn collect(&self) -> Result<(), StoreError> {
        let mut chunks: std::collections::BTreeSet<String> = std::collections::BTreeSet::new();
        for kv in self.range(self.keys.all_chunks(), true)? {
            chunks.extend(self.keys.of_chunk(&kv.key).map(str::to_owned));
        }
        if chunks.is_empty() {
            return Ok(());
        }
        for kv in self.range(self.keys.data(""), false)? {
            if let Some(Head::Chunked(named)) = Head::decode(&kv.value) {
                chunks.remove(&named.id);
            }
        }
        self.discard(chunks.into_iter().collect());
        Ok(())
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(self.keys.data(key))?.map(|kv| self.value(&kv)).transpose()
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let found = self.range(self.keys.data(prefix), false)?;
        found
            .iter()
            .filter_map(|kv| self.keys.of_data(&kv.key).map(|key| (key.to_owned(), kv)))
            .map(|(key, kv)| Ok((key, self.value(kv)?)))
            .collect()
    }

    fn transact(&self, require: &[Require], writes: &[Write]) -> Result<bool, StoreError> {
        let _one = self.writing.lock();
        self.settle()?;
        let Some(conditions) = self.conditions(require)? else { return Ok(false) };
        let Prepared { ops, mut ids } = self.prepare(writes)?;
        let bytes: usize = ops.iter().map(encode::size).sum();
        let done = if ops.len() <= MOST_OPERATIONS && bytes <= MOST_BYTES {
            let named = encode::chunks_named(&ops);
            match self.guarded(ops, conditions)? {
                Some(answer) => {
                    self.discard(encode::chunks_replaced(&answer, &named));
                    true
                }
                None => false,
            }
        } else {
            let journal = TxnRequest { success: ops, ..TxnRequest::default() }.encode_to_vec();
            let chunks = self.cut(&journal)?;
            ids.push(chunks.id.clone());
            let head = Head::Chunked(chunks).encode();
            // From here on it will be done, by this leader or the next one.
            self.unsettled.store(true, Ordering::Relaxed);
            let begun = self.guarded(vec![encode::put(self.keys.journal(), head)], conditions)?.is_some();
            self.settle()?;
            begun
        };
        if !done {
            self.discard(ids);
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
