//! Turns public data sets into the measurement format of `docs/engine-model.md`.
//!
//! `cargo run -p plimsoll-engine --example import-measurements -- FORMAT FILE > OUT.csv`, where FORMAT is one of
//! - `aiconfigurator`: ai-dynamo/aiconfigurator, silicon samples of served models;
//! - `splitwise`: Mutinifni/splitwise-sim, `perf_model.csv`: phases of Llama-2-70B;
//! - `argonne`: argonne-lcf/LLM-Inference-Bench, static batches (with or without a `parallelism` column);
//! - `distserve`: LLMServe/DistServe, fitted coefficients: sampled at a few points each;
//! - `distserve-memory`: LLMServe/DistServe, KV-cache tokens by model, TP and PP;
//! - `vllm-blocks`: KV-cache blocks that vLLM reported.
//!
//! Rows that the engine model does not describe (disaggregated, whose
//! decode workers were not counted, and data-parallel serving), and rows
//! flagged as suspect, are left out, and counted on standard error.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use plimsoll_engine::EngineConfig;
use plimsoll_engine::calibrate::{Measured, Subject, Workload};
use plimsoll_engine::measurements::{Measurement, write};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{Dtype, Role, Shape, presets};

#[path = "../validate-model/catalogue.rs"]
mod catalogue;

type Row = BTreeMap<String, String>;

fn rows(text: &str) -> Result<Vec<Row>, csv::Error> {
    csv::Reader::from_reader(text.as_bytes()).deserialize().collect()
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).map_or("", String::as_str)
}

fn number(row: &Row, column: &str) -> Option<f64> {
    text(row, column).parse().ok()
}

/// What was measured, as these data sets name it.
struct What<'a> {
    engine: &'a str,
    version: &'a str,
    model: &'a str,
    gpu: &'a str,
    weights: Dtype,
    kv: Dtype,
    tensor_parallel: u32,
    pipeline_parallel: u32,
    expert_parallel: u32,
    config: EngineConfig,
}

fn measurement(
    what: &What<'_>,
    workload: Option<Workload>,
    measured: Measured,
    source: &str,
) -> Option<Measurement> {
    let subject = Subject {
        engine: what.engine.to_owned(),
        engine_version: what.version.to_owned(),
        architecture: catalogue::model(what.model)?,
        variant: Variant {
            name: what.weights.to_string(),
            weights: what.weights,
            kv: what.kv,
            quality: 1.0,
            source: None,
        },
        accelerator: presets::accelerator(what.gpu)?,
        shape: Shape {
            variant: what.weights.to_string(),
            accelerator: what.gpu.to_owned(),
            tensor_parallel: what.tensor_parallel,
            pipeline_parallel: what.pipeline_parallel,
            data_parallel: 1,
            expert_parallel: what.expert_parallel,
            role: Role::Mixed,
        },
        config: what.config,
    };
    Some(Measurement {
        subject: Arc::new(subject),
        workload,
        measured,
        length_spread: 0.0,
        requests_per_client: None,
        saturated: None,
        kv_tokens: None,
        source: source.to_owned(),
    })
}

