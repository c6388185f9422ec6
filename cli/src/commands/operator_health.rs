//! What the operator's probes and metrics say, seen from around it: its talks with the scheduler, and the Lease.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use plimsoll_fleet::{ClusterSnapshot, ReplicaPhase};
use plimsoll_operator::{Brain, BrainError, FleetUpdate, OperatorConfig};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::health::{Opinion, Watched};

/// How often the Lease is looked at; each replica adds one request to the API in that time.
const LEASE_INTERVAL: Duration = Duration::from_secs(5);

/// Label of the replicas' gauge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabel {
    phase: &'static str,
}

/// `plimsoll_operator_*`; clones share the series.
#[derive(Debug, Clone, Default)]
pub struct OperatorMetrics {
    leading: Gauge,
    scheduler_connected: Gauge,
    snapshots: Counter,
    snapshot_failures: Counter,
    plans: Counter,
    plan_number: Gauge,
    pools: Gauge,
    nodes: Gauge,
    replicas: Family<PhaseLabel, Gauge>,
}

impl OperatorMetrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("plimsoll_operator");
        r.register("leading", "1 if this instance holds the Lease", m.leading.clone());
        r.register(
            "scheduler_connected",
            "1 while the scheduler's stream of plans is open",
            m.scheduler_connected.clone(),
        );
        r.register("snapshots", "Snapshots of the cluster handed to the scheduler", m.snapshots.clone());
        r.register(
            "snapshot_failures",
            "Snapshots that the scheduler did not take; each is tried again",
            m.snapshot_failures.clone(),
        );
        r.register("plans", "Plans received", m.plans.clone());
        r.register("plan_number", "Number of the newest plan received", m.plan_number.clone());
        r.register("pools", "ModelPools accepted, in the newest snapshot", m.pools.clone());
        r.register("nodes", "Accelerator nodes in the newest snapshot", m.nodes.clone());
        r.register("replicas", "Replicas in the newest snapshot by phase", m.replicas.clone());
        m
    }

    fn show(&self, snapshot: &ClusterSnapshot) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.pools.set(count(snapshot.pools.len()));
        self.nodes.set(count(snapshot.nodes.len()));
        for phase in [
            ReplicaPhase::Pending,
            ReplicaPhase::Starting,
            ReplicaPhase::Ready,
            ReplicaPhase::Draining,
            ReplicaPhase::Failed,
        ] {
            let of_phase = snapshot.replicas.iter().filter(|r| r.phase == phase).count();
            self.replicas.get_or_create(&PhaseLabel { phase: name(phase) }).set(count(of_phase));
        }
    }
}

fn name(phase: ReplicaPhase) -> &'static str {
    match phase {
        ReplicaPhase::Pending => "pending",
        ReplicaPhase::Starting => "starting",
        ReplicaPhase::Ready => "ready",
        ReplicaPhase::Draining => "draining",
        ReplicaPhase::Failed => "failed",
    }
}

/// A brain whose talks are counted.
pub struct SeenBrain<B> {
    inner: B,
    metrics: OperatorMetrics,
    opinion: Watched,
}

impl<B: Brain> SeenBrain<B> {
    /// Around a brain.
    pub fn new(inner: B, metrics: OperatorMetrics) -> Self {
        Self { inner, metrics, opinion: Watched::shut("the scheduler has not been reached yet") }
    }

    /// Whether the scheduler answers.
    pub fn opinion(&self) -> Watched {
        self.opinion.clone()
    }
}

impl<B: Brain> Brain for SeenBrain<B> {
    async fn push(&self, snapshot: Arc<ClusterSnapshot>, sequence: u64) -> Result<(), BrainError> {
        self.metrics.show(&snapshot);
        let pushed = self.inner.push(snapshot, sequence).await;
        match &pushed {
            Ok(()) => self.metrics.snapshots.inc(),
            Err(_) => self.metrics.snapshot_failures.inc(),
        };
        pushed
    }

    async fn watch(&self) -> Result<BoxStream<'static, Result<FleetUpdate, BrainError>>, BrainError> {
        let updates = self.inner.watch().await.inspect_err(|e| self.opinion.set(Err(e.to_string())))?;
        let open = Open::new(self.metrics.clone(), self.opinion.clone());
        Ok(updates.inspect(move |update| open.saw(update)).boxed())
    }
}

/// As long as it lives, the stream of plans is open.
struct Open {
    metrics: OperatorMetrics,
    opinion: Watched,
}

impl Open {
    fn new(metrics: OperatorMetrics, opinion: Watched) -> Self {
        metrics.scheduler_connected.set(1);
        opinion.set(Ok(()));
        Self { metrics, opinion }
    }

