//! How keys and values lie in etcd. Pure.
//!
//! etcd takes requests of about 1.5 MiB and 128 operations. A value that is longer is cut into chunks that are written
//! first; its key then names them, so that it changes in one step all the same. A transaction that is larger is written to
//! a journal in the same way, and then carried out piece by piece (see [`super::EtcdStore`]).

use std::collections::BTreeSet;

use plimsoll_proto::etcd::request_op::Request;
use plimsoll_proto::etcd::response_op::Response;
use plimsoll_proto::etcd::{DeleteRangeRequest, PutRequest, RequestOp, ResponseOp, TxnResponse};

use crate::store::Write;

/// Longest value that lies in its own key, bytes.
pub const INLINE_BYTES: usize = 256 << 10;
/// Length of a chunk, bytes.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Most operations of one transaction: etcd's default limit is 128.
pub const MOST_OPERATIONS: usize = 100;
/// Most bytes of one transaction: etcd's default limit is 1.5 MiB.
pub const MOST_BYTES: usize = 1 << 20;

const INLINE: u8 = b'=';
const CHUNKED: u8 = b'@';

/// Chunks that hold a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    /// Under which name.
    pub id: String,
    /// How many.
    pub count: usize,
    /// Their length together, bytes.
    pub bytes: usize,
}

/// What lies in a value's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The value.
    Inline(Vec<u8>),
    /// Where the value is.
    Chunked(Chunks),
}

impl Head {
    /// The bytes to write.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inline(value) => [&[INLINE], value.as_slice()].concat(),
            Self::Chunked(c) => [&[CHUNKED], format!("{} {} {}", c.id, c.count, c.bytes).as_bytes()].concat(),
        }
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is nothing of the kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&INLINE, value) => Some(Self::Inline(value.to_vec())),
            (&CHUNKED, text) => {
                let mut parts = std::str::from_utf8(text).ok()?.split(' ');
                let chunks = Chunks {
                    id: parts.next()?.to_owned(),
                    count: parts.next()?.parse().ok()?,
                    bytes: parts.next()?.parse().ok()?,
                };
                (parts.next().is_none()).then_some(Self::Chunked(chunks))
            }
            _ => None,
        }
    }
}

/// Where keys lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// All under this prefix.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The election's key.
    pub fn leader(&self) -> Vec<u8> {
        format!("{}/leader", self.prefix).into_bytes()
    }

    /// A transaction that is being carried out.
    pub fn journal(&self) -> Vec<u8> {
        format!("{}/journal", self.prefix).into_bytes()
    }

    /// A key of the store.
    pub fn data(&self, key: &str) -> Vec<u8> {
        format!("{}/data/{key}", self.prefix).into_bytes()
    }

    /// The store's key of etcd's.
    pub fn of_data<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix("/data/")
    }

    /// All chunks.
    pub fn all_chunks(&self) -> Vec<u8> {
        format!("{}/chunk/", self.prefix).into_bytes()
    }

    /// All chunks of one value.
    pub fn chunks(&self, id: &str) -> Vec<u8> {
        format!("{}/chunk/{id}/", self.prefix).into_bytes()
    }

    /// One chunk of one value.
    pub fn chunk(&self, id: &str, n: usize) -> Vec<u8> {
        format!("{}/chunk/{id}/{n:08}", self.prefix).into_bytes()
    }

    /// The value that a chunk belongs to.
    pub fn of_chunk<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix("/chunk/")?;
        rest.rsplit_once('/').map(|(id, _)| id)
    }
}

/// The end of the range of all keys with a prefix.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            return end;
        }
    }
    // To etcd, everything from the key on.
    vec![0]
}

/// Sets a key, and asks for what it held.
pub fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    let put = PutRequest { key, value, lease: 0, prev_kv: true };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