/// An empty precision is BF16. FP8 rows only make sense with an FP8 KV cache: with BF16, the nearly full ones would
/// have queued for minutes. Rows of the 2026 runs follow the InferenceMAX protocol: lengths uniform in 0.8–1 times
/// the nominal ones, ten requests a client, all clients starting at once. The protocol of the others is unknown.
/// Rows whose two columns of concurrency differ are left out.
fn aiconfigurator(row: &Row) -> Option<Measurement> {
    let one = |column| matches!(text(row, column), "" | "0" | "1");
    let model = match text(row, "model_path") {
        "meta-llama/Llama-3.1-70B" => "llama-3.1-70b",
        "meta-llama/Llama-3.1-8B-Instruct" => "llama-3.1-8b",
        "Qwen/Qwen3-32B" => "qwen3-32b",
        "openai/gpt-oss-120b" => "gpt-oss-120b",
        "deepseek-ai/DeepSeek-R1" => "deepseek-v3",
        _ => return None,
    };
    let tensor_parallel: u32 = text(row, "tp_size").parse().ok()?;
    let plain = text(row, "mode") == "agg" && one("attention_dp_size") && one("pp_size");
    let expert_parallel = text(row, "moe_ep_size").parse().unwrap_or(1).max(1);
    if !plain || tensor_parallel > 8 {
        return None;
    }
    let (weights, kv) = match text(row, "precision") {
        "" => (Dtype::Bf16, Dtype::Bf16),
        "fp8" => (Dtype::Fp8, Dtype::Fp8),
        "fp4" => (Dtype::Fp4, Dtype::Bf16),
        _ => return None,
    };
    // gpt-oss is published in MXFP4 only.
    let weights = if model == "gpt-oss-120b" { Dtype::Fp4 } else { weights };
    let gpu = match text(row, "system") {
        "h100_sxm" => "h100",
        "h200_sxm" => "h200",
        _ => return None,
    };
    let concurrency = number(row, "batch_size")?;
    if number(row, "concurrency").is_some_and(|c| c != concurrency) {
        return None;
    }
    // At 512 clients, vLLM on H100 answered faster than at 8 and let them wait for up to eight minutes: how many
    // requests it ran is not known.
    if model == "gpt-oss-120b" && text(row, "backend") == "vllm" && gpu == "h100" && concurrency >= 512.0 {
        return None;
    }
    let protocol = !text(row, "source").starts_with("gap-analysis");
    let shrink = if protocol { 0.9 } else { 1.0 };
    let workload = Workload::ClosedLoop {
        concurrency,
        input_tokens: number(row, "isl")? * shrink,
        output_tokens: number(row, "osl")? * shrink,
    };
    let measured = Measured {
        ttft_ms: number(row, "silicon_ttft_ms"),
        tpot_ms: number(row, "silicon_tpot_ms"),
        ..Measured::default()
    };
    let what = What {
        engine: text(row, "backend"),
        version: text(row, "backend_version"),
        model,
        gpu,
        weights,
        kv,
        tensor_parallel,
        pipeline_parallel: 1,
        expert_parallel,
        config: EngineConfig { max_running: 1024, ..EngineConfig::default() },
    };
    let m = measurement(&what, Some(workload), measured, "aiconfigurator")?;
    Some(if protocol {
        Measurement { length_spread: 0.1 / 0.9, requests_per_client: Some(10), ..m }
    } else {
        m
    })
}

/// Prompts were computed whole: no limit on tokens in a step.
fn unchunked() -> EngineConfig {
    EngineConfig { max_batched_tokens: 1 << 20, ..EngineConfig::default() }
}

/// Engines of 2023, before CUDA graphs.
fn eager() -> EngineConfig {
    EngineConfig { cuda_graphs: false, ..unchunked() }
}

