//! The scheduler as the operator sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::{ClusterSnapshot, Plan, PoolId, ReplicaId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;

/// Longest rest after a snapshot was pushed.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Why the scheduler could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum BrainError {
    /// It cannot be reached.
    #[error("failed to reach the scheduler: {0}")]
    Unreachable(String),
    /// It answered with an error.
    #[error("the scheduler refused {request}: {reason}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Its reason.
        reason: String,
    },
    /// Its answer makes no sense.
    #[error("the scheduler sent an unreadable {what}: {reason}")]
    Unreadable {
        /// What it was.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// How replicas of a new engine configuration serve beside those of the older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryReport {
    /// Digest of the new configuration.
    pub revision: String,
    /// Where the judgement stands.
    pub standing: Standing,
    /// Why, for people.
    pub text: String,
}

/// What agents saw of one pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolObservation {
    /// Arrivals, requests per second.
    pub rps: f64,
    /// Time to first token at the objective's percentile, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Time per output token at the objective's percentile, milliseconds.
    pub tpot_ms: Option<f64>,
    /// End to end at the objective's percentile, milliseconds.
    pub e2e_ms: Option<f64>,
    /// Share of finished requests that met every objective, 0–1.
    pub attainment: Option<f64>,
    /// The judgement of a rollout under way.
    pub canary: Option<CanaryReport>,
    /// How the speed of replicas has come to differ from predictions (empty: it does not).
    pub drift: String,
}

/// What agents saw.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observations {
    /// By pool.
    pub pools: BTreeMap<PoolId, PoolObservation>,
    /// Replicas that finished every request they had after a drain was asked for.
    pub drained: BTreeSet<ReplicaId>,
    /// Replicas that hold work and produce nothing.
    pub stalled: BTreeSet<ReplicaId>,
    /// Agents connected.
    pub agents: u32,
    /// LoRA adapters, by the model name in requests.
    pub adapters: BTreeMap<String, AdapterObservation>,
}

/// Where a LoRA adapter is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdapterObservation {
    /// Replicas that are to hold it.
    pub placed: BTreeSet<ReplicaId>,
    /// Replicas whose engine says that it does.
    pub held: BTreeSet<ReplicaId>,
    /// Why one could not load it (empty: none failed).
    pub failure: String,
    /// Bytes of its files, where they were measured.
    pub bytes: Option<u64>,
    /// Requests that found it loaded.
    pub hits: u64,
    /// Requests that did not.
    pub misses: u64,
    /// By replica: whether its engine holds it, else the node's cache does; and what its last load took, ms.
    pub places: BTreeMap<ReplicaId, (bool, Option<u64>)>,
}

/// One message from the scheduler.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetUpdate {
    /// A new plan.
    Plan(Arc<Plan>),
    /// New observations.
    Observations(Arc<Observations>),
}

/// Where plans come from.
pub trait Brain: Send + Sync + 'static {
    /// Hands over the cluster's state; `sequence` grows with each call.
    fn push(
        &self,
        snapshot: Arc<ClusterSnapshot>,
        sequence: u64,
    ) -> impl Future<Output = Result<(), BrainError>> + Send;

    /// The current plan at once, then every change. The stream ends or fails when the connection does.
    fn watch(
        &self,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<FleetUpdate, BrainError>>, BrainError>> + Send;
}

/// The latest of what the scheduler said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knowledge {
    /// Current plan.
    pub plan: Option<Arc<Plan>>,
    /// Latest observations; empty while the scheduler is away.
    pub observations: Arc<Observations>,
    /// Whether the scheduler is connected.
    pub connected: bool,
}

/// Keeps the scheduler informed and the operator's [`Knowledge`] current until cancelled: pushes the newest snapshot when
/// it changes and after each reconnect, and follows updates, retrying both with backoff.
pub(crate) async fn follow<B: Brain>(
    brain: Arc<B>,
    snapshots: watch::Receiver<Option<Arc<ClusterSnapshot>>>,
    knowledge: watch::Sender<Knowledge>,
    seed: u64,
    stop: CancellationToken,
) {
    let (connects, connected) = watch::channel(0_u64);
    tokio::select! {
        () = stop.cancelled() => {}
        () = push_all(&*brain, snapshots, connected, seed) => {}
        () = follow_updates(&*brain, knowledge, connects, seed.wrapping_add(1)) => {}
    }
}

async fn push_all<B: Brain>(
    brain: &B,
    mut snapshots: watch::Receiver<Option<Arc<ClusterSnapshot>>>,
    mut connected: watch::Receiver<u64>,
    seed: u64,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
    // A scheduler that outlives this term of leading, or this process under the same name, must not take what comes now
    // for older than what it has.
    let mut sequence = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        connected.mark_unchanged();
        if let Some(snapshot) = snapshot {
            sequence += 1;
            let began = Instant::now();
            match brain.push(snapshot, sequence).await {
                Ok(()) => {
                    backoff.reset();
                    let took = began.elapsed();
                    debug!(sequence, ?took, "pushed the cluster's snapshot");
                    // A large cluster in motion changes all the time; two thirds of it are left to plans.
                    tokio::time::sleep((2 * took).min(LONGEST_REST)).await;
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    warn!(%error, ?delay, "failed to push the cluster's snapshot; retrying");
                    tokio::time::sleep(delay).await;
                    continue;
                }
            }
        }
        // Wait for news, or for a scheduler that may have forgotten.
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = connected.changed() => if changed.is_err() { return },
        }
    }
}

async fn follow_updates<B: Brain>(
    brain: &B,
    knowledge: watch::Sender<Knowledge>,
    connects: watch::Sender<u64>,
    seed: u64,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
    loop {
        match brain.watch().await {
            Ok(mut updates) => {
                info!("connected to the scheduler");
                connects.send_modify(|n| *n += 1);
                knowledge.send_modify(|k| k.connected = true);
                while let Some(update) = updates.next().await {
                    match update {
                        Ok(FleetUpdate::Plan(plan)) => {
                            backoff.reset();
                            debug!(plan = plan.number, trigger = %plan.trigger, "received a plan");
                            knowledge.send_modify(|k| k.plan = Some(plan));
                        }
                        Ok(FleetUpdate::Observations(observations)) => {
                            backoff.reset();
                            knowledge.send_if_modified(|k| {
                                let changed = k.observations != observations;
                                k.observations = observations;
                                changed
                            });
                        }
                        Err(error) => {
                            warn!(%error, "lost the scheduler's stream");
                            break;
                        }
                    }
                }
                // What was observed is no longer true by itself; the plan stays in force.
                knowledge.send_modify(|k| {
                    k.connected = false;
                    k.observations = Arc::default();
                });
            }
            Err(error) => warn!(%error, "failed to reach the scheduler; the last plan stays in force"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
