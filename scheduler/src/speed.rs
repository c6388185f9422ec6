//! How fast replicas really are: telemetry against predictions, by pool and shape.
//!
//! Every replica's telemetry is gathered into windows of a minute; [`plimsoll_engine::calibrate::Online`] takes them, leaves
//! out those of warm-up and overload, and tells when times have changed for good. A pool whose replicas have become
//! slower is planned with that much more room, and says so, until times are as before. O(reports' replicas) a
//! report, one gradient of the engine model a window.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_engine::calibrate::{Online, OnlineConfig, Prior, Subject, Window};
use plimsoll_fleet::pool::{EngineKind, ObservedSpeed};
use plimsoll_fleet::telemetry::{AgentReport, Work};
use plimsoll_fleet::{ClusterSnapshot, ModelPool, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus, Shape};

use crate::plan::engine_config;

/// Length of a window, virtual seconds.
const WINDOW_SECONDS: f64 = 60.0;
/// Factors are told in steps of this size, so that noise changes no plan.
const STEP: f64 = 0.05;

/// One replica's window so far.
#[derive(Debug, Clone, Default)]
struct Gathering {
    seconds: f64,
    finished: u64,
    work: Work,
    /// Integrals over time of running and waiting requests, and of the KV cache's use.
    running: f64,
    waiting: f64,
    kv_usage: f64,
}

/// What replicas of one pool and shape are followed by.
#[derive(Debug, Clone)]
struct Followed {
    subject: Arc<Subject>,
    online: Online,
}

/// All that is followed.
#[derive(Debug, Clone, Default)]
pub struct Speeds {
    /// Where each replica stands in the snapshot.
    places: BTreeMap<ReplicaId, usize>,
    gathering: BTreeMap<ReplicaId, Gathering>,
    followed: BTreeMap<(PoolId, Shape), Followed>,
}

impl Speeds {
    /// Takes in a report over `interval` virtual seconds.
    pub fn observe(&mut self, report: &AgentReport, interval: f64, snapshot: &ClusterSnapshot, now: f64) {
        for traffic in &report.replicas {
            if serving(&self.places, snapshot, &traffic.replica).is_none() {
                continue;
            }
            let gathering = self.gathering.entry(traffic.replica.clone()).or_default();
            gathering.finished += traffic.finished;
            gathering.work.add(&traffic.work);
        }
        for engine in &report.engines {
            let Some(replica) = serving(&self.places, snapshot, &engine.replica) else { continue };
            let Some(running) = engine.running else { continue };
            let gathering = self.gathering.entry(engine.replica.clone()).or_default();
            gathering.seconds += interval;
            gathering.running += interval * running;
            gathering.waiting += interval * engine.waiting.unwrap_or(0.0);
            gathering.kv_usage += interval * engine.kv_usage.unwrap_or(0.0);
            if gathering.seconds >= WINDOW_SECONDS {
                let whole = std::mem::take(gathering);
                self.window(&whole, replica, snapshot, now);
            }
        }
    }

    fn window(&mut self, whole: &Gathering, replica: &ReplicaStatus, snapshot: &ClusterSnapshot, now: f64) {
        let Some(window) = whole.window(replica, now) else { return };
        let Some(subject) = subject(replica, snapshot) else { return };
        let key = (replica.pool.clone(), replica.shape.clone());
        // Another configuration is another replica: what was learned of the former does not count.
        let same = self.followed.get(&key).is_some_and(|f| *f.subject == subject);
        if !same {
            let subject = Arc::new(subject);
            let calibration = &subject.accelerator.calibration;
            let online = Online::from_prior(
                Arc::clone(&subject),
                &Prior::around(calibration),
                calibration.relative_error,
                OnlineConfig::default(),
            );
            self.followed.insert(key.clone(), Followed { subject, online });
        }
        if let Some(followed) = self.followed.get_mut(&key) {
            let before = followed.online.drifted().is_some();
            let taken = followed.online.observe(&window);
            let drift = followed.online.drifted();
            tracing::debug!(pool = %key.0, shape = %key.1, ?taken, ?drift, "window");
            if drift.is_some() != before {
                tracing::info!(pool = %key.0, shape = %key.1, ?drift, "speed against predictions has changed");
            }
        }
    }

    /// Takes in which replicas there are, and forgets those that are gone. O(replicas) a snapshot.
    pub fn follow(&mut self, snapshot: &ClusterSnapshot) {
        self.places = snapshot.replicas.iter().enumerate().map(|(i, r)| (r.id.clone(), i)).collect();
        let places = &self.places;
        self.gathering.retain(|id, _| places.contains_key(id));
        let there: BTreeSet<(&PoolId, &Shape)> =
            snapshot.replicas.iter().map(|r| (&r.pool, &r.shape)).collect();
        self.followed.retain(|(pool, shape), _| there.contains(&(pool, shape)));
    }

