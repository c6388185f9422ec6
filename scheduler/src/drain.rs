//! Which replicas stop taking requests, and which may be deleted.
//!
//! A replica that the plan dropped goes on serving until the plan's own replicas can carry the load, unless one of those
//! waits for its accelerators. Once it drains it stays draining, and it is drained when its agent says that every
//! request it had is finished.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::served_rps;
use plimsoll_fleet::pool::{EngineKind, Mode};
use plimsoll_fleet::rollout::Gate;
use plimsoll_fleet::{
    ClusterSnapshot, NodeName, Plan, PoolId, ReplicaAssignment, ReplicaId, ReplicaPhase, ReplicaStatus, Role,
    Shape,
};
use serde::{Deserialize, Serialize};

use crate::plan::inventory::gpus_by_node;

/// What is remembered between decisions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DrainState {
    /// Draining replicas and since when (virtual seconds).
    pub draining: BTreeMap<ReplicaId, f64>,
    /// Replicas whose agent said that they hold nothing more.
    pub acknowledged: BTreeSet<ReplicaId>,
    /// Replicas that may be deleted.
    pub drained: BTreeSet<ReplicaId>,
}

/// What a decision depends on.
#[derive(Debug)]
pub struct DrainInput<'a> {
    /// The plan in force.
    pub plan: &'a Plan,
    /// The cluster.
    pub snapshot: &'a ClusterSnapshot,
    /// Rate by pool now, requests per second.
    pub rps: &'a BTreeMap<PoolId, f64>,
    /// Load lines by pool and shape as last planned, requests per second a replica.
    pub load_lines: &'a BTreeMap<(PoolId, Shape), f64>,
    /// Nodes whose agent reports.
    pub agents: &'a BTreeSet<NodeName>,
    /// Time after which a draining replica that no agent watches counts as drained, seconds.
    pub unwatched_seconds: f64,
    /// Now, virtual seconds.
    pub now: f64,
}

/// Brings the state up to date.
pub fn decide(state: &mut DrainState, input: &DrainInput<'_>) {
    let exists: BTreeMap<&ReplicaId, &ReplicaStatus> =
        input.snapshot.replicas.iter().map(|r| (&r.id, r)).collect();
    let wanted: BTreeSet<&ReplicaId> =
        input.plan.pools.iter().flat_map(|p| p.replicas.iter().map(|r| &r.id)).collect();
    // Only what still exists and is not wanted again.
    state.draining.retain(|id, _| exists.contains_key(id) && !wanted.contains(id));
    state.acknowledged.retain(|id| exists.contains_key(id));
    state.drained.retain(|id| exists.contains_key(id) && !wanted.contains(id));

    let mut dropped: BTreeMap<&PoolId, Vec<&ReplicaStatus>> = BTreeMap::new();
    for replica in input.snapshot.replicas.iter().filter(|r| !wanted.contains(&r.id)) {
        // What Plimsoll only advises on, or does not run, it does not stop.
        let advised = input.snapshot.pools.iter().any(|p| {
            p.id == replica.pool && (p.mode == Mode::Advise || p.engine.kind == EngineKind::External)
        });
        // A pool that exists but is not planned yet keeps what it has.
        let unplanned = input.plan.pool(&replica.pool).is_none()
            && input.snapshot.pools.iter().any(|p| p.id == replica.pool);
        if !advised && !unplanned {
            dropped.entry(&replica.pool).or_default().push(replica);
        }
    }
    for (pool, replicas) in dropped {
        decide_pool(state, input, pool, &replicas, &exists);
    }
}

