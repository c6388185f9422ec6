//! Every message a person may need, on real models and hardware.

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::{Mode, SpotPolicy};
use plimsoll_fleet::*;

use super::support::*;
use crate::explain::deepen;

fn summary(w: &World, name: &str) -> (PoolOutcome, String) {
    let plan = w.plan();
    let p = plan.pool(&name.parse().unwrap()).unwrap();
    (p.outcome, p.why.summary.clone())
}

#[test]
fn a_model_that_fits_nowhere_says_how_much_is_missing_and_what_would_do() {
    let mut w = World::up();
    w.add(pool("big", "deepseek-v3", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    w.add(pool("ok", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let (outcome, text) = summary(&w, "big");
    println!("{text}");
    assert_eq!(outcome, PoolOutcome::Infeasible);
    assert!(text.starts_with("no shape fits: needs 67"), "{text}");
    assert!(
        text.contains("GB usable (8× H100)") && text.contains("allow pipeline: [2] or add a fp4 variant"),
        "{text}"
    );
    assert_eq!(summary(&w, "ok").0, PoolOutcome::Served, "others are planned");
}

#[test]
fn an_objective_out_of_reach_names_the_best_shape_and_a_limit_that_would_do() {
    let mut w = World::up();
    w.add(pool("fast", "llama-3.1-70b", 2000.0, 1.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let (outcome, text) = summary(&w, "fast");
    println!("{text}");
    assert_eq!(outcome, PoolOutcome::Infeasible);
    assert!(text.starts_with("no shape meets TPOT p95 ≤ 1 ms: best is fp8 TP8 H100 with "), "{text}");
    // The advice holds.
    let ms: f64 = text.rsplit_once("to ").unwrap().1.trim_end_matches(" ms").parse().unwrap();
    w.snapshot.pools[0].slo_classes[0].slo.tpot.as_mut().unwrap().ms = ms;
    assert_eq!(summary(&w, "fast").0, PoolOutcome::Served);
}

#[test]
fn a_budget_below_one_replica_names_the_sum_that_would_do() {
    let mut w = World::up();
    w.add(pool("chat", "qwen3-32b", 1500.0, 80.0), demand(vec![class("a", 0.5, 1000.0, 200.0)]));
    let mut b = budget("team-a", 1.0);
    b.scope.namespaces = vec!["default".to_owned()];
    w.snapshot.budgets.push(b);
    let (outcome, text) = summary(&w, "chat");
    println!("{text}");
    assert_eq!(outcome, PoolOutcome::BudgetLimited);
    assert_eq!(text, "budget team-a has $1.00/h, cheapest replica costs $1.10/h; raise it to $1.10");
    w.snapshot.budgets[0].usd_per_hour = Some(1.10);
    assert_eq!(summary(&w, "chat").0, PoolOutcome::Served);
    // With more demand than one such replica takes, the sum that serves everything.
    w.snapshot.budgets[0].usd_per_hour = Some(1.0);
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("a", 4.0, 1000.0, 200.0)]));
    let text = summary(&w, "chat").1;
    println!("{text}");
    assert!(text.ends_with(" to serve everything"), "{text}");
    let (_, sum) = text.trim_end_matches(" to serve everything").rsplit_once('$').unwrap();
    w.snapshot.budgets[0].usd_per_hour = Some(sum.parse().unwrap());
    assert_eq!(summary(&w, "chat").0, PoolOutcome::Served, "{text}");
}

#[test]
fn contradictory_bounds_and_parallelism_are_named() {
    let mut w = World::up();
    let mut p = pool("p", "llama-3.1-8b", 2000.0, 100.0);
    p.scaling.min_replicas = 5;
    p.scaling.max_replicas = 2;
    w.add(p, demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let mut q = pool("q", "llama-3.1-8b", 2000.0, 100.0);
    q.parallelism.tensor = vec![3];
    w.add(q, demand(vec![]));
    let mut r = pool("r", "llama-3.1-8b", 2000.0, 100.0);
    r.placement.accelerators = vec!["b300".to_owned()];
    w.add(r, demand(vec![]));
    let mut s = pool("s", "llama-3.1-8b", 2000.0, 100.0);
    s.min_quality = 2.0;
    w.add(s, demand(vec![]));
    assert_eq!(summary(&w, "p").1, "spec.scaling.min 5 is above spec.scaling.max 2; lower min or raise max");
    let q = summary(&w, "q").1;
    assert!(
        q.contains("TP3 does not divide the model's 32 attention heads") && q.contains("1, 2, 4, 8"),
        "{q}"
    );
    let r = summary(&w, "r").1;
    assert!(r.contains("b300, which does not exist; there is h100, l40s, l4"), "{r}");
    assert!(summary(&w, "s").1.contains("no variant reaches spec.minQuality 2"), "{}", summary(&w, "s").1);
}

#[test]
fn too_few_accelerators_say_what_is_unserved() {
    let mut w = World::new(vec![node("l4-0", "l4", 1, "a")]);
    w.add(pool("p", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 40.0, 1000.0, 200.0)]));
    let (outcome, text) = summary(&w, "p");
    println!("{text}");
    assert_eq!(outcome, PoolOutcome::CapacityLimited);
    assert!(text.starts_with("no free L4: ") && text.contains("of 40.00 rps unserved in tier 0"), "{text}");
    let why = deepen(&w.input(), &w.plan(), &"p".parse().unwrap());
    assert!(
        why.would_help[0].starts_with("8 more L4: serves") || why.would_help[0].contains("more L4: serves"),
        "{why:?}"
    );
    w.snapshot.pools[0].scaling.max_replicas = 1;
    w.snapshot.nodes.push(node("l4-1", "l4", 1, "a"));
    assert!(summary(&w, "p").1.starts_with("spec.scaling.max 1 binds: "), "{}", summary(&w, "p").1);
}

#[test]
fn a_cordoned_node_is_named_where_it_is_what_is_missing() {
    let mut w = World::new(vec![node("h-0", "h100", 8, "a")]);
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 2.0, 1000.0, 200.0)]));
    w.run();
    w.snapshot.nodes[0].schedulable = false;
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("a", 300.0, 1000.0, 200.0)]));
    let plan = w.plan();
    let why = &plan.pools[0].why;
    assert!(why.summary.starts_with("no free H100 (h-0 is cordoned or tainted): "), "{}", why.summary);
    assert!(why.would_help.iter().any(|h| h.starts_with("kubectl uncordon h-0")), "{:?}", why.would_help);
}

