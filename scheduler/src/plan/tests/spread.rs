//! Availability at no cost: where a pool's replicas lie.

use std::collections::BTreeMap;

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::*;
use proptest::prelude::*;

use super::support::*;

fn small(name: &str, replicas: u32) -> ModelPool {
    let mut p = pool(name, "llama-3.1-8b", 3000.0, 120.0);
    p.parallelism.tensor = vec![1];
    p.scaling.min_replicas = replicas;
    p
}

fn light() -> DemandEstimate {
    demand(vec![class("a", 0.5, 1200.0, 250.0)])
}

/// Replicas of a pool by node.
fn by_node(plan: &Plan, pool: usize) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for r in &plan.pools[pool].replicas {
        r.nodes.iter().for_each(|n| *count.entry(n.to_string()).or_default() += 1);
    }
    count
}

fn by_zone(w: &World, plan: &Plan) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for r in &plan.pools[0].replicas {
        let node = w.snapshot.nodes.iter().find(|n| n.name == r.nodes[0]).unwrap();
        *count.entry(node.zone.clone()).or_default() += 1;
    }
    count
}

#[test]
fn no_node_holds_more_than_a_third_of_a_pool_that_can_lie_otherwise() {
    for (replicas, most) in [(2, 1), (3, 1), (4, 2), (6, 2)] {
        let mut w = World::new((0..4).map(|i| node(&format!("n{i}"), "l40s", 8, "a")).collect());
        w.add(small("chat", replicas), light());
        let count = by_node(&w.run(), 0);
        assert_eq!(count.values().max(), Some(&most), "{replicas} replicas: {count:?}");
    }
}

#[test]
fn scaling_down_leaves_the_pool_on_several_nodes() {
    let mut w = World::new((0..2).map(|i| node(&format!("n{i}"), "l40s", 4, "a")).collect());
    w.add(small("chat", 4), light());
    assert_eq!(w.run().pools[0].replicas.len(), 4);
    // Three on the first node, one on the second: the fullest node is not what is kept.
    for (i, r) in w.snapshot.replicas.iter_mut().enumerate() {
        r.nodes = vec![NodeName::new(if i < 3 { "n0" } else { "n1" }).unwrap()];
    }
    w.snapshot.pools[0].scaling.min_replicas = 2;
    let plan = w.run();
    assert_eq!(by_node(&plan, 0), BTreeMap::from([("n0".to_owned(), 1), ("n1".to_owned(), 1)]));
}

#[test]
fn whole_nodes_are_spared_where_large_groups_are_in_use_and_only_there() {
    let mut w = World::new((0..3).map(|i| node(&format!("n{i}"), "h100", 8, "a")).collect());
    let mut big = pool("big", "llama-3.1-70b", 3000.0, 120.0);
    big.parallelism.tensor = vec![8];
    w.add(big, light());
    w.add(small("chat", 2), light());
    let plan = w.run();
    assert!(plan.pools.iter().all(|p| p.outcome == PoolOutcome::Served));
    assert_eq!(
        by_node(&plan, 1).len(),
        1,
        "one node stays whole for the next group of eight: {:?}",
        by_node(&plan, 1)
    );

    w.snapshot.pools.remove(0);
    w.snapshot.replicas.clear();
    w.previous = None;
    assert_eq!(by_node(&w.run(), 0).len(), 2);
}

#[test]
fn zones_of_one_price_share_a_pool_evenly_and_nothing_moves_for_it() {
    let mut w =
        World::new(vec![node("a0", "l40s", 8, "a"), node("b0", "l40s", 8, "b"), node("c0", "l40s", 8, "c")]);
    w.add(small("chat", 3), light());
    let plan = w.run();
    assert_eq!(by_zone(&w, &plan).values().collect::<Vec<_>>(), [&1, &1, &1]);

    // All in one zone, as an earlier version left them: they stay, since moving them would cost starts and stops.
    w.snapshot.replicas.iter_mut().for_each(|r| r.nodes = vec![NodeName::new("a0").unwrap()]);
    w.previous = None;
    let kept = w.plan();
    assert_eq!(by_zone(&w, &kept), BTreeMap::from([("a".to_owned(), 3)]));
    // New ones go elsewhere.
    w.snapshot.pools[0].scaling.min_replicas = 6;
    let grown = w.plan();
    assert_eq!(by_zone(&w, &grown)["a"], 3);
    assert!(by_zone(&w, &grown).len() >= 2);
}

#[test]
fn scaling_down_takes_from_the_zone_that_holds_most() {
    let mut w = World::new(vec![node("a0", "l40s", 8, "a"), node("b0", "l40s", 8, "b")]);
    w.add(small("chat", 4), light());
    w.run();
    for (i, r) in w.snapshot.replicas.iter_mut().enumerate() {
        r.nodes = vec![NodeName::new(if i < 3 { "a0" } else { "b0" }).unwrap()];
    }
    w.previous = None;
    w.snapshot.pools[0].scaling.min_replicas = 2;
    let plan = w.run();
    assert_eq!(by_zone(&w, &plan), BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
}

#[test]
fn a_cheaper_zone_is_worth_more_than_an_even_spread() {
    let mut w = World::new(vec![node("a0", "l40s", 8, "a"), node("b0", "l40s", 8, "b")]);
    w.snapshot.nodes[1].spot = true;
    let l40s = w.snapshot.accelerators.iter_mut().find(|a| a.name == "l40s").unwrap();
    l40s.spot_usd_per_hour = Some(l40s.usd_per_hour / 2.0);
    let mut p = small("chat", 4);
    p.placement.spot = pool::SpotPolicy::Allowed;
    w.add(p, light());
    let plan = w.run();
    assert_eq!(by_zone(&w, &plan), BTreeMap::from([("b".to_owned(), 4)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Spreading serves no less, costs no more and changes no more: compared with a plan for nodes of one zone.
    #[test]
    fn spreading_costs_nothing(
        gpus in proptest::collection::vec(1_u32..9, 2..5),
        sizes in proptest::collection::vec(1_u32..6, 1..4),
        later in proptest::collection::vec(1_u32..6, 3),
    ) {
        let nodes = |zones: &[&str]| -> Vec<NodeInfo> {
            gpus.iter().enumerate().map(|(i, g)| node(&format!("n{i}"), "l40s", *g, zones[i % zones.len()])).collect()
        };
        let mut apart = World::new(nodes(&["a", "b", "c"]));
        let mut together = World::new(nodes(&["a"]));
        for w in [&mut apart, &mut together] {
            for (i, n) in sizes.iter().enumerate() {
                w.add(small(&format!("p{i}"), *n), light());
            }
        }
        let (first, other) = (apart.run(), together.run());
        prop_assert!((first.usd_per_hour - other.usd_per_hour).abs() < 1e-6);
        for w in [&mut apart, &mut together] {
            for (p, n) in w.snapshot.pools.iter_mut().zip(&later) {
                p.scaling.min_replicas = *n;
            }
        }
        let (second, other) = (apart.run(), together.run());
        prop_assert!((second.usd_per_hour - other.usd_per_hour).abs() < 1e-6);
        for (a, b) in first.pools.iter().zip(&second.pools) {
            let kept = b.replicas.iter().filter(|r| a.replicas.contains(r)).count();
            prop_assert_eq!(kept, a.replicas.len().min(b.replicas.len()), "{} to {}", a.fleet_text(), b.fleet_text());
        }
    }
}
