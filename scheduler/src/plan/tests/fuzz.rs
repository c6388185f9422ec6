//! Random worlds, sound and broken, each from one number: `make fuzz-plan` plans 100,000 of them, the ordinary test 150.
//!
//! A failure names its number; `PLIMSOLL_FUZZ_FROM=NUMBER PLIMSOLL_FUZZ_COUNT=1` plans that world alone.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::{Mode, SpotPolicy};
use plimsoll_fleet::*;

use super::support::*;
use crate::plan::performance::Performance;
use crate::plan::solver::BranchAndBound;
use crate::plan::{EngineModel, PlanInput, ShapeCache, plan_with};

/// Worlds of an ordinary test run.
const FEW: u64 = 150;
/// Every so many worlds asks the engine model; the others a table of rates, so that there can be many.
const ENGINE_MODEL: u64 = 10;

/// Figures that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// 0 to `n` − 1.
    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Log-uniform.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.next())
    }
}

const KINDS: [&str; 3] = ["l4", "l40s", "h100"];
const ODD: [f64; 6] = [0.0, f64::NAN, -1.0, f64::INFINITY, 1e300, 1e-300];

fn nodes(dice: &mut Dice) -> Vec<NodeInfo> {
    let count = if dice.one_in(15) { 0 } else { dice.below(9) };
    (0..count)
        .map(|i| {
            let mut n =
                node(&format!("n{i}"), dice.of(&KINDS), dice.below(9) as u32, dice.of(&["", "a", "b"]));
            n.foreign_gpus = if dice.one_in(4) { dice.below(9) as u32 } else { 0 };
            (n.spot, n.ready, n.schedulable) = (dice.one_in(4), !dice.one_in(12), !dice.one_in(12));
            if dice.one_in(10) {
                n.taints.push(dice.of(&["x=y:NoSchedule", "x:NoExecute", "odd"]).to_owned());
            }
            if dice.one_in(3) {
                n.labels.insert("disk".to_owned(), "fast".to_owned());
            }
            n
        })
        .collect()
}

fn a_pool(dice: &mut Dice, i: usize, broken: bool) -> (ModelPool, Option<DemandEstimate>) {
    let name = format!("{}/p{i}", dice.of(&["default", "other"]));
    let mut p = pool(&name, dice.of(&["llama-3.1-8b", "qwen3-32b", "qwen3-30b-a3b"]), 3000.0, 120.0);
    if p.architecture.moe.is_some() {
        p.parallelism.data = dice.of(&[&[][..], &[1, 2], &[2, 4], &[3]]).to_vec();
        p.parallelism.expert = dice.one_in(2);
    }
    p.priority = dice.below(3) as i32;
    p.scaling.min_replicas = if dice.one_in(3) { dice.below(4) as u32 } else { 1 };
    p.scaling.max_replicas = p.scaling.min_replicas + dice.below(12) as u32;
    p.scaling.min_zones = if dice.one_in(6) { dice.below(4) as u32 } else { 1 };
    p.scaling.scale_to_zero_after_seconds = dice.one_in(5).then_some(300.0);
    p.placement.spot = dice.of(&[SpotPolicy::Never, SpotPolicy::Allowed, SpotPolicy::Preferred]);
    p.parallelism.tensor = dice.of(&[&[][..], &[1], &[1, 2], &[2], &[4, 8]]).to_vec();
    p.parallelism.pipeline = dice.of(&[&[][..], &[], &[], &[1, 2]]).to_vec();
    if dice.one_in(6) {
        p.placement.accelerators = vec![dice.of(&KINDS).to_owned()];
    }
    if dice.one_in(10) {
        p.placement.node_selector.insert("disk".to_owned(), "fast".to_owned());
    }
    if dice.one_in(10) {
        p.min_quality = 0.995;
    }
    if dice.one_in(12) {
        p.mode = Mode::Advise;
    }
    p.engine.cold_start_seconds = if dice.one_in(20) { dice.of(&ODD) } else { dice.between(5.0, 900.0) };
    let load = |dice: &mut Dice| if dice.one_in(6) { 0.0 } else { dice.between(0.05, 60.0) };
    let classes = (0..dice.below(4)).map(|c| class(&format!("c{c}"), load(dice), 300.0, 100.0)).collect();
    let mut demand = (!dice.one_in(12)).then(|| demand(classes));
    if broken {
        match dice.below(9) {
            0 => (p.scaling.min_replicas, p.scaling.max_replicas) = (5, 2),
            1 => p.slo_classes.clear(),
            2 => p.variants.clear(),
            3 => p.min_quality = 2.0,
            4 => p.placement.accelerators = vec!["none-such".to_owned()],
            5 => p.parallelism.tensor = vec![7],
            6 => p.engine.kind = EngineKind::External,
            7 => p.placement.node_selector = BTreeMap::from([("no".to_owned(), "where".to_owned())]),
            _ => {
                let odd = dice.of(&[f64::NAN, -1.0, f64::INFINITY]);
                demand.get_or_insert_default().classes.push(class("c0", odd, 300.0, 100.0));
            }
        }
    }
    (p, demand)
}

