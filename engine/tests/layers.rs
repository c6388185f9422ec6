//! Layers that keep less than everything: windows and states, in memory, in time and in the simulated engine.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, class, shape, variant};
use plimsoll_engine::sim::{Arrival, Replica, SimPolicy, SimRequest, simulate};
use plimsoll_engine::{EngineConfig, ReplicaModel, StepLoad};
use plimsoll_fleet::{Dtype, ModelArchitecture, presets};

fn replica(model: &ModelArchitecture, weights: Dtype, acc: &str, tp: u32) -> ReplicaModel {
    let acc = presets::accelerator(acc).unwrap();
    let v = variant(weights, Dtype::Bf16);
    ReplicaModel::new(model, &v, &acc, &shape(&acc.name, tp, 1), &EngineConfig::default()).unwrap()
}

fn plain(model: &ModelArchitecture) -> ModelArchitecture {
    ModelArchitecture { sliding: None, ..model.clone() }
}

/// gpt-oss-120b: 36 layers × 2 × 8 × 64 × 2 bytes = 73,728 bytes a token; of 8,192 tokens half the layers keep 128
/// and the block being filled.
#[test]
fn windows_hold_more_requests() {
    let windowed = replica(&arch("gpt-oss-120b", 8192), Dtype::Fp4, "h100", 1);
    let full = replica(&plain(&arch("gpt-oss-120b", 8192)), Dtype::Fp4, "h100", 1);
    assert_eq!(windowed.memory().kv_bytes_per_token_per_gpu, 73_728.0);
    assert_eq!(windowed.memory().kv_tokens, full.memory().kv_tokens);
    let footprint = 0.5 * 8192.0 + 0.5 * 144.0;
    assert_eq!(windowed.footprint_tokens(8192.0), footprint);
    let more = windowed.memory().max_concurrency / full.memory().max_concurrency;
    assert!((more - 8192.0 / footprint).abs() < 1e-9, "{more}");
    // What agents count in contexts grows alike.
    let more = windowed.coefficients(8192.0).kv_tokens / full.coefficients(8192.0).kv_tokens;
    assert!((more - 8192.0 / footprint).abs() < 1e-9, "{more}");
}

/// Gemma 3 27B: 10 layers of 62 see everything. Decoding 64 requests of 8,192 tokens reads (10 × 8192 + 52 × 1024)
/// tokens of 8,192 bytes each in a layer, at the reachable share of 3.35 TB/s.
#[test]
fn windows_are_read_as_far_as_they_reach() {
    let gemma = replica(&arch("gemma-3-27b", 16_384), Dtype::Fp8, "h100", 1);
    let load = StepLoad { running: 64.0, context_tokens: 64.0 * 8192.0, ..StepLoad::default() };
    let bytes = 64.0 * (10.0 * 8192.0 + 52.0 * 1024.0) * 2.0 * 16.0 * 128.0 * 2.0;
    let kv_ms = gemma.step_breakdown(&load).kv_ms;
    let share = presets::accelerator("h100").unwrap().calibration.eta_kv;
    assert!((kv_ms / (bytes / (share * 3.35e9)) - 1.0).abs() < 1e-6, "{kv_ms}");
    // Prompts: a token beyond the window costs what one at its edge does.
    let late = gemma.prefill_ms(100.0, 12_000.0) - gemma.prefill_ms(100.0, 11_000.0);
    let full = replica(&plain(&arch("gemma-3-27b", 16_384)), Dtype::Fp8, "h100", 2);
    let late_full = 2.0 * (full.prefill_ms(100.0, 12_000.0) - full.prefill_ms(100.0, 11_000.0));
    assert!((late / late_full - 10.0 / 62.0).abs() < 0.01, "{late} of {late_full}");
}

/// Qwen3-Next: 12 layers × 2 × 2 × 256 × 2 bytes = 24,576 bytes a token, and 36 states of 1.098 MB a request.
#[test]
fn states_are_kept_once_a_request() {
    let hybrid = replica(&arch("qwen3-next-80b-a3b", 8192), Dtype::Fp8, "h200", 1);
    let memory = hybrid.memory();
    assert_eq!(memory.kv_bytes_per_token_per_gpu, 24_576.0);
    let state = 36.0 * 2.0 * (32.0 * 128.0 * 128.0 + 3.0 * 8192.0);
    assert_eq!(memory.state_bytes_per_request_per_gpu, state);
    assert!((hybrid.footprint_tokens(1000.0) - 1000.0 - state / 24_576.0).abs() < 1e-9);
    // Short requests are limited by their states, long ones hardly.
    assert!(hybrid.footprint_tokens(100.0) > 15.0 * 100.0);
    assert!(hybrid.footprint_tokens(100_000.0) < 1.02 * 100_000.0);
    // A step reads and writes each state.
    let one = |running: f64| {
        hybrid.step_breakdown(&StepLoad { running, context_tokens: 0.0, ..StepLoad::default() }).kv_ms
    };
    let share = presets::accelerator("h200").unwrap().calibration.eta_kv;
    assert!((one(10.0) / (10.0 * 2.0 * state / (share * 4.8e9)) - 1.0).abs() < 1e-6);
}

