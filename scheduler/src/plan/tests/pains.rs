//! What users of other autoscalers and planners complain of, as tests of this one: each names the complaint.
//!
//! Others of that kind are elsewhere: noise, missing telemetry, lost and cordoned nodes, evictions and failed starts in `stable`;
//! capacity that does not come in `provision`; rollouts in `rollout`; scale-down by node and zone in `spread`.

use std::collections::BTreeSet;

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::*;

use super::support::*;

fn world() -> World {
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-8b", 800.0, 50.0), demand(vec![]));
    w
}

fn ask(w: &mut World, rps: f64) {
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("a", rps, 1200.0, 250.0)]));
}

fn ids(plan: &Plan) -> BTreeSet<ReplicaId> {
    plan.pools.iter().flat_map(|p| &p.replicas).map(|r| r.id.clone()).collect()
}

/// "It scales up at every reconcile although there is no load."
#[test]
fn planning_again_and_again_without_load_starts_nothing() {
    let mut w = world();
    ask(&mut w, 0.0);
    let first = w.run();
    for _ in 0..20 {
        assert_eq!(ids(&w.run()), ids(&first));
    }
}

/// "It goes 2, 1, 2, 1: scaling down ignores the load on those that stay."
#[test]
fn a_step_down_leaves_survivors_that_carry_the_load_and_nothing_comes_back() {
    let mut w = world();
    ask(&mut w, 60.0);
    w.run();
    for rps in [45.0, 30.0, 20.0, 12.0, 6.0, 2.0] {
        ask(&mut w, rps);
        let down = w.run();
        let chat = &down.pools[0];
        assert_eq!(chat.outcome, PoolOutcome::Served, "{rps}");
        assert!(chat.max_rps() >= rps * (1.0 - 1e-6), "{rps}: survivors carry {:.2}", chat.max_rps());
        // The same load again: nothing is started that was just stopped.
        for _ in 0..3 {
            assert_eq!(ids(&w.run()), ids(&down), "{rps}");
        }
    }
}

/// "It oscillates between two sizes under a steady load that lies on the boundary between them", and "500, 2000, 500".
#[test]
fn a_square_wave_within_the_headroom_moves_nothing_and_a_large_one_no_more_than_it_must() {
    let mut w = world();
    ask(&mut w, 40.0);
    w.run();
    let steady = w.run();
    let mut changes = 0;
    let mut last = ids(&steady);
    for i in 0..20 {
        ask(&mut w, if i % 2 == 0 { 36.0 } else { 40.0 });
        let now = ids(&w.run());
        changes += usize::from(now != last);
        last = now;
    }
    assert_eq!(changes, 0, "a tenth less now and then");
    let (mut starts, mut costs) = (0, BTreeSet::new());
    for i in 0..12 {
        ask(&mut w, if i % 2 == 0 { 10.0 } else { 40.0 });
        let plan = w.run();
        assert_eq!(plan.pools[0].outcome, PoolOutcome::Served);
        starts += ids(&plan).difference(&last).count();
        costs.insert(format!("{:.2}", plan.usd_per_hour));
        last = ids(&plan);
    }
    assert!(
        costs.len() <= 4,
        "it settles on one fleet for each level, give or take: {costs:?}, {starts} starts"
    );
}

/// "Replicas that somebody adds or deletes by hand break the planner."
#[test]
fn what_somebody_did_by_hand_is_taken_for_what_it_is() {
    let mut w = world();
    ask(&mut w, 40.0);
    let plan = w.run();
    assert!(plan.pools[0].replicas.len() >= 2);
    // Deleted: one comes back, under another name or its own; the others stay.
    let gone = w.snapshot.replicas.remove(0).id;
    w.previous.as_mut().unwrap().pools[0].replicas.retain(|r| r.id != gone);
    let again = w.plan();
    assert_eq!(again.pools[0].outcome, PoolOutcome::Served);
    assert!(again.pools[0].replicas.len() >= plan.pools[0].replicas.len());
    assert_eq!(ids(&again).intersection(&ids(&plan)).count(), plan.pools[0].replicas.len() - 1);
    // Added: it is known and counted; what is too much goes, and no name is given twice.
    let mut w = world();
    ask(&mut w, 40.0);
    let plan = w.run();
    let mut extra = w.snapshot.replicas[0].clone();
    extra.id = ReplicaId::new("by-hand").unwrap();
    w.snapshot.replicas.push(extra);
    let with = w.plan();
    assert!(
        with.pools[0].replicas.len() <= plan.pools[0].replicas.len() + 1,
        "nothing more is started for it"
    );
    let known: BTreeSet<ReplicaId> = w.snapshot.replicas.iter().map(|r| r.id.clone()).collect();
    assert!(ids(&with).is_subset(&known), "nothing is started");
}

