//! Stability: over time, under noise, failures and edits.

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::Toleration;
use plimsoll_fleet::*;

use super::support::*;

fn chat(w: &mut World, rps: f64) {
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("a", rps, 1200.0, 250.0)]));
}

fn world() -> World {
    let mut w = World::up();
    w.add(pool("chat", "llama-3.1-8b", 800.0, 50.0), demand(vec![]));
    w
}

#[test]
fn noise_does_not_flap() {
    let mut w = world();
    let (mut changes, mut last) = (0, None);
    // ±6 % around a level that lies on a replica boundary: find one by walking up.
    chat(&mut w, 20.0);
    let line = w.run().pools[0].load_lines[0].1;
    w.previous = None;
    w.snapshot.replicas.clear();
    for i in 0..40_u32 {
        let wobble = f64::from((i * 7919) % 13) / 13.0 - 0.5;
        chat(&mut w, 3.0 * line * (1.0 + 0.12 * wobble));
        let fleet = w.run().pools[0].fleet_text();
        if last.as_ref().is_some_and(|l| *l != fleet) {
            changes += 1;
        }
        last = Some(fleet);
    }
    assert!(changes <= 1, "{changes} changes");
}

#[test]
fn real_changes_are_followed_both_ways() {
    let mut w = world();
    chat(&mut w, 2.0);
    let small = w.run();
    chat(&mut w, 60.0);
    let large = w.run();
    assert!(large.usd_per_hour > small.usd_per_hour);
    let kept = small.pools[0].replicas.iter().filter(|r| large.pools[0].replicas.contains(r)).count();
    println!("{} -> {} kept {kept}", small.pools[0].fleet_text(), large.pools[0].fleet_text());
    chat(&mut w, 2.0);
    let again = w.run();
    assert!(again.usd_per_hour < large.usd_per_hour);
}

#[test]
fn missing_demand_stops_nothing() {
    let mut w = world();
    chat(&mut w, 60.0);
    let before = w.run();
    w.demands.clear();
    let after = w.run();
    assert!(after.pools[0].replicas.len() >= before.pools[0].replicas.len());
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("a", f64::NAN, 1.0, 1.0)]));
    assert!(w.run().pools[0].replicas.len() >= before.pools[0].replicas.len());
}

#[test]
fn a_pool_sleeps_when_idle_and_wakes_for_demand() {
    let mut w = world();
    let p = &mut w.snapshot.pools[0];
    p.scaling.min_replicas = 0;
    p.scaling.scale_to_zero_after_seconds = Some(600.0);
    let id = p.id.clone();
    chat(&mut w, 1.0);
    assert_eq!(w.run().pools[0].replicas.len(), 1);
    w.demands.insert(id.clone(), demand(vec![]));
    w.idle.insert(id.clone(), 300.0);
    assert_eq!(w.run().pools[0].replicas.len(), 1, "not yet");
    w.idle.insert(id.clone(), 900.0);
    let asleep = w.run();
    assert_eq!((asleep.pools[0].outcome, asleep.pools[0].replicas.len()), (PoolOutcome::ScaledToZero, 0));
    assert_eq!(asleep.pools[0].why.summary, "idle 15m; wakes in ~60 s");
    assert_eq!(w.run().pools[0].replicas.len(), 0, "and stays so");
    chat(&mut w, 0.1);
    w.idle.insert(id, 0.0);
    let awake = w.run();
    assert_eq!(awake.pools[0].replicas.len(), 1);
    assert_ne!(awake.pools[0].replicas[0].id.as_str(), "chat-1", "names are never used twice");
}