/// Medians over repeats of one point, as prefill and decode steps. Power-capped runs are left out.
fn splitwise(all: &[Row]) -> Vec<Measurement> {
    /// GPU, whether prefill, TP, batch, prompt and answer.
    type Point = (String, bool, u32, u32, u32, u32);
    let mut points: BTreeMap<Point, Vec<f64>> = BTreeMap::new();
    for r in all.iter().filter(|r| text(r, "suspect") == "0") {
        let whole = |column| text(r, column).parse::<u32>().ok();
        let (Some(tp), Some(batch), Some(prompt), Some(answer)) =
            (whole("tensor_parallel"), whole("batch_size"), whole("prompt_size"), whole("token_size"))
        else {
            continue;
        };
        let gpu = text(r, "hardware").to_owned();
        for (prefill, column) in [(true, "prompt_time"), (false, "token_time")] {
            if let Some(t) = number(r, column) {
                let answer = if prefill { 0 } else { answer };
                points.entry((gpu.clone(), prefill, tp, batch, prompt, answer)).or_default().push(t);
            }
        }
    }
    let point = |((gpu, prefill, tp, batch, prompt, answer), mut times): (_, Vec<f64>)| {
        let gpu: String = gpu;
        let gpu = match gpu.as_str() {
            "a100-80gb" => "a100-80",
            "h100-80gb" => "h100",
            _ => return None,
        };
        times.sort_by(f64::total_cmp);
        let what = What {
            engine: "splitwise",
            version: "2023",
            model: "llama-2-70b",
            gpu,
            weights: Dtype::Fp16,
            kv: Dtype::Fp16,
            tensor_parallel: tp,
            pipeline_parallel: 1,
            expert_parallel: 1,
            config: eager(),
        };
        let workload = if prefill {
            Workload::Prefill { batch: f64::from(batch), new_tokens: f64::from(prompt), cached_tokens: 0.0 }
        } else {
            let context_tokens = f64::from(prompt) + 0.5 * f64::from(answer);
            Workload::Decode { batch: f64::from(batch), context_tokens }
        };
        let step_ms = times.get(times.len() / 2).copied();
        measurement(&what, Some(workload), Measured { step_ms, ..Measured::default() }, "splitwise")
    };
    points.into_iter().filter_map(point).collect()
}

/// Prompt and answer are `io_len` long. The A100s of this set have 40 GB.
fn argonne(row: &Row) -> Option<Measurement> {
    if text(row, "suspect") != "0" {
        return None;
    }
    let devices: u32 = text(row, "num_devices").parse().ok()?;
    let (tensor_parallel, pipeline_parallel) = match text(row, "parallelism") {
        "" | "TP" => (devices, 1),
        "PP" => (1, devices),
        "TP2xPP2" => (2, 2),
        _ => return None,
    };
    let model = match text(row, "model") {
        "meta-llama/Llama-2-7b-hf" => "llama-2-7b",
        "meta-llama/Llama-2-70b-hf" => "llama-2-70b",
        "meta-llama/Meta-Llama-3-8B" => "llama-3.1-8b",
        "meta-llama/Meta-Llama-3-70B" => "llama-3.1-70b",
        _ => return None,
    };
    let what = What {
        engine: if text(row, "framework") == "vLLM" { "vllm-2024" } else { "trtllm-2024" },
        version: "2024",
        model,
        gpu: if text(row, "hardware").contains("A100") { "a100-40" } else { "h100" },
        weights: Dtype::Fp16,
        kv: Dtype::Fp16,
        tensor_parallel,
        pipeline_parallel,
        expert_parallel: 1,
        config: unchunked(),
    };
    let length = number(row, "io_len")?;
    let workload =
        Workload::StaticBatch { batch: number(row, "batch")?, input_tokens: length, output_tokens: length };
    let e2e_ms = number(row, "latency_s").map(|s| 1e3 * s);
    measurement(&what, Some(workload), Measured { e2e_ms, ..Measured::default() }, "llm-inference-bench")
}