/// "There is no scaling down any more once a metric was NaN."
#[test]
fn telemetry_that_was_dead_for_a_while_does_not_hold_a_fleet_up_for_ever() {
    let mut w = world();
    ask(&mut w, 60.0);
    let large = w.run();
    ask(&mut w, f64::NAN);
    assert!(w.run().pools[0].replicas.len() >= large.pools[0].replicas.len(), "nothing stops meanwhile");
    w.demands.clear();
    assert!(w.run().pools[0].replicas.len() >= large.pools[0].replicas.len());
    ask(&mut w, 2.0);
    let small = w.run();
    assert!(small.usd_per_hour < large.usd_per_hour, "once it is back, so is scaling down");
}

/// "A replica that can't be scheduled wedges the planner."
#[test]
fn what_cannot_be_scheduled_holds_up_neither_its_own_pool_nor_others() {
    let mut w = World::new(vec![node("l4-0", "l4", 1, "a"), node("l4-1", "l4", 1, "b")]);
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 40.0, 1000.0, 200.0)]));
    let full = w.run();
    assert_eq!(full.pools[0].outcome, PoolOutcome::CapacityLimited);
    // A pod that asks for more than any node has is pending for ever.
    let mut pending = w.snapshot.replicas[0].clone();
    (pending.id, pending.phase, pending.ready_at) =
        (ReplicaId::new("chat-wedged").unwrap(), ReplicaPhase::Pending, None);
    pending.nodes.clear();
    w.snapshot.replicas.push(pending);
    let mut small = pool("small", "llama-3.1-8b", 2000.0, 100.0);
    small.priority = 5;
    w.add(small, demand(vec![class("a", 0.5, 1000.0, 200.0)]));
    let plan = w.run();
    let outcome = |name: &str| plan.pool(&name.parse().unwrap()).unwrap().outcome;
    assert_eq!(outcome("small"), PoolOutcome::Served, "the higher tier gets a GPU");
    ask(&mut w, 0.2);
    assert_eq!(w.run().pools[0].outcome, PoolOutcome::Served, "and less demand is served by what there is");
}

/// "Series of pods that are gone make a ratchet", and pools that vanish leave nothing behind.
#[test]
fn a_pool_that_vanishes_frees_what_it_held_and_one_of_its_name_starts_afresh() {
    let mut w = World::new(vec![node("h-0", "h100", 2, "a")]);
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 60.0, 1000.0, 200.0)]));
    let first = w.run();
    assert_eq!(first.pools[0].replicas.len(), 2);
    let gone = w.snapshot.pools.remove(0);
    w.demands.clear();
    w.add(pool("other", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 60.0, 1000.0, 200.0)]));
    let next = w.run();
    assert!(next.pool(&gone.id).is_none());
    assert_eq!(next.pools[0].replicas.len(), 2, "what it held is free");
    assert_eq!(next.pools[0].why.binding.len(), next.binding.len());
    let mut back = gone;
    back.uid = "another".to_owned();
    w.snapshot.pools.clear();
    w.demands.clear();
    w.add(back, demand(vec![class("a", 0.2, 1000.0, 200.0)]));
    let last = w.run();
    assert_eq!(last.pools[0].replicas.len(), 1);
    assert!(ids(&last).is_disjoint(&ids(&first)));
}

/// "Consolidation evicts pods that are warm": a fleet that is a little dearer than the best is kept.
#[test]
fn what_is_warm_is_not_evicted_for_pennies() {
    let mut w = World::new(vec![node("l40s-0", "l40s", 4, "a"), node("h-0", "h100", 8, "a")]);
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 4.0, 1000.0, 200.0)]));
    let first = w.run();
    let kind = first.pools[0].replicas[0].shape.accelerator.clone();
    for class in &mut w.snapshot.accelerators {
        if class.name == kind {
            class.usd_per_hour *= 1.02;
        }
    }
    assert_eq!(ids(&w.run()), ids(&first), "a rise of 2 % moves nothing");
}
