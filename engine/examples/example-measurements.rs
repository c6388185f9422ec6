//! Makes `engine/tests/data/example_measurements.csv`: synthetic measurements, from this repository's own
//! simulation under coefficients unlike those shipped, with noise.
//!
//! `cargo run -p plimsoll-engine --example example-measurements`, under a comment line that says so.

use std::sync::Arc;

use plimsoll_engine::calibrate::{Measured, Metric, Subject, Workload};
use plimsoll_engine::measurements::{Measurement, write};
use plimsoll_engine::sim::{
    Arrival, Replica, RequestOutcome, SimPolicy, SimRequest, simulate, simulate_closed,
};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{Calibration, Dtype, RequestClass, Role, Shape, presets};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Exp, Normal};

const NOISE: f64 = 0.03;

/// Each GPU has its own truth, some way off the preset's.
fn truth(gpu: &str, shipped: &Calibration) -> Calibration {
    let (compute, weights, kv, request) = match gpu {
        "h100" => (1.05, 0.97, 0.9, 1.3),
        "a100-80" => (1.15, 0.94, 1.0, 1.6),
        _ => (0.95, 1.0, 1.05, 0.8),
    };
    Calibration {
        eta_compute: shipped.eta_compute * compute,
        eta_weights: shipped.eta_weights * weights,
        eta_kv: shipped.eta_kv * kv,
        request_overhead_us: shipped.request_overhead_us * request,
        ..shipped.clone()
    }
}

fn subject(model: &str, gpu: &str, weights: Dtype, tensor_parallel: u32) -> Option<Subject> {
    let mut architecture = presets::model(model)?;
    architecture.max_context_tokens = 8192;
    Some(Subject {
        engine: "vllm".to_owned(),
        engine_version: "0".to_owned(),
        architecture,
        variant: Variant { name: weights.to_string(), weights, kv: Dtype::Bf16, quality: 1.0, source: None },
        accelerator: presets::accelerator(gpu)?,
        shape: Shape {
            variant: weights.to_string(),
            accelerator: gpu.to_owned(),
            tensor_parallel,
            pipeline_parallel: 1,
            data_parallel: 1,
            expert_parallel: 1,
            role: Role::Mixed,
        },
        config: EngineConfig::default(),
    })
}

/// Lengths lie evenly within this share of their means to either side.
const SPREAD: f64 = 0.2;

fn request(id: u64, input: f64, output: f64) -> SimRequest {
    let share = 1.0 - SPREAD + 2.0 * SPREAD * ((id * 7) % 11) as f64 / 10.0;
    SimRequest {
        id,
        prompt_tokens: (input * share) as u32,
        output_tokens: (output * share) as u32,
        ..SimRequest::default()
    }
}

fn mean(out: &[RequestOutcome], f: impl Fn(&RequestOutcome) -> Option<f64>) -> f64 {
    out.iter().filter_map(f).sum::<f64>() / out.len() as f64
}

struct Maker {
    rng: StdRng,
    rows: Vec<Measurement>,
}

impl Maker {
    fn noisy(&mut self, time: f64) -> Option<f64> {
        let noise = Normal::new(0.0, NOISE).ok()?;
        Some((time * f64::exp(noise.sample(&mut self.rng)) * 1e4).round() / 1e4)
    }

    fn push(&mut self, s: &Arc<Subject>, workload: Workload, times: (f64, f64), saturated: Option<bool>) {
        let closed = matches!(workload, Workload::ClosedLoop { .. });
        let measured =
            Measured { ttft_ms: self.noisy(times.0), tpot_ms: self.noisy(times.1), ..Measured::default() };
        self.rows.push(Measurement {
            subject: Arc::clone(s),
            workload: Some(workload),
            measured: if saturated == Some(true) { Measured::default() } else { measured },
            length_spread: SPREAD,
            requests_per_client: closed.then_some(6),
            saturated,
            kv_tokens: None,
            source: "synthetic: simulation and noise".to_owned(),
        });
    }

