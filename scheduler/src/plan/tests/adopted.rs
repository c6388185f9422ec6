//! Engines of others: they hold what they hold, and advice on their pool may plan with it.

use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::*;

use super::support::*;

fn adopted(pool: &str, name: &str, gpus: u32, shape: Option<(&str, u32)>) -> AdoptedReplica {
    AdoptedReplica {
        pool: pool.parse().unwrap(),
        name: name.to_owned(),
        shape: shape.map(|(variant, tensor_parallel)| Shape {
            variant: variant.to_owned(),
            accelerator: "h100".to_owned(),
            tensor_parallel,
            pipeline_parallel: 1,
            data_parallel: 1,
            expert_parallel: 1,
            role: Role::Mixed,
        }),
        copies: 1,
        gpus: vec![("h-0".parse().unwrap(), gpus)],
        ready: true,
        problem: String::new(),
    }
}

/// One node, all of it held by another's engines, that pool `old` adopts.
fn world() -> World {
    let mut w = World::new(vec![node("h-0", "h100", 8, "a")]);
    w.snapshot.nodes[0].foreign_gpus = 8;
    let mut pool = pool("old", "llama-3.1-70b", 2000.0, 60.0);
    pool.mode = Mode::Advise;
    w.add(pool, demand(vec![class("a", 0.5, 1000.0, 200.0)]));
    w.snapshot.adopted =
        vec![adopted("old", "a", 4, Some(("bf16", 4))), adopted("old", "b", 4, Some(("bf16", 4)))];
    w
}

#[test]
fn advice_plans_with_what_the_adopted_engines_hold() {
    let w = world();
    let plan = w.plan();
    let p = &plan.pools[0];
    assert_eq!(p.outcome, plan::PoolOutcome::Served, "{:?}", p.why);
    let today = p.today.as_ref().unwrap();
    let price = w.snapshot.accelerators[0].usd_per_hour;
    assert_eq!((today.fleet.as_str(), today.replicas, today.ready), ("2× bf16 TP4 H100", 2, 2));
    assert!((today.usd_per_hour - 8.0 * price).abs() < 1e-9);
    assert!(p.usd_per_hour < today.usd_per_hour, "{} is enough for half a request a second", p.fleet_text());
    // By the same model and the same margins as the planner's own candidates.
    let mut same = world();
    same.snapshot.adopted.clear();
    same.snapshot.nodes[0].foreign_gpus = 0;
    same.snapshot.pools[0].parallelism.tensor = vec![4];
    same.snapshot.pools[0].min_quality = 1.0;
    let own = same.plan().pools[0].load_lines[0].1;
    assert!((today.max_rps - 2.0 * own).abs() < 1e-6 * own, "{} against 2 × {own}", today.max_rps);
    let text = p.comparison().unwrap();
    assert!(text.starts_with("today 2× bf16 TP4 H100 at $") && text.contains("; advised "), "{text}");
}

#[test]
fn nobody_else_is_given_what_adopted_engines_hold() {
    let mut w = world();
    w.add(pool("real", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let plan = w.plan();
    let real = plan.pool(&"real".parse().unwrap()).unwrap();
    assert_eq!((real.outcome, real.replicas.len()), (plan::PoolOutcome::CapacityLimited, 0));
    assert_eq!(real.today, None);
    // Nor are they returned to a pool that Plimsoll runs, whatever a snapshot says.
    w.snapshot.pools[0].mode = Mode::Enforce;
    assert!(w.plan().pools.iter().all(|p| p.replicas.is_empty()));
}

#[test]
fn what_is_not_understood_costs_and_what_misses_its_objectives_is_said() {
    let mut w = world();
    w.snapshot.adopted[1].shape = None;
    w.snapshot.adopted[0].ready = false;
    let today = w.plan().pools[0].today.clone().unwrap();
    assert_eq!(today.fleet, "1× bf16 TP4 H100 + 1 not understood");
    assert_eq!((today.ready, today.unknown, today.max_rps), (1, 1, 0.0));
    // A model that does not fit, and a variant that the pool does not have.
    w.snapshot.adopted =
        vec![adopted("old", "a", 1, Some(("bf16", 1))), adopted("old", "b", 1, Some(("gone", 1)))];
    let today = w.plan().pools[0].today.clone().unwrap();
    assert_eq!(today.max_rps, 0.0);
    assert!(today.misses[0].starts_with("bf16 TP1 H100: needs 1"), "{:?}", today.misses);
    assert!(today.misses[1].ends_with("the pool has no variant gone"), "{:?}", today.misses);
}
