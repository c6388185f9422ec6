//! Who decides: which replicas there are, and where requests may go.

mod plimsoll;
pub mod rules;
mod scaled;

use std::collections::BTreeSet;

use jiff::Timestamp;
use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{ClusterSnapshot, Plan, ReplicaId, RouteTable};

pub use plimsoll::Plimsoll;
pub use scaled::Rules;

/// What a policy has decided so far.
#[derive(Debug, Clone, Copy)]
pub struct Orders<'a> {
    /// The replicas that there should be.
    pub plan: Option<&'a Plan>,
    /// Where requests may go.
    pub routes: Option<&'a RouteTable>,
    /// Replicas that take no new requests.
    pub draining: &'a BTreeSet<ReplicaId>,
    /// Replicas that may be deleted.
    pub drained: &'a BTreeSet<ReplicaId>,
}

/// Decides on the fleet. Times are virtual; it knows nothing but what it is told.
pub trait Policy {
    /// What tables call it.
    fn name(&self) -> String;

    /// The cluster has changed.
    fn snapshot(&mut self, snapshot: ClusterSnapshot, now: Timestamp);

    /// An agent reports.
    fn report(&mut self, report: &AgentReport, now: Timestamp);

    /// A virtual second has passed.
    fn tick(&mut self, now: Timestamp);

    /// What is in force.
    fn orders(&self) -> Orders<'_>;

    /// Changes of the fleet since the last call, and why.
    fn take_records(&mut self) -> Vec<ScalingRecord>;
}
