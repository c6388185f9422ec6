//! Prefill and decode on replicas of their own: when they are taken, that what is prefilled is decoded where it can be, and that the
//! fleet is the cheapest.

use std::collections::BTreeMap;

use plimsoll_fleet::plan::{PoolOutcome, Prediction};
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::*;

use super::support::*;
use crate::plan::decompose;
use crate::plan::options::Options;
use crate::plan::performance::{Evaluation, Misfit, Performance, Query};
use crate::plan::prepare;
use crate::plan::program::Problem;
use crate::plan::solver::{BranchAndBound, Limits};

/// Rates of one accelerator by accelerator class: serving whole, prefilling, decoding. Classes `c0`, `c1` … take 1, 2 … times as
/// much.
struct ByRole(BTreeMap<String, [f64; 3]>);

impl ByRole {
    fn of(rates: &[(&str, [f64; 3])]) -> Self {
        Self(rates.iter().map(|(name, rates)| ((*name).to_owned(), *rates)).collect())
    }
}

impl Performance for ByRole {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        let none = || Misfit { weight_bytes: 0.0, usable_bytes: 0.0, text: "not in the table".to_owned() };
        let [whole, prefill, decode] = self.0.get(&q.shape.accelerator).ok_or_else(none)?;
        let rate = match q.shape.role {
            Role::Mixed => whole,
            Role::Prefill => prefill,
            Role::Decode => decode,
        };
        let of = |c: &RequestClass| {
            let i: u32 = c.name.trim_start_matches('c').parse().unwrap_or(0);
            rate * f64::from(q.shape.gpus()) / f64::from(1 + i)
        };
        let rates: Vec<f64> = q.classes.iter().map(of).collect();
        let total: f64 = q.classes.iter().map(|c| c.rps).sum();
        let work: f64 = q.classes.iter().zip(&rates).map(|(c, r)| c.rps / r).sum();
        let mix_rps = if work.is_finite() && work > 0.0 { total / work } else { 0.0 };
        let watts = q.accelerator.tdp_watts * f64::from(q.shape.gpus());
        Ok(Evaluation { misses: vec![None; rates.len()], rates, mix_rps, watts })
    }

    fn predict(&self, q: &Query<'_>, _: f64) -> Option<Prediction> {
        let ms = |role, ms| Some(if q.shape.role == role { ms } else { 10.0 });
        Some(Prediction {
            ttft_ms: ms(Role::Prefill, 100.0),
            tpot_ms: ms(Role::Decode, 20.0),
            e2e_ms: None,
            relative_error: 0.1,
        })
    }

    fn coefficients(&self, _: &Query<'_>) -> Option<StepCoefficients> {
        Some(StepCoefficients::default())
    }
}

fn one(name: &str, kind: Disaggregation) -> ModelPool {
    let mut p = pool(name, "llama-3.1-8b", 1e6, 1e4);
    p.engine.kind = EngineKind::Vllm;
    p.variants.truncate(1);
    p.parallelism.tensor = vec![1];
    p.parallelism.disaggregation = kind;
    p
}

fn roles(plan: &Plan) -> [usize; 3] {
    let of = |role| plan.pools[0].replicas.iter().filter(|r| r.shape.role == role).count();
    [of(Role::Mixed), of(Role::Prefill), of(Role::Decode)]
}

fn limits() -> Limits {
    Limits { nodes: 20_000, gap: 0.0, seconds: 20.0 }
}

