//! Medians of the engine model's costs: `cargo bench -p plimsoll-engine`.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at once")]

use std::hint::black_box;
use std::time::Instant;

use plimsoll_engine::sim::{Arrival, Replica, SimPolicy, SimRequest, simulate};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{
    Dtype, ModelArchitecture, Objective, Percentile, RequestClass, Role, Shape, Slo, presets,
};

/// Prints the median time of `runs` calls.
fn median<T>(name: &str, runs: usize, mut f: impl FnMut() -> T) {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            black_box(f());
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:48} {:>10.1} µs", times[runs / 2]);
}

fn class(input: f64, output: f64) -> RequestClass {
    RequestClass {
        name: format!("in{input}-out{output}"),
        slo_class: "default".to_owned(),
        input_tokens: input,
        output_tokens: output,
        cached_fraction: 0.2,
        rps: 1.0,
    }
}

fn main() {
    let arch = presets::model("llama-3.1-70b").unwrap();
    let arch = ModelArchitecture { max_context_tokens: 16_384, ..arch };
    let h100 = presets::accelerator("h100").unwrap();
    let fp8 =
        Variant { name: "fp8".into(), weights: Dtype::Fp8, kv: Dtype::Bf16, quality: 1.0, source: None };
    let shape = Shape {
        variant: "fp8".into(),
        accelerator: "h100".into(),
        tensor_parallel: 2,
        pipeline_parallel: 1,
        data_parallel: 1,
        expert_parallel: 1,
        role: Role::Mixed,
    };
    let new = || ReplicaModel::new(&arch, &fp8, &h100, &shape, &EngineConfig::default()).unwrap();
    let model = new();
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    let slo = Slo { ttft: p95(800.0), tpot: p95(50.0), e2e: None };
    let mix: Vec<RequestClass> =
        [(128.0, 64.0), (128.0, 512.0), (1024.0, 64.0), (1024.0, 512.0), (4096.0, 64.0), (4096.0, 512.0)]
            .map(|(i, o)| class(i, o))
            .to_vec();

    median("ReplicaModel::new", 2000, new);
    median("step_ms (decode of 64)", 2000, || model.decode_ms(black_box(64.0), 1200.0));
    median("class_rate", 2000, || model.class_rate(&mix[3], &slo, 1.0, 0.1));
    median("load_line, 6 classes, one objective each way", 2000, || {
        model.load_line(&mix, &|_| slo, 1.5, 0.1)
    });
    let line = model.load_line(&mix, &|_| slo, 1.5, 0.1);
    println!("  which is {:.2} of {:.2} rps: {:?}", line.rps, line.saturation_rps, line.binding);
    median("load_line, 6 classes, no objective", 2000, || {
        model.load_line(&mix, &|_| Slo::default(), 1.5, 0.1)
    });
    median("predict, 6 classes, three percentiles each", 2000, || {
        let p = model.predict(&mix, 3.0, 1.0);
        p.classes
            .iter()
            .map(|c| c.ttft_ms(Percentile::P95) + c.tpot_ms(Percentile::P95) + c.e2e_ms(Percentile::P95))
            .sum::<f64>()
    });
    let arrivals: Vec<Arrival> = (0..1000)
        .map(|id| Arrival {
            at_ms: id as f64 * 200.0,
            request: SimRequest { id, prompt_tokens: 1200, output_tokens: 250, ..SimRequest::default() },
        })
        .collect();
    median("simulate 1,000 requests of 1200 + 250 tokens", 20, || {
        simulate(Replica::new(model.clone(), SimPolicy::default()), &arrivals)
    });
}
