//! Time, gap and memory of planning large mixed fleets: `cargo bench -p plimsoll-scheduler --bench fleets [pools …]`; with `apart`, prefill and
//! decode may be on replicas of their own.
//!
//! Ten accelerators a pool, of eight kinds in four zones, and so much demand that some kinds run short; a budget for each of ten teams
//! inside one for all. Each fleet is planned cold (no plan in force, nothing known of any shape), then again as it then runs with each
//! pool's demand moved by up to a fifth, then as that runs with nothing moved.

mod support;

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache, plan};
use support::{Failure, Noise, budget, mixed_demand, node, variant};

/// Accelerator class, GPUs of a node, GPUs for every thousand pools.
const KINDS: [(&str, u32, usize); 8] = [
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

fn pool(i: usize, load: f64, noise: &mut Noise) -> Result<(ModelPool, DemandEstimate), Failure> {
    let (model, ttft, tpot, typical) = MODELS[(noise.next() * MODELS.len() as f64) as usize];
    // Rates spread over a factor of thirty.
    let rps = load * typical * (30.0_f64).powf(noise.next()) / 6.0;
    let mut pool = support::pool(
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

fn cluster(pools: usize, stock: f64) -> Result<ClusterSnapshot, Failure> {
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

fn main() -> Result<(), Failure> {
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
        let (config, idle, cache) = (PlannerConfig::default(), BTreeMap::new(), ShapeCache::default());
        let (mut previous, mut serial): (Option<Plan>, u64) = (None, 1);
        for name in ["cold", "moved", "same"] {
            if name == "moved" {
                for demand in demands.values_mut() {
                    let by = 0.8 + 0.4 * noise.next();
                    demand.classes.iter_mut().for_each(|c| c.rps *= by);
                }
            }
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
            serial = out.next_serial;
            run(&mut snapshot, &out.plan);
            previous = Some(out.plan);
        }
    }
    Ok(())
}
