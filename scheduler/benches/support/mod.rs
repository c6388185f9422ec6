//! What the planner's benches are made of.

#[allow(dead_code)]
pub mod fleet;

use std::collections::BTreeMap;

use plimsoll_fleet::pool::{Disaggregation, EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::*;

pub type Failure = Box<dyn std::error::Error>;

/// Figures from 0 to 1 that look random and are the same in every run (splitmix64).
#[allow(dead_code)]
pub struct Noise(pub u64);

#[allow(dead_code)]
impl Noise {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

pub fn class(name: &str, rps: f64, input_tokens: f64, output_tokens: f64) -> RequestClass {
    let (name, slo_class) = (name.to_owned(), "default".to_owned());
    RequestClass { name, slo_class, input_tokens, output_tokens, cached_fraction: 0.0, rps }
}

/// A demand of these classes.
pub fn demand(classes: Vec<RequestClass>) -> DemandEstimate {
    DemandEstimate { classes, observed_rps: None, arrival_scv: 1.0, source: "bench".to_owned() }
}

/// Most requests short, some long.
#[allow(dead_code)]
pub fn mixed_demand(rps: f64) -> DemandEstimate {
    demand(vec![
        class("short", 0.7 * rps, 500.0, 150.0),
        class("middle", 0.25 * rps, 1500.0, 300.0),
        class("long", 0.05 * rps, 4000.0, 400.0),
    ])
}

pub fn variant(name: &str, weights: Dtype, quality: f64) -> Variant {
    Variant { name: name.to_owned(), weights, kv: Dtype::Bf16, quality, source: None }
}

/// Pool number `i` of a model preset, served by whole replicas, with 95th percentiles as objectives: one replica at least and a hundred at most.
pub fn pool(
    id: &str,
    i: usize,
    model: &str,
    (ttft_ms, tpot_ms): (f64, f64),
    variants: Vec<Variant>,
) -> Result<ModelPool, Failure> {
    let objective = |ms| Some(Objective { percentile: Percentile::P95, ms });
    Ok(ModelPool {
        id: id.parse()?,
        uid: i.to_string(),
        generation: 1,
        served_name: format!("m{i}"),
        source: None,
        architecture: presets::model(model).ok_or("no such model preset")?,
        variants,
        slo_classes: vec![SloClass {
            name: "default".to_owned(),
            slo: Slo { ttft: objective(ttft_ms), tpot: objective(tpot_ms), e2e: None },
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
        parallelism: Parallelism { disaggregation: Disaggregation::Never, ..Parallelism::default() },
        placement: Placement::default(),
        engine: EngineSpec {
            kind: EngineKind::Simulated,
            image: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: BTreeMap::new(),
            cold_start_seconds: 90.0,
            measured_cold_start_seconds: BTreeMap::new(),
        },
        priority: 0,
        min_quality: 0.0,
        mode: Mode::Enforce,
        max_context_tokens: Some(8192),
        rollout: Default::default(),
        revision: String::new(),
        observed: Vec::new(),
    })
}

#[allow(dead_code)]
pub fn node(
    name: &str,
    class: &AcceleratorClass,
    allocatable_gpus: u32,
    zone: &str,
) -> Result<NodeInfo, Failure> {
    Ok(NodeInfo {
        name: NodeName::new(name)?,
        accelerator: class.name.clone(),
        allocatable_gpus,
        foreign_gpus: 0,
        zone: zone.to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    })
}

#[allow(dead_code)]
pub fn budget(name: &str, usd_per_hour: f64, namespace: Option<String>, parent: Option<&str>) -> Budget {
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
