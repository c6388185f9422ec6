//! Time, gap and memory of planning large mixed fleets: `cargo bench -p plimsoll-scheduler --bench fleets [pools …]`.
//!
//! Ten accelerators a pool, of eight kinds in four zones, and so much demand that some kinds run short; a budget for each of ten teams
//! inside one for all. Each fleet is planned cold (no plan in force, nothing known of any shape), then again as it then runs with each
//! pool's demand moved by up to a fifth, then as that runs with nothing moved.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache, plan};

type Failure = Box<dyn std::error::Error>;

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

/// Figures from 0 to 1 that look random and are the same in every run (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn class(name: &str, rps: f64, input_tokens: f64, output_tokens: f64) -> RequestClass {
    let (name, slo_class) = (name.to_owned(), "default".to_owned());
    RequestClass { name, slo_class, input_tokens, output_tokens, cached_fraction: 0.0, rps }
}

fn pool(i: usize, load: f64, noise: &mut Noise) -> Result<(ModelPool, DemandEstimate), Failure> {
    let (model, ttft, tpot, typical) = MODELS[(noise.next() * MODELS.len() as f64) as usize];
    let objective = |ms| Some(Objective { percentile: Percentile::P95, ms });
    // Rates spread over a factor of thirty.
    let rps = load * typical * (30.0_f64).powf(noise.next()) / 6.0;
    let variant = |name: &str, weights, quality| Variant {
        name: name.to_owned(),
        weights,
        kv: Dtype::Bf16,
        quality,
        source: None,
    };
    let pool = ModelPool {
        id: format!("team-{}/pool-{i:04}", i % 10).parse()?,
        uid: i.to_string(),
        generation: 1,
        served_name: format!("m{i}"),
        source: None,
        architecture: presets::model(model).ok_or("no such model preset")?,
        variants: vec![variant("bf16", Dtype::Bf16, 1.0)],
        slo_classes: vec![SloClass {
            name: "default".to_owned(),
            slo: Slo { ttft: objective(ttft), tpot: objective(tpot), e2e: None },
            match_headers: BTreeMap::new(),
            expected_share: 1.0,
        }],
        demand: None,
        scaling: Scaling {
            min_replicas: 1,
            max_replicas: 200,
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

fn budget(name: &str, usd_per_hour: f64, namespace: Option<String>, parent: Option<&str>) -> Budget {
    Budget {
        name: name.to_owned(),
        scope: BudgetScope { namespaces: namespace.into_iter().collect(), ..BudgetScope::default() },
        parent: parent.map(str::to_owned),
        usd_per_hour: Some(usd_per_hour),
        usd_per_month: None,
        tokens_per_minute: None,
        watts: None,
        grams_co2e_per_hour: None,
        on_limit: OnLimit::Shed,
    }
}

fn cluster(pools: usize, stock: f64) -> Result<ClusterSnapshot, Failure> {
    let mut snapshot = ClusterSnapshot::default();
    for (name, gpus, per_thousand) in KINDS {
        let class = presets::accelerator(name).ok_or("no such accelerator preset")?;
        let nodes = (stock * (per_thousand * pools) as f64 / 1e3 / f64::from(gpus)).ceil().max(4.0) as usize;
        for i in 0..nodes {
            snapshot.nodes.push(NodeInfo {
                name: NodeName::new(format!("{name}-{i:03}"))?,
                accelerator: class.name.clone(),
                allocatable_gpus: gpus,
                foreign_gpus: 0,
                zone: ZONES[i % ZONES.len()].to_owned(),
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
            let (pool, demand) = pool(i, load, &mut noise)?;
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
