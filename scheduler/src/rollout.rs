//! Which replicas of an older engine configuration get successors now: [`plimsoll_fleet::rollout`] with the planner's
//! knowledge of where a successor could go.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::rollout::{Rollout, rollout};
use plimsoll_fleet::{ClusterSnapshot, ModelPool, NodeInfo, NodeName, Plan, PoolPlan, ReplicaStatus};

use crate::plan::inventory::{Eligibility, eligibility};

/// The rollout of one pool under the plan it has. A replica on a node that takes no new replicas (cordoned, tainted,
/// faulty) keeps its place: its successor might find none, and it would be gone for nothing.
pub(crate) fn of_pool(
    pool: &ModelPool,
    snapshot: &ClusterSnapshot,
    plan: Option<&PoolPlan>,
    now: Timestamp,
) -> Option<Rollout> {
    // Looked for first: most pools have none, and this is asked for every pool about once a second.
    snapshot.replicas.iter().find(|r| r.outdated && r.pool == pool.id)?;
    let nodes: BTreeMap<&NodeName, &NodeInfo> = snapshot.nodes.iter().map(|n| (&n.name, n)).collect();
    let may_move = |r: &ReplicaStatus| {
        r.nodes.iter().all(|n| nodes.get(n).is_some_and(|node| eligibility(pool, node) == Eligibility::Open))
    };
    let planned = plan.filter(|p| p.uid == pool.uid).map(|p| p.replicas.as_slice()).unwrap_or_default();
    rollout(pool, snapshot, planned, &may_move, now)
}

