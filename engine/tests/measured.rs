//! The model against measurements, where the folder of measured data lies beside the workspace. Every test prints its
//! figures (`cargo test -p plimsoll-engine --test measured -- --nocapture`); the bounds only catch gross breakage.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::collections::HashMap;

use common::{arch, csv, data, percentile, shape, variant};
use plimsoll_engine::sim::{Replica, SimPolicy, SimRequest, simulate_closed};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::{Attention, Dtype, ModelArchitecture, presets};

fn number(row: &HashMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap_or(f64::NAN)
}

fn summary(name: &str, errors: &[f64]) -> (f64, f64) {
    let mut abs: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
    let (median, p90) = (percentile(&mut abs, 0.5), percentile(&mut abs, 0.9));
    let mean = abs.iter().sum::<f64>() / abs.len() as f64;
    println!(
        "{name}: {} rows, error median {:.1} %, mean {:.1} %, p90 {:.1} %",
        abs.len(),
        100.0 * median,
        100.0 * mean,
        100.0 * p90
    );
    (median, p90)
}

struct Row {
    model: ReplicaModel,
    name: String,
    input: f64,
    output: f64,
    concurrency: f64,
    ttft: f64,
    tpot: f64,
    known_protocol: bool,
}

/// Closed-loop vLLM measurements of dense models, aggregated.
fn vllm_rows(dir: &std::path::Path, fp8_kv: Dtype) -> Vec<Row> {
    csv(&dir.join("e2e").join("aic_silicon_e2e.csv"))
        .iter()
        .filter(|r| r["backend"] == "vllm" && r["mode"] == "agg")
        .filter_map(|r| {
            let preset = match r["model_path"].as_str() {
                "meta-llama/Llama-3.1-70B" => "llama-3.1-70b",
                "Qwen/Qwen3-32B" => "qwen3-32b",
                _ => return None,
            };
            let gpu = if r["system"] == "h200_sxm" { "h200" } else { "h100" };
            let (weights, kv) =
                if r["precision"] == "fp8" { (Dtype::Fp8, fp8_kv) } else { (Dtype::Bf16, Dtype::Bf16) };
            let config = EngineConfig { max_running: 1024, ..EngineConfig::default() };
            let model = ReplicaModel::new(
                &arch(preset, 10_240),
                &variant(weights, kv),
                &presets::accelerator(gpu).unwrap(),
                &shape(gpu, number(r, "tp_size") as u32, 1),
                &config,
            );
            let model = match model {
                Ok(model) => model,
                Err(e) => {
                    println!("no fit: {e}");
                    return None;
                }
            };
            Some(Row {
                model,
                name: format!("{preset} {gpu} TP{} {weights}", r["tp_size"]),
                input: number(r, "isl"),
                output: number(r, "osl"),
                concurrency: number(r, "batch_size"),
                ttft: number(r, "silicon_ttft_ms"),
                tpot: number(r, "silicon_tpot_ms"),
                known_protocol: r["source"].starts_with("source_file"),
            })
        })
        .collect()
}

#[test]
fn tpot_of_vllm_on_hopper() {
    let Some(dir) = data() else { return };
    for kv in [Dtype::Bf16, Dtype::Fp8] {
        let rows = vllm_rows(&dir, kv);
        let mut by_name: HashMap<&str, Vec<f64>> = HashMap::new();
        let mut all = Vec::new();
        for r in &rows {
            let e = r.model.closed_loop_tpot_ms(r.concurrency, r.input, r.output) / r.tpot - 1.0;
            by_name.entry(&r.name).or_default().push(e);
            all.push(e);
        }
        let mut names: Vec<_> = by_name.into_iter().collect();
        names.sort_by_key(|(n, _)| *n);
        for (name, errors) in names {
            summary(&format!("  {name}"), &errors);
        }
        let (median, p90) = summary(&format!("TPOT, FP8 weights with {kv} KV"), &all);
        assert!(median < 0.08 && p90 < 0.25);
    }
}

/// Mean TTFT and TPOT of the simulation, with the clients' protocol: lengths uniform in 0.8–1 times the nominal ones,
/// ten requests a client.
#[test]
fn simulated_ttft_of_vllm_on_hopper() {
    use rand::{Rng, SeedableRng};
    let Some(dir) = data() else { return };
    let (mut ttft, mut tpot) = (Vec::new(), Vec::new());
    for r in vllm_rows(&dir, Dtype::Fp8).iter().filter(|r| r.known_protocol) {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut length = |nominal: f64| (nominal * rng.random_range(0.8..=1.0)) as u32;
        let requests: Vec<SimRequest> = (0..10 * r.concurrency as u64)
            .map(|id| SimRequest {
                id,
                prompt_tokens: length(r.input),
                output_tokens: length(r.output),
                ..SimRequest::default()
            })
            .collect();
        let engine = Replica::new(r.model.clone(), SimPolicy::default());
        let out = simulate_closed(engine, &requests, r.concurrency as usize);
        let mean = |f: &dyn Fn(&plimsoll_engine::sim::RequestOutcome) -> f64| {
            out.iter().map(f).sum::<f64>() / out.len() as f64
        };
        ttft.push(mean(&|o| o.ttft_ms) / r.ttft - 1.0);
        tpot.push(mean(&|o| o.tpot_ms.unwrap_or(0.0)) / r.tpot - 1.0);
    }
    let (median, _) = summary("simulated mean TTFT, closed loop", &ttft);
    assert!(median < 0.3);
    let (median, _) = summary("simulated mean TPOT, closed loop", &tpot);
    assert!(median < 0.1);
}

