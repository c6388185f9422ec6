//! Mixtures of experts: attention ranks with caches of their own, and experts kept whole.

use plimsoll_fleet::*;

use super::support::*;

/// DeepSeek V3 on nodes of eight H200, at a rate of prompts of 2,000 tokens; its latent caches are the same on all
/// accelerators of a tensor-parallel group, so that only attention ranks make room for more requests.
fn deepseek(rps: f64, tpot_ms: f64, data: &[u32]) -> World {
    let nodes = (0..12).map(|i| node(&format!("n{i:02}"), "h200", 8, "a")).collect();
    let mut w = World::new(nodes);
    let mut p = pool("moe", "deepseek-v3", 5000.0, tpot_ms);
    p.variants.remove(0);
    p.parallelism.tensor = vec![1, 2, 4, 8];
    (p.parallelism.data, p.parallelism.expert) = (data.to_vec(), true);
    p.max_context_tokens = Some(16_384);
    w.add(p, demand(vec![class("a", rps, 2000.0, 1000.0)]));
    w
}

fn ranks(plan: &Plan) -> Vec<(u32, u32, u32)> {
    let of =
        |r: &ReplicaAssignment| (r.shape.tensor_parallel, r.shape.data_parallel, r.shape.expert_parallel);
    plan.pools[0].replicas.iter().map(of).collect()
}

#[test]
fn attention_ranks_win_where_caches_are_short_and_lose_where_one_answer_must_be_fast() {
    let tensor = deepseek(40.0, 100.0, &[]).plan();
    let ranked = deepseek(40.0, 100.0, &[1, 2, 4, 8]).plan();
    println!(
        "{} ${:.0}/h, {} ${:.0}/h",
        tensor.pools[0].fleet_text(),
        tensor.usd_per_hour,
        ranked.pools[0].fleet_text(),
        ranked.usd_per_hour
    );
    assert!(ranks(&tensor).iter().all(|r| *r == (8, 1, 8)), "{:?}", ranks(&tensor));
    assert!(ranked.usd_per_hour < tensor.usd_per_hour, "{:?}", ranks(&ranked));
    assert!(
        ranks(&ranked).iter().all(|(tp, dp, ep)| *dp > 1 && tp * dp == 8 && *ep == 8),
        "{:?}",
        ranks(&ranked)
    );
    let fast = deepseek(0.5, 14.0, &[1, 2, 4, 8]).plan();
    println!("{} {:?}", fast.pools[0].fleet_text(), fast.pools[0].prediction);
    assert!(ranks(&fast).iter().all(|r| *r == (8, 1, 8)), "{:?}", ranks(&fast));
}

#[test]
fn ranks_of_a_stage_stay_on_one_node() {
    let mut w = deepseek(20.0, 100.0, &[8]);
    w.snapshot.pools[0].parallelism.tensor = vec![1];
    for plan in [w.run(), w.run()] {
        assert!(!plan.pools[0].replicas.is_empty());
        assert!(plan.pools[0].replicas.iter().all(|r| r.nodes.len() == 1 && r.shape.gpus() == 8));
    }
    // Two nodes of six hold twelve accelerators, and not one stage of eight.
    w.snapshot.nodes.iter_mut().for_each(|n| n.allocatable_gpus = 6);
    w.snapshot.replicas.clear();
    w.previous = None;
    let plan = w.plan();
    assert!(plan.pools[0].replicas.is_empty());
    let why = format!("{:?}", plan.pools[0].why);
    assert!(why.contains("DP8 H200"), "{why}");
}

#[test]
fn dense_models_have_no_ranks() {
    let of = |data: &[u32]| {
        let mut w = World::up();
        let mut p = pool("dense", "llama-3.1-70b", 2000.0, 60.0);
        p.parallelism.data = data.to_vec();
        w.add(p, demand(vec![class("a", 3.0, 1000.0, 200.0)]));
        w.plan().pools[0].fleet_text()
    };
    assert_eq!(of(&[1, 4]), of(&[]));
}
