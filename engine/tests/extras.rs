//! LoRA, speculative decoding, offloaded KV cache, launch floors, power.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::collections::BTreeSet;

use common::{arch, class, csv, data, percentile, shape, variant};
use plimsoll_engine::sim::{Replica, SimPolicy, SimRequest, simulate_closed};
use plimsoll_engine::{
    Draft, EngineConfig, KvOffload, Lora, LoraTargets, ReplicaModel, Speculation, StepLoad, lora,
};
use plimsoll_fleet::{AcceleratorClass, Dtype, Percentile, Shape, presets};

fn with(model: &str, weights: Dtype, acc: &AcceleratorClass, tp: u32, config: EngineConfig) -> ReplicaModel {
    let v = variant(weights, Dtype::Bf16);
    ReplicaModel::new(&arch(model, 8192), &v, acc, &shape(&acc.name, tp, 1), &config).unwrap()
}

fn h100() -> AcceleratorClass {
    presets::accelerator("h100").unwrap()
}

fn llama8(config: EngineConfig) -> ReplicaModel {
    with("llama-3.1-8b", Dtype::Bf16, &h100(), 1, config)
}

/// Llama-3.1-8B, rank 16 on all projections: q 2·4096, k and v 4096 + 1024 each, o 2·4096, gate, up and down 4096 + 14336
/// each; 32 layers. 41.9 million parameters, the count that PEFT prints.
#[test]
fn adapters_by_hand() {
    let model = arch("llama-3.1-8b", 8192);
    let parameters = lora::adapter_parameters(&model, 16.0, LoraTargets::All);
    let by_hand = 32.0 * 16.0 * (2.0 * 8192.0 + 2.0 * 5120.0 + 3.0 * 18_432.0);
    assert!((parameters / by_hand - 1.0).abs() < 2e-3, "{parameters} of {by_hand}");
    let one = shape("h100", 1, 1);
    assert_eq!(lora::adapter_bytes_per_gpu(&model, 16.0, LoraTargets::All, &one), 2.0 * parameters);
    // Two ranks split one side of each projection.
    let half =
        lora::adapter_bytes_per_gpu(&model, 16.0, LoraTargets::All, &Shape { tensor_parallel: 2, ..one });
    assert!(half > parameters && half < 2.0 * parameters);
}

#[test]
fn adapters_take_memory_and_time() {
    let lora = Lora { slots: 8, max_rank: 64, adapters: 100, mean_rank: 32.0, ..Lora::default() };
    let plain = llama8(EngineConfig::default());
    let adapted = llama8(EngineConfig { lora: Some(lora), ..EngineConfig::default() });
    // Eight slots of rank 64: 8 × 335 MB.
    assert!((adapted.memory().lora_bytes_per_gpu / 2.68e9 - 1.0).abs() < 0.01);
    assert!(adapted.memory().kv_tokens < plain.memory().kv_tokens);
    // Punica's 2 ms a token, and 168 MB for each distinct adapter at 3.2 TB/s.
    let extra = adapted.decode_ms(1.0, 1000.0) - plain.decode_ms(1.0, 1000.0);
    assert!((1.9..2.1).contains(&extra), "{extra}");
    let many = adapted.decode_ms(64.0, 1000.0) - plain.decode_ms(64.0, 1000.0);
    assert!((2.2..2.8).contains(&many), "{many}");
    // No more than the slots are ever in a step.
    let slots = |adapters| {
        let load = StepLoad { running: 64.0, context_tokens: 64e3, adapters, ..StepLoad::default() };
        adapted.step_ms(&load)
    };
    assert!((slots(8.0) - adapted.decode_ms(64.0, 1000.0)).abs() < 1e-9);
    assert!(slots(0.0) < slots(1.0) && slots(1.0) < slots(8.0));
}

/// Requests whose adapter finds no slot are passed over, and served when one is free.
#[test]
fn adapters_wait_for_slots() {
    let lora = Lora { slots: 2, ..Lora::default() };
    let mut engine = Replica::new(
        llama8(EngineConfig { lora: Some(lora), ..EngineConfig::default() }),
        SimPolicy::default(),
    );
    for (id, adapter) in [(1, Some("a")), (2, Some("b")), (3, Some("c")), (4, Some("a")), (5, None)] {
        let adapter = adapter.map(str::to_owned);
        let request =
            SimRequest { id, prompt_tokens: 100, output_tokens: 5, adapter, ..SimRequest::default() };
        engine.submit(0.0, request).unwrap();
    }
    let first: BTreeSet<u64> = engine.step(0.0).unwrap().tokens.iter().map(|t| t.id).collect();
    assert_eq!(first, BTreeSet::from([1, 2, 4, 5]));
    let mut last = 0;
    while let Some(step) = engine.step(0.0) {
        assert!(step.load.adapters <= 2.0);
        last = step.tokens.last().map_or(last, |t| t.id);
    }
    assert_eq!((last, engine.stats().finished), (3, 5));
}

