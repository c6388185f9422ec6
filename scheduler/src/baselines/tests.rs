//! Each rule on an example that can be worked out by hand: an L4 serves 1 request/s for $1/h, an L40S 4 for $3/h.

use std::collections::BTreeMap;

use super::*;
use crate::plan::tests::support::*;

/// A cluster with so many of each, and pools with these demands (by class) and tiers.
fn world(l4: u32, l40s: u32, pools: &[(&[f64], i32)]) -> (World, Table) {
    let mut w = World::new(vec![node("l4", "l4", l4, "a"), node("l40s", "l40s", l40s, "a")]);
    for class in &mut w.snapshot.accelerators {
        class.usd_per_hour = if class.name == "l4" { 1.0 } else { 3.0 };
    }
    for (i, (rates, tier)) in pools.iter().enumerate() {
        let mut p = pool(&format!("p{i}"), "llama-3.1-8b", 1e6, 1e4);
        p.variants.truncate(1);
        p.parallelism.tensor = vec![1];
        (p.priority, p.scaling.min_replicas) = (*tier, 0);
        let classes = rates.iter().enumerate().map(|(i, rps)| class(&format!("c{i}"), *rps, 100.0, 100.0));
        w.add(p, demand(classes.collect()));
    }
    let table = [("l4", 1.0), ("l40s", 4.0)].map(|(kind, rate)| (kind.to_owned(), vec![rate]));
    (w, Table(BTreeMap::from(table)))
}

