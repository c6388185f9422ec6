//! Simulated engines over several nodes: the processes of one replica find one another at the leader's rendezvous port, as
//! real engines do, and live and die as one.
//!
//! A worker connects, sends its rank as four bytes (most significant first), and stays connected. The leader answers one
//! byte, 1 if it takes the worker and 0 if not. Either end takes the end of the connection for the end of the other.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time between two tries to reach the leader.
const RETRY: Duration = Duration::from_millis(250);
/// Longest time for the few bytes of a greeting.
const GREETING: Duration = Duration::from_secs(10);

/// The leader's end. Dropping it ends its workers.
#[derive(Debug)]
pub struct Leader {
    addr: SocketAddr,
    missing: watch::Receiver<u32>,
    lost: CancellationToken,
    _stop: DropGuard,
}

impl Leader {
    /// Listens for the `size - 1` workers of a group.
    ///
    /// # Errors
    /// If the address is not to be had.
    pub async fn start(listen: SocketAddr, size: u32) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let (missing_tx, missing) = watch::channel(size.saturating_sub(1));
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let ranks = Arc::new(Mutex::new(BTreeSet::new()));
        let (missing_tx, their_lost, their_stop) = (Arc::new(missing_tx), lost.clone(), stop.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = their_stop.cancelled() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(_) => { sleep(RETRY).await; continue }
                    },
                };
                let (ranks, missing, lost) = (ranks.clone(), missing_tx.clone(), their_lost.clone());
                let stop = their_stop.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = host(stream, size, &ranks, &missing, &lost) => {}
                    }
                });
            }
        });
        Ok(Self { addr, missing, lost, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resolves once every worker has come.
    pub async fn complete(&self) {
        // The sender lives as long as this.
        let _ = self.missing.clone().wait_for(|missing| *missing == 0).await;
    }

    /// Resolves once a worker that had come is gone.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

async fn host(
    mut stream: TcpStream,
    size: u32,
    ranks: &Mutex<BTreeSet<u32>>,
    missing: &watch::Sender<u32>,
    lost: &CancellationToken,
) {
    let Ok(Ok(rank)) = timeout(GREETING, stream.read_u32()).await else { return };
    let taken = (1..size).contains(&rank) && ranks.lock().insert(rank);
    // Should it be gone already, the next read says so.
    let _ = stream.write_u8(taken.into()).await;
    if !taken {
        return;
    }
    missing.send_modify(|missing| *missing = missing.saturating_sub(1));
    // Nothing more is sent: this returns when the worker ends.
    let _ = stream.read_u8().await;
    lost.cancel();
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// There was no leader to be found.
    #[error("found no leader at {address} within {} s; look whether it runs and its name resolves", within.as_secs())]
    NotFound {
        /// Where it should be.
        address: String,
        /// How long it was looked for.
        within: Duration,
    },
    /// The leader has no place for it.
    #[error(
        "the leader at {address} does not take rank {rank}; give every worker a rank of its own below --nnodes"
    )]
    Refused {
        /// The leader.
        address: String,
        /// Its rank.
        rank: u32,
    },
    /// The leader ended.
    #[error("the leader at {address} is gone, and what is left of its group ends with it")]
    Gone {
        /// The leader.
        address: String,
    },
}

/// Works for the leader at `host:port` until that ends; it may come up to `within` later.
///
/// # Errors
/// Always, in the end: why it ended.
pub async fn follow(address: &str, rank: u32, within: Duration) -> Result<(), FollowError> {
    let connect = async {
        loop {
            // A name that does not resolve yet is like an address where nobody listens yet.
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => sleep(RETRY).await,
            }
        }
    };
    let missing = || FollowError::NotFound { address: address.to_owned(), within };
    let gone = || FollowError::Gone { address: address.to_owned() };
    let mut stream = timeout(within, connect).await.map_err(|_| missing())?;
    stream.write_u32(rank).await.map_err(|_| gone())?;
    if stream.read_u8().await.map_err(|_| gone())? == 0 {
        return Err(FollowError::Refused { address: address.to_owned(), rank });
    }
    let _ = stream.read_u8().await;
    Err(gone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn leader(size: u32) -> Leader {
        Leader::start("127.0.0.1:0".parse().unwrap(), size).await.unwrap()
    }

    #[tokio::test]
    async fn it_is_complete_with_all_workers_and_lost_with_one() {
        let leader = leader(3).await;
        let address = leader.addr().to_string();
        let join = |rank| {
            let address = address.clone();
            tokio::spawn(async move { follow(&address, rank, SOON).await })
        };
        let first = join(1);
        assert!(timeout(Duration::from_millis(200), leader.complete()).await.is_err(), "one is missing");
        let twice = join(1).await.unwrap();
        assert!(matches!(twice, Err(FollowError::Refused { rank: 1, .. })), "{twice:?}");
        assert!(matches!(join(3).await.unwrap(), Err(FollowError::Refused { rank: 3, .. })));
        let second = join(2);
        timeout(SOON, leader.complete()).await.unwrap();
        assert!(timeout(Duration::from_millis(50), leader.lost()).await.is_err(), "all are there");
        second.abort();
        timeout(SOON, leader.lost()).await.unwrap();
        assert!(!first.is_finished());
        drop(leader);
        let end = timeout(SOON, first).await.unwrap().unwrap();
        assert!(matches!(end, Err(FollowError::Gone { .. })), "{end:?}");
    }

    #[tokio::test]
    async fn a_worker_gives_up_on_a_leader_that_does_not_come() {
        let address = leader(2).await.addr().to_string();
        let end = follow(&address, 1, Duration::from_millis(300)).await.unwrap_err().to_string();
        assert!(end.contains("found no leader") || end.contains("is gone"), "{end}");
    }
}