#[test]
fn what_fails_is_replaced_and_what_is_planned_is_not_made_twice() {
    let mut w = world();
    chat(&mut w, 60.0);
    let first = w.run();
    let n = first.pools[0].replicas.len();
    assert!(n >= 2, "{}", first.pools[0].fleet_text());
    // The next plan comes before anything of the first was created.
    let seen = std::mem::take(&mut w.snapshot.replicas);
    let second = w.plan();
    assert_eq!(second.pools[0].replicas, first.pools[0].replicas);
    w.snapshot.replicas = seen;
    w.snapshot.replicas[0].phase = ReplicaPhase::Failed;
    let failed = w.snapshot.replicas[0].id.clone();
    let third = w.plan();
    assert_eq!(third.pools[0].replicas.len(), n);
    assert!(third.pools[0].replicas.iter().all(|r| r.id != failed));
    assert_eq!(third.pools[0].replicas.iter().filter(|r| first.pools[0].replicas.contains(r)).count(), n - 1);
    // A pool made anew under the old name starts from nothing.
    w.snapshot.replicas.clear();
    w.snapshot.pools[0].uid = "another".to_owned();
    let fresh = w.plan();
    assert!(fresh.pools[0].replicas.iter().all(|r| !first.pools[0].replicas.iter().any(|f| f.id == r.id)));
}

#[test]
fn a_lost_node_moves_only_what_it_held_and_a_cordon_moves_nothing() {
    let mut w = World::new(vec![node("n0", "l40s", 4, "a"), node("n1", "l40s", 4, "b")]);
    w.add(pool("chat", "llama-3.1-8b", 800.0, 60.0), demand(vec![class("a", 6.0, 1200.0, 250.0)]));
    let first = w.run();
    let at = first.pools[0].replicas[0].nodes[0].clone();
    let i = w.snapshot.nodes.iter().position(|n| n.name == at).unwrap();
    w.snapshot.nodes[i].schedulable = false;
    assert_eq!(w.plan().pools[0].replicas, first.pools[0].replicas);
    w.snapshot.nodes[i].schedulable = true;
    w.snapshot.nodes[i].taints = vec!["dedicated=x:NoSchedule".to_owned()];
    assert_eq!(w.plan().pools[0].replicas, first.pools[0].replicas, "a NoSchedule taint evicts nothing");
    w.snapshot.nodes[i].taints = vec!["dedicated=x:NoExecute".to_owned()];
    assert!(w.plan().pools[0].replicas.iter().all(|r| r.nodes[0] != at));
    w.snapshot.pools[0].placement.tolerations = vec![Toleration {
        key: Some("dedicated".to_owned()),
        operator: Some("Exists".to_owned()),
        value: None,
        effect: None,
    }];
    assert_eq!(w.plan().pools[0].replicas, first.pools[0].replicas);
    w.snapshot.nodes[i].ready = false;
    let moved = w.plan();
    assert_eq!(moved.pools[0].outcome, PoolOutcome::Served);
    assert!(moved.pools[0].replicas.iter().all(|r| r.nodes[0] != at));
}

#[test]
fn what_is_evicted_from_a_cordoned_node_comes_back_elsewhere() {
    let mut w = World::new(vec![node("n0", "l40s", 4, "a"), node("n1", "l40s", 4, "b")]);
    w.add(pool("chat", "llama-3.1-8b", 800.0, 60.0), demand(vec![class("a", 6.0, 1200.0, 250.0)]));
    let first = w.run();
    let (id, at) = (first.pools[0].replicas[0].id.clone(), first.pools[0].replicas[0].nodes[0].clone());
    let i = w.snapshot.nodes.iter().position(|n| n.name == at).unwrap();
    w.snapshot.nodes[i].schedulable = false;
    let elsewhere = |w: &World, why: &str| {
        let plan = w.plan();
        assert_eq!(plan.pools[0].outcome, PoolOutcome::Served, "{why}");
        assert!(plan.pools[0].replicas.iter().all(|r| r.id != id && r.nodes[0] != at), "{why}");
    };
    let r = w.snapshot.replicas.iter().position(|r| r.id == id).unwrap();
    w.snapshot.replicas[r].phase = ReplicaPhase::Draining;
    elsewhere(&w, "it is being evicted");
    w.snapshot.replicas[r].phase = ReplicaPhase::Pending;
    w.snapshot.replicas[r].nodes.clear();
    elsewhere(&w, "it was made again and waits for the cordoned node");
    w.snapshot.replicas.remove(r);
    elsewhere(&w, "it went before anybody saw it go");
}