fn decide_pool(
    state: &mut DrainState,
    input: &DrainInput<'_>,
    pool: &PoolId,
    dropped: &[&ReplicaStatus],
    exists: &BTreeMap<&ReplicaId, &ReplicaStatus>,
) {
    let line = |shape: &Shape| input.load_lines.get(&(pool.clone(), shape.clone())).copied().unwrap_or(0.0);
    let planned = input.plan.pool(pool).map(|p| p.replicas.as_slice()).unwrap_or_default();
    let ready = |id: &ReplicaId| exists.get(id).is_some_and(|r| r.phase == ReplicaPhase::Ready);
    let waiting: Vec<_> = planned.iter().filter(|r| !ready(&r.id)).collect();
    let mut serving: Vec<(&ReplicaId, Role, f64)> =
        planned.iter().filter(|r| ready(&r.id)).map(|r| (&r.id, r.shape.role, line(&r.shape))).collect();
    // Dropped replicas that still take requests carry load too.
    let open = |r: &&&ReplicaStatus| r.phase == ReplicaPhase::Ready && !state.draining.contains_key(&r.id);
    serving.extend(dropped.iter().filter(open).map(|r| (&r.id, r.shape.role, line(&r.shape))));
    let rps = input.rps.get(pool).copied().unwrap_or(0.0);
    // While a canary is judged, somebody has to serve what it is compared with.
    let judged = input.snapshot.pools.iter().any(|p| &p.id == pool && p.rollout.gate == Gate::Canary);
    let compared = !judged || planned.iter().any(|r| exists.get(&r.id).is_some_and(|r| r.outdated));

    for replica in dropped {
        let never_served = replica.ready_at.is_none()
            && matches!(replica.phase, ReplicaPhase::Pending | ReplicaPhase::Starting);
        if never_served || replica.phase == ReplicaPhase::Failed {
            state.drained.insert(replica.id.clone());
            continue;
        }
        if !state.draining.contains_key(&replica.id) {
            // What others prefill or decode counts only as far as there is another for the rest.
            let others = serving.iter().filter(|(id, _, _)| **id != replica.id);
            let left = served_rps(others.map(|(_, role, rps)| (*role, *rps)));
            let blocks = waiting.iter().any(|w| is_in_the_way(input.snapshot, replica, w));
            // A successor has to show that it serves before the replica it takes over from stops.
            let spare = left >= rps && !replica.outdated;
            let over = waiting.is_empty() && (compared || !replica.outdated);
            let go = replica.phase == ReplicaPhase::Draining || over || blocks || spare;
            if !go {
                continue;
            }
            serving.retain(|(id, _, _)| **id != replica.id);
            state.draining.insert(replica.id.clone(), input.now);
        }
        let since = state.draining.get(&replica.id).copied().unwrap_or(input.now);
        let watched = replica.nodes.first().is_some_and(|n| input.agents.contains(n));
        if state.acknowledged.contains(&replica.id)
            || (!watched && input.now - since >= input.unwatched_seconds)
        {
            state.drained.insert(replica.id.clone());
        }
    }
}