#[test]
fn only_impossible_layers_are_refused() {
    let acc = presets::accelerator("h100").unwrap();
    let v = variant(Dtype::Fp8, Dtype::Bf16);
    let refuse = |arch: &ModelArchitecture| {
        let replica = ReplicaModel::new(arch, &v, &acc, &shape("h100", 1, 1), &EngineConfig::default());
        replica.unwrap_err().to_string()
    };
    let gemma = arch("gemma-3-12b", 8192);
    let mut all = gemma.clone();
    all.sliding.as_mut().unwrap().layers = 49;
    assert!(refuse(&all).contains("sliding.layers + recurrent.layers is 49"));
    let mut none = gemma.clone();
    none.sliding.as_mut().unwrap().window_tokens = 0;
    assert!(refuse(&none).contains("sliding.window_tokens is 0"));
    // A million tokens of full attention would not fit; what does is said.
    let long = ModelArchitecture { max_context_tokens: 4_000_000, ..gemma };
    let text = refuse(&long);
    let longest: f64 =
        text.split("at most ").nth(1).unwrap().split([',', ' ']).next().unwrap().parse().unwrap();
    let fits = ModelArchitecture { max_context_tokens: longest as u32, ..long };
    let acc2 = presets::accelerator("h100").unwrap();
    let config = EngineConfig::default();
    assert!(ReplicaModel::new(&fits, &v, &acc2, &shape("h100", 1, 1), &config).is_ok(), "{text}");
}

/// The simulated engine admits as many requests as the model says fit, with windows and with states.
#[test]
fn the_simulated_engine_keeps_as_much() {
    for (name, weights, acc, input, output) in [
        ("gemma-3-27b", Dtype::Bf16, "h100", 6000, 400),
        ("qwen3-next-80b-a3b", Dtype::Fp8, "h200", 4000, 400),
        ("gpt-oss-120b", Dtype::Fp4, "h100", 7000, 400),
    ] {
        let config = EngineConfig { max_running: 4096, ..EngineConfig::default() };
        let acc = presets::accelerator(acc).unwrap();
        let v = variant(weights, Dtype::Bf16);
        let model = ReplicaModel::new(&arch(name, 8192), &v, &acc, &shape(&acc.name, 1, 1), &config).unwrap();
        let mut engine = Replica::new(model.clone(), SimPolicy::default());
        let fits = model.memory().kv_tokens / model.footprint_tokens(f64::from(input + output / 2));
        for id in 0..(2.0 * fits) as u64 {
            let request =
                SimRequest { id, prompt_tokens: input, output_tokens: output, ..SimRequest::default() };
            engine.submit(0.0, request).unwrap();
        }
        let (mut now, mut most) = (0.0, 0);
        while let Some(step) = engine.step(now) {
            now += step.duration_ms;
            most = most.max(engine.stats().running);
        }
        let ratio = most as f64 / fits;
        println!("{name}: {most} ran at once, the model says {fits:.0}");
        assert!((0.9..1.15).contains(&ratio), "{name}: {most} of {fits}");
        assert_eq!(engine.stats().finished, (2.0 * fits) as u64);
        assert_eq!(engine.stats().kv_usage, 0.0);
    }
}

/// Closed form and simulation agree where layers have windows.
#[test]
fn closed_form_agrees_with_windows() {
    let model = replica(&arch("gpt-oss-120b", 8192), Dtype::Fp4, "h100", 1);
    let mix = [class(3000.0, 300.0)];
    let rps = 0.5 * model.saturation_rps(&mix);
    let arrivals: Vec<Arrival> = common::arrivals(&mix, rps, 1.0, 3000, 5);
    let out = simulate(Replica::new(model.clone(), SimPolicy::default()), &arrivals);
    let mean = out[300..].iter().filter_map(|o| o.tpot_ms).sum::<f64>() / (out.len() - 300) as f64;
    let form = model.predict(&mix, rps, 1.0).classes[0].mean_tpot_ms();
    assert!((form / mean - 1.0).abs() < 0.08, "simulated {mean}, closed form {form}");
}