#[test]
fn parts_are_apart_where_that_is_cheaper_always_or_never_as_the_pool_says() {
    // Ten requests a second: ten replicas, or four that prefill and two that decode.
    let model = ByRole::of(&[("l4", [1.0, 2.5, 5.0])]);
    let plan_of = |kind, model: &ByRole| {
        let mut w = World::new(vec![node("a", "l4", 8, "a"), node("b", "l4", 8, "a")]);
        w.add(one("p", kind), demand(vec![class("c0", 10.0, 100.0, 100.0)]));
        w.plan_with(model).plan
    };
    let auto = plan_of(Disaggregation::Auto, &model);
    assert_eq!(roles(&auto), [0, 4, 2]);
    let p = &auto.pools[0];
    assert_eq!(p.outcome, PoolOutcome::Served);
    assert!((p.served_rps() - 10.0).abs() < 1e-6 && (p.max_rps() - 10.0).abs() < 1e-6);
    assert!(p.prediction.ttft_ms.is_some_and(|ms| (110.0..120.0).contains(&ms)), "{:?}", p.prediction);
    assert_eq!(p.prediction.tpot_ms, Some(20.0), "decode's alone");
    assert!(p.why.summary.contains("next: bf16 TP1 L4 +$"), "{}", p.why.summary);
    assert!(p.why.remarks.iter().any(|r| r.starts_with("prefill and decode apart: ")), "{:?}", p.why.remarks);
    assert_eq!(roles(&plan_of(Disaggregation::Never, &model)), [10, 0, 0]);
    // Dearer apart: only where nothing else is allowed.
    let dear = ByRole::of(&[("l4", [1.0, 1.5, 1.6])]);
    assert_eq!(roles(&plan_of(Disaggregation::Auto, &dear)), [10, 0, 0]);
    assert_eq!(roles(&plan_of(Disaggregation::Always, &dear)), [0, 7, 7]);
}

#[test]
fn engines_that_cannot_and_pools_of_one_are_told() {
    let model = ByRole::of(&[("l4", [1.0, 2.5, 5.0])]);
    let plan_of = |change: &dyn Fn(&mut ModelPool)| {
        let mut w = World::new(vec![node("a", "l4", 8, "a")]);
        let mut p = one("p", Disaggregation::Always);
        change(&mut p);
        w.add(p, demand(vec![class("c0", 10.0, 100.0, 100.0)]));
        let plan = w.plan_with(&model).plan;
        (plan.pools[0].outcome, plan.pools[0].why.summary.clone())
    };
    let (outcome, why) = plan_of(&|p| p.engine.kind = EngineKind::Llamacpp);
    assert!(outcome == PoolOutcome::Infeasible && why.contains("disaggregation to Never"), "{why}");
    let (outcome, why) = plan_of(&|p| p.scaling.max_replicas = 1);
    assert!(outcome == PoolOutcome::Infeasible && why.contains("spec.scaling.max is 1"), "{why}");
}

#[test]
fn a_pair_is_kept_without_traffic() {
    let model = ByRole::of(&[("l4", [1.0, 2.5, 5.0])]);
    let mut w = World::new(vec![node("a", "l4", 8, "a")]);
    w.add(one("p", Disaggregation::Always), demand(vec![]));
    let plan = w.plan_with(&model).plan;
    assert_eq!(roles(&plan), [0, 1, 1]);
    w.come_true(&plan);
    w.previous = Some(plan);
    // One that could go back to serving whole does not stop half of its pair either.
    w.snapshot.pools[0].parallelism.disaggregation = Disaggregation::Auto;
    let plan = w.plan_with(&model).plan;
    assert!([[0, 1, 1], [1, 0, 0]].contains(&roles(&plan)), "{:?}", roles(&plan));
}

#[test]
fn halves_of_pairs_stay_within_each_others_reach() {
    // One class prefills well, the other decodes well, in different zones.
    let model = ByRole::of(&[("l4", [0.01, 2.0, 0.01]), ("l40s", [0.01, 0.01, 2.0])]);
    let plan_of = |zone: &str| {
        let mut w = World::new(vec![node("a", "l4", 4, "a"), node("b", "l40s", 4, zone)]);
        w.add(one("p", Disaggregation::Always), demand(vec![class("c0", 4.0, 100.0, 100.0)]));
        w.plan_with(&model).plan
    };
    let together = plan_of("a");
    assert_eq!((roles(&together), together.pools[0].outcome), ([0, 2, 2], PoolOutcome::Served));
    let split = plan_of("b");
    assert!(split.pools[0].unserved_rps > 3.9, "{}", split.pools[0].unserved_rps);
}

