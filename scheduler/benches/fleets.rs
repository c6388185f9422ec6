//! Time, gap and memory of planning large mixed fleets: `cargo bench -p plimsoll-scheduler --bench fleets [-- pools … apart --json FILE]`.
//! With `apart`, prefill and decode may be on replicas of their own. With `--json` the cold instances are written as plain programs for
//! `scripts/compare-highs`.
//!
//! Ten accelerators a pool, of eight kinds in four zones, and so much demand that some kinds run short; a budget for each of ten teams
//! inside one for all. Each fleet is planned cold (no plan in force, nothing known of any shape), then again as it then runs with each
//! pool's demand moved by up to a fifth, then as that runs with nothing moved.

mod support;

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::*;
use plimsoll_scheduler::baselines::{Candidates, with_problem};
use plimsoll_scheduler::plan::program::Problem;
use plimsoll_scheduler::plan::{EngineModel, PlanInput, PlannerConfig, ShapeCache, plan};
use support::fleet::{cluster, pool};
use support::{Failure, Noise};

/// What runs after a plan: all of it.
fn run(snapshot: &mut ClusterSnapshot, plan: &Plan) {
    snapshot.replicas.clear();
    for pool in &plan.pools {
        for r in &pool.replicas {
            snapshot.replicas.push(ReplicaStatus {
                id: r.id.clone(),
                pool: pool.pool.clone(),
                shape: r.shape.clone(),
                nodes: r.nodes.clone(),
                phase: ReplicaPhase::Ready,
                address: None,
                plan: plan.number,
                since: Timestamp::UNIX_EPOCH,
                created_at: Timestamp::UNIX_EPOCH,
                ready_at: Some(Timestamp::UNIX_EPOCH),
                message: String::new(),
                outdated: false,
                gated: false,
                revision: String::new(),
                ended: false,
                adapter_room: None,
            });
        }
    }
}

/// Most memory this process ever held, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().map_or(f64::NAN, |kib: f64| kib / 1024.0)
}

/// A problem as one plain mixed-integer program would need it, with what the planner made of it.
fn written(problem: &Problem<'_>, plan: &Plan, seconds: f64) -> serde_json::Value {
    let cells: Vec<_> = problem
        .cells
        .iter()
        .map(|c| {
            let groups: BTreeMap<String, u32> =
                [1, 2, 4, 8].iter().map(|size| (size.to_string(), c.groups(*size))).collect();
            serde_json::json!({"accelerator": c.accelerator, "usd_per_hour": c.usd_per_hour, "groups": groups})
        })
        .collect();
    let pools: Vec<_> = problem
        .pools
        .iter()
        .map(|p| {
            let candidates: Vec<_> = p
                .set
                .candidates
                .iter()
                .map(|k| {
                    serde_json::json!({
                        "accelerator": k.shape.accelerator,
                        "tensor": k.shape.tensor_parallel,
                        "stages": k.shape.pipeline_parallel,
                        "rates_rps": k.rates,
                    })
                })
                .collect();
            let demand: Vec<f64> = p.set.classes.iter().map(|c| c.rps * p.headroom).collect();
            serde_json::json!({"demand_rps": demand, "floor": p.floor, "ceiling": p.ceiling, "candidates": candidates,
                "start_factor": p.start_factors.first()})
        })
        .collect();
    let budgets: Vec<_> =
        problem.budgets.iter().map(|b| serde_json::json!({"left": b.left, "covers": b.covers})).collect();
    serde_json::json!({
        "pools": pools,
        "cells": cells,
        "budgets": budgets,
        "plan_objective": plan.quality.objective,
        "plan_bound": plan.quality.bound,
        "plan_usd_per_hour": plan.usd_per_hour,
        "plan_unserved_rps": plan.pools.iter().map(|p| p.unserved_rps).sum::<f64>(),
        "plan_seconds": seconds,
    })
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    let mut instances = Vec::new();
    let mut sizes: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let load = std::env::args().find_map(|a| a.strip_prefix("load=")?.parse().ok()).unwrap_or(6.0);
    let apart = std::env::args().any(|a| a == "apart");
    if sizes.is_empty() {
        sizes = vec![10, 50, 200, 1000];
    }
    println!(
        "pools   GPUs  plan       seconds   gap %        $/h  replicas  started  stopped  unserved rps  binding  peak MiB"
    );
    for count in sizes {
        let mut snapshot = cluster(count, 1.0)?;
        let mut demands = BTreeMap::new();
        let mut noise = Noise(7);
        for i in 0..count {
            let (mut pool, demand) = pool(i, load, &mut noise)?;
            if apart {
                pool.parallelism.disaggregation = Disaggregation::Auto;
            }
            demands.insert(pool.id.clone(), demand);
            snapshot.pools.push(pool);
        }
        let price = args.iter().find_map(|a| a.strip_prefix("price=")?.parse().ok()).unwrap_or(0.0);
        let config = PlannerConfig { lost_request_price: price, ..PlannerConfig::default() };
        let (idle, cache) = (BTreeMap::new(), ShapeCache::default());
        let (mut previous, mut serial): (Option<Plan>, u64) = (None, 1);
        for name in ["cold", "moved", "same"] {
            if name == "moved" {
                for demand in demands.values_mut() {
                    let by = 0.8 + 0.4 * noise.next();
                    demand.classes.iter_mut().for_each(|c| c.rps *= by);
                }
            }
            let started = Timestamp::now();
            let input = PlanInput {
                snapshot: &snapshot,
                demands: &demands,
                previous: previous.as_ref(),
                config: &config,
                number: 1,
                next_serial: serial,
                now: Timestamp::UNIX_EPOCH,
                trigger: name.to_owned(),
                idle: &idle,
                cache: &cache,
            };
            let out = plan(&input);
            let took = Timestamp::now().duration_since(started).as_secs_f64();
            let gpus: u32 = snapshot.nodes.iter().map(|n| n.allocatable_gpus).sum();
            let unserved: f64 = out.plan.pools.iter().map(|p| p.unserved_rps).fold(0.0, |a, b| a + b);
            let ids = |plan: &Plan| -> std::collections::BTreeSet<ReplicaId> {
                plan.pools.iter().flat_map(|p| &p.replicas).map(|r| r.id.clone()).collect()
            };
            let (before, after) = (previous.as_ref().map(ids).unwrap_or_default(), ids(&out.plan));
            println!(
                "{count:5}  {gpus:5}  {name:6} {took:11.3}  {:6.3}  {:9.2}  {:8}  {:7}  {:7}  {unserved:12.2}  {:7}  {:8.0}",
                100.0 * out.plan.quality.gap,
                out.plan.usd_per_hour,
                after.len(),
                after.difference(&before).count(),
                before.difference(&after).count(),
                out.plan.binding.len(),
                peak_mib(),
            );
            if json.is_some() && name == "cold" {
                let model = EngineModel;
                instances
                    .push(with_problem(&input, &model, Candidates::Kept, |p| written(p, &out.plan, took)));
            }
            serial = out.next_serial;
            run(&mut snapshot, &out.plan);
            previous = Some(out.plan);
        }
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec(&instances)?)?;
    }
    Ok(())
}