/// Removes a key, and asks for what it held.
pub fn delete(key: Vec<u8>) -> RequestOp {
    let delete = DeleteRangeRequest { key, range_end: Vec::new(), prev_kv: true };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

/// Bytes of an operation, about.
pub fn size(op: &RequestOp) -> usize {
    16 + match &op.request {
        Some(Request::RequestPut(p)) => p.key.len() + p.value.len(),
        Some(Request::RequestDeleteRange(d)) => d.key.len() + d.range_end.len(),
        Some(Request::RequestRange(_)) | None => 0,
    }
}

/// Cuts operations into runs that etcd takes in one transaction each.
pub fn pieces(ops: Vec<RequestOp>) -> Vec<Vec<RequestOp>> {
    let mut out: Vec<Vec<RequestOp>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let more = size(&op);
        match out.last_mut() {
            Some(last) if last.len() < MOST_OPERATIONS && bytes + more <= MOST_BYTES => {
                bytes += more;
                last.push(op);
            }
            _ => {
                bytes = more;
                out.push(vec![op]);
            }
        }
    }
    out
}

/// Names of chunks that operations point to.
pub fn chunks_named(ops: &[RequestOp]) -> BTreeSet<String> {
    ops.iter()
        .filter_map(|op| match &op.request {
            Some(Request::RequestPut(p)) => Head::decode(&p.value),
            _ => None,
        })
        .filter_map(chunks_of)
        .collect()
}

/// Names of chunks that a transaction let go of, but for those it points to itself: a transaction that is sent again
/// replaces what it wrote before.
pub fn chunks_replaced(answer: &TxnResponse, named: &BTreeSet<String>) -> Vec<String> {
    let old = |r: &ResponseOp| match &r.response {
        Some(Response::ResponsePut(p)) => p.prev_kv.clone(),
        Some(Response::ResponseDeleteRange(d)) => d.prev_kvs.first().cloned(),
        _ => None,
    };
    answer
        .responses
        .iter()
        .filter_map(old)
        .filter_map(|kv| chunks_of(Head::decode(&kv.value)?))
        .filter(|id| !named.contains(id))
        .collect()
}

fn chunks_of(head: Head) -> Option<String> {
    match head {
        Head::Chunked(c) => Some(c.id),
        Head::Inline(_) => None,
    }
}

/// The last write of each key, in order: etcd takes a key once in a transaction.
pub fn last_of_each(writes: &[Write]) -> Vec<&Write> {
    let key = |w: &Write| match w {
        Write::Put(k, _) | Write::Delete(k) => k.clone(),
    };
    let mut seen = BTreeSet::new();
    let mut out: Vec<&Write> = writes.iter().rev().filter(|w| seen.insert(key(w))).collect();
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written() {
        let chunks = Chunks { id: "1f-2".into(), count: 3, bytes: 1_500_000 };
        for head in [Head::Inline(Vec::new()), Head::Inline(b"@x".to_vec()), Head::Chunked(chunks)] {
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
        for wrong in [&b""[..], b"x", b"@a 1", b"@a 1 2 3", b"@a b c", b"@\xff 1 2"] {
            assert_eq!(Head::decode(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn keys_lie_under_the_prefix_and_are_found_again() {
        let keys = Keys::new("/plimsoll/");
        assert_eq!(keys.leader(), b"/plimsoll/leader");
        assert_eq!(keys.of_data(&keys.data("plan/current")), Some("plan/current"));
        assert_eq!(keys.of_data(b"/other/data/x"), None);
        assert_eq!(keys.of_chunk(&keys.chunk("ab-1", 7)), Some("ab-1"));
        assert!(keys.chunk("ab-1", 7).starts_with(&keys.chunks("ab-1")));
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), [0]);
    }

    #[test]
    fn large_transactions_are_cut_by_number_and_by_size() {
        let small: Vec<RequestOp> = (0..250).map(|i| put(vec![i], vec![0])).collect();
        let sizes: Vec<usize> = pieces(small).iter().map(Vec::len).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let large: Vec<RequestOp> = (0..9).map(|i| put(vec![i], vec![0; INLINE_BYTES])).collect();
        let cut = pieces(large);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3]);
        assert!(cut.iter().all(|p| p.iter().map(size).sum::<usize>() <= MOST_BYTES));
        assert!(pieces(Vec::new()).is_empty());
    }

    #[test]
    fn the_last_write_of_a_key_counts() {
        let put = |k: &str, v: u8| Write::Put(k.into(), vec![v]);
        let writes = [put("a", 1), put("b", 1), Write::Delete("a".into()), put("b", 2)];
        assert_eq!(last_of_each(&writes), [&writes[2], &writes[3]]);
    }
}