#[test]
fn every_zone_has_both_halves() {
    let model = ByRole::of(&[("l4", [0.01, 2.0, 2.0])]);
    let mut w = World::new(vec![node("a", "l4", 4, "a"), node("b", "l4", 4, "b")]);
    let mut p = one("p", Disaggregation::Always);
    p.scaling.min_zones = 2;
    w.add(p, demand(vec![class("c0", 4.0, 100.0, 100.0)]));
    let plan = w.plan_with(&model).plan;
    assert_eq!((roles(&plan), plan.pools[0].outcome), ([0, 2, 2], PoolOutcome::Served));
    for (zone, role) in [("a", Role::Prefill), ("a", Role::Decode), ("b", Role::Prefill), ("b", Role::Decode)]
    {
        let here = |r: &&ReplicaAssignment| r.shape.role == role && r.nodes[0].as_str() == zone;
        assert_eq!(plan.pools[0].replicas.iter().filter(here).count(), 1, "{zone} {role}");
    }
}

#[test]
fn what_runs_is_not_changed_for_a_little() {
    let mut w = World::new(vec![node("a", "l4", 16, "a")]);
    let mut p = one("p", Disaggregation::Auto);
    p.engine.cold_start_seconds = 300.0;
    w.add(p, demand(vec![class("c0", 10.0, 100.0, 100.0)]));
    let plan = w.plan_with(&ByRole::of(&[("l4", [1.0, 2.5, 5.0])])).plan;
    assert_eq!(roles(&plan), [0, 4, 2]);
    w.come_true(&plan);
    let ids = |p: &Plan| p.pools[0].replicas.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    let first = ids(&plan);
    w.previous = Some(plan);
    // Replicas that serve whole would now be a little cheaper, new ones: five instead of six.
    w.cache = Default::default();
    let next = w.plan_with(&ByRole::of(&[("l4", [2.0, 2.5, 5.0])])).plan;
    assert_eq!(ids(&next), first);
    w.cache = Default::default();
    w.config.change_horizon_seconds = 1e9;
    let in_the_long_run = w.plan_with(&ByRole::of(&[("l4", [2.0, 2.5, 5.0])])).plan;
    assert_eq!(roles(&in_the_long_run), [5, 0, 0]);
}

#[test]
fn requests_that_gain_by_it_are_prefilled_apart_and_others_not() {
    // Of the class that is heavy to prefill whole replicas serve little.
    let model = ByRole::of(&[("l4", [1.0, 3.0, 3.0]), ("h100", [1.0, 8.0, 8.0])]);
    let mut w = World::new(vec![node("a", "l4", 8, "a"), node("h", "h100", 8, "a")]);
    w.add(
        one("p", Disaggregation::Auto),
        demand(vec![class("c0", 6.0, 100.0, 100.0), class("c1", 1.0, 900.0, 90.0)]),
    );
    let plan = w.plan_with(&model).plan;
    let again = w.plan_with(&model).plan;
    assert_eq!(plan.pools, again.pools, "same input, same plan");
    assert_eq!(plan.pools[0].outcome, PoolOutcome::Served);
}

/// What a fleet of one request class serves, counted by hand: whole replicas, and in each zone as much as is both prefilled and
/// decoded.
fn served(problem: &Problem<'_>, counts: &BTreeMap<(usize, usize), u32>) -> f64 {
    let pool = &problem.pools[0];
    let mut by_zone: BTreeMap<(&str, usize), Vec<(Role, f64)>> = BTreeMap::new();
    for ((k, c), n) in counts {
        let candidate = &pool.set.candidates[*k];
        let at = (problem.cells[*c].zone.as_str(), candidate.pairing.unwrap_or(0));
        by_zone.entry(at).or_default().push((candidate.shape.role, f64::from(*n) * candidate.rates[0]));
    }
    by_zone.into_values().map(plan::served_rps).sum()
}