/// Replicas of each pool by accelerator, (L4, L40S), and the verdict.
fn ask((w, table): &(World, Table), policy: &dyn Fn(&Problem<'_>) -> Fleet) -> (Vec<(u32, u32)>, Verdict) {
    with_problem(&w.input(), table, Candidates::Kept, |problem| {
        let fleet = policy(problem);
        assert_eq!(policy(problem), fleet, "same input, same fleet");
        let mut left = Remaining::new(problem);
        fleet.iter().enumerate().for_each(|(p, counts)| left.take_each(p, counts));
        assert!(!left.is_overdrawn(), "more than there is: {fleet:?}");
        let of = |p: usize, kind: &str| -> u32 {
            let is = |k: usize| problem.pools[p].set.candidates[k].shape.accelerator == kind;
            fleet[p].iter().filter(|((k, _), _)| is(*k)).map(|(_, n)| n).sum()
        };
        let counts = (0..fleet.len()).map(|p| (of(p, "l4"), of(p, "l40s"))).collect();
        (counts, judge(problem, &fleet))
    })
}

#[test]
fn one_kind_for_all_is_the_kind_that_serves_all_for_least() {
    let (counts, verdict) = ask(&world(20, 8, &[(&[2.0], 0), (&[8.0], 0)]), &one_kind_for_all);
    assert_eq!(counts, [(0, 1), (0, 2)], "L4s would cost $10");
    assert_eq!((verdict.usd_per_hour, verdict.attainment()), (9.0, 1.0));
    let (counts, _) = ask(&world(20, 2, &[(&[2.0], 0), (&[8.0], 0)]), &one_kind_for_all);
    assert_eq!(counts, [(2, 0), (8, 0)], "there are too few L40S");
}

#[test]
fn one_kind_per_pool_is_each_ones_cheapest_cut_down_to_what_there_is() {
    let (counts, verdict) = ask(&world(20, 8, &[(&[2.0], 0), (&[8.0], 0)]), &one_kind_per_pool);
    assert_eq!(counts, [(2, 0), (0, 2)]);
    assert_eq!(verdict.usd_per_hour, 8.0);
    // With one L40S the higher tier has it, and L4s stand idle.
    let (counts, verdict) = ask(&world(20, 1, &[(&[8.0], 0), (&[8.0], 1)]), &one_kind_per_pool);
    assert_eq!(counts, [(0, 0), (0, 1)]);
    assert_eq!(verdict.attainment(), 0.25);
    assert_eq!(verdict.undone, [(1, 0.5), (0, 1.0)]);
}

#[test]
fn melange_mixes_kinds_by_bucket_and_knows_no_end_of_either() {
    let (counts, verdict) = ask(&world(20, 8, &[(&[8.0, 1.0], 0)]), &melange);
    assert_eq!((counts, verdict.usd_per_hour), (vec![(1, 2)], 7.0));
    // A bucket of 16/3: whole, it takes six L4 or two L40S, $6; in quarters one L40S has three of them and two L4 one, $5.
    let split = world(20, 8, &[(&[16.0 / 3.0], 0)]);
    assert_eq!(ask(&split, &melange).1.usd_per_hour, 6.0);
    let (counts, verdict) = ask(&split, &aibrix);
    assert_eq!((counts, verdict.usd_per_hour), (vec![(2, 1)], 5.0));
    // It would have two L40S where there is one, and does without instead of taking L4s.
    let (counts, verdict) = ask(&world(20, 1, &[(&[8.0], 0)]), &melange);
    assert_eq!((counts, verdict.attainment()), (vec![(0, 1)], 0.5));
}

#[test]
fn wva_gives_scarce_stock_to_whom_its_loss_would_cost_most() {
    // Both want L40S; without, one pays $8 instead of $6, the other $4 instead of $3.
    let demands: [(&[f64], i32); 2] = [(&[4.0], 0), (&[8.0], 0)];
    let rule = |problem: &Problem<'_>| wva(problem, Unallocated::Nothing);
    assert_eq!(ask(&world(20, 2, &demands), &rule).0, [(4, 0), (0, 2)]);
    let tiers: [(&[f64], i32); 2] = [(&[4.0], 1), (&[8.0], 0)];
    assert_eq!(ask(&world(20, 2, &tiers), &rule).0, [(0, 1), (8, 0)], "priority comes first");
    // Where no option fits whole, the rule gives nothing; what is left would serve some.
    assert_eq!(ask(&world(3, 1, &[(&[8.0], 0)]), &rule).0, [(0, 0)]);
    let rest = |problem: &Problem<'_>| wva(problem, Unallocated::WhatIsLeft);
    let (counts, verdict) = ask(&world(3, 1, &[(&[8.0], 0)]), &rest);
    assert_eq!((counts, verdict.attainment()), (vec![(3, 1)], 7.0 / 8.0));
}

#[test]
fn wva_stays_where_a_move_saves_less_than_a_tenth() {
    // What runs are four L4 for $4, made when an L40S was dear.
    let (mut w, table) = world(20, 2, &[(&[4.0], 0)]);
    let price = |w: &mut World, usd| {
        w.snapshot.accelerators.iter_mut().find(|a| a.name == "l40s").unwrap().usd_per_hour = usd;
    };
    price(&mut w, 100.0);
    let plan = w.plan_with(&table).plan;
    w.come_true(&plan);
    // One L40S for $3.50 saves less than the penalty of 0.1 × (4 + 3.5); one for $3 saves more.
    let mut fleets = Vec::new();
    for usd in [3.5, 3.0] {
        price(&mut w, usd);
        let rule = |problem: &Problem<'_>| wva(problem, Unallocated::Nothing);
        let input = w.input();
        fleets.push(with_problem(&input, &table, Candidates::Kept, |problem| {
            judge(problem, &rule(problem)).usd_per_hour
        }));
    }
    assert_eq!(fleets, [4.0, 3.0]);
}

#[test]
fn the_adaptive_heuristic_mixes_relocates_and_consolidates() {
    let (counts, verdict) = ask(&world(20, 8, &[(&[9.0], 0)]), &adaptive_greedy);
    assert_eq!((counts, verdict.usd_per_hour), (vec![(1, 2)], 7.0));
    // Inventory binds: it uses both kinds.
    let (counts, verdict) = ask(&world(6, 1, &[(&[4.0], 0), (&[6.0], 0)]), &adaptive_greedy);
    assert_eq!(verdict.attainment(), 1.0, "{counts:?}");
    assert_eq!(verdict.usd_per_hour, 9.0, "{counts:?}");
}

#[test]
fn budgets_cut_every_rule_down() {
    let (mut w, table) = world(20, 8, &[(&[8.0], 0), (&[8.0], 1)]);
    w.snapshot.budgets.push(budget("all", 9.0));
    let world = (w, table);
    let rest = |problem: &Problem<'_>| wva(problem, Unallocated::WhatIsLeft);
    let rules: [&dyn Fn(&Problem<'_>) -> Fleet; 6] =
        [&one_kind_for_all, &one_kind_per_pool, &melange, &aibrix, &rest, &adaptive_greedy];
    for rule in rules {
        let (counts, verdict) = ask(&world, rule);
        assert!(verdict.usd_per_hour <= 9.0, "{counts:?}");
        assert_eq!(verdict.undone[0], (1, 0.0), "the higher tier is served: {counts:?}");
    }
}

#[test]
fn a_fleet_is_judged_by_another_models_figures() {
    let (w, table) = world(20, 8, &[(&[8.0], 0)]);
    let slower = Table(BTreeMap::from([("l40s".to_owned(), vec![2.0])]));
    let input = w.input();
    with_problem(&input, &table, Candidates::Kept, |problem| {
        let fleet = one_kind_per_pool(problem);
        let cache = crate::plan::ShapeCache::default();
        with_problem(&PlanInput { cache: &cache, ..input.clone() }, &slower, Candidates::All, |truth| {
            let verdict = judge(truth, &translate(problem, &fleet, truth));
            assert_eq!((verdict.attainment(), verdict.usd_per_hour), (0.5, 6.0));
        });
    });
}
