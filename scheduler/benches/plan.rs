//! Time and gap of planning fleets of growing size: `cargo bench -p plimsoll-scheduler --bench plan [pools …]`.
//!
//! Pools of four models with spread demand on four kinds of GPU in three zones, with ample and with scarce
//! accelerators; each fleet is planned cold (no answers of the engine model at hand) and again as it then runs, after
//! demand moved by a few percent.

mod support;

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache, plan};
use support::{Failure, budget, mixed_demand, node, variant};

fn pool(i: usize) -> Result<(ModelPool, DemandEstimate), Failure> {
    let (model, ttft, tpot, rps) = [
        ("llama-3.1-8b", 800.0, 40.0, 9.0),
        ("qwen3-32b", 1500.0, 60.0, 4.0),
        ("llama-3.1-70b", 1500.0, 60.0, 3.0),
        ("llama-3.1-8b", 2500.0, 90.0, 2.0),
    ][i % 4];
    let rps = rps * (0.4 + 0.2 * ((i * 7) % 11) as f64);
    let variants = vec![variant("bf16", Dtype::Bf16, 1.0), variant("fp8", Dtype::Fp8, 0.99)];
    let mut pool = support::pool(&format!("team-{}/pool-{i}", i % 5), i, model, (ttft, tpot), variants)?;
    pool.priority = (i % 3) as i32;
    Ok((pool, mixed_demand(rps)))
}

fn cluster(pools: usize, share: f64) -> Result<ClusterSnapshot, Failure> {
    let mut snapshot = ClusterSnapshot::default();
    for (class, gpus, per_pool) in [("h100", 8, 2.0), ("a100-80", 8, 2.0), ("l40s", 4, 3.0), ("l4", 1, 3.0)] {
        let class = presets::accelerator(class).ok_or("no such accelerator preset")?;
        let nodes = ((share * per_pool * pools as f64 / f64::from(gpus)).ceil() as usize).max(3);
        for i in 0..nodes {
            snapshot.nodes.push(node(&format!("{}-{i}", class.name), &class, gpus, ["a", "b", "c"][i % 3])?);
        }
        snapshot.accelerators.push(class);
    }
    snapshot.budgets.push(budget("all", 10.0 * pools as f64, None, None));
    Ok(snapshot)
}

fn main() -> Result<(), Failure> {
    let mut sizes: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![3, 10, 50];
    }
    println!("pools  GPUs   stock   plan     time ms     gap %   $/h        unserved");
    for count in sizes {
        for (stock, share) in [("ample", 1.5), ("scarce", 0.35)] {
            let mut snapshot = cluster(count, share)?;
            let mut demands = BTreeMap::new();
            for i in 0..count {
                let (pool, demand) = pool(i)?;
                demands.insert(pool.id.clone(), demand);
                snapshot.pools.push(pool);
            }
            let (config, idle, cache) = (PlannerConfig::default(), BTreeMap::new(), ShapeCache::default());
            let (mut previous, mut serial): (Option<Plan>, u64) = (None, 1);
            for (name, scale) in [("cold", 1.0), ("same", 1.0), ("+4 %", 1.04), ("+40 %", 1.35)] {
                demands.values_mut().flat_map(|d| &mut d.classes).for_each(|c| c.rps *= scale);
                let started = Timestamp::now();
                let out = plan(&PlanInput {
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
                });
                let took = Timestamp::now().duration_since(started).as_secs_f64() * 1e3;
                let gpus: u32 = snapshot.nodes.iter().map(|n| n.allocatable_gpus).sum();
                let unserved: f64 = out.plan.pools.iter().map(|p| p.unserved_rps).fold(0.0, |a, b| a + b);
                println!(
                    "{count:5}  {gpus:5}  {stock:6}  {name:6} {took:10.1}  {:8.3}  {:9.2}  {unserved:8.2}",
                    100.0 * out.plan.quality.gap,
                    out.plan.usd_per_hour,
                );
                serial = out.next_serial;
                previous = Some(out.plan);
            }
        }
    }
    Ok(())
}