    /// Puts into the pools by how much their replicas' speed has changed; the pools for which that is news.
    pub fn apply(&self, snapshot: &mut ClusterSnapshot) -> Vec<PoolId> {
        let mut changed = Vec::new();
        let mut changes = self.changes();
        for pool in &mut snapshot.pools {
            let observed = changes.remove(&pool.id).unwrap_or_default();
            if pool.observed != observed {
                pool.observed = observed;
                changed.push(pool.id.clone());
            }
        }
        changed
    }

    /// Whether [`Self::apply`] would change anything.
    pub fn differs(&self, snapshot: &ClusterSnapshot) -> bool {
        let changes = self.changes();
        let of = |pool: &PoolId| changes.get(pool).map(Vec::as_slice).unwrap_or_default();
        snapshot.pools.iter().any(|p| p.observed != of(&p.id))
    }

    /// Shapes whose speed has changed for good, by pool.
    fn changes(&self) -> BTreeMap<&PoolId, Vec<ObservedSpeed>> {
        let mut changes: BTreeMap<&PoolId, Vec<ObservedSpeed>> = BTreeMap::new();
        for ((pool, shape), followed) in &self.followed {
            let Some(drift) = followed.online.drifted() else { continue };
            let factor = (drift.factor / STEP).round() * STEP;
            if factor.is_finite() && (factor - 1.0).abs() > 0.5 * STEP {
                changes.entry(pool).or_default().push(ObservedSpeed { shape: shape.clone(), factor });
            }
        }
        changes
    }
}

/// A replica, if it serves.
fn serving<'a>(
    places: &BTreeMap<ReplicaId, usize>,
    snapshot: &'a ClusterSnapshot,
    id: &ReplicaId,
) -> Option<&'a ReplicaStatus> {
    let replica = snapshot.replicas.get(*places.get(id)?)?;
    (replica.id == *id && replica.phase == ReplicaPhase::Ready).then_some(replica)
}

impl Gathering {
    fn window(&self, replica: &ReplicaStatus, now: f64) -> Option<Window> {
        let finished = self.finished as f64;
        if self.finished == 0 || self.work.decode_tokens == 0 {
            return None;
        }
        let age = replica.ready_at.map_or(0.0, |at| now - crate::clock::seconds(at));
        Some(Window {
            engine_age_seconds: (age - self.seconds).max(0.0),
            ended_seconds: now,
            seconds: self.seconds,
            finished,
            running: self.running / self.seconds,
            waiting: self.waiting / self.seconds,
            kv_usage: self.kv_usage / self.seconds,
            input_tokens: self.work.input_tokens as f64 / finished,
            cached_tokens: self.work.cached_tokens as f64 / finished,
            output_tokens: self.work.output_tokens as f64 / finished,
            tpot_ms: 1e-3 * self.work.decode_us as f64 / self.work.decode_tokens as f64,
        })
    }
}

