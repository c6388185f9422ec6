//! Builders shared by the tests.
#![allow(dead_code, reason = "each test binary uses some of them")]
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use plimsoll_engine::sim::{Arrival, SimRequest};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{Dtype, ModelArchitecture, RequestClass, Role, Shape, presets};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Gamma};

pub fn arch(name: &str, max_context: u32) -> ModelArchitecture {
    ModelArchitecture { max_context_tokens: max_context, ..presets::model(name).unwrap() }
}

pub fn variant(weights: Dtype, kv: Dtype) -> Variant {
    Variant { name: weights.to_string(), weights, kv, quality: 1.0, source: None }
}

pub fn shape(accelerator: &str, tp: u32, pp: u32) -> Shape {
    Shape {
        variant: "v".to_owned(),
        accelerator: accelerator.to_owned(),
        tensor_parallel: tp,
        pipeline_parallel: pp,
        data_parallel: 1,
        expert_parallel: 1,
        role: Role::Mixed,
    }
}

pub fn replica(model: &str, weights: Dtype, acc: &str, tp: u32) -> ReplicaModel {
    let acc = presets::accelerator(acc).unwrap();
    let shape = shape(&acc.name, tp, 1);
    ReplicaModel::new(
        &arch(model, 8192),
        &variant(weights, Dtype::Bf16),
        &acc,
        &shape,
        &EngineConfig::default(),
    )
    .unwrap()
}

pub fn class(input: f64, output: f64) -> RequestClass {
    RequestClass {
        name: format!("default/in{input}-out{output}"),
        slo_class: "default".to_owned(),
        input_tokens: input,
        output_tokens: output,
        cached_fraction: 0.0,
        rps: 1.0,
    }
}

/// Renewal arrivals with gamma inter-arrival times; classes drawn by their rates; lengths as the class says.
pub fn arrivals(mix: &[RequestClass], rps: f64, scv: f64, count: u64, seed: u64) -> Vec<Arrival> {
    let mut rng = StdRng::seed_from_u64(seed);
    let gap = Gamma::new(1.0 / scv, scv * 1e3 / rps).unwrap();
    let total: f64 = mix.iter().map(|c| c.rps).sum();
    let mut at_ms = 0.0;
    (0..count)
        .map(|id| {
            at_ms += gap.sample(&mut rng);
            let mut pick = rng.random::<f64>() * total;
            let class = mix.iter().find(|c| {
                pick -= c.rps;
                pick <= 0.0
            });
            let class = class.unwrap_or(&mix[mix.len() - 1]);
            let request = SimRequest {
                id,
                prompt_tokens: class.input_tokens as u32,
                output_tokens: class.output_tokens as u32,
                ..SimRequest::default()
            };
            Arrival { at_ms, request }
        })
        .collect()
}

/// The value below which a share `p` of the sample lies.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * p) as usize).min(values.len() - 1)]
}

/// The folder of measured data beside the workspace (or one folder further up), where there is one.
pub fn data() -> Option<std::path::PathBuf> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .skip(2)
        .take(2)
        .map(|root| root.join("shared").join("data"))
        .find(|dir| dir.is_dir());
    if dir.is_none() {
        println!("skipped: no measured data beside the workspace");
    }
    dir
}

/// Rows of a CSV file without quoting, by column name.
pub fn csv(path: &std::path::Path) -> Vec<std::collections::HashMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|l| header.iter().zip(l.split(',')).map(|(h, v)| ((*h).to_owned(), v.to_owned())).collect())
        .collect()
}
