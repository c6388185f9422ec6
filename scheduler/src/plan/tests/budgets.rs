//! Budgets of every unit and `onLimit`, and the price of interruptions: what binds, what is said, and what always holds.

use std::collections::BTreeMap;

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::SpotPolicy;
use plimsoll_fleet::*;
use proptest::prelude::*;
use rstest::rstest;

use super::support::*;
use crate::explain::{deepen, what_if};
use crate::plan::performance::{Evaluation, Misfit, Performance, Query};

/// One L4 serves 1 rps at 72 W, $1/h; with fp8 1.6 rps.
struct Halves;

impl Performance for Halves {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        let rate = if q.variant.name == "fp8" { 1.6 } else { 1.0 };
        let rates = vec![rate; q.classes.len()];
        Ok(Evaluation { misses: vec![None; rates.len()], mix_rps: rate, watts: 72.0, rates })
    }

    fn predict(&self, _: &Query<'_>, _: f64) -> Option<plan::Prediction> {
        Some(plan::Prediction::default())
    }

    fn coefficients(&self, _: &Query<'_>) -> Option<StepCoefficients> {
        Some(StepCoefficients::default())
    }
}

/// Pools on eight L4s, each with bf16 (quality 1) and fp8 (0.9), wanting at least 0.95.
fn world(pools: &[(&str, f64)]) -> World {
    let mut w = World::new(vec![node("a", "l4", 8, "a")]);
    w.snapshot.accelerators[0].usd_per_hour = 1.0;
    for (name, rps) in pools {
        let mut p = pool(name, "llama-3.1-8b", 1e6, 1e4);
        p.variants[1].quality = 0.9;
        p.min_quality = 0.95;
        p.parallelism.tensor = vec![1];
        p.scaling.min_replicas = 0;
        w.add(p, demand(vec![class("c0", *rps, 100.0, 100.0)]));
    }
    w
}

#[rstest]
#[case(
    BudgetUnit::Watts,
    150.0,
    "budget green (150 W) binds: 1.00 of 3.00 rps unserved in tier 0; +66 W buys one more replica"
)]
#[case(
    BudgetUnit::GramsCo2ePerHour,
    90.0,
    "budget green (90 gCO2e/h) binds: 1.00 of 3.00 rps unserved in tier 0; +33 gCO2e/h buys one more replica"
)]
#[case(
    BudgetUnit::UsdPerHour,
    2.5,
    "budget green ($2.50/h) binds: 1.00 of 3.00 rps unserved in tier 0; +$0.50/h buys one more replica"
)]
#[case(
    BudgetUnit::Watts,
    50.0,
    "budget green has 50 W, most frugal replica draws 72 W; raise it to 216 W to serve everything"
)]
#[case(
    BudgetUnit::GramsCo2ePerHour,
    20.0,
    "budget green has 20 gCO2e/h, cleanest replica emits 41 gCO2e/h; raise it to 123 gCO2e/h to serve everything"
)]
#[case(
    BudgetUnit::UsdPerHour,
    0.5,
    "budget green has $0.50/h, cheapest replica costs $1.00/h; raise it to $3.00 to serve everything"
)]
fn a_cap_of_any_unit_binds_and_says_so(#[case] unit: BudgetUnit, #[case] cap: f64, #[case] says: &str) {
    let mut w = world(&[("chat", 3.0)]);
    w.snapshot.budgets.push(capped("green", unit, cap));
    let plan = w.plan_with(&Halves).plan;
    let p = &plan.pools[0];
    assert_eq!(p.outcome, PoolOutcome::BudgetLimited);
    assert_eq!(p.why.summary, says);
    assert!(
        plan.binding.iter().any(|b| b.constraint == "budget green" && b.unit == unit.step_text()),
        "{:?}",
        plan.binding
    );
    let used = &plan.budgets[0];
    assert_eq!((used.unit, used.cap), (unit, cap));
    assert!((used.planned - plan.pools[0].consumption().of(unit)).abs() < 1e-9 && used.excess().is_none());
}