fn speculation(draft: Draft) -> EngineConfig {
    let s = Speculation { draft_tokens: 4, acceptance: 0.8, draft };
    EngineConfig { speculation: Some(s), max_batched_tokens: 8192, ..EngineConfig::default() }
}

/// 3.36 tokens a step. A small batch gains; a large one that computes five tokens for each request does not.
#[test]
fn drafts_help_small_batches() {
    let plain = with("llama-3.1-70b", Dtype::Fp8, &h100(), 2, EngineConfig::default());
    let small = Draft::SameGpus { parameters: 1.24e9, layers: 16, kv_bytes_per_token: 32_768.0 };
    let of = |draft| with("llama-3.1-70b", Dtype::Fp8, &h100(), 2, speculation(draft));
    let (ngram, same) = (of(Draft::NGram), of(small));
    let other = of(Draft::OtherGpus { token_ms: 2.0, transfer_ms: 0.5 });
    assert!((ngram.tokens_per_step() - 3.3616).abs() < 1e-9);
    let tpot = |m: &ReplicaModel, batch| m.closed_loop_tpot_ms(batch, 1000.0, 500.0);
    assert!(tpot(&ngram, 1.0) < 0.35 * tpot(&plain, 1.0));
    for draft in [&same, &other] {
        assert!(tpot(draft, 1.0) > tpot(&ngram, 1.0) && tpot(draft, 1.0) < 0.7 * tpot(&plain, 1.0));
    }
    // Four draft steps of 2.5 GB over two GPUs, and 16 layers each: 4 × (0.39 + 1.06) ms.
    let extra = same.decode_ms(1.0, 1000.0) - ngram.decode_ms(1.0, 1000.0);
    assert!((5.0..7.0).contains(&extra), "{extra}");
    assert!((other.decode_ms(1.0, 1000.0) - ngram.decode_ms(1.0, 1000.0) - 8.5).abs() < 1e-6);
    let gain = |batch| tpot(&plain, batch) / tpot(&ngram, batch);
    assert!(gain(200.0) < 0.6 * gain(1.0), "{} and {}", gain(200.0), gain(1.0));
    // Only a draft on the same GPUs takes their memory.
    assert!(same.memory().kv_tokens < ngram.memory().kv_tokens);
    assert_eq!(other.memory().kv_tokens, plain.memory().kv_tokens);
}

#[test]
fn drafted_tokens_all_appear() {
    let model = with("llama-3.1-70b", Dtype::Fp8, &h100(), 2, speculation(Draft::NGram));
    let request =
        |id, output_tokens| SimRequest { id, prompt_tokens: 500, output_tokens, ..SimRequest::default() };
    let mut engine = Replica::new(model.clone(), SimPolicy::default());
    engine.submit(0.0, request(0, 200)).unwrap();
    let (mut next, mut steps) = (0, 0);
    while let Some(step) = engine.step(0.0) {
        for t in &step.tokens {
            assert_eq!(t.index, next);
            next += 1;
        }
        steps += 1;
    }
    // One from the prompt, then 199 at 3.36 a step.
    assert_eq!((next, steps), (200, 1 + 60));
    // Lengths differ, or all would prefill together and then never disturb one another.
    let requests: Vec<SimRequest> = (0..160).map(|id| request(id, 20 + (id * 7919 % 361) as u32)).collect();
    let out = simulate_closed(Replica::new(model.clone(), SimPolicy::default()), &requests, 8);
    let tpot = out.iter().filter_map(|o| o.tpot_ms).sum::<f64>() / out.len() as f64;
    let form = model.closed_loop_tpot_ms(8.0, 500.0, 200.0);
    assert!((form / tpot - 1.0).abs() < 0.15, "simulated {tpot}, closed form {form}");
    // The closed form's percentiles speed up alike.
    let mix = [class(500.0, 200.0)];
    let plain = with("llama-3.1-70b", Dtype::Fp8, &h100(), 2, EngineConfig::default());
    let at = |m: &ReplicaModel| m.predict(&mix, 0.2, 1.0).classes[0].tpot_ms(Percentile::P95);
    assert!(at(&model) < 0.5 * at(&plain));
}