    fn closed(&mut self, s: &Arc<Subject>, model: &ReplicaModel, concurrency: u32, input: f64, output: f64) {
        let requests: Vec<SimRequest> =
            (0..6 * u64::from(concurrency)).map(|i| request(i, input, output)).collect();
        let out = simulate_closed(
            Replica::new(model.clone(), SimPolicy::default()),
            &requests,
            concurrency as usize,
        );
        let times = (mean(&out, |o| Some(o.ttft_ms)), mean(&out, |o| o.tpot_ms));
        let workload = Workload::ClosedLoop {
            concurrency: f64::from(concurrency),
            input_tokens: input,
            output_tokens: output,
        };
        self.push(s, workload, times, None);
    }

    /// Saturated if the last request is answered long after it came.
    fn open(&mut self, s: &Arc<Subject>, model: &ReplicaModel, share: f64, input: f64, output: f64) {
        let class = RequestClass {
            name: String::new(),
            slo_class: String::new(),
            input_tokens: input,
            output_tokens: output,
            cached_fraction: 0.0,
            rps: 1.0,
        };
        let rps = (share * model.saturation_rps(&[class]) * 1e3).round() / 1e3;
        let Ok(gap) = Exp::new(rps / 1e3) else { return };
        let mut at_ms = 0.0;
        let arrivals: Vec<Arrival> = (0..3000)
            .map(|i| {
                at_ms += gap.sample(&mut self.rng);
                Arrival { at_ms, request: request(i, input, output) }
            })
            .collect();
        let out = simulate(Replica::new(model.clone(), SimPolicy::default()), &arrivals);
        let late = out.get(2500..).map_or(0.0, |o| mean(o, |o| Some(o.ttft_ms)));
        let workload =
            Workload::OpenLoop { rps, input_tokens: input, cached_tokens: 0.0, output_tokens: output };
        let times = (mean(&out, |o| Some(o.ttft_ms)), mean(&out, |o| o.tpot_ms));
        self.push(s, workload, times, Some(late > 0.08 * at_ms));
    }
}

fn main() {
    let mut maker = Maker { rng: StdRng::seed_from_u64(20), rows: Vec::new() };
    let replicas = [
        ("llama-3.1-8b", "h100", Dtype::Bf16, 1),
        ("llama-3.1-8b", "a100-80", Dtype::Bf16, 1),
        ("llama-3.1-8b", "l40s", Dtype::Bf16, 1),
        ("qwen3-32b", "h100", Dtype::Fp8, 2),
        ("qwen3-32b", "a100-80", Dtype::Bf16, 4),
        ("llama-3.1-70b", "h100", Dtype::Fp8, 4),
        ("llama-3.1-70b", "a100-80", Dtype::Bf16, 8),
    ];
    for (model, gpu, weights, tp) in replicas {
        let Some(s) = subject(model, gpu, weights, tp).map(Arc::new) else { continue };
        let Ok(truth) = s.model(&truth(gpu, &s.accelerator.calibration)) else { continue };
        for (input, output) in [(256.0, 256.0), (1024.0, 128.0), (4096.0, 256.0)] {
            for concurrency in [1, 4, 16, 48] {
                maker.closed(&s, &truth, concurrency, input, output);
            }
        }
        for share in [0.4, 0.8, 1.25] {
            maker.open(&s, &truth, share, 1024.0, 128.0);
        }
        for batch in [1.0, 8.0, 64.0] {
            let workload = Workload::Decode { batch, context_tokens: 1000.0 };
            let step_ms = workload.predict(&truth, Metric::Step).and_then(|t| maker.noisy(t));
            let measured = Measured { step_ms, ..Measured::default() };
            let last = maker.rows.last().cloned();
            maker.rows.extend(last.map(|m| Measurement {
                workload: Some(workload),
                measured,
                requests_per_client: None,
                length_spread: 0.0,
                saturated: None,
                ..m
            }));
        }
        let kv_tokens = Some(truth.memory().kv_tokens);
        let last = maker.rows.last().cloned();
        maker.rows.extend(last.map(|m| Measurement {
            workload: None,
            measured: Measured::default(),
            kv_tokens,
            ..m
        }));
    }
    print!("{}", write(&maker.rows));
}