#[test]
fn plans_add_up_power_and_emissions_by_zone() {
    let mut w = world(&[("chat", 2.0), ("code", 1.0)]);
    let clean = &mut w.snapshot.accelerators[0].electricity;
    (clean.pue, clean.grams_co2e_per_kwh) = (1.5, 400.0);
    clean.grams_co2e_per_kwh_by_zone.insert("a".to_owned(), 100.0);
    let plan = w.plan_with(&Halves).plan;
    assert!((plan.watts - 3.0 * 72.0).abs() < 1e-9);
    assert!((plan.grams_co2e_per_hour - 0.216 * 1.5 * 100.0).abs() < 1e-9);
    assert_eq!(plan.pools[0].replica_watts.iter().map(|(_, w)| *w).collect::<Vec<_>>(), [72.0]);
    // Where the zone is not known, the dirtiest counts.
    w.snapshot.nodes[0].zone = String::new();
    assert!((w.plan_with(&Halves).plan.grams_co2e_per_hour - 0.216 * 1.5 * 400.0).abs() < 1e-9);
}

#[test]
fn a_cap_on_emissions_sends_work_to_the_clean_zone() {
    let mut w = world(&[("chat", 3.0)]);
    w.snapshot.nodes.push(node("b", "l4", 2, "b"));
    let by_zone = &mut w.snapshot.accelerators[0].electricity.grams_co2e_per_kwh_by_zone;
    by_zone.extend([("a".to_owned(), 800.0), ("b".to_owned(), 50.0)]);
    // Dirty: 69.1 g/h a replica; clean: 4.3. Two clean and one dirty are 77.8; one of each more does not fit.
    w.snapshot.budgets.push(capped("green", BudgetUnit::GramsCo2ePerHour, 80.0));
    let plan = w.plan_with(&Halves).plan;
    assert_eq!(plan.pools[0].outcome, PoolOutcome::Served);
    let on = |name: &str| plan.pools[0].replicas.iter().filter(|r| r.nodes[0].as_str() == name).count();
    assert_eq!((on("a"), on("b")), (1, 2));
}

#[test]
fn an_alert_limits_nothing_and_says_by_how_much() {
    let mut w = world(&[("chat", 3.0), ("code", 1.0)]);
    let mut green = capped("green", BudgetUnit::Watts, 200.0);
    green.on_limit = OnLimit::Alert;
    green.usd_per_hour = Some(5.0);
    w.snapshot.budgets.push(green);
    let plan = w.plan_with(&Halves).plan;
    assert_eq!(plan.pools.iter().map(|p| p.outcome).collect::<Vec<_>>(), [PoolOutcome::Served; 2]);
    assert_eq!(plan.budgets.iter().map(|b| b.excess()).collect::<Vec<_>>(), [None, Some(88.0)]);
    for p in &plan.pools {
        assert_eq!(p.why.remarks, ["budget green: 288 W of 200 W planned, 88 W too much (onLimit Alert)"]);
    }
}