/// 1,000 tokens of Llama-3.1-8B are 131 MB: 2.6 ms at 50 GB/s, 30 ms to compute.
#[test]
fn offloaded_prefixes_are_loaded_if_sooner() {
    let offload = |bytes_per_second| {
        let tier = KvOffload { bytes_per_second, latency_ms: 1.0, hit_fraction: 0.8 };
        llama8(EngineConfig { kv_offload: Some(tier), ..EngineConfig::default() })
    };
    let (pcie, disk) = (offload(50e9), offload(1e9));
    let restore = pcie.restore(1000.0, 0.0).unwrap();
    assert!((restore.load_ms - 1.0 - 131.072 / 50.0).abs() < 1e-9 && restore.loads());
    assert_eq!(restore.recompute_ms, pcie.prefill_ms(1000.0, 0.0));
    assert!(!disk.restore(1000.0, 0.0).unwrap().loads());
    let plain = llama8(EngineConfig::default());
    assert_eq!(plain.restore(1000.0, 0.0), None);
    let mix = [class(2000.0, 100.0)];
    let ttft = |m: &ReplicaModel| m.predict(&mix, 0.01, 1.0).classes[0].ttft_ms(Percentile::P50);
    assert!(ttft(&pcie) < 0.8 * ttft(&plain));
    assert_eq!(ttft(&disk), ttft(&plain));
    assert!(pcie.saturation_rps(&mix) > plain.saturation_rps(&mix));
}

/// Without CUDA graphs the CPU sets the pace of small models: 32 layers at 180 µs.
#[test]
fn launches_set_a_floor() {
    let small = |cuda_graphs| {
        with("llama-3.2-1b", Dtype::Bf16, &h100(), 1, EngineConfig { cuda_graphs, ..EngineConfig::default() })
    };
    let floor = 16.0 * 0.18;
    assert!(small(true).decode_ms(1.0, 100.0) < floor);
    assert_eq!(small(false).decode_ms(1.0, 100.0), floor);
    let step = StepLoad { running: 1.0, context_tokens: 100.0, ..StepLoad::default() };
    assert!((small(false).step_ms(&step) - floor).abs() < 1e-9);
    let large = |cuda_graphs| {
        with("llama-3.1-70b", Dtype::Fp8, &h100(), 2, EngineConfig { cuda_graphs, ..EngineConfig::default() })
    };
    assert_eq!(large(true).decode_ms(16.0, 100.0), large(false).decode_ms(16.0, 100.0));
}

/// CPUs and edge modules are bound by memory bandwidth: 8B in 4 bits is 4.8 GB with its tables in 16.
#[test]
fn cpus_and_edge_modules_read_weights() {
    let ms = |acc: &str| {
        with("llama-3.1-8b", Dtype::Int4, &presets::accelerator(acc).unwrap(), 1, EngineConfig::default())
            .step_breakdown(&StepLoad { running: 1.0, context_tokens: 500.0, ..StepLoad::default() })
    };
    for (acc, low, high) in
        [("cpu", 20.0, 35.0), ("jetson-agx-orin-64", 30.0, 50.0), ("cpu-edge", 75.0, 110.0)]
    {
        let parts = ms(acc);
        assert!((low..high).contains(&parts.total_ms()), "{acc}: {parts:?}");
        assert_eq!(parts.dominant(), plimsoll_engine::Resource::WeightBandwidth);
    }
}

/// Power against measurements of Llama-2-70B on A100: mean power of runs that are mostly decode, peak power of prompts.
#[test]
fn power_as_measured() {
    let Some(dir) = data() else { return };
    let acc = presets::accelerator("a100-80").unwrap();
    let (mut mean, mut peak) = (Vec::new(), Vec::new());
    for r in csv(&dir.join("e2e").join("splitwise_perf_llama2-70b.csv")) {
        let number = |column: &str| r[column].parse::<f64>().unwrap_or(0.0);
        if r["hardware"] != "a100-80gb" || number("average_power") <= 0.0 || r["suspect"] != "0" {
            continue;
        }
        let (prompt, batch, tokens) = (number("prompt_size"), number("batch_size"), number("token_size"));
        let tp = number("tensor_parallel") as u32;
        let model = presets::model("llama-2-70b").unwrap();
        let v = variant(Dtype::Bf16, Dtype::Bf16);
        let config = EngineConfig { memory_utilisation: 0.95, ..EngineConfig::default() };
        let Ok(model) = ReplicaModel::new(&model, &v, &acc, &shape("a100-80", tp, 1), &config) else {
            continue;
        };
        let watts = f64::from(tp) * acc.tdp_watts;
        let mut prefill = StepLoad::default();
        (0..batch as u32).for_each(|_| prefill.add_prefill(prompt, 0.0));
        peak.push(model.step_watts(&prefill) / watts - number("peak_power").min(1.0));
        if prompt <= 2048.0 {
            // That engine's steps are longer than this model's: power follows the rates actually reached.
            let decode = StepLoad {
                running: batch,
                context_tokens: batch * (prompt + tokens / 2.0),
                ..StepLoad::default()
            };
            let mut slow = acc.clone();
            slow.calibration.layer_overhead_us +=
                (number("token_time") - model.step_ms(&decode)).max(0.0) * 1e3 / 80.0;
            let model = ReplicaModel::new(
                &presets::model("llama-2-70b").unwrap(),
                &v,
                &slow,
                &shape("a100-80", tp, 1),
                &config,
            )
            .unwrap();
            mean.push(model.step_watts(&decode) / watts - number("average_power"));
        }
    }
    for (name, errors) in [("mean power of decode", &mean), ("peak power of prompts", &peak)] {
        let mut abs: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        let median = percentile(&mut abs, 0.5);
        println!("{name}: {} runs, error median {median:.2} of TDP, bias {bias:+.2}", abs.len());
        assert!(median < 0.1, "{name}");
    }
}