#[test]
fn kv_blocks_of_vllm_on_h100() {
    let Some(dir) = data() else { return };
    let mut errors = Vec::new();
    for r in csv(&dir.join("memory").join("vllm_kv_blocks_h100.csv")) {
        let preset = if r["model"].contains("Llama-2-7b") { "llama-2-7b" } else { "llama-3.1-70b" };
        let model = ReplicaModel::new(
            &arch(preset, 4096),
            &variant(Dtype::Bf16, Dtype::Bf16),
            &presets::accelerator("h100").unwrap(),
            &shape("h100", number(&r, "tp") as u32, 1),
            &EngineConfig::default(),
        )
        .unwrap();
        let error = model.memory().kv_blocks as f64 / number(&r, "kv_blocks") - 1.0;
        println!(
            "{} TP{}: {} blocks, measured {} ({:+.1} %)",
            r["model"],
            r["tp"],
            model.memory().kv_blocks,
            r["kv_blocks"],
            100.0 * error
        );
        errors.push(error);
    }
    let (_, p90) = summary("KV blocks, vLLM H100", &errors);
    assert!(p90 < 0.03);
}

fn opt(name: &str, layers: u32, hidden: u32, heads: u32, parameters: f64) -> ModelArchitecture {
    let embedding = 50_272.0 * f64::from(hidden);
    ModelArchitecture {
        name: name.to_owned(),
        layers,
        hidden,
        heads,
        head_dim: hidden / heads,
        attention: Attention::Grouped { kv_heads: heads },
        vocab: 50_272,
        total_parameters: parameters,
        active_parameters: parameters - embedding,
        tied_embeddings: true,
        max_context_tokens: 2048,
        moe: None,
        sliding: None,
        recurrent: None,
    }
}

/// DistServe's table keeps 0.92–0.93 of 80 GiB for weights and KV cache, without a reserve of its own.
#[test]
fn kv_tokens_of_distserve_on_a100() {
    let Some(dir) = data() else { return };
    let config = EngineConfig { memory_utilisation: 0.925, reserve_bytes: 0.0, ..EngineConfig::default() };
    let a100 = presets::accelerator("a100-80").unwrap();
    let mut errors = Vec::new();
    for r in csv(&dir.join("memory").join("distserve_max_num_tokens.csv")) {
        let model = if r["model"].contains("13b") {
            opt("opt-13b", 40, 5120, 40, 12.85e9)
        } else {
            opt("opt-66b", 64, 9216, 72, 65.7e9)
        };
        let (tp, pp) = (number(&r, "tp") as u32, number(&r, "pp") as u32);
        let fit = ReplicaModel::new(
            &model,
            &variant(Dtype::Fp16, Dtype::Fp16),
            &a100,
            &shape("a100-80", tp, pp),
            &config,
        );
        match fit {
            Ok(fit) => errors.push(fit.memory().kv_tokens / number(&r, "max_num_tokens") - 1.0),
            Err(e) => println!("no fit: {e}"),
        }
    }
    let (median, _) = summary("KV tokens, DistServe A100, all TP × PP", &errors);
    assert!(median < 0.05);
}

/// Mixture of experts, aggregated: nothing was fitted to these rows. The model does not know fused expert kernels.
#[test]
fn tpot_of_a_mixture_of_experts() {
    let Some(dir) = data() else { return };
    let mut errors = Vec::new();
    for r in csv(&dir.join("e2e").join("aic_silicon_e2e.csv")) {
        if r["backend"] != "vllm" || r["mode"] != "agg" || r["model_path"] != "openai/gpt-oss-120b" {
            continue;
        }
        let gpu = if r["system"] == "h200_sxm" { "h200" } else { "h100" };
        let model = ReplicaModel::new(
            &arch("gpt-oss-120b", 10_240),
            &variant(Dtype::Fp4, Dtype::Bf16),
            &presets::accelerator(gpu).unwrap(),
            &shape(gpu, number(&r, "tp_size") as u32, 1),
            &EngineConfig { max_running: 1024, ..EngineConfig::default() },
        );
        match model {
            Ok(model) => errors.push(
                model.closed_loop_tpot_ms(number(&r, "batch_size"), number(&r, "isl"), number(&r, "osl"))
                    / number(&r, "silicon_tpot_ms")
                    - 1.0,
            ),
            Err(e) => println!("no fit: {e}"),
        }
    }
    let (median, _) = summary("TPOT, gpt-oss-120b (untuned)", &errors);
    let bias = errors.iter().sum::<f64>() / errors.len() as f64;
    println!("  bias {:+.1} %", 100.0 * bias);
    assert!(median < 0.6);
}
