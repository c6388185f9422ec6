//! Pools with LoRA adapters: as many replicas as hold what is asked for, of the shapes that have room for the largest rank.

use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::*;

use super::support::*;

/// A small pool on two kinds of accelerator, and its adapters: so many asked for, so many pinned.
fn world(hot: usize, pinned: usize) -> World {
    let mut w = World::new(vec![node("a", "l4", 8, "a"), node("b", "h100", 8, "b")]);
    let mut p = pool("p", "llama-3.1-8b", 2_000.0, 100.0);
    p.engine.kind = EngineKind::Vllm;
    p.variants.truncate(1);
    p.max_context_tokens = Some(4096);
    let hot = (0..hot).map(|i| adapter(i, 16, 0.05, false));
    let pinned = (0..pinned).map(|i| adapter(1_000 + i, 16, 0.0, true));
    w.snapshot.adapters = hot.chain(pinned).collect();
    w.add(p, demand(vec![class("c0", 0.4, 300.0, 100.0)]));
    w
}

fn replicas(w: &World) -> usize {
    w.plan().pools[0].replicas.len()
}

#[test]
fn a_fleet_has_slots_for_the_adapters_that_are_asked_for() {
    let alone = replicas(&world(0, 0));
    assert_eq!(alone, 1);
    assert_eq!(replicas(&world(8, 0)), 1, "as many as one engine holds");
    let w = world(20, 0);
    let plan = w.plan();
    let of_pool = &plan.pools[0];
    assert_eq!(of_pool.replicas.len(), 3);
    assert!(of_pool.replicas.iter().all(|r| r.shape.accelerator == "l4"), "{}", of_pool.fleet_text());
    assert_eq!(of_pool.envelope.0, 3, "the fast loop takes none of them away");
    let remarks = of_pool.why.remarks.join("\n");
    assert!(remarks.contains("at least 3 replicas, so that 20 LoRA adapters"), "{remarks}");
    assert_eq!(replicas(&world(20, 4)), 5, "four slots of each are taken");
    let mut seldom = world(20, 0);
    seldom.snapshot.adapters.iter_mut().for_each(|a| a.observed_rps = Some(0.001));
    assert_eq!(replicas(&seldom), 1, "what was seen counts");
}

#[test]
fn the_kind_of_accelerator_is_chosen_with_the_number_of_replicas() {
    // One large replica is the cheaper way to serve the demand alone, several small ones to hold the adapters besides.
    let model = Table([("l4", vec![0.06]), ("h100", vec![2.0])].map(|(n, r)| (n.to_owned(), r)).into());
    let of = |hot: usize| {
        let w = world(hot, 0);
        w.plan_with(&model).plan.pools[0].fleet_text()
    };
    let (alone, with_adapters) = (of(0), of(40));
    assert!(alone.contains("H100") && !alone.contains("L4 "), "{alone}");
    assert!(with_adapters.contains("L4"), "{with_adapters}");
}

#[test]
fn what_has_no_place_is_said_with_what_to_do() {
    let notes = |w: &World| w.plan().pools[0].why.would_help.join("\n");
    let mut w = world(20, 0);
    w.snapshot.pools[0].scaling.max_replicas = 2;
    assert_eq!(replicas(&w), 2);
    assert!(
        notes(&w).contains("20 LoRA adapters are asked for and 2 replicas have 16 slots"),
        "{}",
        notes(&w)
    );
    assert!(notes(&w).contains("raise spec.scaling.max to 3"), "{}", notes(&w));
    let w = world(3, 8);
    assert_eq!(replicas(&w), 1);
    assert!(notes(&w).contains("8 pinned LoRA adapters leave no slot for 3 others"), "{}", notes(&w));
    let w = world(0, 9);
    assert!(notes(&w).contains("9 of its LoRA adapters are pinned and an engine holds 8"), "{}", notes(&w));
}

#[test]
fn where_accelerators_are_too_few_for_the_slots_demand_is_served_and_the_rest_said() {
    let mut w = world(20, 0);
    w.snapshot.nodes = vec![node("a", "l4", 2, "a")];
    let plan = w.plan();
    let of_pool = &plan.pools[0];
    assert_eq!((of_pool.replicas.len(), of_pool.unserved_rps), (2, 0.0));
    assert_eq!(of_pool.outcome, plan::PoolOutcome::CapacityLimited);
    assert_eq!(of_pool.why.summary, "no free L4: 1 replicas short of the 3 that its LoRA adapters need");
}

#[test]
fn a_pool_that_sleeps_is_not_woken_for_its_adapters() {
    let mut w = world(20, 0);
    w.snapshot.pools[0].scaling.min_replicas = 0;
    w.demands.insert("p".parse().unwrap(), demand(vec![]));
    assert_eq!(replicas(&w), 0);
}

#[test]
fn requests_of_pools_with_adapters_are_served_whole() {
    let mut w = world(4, 0);
    w.snapshot.pools[0].parallelism.disaggregation = Disaggregation::Auto;
    w.demands.insert("p".parse().unwrap(), demand(vec![class("c0", 40.0, 3000.0, 300.0)]));
    assert!(w.plan().pools[0].replicas.iter().all(|r| r.shape.role == Role::Mixed));
    w.snapshot.pools[0].parallelism.disaggregation = Disaggregation::Always;
    let notes = w.plan().pools[0].why.would_help.join("\n");
    assert!(notes.contains("set spec.parallelism.disaggregation to Auto or Never"), "{notes}");
}
