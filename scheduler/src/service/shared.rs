//! What the service's tasks share.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use plimsoll_fleet::{Plan, RouteTable};
use plimsoll_proto::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::SchedulerConfig;
use super::metrics::SchedulerMetrics;
use crate::clock::{Clock, seconds};
use crate::control::{Drains, Due, State};
use crate::planner::Planner;
use crate::store::Store;
use crate::store::etcd::Seat;

/// Everything the tasks share.
pub struct Shared {
    /// What is known, behind one short-held lock.
    pub state: Mutex<State>,
    /// Settings.
    pub config: SchedulerConfig,
    /// The store's name: route versions compare only within it.
    pub identity: String,
    /// Virtual time.
    pub clock: Clock,
    /// Planning functions.
    pub planner: Arc<dyn Planner>,
    /// Store.
    pub store: Arc<dyn Store>,
    /// The term of leading, where there was an election.
    pub seat: Option<Seat>,
    /// Metrics.
    pub metrics: SchedulerMetrics,
    /// One writes token reserves at a time, so that the newest are what the store holds.
    pub reserving: tokio::sync::Mutex<()>,
    /// Wakes the loops.
    pub wake: Notify,
    /// Newest plan.
    pub plans: watch::Sender<Option<Arc<Plan>>>,
    /// Newest routes.
    pub routes: watch::Sender<Option<Arc<RouteTable>>>,
    /// Drains.
    pub drains: watch::Sender<Arc<Drains>>,
    /// Observations.
    pub observations: watch::Sender<Arc<v1::Observations>>,
    /// Wall time and instant of the start: wall time then goes on without leaps.
    pub started: (Timestamp, Instant),
}

impl Shared {
    /// Wall time.
    pub fn wall_now(&self) -> Timestamp {
        let (at, instant) = self.started;
        SignedDuration::try_from(instant.elapsed()).ok().and_then(|d| at.checked_add(d).ok()).unwrap_or(at)
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.clock.to_virtual(self.wall_now())
    }

    /// Virtual time in seconds.
    pub fn now_seconds(&self) -> f64 {
        seconds(self.now())
    }

    /// Whether what is granted now cannot be granted by another scheduler too.
    pub fn leads(&self) -> bool {
        self.seat.as_ref().is_none_or(Seat::holds)
    }

    /// Asks for a new plan.
    pub fn request_plan(&self, state: &mut State, why: String, urgent: bool) {
        state.ask_for_plan(Due { why, urgent });
        self.wake.notify_one();
    }
}
