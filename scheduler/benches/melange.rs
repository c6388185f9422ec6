//! Instances of Mélange's problem (one model, endless accelerators, a rate for each length bucket and accelerator), planned:
//! `cargo bench -p plimsoll-scheduler --bench melange [-- --json FILE]`. With `--json` they are written for
//! `scripts/compare-melange`, which gives them to PuLP and CBC.
//!
//! The problem is that of Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity" (2024), §5; here a
//! bucket's requests may be split over accelerators at will, where the paper cuts buckets into slices.

mod support;

use std::collections::BTreeMap;

use jiff::Timestamp;
use plimsoll_fleet::plan::Prediction;
use plimsoll_fleet::*;
use plimsoll_scheduler::plan::performance::{Evaluation, Misfit, Performance, Query};
use plimsoll_scheduler::plan::solver::BranchAndBound;
use plimsoll_scheduler::plan::{PlanInput, PlannerConfig, ShapeCache, plan_with};
use support::{Failure, Noise, class, demand, variant};

/// One instance.
struct Instance {
    name: String,
    /// Price of each accelerator, dollars per hour.
    usd_per_hour: Vec<f64>,
    /// Rate of each bucket, requests per second.
    demand_rps: Vec<f64>,
    /// Highest rate of each bucket (inner) on one accelerator of each kind (outer), requests per second.
    rates_rps: Vec<Vec<f64>>,
}

impl Performance for Instance {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        let kind: usize = q.shape.accelerator.trim_start_matches('g').parse().unwrap_or(0);
        let bucket = |c: &RequestClass| c.name.trim_start_matches('b').parse().unwrap_or(0);
        let rates: Vec<f64> = q.classes.iter().map(|c| self.rates_rps[kind][bucket(c)]).collect();
        let total: f64 = q.classes.iter().map(|c| c.rps).sum();
        let work: f64 = q.classes.iter().zip(&rates).map(|(c, rate)| c.rps / rate).sum();
        let (misses, mix_rps) = (vec![None; rates.len()], if work > 0.0 { total / work } else { 0.0 });
        Ok(Evaluation { rates, mix_rps, watts: 0.0, misses })
    }

    fn predict(&self, _: &Query<'_>, _: f64) -> Option<Prediction> {
        None
    }

    fn coefficients(&self, _: &Query<'_>) -> Option<StepCoefficients> {
        None
    }
}

/// The shape of the published example: three small accelerators and one large are best while a bucket may not be split.
fn example() -> Instance {
    Instance {
        name: "example".to_owned(),
        usd_per_hour: vec![1.01, 3.67],
        demand_rps: vec![5.0, 2.0, 12.0, 5.0],
        rates_rps: vec![vec![1.5, 0.6, 4.0, 1.5], vec![24.0, 16.0, 30.0, 18.0]],
    }
}

fn generated(seed: u64, kinds: usize, buckets: usize) -> Instance {
    let mut noise = Noise(seed);
    let power: Vec<f64> = (0..kinds).map(|_| 8.0_f64.powf(noise.next())).collect();
    // Dearer accelerators are faster, and more so for long requests.
    let usd_per_hour =
        power.iter().map(|p| (100.0 * p.powf(0.9) * (0.8 + 0.4 * noise.next())).round() / 100.0).collect();
    let weight: Vec<f64> = (0..buckets).map(|_| 20.0_f64.powf(noise.next())).collect();
    let demand_rps =
        weight.iter().map(|w| (100.0 * 40.0 / w * noise.next()).round() / 100.0 + 0.01).collect();
    let rates_rps = power
        .iter()
        .map(|p| {
            let rate = |w: &f64| 12.0 / w * p.powf(0.7 + 0.3 * w.ln() / 3.0) * (0.85 + 0.3 * noise.next());
            weight.iter().map(rate).map(|r| (1e4 * r).round() / 1e4).collect()
        })
        .collect();
    let name = format!("{kinds} kinds, {buckets} buckets, #{seed}");
    Instance { name, usd_per_hour, demand_rps, rates_rps }
}

fn world(instance: &Instance) -> Result<(ClusterSnapshot, DemandEstimate), Failure> {
    let mut snapshot = ClusterSnapshot::default();
    for (g, usd_per_hour) in instance.usd_per_hour.iter().enumerate() {
        let mut class = presets::accelerator("l4").ok_or("no such accelerator preset")?;
        (class.name, class.usd_per_hour, class.autoscalable_max) = (format!("g{g}"), *usd_per_hour, 1000);
        class.link_domain_size = 1;
        snapshot.accelerators.push(class);
    }
    let variants = vec![variant("bf16", Dtype::Bf16, 1.0)];
    let mut pool = support::pool("bench/melange", 1, "llama-3.1-8b", (1e6, 1e6), variants)?;
    (pool.scaling.min_replicas, pool.scaling.max_replicas) = (0, 1000);
    pool.parallelism.tensor = vec![1];
    pool.engine.cold_start_seconds = 0.0;
    pool.max_context_tokens = None;
    snapshot.pools.push(pool);
    // Buckets of unlike lengths, which the table of rates does not look at.
    let class = |(b, rps): (usize, &f64)| class(&format!("b{b}"), *rps, 100.0 * (b + 1) as f64, 100.0);
    let classes = instance.demand_rps.iter().enumerate().map(class).collect();
    Ok((snapshot, demand(classes)))
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    let sizes = [(3, 9), (4, 16), (4, 36), (8, 16), (8, 36)];
    let mut instances = vec![example()];
    instances.extend(sizes.iter().flat_map(|(k, b)| (1..=4).map(|seed| generated(seed, *k, *b))));
    let mut written = Vec::new();
    println!("instance                      $/h       gap %   accelerators   ms (median of 9)");
    for instance in &instances {
        let (snapshot, demand) = world(instance)?;
        let pool = snapshot.pools[0].id.clone();
        let demands = BTreeMap::from([(pool, demand)]);
        let (config, idle, cache) = (PlannerConfig::default(), BTreeMap::new(), ShapeCache::default());
        let mut took = Vec::new();
        let mut last = None;
        for _ in 0..9 {
            let started = Timestamp::now();
            let input = PlanInput {
                snapshot: &snapshot,
                demands: &demands,
                previous: None,
                config: &config,
                number: 1,
                next_serial: 1,
                now: Timestamp::UNIX_EPOCH,
                trigger: "bench".to_owned(),
                idle: &idle,
                cache: &cache,
            };
            last = Some(plan_with(&input, instance, &BranchAndBound).plan);
            took.push(Timestamp::now().duration_since(started).as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        let plan = last.ok_or("nothing was planned")?;
        let counts: Vec<usize> = (0..instance.usd_per_hour.len())
            .map(|g| plan.pools[0].replicas.iter().filter(|r| r.shape.accelerator == format!("g{g}")).count())
            .collect();
        println!(
            "{:28}  {:8.2}  {:6.3}   {:13}  {:8.3}",
            instance.name,
            plan.usd_per_hour,
            100.0 * plan.quality.gap,
            format!("{counts:?}"),
            took[4]
        );
        written.push(serde_json::json!({
            "name": instance.name,
            "usd_per_hour": instance.usd_per_hour,
            "demand_rps": instance.demand_rps,
            "rates_rps": instance.rates_rps,
            "plan_usd_per_hour": plan.usd_per_hour,
            "plan_ms": took[4],
        }));
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&written)?)?;
    }
    Ok(())
}