fn a_budget(dice: &mut Dice, i: usize, count: usize) -> Budget {
    let mut b = budget(&format!("b{i}"), 0.0);
    b.usd_per_hour = None;
    for unit in BudgetUnit::ALL {
        if unit == BudgetUnit::UsdPerHour || dice.one_in(4) {
            let cap = dice.between(0.2, 60.0) * unit.step();
            b.set_cap(unit, if dice.one_in(12) { dice.of(&ODD) } else { cap });
        }
    }
    if dice.one_in(2) {
        b.scope.namespaces = vec![dice.of(&["default", "other"]).to_owned()];
    }
    // Itself, one another, or one that is not there.
    b.parent = dice.one_in(3).then(|| format!("b{}", dice.below(count + 1)));
    b.on_limit = dice.of(&[OnLimit::Shed, OnLimit::Queue, OnLimit::Downgrade, OnLimit::Alert]);
    b
}

/// A world and the pools that are broken in it.
fn world(dice: &mut Dice) -> (World, BTreeSet<PoolId>) {
    let mut w = World::new(nodes(dice));
    for class in &mut w.snapshot.accelerators {
        class.usd_per_hour = if dice.one_in(10) { dice.of(&ODD) } else { dice.between(0.3, 8.0) };
        class.spot_usd_per_hour = dice.one_in(3).then_some(0.4 * class.usd_per_hour);
        class.autoscalable_max = if dice.one_in(4) { dice.below(9) as u32 } else { 0 };
        if dice.one_in(10) {
            class.electricity.pue = dice.of(&ODD);
            class.tdp_watts = dice.of(&ODD);
        }
    }
    if dice.one_in(20) {
        w.snapshot.accelerators.clear();
    }
    let mut broken = BTreeSet::new();
    for i in 0..dice.below(7) {
        let is_broken = dice.one_in(8);
        let (pool, demand) = a_pool(dice, i, is_broken);
        if is_broken {
            broken.insert(pool.id.clone());
        }
        if let Some(demand) = demand {
            w.demands.insert(pool.id.clone(), demand);
        }
        if dice.one_in(8) {
            w.idle.insert(pool.id.clone(), 1000.0);
        }
        w.snapshot.pools.push(pool);
    }
    let budgets = if dice.one_in(2) { dice.below(4) } else { 0 };
    w.snapshot.budgets = (0..budgets).map(|i| a_budget(dice, i, budgets)).collect();
    w.config.solve_nodes = 500;
    w.config.lost_request_price = dice.of(&[0.0, 0.0, 10.0, f64::NAN]);
    (w, broken)
}

fn model(number: u64, dice: &mut Dice) -> Box<dyn Performance> {
    if number.is_multiple_of(ENGINE_MODEL) {
        return Box::new(EngineModel);
    }
    let rate = |dice: &mut Dice| if dice.one_in(8) { 0.0 } else { dice.between(0.2, 12.0) };
    let mut table: BTreeMap<String, Vec<f64>> =
        KINDS.map(|k| (k.to_owned(), (0..3).map(|_| rate(dice)).collect())).into();
    if dice.one_in(6) {
        table.remove(dice.of(&KINDS));
    }
    Box::new(Table(table))
}

/// What the pools that were asked for get: outcome, fleet, unserved rate in millionths.
fn told(plan: &Plan, pools: &dyn Fn(&PoolId) -> bool) -> Vec<(PoolId, PoolOutcome, String, i64)> {
    let asked = plan.pools.iter().filter(|p| pools(&p.pool));
    asked
        .map(|p| (p.pool.clone(), p.outcome, p.fleet_text(), (1e6 * p.unserved_rps).round() as i64))
        .collect()
}

/// Share of their demand that the enforced pools of at least this tier are left without, summed.
fn undone(w: &World, plan: &Plan, tier: i32) -> f64 {
    let counts = |p: &&PoolPlan| {
        let spec = w.snapshot.pools.iter().find(|s| s.id == p.pool);
        spec.is_some_and(|s| s.priority >= tier && s.mode == Mode::Enforce)
            && p.outcome != PoolOutcome::Infeasible
    };
    let share = |p: &PoolPlan| {
        let total: f64 = p.demand.classes.iter().map(|c| c.rps).filter(|r| r.is_finite() && *r > 0.0).sum();
        if total > 0.0 { p.unserved_rps / total } else { 0.0 }
    };
    plan.pools.iter().filter(counts).map(share).sum()
}

