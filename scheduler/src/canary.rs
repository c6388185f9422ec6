//! The judgement of new engine configurations, for every pool that rolls one out: which replicas count on which side, and
//! how far each rollout may go. The rule itself is [`plimsoll_fleet::canary`].

use std::collections::BTreeMap;

use plimsoll_fleet::canary::{Canary, CanaryPolicy, Side, Standing};
use plimsoll_fleet::pool::{EngineKind, Mode};
use plimsoll_fleet::rollout::Gate;
use plimsoll_fleet::telemetry::ReplicaTraffic;
use plimsoll_fleet::{ClusterSnapshot, ModelPool, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus};
use serde::{Deserialize, Serialize};

/// Judgements by pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Canaries {
    pools: BTreeMap<PoolId, Canary>,
}

/// The policy of a pool whose rollouts are judged.
fn policy(pool: &ModelPool) -> Option<&CanaryPolicy> {
    let runs = pool.mode == Mode::Enforce && pool.engine.kind != EngineKind::External;
    pool.rollout.canary.as_ref().filter(|_| runs)
}

impl Canaries {
    /// Follows the cluster: a judgement begins when a pool has replicas of an older configuration that serve, and ends
    /// with the last of them. O(pools × replicas of pools that roll out).
    pub(crate) fn follow(&mut self, snapshot: &ClusterSnapshot, now: f64) {
        let mut old: BTreeMap<&PoolId, bool> = BTreeMap::new();
        let mut new: BTreeMap<&PoolId, bool> = BTreeMap::new();
        for r in snapshot.replicas.iter().filter(|r| r.phase != ReplicaPhase::Draining) {
            let side = if r.outdated { &mut old } else { &mut new };
            *side.entry(&r.pool).or_default() |= r.phase == ReplicaPhase::Ready;
        }
        let pools: BTreeMap<&PoolId, &ModelPool> = snapshot.pools.iter().map(|p| (&p.id, p)).collect();
        self.pools.retain(|id, canary| {
            pools.get(id).is_some_and(|p| policy(p).is_some() && p.revision == canary.revision)
                && old.contains_key(id)
        });
        for (id, serves) in &old {
            let Some(pool) = pools.get(id).filter(|p| policy(p).is_some()) else { continue };
            if *serves && !self.pools.contains_key(*id) {
                self.pools.insert((*id).clone(), Canary::new(pool.revision.clone()));
            }
            if new.get(id).copied().unwrap_or(false)
                && let Some(canary) = self.pools.get_mut(*id)
            {
                canary.serves(now);
            }
        }
    }

    /// Takes in what an agent saw replicas serve.
    pub(crate) fn observe(&mut self, served: &[ReplicaTraffic], snapshot: &ClusterSnapshot, now: f64) {
        if self.pools.is_empty() || served.is_empty() {
            return;
        }
        let pools: BTreeMap<&PoolId, &CanaryPolicy> =
            snapshot.pools.iter().filter_map(|p| Some((&p.id, policy(p)?))).collect();
        let replicas: BTreeMap<&ReplicaId, &ReplicaStatus> =
            snapshot.replicas.iter().map(|r| (&r.id, r)).collect();
        for counts in served {
            let Some(replica) = replicas.get(&counts.replica) else { continue };
            if let (Some(canary), Some(policy)) =
                (self.pools.get_mut(&replica.pool), pools.get(&replica.pool))
            {
                let side = if replica.outdated { Side::Old } else { Side::New };
                canary.observe(side, counts, policy, now);
            }
        }
    }

    /// Judges every canary by what was seen until now.
    pub(crate) fn judge(&mut self, snapshot: &ClusterSnapshot, now: f64) {
        for pool in &snapshot.pools {
            let (Some(canary), Some(policy)) = (self.pools.get_mut(&pool.id), policy(pool)) else { continue };
            let before = canary.standing;
            let standing = canary.judge(policy, pool.slo_classes.len(), now);
            if standing != before {
                tracing::info!(pool = %pool.id, revision = canary.revision, ?standing, why = canary.text, "canary");
            }
        }
    }

    /// Puts into the pools how far their rollouts may go; whether that changed anything.
    pub(crate) fn apply(&self, snapshot: &mut ClusterSnapshot) -> bool {
        let mut changed = false;
        for pool in &mut snapshot.pools {
            let gate = self.gate(&pool.id);
            changed |= std::mem::replace(&mut pool.rollout.gate, gate) != gate;
        }
        changed
    }

    /// Whether [`Self::apply`] would change anything.
    pub(crate) fn differs(&self, snapshot: &ClusterSnapshot) -> bool {
        snapshot.pools.iter().any(|p| p.rollout.gate != self.gate(&p.id))
    }