/// The published polynomials, at points inside the range that they were fitted over.
fn distserve(row: &Row) -> Vec<Measurement> {
    let (Some(a), Some(b), Some(c)) = (number(row, "a_ms"), number(row, "b_ms_per_token"), number(row, "c"))
    else {
        return Vec::new();
    };
    let Ok(tensor_parallel) = text(row, "tp").parse() else { return Vec::new() };
    let what = What {
        engine: if text(row, "engine") == "vllm" { "vllm-2023" } else { "distserve" },
        version: "2023",
        model: if text(row, "model").contains("13b") { "opt-13b" } else { "opt-66b" },
        gpu: "a100-80",
        weights: Dtype::Fp16,
        kv: Dtype::Fp16,
        tensor_parallel,
        pipeline_parallel: 1,
        expert_parallel: 1,
        config: if text(row, "engine") == "vllm" { eager() } else { unchunked() },
    };
    let points: Vec<(Workload, f64)> = if text(row, "phase") == "prefill" {
        let prompt = |n: f64| {
            (Workload::Prefill { batch: 1.0, new_tokens: n, cached_tokens: 0.0 }, a + b * n + c * n * n)
        };
        [128.0, 512.0, 1024.0, 1900.0].map(prompt).to_vec()
    } else {
        let batches: &[f64] =
            if text(row, "phase").ends_with("smallbs") { &[1.0, 16.0, 64.0] } else { &[128.0, 192.0] };
        let step = |batch: f64, context_tokens: f64| {
            (Workload::Decode { batch, context_tokens }, a + b * batch * context_tokens + c * batch)
        };
        batches.iter().flat_map(|n| [step(*n, 128.0), step(*n, 512.0)]).collect()
    };
    points
        .into_iter()
        .filter_map(|(workload, t)| {
            let measured = Measured { step_ms: Some(t), ..Measured::default() };
            measurement(&what, Some(workload), measured, "distserve, from its published fit")
        })
        .collect()
}

/// DistServe keeps 0.92–0.93 of memory for weights and KV cache; with the reserve that the model sets aside, 0.94.
fn distserve_memory(row: &Row) -> Option<Measurement> {
    let what = What {
        engine: "distserve",
        version: "2023",
        model: if text(row, "model").contains("13b") { "opt-13b" } else { "opt-66b" },
        gpu: "a100-80",
        weights: Dtype::Fp16,
        kv: Dtype::Fp16,
        tensor_parallel: text(row, "tp").parse().ok()?,
        pipeline_parallel: text(row, "pp").parse().ok()?,
        expert_parallel: 1,
        config: EngineConfig { memory_utilisation: 0.94, ..unchunked() },
    };
    let m = measurement(&what, None, Measured::default(), "distserve")?;
    Some(Measurement { kv_tokens: number(row, "max_num_tokens"), ..m })
}

fn vllm_blocks(row: &Row) -> Option<Measurement> {
    let what = What {
        engine: "vllm",
        version: "",
        model: if text(row, "model").contains("Llama-2-7b") { "llama-2-7b" } else { "llama-3.1-70b" },
        gpu: "h100",
        weights: Dtype::Bf16,
        kv: Dtype::Bf16,
        tensor_parallel: text(row, "tp").parse().ok()?,
        pipeline_parallel: 1,
        expert_parallel: 1,
        config: EngineConfig::default(),
    };
    let m = measurement(&what, None, Measured::default(), "vllm")?;
    Some(Measurement { kv_tokens: Some(number(row, "kv_blocks")? * number(row, "block_tokens")?), ..m })
}

fn convert(format: &str, path: &str) -> Result<(Vec<Measurement>, usize), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let all = rows(&text).map_err(|e| format!("{path}: {e}"))?;
    let each = |f: &dyn Fn(&Row) -> Option<Measurement>| all.iter().filter_map(f).collect();
    let out: Vec<Measurement> = match format {
        "aiconfigurator" => each(&aiconfigurator),
        "splitwise" => splitwise(&all),
        "argonne" => each(&argonne),
        "distserve" => all.iter().flat_map(distserve).collect(),
        "distserve-memory" => each(&distserve_memory),
        "vllm-blocks" => each(&vllm_blocks),
        _ => {
            return Err(format!(
                "unknown format `{format}`; the formats are named at the top of this example"
            ));
        }
    };
    Ok((out, all.len()))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, path] = arguments.as_slice() else {
        eprintln!("usage: import-measurements FORMAT FILE > OUT.csv");
        return ExitCode::from(2);
    };
    match convert(format, path) {
        Ok((out, rows)) => {
            print!("{}", write(&out));
            eprintln!("{path}: {rows} rows read, {} measurements written", out.len());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("import-measurements: {e}");
            ExitCode::FAILURE
        }
    }
}