/// What the engine model is asked about: the replica as the planner sees it.
fn subject(replica: &ReplicaStatus, snapshot: &ClusterSnapshot) -> Option<Subject> {
    let pool: &ModelPool = snapshot.pools.iter().find(|p| p.id == replica.pool)?;
    if pool.engine.kind == EngineKind::External || replica.outdated {
        return None;
    }
    Some(Subject {
        engine: pool.engine.kind.as_str().to_owned(),
        engine_version: String::new(),
        architecture: pool.served_architecture(),
        variant: pool.variant(&replica.shape.variant)?.clone(),
        accelerator: snapshot.accelerators.iter().find(|a| a.name == replica.shape.accelerator)?.clone(),
        shape: replica.shape.clone(),
        config: engine_config(pool, &snapshot.adapters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use plimsoll_fleet::Role;
    use plimsoll_fleet::telemetry::{EngineReport, ReplicaTraffic};

    struct World {
        snapshot: ClusterSnapshot,
        speeds: Speeds,
        now: f64,
    }

    impl World {
        fn new() -> Self {
            let replicas = vec![replica("a-1", "default/a", "n1", ReplicaPhase::Ready)];
            let snapshot = snapshot(vec![pool("default/a", Some(1.0))], vec![node("n1", 4)], replicas);
            let mut speeds = Speeds::default();
            speeds.follow(&snapshot);
            Self { snapshot, speeds, now: crate::clock::seconds(at(0)) + 600.0 }
        }

        /// What the model says of the load that [`World::minutes`] puts on the replica.
        fn predicted_tpot_ms(&self) -> f64 {
            let subject = subject(&self.snapshot.replicas[0], &self.snapshot).unwrap();
            let model = subject.model(&subject.accelerator.calibration).unwrap();
            let prefill = 1.0 / 1e3 * model.prefill_ms(500.0, 0.0);
            model.decode_ms(4.0, 600.0) / (1.0 - prefill)
        }

        /// So many minutes of one request a second, each token taking `tpot_ms`.
        fn minutes(&mut self, minutes: usize, tpot_ms: f64) {
            for _ in 0..minutes * 12 {
                self.now += 5.0;
                let work = Work {
                    input_tokens: 5 * 500,
                    cached_tokens: 0,
                    output_tokens: 5 * 200,
                    decode_tokens: 5 * 199,
                    decode_us: (5.0 * 199.0 * 1e3 * tpot_ms) as u64,
                };
                let id = self.snapshot.replicas[0].id.clone();
                let report = AgentReport {
                    replicas: vec![ReplicaTraffic { finished: 5, work, ..traffic(&id) }],
                    engines: vec![engine(&id, 4.0)],
                    ..report("n1", 1, Vec::new())
                };
                self.speeds.observe(&report, 5.0, &self.snapshot, self.now);
            }
        }
    }

    fn traffic(id: &ReplicaId) -> ReplicaTraffic {
        ReplicaTraffic {
            replica: id.clone(),
            slo_class: "default".into(),
            finished: 0,
            failed: 0,
            missed_ttft: 0,
            missed_tpot: 0,
            missed_e2e: 0,
            work: Work::default(),
        }
    }

    fn engine(id: &ReplicaId, running: f64) -> EngineReport {
        EngineReport {
            replica: id.clone(),
            healthy: true,
            stalled: false,
            running: Some(running),
            waiting: Some(0.0),
            kv_usage: Some(0.2),
            outstanding_tokens: 0.0,
            adapters: Vec::new(),
            adapter_failures: Vec::new(),
            adapter_states: Vec::new(),
            drained: false,
        }
    }

    #[test]
    fn replicas_that_become_slower_are_planned_with_more_room_until_they_are_as_before() {
        let mut world = World::new();
        let usual = world.predicted_tpot_ms();
        world.minutes(60, usual);
        assert!(!world.speeds.differs(&world.snapshot), "as predicted");
        world.minutes(40, 1.5 * usual);
        let mut snapshot = world.snapshot.clone();
        assert_eq!(world.speeds.apply(&mut snapshot), [snapshot.pools[0].id.clone()]);
        let [observed] = &snapshot.pools[0].observed[..] else { panic!("{:?}", snapshot.pools[0].observed) };
        assert!((observed.factor - 1.5).abs() <= 0.051, "{observed:?}");
        let pool = &snapshot.pools[0];
        assert!((pool.expected_error(&shape(), 0.1) - 0.65).abs() < 0.06);
        assert!(world.speeds.apply(&mut snapshot).is_empty(), "told once");
        world.minutes(300, usual);
        assert_eq!(world.speeds.apply(&mut snapshot).len(), 1, "all is as before");
        assert!(snapshot.pools[0].observed.is_empty());
    }

    #[test]
    fn a_decode_replica_is_compared_with_decoding_alone() {
        let mut world = World::new();
        let whole = world.predicted_tpot_ms();
        world.snapshot.replicas[0].shape.role = Role::Decode;
        let subject = subject(&world.snapshot.replicas[0], &world.snapshot).unwrap();
        let model = subject.model(&subject.accelerator.calibration).unwrap();
        let usual = model.decode_ms(4.0, 600.0) / (1.0 - 1e-3 * model.prefill_ms(1.0, 499.0));
        assert!(usual < 0.98 * whole, "prompts are computed elsewhere: {usual} {whole}");
        world.minutes(60, usual);
        world.minutes(40, 1.5 * usual);
        let mut snapshot = world.snapshot.clone();
        world.speeds.apply(&mut snapshot);
        let [observed] = &snapshot.pools[0].observed[..] else { panic!("{:?}", snapshot.pools[0].observed) };
        assert!(
            (observed.factor - 1.5).abs() <= 0.051 && observed.shape.role == Role::Decode,
            "{observed:?}"
        );
    }

    #[test]
    fn a_replica_that_is_gone_or_configured_otherwise_is_forgotten() {
        let mut world = World::new();
        let usual = world.predicted_tpot_ms();
        world.minutes(60, usual);
        world.minutes(40, 2.0 * usual);
        assert!(world.speeds.differs(&world.snapshot));
        let mut other = world.speeds.clone();
        world.snapshot.pools[0].max_context_tokens = Some(4096);
        world.minutes(1, 2.0 * usual);
        assert!(!world.speeds.differs(&world.snapshot), "another configuration starts anew");
        world.snapshot.replicas.clear();
        other.follow(&world.snapshot);
        assert!(!other.differs(&world.snapshot));
    }

    #[test]
    fn silence_and_engines_without_figures_say_nothing() {
        let mut world = World::new();
        let id = world.snapshot.replicas[0].id.clone();
        for _ in 0..1000 {
            world.now += 5.0;
            let unknown = EngineReport { running: None, ..engine(&id, 0.0) };
            let reports = [
                AgentReport { engines: vec![engine(&id, 0.0)], ..report("n1", 1, Vec::new()) },
                AgentReport {
                    engines: vec![unknown],
                    replicas: vec![traffic(&id)],
                    ..report("n1", 1, Vec::new())
                },
            ];
            reports.iter().for_each(|r| world.speeds.observe(r, 5.0, &world.snapshot, world.now));
        }
        assert!(!world.speeds.differs(&world.snapshot));
    }
}
