//! A scheduler that says what the test tells it to.

#![allow(dead_code, reason = "each test file uses some")]

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use plimsoll_fleet::{ClusterSnapshot, Plan};
use plimsoll_operator::{Brain, BrainError, FleetUpdate, Observations};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A scheduler that says what the test tells it to.
#[derive(Clone)]
pub struct Script {
    pub plan: watch::Sender<Option<Arc<Plan>>>,
    pub observations: watch::Sender<Arc<Observations>>,
    pub pushed: Arc<Mutex<Vec<Arc<ClusterSnapshot>>>>,
    /// The newest snapshot's number.
    newest: Arc<Mutex<u64>>,
    /// Cancelled and replaced to break the connection.
    connection: Arc<Mutex<CancellationToken>>,
}

impl Script {
    pub fn new() -> Self {
        Self {
            plan: watch::channel(None).0,
            observations: watch::channel(Arc::default()).0,
            pushed: Arc::default(),
            newest: Arc::default(),
            connection: Arc::default(),
        }
    }

    pub fn restart(&self) {
        self.pushed.lock().clear();
        std::mem::take(&mut *self.connection.lock()).cancel();
    }

    pub fn last(&self) -> Option<Arc<ClusterSnapshot>> {
        self.pushed.lock().last().cloned()
    }
}

impl Brain for Script {
    async fn push(&self, snapshot: Arc<ClusterSnapshot>, sequence: u64) -> Result<(), BrainError> {
        // As the scheduler does with what one operator sends, across that operator's restarts.
        let mut newest = self.newest.lock();
        if sequence > *newest {
            *newest = sequence;
            self.pushed.lock().push(snapshot);
        }
        Ok(())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Result<FleetUpdate, BrainError>>, BrainError> {
        fn changes<T: Clone + Send + Sync + 'static>(sender: &watch::Sender<T>) -> BoxStream<'static, T> {
            let mut receiver = sender.subscribe();
            receiver.mark_changed();
            stream::unfold(receiver, |mut r| async move {
                r.changed().await.ok()?;
                let value = r.borrow_and_update().clone();
                Some((value, r))
            })
            .boxed()
        }
        let plans = changes(&self.plan).filter_map(|p| async move { p.map(|p| Ok(FleetUpdate::Plan(p))) });
        let observations = changes(&self.observations).map(|o| Ok(FleetUpdate::Observations(o)));
        let end = self.connection.lock().clone();
        Ok(stream::select(plans.boxed(), observations.boxed())
            .take_until(async move { end.cancelled().await })
            .boxed())
    }
}