#[test]
fn a_pod_that_cannot_end_on_a_dead_node_takes_nothing_from_other_nodes() {
    // One replica fits each node.
    let mut w = World::new(vec![node("n0", "l40s", 1, "a"), node("n1", "l40s", 1, "b")]);
    let mut p = pool("chat", "llama-3.1-8b", 3000.0, 120.0);
    p.parallelism.tensor = vec![1];
    w.add(p, demand(vec![class("a", 0.5, 1200.0, 250.0)]));
    let first = w.run();
    let at = first.pools[0].replicas[0].nodes[0].clone();
    w.snapshot.replicas[0].phase = ReplicaPhase::Draining;
    let i = w.snapshot.nodes.iter().position(|n| n.name == at).unwrap();
    w.snapshot.nodes[i].ready = false;
    let moved = w.plan();
    assert_eq!((moved.pools[0].outcome, moved.pools[0].replicas.len()), (PoolOutcome::Served, 1));
    assert_ne!(moved.pools[0].replicas[0].nodes[0], at);
    w.snapshot.nodes.remove(i);
    let moved = w.plan();
    assert_eq!((moved.pools[0].outcome, moved.pools[0].replicas.len()), (PoolOutcome::Served, 1));
}

#[test]
fn accelerators_that_vanish_move_what_no_longer_fits_and_no_more() {
    let mut w = World::new(vec![node("n0", "l40s", 4, "a"), node("n1", "l40s", 4, "a")]);
    let mut p = pool("chat", "llama-3.1-8b", 3000.0, 120.0);
    p.parallelism.tensor = vec![1];
    p.scaling.min_replicas = 3;
    w.add(p, demand(vec![class("a", 0.5, 1200.0, 250.0)]));
    let first = w.run();
    assert_eq!(first.pools[0].replicas.len(), 3);
    let at = NodeName::new("n0").unwrap();
    // All on one node, whatever the plan chose.
    w.snapshot.replicas.iter_mut().for_each(|r| r.nodes = vec![at.clone()]);
    w.previous = None;
    let first = w.run();
    assert!(first.pools[0].replicas.iter().all(|r| r.nodes[0] == at), "what runs stays");
    w.snapshot.nodes.iter_mut().find(|n| n.name == at).unwrap().allocatable_gpus = 2;
    let after = w.plan();
    let kept = after.pools[0].replicas.iter().filter(|r| first.pools[0].replicas.contains(r)).count();
    assert_eq!((after.pools[0].replicas.len(), kept), (3, 2));
}

