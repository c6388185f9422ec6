//! Replacing replicas of an older engine configuration, step by step, through the planner alone.

use std::collections::BTreeSet;

use plimsoll_fleet::*;

use super::support::*;

/// Three replicas or more of one pool on two nodes, all outdated.
fn outdated(rps: f64) -> World {
    let mut w = World::new(vec![node("n0", "l40s", 8, "a"), node("n1", "l40s", 8, "b")]);
    w.add(pool("chat", "llama-3.1-8b", 800.0, 60.0), demand(vec![class("a", rps, 1200.0, 250.0)]));
    w.snapshot.pools[0].scaling.min_replicas = 3;
    w.run();
    w.snapshot.replicas.iter_mut().for_each(|r| r.outdated = true);
    w
}

fn ids(plan: &Plan) -> BTreeSet<ReplicaId> {
    plan.pools[0].replicas.iter().map(|r| r.id.clone()).collect()
}

/// Plans, and lets new replicas appear in `phase`; what the plan dropped goes only if all its own are ready.
fn step(w: &mut World, phase: ReplicaPhase) -> Plan {
    let before = w.snapshot.replicas.clone();
    let plan = w.run();
    for r in &mut w.snapshot.replicas {
        match before.iter().find(|b| b.id == r.id) {
            Some(old) => *r = old.clone(),
            None => r.phase = phase,
        }
    }
    if w.snapshot.replicas.iter().any(|r| r.phase != ReplicaPhase::Ready) {
        let kept: BTreeSet<ReplicaId> = w.snapshot.replicas.iter().map(|r| r.id.clone()).collect();
        w.snapshot.replicas.extend(before.into_iter().filter(|b| !kept.contains(&b.id)));
    }
    plan
}

fn all_ready(w: &mut World) {
    w.snapshot.replicas.iter_mut().for_each(|r| r.phase = ReplicaPhase::Ready);
}

#[test]
fn replicas_are_replaced_one_after_the_other() {
    let mut w = outdated(6.0);
    let n = w.snapshot.replicas.len();
    assert!((2..8).contains(&n), "{n}");
    let mut plans = Vec::new();
    while w.snapshot.replicas.iter().any(|r| r.outdated) {
        let before = ids(w.previous.as_ref().unwrap());
        let plan = step(&mut w, ReplicaPhase::Starting);
        assert_eq!(plan.pools[0].replicas.len(), n);
        assert_eq!(ids(&plan).difference(&before).count(), 1, "one at a time");
        assert_eq!(w.snapshot.replicas.len(), n + 1, "the old one serves beside its successor");
        let again = step(&mut w, ReplicaPhase::Starting);
        assert_eq!(ids(&again), ids(&plan), "nothing more while the successor starts");
        all_ready(&mut w);
        let wanted = ids(&plan);
        w.snapshot.replicas.retain(|r| wanted.contains(&r.id));
        plans.push(plan);
        assert!(plans.len() <= n);
    }
    assert_eq!(plans.len(), n);
    let last = w.previous.clone().unwrap();
    assert_eq!(ids(&w.plan()), ids(&last), "and then it rests");
}

#[test]
fn a_successor_goes_to_accelerators_that_are_free() {
    let mut w = outdated(6.0);
    let old = w.snapshot.replicas.clone();
    let plan = step(&mut w, ReplicaPhase::Starting);
    let mut used = std::collections::BTreeMap::new();
    for r in &old {
        for (n, g) in crate::plan::inventory::gpus_by_node(&r.shape, &r.nodes) {
            *used.entry(n.clone()).or_insert(0) += g;
        }
    }
    for r in plan.pools[0].replicas.iter().filter(|r| !old.iter().any(|o| o.id == r.id)) {
        for (n, g) in crate::plan::inventory::gpus_by_node(&r.shape, &r.nodes) {
            *used.entry(n.clone()).or_insert(0) += g;
        }
    }
    assert!(used.values().all(|g| *g <= 8), "{used:?}");
}

#[test]
fn a_successor_that_fails_stops_it_and_stays_as_evidence() {
    let mut w = outdated(6.0);
    let n = w.snapshot.replicas.len();
    let plan = step(&mut w, ReplicaPhase::Failed);
    for _ in 0..3 {
        assert_eq!(ids(&step(&mut w, ReplicaPhase::Failed)), ids(&plan));
        assert_eq!(w.snapshot.replicas.iter().filter(|r| r.outdated).count(), n);
    }
    // What its owner mends makes it outdated in turn: it goes at once, and with it a next one is tried.
    let failed: Vec<ReplicaId> =
        w.snapshot.replicas.iter().filter(|r| !r.outdated).map(|r| r.id.clone()).collect();
    assert_eq!(failed.len(), 1);
    w.snapshot.replicas.iter_mut().for_each(|r| r.outdated = true);
    let mended = step(&mut w, ReplicaPhase::Starting);
    assert!(!ids(&mended).contains(&failed[0]));
    assert_eq!(mended.pools[0].replicas.len(), n);
}

#[test]
fn one_whose_pod_has_ended_is_replaced_even_in_a_rollout() {
    let mut w = outdated(6.0);
    let plan = step(&mut w, ReplicaPhase::Failed);
    let failed = w.snapshot.replicas.iter_mut().find(|r| !r.outdated).unwrap();
    failed.ended = true;
    let failed = failed.id.clone();
    assert!(ids(&plan).contains(&failed));
    let next = w.plan();
    assert!(!ids(&next).contains(&failed));
    assert_eq!(next.pools[0].replicas.len(), plan.pools[0].replicas.len());
}

#[test]
fn nothing_is_given_up_that_could_not_come_back() {
    let mut w = outdated(6.0);
    w.snapshot.nodes.iter_mut().for_each(|n| n.schedulable = false);
    let before = ids(w.previous.as_ref().unwrap());
    assert_eq!(ids(&w.plan()), before, "every node is cordoned");
    w.snapshot.nodes.iter_mut().for_each(|n| n.schedulable = true);
    w.snapshot.pools[0].slo_classes.clear();
    assert_eq!(ids(&w.plan()), before, "a pool that cannot be planned keeps what it has");
    w.snapshot.pools[0] = pool("chat", "llama-3.1-8b", 800.0, 60.0);
    w.snapshot.pools[0].scaling.min_replicas = 3;
    w.snapshot.pools[0].mode = pool::Mode::Advise;
    assert_eq!(ids(&w.plan()), before, "advice touches nothing");
}

#[test]
fn without_demand_figures_a_rollout_adds_nothing() {
    let mut w = outdated(6.0);
    let n = w.snapshot.replicas.len();
    w.demands.clear();
    for _ in 0..3 {
        assert_eq!(step(&mut w, ReplicaPhase::Starting).pools[0].replicas.len(), n);
    }
}