/// Asserts that two plans are the same, figures that are none included; says where they first differ.
fn same(a: &Plan, b: &Plan, what: &str) {
    let (a, b) = (format!("{a:#?}"), format!("{b:#?}"));
    if let Some((x, y)) = a.lines().zip(b.lines()).find(|(x, y)| x != y) {
        panic!("{what}: {} or {}", x.trim(), y.trim());
    }
    assert_eq!(a.len(), b.len(), "{what}");
}

/// Everything that must hold of world `number`.
fn try_world(number: u64) {
    let mut dice = Dice(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let (mut w, broken) = world(&mut dice);
    let model = model(number, &mut dice);
    let plan = w.plan_with(model.as_ref()).plan;
    assert_eq!(plan.pools.len(), w.snapshot.pools.len(), "every pool is in the plan");

    // The same input gives the same plan, whatever the cache knows and however lists are ordered.
    let (empty, mut turned) = (ShapeCache::default(), w.snapshot.clone());
    turned.pools.reverse();
    turned.nodes.reverse();
    turned.budgets.reverse();
    let again = PlanInput { cache: &empty, snapshot: &turned, ..w.input() };
    same(&plan_with(&again, model.as_ref(), &BranchAndBound).plan, &plan, "same input, same plan");

    // Broken pools get a reason and disturb no other.
    let without = |gone: &dyn Fn(&ModelPool) -> bool| {
        let mut snapshot = w.snapshot.clone();
        snapshot.pools.retain(|p| !gone(p));
        let input = PlanInput { snapshot: &snapshot, ..w.input() };
        plan_with(&input, model.as_ref(), &BranchAndBound).plan
    };
    let infeasible = |id: &PoolId| plan.pool(id).is_none_or(|p| p.outcome == PoolOutcome::Infeasible);
    let sound = |id: &PoolId| !infeasible(id);
    if w.snapshot.pools.iter().any(|p| infeasible(&p.id)) {
        let alone = without(&|p| infeasible(&p.id));
        assert_eq!(
            told(&alone, &sound),
            told(&plan, &sound),
            "pools that cannot be planned disturb no other"
        );
    }
    for id in &broken {
        let p = plan.pool(id).unwrap();
        assert!(!p.why.summary.is_empty(), "{id} has no reason");
    }

    // No lower tier is served at a higher one's cost.
    let tiers: BTreeSet<i32> = w.snapshot.pools.iter().map(|p| p.priority).collect();
    for tier in tiers.into_iter().skip(1) {
        let got = undone(&w, &plan, tier);
        if got > 1e-6 {
            let alone = without(&|p| p.priority < tier);
            let could = undone(&w, &alone, tier);
            assert!(got <= could + 0.005, "tier {tier}: {got} undone, {could} without the lower tiers");
        }
    }

    // And over time: it comes true, and then something happens.
    for _ in 0..2 {
        w.next_serial = plan_with(&w.input(), model.as_ref(), &BranchAndBound).next_serial;
        let now = w.plan_with(model.as_ref()).plan;
        w.come_true(&now);
        w.number += 1;
        w.previous = Some(now);
        for demand in w.demands.values_mut() {
            let by = if dice.one_in(8) { 0.0 } else { dice.between(0.5, 2.0) };
            demand.classes.iter_mut().for_each(|c| c.rps *= by);
        }
        for node in &mut w.snapshot.nodes {
            if dice.one_in(10) {
                (node.ready, node.schedulable) = (!dice.one_in(2), !dice.one_in(2));
            }
        }
        for replica in &mut w.snapshot.replicas {
            if dice.one_in(8) {
                replica.phase =
                    dice.of(&[ReplicaPhase::Failed, ReplicaPhase::Draining, ReplicaPhase::Starting]);
            }
        }
        if dice.one_in(4) && !w.snapshot.pools.is_empty() {
            w.snapshot.pools.remove(0);
        }
        let once = w.plan_with(model.as_ref()).plan;
        same(&w.plan_with(model.as_ref()).plan, &once, "same input, same plan, while it runs");
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_worlds_break_no_promise() {
    let from = setting("PLIMSOLL_FUZZ_FROM").unwrap_or(0);
    let count = setting("PLIMSOLL_FUZZ_COUNT").unwrap_or(FEW);
    let failed: Vec<u64> = crate::plan::parallel::map(count as usize, |i| {
        let number = from + i as u64;
        std::panic::catch_unwind(|| try_world(number)).err().map(|_| number)
    })
    .into_iter()
    .flatten()
    .collect();
    println!("{count} worlds from {from} on: {} broke a promise", failed.len());
    assert!(failed.is_empty(), "PLIMSOLL_FUZZ_FROM=… PLIMSOLL_FUZZ_COUNT=1 for each of {failed:?}");
}