#[test]
fn zones_are_spanned_when_asked() {
    let mut w = World::new(vec![node("n0", "l40s", 4, "a"), node("n1", "l40s", 4, "b")]);
    let mut p = pool("chat", "llama-3.1-8b", 800.0, 60.0);
    p.scaling.min_zones = 2;
    w.add(p, demand(vec![class("a", 0.5, 1200.0, 250.0)]));
    let plan = w.plan();
    let mut nodes: Vec<&str> = plan.pools[0].replicas.iter().map(|r| r.nodes[0].as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n0", "n1"]);
    w.snapshot.pools[0].scaling.min_zones = 3;
    let plan = w.plan();
    assert!(
        plan.pools[0].why.summary.contains("1 zones fewer than spec.scaling.minZones 3"),
        "{}",
        plan.pools[0].why.summary
    );
}

#[test]
fn large_groups_find_room_among_small_ones() {
    // Two nodes of two; a small replica on each; then a pool that needs two GPUs together.
    let mut w = World::new(vec![node("n0", "l40s", 2, "a"), node("n1", "l40s", 2, "a")]);
    w.add(pool("small", "llama-3.1-8b", 800.0, 60.0), demand(vec![class("a", 0.5, 1200.0, 250.0)]));
    w.snapshot.pools[0].scaling.min_replicas = 2;
    w.snapshot.pools[0].parallelism.tensor = vec![1];
    let first = w.run();
    // One on each node, whatever the plan chose.
    w.snapshot.replicas[0].nodes = vec![NodeName::new("n0").unwrap()];
    w.snapshot.replicas[1].nodes = vec![NodeName::new("n1").unwrap()];
    let mut big = pool("wide", "qwen3-32b", 3000.0, 120.0);
    big.parallelism.tensor = vec![2];
    w.add(big, demand(vec![class("a", 0.2, 1000.0, 200.0)]));
    let plan = w.plan();
    assert!(plan.pools.iter().all(|p| p.outcome == PoolOutcome::Served), "{plan:#?}");
    let kept = plan.pools[0]
        .replicas
        .iter()
        .filter(|r| first.pools[0].replicas.iter().any(|f| f.id == r.id))
        .count();
    assert_eq!(kept, 1, "one small replica moves aside, the other stays");
}

#[test]
fn pipelines_span_nodes_and_new_capacity_is_asked_for() {
    let mut w = World::new((0..2).map(|i| node(&format!("h{i}"), "h100", 8, "a")).collect());
    let mut p = pool("big", "deepseek-v3", 10_000.0, 300.0);
    p.parallelism.pipeline = vec![1, 2];
    w.add(p, demand(vec![class("a", 0.05, 500.0, 100.0)]));
    let plan = w.plan();
    let r = &plan.pools[0].replicas;
    assert_eq!((r.len(), r[0].nodes.len(), r[0].shape.gpus()), (1, 2, 16), "{:#?}", plan.pools[0].why);
    // All of its nodes or none: with one of them gone it is planned anew, and one alone is not enough.
    w.snapshot.nodes[1].ready = false;
    let plan = w.plan();
    assert!(plan.pools[0].replicas.is_empty(), "{:#?}", plan.pools[0].replicas);
    // An engine that runs on one node only does not get a second.
    let mut w = World::new((0..2).map(|i| node(&format!("h{i}"), "h100", 8, "a")).collect());
    let mut p = pool("big", "deepseek-v3", 10_000.0, 300.0);
    p.parallelism.pipeline = vec![1, 2];
    p.parallelism.tensor = vec![8];
    p.engine.kind = EngineKind::Llamacpp;
    w.add(p, demand(vec![class("a", 0.05, 500.0, 100.0)]));
    let plan = w.plan();
    assert!(plan.pools[0].replicas.is_empty());
    let why = format!("{:?}", plan.pools[0].why);
    assert!(why.contains("llamacpp runs on one node"), "{why}");
    // A class without nodes but with an autoscaler: the replica waits for its node.
    let mut w = World::new(vec![]);
    let mut h = presets::accelerator("l4").unwrap();
    h.autoscalable_max = 2;
    w.snapshot.accelerators.push(h);
    w.add(pool("chat", "llama-3.1-8b", 3000.0, 120.0), demand(vec![class("a", 0.5, 500.0, 100.0)]));
    let plan = w.run();
    assert!(plan.pools[0].outcome == PoolOutcome::Served && plan.pools[0].replicas[0].nodes.is_empty());
    assert_eq!(w.run().pools[0].replicas, plan.pools[0].replicas, "it goes on waiting under its name");
}

/// A large model under a rush: the mix drifts while it lasts, and arrivals look as uneven as is believed at all.
fn rush(mix: usize, scv: f64) -> DemandEstimate {
    let classes = [
        vec![
            (96.0, 15.0, 6.8),
            (2444.0, 10.0, 1.7),
            (3610.0, 250.0, 10.5),
            (584.0, 129.0, 35.3),
            (597.0, 718.0, 8.4),
        ],
        vec![
            (1373.0, 504.0, 2.1),
            (119.0, 20.0, 3.6),
            (3786.0, 62.0, 17.7),
            (402.0, 110.0, 34.0),
            (694.0, 54.0, 12.0),
        ],
        vec![
            (1294.0, 401.0, 13.6),
            (176.0, 183.0, 9.5),
            (2668.0, 97.0, 16.9),
            (280.0, 31.0, 5.4),
            (428.0, 106.0, 18.2),
        ],
        vec![
            (1236.0, 417.0, 26.5),
            (167.0, 201.0, 5.0),
            (2401.0, 103.0, 11.0),
            (259.0, 31.0, 3.3),
            (392.0, 107.0, 11.5),
        ],
    ];
    let classes = classes[mix]
        .iter()
        .enumerate()
        .map(|(i, (input, output, rps))| class(&format!("c{i}"), *rps, *input, *output))
        .collect();
    DemandEstimate { arrival_scv: scv, observed_rps: Some(50.0), ..demand(classes) }
}

#[test]
fn objectives_out_of_reach_take_no_replicas_away() {
    let mut w = World::new((0..4).map(|i| node(&format!("h-{i}"), "h100", 8, "a")).collect());
    let mut p = pool("chat", "llama-3.1-70b", 800.0, 50.0);
    p.max_context_tokens = None;
    w.add(p, demand(vec![class("c0", 4.0, 1200.0, 250.0)]));
    let before = w.run();
    for (scv, mix) in [16.0, 4.0, 1.0].into_iter().flat_map(|scv| (0..4).map(move |mix| (scv, mix))) {
        w.demands.insert("chat".parse().unwrap(), rush(mix, scv));
        let plan = w.run();
        let chat = &plan.pools[0];
        let gpus: u32 = chat.replicas.iter().map(|r| r.shape.gpus()).sum();
        let text =
            format!("scv {scv}, mix {mix}: {} for {gpus} GPUs, {}", chat.fleet_text(), chat.why.summary);
        // Either it is served, or what is left of the cluster could not hold one more of its replicas.
        assert!(chat.unserved_rps < 1e-6 || gpus > 28, "{text}");
        assert!(plan.usd_per_hour > 5.0 * before.usd_per_hour, "{text}");
    }
}

#[test]
fn requests_that_no_shape_serves_in_time_are_served_late_and_said_to_be() {
    let mut w = World::up();
    let mut p = pool("chat", "llama-3.1-70b", 400.0, 50.0);
    p.max_context_tokens = None;
    let long = |rps| class("c1", rps, 60_000.0, 200.0);
    w.add(p, demand(vec![class("c0", 0.4, 500.0, 200.0)]));
    let short = w.run();
    w.demands.insert("chat".parse().unwrap(), demand(vec![class("c0", 0.4, 500.0, 200.0), long(0.1)]));
    let both = w.run();
    let chat = &both.pools[0];
    assert_eq!(chat.outcome, PoolOutcome::Served, "{:?}", chat.why);
    assert!(both.usd_per_hour > short.usd_per_hour);
    assert!(
        chat.why.summary.contains("20 % of requests miss their objectives on every shape"),
        "{:?}",
        chat.why
    );
    assert!(chat.why.would_help.iter().any(|h| h.contains("spec.slo")), "{:?}", chat.why);
    // The same when, for now, nothing but such requests comes.
    w.demands.insert("chat".parse().unwrap(), demand(vec![long(0.1)]));
    let only = w.run();
    assert!(
        !only.pools[0].replicas.is_empty() && only.pools[0].unserved_rps < 1e-6,
        "{:?}",
        only.pools[0].why
    );
}

#[test]
fn what_cannot_start_is_left_to_try_again_and_then_replaced_once() {
    let mut w = world();
    chat(&mut w, 2.0);
    let first = w.run();
    let (id, made) = (first.pools[0].replicas[0].id.clone(), w.snapshot.replicas[0].created_at);
    let failed = &mut w.snapshot.replicas[0];
    (failed.phase, failed.ready_at) = (ReplicaPhase::Failed, None);
    let at = |w: &World, seconds: i64| {
        let now = made + jiff::SignedDuration::from_secs(seconds);
        crate::plan::plan(&crate::plan::PlanInput { now, ..w.input() }).plan.pools[0].replicas[0].id.clone()
    };
    assert_eq!(at(&w, 10), id);
    assert_eq!(at(&w, 299), id);
    assert_ne!(at(&w, 301), id);
    w.snapshot.replicas[0].ended = true;
    assert_ne!(at(&w, 10), id, "its pod will not try again");
    w.snapshot.replicas[0].ended = false;
    w.snapshot.replicas[0].ready_at = Some(made);
    assert_ne!(at(&w, 10), id, "it has served, and broke");
}

/// Thirty pools of two request classes for which twelve nodes of three kinds are about half of what they ask for: too large to be solved as one
/// program.
fn shortage() -> (World, Table) {
    let kinds = ["l4", "l40s", "h100"];
    let nodes = (0..12).map(|i| node(&format!("n{i:02}"), kinds[i % 3], 4, ["a", "b", "c", "d"][i / 3]));
    let mut w = World::new(nodes.collect());
    let pick = |i: u32, n: u32| f64::from((i * 104_729 + 7919) % n);
    for i in 0..30 {
        let mut p = pool(&format!("p{i:02}"), "llama-3.1-8b", 1e6, 1e4);
        p.variants.truncate(1);
        p.parallelism.tensor = vec![1, 2, 4];
        p.scaling.min_replicas = 0;
        p.priority = (i % 2) as i32;
        let long = class("c1", 0.1 + 0.13 * pick(i, 11), 4000.0, 100.0);
        w.add(p, demand(vec![class("c0", 1.0 + 0.7 * pick(i, 7), 100.0, 100.0), long]));
    }
    let rates = [("l4", vec![1.0, 0.1]), ("l40s", vec![1.7, 0.4]), ("h100", vec![4.0, 1.2])];
    (w, Table(rates.into_iter().map(|(n, r)| (n.to_owned(), r)).collect()))
}

#[test]
fn an_unchanged_shortage_keeps_what_runs_and_new_capacity_serves_more() {
    let (mut w, model) = shortage();
    let run = |w: &mut World| {
        let out = w.plan_with(&model);
        (w.next_serial, w.number) = (out.next_serial, w.number + 1);
        w.come_true(&out.plan);
        w.previous = Some(out.plan.clone());
        out.plan
    };
    let replicas = |plan: &Plan| -> Vec<_> {
        let ids = plan.pools.iter().flat_map(|p| p.replicas.iter().map(|r| r.id.clone()));
        ids.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    };
    let unserved = |plan: &Plan| plan.pools.iter().map(|p| p.unserved_rps).sum::<f64>();
    let first = run(&mut w);
    assert!(unserved(&first) > 10.0, "{}", unserved(&first));
    println!("first: {:.3} unserved, ${:.2}", unserved(&first), first.usd_per_hour);
    let mut before = first.clone();
    for again in 0..3 {
        let plan = run(&mut w);
        let moved = replicas(&plan).iter().filter(|id| !replicas(&before).contains(id)).count();
        println!(
            "{again}: {moved} of {} started, {:.3} unserved, ${:.2}",
            replicas(&plan).len(),
            unserved(&plan),
            plan.usd_per_hour
        );
        assert!(moved <= if again == 0 { 2 } else { 0 }, "{moved} replicas started although nothing changed");
        assert!(unserved(&plan) <= unserved(&before) + 1e-6);
        before = plan;
    }
    w.snapshot.nodes.extend((0..4).map(|i| node(&format!("more{i}"), "h100", 4, "a")));
    let more = run(&mut w);
    assert!(unserved(&more) < 0.9 * unserved(&before), "{} of {}", unserved(&more), unserved(&before));
}
