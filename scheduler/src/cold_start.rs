//! Cold starts as they were seen, by pool and accelerator class: a pool's own figure from its spec is only the prior until a
//! replica has started there.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use plimsoll_fleet::{ClusterSnapshot, PoolId, ReplicaId};
use serde::{Deserialize, Serialize};

/// A new estimate replaces the one in force if it differs by more than this share: plans must not follow noise.
const MATERIAL: f64 = 0.25;
/// Shortest and longest cold start believed, seconds.
const BELIEVED_SECONDS: (f64, f64) = (1.0, 86_400.0);
/// Starts that an estimate is the median of, the newest: an image or cache that has changed since counts for what it is now.
const STARTS_KEPT: usize = 21;

/// Measured cold starts by pool and accelerator class, seconds from a replica's creation to its first readiness.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ColdStarts {
    pools: BTreeMap<PoolId, BTreeMap<String, Starts>>,
}

/// The starts of one pool on one accelerator class.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Starts {
    /// The newest, in order.
    newest: Vec<Start>,
    /// The estimate in force, seconds (0: none yet).
    seconds: f64,
}

/// One replica's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Start {
    ready_at: Timestamp,
    replica: ReplicaId,
    seconds: f64,
}

impl Starts {
    /// Counts a replica's start, once however often it is seen.
    fn count(&mut self, start: Start) {
        let at = |s: &Start| (s.ready_at, s.replica.clone());
        if let Err(place) = self.newest.binary_search_by_key(&at(&start), at) {
            self.newest.insert(place, start);
            self.newest.drain(..self.newest.len().saturating_sub(STARTS_KEPT));
        }
    }

    /// Puts the median in force if it differs enough; whether it did. Of three starts or more, one that hung or found everything cached
    /// moves nothing.
    fn settle(&mut self) -> bool {
        let mut seconds: Vec<f64> = self.newest.iter().map(|s| s.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let Some(median) = seconds.get(seconds.len() / 2).copied() else { return false };
        let differs = self.seconds <= 0.0 || (median / self.seconds - 1.0).abs() > MATERIAL;
        if differs {
            self.seconds = median;
        }
        differs
    }
}

impl ColdStarts {
    /// Takes in the replicas that have become ready. Whether an estimate changed materially. O(replicas × log of starts kept).
    pub fn learn(&mut self, snapshot: &ClusterSnapshot) -> bool {
        let pools: BTreeSet<&PoolId> = snapshot.pools.iter().map(|p| &p.id).collect();
        for replica in snapshot.replicas.iter().filter(|r| pools.contains(&r.pool)) {
            let Some(ready_at) = replica.ready_at else { continue };
            let seconds = ready_at.duration_since(replica.created_at).as_secs_f64();
            if seconds >= 0.0 {
                let of_pool = self.pools.entry(replica.pool.clone()).or_default();
                let of_class = of_pool.entry(replica.shape.accelerator.clone()).or_default();
                let seconds = seconds.clamp(BELIEVED_SECONDS.0, BELIEVED_SECONDS.1);
                of_class.count(Start { ready_at, replica: replica.id.clone(), seconds });
            }
        }
        let before = self.pools.len();
        self.pools.retain(|id, _| pools.contains(id));
        let mut changed = self.pools.len() != before;
        for starts in self.pools.values_mut().flat_map(BTreeMap::values_mut) {
            changed |= starts.settle();
        }
        changed
    }

    /// Puts what was measured beside the specs' priors. Classes on which nothing has started yet have none.
    pub fn apply(&self, snapshot: &mut ClusterSnapshot) {
        for pool in &mut snapshot.pools {
            let measured = self.pools.get(&pool.id).into_iter().flatten();
            pool.engine.measured_cold_start_seconds =
                measured.map(|(class, starts)| (class.clone(), starts.seconds)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_fleet::{ReplicaPhase, ReplicaStatus, Role, Shape};

    /// A pool whose replicas were made a minute apart and took so long: number, class, seconds (`None`: not ready yet).
    fn seen(starts: &[(i64, &str, Option<i64>)]) -> ClusterSnapshot {
        let replica = |(i, class, seconds): &(i64, &str, Option<i64>)| {
            let created_at = Timestamp::from_second(1_000 + 60 * i).unwrap();
            ReplicaStatus {
                id: ReplicaId::new(format!("a-{i}")).unwrap(),
                pool: "default/a".parse().unwrap(),
                shape: Shape {
                    variant: "fp8".into(),
                    accelerator: (*class).into(),
                    tensor_parallel: 1,
                    pipeline_parallel: 1,
                    data_parallel: 1,
                    expert_parallel: 1,
                    role: Role::Mixed,
                },
                nodes: Vec::new(),
                phase: ReplicaPhase::Ready,
                address: None,
                plan: 1,
                since: created_at,
                created_at,
                ready_at: seconds.map(|s| created_at + jiff::SignedDuration::from_secs(s)),
                message: String::new(),
                outdated: false,
                revision: String::new(),
                ended: false,
                adapter_room: None,
                gated: false,
            }
        };
        ClusterSnapshot {
            pools: vec![crate::testing::pool("a", None)],
            replicas: starts.iter().map(replica).collect(),
            ..ClusterSnapshot::default()
        }
    }

    /// Seconds on an L4, on an H100, and wherever it may be.
    fn expected(cold: &ColdStarts) -> (f64, f64, f64) {
        let mut taken = seen(&[]);
        taken.pools[0].engine.cold_start_seconds = 60.0;
        cold.apply(&mut taken);
        let engine = &taken.pools[0].engine;
        let on = |class| engine.cold_start_seconds_on(class);
        (on("l4"), on("h100"), engine.expected_cold_start_seconds())
    }

    #[test]
    fn each_class_has_the_median_of_what_was_seen_there_and_the_stated_figure_until_then() {
        let mut cold = ColdStarts::default();
        assert!(!cold.learn(&seen(&[(0, "l4", None)])), "nothing has started yet");
        assert_eq!(expected(&cold), (60.0, 60.0, 60.0));
        assert!(cold.learn(&seen(&[(0, "l4", Some(240)), (1, "l4", Some(250)), (2, "l4", Some(9000))])));
        assert_eq!(expected(&cold), (250.0, 60.0, 250.0));
        assert!(cold.learn(&seen(&[(3, "h100", Some(20))])));
        assert_eq!(expected(&cold), (250.0, 20.0, 250.0));
        assert!(!cold.learn(&seen(&[(4, "h100", Some(22)), (5, "h100", Some(23))])), "noise");
        assert!(cold.learn(&ClusterSnapshot::default()), "a pool that is gone is forgotten");
        assert_eq!(cold, ColdStarts::default());
    }

    #[test]
    fn a_start_counts_once_and_old_ones_give_way_in_whatever_order_they_are_seen() {
        let all: Vec<_> = (0..60).map(|i| (i, "l4", Some(if i < 30 { 30 } else { 300 }))).collect();
        let mut cold = ColdStarts::default();
        let first = seen(&all[..30]);
        assert!(cold.learn(&first));
        let known = cold.clone();
        assert!(!cold.learn(&first) && cold == known, "seen again");
        let mut turned = seen(&all);
        turned.replicas.reverse();
        assert!(cold.learn(&turned));
        assert_eq!(expected(&cold).0, 300.0);
        let mut at_once = ColdStarts::default();
        at_once.learn(&seen(&all));
        assert_eq!(at_once, cold);
        // What is kept survives a restart.
        let text = serde_json::to_string(&cold).unwrap();
        assert_eq!(serde_json::from_str::<ColdStarts>(&text).unwrap(), cold);
    }
}