    fn saw(&self, update: &Result<FleetUpdate, BrainError>) {
        if let Ok(FleetUpdate::Plan(plan)) = update {
            self.metrics.plans.inc();
            self.metrics.plan_number.set(i64::try_from(plan.number).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.scheduler_connected.set(0);
        self.opinion.set(Err("the stream of plans has ended; it is being opened again".to_owned()));
    }
}

/// Watches the Lease as any follower would: clocks of different machines are never compared.
#[derive(Clone)]
pub struct LeaseWatch {
    seen: Arc<Mutex<Seen>>,
    patience: Duration,
    identity: String,
}

struct Seen {
    holder: String,
    version: String,
    changed_at: Instant,
    failed: Option<String>,
}

impl LeaseWatch {
    /// Starts looking at it; ends with `stop`.
    pub fn start(
        client: Client,
        config: &OperatorConfig,
        metrics: OperatorMetrics,
        stop: CancellationToken,
    ) -> Self {
        let watch = Self {
            seen: Arc::new(Mutex::new(Seen {
                holder: String::new(),
                version: String::new(),
                changed_at: Instant::now(),
                failed: Some("the Lease has not been read yet".to_owned()),
            })),
            // A leader that died is replaced within one duration; both together are a fault.
            patience: config.lease_duration * 2,
            identity: config.identity.clone(),
        };
        let (api, lease_name) =
            (Api::<Lease>::namespaced(client, &config.lease_namespace), config.lease_name.clone());
        let it = watch.clone();
        tokio::spawn(async move {
            loop {
                match tokio::time::timeout(LEASE_INTERVAL, api.get_opt(&lease_name)).await {
                    Ok(Ok(lease)) => it.saw(lease.as_ref(), Instant::now()),
                    Ok(Err(error)) => it.seen.lock().failed = Some(error.to_string()),
                    Err(_) => it.seen.lock().failed = Some("the Kubernetes API does not answer".to_owned()),
                }
                metrics.leading.set(i64::from(it.leading()));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LEASE_INTERVAL) => {}
                }
            }
        });
        watch
    }

    fn saw(&self, lease: Option<&Lease>, now: Instant) {
        let version = lease.and_then(ResourceExt::resource_version).unwrap_or_default();
        let holder = lease.and_then(|l| l.spec.as_ref()?.holder_identity.clone()).unwrap_or_default();
        let mut seen = self.seen.lock();
        if seen.version != version {
            (seen.version, seen.changed_at) = (version, now);
        }
        seen.holder = holder;
        seen.failed = None;
    }

    /// Whether this instance holds it.
    pub fn leading(&self) -> bool {
        let seen = self.seen.lock();
        seen.holder == self.identity && seen.changed_at.elapsed() < self.patience
    }

    /// Whether the API can be read and somebody leads.
    pub fn opinion(&self) -> Opinion {
        let seen = self.seen.lock();
        let quiet = seen.changed_at.elapsed();
        match &seen.failed {
            Some(why) => Err(format!("cannot read the leader Lease: {why}")),
            None if quiet >= self.patience => {
                Err(format!("nobody has renewed the leader Lease for {} s", quiet.as_secs()))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use kube::api::ObjectMeta;

    struct Fake;

    impl Brain for Fake {
        async fn push(&self, _: Arc<ClusterSnapshot>, sequence: u64) -> Result<(), BrainError> {
            if sequence == 1 { Ok(()) } else { Err(BrainError::Unreachable("gone".to_owned())) }
        }

        async fn watch(&self) -> Result<BoxStream<'static, Result<FleetUpdate, BrainError>>, BrainError> {
            Ok(futures::stream::pending().boxed())
        }
    }

    #[tokio::test]
    async fn talks_with_the_scheduler_are_seen() {
        let metrics = OperatorMetrics::default();
        let brain = SeenBrain::new(Fake, metrics.clone());
        assert!(brain.opinion().get().is_err());
        let stream = brain.watch().await.unwrap();
        assert_eq!((brain.opinion().get(), metrics.scheduler_connected.get()), (Ok(()), 1));
        drop(stream);
        assert!(brain.opinion().get().unwrap_err().contains("ended"));
        assert_eq!(metrics.scheduler_connected.get(), 0);
        brain.push(Arc::default(), 1).await.unwrap();
        brain.push(Arc::default(), 2).await.unwrap_err();
        assert_eq!((metrics.snapshots.get(), metrics.snapshot_failures.get()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_nobody_renews_shuts_the_gate() {
        let watch = LeaseWatch {
            seen: Arc::new(Mutex::new(Seen {
                holder: String::new(),
                version: String::new(),
                changed_at: Instant::now(),
                failed: Some("not read".to_owned()),
            })),
            patience: Duration::from_secs(30),
            identity: "me".to_owned(),
        };
        assert!(watch.opinion().unwrap_err().contains("not read"));
        let lease = |version: &str| Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec { holder_identity: Some("me".to_owned()), ..LeaseSpec::default() }),
        };
        watch.saw(Some(&lease("1")), Instant::now());
        assert!(watch.opinion().is_ok() && watch.leading());
        tokio::time::advance(Duration::from_secs(29)).await;
        watch.saw(Some(&lease("2")), Instant::now());
        tokio::time::advance(Duration::from_secs(29)).await;
        watch.saw(Some(&lease("2")), Instant::now());
        assert!(watch.opinion().is_ok());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(watch.opinion().unwrap_err().contains("31 s"));
        assert!(!watch.leading());
    }
}
