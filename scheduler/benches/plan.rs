//! Time and gap of planning fleets of growing size: `cargo bench -p plimsoll-scheduler --bench plan [pools …]`.
//!
//! Pools of four models with spread demand on four kinds of GPU in three zones, with ample and with scarce
//! accelerators; each fleet is planned cold (no answers of the engine model at hand) and again as it then runs, after
//! demand moved by a few percent.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache, plan};

type Failure = Box<dyn std::error::Error>;

fn pool(i: usize) -> Result<(ModelPool, DemandEstimate), Failure> {
    let (model, ttft, tpot, rps) = [
        ("llama-3.1-8b", 800.0, 40.0, 9.0),
        ("qwen3-32b", 1500.0, 60.0, 4.0),
        ("llama-3.1-70b", 1500.0, 60.0, 3.0),
        ("llama-3.1-8b", 2500.0, 90.0, 2.0),
    ][i % 4];
    let objective = |ms| Some(Objective { percentile: Percentile::P95, ms });
    let variant = |name: &str, weights, quality| Variant {
        name: name.to_owned(),
        weights,
        kv: Dtype::Bf16,
        quality,
        source: None,
    };
    let class = |name: &str, rps, input_tokens, output_tokens| RequestClass {
        name: name.to_owned(),
        slo_class: "default".to_owned(),
        input_tokens,
        output_tokens,
        cached_fraction: 0.0,
        rps,
    };
    let rps = rps * (0.4 + 0.2 * ((i * 7) % 11) as f64);
    let pool = ModelPool {
        id: format!("team-{}/pool-{i}", i % 5).parse()?,
        uid: i.to_string(),
        generation: 1,
        served_name: format!("m{i}"),
        source: None,
        architecture: presets::model(model).ok_or("no such model preset")?,
        variants: vec![variant("bf16", Dtype::Bf16, 1.0), variant("fp8", Dtype::Fp8, 0.99)],
        slo_classes: vec![SloClass {
            name: "default".to_owned(),
            slo: Slo { ttft: objective(ttft), tpot: objective(tpot), e2e: None },
            match_headers: BTreeMap::new(),
            expected_share: 1.0,
        }],
        demand: None,
        scaling: Scaling {
            min_replicas: 1,
            max_replicas: 100,
            scale_to_zero_after_seconds: None,
            min_zones: 1,
        },
        parallelism: Parallelism::default(),
        placement: Placement::default(),
        engine: EngineSpec {
            kind: EngineKind::Simulated,
            image: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: BTreeMap::new(),
            cold_start_seconds: 90.0,
        },
        priority: (i % 3) as i32,
        min_quality: 0.0,
        mode: Mode::Enforce,
        max_context_tokens: Some(8192),
        rollout: Default::default(),
        revision: String::new(),
        observed: Vec::new(),
    };
    let classes = vec![
        class("short", 0.7 * rps, 500.0, 150.0),
        class("middle", 0.25 * rps, 1500.0, 300.0),
        class("long", 0.05 * rps, 4000.0, 400.0),
    ];
    Ok((pool, DemandEstimate { classes, observed_rps: None, arrival_scv: 1.0, source: "bench".to_owned() }))
}

fn cluster(pools: usize, share: f64) -> Result<ClusterSnapshot, Failure> {
    let mut snapshot = ClusterSnapshot::default();
    for (class, gpus, per_pool) in [("h100", 8, 2.0), ("a100-80", 8, 2.0), ("l40s", 4, 3.0), ("l4", 1, 3.0)] {
        let class = presets::accelerator(class).ok_or("no such accelerator preset")?;
        let nodes = ((share * per_pool * pools as f64 / f64::from(gpus)).ceil() as usize).max(3);
        for i in 0..nodes {
            snapshot.nodes.push(NodeInfo {
                name: NodeName::new(format!("{}-{i}", class.name))?,
                accelerator: class.name.clone(),
                allocatable_gpus: gpus,
                foreign_gpus: 0,
                zone: ["a", "b", "c"][i % 3].to_owned(),
                labels: BTreeMap::new(),
                taints: Vec::new(),
                spot: false,
                schedulable: true,
                ready: true,
                fault: String::new(),
            });
        }
        snapshot.accelerators.push(class);
    }
    snapshot.budgets.push(Budget {
        name: "all".to_owned(),
        scope: BudgetScope::default(),
        parent: None,
        usd_per_hour: Some(10.0 * pools as f64),
        usd_per_month: None,
        tokens_per_minute: None,
        watts: None,
        grams_co2e_per_hour: None,
        on_limit: OnLimit::Shed,
    });
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
