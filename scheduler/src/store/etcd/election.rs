//! Who of several schedulers leads: the one whose key stands in etcd, for as long as its lease is renewed.
//!
//! The key's creation revision is the term's number. Every write of a leader compares it, so that one that was deposed and
//! does not know it yet writes nothing. A leader that cannot renew stops acting before its lease can end.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use plimsoll_proto::etcd::{Compare, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::EtcdConfig;
use super::client::Client;
use super::encode::Keys;
use crate::store::StoreError;

/// Who leads, as its key says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its name, unlike any other's.
    pub identity: String,
    /// `host:port` of its gRPC services.
    pub address: String,
}

/// What a candidate knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Somebody else leads.
    Leader(Leader),
    /// Nobody is known to lead, and why.
    Nobody(String),
}

/// A term of leading.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The term's number: the election key's creation revision.
    pub term: i64,
    lease: i64,
    until: Arc<Mutex<Instant>>,
}

impl Seat {
    /// Whether nobody else can have been elected yet.
    pub fn holds(&self) -> bool {
        Instant::now() < *self.until.lock()
    }
}

/// A lease that was asked for at `sent` is good until then: earlier than etcd thinks by a fifth, for clocks that run apart.
fn good_until(sent: Instant, lease: Duration) -> Instant {
    sent + lease * 4 / 5
}

/// What to do about the key as read.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// There is none: claim it.
    Claim,
    /// It is one's own of an earlier life: end its lease, then claim.
    Clear(i64),
    /// Another's: wait.
    Follow(Leader),
    /// Unreadable: wait until it goes.
    Puzzled,
}

fn decide(held: Option<&KeyValue>, me: &Leader) -> Move {
    let Some(kv) = held else { return Move::Claim };
    match serde_json::from_slice::<Leader>(&kv.value) {
        Ok(leader) if leader.identity == me.identity => Move::Clear(kv.lease),
        Ok(leader) => Move::Follow(leader),
        Err(_) => Move::Puzzled,
    }
}

/// True if the key's creation revision is this (0: there is no key).
pub fn created_at(key: Vec<u8>, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// A candidate.
#[derive(Debug, Clone)]
pub struct Election {
    pub(super) client: Client,
    pub(super) keys: Keys,
    me: Leader,
    lease: Duration,
}

impl Election {
    /// Stands for election as `me`. Needs an async runtime around it; connects when first used.
    ///
    /// # Errors
    /// [`StoreError::EtcdConfig`] if the configuration makes no sense.
    pub fn new(config: &EtcdConfig, me: Leader) -> Result<Self, StoreError> {
        let client = Client::new(config)?;
        Ok(Self {
            client,
            keys: Keys::new(&config.prefix),
            me,
            lease: config.lease.max(Duration::from_secs(2)),
        })
    }

    /// Waits until it leads, and tells what it sees meanwhile.
    pub async fn campaign(&self, mut seen: impl FnMut(Seen)) -> Seat {
        // Often enough that a lease that ends is not what others wait for, rarely enough to be nothing to etcd.
        let pause = Duration::from_millis(500).min(self.lease / 4);
        loop {
            match self.step().await {
                Ok(Ok(seat)) => return seat,
                Ok(Err(other)) => seen(other),
                Err(error) => seen(Seen::Nobody(error.to_string())),
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&self) -> Result<Result<Seat, Seen>, StoreError> {
        let key = self.keys.leader();
        let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let held = self.client.range(read).await?.kvs.into_iter().next();
        match decide(held.as_ref(), &self.me) {
            Move::Follow(leader) => return Ok(Err(Seen::Leader(leader))),
            Move::Puzzled => {
                return Ok(Err(Seen::Nobody("the election's key in etcd is not a scheduler's".to_owned())));
            }
            Move::Clear(lease) => self.client.revoke(lease).await?,
            Move::Claim => {}
        }
        let sent = Instant::now();
        let lease = self.client.grant(self.lease.as_secs()).await?;
        let value = serde_json::to_vec(&self.me).unwrap_or_default();
        let put = PutRequest { key: key.clone(), value, lease, prev_kv: false };
        let claim = TxnRequest {
            compare: vec![created_at(key, 0)],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        match self.client.txn(claim, false).await {
            Ok(answer) if answer.succeeded => {
                let term = answer.header.map_or(0, |h| h.revision);
                let until = Arc::new(Mutex::new(good_until(sent, self.lease)));
                Ok(Ok(Seat { term, lease, until }))
            }
            // Also where it is not known whether the key was written: with the lease, it goes.
            other => {
                let ended = self.client.revoke(lease).await;
                other?;
                ended?;
                Ok(Err(Seen::Nobody("another scheduler was faster".to_owned())))
            }
        }
    }

    /// Renews until that fails for too long; says why the seat is lost.
    pub async fn hold(&self, seat: &Seat) -> String {
        let mut pause = self.lease / 3;
        loop {
            let until = *seat.until.lock();
            tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
            let sent = Instant::now();
            let answer = tokio::time::timeout_at(until, self.client.renew(seat.lease)).await;
            match answer {
                Ok(Ok(0)) => return "its lease has ended".to_owned(),
                Ok(Ok(_)) => {
                    *seat.until.lock() = good_until(sent, self.lease);
                    pause = self.lease / 3;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the leader's lease was not renewed; trying again");
                    if Instant::now() >= until {
                        return error.to_string();
                    }
                    pause = self.lease / 10;
                }
                Err(_) => return "etcd did not renew its lease in time".to_owned(),
            }
        }
    }

    /// Gives the seat up, so that another can take it at once.
    pub async fn resign(&self, seat: Seat) {
        let gone = Instant::now();
        *seat.until.lock() = gone;
        match tokio::time::timeout(Duration::from_secs(3), self.client.revoke(seat.lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the leader's lease was not given back; it ends by itself")
            }
            Err(_) => {
                tracing::warn!("etcd was too slow to give the leader's lease back to; it ends by itself")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_claimed_only_when_nobody_elses() {
        let leader = |identity: &str| Leader { identity: identity.into(), address: "10.0.0.1:9090".into() };
        let me = leader("me");
        let key = |value: Vec<u8>| KeyValue { value, lease: 7, ..KeyValue::default() };
        let held = |identity: &str| key(serde_json::to_vec(&leader(identity)).unwrap());
        assert_eq!(decide(None, &me), Move::Claim);
        assert_eq!(decide(Some(&held("me")), &me), Move::Clear(7));
        assert_eq!(decide(Some(&held("other")), &me), Move::Follow(leader("other")));
        assert_eq!(decide(Some(&key(b"junk".to_vec())), &me), Move::Puzzled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_holds_for_less_than_its_lease() {
        let sent = Instant::now();
        let seat = Seat {
            term: 1,
            lease: 1,
            until: Arc::new(Mutex::new(good_until(sent, Duration::from_secs(10)))),
        };
        tokio::time::advance(Duration::from_millis(7_900)).await;
        assert!(seat.holds());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!seat.holds());
    }
}