/// Whether a wanted replica that has no place yet lacks room on a node that this one is on.
fn is_in_the_way(snapshot: &ClusterSnapshot, replica: &ReplicaStatus, wanted: &ReplicaAssignment) -> bool {
    let bound = snapshot.replicas.iter().any(|r| r.id == wanted.id && !r.nodes.is_empty());
    !bound
        && gpus_by_node(&wanted.shape, &wanted.nodes).into_iter().any(|(name, needed)| {
            let held: u32 = snapshot
                .replicas
                .iter()
                .flat_map(|r| gpus_by_node(&r.shape, &r.nodes))
                .filter(|(n, _)| *n == name)
                .map(|(_, gpus)| gpus)
                .sum();
            let free = snapshot
                .nodes
                .iter()
                .find(|n| &n.name == name)
                .map_or(0, |n| n.allocatable_gpus.saturating_sub(n.foreign_gpus).saturating_sub(held));
            replica.nodes.contains(name) && free < needed
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    struct World {
        plan: Plan,
        snapshot: ClusterSnapshot,
        state: DrainState,
        rps: f64,
        agents: BTreeSet<NodeName>,
    }

    impl World {
        fn new(planned: &[(&str, &str)], running: &[(&str, &str, ReplicaPhase)]) -> Self {
            let replicas = planned.iter().map(|(id, on)| assignment(id, on)).collect();
            Self {
                plan: plan(2, vec![pool_plan("default/a", replicas, 1.0)]),
                snapshot: snapshot(
                    vec![pool("default/a", None)],
                    vec![node("n1", 4), node("n2", 4)],
                    running.iter().map(|(id, on, phase)| replica(id, "default/a", on, *phase)).collect(),
                ),
                state: DrainState::default(),
                rps: 1.0,
                agents: ["n1", "n2"].map(|n| NodeName::new(n).unwrap()).into(),
            }
        }

        fn decide(&mut self, now: f64) -> (Vec<String>, Vec<String>) {
            let id: PoolId = "default/a".parse().unwrap();
            self.decide_with(&[((id, shape()), 2.0)].into(), now)
        }

        fn decide_with(
            &mut self,
            load_lines: &BTreeMap<(PoolId, Shape), f64>,
            now: f64,
        ) -> (Vec<String>, Vec<String>) {
            let id: PoolId = "default/a".parse().unwrap();
            decide(
                &mut self.state,
                &DrainInput {
                    plan: &self.plan,
                    snapshot: &self.snapshot,
                    rps: &[(id, self.rps)].into(),
                    load_lines,
                    agents: &self.agents,
                    unwatched_seconds: 300.0,
                    now,
                },
            );
            let names = |ids: Vec<&ReplicaId>| ids.into_iter().map(ToString::to_string).collect();
            (names(self.state.draining.keys().collect()), names(self.state.drained.iter().collect()))
        }
    }

    use ReplicaPhase::{Failed, Ready, Starting};

    #[test]
    fn a_dropped_replica_drains_and_waits_for_its_agent() {
        let mut w = World::new(&[("a-1", "n1")], &[("a-1", "n1", Ready), ("a-2", "n2", Ready)]);
        assert_eq!(w.decide(0.0), (vec!["a-2".into()], vec![]));
        assert_eq!(w.decide(1e6), (vec!["a-2".into()], vec![]), "its agent lives: it will say");
        w.state.acknowledged.insert(ReplicaId::new("a-2").unwrap());
        assert_eq!(w.decide(1e6).1, ["a-2"]);
        w.snapshot.replicas.pop();
        assert_eq!(w.decide(1e6), (vec![], vec![]));
    }

    #[test]
    fn an_old_replica_serves_until_the_new_ones_can() {
        let running = [("old-1", "n2", Ready), ("a-1", "n1", Starting)];
        let mut w = World::new(&[("a-1", "n1")], &running);
        assert_eq!(w.decide(0.0).0, Vec::<String>::new());
        w.snapshot.replicas[1].phase = Ready;
        assert_eq!(w.decide(1.0).0, ["old-1"]);
    }

    #[test]
    fn what_is_not_needed_goes_before_all_new_ones_are_ready() {
        let running = [
            ("old-1", "n2", Ready),
            ("old-2", "n2", Ready),
            ("a-1", "n1", Starting),
            ("a-2", "n1", Starting),
        ];
        let mut w = World::new(&[("a-1", "n1"), ("a-2", "n1")], &running);
        w.rps = 1.5;
        assert_eq!(w.decide(0.0).0, ["old-1"], "two rps left of four; the second one must stay");
    }

    #[test]
    fn what_serves_whole_stays_until_both_parts_that_take_over_are_there() {
        let running =
            [("old-1", "n2", Ready), ("p", "n1", Ready), ("d", "n1", Starting), ("d-2", "n1", Starting)];
        let mut w = World::new(&[("p", "n1"), ("d", "n1"), ("d-2", "n1")], &running);
        let mut lines = BTreeMap::new();
        let id: PoolId = "default/a".parse().unwrap();
        for role in [Role::Mixed, Role::Prefill, Role::Decode] {
            lines.insert((id.clone(), Shape { role, ..shape() }), 2.0);
        }
        for (i, role) in [(0, Role::Prefill), (1, Role::Decode), (2, Role::Decode)] {
            w.plan.pools[0].replicas[i].shape.role = role;
            w.snapshot.replicas[i + 1].shape.role = role;
        }
        assert_eq!(w.decide_with(&lines, 0.0).0, Vec::<String>::new(), "nobody decodes what p prefills");
        w.snapshot.replicas[2].phase = Ready;
        assert_eq!(w.decide_with(&lines, 1.0).0, ["old-1"]);
    }

    #[test]
    fn a_replica_in_the_way_of_its_successor_goes() {
        let running = [("old-1", "n1", Ready), ("a-1", "n1", Starting)];
        let mut w = World::new(&[("a-1", "n1")], &running);
        w.snapshot.replicas.pop();
        assert_eq!(w.decide(0.0).0, Vec::<String>::new(), "there is room for both");
        w.snapshot.nodes[0].allocatable_gpus = 1;
        assert_eq!(w.decide(1.0).0, ["old-1"]);
    }

    #[test]
    fn the_last_older_replica_serves_on_while_the_canary_is_judged() {
        use ReplicaPhase::Ready;
        let mut w = World::new(&[("b", "n2")], &[("a", "n1", Ready), ("b", "n2", Ready)]);
        w.snapshot.replicas[0].outdated = true;
        w.snapshot.pools[0].rollout.gate = Gate::Canary;
        assert_eq!(w.decide(1.0).0, [""; 0]);
        w.snapshot.pools[0].rollout.gate = Gate::Open;
        assert_eq!(w.decide(2.0).0, ["a"], "it has passed");
        let running = [("a", "n1", Ready), ("b", "n2", Ready), ("c", "n2", Ready)];
        let mut w = World::new(&[("b", "n2"), ("c", "n2")], &running);
        w.snapshot.replicas[0].outdated = true;
        w.snapshot.replicas[1].outdated = true;
        w.snapshot.pools[0].rollout.gate = Gate::Canary;
        assert_eq!(w.decide(1.0).0, ["a"], "b is there to compare with");
    }

    #[test]
    fn an_outdated_replica_outlives_spare_capacity_until_its_successor_serves() {
        let running = [("old-1", "n2", Ready), ("a-1", "n1", Starting), ("a-2", "n2", Ready)];
        let mut w = World::new(&[("a-1", "n1"), ("a-2", "n2")], &running);
        w.snapshot.replicas[0].outdated = true;
        w.rps = 0.1;
        assert_eq!(w.decide(0.0).0, Vec::<String>::new());
        w.snapshot.replicas[1].phase = Failed;
        assert_eq!(w.decide(1.0).0, Vec::<String>::new());
        w.snapshot.replicas[1].phase = Ready;
        assert_eq!(w.decide(2.0).0, ["old-1"]);
    }

    #[test]
    fn what_never_served_or_failed_needs_no_drain() {
        let running = [("a-1", "n1", Ready), ("a-2", "n1", Starting), ("a-3", "n2", Failed)];
        let mut w = World::new(&[("a-1", "n1")], &running);
        assert_eq!(w.decide(0.0), (vec![], vec!["a-2".into(), "a-3".into()]));
    }

    #[test]
    fn without_an_agent_a_drain_ends_by_time() {
        let mut w = World::new(&[("a-1", "n1")], &[("a-1", "n1", Ready), ("a-2", "n2", Ready)]);
        w.agents.remove(&NodeName::new("n2").unwrap());
        assert_eq!(w.decide(0.0).1, Vec::<String>::new());
        assert_eq!(w.decide(301.0).1, ["a-2"]);
    }

    #[test]
    fn a_replica_that_is_wanted_again_stops_draining() {
        let mut w = World::new(&[("a-1", "n1")], &[("a-1", "n1", Ready), ("a-2", "n2", Ready)]);
        w.decide(0.0);
        w.plan.pools[0].replicas.push(assignment("a-2", "n2"));
        assert_eq!(w.decide(1.0), (vec![], vec![]));
    }

    #[test]
    fn advice_and_pools_not_planned_yet_touch_nothing() {
        let mut w = World::new(&[], &[("a-1", "n1", Ready)]);
        w.snapshot.pools[0].mode = Mode::Advise;
        assert_eq!(w.decide(0.0), (vec![], vec![]));
        w.snapshot.pools[0].mode = Mode::Enforce;
        w.plan.pools.clear();
        assert_eq!(w.decide(0.0), (vec![], vec![]));
        w.snapshot.pools.clear();
        assert_eq!(w.decide(0.0).0, ["a-1"], "its pool is deleted");
    }
}