/// The cheapest of all fleets that serve everything, tried one by one.
fn brute_force(problem: &Problem<'_>) -> Option<f64> {
    let pool = &problem.pools[0];
    let options = Options::new(problem);
    let places: Vec<(usize, usize, u32)> = (0..pool.set.candidates.len())
        .flat_map(|k| (0..problem.cells.len()).map(move |c| (k, c)))
        .filter(|(k, c)| problem.cells[*c].accelerator == pool.set.candidates[*k].shape.accelerator)
        .map(|(k, c)| (k, c, problem.groups(c, 1)))
        .collect();
    let wanted = pool.total_rps() * pool.headroom;
    let mut best: Option<f64> = None;
    let mut counts = vec![0_u32; places.len()];
    loop {
        let fleet: BTreeMap<(usize, usize), u32> = places
            .iter()
            .zip(&counts)
            .filter(|(_, n)| **n > 0)
            .map(|((k, c, _), n)| ((*k, *c), *n))
            .collect();
        let fits = (0..problem.cells.len()).all(|c| {
            let here = fleet.iter().filter(|((_, at), _)| *at == c).map(|(_, n)| n).sum::<u32>();
            here <= problem.groups(c, 1)
        });
        let total: u32 = fleet.values().sum();
        if fits
            && (pool.floor..=pool.ceiling).contains(&total)
            && served(problem, &fleet) >= wanted * (1.0 - 1e-9)
        {
            let cost = options.cost(0, &fleet);
            best = Some(best.map_or(cost, |b: f64| b.min(cost)));
        }
        let Some(i) = (0..counts.len()).find(|i| counts[*i] < places[*i].2) else { return best };
        counts[i] += 1;
        counts[..i].iter_mut().for_each(|n| *n = 0);
    }
}

#[test]
fn the_fleet_is_the_cheapest_of_all() {
    let (mut compared, mut apart, mut mixed) = (0, 0, 0);
    for seed in 0..60_u32 {
        let pick = |i: u32, n: u32| (seed * 7919 + i * 104_729 + (seed * i) % 13) % n;
        let mut w = World::new(vec![
            node("a0", "l4", 2 + pick(0, 2), "a"),
            node("b0", "l4", 1 + pick(1, 3), "b"),
            node("c0", "l40s", 2, if pick(2, 2) == 0 { "a" } else { "b" }),
        ]);
        let kind = [Disaggregation::Auto, Disaggregation::Auto, Disaggregation::Always][pick(3, 3) as usize];
        let rate = |i: u32| 0.4 + 0.3 * f64::from(pick(i, 9));
        let l4 = [0.4 + 0.1 * f64::from(pick(4, 9)), rate(5), rate(6)];
        let model = ByRole::of(&[("l4", l4), ("l40s", [0.8 * l4[0], rate(7), rate(8)])]);
        w.add(one("p", kind), demand(vec![class("c0", 0.7 + 0.35 * f64::from(pick(9, 9)), 100.0, 100.0)]));
        if pick(10, 3) == 0 {
            // Something runs already.
            let plan = w.plan_with(&model).plan;
            w.come_true(&plan);
            w.previous = Some(plan);
            w.demands.values_mut().for_each(|d| d.classes[0].rps *= 0.5 + 0.25 * f64::from(pick(11, 4)));
        }
        let input = w.input();
        let drafts = prepare::drafts(&input, &model);
        let problem = prepare::problem(&input, &drafts, &[0], &Default::default(), &Default::default());
        let answer = decompose::solve(&problem, &BranchAndBound, &limits());
        let best = brute_force(&problem);
        assert_eq!(answer.complete, best.is_some(), "seed {seed}: {answer:?}");
        let got = &answer.pools[0];
        let able = served(&problem, &got.counts);
        let share = 1.0 - got.unserved[0];
        assert!(
            able >= share * problem.pools[0].total_rps() * (1.0 - 1e-6),
            "seed {seed}: {able} for {share}"
        );
        let sum = |role: Role| -> f64 {
            let of = |s: &&crate::plan::program::PartShare| {
                problem.pools[0].set.candidates[s.candidate].shape.role == role
            };
            got.apart.iter().filter(of).map(|s| s.share).sum()
        };
        assert!((sum(Role::Prefill) - sum(Role::Decode)).abs() < 1e-9, "seed {seed}");
        if let Some(best) = best {
            compared += 1;
            assert!(
                (answer.objective - best).abs() < 1e-6 * (1.0 + best),
                "seed {seed}: {} not {best}",
                answer.objective
            );
            assert!(answer.bound <= best + 1e-6, "seed {seed}: bound {} above {best}", answer.bound);
            if got.apart.is_empty() { mixed += 1 } else { apart += 1 }
        }
    }
    assert!(compared >= 30 && apart >= 10 && mixed >= 5, "{compared} compared, {apart} apart, {mixed} whole");
}