#[test]
fn a_downgrade_serves_with_a_lesser_variant_only_what_the_budget_leaves() {
    let fleet = |w: &World| {
        let plan = w.plan_with(&Halves).plan;
        (plan.pools[0].fleet_text(), plan.pools[0].outcome, plan.pools[0].why.summary.clone())
    };
    let mut w = world(&[("chat", 3.0)]);
    let mut b = capped("green", BudgetUnit::Watts, 220.0);
    b.on_limit = OnLimit::Downgrade;
    w.snapshot.budgets.push(b);
    // Everything can be served as wanted: it is, although fp8 is cheaper.
    assert_eq!((fleet(&w).0.as_str(), fleet(&w).1), ("3× bf16 TP1 L4", PoolOutcome::Served));
    // Two replicas only: one of each is 2.6 rps; only two lesser ones serve 3.
    w.snapshot.budgets[0].watts = Some(150.0);
    let (text, outcome, why) = fleet(&w);
    assert_eq!((text.as_str(), outcome), ("2× fp8 TP1 L4", PoolOutcome::Served));
    assert_eq!(why, "served with variant fp8 (quality 0.9 < minQuality 0.95) because budget green binds");
    // No more of them than needed.
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("c0", 2.5, 100.0, 100.0)]));
    assert_eq!(fleet(&w).0, "1× bf16 TP1 L4 + 1× fp8 TP1 L4");
    // Another kind of budget does not allow it, nor does one that does not bind: here accelerators are short.
    w.snapshot.budgets[0].on_limit = OnLimit::Queue;
    assert_eq!(fleet(&w).0, "2× bf16 TP1 L4");
    assert_eq!(fleet(&w).1, PoolOutcome::BudgetLimited);
    (w.snapshot.budgets[0].on_limit, w.snapshot.budgets[0].watts) = (OnLimit::Downgrade, Some(1e6));
    w.snapshot.nodes[0].allocatable_gpus = 2;
    assert_eq!((fleet(&w).0.as_str(), fleet(&w).1), ("2× bf16 TP1 L4", PoolOutcome::CapacityLimited));
    // What even lesser variants cannot serve is said besides.
    w.snapshot.nodes[0].allocatable_gpus = 8;
    w.snapshot.budgets[0].watts = Some(80.0);
    let (text, outcome, why) = fleet(&w);
    assert_eq!((text.as_str(), outcome), ("1× fp8 TP1 L4", PoolOutcome::BudgetLimited));
    assert!(why.starts_with("budget green (80 W) binds: 0.90 of 2.50 rps unserved"), "{why}");
    assert!(
        why.ends_with("; served with variant fp8 (quality 0.9 < minQuality 0.95) because budget green binds"),
        "{why}"
    );
}

#[test]
fn lower_tiers_are_downgraded_first_and_go_back_with_room_to_spare() {
    let mut w = world(&[("high", 1.0), ("low", 1.5)]);
    w.snapshot.pools[0].priority = 10;
    let mut b = capped("team", BudgetUnit::UsdPerHour, 2.0);
    b.on_limit = OnLimit::Downgrade;
    w.snapshot.budgets.push(b);
    let texts = |p: &Plan| p.pools.iter().map(|p| p.fleet_text()).collect::<Vec<_>>();
    let run = |w: &mut World| {
        let out = w.plan_with(&Halves);
        (w.next_serial, w.number) = (out.next_serial, w.number + 1);
        w.come_true(&out.plan);
        w.previous = Some(out.plan.clone());
        out.plan
    };
    assert_eq!(texts(&run(&mut w)), ["1× bf16 TP1 L4", "1× fp8 TP1 L4"]);
    // It would just fit as wanted now: not yet. With a sixth less demand it goes back.
    w.demands.insert("low".parse().unwrap(), demand(vec![class("c0", 0.98, 100.0, 100.0)]));
    assert_eq!(texts(&run(&mut w)), ["1× bf16 TP1 L4", "1× fp8 TP1 L4"]);
    w.demands.insert("low".parse().unwrap(), demand(vec![class("c0", 0.8, 100.0, 100.0)]));
    assert_eq!(texts(&run(&mut w)), ["1× bf16 TP1 L4", "1× bf16 TP1 L4"]);
}

