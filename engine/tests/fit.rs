//! Memory: worked examples, and what people read when a model does not fit.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, shape, variant};
use plimsoll_engine::{DoesNotFit, EngineConfig, ReplicaModel};
use plimsoll_fleet::{AcceleratorClass, Attention, Dtype, ModelArchitecture, Shape, presets};

fn fit(
    model: &ModelArchitecture,
    weights: Dtype,
    acc: &str,
    tp: u32,
    pp: u32,
) -> Result<ReplicaModel, DoesNotFit> {
    let acc = presets::accelerator(acc).unwrap();
    let shape = Shape { variant: weights.to_string(), ..shape(&acc.name, tp, pp) };
    ReplicaModel::new(model, &variant(weights, Dtype::Bf16), &acc, &shape, &EngineConfig::default())
}

/// vLLM's own block counts (16 tokens, 0.9 of an 80 GB H100): Llama-2-7B on one, 7,463; Llama-3.1-70B on four,
/// 30,425.
#[test]
fn kv_blocks_match_vllm() {
    for (name, tp, blocks) in [("llama-2-7b", 1, 7463.0), ("llama-3.1-70b", 4, 30_425.0)] {
        let memory = *fit(&arch(name, 4096), Dtype::Bf16, "h100", tp, 1).unwrap().memory();
        let error = memory.kv_blocks as f64 / blocks - 1.0;
        assert!(error.abs() < 0.015, "{name}: {} blocks, {error:+.3}", memory.kv_blocks);
        assert_eq!(memory.kv_tokens, memory.kv_blocks as f64 * 16.0);
    }
}

/// Llama-3.1-8B in 16 bits: 16.06 GB; 32 layers × 2 × 8 × 128 × 2 bytes = 131,072 bytes of KV cache a token.
#[test]
fn llama_8b_by_hand() {
    let memory = *fit(&arch("llama-3.1-8b", 8192), Dtype::Bf16, "h100", 1, 1).unwrap().memory();
    assert!((memory.weights_bytes_per_gpu / 16.06e9 - 1.0).abs() < 1e-3);
    assert_eq!(memory.kv_bytes_per_token_per_gpu, 131_072.0);
    let tokens = (0.9 * 85e9 - 16.06e9 - 1.3e9) / 131_072.0;
    assert!((memory.kv_tokens / tokens - 1.0).abs() < 1e-3);
    assert!((memory.max_concurrency - memory.kv_tokens / 8192.0).abs() < 1e-9);
}

/// KV heads are copied where there are fewer of them than GPUs; a latent always is.
#[test]
fn kv_splits_over_heads_only() {
    let qwen = arch("qwen2.5-7b", 8192);
    let per_token =
        |tp| fit(&qwen, Dtype::Bf16, "h100", tp, 1).map(|m| m.memory().kv_bytes_per_token_per_gpu);
    assert_eq!(per_token(2).unwrap() * 2.0, per_token(1).unwrap());
    assert_eq!(per_token(4).unwrap() * 2.0, per_token(2).unwrap());
    // Two KV heads over four GPUs: TP 4 cannot put less on each than one.
    let two = ModelArchitecture { attention: Attention::Grouped { kv_heads: 2 }, ..qwen.clone() };
    let of = |tp| fit(&two, Dtype::Bf16, "h100", tp, 1).unwrap().memory().kv_bytes_per_token_per_gpu;
    assert_eq!(of(4), of(2));
    // 28 heads divide by 7, but engines neither split nor copy 4 KV heads evenly over as many.
    let refused = per_token(7).unwrap_err().to_string();
    assert!(refused.contains("28 attention heads (4 for keys and values)"), "{refused}");
    assert!(refused.ends_with("use 1, 2, 4"), "{refused}");
    let deepseek = fit(&arch("deepseek-v3", 8192), Dtype::Fp8, "h200", 8, 1).unwrap();
    assert_eq!(deepseek.memory().kv_bytes_per_token_per_gpu, 61.0 * (512.0 + 64.0) * 2.0);
}

/// Pipeline stages divide layers; the longest stage decides.
#[test]
fn pipeline_stages_divide_layers() {
    let llama = arch("llama-3.1-405b", 8192);
    let pp2 = fit(&llama, Dtype::Bf16, "h200", 8, 2).unwrap();
    assert_eq!(pp2.memory().kv_bytes_per_token_per_gpu, 63.0 * 2.0 * 128.0 * 2.0);
    let pp4 = fit(&llama, Dtype::Bf16, "h200", 8, 4).unwrap();
    assert!(pp4.memory().kv_tokens > 2.0 * pp2.memory().kv_tokens);
}