#[test]
fn routes_share_what_is_prefilled_and_what_is_decoded() {
    let model = ByRole::of(&[("l4", [1.0, 2.5, 5.0])]);
    let mut w = World::new(vec![node("a", "l4", 8, "a"), node("b", "l4", 8, "a")]);
    w.add(one("p", Disaggregation::Auto), demand(vec![class("c0", 10.0, 100.0, 100.0)]));
    let plan = w.plan_with(&model).plan;
    w.come_true(&plan);
    w.snapshot.replicas.iter_mut().for_each(|r| r.revision = "one".to_owned());
    let table = crate::routes::routes(&plan, &w.snapshot, &BTreeMap::new(), 1);
    for (role, each) in [(Role::Prefill, 0.25), (Role::Decode, 0.5)] {
        let own = table.pools[0].endpoints.iter().filter(|e| e.role == role);
        let weights: Vec<f64> = own.flat_map(|e| &e.weights).map(|(_, w)| *w).collect();
        assert!(weights.iter().all(|w| (w - each).abs() < 1e-6), "{role}: {weights:?}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{role}: {weights:?}");
    }
}

/// Llama 3.1 70B with prompts of 2,000 tokens and tight objectives on H100s.
fn long_prompts(kind: Disaggregation) -> (World, Plan) {
    let mut w = World::new((0..16).map(|i| node(&format!("h{i}"), "h100", 8, "a")).collect());
    let mut p = pool("p", "llama-3.1-70b", 1000.0, 25.0);
    p.engine.kind = EngineKind::Vllm;
    p.max_context_tokens = Some(16_384);
    p.parallelism.disaggregation = kind;
    w.add(p, demand(vec![class("c0", 40.0, 2000.0, 300.0)]));
    let plan = w.plan();
    (w, plan)
}

#[test]
fn the_joint_model_agrees_that_planned_pairs_meet_the_objectives() {
    use plimsoll_engine::{EngineConfig, KvTransfer, LinkTier, PdModel, ReplicaModel};
    let (w, apart) = long_prompts(Disaggregation::Always);
    let (_, whole) = long_prompts(Disaggregation::Never);
    assert!(apart.usd_per_hour < 0.9 * whole.usd_per_hour, "{} {}", apart.usd_per_hour, whole.usd_per_hour);
    let (_, auto) = long_prompts(Disaggregation::Auto);
    assert!(auto.usd_per_hour <= apart.usd_per_hour + 1e-9, "{} {}", auto.usd_per_hour, apart.usd_per_hour);
    let spec = &w.snapshot.pools[0];
    let counts = apart.pools[0].by_shape();
    let of = |role: Role| -> (Shape, u32) {
        let mut own = counts.iter().filter(|(s, _)| s.role == role);
        let (shape, n) = own.next().unwrap();
        assert!(own.next().is_none(), "one shape a part: {counts:?}");
        (shape.clone(), *n)
    };
    let ((p, n), (d, m)) = (of(Role::Prefill), of(Role::Decode));
    let h100 = &w.snapshot.accelerators[0];
    let model = |shape: &Shape| {
        let variant = spec.variant(&shape.variant).unwrap();
        ReplicaModel::new(&spec.served_architecture(), variant, h100, shape, &EngineConfig::of("vllm"))
            .unwrap()
    };
    let variant = spec.variant(&p.variant).unwrap();
    let transfer = KvTransfer::new(&spec.architecture, variant, (h100, &p), (h100, &d), LinkTier::Network);
    let pair = PdModel::new(model(&p), model(&d), transfer).unwrap();
    let slos = |name: &str| spec.slo_class(name).unwrap().slo;
    let line = pair.load_line(&apart.pools[0].demand.classes, &slos, 1.0, 0.15, n, m);
    assert!(line.rps >= 40.0, "{n} and {m} carry {line:?}");
}

#[test]
fn engines_are_predicted_with_their_own_settings() {
    use plimsoll_engine::Scheduling;
    let config = |kind| {
        let mut p = one("p", Disaggregation::Auto);
        p.engine.kind = kind;
        crate::plan::engine_config(&p, &[])
    };
    assert_eq!(config(EngineKind::Sglang).scheduling, Scheduling::PrefillFirst);
    assert_eq!(config(EngineKind::Vllm), plimsoll_engine::EngineConfig::default());
    assert_eq!(config(EngineKind::Simulated), config(EngineKind::Vllm));
}