/// The rows of H100 held to half their power: prompts 1.30 times as long, tokens unchanged.
#[test]
fn a_power_cap_slows_prompts_only() {
    let full = with("llama-2-70b", Dtype::Fp8, &h100(), 4, EngineConfig { ..EngineConfig::default() });
    let capped = AcceleratorClass { power_cap_watts: Some(350.0), ..h100() };
    let capped = with("llama-2-70b", Dtype::Fp8, &capped, 4, EngineConfig::default());
    // The prompt's arithmetic; links keep their speed.
    let ratio = capped.prefill_ms(2048.0, 0.0) / full.prefill_ms(2048.0, 0.0);
    assert!((1.2..1.32).contains(&ratio), "{ratio}");
    assert!((capped.decode_ms(4.0, 1000.0) / full.decode_ms(4.0, 1000.0) - 1.0).abs() < 0.01);
    let mix = [class(1000.0, 200.0)];
    let (a, b) = (full.predict(&mix, 3.0, 1.0), capped.predict(&mix, 3.0, 1.0));
    assert!(b.watts < a.watts && b.watts > 4.0 * 70.0, "{} and {}", a.watts, b.watts);
    assert!((full.predict(&mix, 0.0, 1.0).watts - 280.0).abs() < 1e-6);
    assert!(full.predict(&mix, 4.0, 1.0).watts > a.watts);
    let energy = full.token_energy(1000.0, 32.0, 1000.0);
    // A batch shares the weight read: a token alone costs more.
    assert!(
        full.token_energy(1000.0, 1.0, 1000.0).joules_per_output_token > 5.0 * energy.joules_per_output_token
    );
    assert!(energy.joules_per_prompt_token < energy.joules_per_output_token);
}

#[test]
fn nonsense_settings_are_refused() {
    let refuse = |config: EngineConfig| {
        let v = variant(Dtype::Bf16, Dtype::Bf16);
        let model = arch("llama-3.1-8b", 8192);
        ReplicaModel::new(&model, &v, &h100(), &shape("h100", 1, 1), &config).unwrap_err().to_string()
    };
    let base = EngineConfig::default();
    let s = Speculation { draft_tokens: 0, acceptance: 0.5, draft: Draft::NGram };
    assert!(refuse(EngineConfig { speculation: Some(s), ..base }).contains("speculation.draft_tokens is 0"));
    let s = Speculation { draft_tokens: 3, acceptance: 1.5, draft: Draft::NGram };
    assert!(refuse(EngineConfig { speculation: Some(s), ..base }).contains("speculation.acceptance is 1.5"));
    let l = Lora { slots: 0, ..Lora::default() };
    assert!(refuse(EngineConfig { lora: Some(l), ..base }).contains("lora.slots is 0"));
    let o = KvOffload { bytes_per_second: f64::NAN, latency_ms: 0.0, hit_fraction: 0.5 };
    assert!(
        refuse(EngineConfig { kv_offload: Some(o), ..base }).contains("kv_offload.bytes_per_second is NaN")
    );
    let skew = refuse(EngineConfig { expert_skew: 0.5, ..base });
    assert!(skew.contains("expert_skew is 0.5; use a finite number of at least 1"), "{skew}");
    let l = Lora { slots: 4000, max_rank: 256, ..Lora::default() };
    assert!(refuse(EngineConfig { lora: Some(l), ..base }).contains("of weights"));
}