#[rstest]
#[case(
    0.5,
    1,
    "1 replicas on spot capacity: 1 interruptions per hour of each are expected, priced at $0.126/h (905 s of a replica each)"
)]
#[case(
    0.95,
    0,
    "l4 a spot would save $0.050/h a replica, less than its expected interruptions cost: $0.239/h (1 per hour, 905 s of a replica each)"
)]
fn spot_capacity_must_be_worth_its_interruptions(
    #[case] spot_usd: f64,
    #[case] on_spot: usize,
    #[case] says: &str,
) {
    let mut w = world(&[("chat", 0.9)]);
    let mut spot = node("s", "l4", 4, "a");
    spot.spot = true;
    w.snapshot.nodes.push(spot);
    let class = &mut w.snapshot.accelerators[0];
    (class.spot_usd_per_hour, class.spot_interruptions_per_hour) = (Some(spot_usd), 1.0);
    let p = &mut w.snapshot.pools[0];
    p.placement.spot = SpotPolicy::Allowed;
    p.engine.cold_start_seconds = 900.0;
    // A request may take 1 s + 100 × 90 ms: half of it is 5 s.
    let slo = &mut p.slo_classes[0].slo;
    (slo.ttft.as_mut().unwrap().ms, slo.tpot.as_mut().unwrap().ms) = (1000.0, 90.0);
    let plan = w.plan_with(&Halves).plan;
    let p = &plan.pools[0];
    assert_eq!(p.replicas.iter().filter(|r| r.spot).count(), on_spot);
    assert_eq!(p.why.remarks, [says]);
    let usd = if on_spot > 0 { spot_usd } else { 1.0 };
    assert!((plan.usd_per_hour - usd).abs() < 1e-9, "interruptions are in the choice, not in the bill");
    // Where none are expected the cheaper is taken.
    w.snapshot.accelerators[0].spot_interruptions_per_hour = 0.0;
    assert!(w.plan_with(&Halves).plan.pools[0].replicas[0].spot);
}

#[test]
fn explanations_and_what_if_speak_of_watts() {
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-70b", 2000.0, 60.0), demand(vec![class("a", 0.02, 600.0, 150.0)]));
    let free = w.plan();
    assert!(free.watts > 100.0 && free.grams_co2e_per_hour > 50.0, "{} W", free.watts);
    w.snapshot.budgets.push(capped("green", BudgetUnit::Watts, 0.5 * free.watts));
    let plan = w.run();
    assert_eq!(plan.pools[0].outcome, PoolOutcome::BudgetLimited);
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    let says =
        |l: &String| l.starts_with("budget green +") && l.contains(" W: serves 0.02 rps more, all of it");
    assert!(why.would_help.iter().any(says), "{why:#?}");
    // A change in the cap's own unit serves it again.
    let cap = free.watts.ceil();
    let (snapshot, _) =
        what_if::apply(&w.snapshot, &w.demands, &format!("budget/green.watts={cap}")).unwrap();
    w.snapshot = snapshot;
    assert_eq!(w.plan().pools[0].outcome, PoolOutcome::Served);
}

/// Two accelerator classes, up to three pools, up to three nested budgets of any units and limits.
#[derive(Debug, Clone)]
struct Small {
    nodes: [u32; 2],
    prices: [f64; 2],
    watts: [f64; 2],
    rates: [f64; 2],
    pools: Vec<(f64, i32)>,
    /// Caps by unit (in dollars, hundreds of watts, hundreds of grams), the pool covered, whether nested in the one before,
    /// and whether it downgrades.
    budgets: Vec<([Option<f64>; 3], usize, bool, bool)>,
}

fn small() -> impl Strategy<Value = Small> {
    let tenth = |r: std::ops::Range<u32>| r.prop_map(|x| f64::from(x) / 10.0);
    let two = move |r: std::ops::Range<u32>| (tenth(r.clone()), tenth(r)).prop_map(|(a, b)| [a, b]);
    let cap = move || prop::option::weighted(0.6, tenth(1..80));
    let budget =
        ((cap(), cap(), cap()).prop_map(|(a, b, c)| [a, b, c]), 0..4_usize, any::<bool>(), any::<bool>());
    (
        (0..5_u32, 0..5_u32),
        two(1..40),
        two(3..40),
        two(2..30),
        prop::collection::vec((tenth(0..50), 0..3_i32), 1..=3),
        prop::collection::vec(budget, 1..=3),
    )
        .prop_map(|(nodes, prices, watts, rates, pools, budgets)| Small {
            nodes: [nodes.0, nodes.1],
            prices,
            watts: watts.map(|w| 100.0 * w),
            rates,
            pools,
            budgets,
        })
}