#[test]
fn room_for_adapters_leaves_out_shapes_that_have_none() {
    let shapes = |rank: Option<u32>| {
        let mut w = World::new(vec![node("a", "l4", 1, "a")]);
        let mut p = pool("p", "llama-3.1-8b", 1e5, 1e3);
        p.engine.kind = EngineKind::Vllm;
        p.variants.truncate(1);
        p.max_context_tokens = Some(4096);
        w.snapshot.adapters = rank
            .into_iter()
            .flat_map(|rank| {
                (0..8).map(move |i| Adapter {
                    namespace: "default".to_owned(),
                    name: format!("a{i}"),
                    served_name: format!("a{i}"),
                    base_pool: "p".parse().unwrap(),
                    source: "hf://org/a".to_owned(),
                    sha256: None,
                    rank,
                    size_bytes: None,
                    expected_rps: 0.0,
                    pinned: false,
                })
            })
            .collect();
        w.add(p, demand(vec![class("c0", 0.1, 300.0, 100.0)]));
        w.plan().pools[0].replicas.len()
    };
    assert_eq!((shapes(None), shapes(Some(16)), shapes(Some(256))), (1, 1, 0), "bf16 takes 16 of 24 GB");
}

#[test]
fn pools_that_share_accelerators_are_as_cheap_by_prices_as_by_one_program() {
    use crate::plan::greedy::greedy;
    use crate::plan::whole::solve_whole;
    let (mut compared, mut apart) = (0, 0);
    for seed in 0..12_u32 {
        let pick = |i: u32, n: u32| (seed * 7919 + i * 104_729) % n;
        let mut w = World::new(vec![
            node("a0", "l4", 5 + pick(0, 3), "a"),
            node("b0", "l4", 4, "b"),
            node("c0", "l40s", 4 + pick(1, 3), "a"),
        ]);
        for i in 0..3 {
            let rps = 1.5 + 0.5 * f64::from(pick(2 + i, 6));
            w.add(
                one(&format!("p{i}"), Disaggregation::Auto),
                demand(vec![class("c0", rps, 100.0, 100.0), class("c1", 0.3, 900.0, 90.0)]),
            );
        }
        if seed.is_multiple_of(2) {
            w.snapshot.budgets.push(budget("all", 9.0));
        }
        let model = ByRole::of(&[("l4", [0.8, 2.6, 2.2]), ("l40s", [1.1, 2.9, 3.4])]);
        let input = w.input();
        let drafts = prepare::drafts(&input, &model);
        let problem = prepare::problem(&input, &drafts, &[0, 1, 2], &Default::default(), &Default::default());
        let usual = Limits { nodes: 2_000, gap: 1e-4, seconds: 20.0 };
        let answer = decompose::solve(&problem, &BranchAndBound, &usual);
        let whole = solve_whole(&problem, &greedy(&problem), &BranchAndBound, &limits());
        assert!(
            whole.complete || !answer.complete,
            "seed {seed}: what prices serve, the whole program serves"
        );
        let options = Options::new(&problem);
        for (p, got) in answer.pools.iter().enumerate() {
            let again = crate::plan::greedy::answer_of(&problem, p, &got.counts);
            for (a, b) in again.unserved.iter().zip(&got.unserved) {
                assert!((a - b).abs() < 1e-5, "seed {seed}: {a} {b}");
            }
        }
        if !answer.complete {
            continue;
        }
        compared += 1;
        apart += usize::from(answer.pools.iter().any(|p| !p.apart.is_empty()));
        let cost: f64 = answer.pools.iter().enumerate().map(|(p, a)| options.cost(p, &a.counts)).sum();
        assert!((cost - answer.objective).abs() < 1e-6, "seed {seed}: {cost} is not {}", answer.objective);
        assert!(
            answer.bound <= whole.objective + 1e-4,
            "seed {seed}: {} above {}",
            answer.bound,
            whole.objective
        );
        assert!(
            whole.bound <= answer.objective + 1e-4,
            "seed {seed}: {} beats {}",
            answer.objective,
            whole.bound
        );
        assert!(
            answer.objective <= 1.05 * whole.objective + 1e-6,
            "seed {seed}: {} {}",
            answer.objective,
            whole.objective
        );
    }
    assert!(compared >= 4 && apart >= 3, "{compared} compared, {apart} apart");
}