#[test]
fn too_large_says_what_would_help() {
    let error = fit(&arch("deepseek-v3", 8192), Dtype::Fp8, "h100", 8, 1).unwrap_err();
    assert!(matches!(error, DoesNotFit::Weights { gpus: 8, .. }));
    let text = error.to_string();
    assert!(text.contains("673 GB of weights"), "{text}");
    assert!(text.contains("8× h100 hold 602 GB usable"), "{text}");
    assert!(text.contains("allow pipeline: [2] or a fp4 variant"), "{text}");
    let text = fit(&arch("llama-3.1-70b", 8192), Dtype::Bf16, "h100", 1, 1).unwrap_err().to_string();
    assert!(text.contains("allow tensor: [2] or a fp8 variant"), "{text}");
}

#[test]
fn too_long_a_context_says_how_long_it_may_be() {
    let error = fit(&arch("llama-3.1-8b", 131_072), Dtype::Bf16, "l4", 1, 1).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DoesNotFit::KvCache { max_context_tokens: 131_072, .. }), "{text}");
    assert!(text.contains("set maxContextTokens to at most 32336"), "{text}");
}

#[test]
fn impossible_parallelism_is_named() {
    let llama = arch("llama-3.1-8b", 8192);
    let text = |acc, tp, pp| fit(&llama, Dtype::Bf16, acc, tp, pp).unwrap_err().to_string();
    assert!(text("h100", 3, 1).contains("do not split over tensor parallel 3; use 1, 2, 4, 8"));
    assert!(text("h100", 16, 1).contains("in one link domain, which has 8"));
    assert!(text("h100", 1, 33).contains("32 layers, fewer than pipeline parallel 33"));
    assert!(
        text("h100", 0, 1).contains("tensor_parallel is 0") || text("h100", 0, 1).contains("do not split")
    );
}

#[test]
fn nonsense_is_refused_by_name() {
    let llama = arch("llama-3.1-8b", 8192);
    let good = presets::accelerator("h100").unwrap();
    let v = variant(Dtype::Bf16, Dtype::Bf16);
    let refuse = |arch: &ModelArchitecture, acc: &AcceleratorClass, config: &EngineConfig| {
        ReplicaModel::new(arch, &v, acc, &shape("h100", 1, 1), config).unwrap_err().to_string()
    };
    let config = EngineConfig::default();
    let bad = AcceleratorClass { memory_bytes_per_second: f64::NAN, ..good.clone() };
    assert!(refuse(&llama, &bad, &config).contains("accelerator class h100: memory_bytes_per_second is NaN"));
    let bad = ModelArchitecture { layers: 0, ..llama.clone() };
    assert!(refuse(&bad, &good, &config).contains("model llama-3.1-8b: layers is 0"));
    let bad = EngineConfig { memory_utilisation: 1.5, ..config };
    assert!(refuse(&llama, &good, &bad).contains("memory_utilisation is 1.5"));
    let bad = EngineConfig { max_batched_tokens: 100, ..config };
    assert!(refuse(&llama, &good, &bad).contains("max_batched_tokens is 100; use at least max_running"));
    let bad = AcceleratorClass { flops_per_second: Default::default(), ..good };
    assert!(refuse(&llama, &bad, &config).contains("flops_per_second"));
}

/// Every preset model fits some preset accelerator, and none panics anywhere.
#[test]
fn every_preset_is_answered() {
    for model in presets::models() {
        let model = ModelArchitecture { max_context_tokens: model.max_context_tokens.min(8192), ..model };
        let mut fits = 0;
        for acc in presets::accelerators() {
            for weights in [Dtype::Bf16, Dtype::Fp8] {
                for tp in [1, 2, 4, 8] {
                    match fit(&model, weights, &acc.name, tp, 1) {
                        Ok(replica) => {
                            fits += 1;
                            let ms = replica.decode_ms(1.0, 1000.0);
                            assert!((0.5..2000.0).contains(&ms), "{} {} TP{tp}: {ms}", model.name, acc.name);
                        }
                        Err(e) => assert!(!e.to_string().is_empty()),
                    }
                }
            }
        }
        assert!(fits > 0, "{} fits nowhere", model.name);
    }
}