#[test]
fn odd_figures_never_panic_and_leave_the_others_alone() {
    let mut w = World::up();
    w.add(pool("ok", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let mut nan = demand(vec![class("a", f64::NAN, f64::NAN, -5.0), class("b", 1.0, f64::INFINITY, 0.0)]);
    nan.arrival_scv = f64::NAN;
    w.add(pool("odd", "llama-3.1-8b", 2000.0, 100.0), nan);
    let mut odd = pool("odder", "llama-3.1-8b", f64::NAN, -1.0);
    odd.engine.cold_start_seconds = f64::NAN;
    w.add(odd, demand(vec![class("a", 1.0, 10.0, 10.0)]));
    w.snapshot.accelerators[0].usd_per_hour = f64::NAN;
    w.snapshot.accelerators[1].usd_per_hour = 0.0;
    let mut a = budget("a", f64::NAN);
    a.parent = Some("b".to_owned());
    let mut b = budget("b", 1e9);
    b.parent = Some("a".to_owned());
    w.snapshot.budgets.extend([a, b]);
    let plan = w.plan();
    let ok = plan.pool(&"ok".parse().unwrap()).unwrap();
    assert_eq!(ok.outcome, PoolOutcome::Served);
    let help = ok.why.would_help.join("\n");
    assert!(help.contains("budget a: its cap is not a number") && help.contains("form a cycle"), "{help}");
    w.snapshot.accelerators.iter_mut().for_each(|a| a.usd_per_hour = -1.0);
    let (outcome, text) = summary(&w, "ok");
    assert_eq!(outcome, PoolOutcome::Infeasible);
    assert!(text.contains("usdPerHour is -1; give a price of 0 or more"), "{text}");
}

#[test]
fn nothing_at_all_is_a_plan_too() {
    let mut w = World::new(vec![]);
    assert!(w.plan().pools.is_empty());
    w.add(pool("p", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    assert!(summary(&w, "p").1.starts_with("no AcceleratorClass exists"), "{}", summary(&w, "p").1);
    w.snapshot.accelerators.push(presets::accelerator("h100").unwrap());
    assert!(
        summary(&w, "p").1.starts_with("no node has an allowed accelerator (H100)"),
        "{}",
        summary(&w, "p").1
    );
    let mut n = node("n", "h100", 8, "a");
    n.ready = false;
    w.snapshot.nodes.push(n);
    assert!(summary(&w, "p").1.contains("no usable H100 node: none is ready"), "{}", summary(&w, "p").1);
    w.snapshot.nodes[0].ready = true;
    w.snapshot.nodes[0].spot = true;
    assert!(summary(&w, "p").1.contains("set spec.placement.spot to Allowed"), "{}", summary(&w, "p").1);
    w.snapshot.pools[0].placement.spot = SpotPolicy::Allowed;
    assert_eq!(summary(&w, "p").0, PoolOutcome::Served);
    w.snapshot.pools[0].engine.kind = EngineKind::External;
    assert_eq!(summary(&w, "p").1, "external endpoint: nothing to plan");
}

#[test]
fn a_broken_spec_stops_nothing_that_runs() {
    let mut w = World::up();
    w.add(pool("p", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    let before = w.run();
    w.snapshot.pools[0].slo_classes[0].slo.tpot.as_mut().unwrap().ms = 0.001;
    let after = w.run();
    assert_eq!(after.pools[0].outcome, PoolOutcome::Infeasible);
    assert_eq!(after.pools[0].replicas, before.pools[0].replicas);
    assert!(after.pools[0].why.would_help[0].contains("1 running replicas stay"));
}

#[test]
fn advice_takes_nothing_from_what_is_enforced() {
    let mut w = World::new(vec![node("l4-0", "l4", 1, "a")]);
    let mut advised = pool("a-advised", "llama-3.1-8b", 2000.0, 100.0);
    advised.mode = Mode::Advise;
    advised.priority = 100;
    w.add(advised, demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    w.add(pool("real", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 1.0, 1000.0, 200.0)]));
    assert_eq!(summary(&w, "real").0, PoolOutcome::Served);
    assert_eq!(summary(&w, "a-advised").0, PoolOutcome::CapacityLimited);
}

#[test]
fn explanations_test_what_they_say() {
    let mut w = World::up();
    w.add(
        pool("chat", "llama-3.1-70b", 800.0, 50.0),
        demand(vec![class("a", 3.0, 1200.0, 250.0), class("b", 1.0, 3500.0, 400.0)]),
    );
    let plan = w.run();
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    println!("{why:#?}");
    let up = why.runner_up.unwrap();
    assert!(!up.fleet.is_empty() && !up.because.is_empty());
    let gone = deepen(&w.input(), &plan, &"nobody".parse().unwrap());
    assert!(gone.summary.contains("there is no pool default/nobody"));
    // A tight objective: loosening it by a fifth lets a cheaper shape in, and the line says what it saves.
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-70b", 2000.0, 60.0), demand(vec![class("a", 0.02, 600.0, 150.0)]));
    let plan = w.run();
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    println!("{} ${:.2} {why:#?}", plan.pools[0].fleet_text(), plan.usd_per_hour);
    assert_eq!(why.would_help, ["TPOT 72 ms instead of 60: −$2.20/h with 1× fp8 TP2 L40S"]);
    // A budget that binds: more of it serves more, and the line says how much.
    w.snapshot.budgets.push(budget("all", 3.0));
    w.previous = None;
    w.snapshot.replicas.clear();
    let plan = w.run();
    assert_eq!(plan.pools[0].outcome, PoolOutcome::BudgetLimited);
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    println!("{why:#?}");
    assert!(
        why.would_help
            .iter()
            .any(|l| l.starts_with("TPOT 72 ms instead of 60: serves 0.02 rps more, all of it")),
        "{why:?}"
    );
    assert!(
        why.would_help
            .iter()
            .any(|l| l == "budget all +$1.40/h: serves 0.02 rps more, all of it (attainment 0.000 → 1.000), for +$4.40/h"),
        "{why:?}"
    );
}

#[test]
fn of_several_limits_that_bind_at_once_each_is_named_with_what_all_would_bring() {
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 30.0, 1000.0, 200.0)]));
    let free = w.plan();
    // A budget inside a budget: more of either alone changes nothing.
    let cap = 0.5 * free.usd_per_hour;
    let mut inner = budget("team-a", cap);
    inner.parent = Some("all".to_owned());
    inner.scope.namespaces = vec!["default".to_owned()];
    w.snapshot.budgets = vec![inner, budget("all", cap)];
    let plan = w.plan();
    assert_eq!(plan.pools[0].outcome, PoolOutcome::BudgetLimited);
    assert!(plan.binding.iter().all(|b| b.unserved), "{:?}", plan.binding);
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    println!("{why:#?}");
    let together = why.would_help.iter().find(|l| l.contains(", together: ")).unwrap();
    assert!(
        together.starts_with("budget all +$") && together.contains(" and budget team-a +$"),
        "{together}"
    );
    assert!(together.contains(", all of it (attainment 0.") && together.contains(" → 1.000)"), "{together}");
    // And so it is.
    for b in &mut w.snapshot.budgets {
        let (_, rest) = together.split_once(&format!("budget {} +$", b.name)).unwrap();
        let more: f64 = rest.split_once("/h").unwrap().0.parse().unwrap();
        b.usd_per_hour = Some(cap + more);
    }
    assert_eq!(w.plan().pools[0].outcome, PoolOutcome::Served);
}

#[test]
fn a_budget_that_binds_says_what_a_part_and_what_all_of_it_would_serve() {
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-8b", 2000.0, 100.0), demand(vec![class("a", 60.0, 1000.0, 200.0)]));
    let free = w.plan();
    w.snapshot.budgets = vec![budget("team-a", 0.4 * free.usd_per_hour)];
    let plan = w.plan();
    let why = deepen(&w.input(), &plan, &"chat".parse().unwrap());
    println!("{why:#?}");
    let of_budget: Vec<&String> =
        why.would_help.iter().filter(|l| l.starts_with("budget team-a +$")).collect();
    assert!(of_budget.len() >= 2, "{:?}", why.would_help);
    for line in of_budget {
        // Each holds when it is done.
        let more: f64 = line.split_once("+$").unwrap().1.split_once("/h").unwrap().0.parse().unwrap();
        let after: f64 = line.split_once("→ ").unwrap().1.split_once(')').unwrap().0.parse().unwrap();
        let mut raised = w.snapshot.clone();
        raised.budgets[0].usd_per_hour = Some(0.4 * free.usd_per_hour + more);
        let input = crate::plan::PlanInput { snapshot: &raised, ..w.input() };
        let got = &crate::plan::plan(&input).plan.pools[0];
        let attainment = 1.0 - got.unserved_rps / got.demand.total_rps();
        assert!((attainment - after).abs() < 5e-3, "{line}: {attainment}");
    }
    let limit = why.binding.iter().find(|b| b.constraint == "budget team-a").unwrap();
    assert!(limit.to_string().ends_with("serves more of what is unserved)"), "{limit}");
}
