//! A large mixed fleet: eight kinds of accelerator in four zones, pools of six models and objectives.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache};

use super::{Failure, Noise, budget, mixed_demand, node, variant};

/// Accelerator class, GPUs of a node, GPUs for every thousand pools.
pub const KINDS: [(&str, u32, usize); 8] = [
    ("h200", 8, 640),
    ("h100", 8, 1280),
    ("a100-80", 8, 1600),
    ("a100-40", 8, 1280),
    ("l40s", 4, 1600),
    ("l4", 4, 2000),
    ("a10g", 4, 1280),
    ("mi300x", 8, 320),
];
const ZONES: [&str; 4] = ["a", "b", "c", "d"];
/// Model, p95 TTFT and TPOT objectives (ms), typical rate.
const MODELS: [(&str, f64, f64, f64); 6] = [
    ("llama-3.1-8b", 1000.0, 50.0, 6.0),
    ("llama-3.1-8b", 2500.0, 90.0, 3.0),
    ("qwen3-30b-a3b", 1500.0, 60.0, 4.0),
    ("qwen3-32b", 2000.0, 80.0, 1.5),
    ("gpt-oss-20b", 1000.0, 40.0, 5.0),
    ("llama-3.1-70b", 3000.0, 100.0, 0.8),
];

/// Pool number `i` with its demand, about `load` times its model's typical rate.
pub fn pool(i: usize, load: f64, noise: &mut Noise) -> Result<(ModelPool, DemandEstimate), Failure> {
    let (model, ttft, tpot, typical) = MODELS[(noise.next() * MODELS.len() as f64) as usize];
    // Rates spread over a factor of thirty.
    let rps = load * typical * (30.0_f64).powf(noise.next()) / 6.0;
    let mut pool = super::pool(
        &format!("team-{}/pool-{i:04}", i % 10),
        i,
        model,
        (ttft, tpot),
        vec![variant("bf16", Dtype::Bf16, 1.0)],
    )?;
    pool.scaling.max_replicas = 200;
    pool.priority = (i % 3) as i32;
    Ok((pool, mixed_demand(rps)))
}

/// Ten accelerators a pool (times `stock`), and a budget for each of ten teams inside one for all.
pub fn cluster(pools: usize, stock: f64) -> Result<ClusterSnapshot, Failure> {
    let mut snapshot = ClusterSnapshot::default();
    for (name, gpus, per_thousand) in KINDS {
        let class = presets::accelerator(name).ok_or("no such accelerator preset")?;
        let nodes = (stock * (per_thousand * pools) as f64 / 1e3 / f64::from(gpus)).ceil().max(4.0) as usize;
        for i in 0..nodes {
            snapshot.nodes.push(node(&format!("{name}-{i:03}"), &class, gpus, ZONES[i % ZONES.len()])?);
        }
        snapshot.accelerators.push(class);
    }
    let each = 2.4 * pools as f64;
    snapshot.budgets.push(budget("all", 10.0 * each, None, None));
    for team in 0..10 {
        let namespace = Some(format!("team-{team}"));
        snapshot.budgets.push(budget(&format!("team-{team}"), each, namespace, Some("all")));
    }
    Ok(snapshot)
}

/// A fleet to plan, without budgets and in one tier, so that a share of requests is one figure.
pub struct World {
    pub snapshot: ClusterSnapshot,
    pub demands: BTreeMap<PoolId, DemandEstimate>,
    pub config: PlannerConfig,
    idle: BTreeMap<PoolId, f64>,
    cache: ShapeCache,
}

impl World {
    pub fn new(pools: usize, load: f64, stock: f64, seed: u64) -> Result<Self, Failure> {
        let mut snapshot = cluster(pools, stock)?;
        snapshot.budgets.clear();
        let (mut demands, mut noise) = (BTreeMap::new(), Noise(seed));
        for i in 0..pools {
            let (mut pool, demand) = pool(i, load, &mut noise)?;
            pool.priority = 0;
            demands.insert(pool.id.clone(), demand);
            snapshot.pools.push(pool);
        }
        let (config, idle, cache) = (PlannerConfig::default(), BTreeMap::new(), ShapeCache::default());
        Ok(Self { snapshot, demands, config, idle, cache })
    }

    pub fn input<'a>(&'a self, snapshot: &'a ClusterSnapshot) -> PlanInput<'a> {
        PlanInput {
            snapshot,
            demands: &self.demands,
            previous: None,
            config: &self.config,
            number: 1,
            next_serial: 1,
            now: Timestamp::UNIX_EPOCH,
            trigger: "bench".to_owned(),
            idle: &self.idle,
            cache: &self.cache,
        }
    }
}