    fn gate(&self, pool: &PoolId) -> Gate {
        match self.pools.get(pool).map(|c| c.standing) {
            None | Some(Standing::Passed) => Gate::Open,
            Some(Standing::Watching | Standing::Held) => Gate::Canary,
            Some(Standing::Regressed) => Gate::Closed,
        }
    }

    /// The judgement of a pool's rollout, if there is one.
    pub(crate) fn of(&self, pool: &PoolId) -> Option<&Canary> {
        self.pools.get(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pool, replica, snapshot};
    use plimsoll_fleet::ReplicaPhase::{Failed, Ready, Starting};

    const POLICY: CanaryPolicy = CanaryPolicy {
        replicas: 1,
        min_requests: 30,
        block_seconds: 5.0,
        warm_up_seconds: 0.0,
        tolerance: 0.05,
        deadline_seconds: 600.0,
        hold_without_traffic: false,
    };

    /// Replicas of a pool that rolls out revision `two`: `!` marks outdated ones.
    fn cluster(running: &[(&str, ReplicaPhase)]) -> ClusterSnapshot {
        let mut pool = pool("default/a", None);
        pool.rollout.canary = Some(POLICY);
        pool.revision = "two".to_owned();
        let running = running.iter().map(|(id, phase)| {
            let mut r = replica(id.trim_start_matches('!'), "default/a", "n1", *phase);
            r.outdated = id.starts_with('!');
            r
        });
        snapshot(vec![pool], vec![node("n1", 16)], running.collect())
    }

    fn gate(canaries: &Canaries, cluster: &ClusterSnapshot) -> Gate {
        let mut cluster = cluster.clone();
        canaries.apply(&mut cluster);
        cluster.pools[0].rollout.gate
    }

    fn served(id: &str, finished: u64, missed_ttft: u64) -> ReplicaTraffic {
        ReplicaTraffic {
            replica: ReplicaId::new(id).unwrap(),
            slo_class: "default".to_owned(),
            finished,
            failed: 0,
            missed_ttft,
            missed_tpot: 0,
            missed_e2e: 0,
            work: Default::default(),
        }
    }

    /// Seconds until the gate is what it is in the end, of a minute in which `new_missed` of 10 requests a second miss.
    fn minute(new_missed: u64) -> (Canaries, ClusterSnapshot) {
        let (mut canaries, world) =
            (Canaries::default(), cluster(&[("!a", Ready), ("!b", Ready), ("c", Ready)]));
        canaries.follow(&world, 0.0);
        for second in 0..180 {
            let now = f64::from(second);
            canaries.observe(&[served("a", 10, 0), served("c", 10, new_missed)], &world, now);
            canaries.observe(&[served("b", 10, 1), served("stranger", 10, 10)], &world, now);
            canaries.judge(&world, now);
        }
        (canaries, world)
    }

    #[test]
    fn a_rollout_opens_when_the_canary_passes_and_closes_when_it_regresses() {
        let (canaries, world) = minute(0);
        assert_eq!(gate(&canaries, &world), Gate::Open);
        assert_eq!(canaries.of(&world.pools[0].id).unwrap().standing, Standing::Passed);
        let (canaries, world) = minute(9);
        assert_eq!(gate(&canaries, &world), Gate::Closed);
        let text = &canaries.of(&world.pools[0].id).unwrap().text;
        assert!(text.starts_with("TTFT of class default met by 10.0 % of "), "{text}");
        let kept: Canaries = serde_json::from_str(&serde_json::to_string(&canaries).unwrap()).unwrap();
        assert_eq!(kept, canaries, "it outlives a restart");
    }

    #[test]
    fn a_judgement_begins_with_the_rollout_and_ends_with_it() {
        let mut canaries = Canaries::default();
        canaries.follow(&cluster(&[("c", Ready)]), 0.0);
        assert_eq!(canaries, Canaries::default(), "nothing rolls out");
        canaries.follow(&cluster(&[("!a", Failed), ("c", Starting)]), 0.0);
        assert_eq!(canaries, Canaries::default(), "what did not serve is nothing to compare with");
        let world = cluster(&[("!a", Ready), ("c", Starting)]);
        canaries.follow(&world, 0.0);
        assert_eq!(gate(&canaries, &world), Gate::Canary);
        canaries.follow(&cluster(&[("!a", Starting), ("c", Ready)]), 1.0);
        assert_eq!(gate(&canaries, &world), Gate::Canary, "a probe that fails for a moment opens nothing");
        let mut other = world.clone();
        other.pools[0].revision = "three".to_owned();
        canaries.follow(&other, 2.0);
        assert_eq!(canaries.of(&world.pools[0].id).unwrap().revision, "three", "judged from the start");
        canaries.follow(&cluster(&[("c", Ready)]), 3.0);
        assert_eq!(canaries, Canaries::default());
        let mut off = world;
        off.pools[0].rollout.canary = None;
        canaries.follow(&off, 4.0);
        assert_eq!(gate(&canaries, &off), Gate::Open);
    }
}
