//! Cold starts as they were seen: a pool's own figure from its spec is only the prior until a replica has started.

use std::collections::BTreeMap;

use plimsoll_fleet::{ClusterSnapshot, PoolId};

/// A new measurement replaces the one in force if it differs by more than this share: plans must not follow noise.
const MATERIAL: f64 = 0.25;
/// Shortest cold start believed, seconds.
const SHORTEST_SECONDS: f64 = 1.0;

/// Measured cold starts by pool, seconds from a replica's creation to its first readiness.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ColdStarts {
    seconds: BTreeMap<PoolId, f64>,
}

impl ColdStarts {
    /// Takes the median over each pool's replicas that have become ready. Whether anything changed materially. O(replicas).
    pub fn learn(&mut self, snapshot: &ClusterSnapshot) -> bool {
        let mut starts: BTreeMap<&PoolId, Vec<f64>> = BTreeMap::new();
        for replica in &snapshot.replicas {
            if let Some(ready_at) = replica.ready_at {
                let seconds = ready_at.duration_since(replica.created_at).as_secs_f64();
                if seconds.is_finite() && seconds >= 0.0 {
                    starts.entry(&replica.pool).or_default().push(seconds.max(SHORTEST_SECONDS));
                }
            }
        }
        let mut changed = false;
        for (pool, mut seconds) in starts {
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            let old = self.seconds.get(pool).copied();
            if old.is_none_or(|old| (median / old - 1.0).abs() > MATERIAL) {
                self.seconds.insert(pool.clone(), median);
                changed = true;
            }
        }
        let before = self.seconds.len();
        self.seconds.retain(|id, _| snapshot.pools.iter().any(|p| &p.id == id));
        changed || self.seconds.len() != before
    }

    /// Puts what was measured in the place of the specs' priors.
    pub fn apply(&self, snapshot: &mut ClusterSnapshot) {
        for pool in &mut snapshot.pools {
            if let Some(seconds) = self.seconds.get(&pool.id) {
                pool.engine.cold_start_seconds = *seconds;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_fleet::{ReplicaId, ReplicaPhase, ReplicaStatus, Role, Shape};

    fn snapshot(starts: &[Option<i64>]) -> ClusterSnapshot {
        let created_at = jiff::Timestamp::from_second(1_000).unwrap();
        ClusterSnapshot {
            replicas: starts
                .iter()
                .enumerate()
                .map(|(i, seconds)| ReplicaStatus {
                    id: ReplicaId::new(format!("a-{i}")).unwrap(),
                    pool: "default/a".parse().unwrap(),
                    shape: Shape {
                        variant: "fp8".into(),
                        accelerator: "l4".into(),
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
                    gated: false,
                })
                .collect(),
            ..ClusterSnapshot::default()
        }
    }

    #[test]
    fn the_median_of_what_was_seen_counts_and_noise_does_not() {
        let seen = |starts: &[Option<i64>]| ClusterSnapshot {
            pools: vec![crate::testing::pool("a", None)],
            ..snapshot(starts)
        };
        let mut cold = ColdStarts::default();
        assert!(!cold.learn(&seen(&[None])), "nothing has started yet");
        assert!(cold.learn(&seen(&[Some(40), Some(44), Some(400)])));
        assert!(!cold.learn(&seen(&[Some(46)])), "noise");
        let mut taken = seen(&[]);
        cold.apply(&mut taken);
        assert_eq!(taken.pools[0].engine.cold_start_seconds, 44.0);
        assert!(cold.learn(&snapshot(&[])), "a pool that is gone is forgotten");
        assert_eq!(cold, ColdStarts::default());
    }
}