impl Small {
    fn world(&self) -> (World, Table) {
        let names = ["l4", "l40s"];
        let sized = names.iter().zip(self.nodes).filter(|(_, gpus)| *gpus > 0);
        let mut w = World::new(sized.map(|(n, gpus)| node(n, n, gpus, "a")).collect());
        w.config.solve_gap = 0.0;
        w.config.solve_nodes = 100_000;
        for class in &mut w.snapshot.accelerators {
            let c = names.iter().position(|n| *n == class.name).unwrap();
            class.usd_per_hour = self.prices[c];
            (class.idle_watts, class.tdp_watts) = (5.0, self.watts[c].max(10.0));
        }
        for (i, (rps, tier)) in self.pools.iter().enumerate() {
            let mut p = pool(&format!("p{i}"), "llama-3.1-8b", 1e6, 1e4);
            p.variants.truncate(1);
            p.parallelism.tensor = vec![1];
            p.scaling.min_replicas = 0;
            p.priority = *tier;
            let classes = if *rps > 0.0 { vec![class("c0", *rps, 100.0, 100.0)] } else { vec![] };
            w.add(p, demand(classes));
        }
        for (i, (caps, covers, nested, downgrades)) in self.budgets.iter().enumerate() {
            let mut b = Budget { usd_per_hour: None, ..budget(&format!("b{i}"), 0.0) };
            for (unit, cap) in BudgetUnit::ALL.iter().zip(caps) {
                if let Some(cap) = cap {
                    b.set_cap(*unit, cap * unit.step());
                }
            }
            // 3: everything.
            if *covers < 3 {
                b.scope.pools = vec![format!("p{covers}").parse().unwrap()];
            }
            b.parent = (*nested && i > 0).then(|| format!("b{}", i - 1));
            b.on_limit = if *downgrades { OnLimit::Downgrade } else { OnLimit::Shed };
            w.snapshot.budgets.push(b);
        }
        let table = names.iter().zip(self.rates).map(|(n, r)| ((*n).to_owned(), vec![r])).collect();
        (w, Table(table))
    }

    /// Share left unserved, summed over the pools of each tier, highest first.
    fn unserved(&self, plan: &Plan) -> Vec<f64> {
        let mut tiers: BTreeMap<i32, f64> = BTreeMap::new();
        for (p, (rps, tier)) in plan.pools.iter().zip(&self.pools) {
            *tiers.entry(*tier).or_default() += if *rps > 0.0 { p.unserved_rps / rps } else { 0.0 };
        }
        tiers.into_values().rev().collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// No cap is exceeded, nested sums included ([`World::check`]); the same input gives the same plan; tiers above are served as if
    /// those below were not there; and more of a budget never serves less.
    #[test]
    fn caps_hold_tiers_go_first_and_more_never_serves_less(s in small(), more in 1..30_u32) {
        let (mut w, model) = s.world();
        let plan = w.plan_with(&model).plan;
        prop_assert_eq!(&plan, &w.plan_with(&model).plan, "same input, same plan");
        let before = s.unserved(&plan);
        let top = s.pools.iter().map(|p| p.1).max().unwrap();
        let mut alone = s.clone();
        alone.pools.iter_mut().filter(|p| p.1 < top).for_each(|p| p.0 = 0.0);
        let (u, alone_model) = alone.world();
        let only = alone.unserved(&u.plan_with(&alone_model).plan);
        prop_assert!((only[0] - before[0]).abs() < 1e-3, "the top tier leaves {} alone, {} among others", only[0], before[0]);
        for b in &mut w.snapshot.budgets {
            for unit in BudgetUnit::ALL {
                if let Some(cap) = b.cap(unit) {
                    b.set_cap(unit, cap * (1.0 + f64::from(more) / 10.0));
                }
            }
        }
        let after = s.unserved(&w.plan_with(&model).plan);
        for (x, y) in before.iter().zip(&after) {
            prop_assert!(*y <= x + 1e-3, "{before:?} of less, {after:?} of more");
            if *y < x - 1e-3 {
                break;
            }
        }
    }
}