/// Why a rollout calls for a new plan, if one can take its next step.
pub(crate) fn trigger(snapshot: &ClusterSnapshot, plan: &Plan, now: Timestamp) -> Option<String> {
    snapshot.pools.iter().find_map(|pool| {
        // A plan for an older spec is about to be replaced anyway.
        let planned = plan.pool(&pool.id).filter(|p| p.generation == pool.generation)?;
        let rollout = of_pool(pool, snapshot, Some(planned), now)?;
        let first = rollout.next.first()?;
        Some(format!(
            "rollout of {}: {} of {} replaced, {first} is next",
            pool.id, rollout.replaced, rollout.total
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assignment, at, node, plan, pool, pool_plan, replica, snapshot};
    use plimsoll_fleet::ReplicaPhase::{Draining, Failed, Pending, Ready, Starting};
    use plimsoll_fleet::{ReplicaId, ReplicaPhase};

    /// Planned replicas and those that run: `!` marks outdated ones.
    fn world(planned: &[&str], running: &[(&str, ReplicaPhase)]) -> (ClusterSnapshot, Plan) {
        let replicas = planned.iter().map(|id| assignment(id, "n1")).collect();
        let running = running.iter().map(|(id, phase)| {
            let mut r = replica(id.trim_start_matches('!'), "default/a", "n1", *phase);
            r.outdated = id.starts_with('!');
            r
        });
        let cluster = snapshot(vec![pool("default/a", None)], vec![node("n1", 16)], running.collect());
        (cluster, plan(1, vec![pool_plan("default/a", replicas, 1.0)]))
    }

    fn look(world: &(ClusterSnapshot, Plan), second: i64) -> Rollout {
        of_pool(&world.0.pools[0], &world.0, world.1.pools.first(), at(second)).unwrap()
    }

    fn next(planned: &[&str], running: &[(&str, ReplicaPhase)]) -> Vec<String> {
        look(&world(planned, running), 1).next.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_goes_at_a_time_while_all_others_serve() {
        assert_eq!(next(&["a", "b"], &[("!a", Ready), ("!b", Ready)]), ["a"]);
        assert_eq!(next(&["b", "c"], &[("!a", Ready), ("!b", Ready), ("c", Starting)]), [""; 0]);
        assert_eq!(next(&["b", "c"], &[("!a", Ready), ("!b", Ready)]), [""; 0], "c is not even created");
        assert_eq!(next(&["b", "c"], &[("!a", Draining), ("!b", Ready), ("c", Ready)]), [""; 0]);
        assert_eq!(next(&["b", "c"], &[("!b", Ready), ("c", Ready)]), ["b"]);
        assert_eq!(next(&["b", "c"], &[("!b", Ready), ("c", Failed)]), [""; 0]);
    }

    #[test]
    fn a_quarter_of_a_large_pool_goes_at_a_time() {
        let ids: Vec<String> = (0..9).map(|i| format!("r{i}")).collect();
        let old: Vec<String> = ids.iter().map(|id| format!("!{id}")).collect();
        let planned: Vec<&str> = ids.iter().map(String::as_str).collect();
        let running: Vec<_> = old.iter().map(|id| (id.as_str(), Ready)).collect();
        assert_eq!(next(&planned, &running), ["r0", "r1"]);
    }

    #[test]
    fn no_more_go_than_the_gate_lets_through() {
        use plimsoll_fleet::canary::CanaryPolicy;
        use plimsoll_fleet::rollout::Gate;
        let next = |running: &[(&str, ReplicaPhase)], gate, paused| {
            let planned: Vec<&str> = running.iter().map(|(id, _)| id.trim_start_matches('!')).collect();
            let mut w = world(&planned, running);
            w.0.pools[0].rollout.canary = Some(CanaryPolicy {
                replicas: 2,
                min_requests: 1,
                block_seconds: 5.0,
                warm_up_seconds: 0.0,
                tolerance: 0.05,
                deadline_seconds: 600.0,
                hold_without_traffic: false,
            });
            (w.0.pools[0].rollout.gate, w.0.pools[0].rollout.paused) = (gate, paused);
            look(&w, 1).next.len()
        };
        let old = [("!a", Ready), ("!b", Ready), ("!c", Ready), ("!d", Failed), ("!e", Failed)];
        assert_eq!(next(&old, Gate::Canary, false), 2, "the canaries");
        assert_eq!(next(&old, Gate::Closed, false), 0);
        assert_eq!(next(&old, Gate::Open, true), 0);
        assert_eq!(next(&old, Gate::Open, false), 3);
        let one = [("!a", Ready), ("!b", Ready), ("!c", Ready), ("e", Ready)];
        assert_eq!(next(&one, Gate::Canary, false), 1);
        let two = [("!a", Ready), ("!b", Ready), ("d", Ready), ("e", Ready)];
        assert_eq!(next(&two, Gate::Canary, false), 0);
        assert_eq!(next(&two, Gate::Open, false), 1);
    }

    #[test]
    fn what_serves_nobody_goes_at_once() {
        assert_eq!(
            next(&["a", "b", "c"], &[("!a", Failed), ("!b", Pending), ("!c", Ready)]),
            ["a", "b", "c"]
        );
        assert_eq!(next(&["a", "b", "c"], &[("!a", Failed), ("!b", Ready), ("c", Starting)]), ["a"]);
    }

    #[test]
    fn a_successor_that_does_not_serve_is_named() {
        let mut w = world(&["b", "c"], &[("!a", Ready), ("!b", Ready), ("c", Starting)]);
        w.0.pools[0].engine.cold_start_seconds = 60.0;
        assert_eq!(look(&w, 120).stuck, None);
        let stuck = look(&w, 121).stuck.unwrap();
        assert_eq!(stuck.replica, ReplicaId::new("c").unwrap());
        assert!(stuck.cause.starts_with("not ready 120 s after its creation"), "{}", stuck.cause);
        w.0.replicas[2].ready_at = Some(at(50));
        assert_eq!(look(&w, 121).stuck, None, "it has served; its probe may recover");
        w.0.replicas[2].phase = Failed;
        w.0.replicas[2].message = "ImagePullBackOff: no such image".to_owned();
        let rollout = look(&w, 1);
        assert_eq!(rollout.stuck.unwrap().cause, "ImagePullBackOff: no such image");
        assert_eq!(rollout.held.len(), 1);
        w.0.replicas[1].outdated = false;
        assert_eq!(look(&w, 1).held.len(), 0, "another one serves: it is this replica's own trouble");
    }

    #[test]
    fn a_node_that_is_lost_holds_nothing_up() {
        let mut w = world(&["b", "c"], &[("!a", Draining), ("!b", Ready), ("c", Ready)]);
        assert_eq!(look(&w, 1).next.len(), 0);
        w.0.replicas[0].nodes = vec![NodeName::new("gone").unwrap()];
        assert_eq!(look(&w, 1).next.len(), 1);
    }

    #[test]
    fn a_step_calls_for_a_plan_and_a_pause_does_not() {
        let w = world(&["a", "b"], &[("!a", Ready), ("!b", Ready)]);
        let why = trigger(&w.0, &w.1, at(1)).unwrap();
        assert_eq!(why, "rollout of default/a: 0 of 2 replaced, a is next");
        let w = world(&["b", "c"], &[("!a", Ready), ("!b", Ready), ("c", Starting)]);
        assert_eq!(trigger(&w.0, &w.1, at(1)), None);
        let mut w = world(&["a", "b"], &[("!a", Ready), ("!b", Ready)]);
        w.0.nodes[0].schedulable = false;
        assert_eq!(trigger(&w.0, &w.1, at(1)), None, "cordoned: a successor might find no place");
        w.0.nodes[0].schedulable = true;
        w.0.pools[0].generation = 2;
        assert_eq!(trigger(&w.0, &w.1, at(1)), None, "a plan for the new spec is on its way");
    }
}
