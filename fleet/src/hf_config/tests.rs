//! Published files, and broken ones.

use super::*;
use crate::presets;

fn read(json: &str) -> Result<HfModel, UnreadableConfig> {
    serde_json::from_str::<HfConfig>(json).unwrap().read("x")
}

/// The figures of published configuration files.
const LLAMA_8B: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "rope_scaling": {"factor": 8.0}}"#;
const QWEN_30B_A3B: &str = r#"{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": false,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}"#;
const MIXTRAL: &str = r#"{"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "num_local_experts": 8, "num_experts_per_tok": 2}"#;
const DEEPSEEK_V3: &str = r#"{"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "vocab_size": 129280, "max_position_embeddings": 163840,
    "tie_word_embeddings": false, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}"#;
const GPT_OSS_120B: &str = r#"{"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 201088, "max_position_embeddings": 131072, "tie_word_embeddings": false,
    "num_local_experts": 128, "num_experts_per_tok": 4, "experts_per_token": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "quantization_config": {"quant_method": "mxfp4"}}"#;

const QWEN3_NEXT: &str = r#"{"model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120,
    "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "vocab_size": 151936, "max_position_embeddings": 262144, "tie_word_embeddings": false, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4}"#;
const JAMBA: &str = r#"{"model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
    "max_position_embeddings": 262144, "tie_word_embeddings": false, "num_experts": 16, "num_experts_per_tok": 2,
    "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8, "attn_layer_offset": 4,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256, "sliding_window": null}"#;
const NEMOTRON_NANO_9B: &str = r#"{"model_type": "nemotron_h", "hidden_size": 4480, "intermediate_size": 15680,
    "num_hidden_layers": 56, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 131072, "max_position_embeddings": 131072, "tie_word_embeddings": false,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    "mamba_num_heads": 128, "mamba_head_dim": 80, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "expand": 2, "mamba_ssm_cache_dtype": "float32"}"#;
const GRANITE_H_SMALL: &str = r#"{"model_type": "granitemoehybrid", "hidden_size": 4096, "intermediate_size": 768,
    "shared_intermediate_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 100352, "max_position_embeddings": 131072, "tie_word_embeddings": true,
    "num_local_experts": 72, "num_experts_per_tok": 10, "attn_layer_indices": [5, 15, 25, 35],
    "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
    "mamba_expand": 2}"#;

#[test]
fn hybrids_have_the_published_sizes() {
    let minimax = format!(
        r#"{{"model_type": "minimax_text_01", "hidden_size": 6144, "intermediate_size": 9216,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 200064, "max_position_embeddings": 10240000, "tie_word_embeddings": false,
        "num_local_experts": 32, "num_experts_per_tok": 2, "attn_type_list": [{}]}}"#,
        ["0, 0, 0, 0, 0, 0, 0, 1"; 10].join(", ")
    );
    let mib = f64::from(1 << 20);
    // Parameters, those a token passes (both with embeddings), layers with attention and with a state, its size.
    for (json, total, active, attention, recurrent, state_mib) in [
        (QWEN3_NEXT, 79.7e9, 3.9e9, 12, 36, (32.0 * 128.0 * 128.0 + 8192.0 * 3.0) * 2.0 / mib),
        (JAMBA, 51.57e9, 12.0e9, 4, 28, (8192.0 * 16.0 + 8192.0 * 3.0) * 2.0 / mib),
        (NEMOTRON_NANO_9B, 8.89e9, 8.89e9, 4, 27, (10240.0 * 128.0 * 4.0 + 12288.0 * 3.0 * 2.0) / mib),
        (GRANITE_H_SMALL, 32.2e9, 9.0e9, 4, 36, (8192.0 * 128.0 + 8448.0 * 3.0) * 2.0 / mib),
        // Published without its tables.
        (&minimax, 456e9, 45.9e9 + 2.46e9, 10, 70, 2.0),
    ] {
        let m = read(json).unwrap().architecture;
        assert!((m.total_parameters / total - 1.0).abs() < 0.01, "{}: {:e}", m.total_parameters, total);
        let passed = m.active_parameters + m.embedding_parameters();
        assert!((passed / active - 1.0).abs() < 0.03, "{passed:e}: {active:e}");
        assert_eq!((m.full_layers(), m.recurrent_layers()), (attention, recurrent));
        let state = m.recurrent.unwrap().state_bytes / mib;
        assert!((state / state_mib - 1.0).abs() < 1e-9, "{state} {state_mib}");
    }
}

#[test]
fn a_hybrid_without_experts_passes_the_shared_part() {
    let dense = GRANITE_H_SMALL.replace("\"num_local_experts\": 72", "\"num_local_experts\": 0");
    let m = read(&dense).unwrap().architecture;
    assert!(m.moe.is_none());
    let small = 36.0 * 102e6 + 4.0 * 42e6 + 40.0 * 3.0 * 4096.0 * 1536.0;
    assert!((m.active_parameters / small - 1.0).abs() < 0.02, "{:e}", m.active_parameters);
}

#[test]
fn published_configs_agree_with_the_presets() {
    for (name, json, weights) in [
        ("llama-3.1-8b", LLAMA_8B, Dtype::Bf16),
        ("qwen3-30b-a3b", QWEN_30B_A3B, Dtype::Bf16),
        ("mixtral-8x7b", MIXTRAL, Dtype::Bf16),
        ("deepseek-v3", DEEPSEEK_V3, Dtype::Fp8),
    ] {
        let preset = presets::model(name).unwrap();
        let HfModel { architecture: a, weights: w, notes } = read(json).unwrap();
        assert_eq!((w, notes), (weights, vec![]), "{name}");
        assert_eq!(a.attention, preset.attention, "{name}");
        assert_eq!(
            (a.layers, a.hidden, a.heads, a.head_dim),
            (preset.layers, preset.hidden, preset.heads, preset.head_dim)
        );
        assert_eq!(
            (a.vocab, a.tied_embeddings, a.max_context_tokens),
            (preset.vocab, preset.tied_embeddings, preset.max_context_tokens)
        );
        let close =
            |x: f64, y: f64, what: &str| assert!((x / y - 1.0).abs() < 0.01, "{name} {what}: {x:e} {y:e}");
        close(a.total_parameters, preset.total_parameters, "total");
        close(a.active_parameters, preset.active_parameters, "active");
        assert_eq!(a.moe.is_some(), preset.moe.is_some());
        if let (Some(m), Some(p)) = (a.moe, preset.moe) {
            assert_eq!((m.experts, m.experts_per_token), (p.experts, p.experts_per_token), "{name}");
            close(m.expert_parameters, p.expert_parameters, "experts");
        }
    }
}

#[test]
fn a_field_under_two_names_is_read_once() {
    let m = read(GPT_OSS_120B).unwrap();
    assert_eq!(m.weights, Dtype::Fp4);
    assert!((m.architecture.total_parameters / 116.83e9 - 1.0).abs() < 0.01);
}

#[test]
fn a_vision_models_language_part_is_read() {
    let json = format!(r#"{{"model_type": "mistral3", "text_config": {LLAMA_8B}}}"#);
    let m = read(&json).unwrap();
    assert!((m.architecture.total_parameters / 8.03e9 - 1.0).abs() < 0.01);
    assert!(m.notes[0].contains("language model"), "{:?}", m.notes);
}

#[test]
fn what_cannot_be_read_is_named() {
    let says = |json: &str, what: &str| {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says("{}", "num_hidden_layers is missing");
    says(&LLAMA_8B.replace("\"vocab_size\": 128256,", ""), "vocab_size is missing");
    says(&LLAMA_8B.replace("\"llama\"", "\"mamba2\""), "mamba2 models are not modelled");
    says(&LLAMA_8B.replace("\"llama\"", "\"bert\""), "bert models are not modelled");
    says(
        &LLAMA_8B.replace("\"llama\"", "\"x\"").replace("ForCausalLM", "ForMaskedLM"),
        "x models are not modelled",
    );
    says(&LLAMA_8B.replace("_layers\": 32", "_layers\": 4000000000"), "num_hidden_layers is 4000000000");
    says(&LLAMA_8B.replace("\"hidden_size\": 4096", "\"hidden_size\": 4097"), "does not divide hidden_size");
    says(
        &LLAMA_8B.replace("{\"architectures\"", "{\"is_encoder_decoder\": true, \"architectures\""),
        "encoder-decoder",
    );
    says(
        &MIXTRAL.replace("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9"),
        "num_experts_per_tok is 9",
    );
    let kinds = |kinds: &str| {
        LLAMA_8B.replace("\"hidden_size\"", &format!("\"layer_types\": [{kinds}], \"hidden_size\""))
    };
    says(&kinds(r#""full_attention", "conv""#), "layers of kind \"conv\"");
    says(&kinds(r#""full_attention", "mamba""#), "recurrent layers of an unknown kind");
    let jamba = JAMBA.replace("\"attn_layer_period\": 8", "\"layers_block_type\": [\"mamba\"]");
    assert!(read(&jamba).is_ok(), "a list that is too short leaves attention");
    says(&NEMOTRON_NANO_9B.replace('*', "M"), "without any attention");
    says(&NEMOTRON_NANO_9B.replace('*', "?"), "blocks '?'");
    says(
        &NEMOTRON_NANO_9B.replace("\"mamba_num_heads\": 128", "\"mamba_num_heads\": 0"),
        "mamba_n_heads is 0",
    );
    says(&QWEN3_NEXT.replace("\"linear_key_head_dim\": 128,", ""), "linear_key_head_dim is missing");
}

#[test]
fn windows_are_read_where_they_are_used() {
    let with = |more: &str| {
        let json = LLAMA_8B.replace("\"rope_scaling\"", &format!("{more}, \"rope_scaling\""));
        read(&json).unwrap().architecture.sliding.map(|s| (s.layers, s.window_tokens))
    };
    assert_eq!(with("\"sliding_window\": 1024, \"sliding_window_pattern\": 6"), Some((27, 1024)));
    assert_eq!(with("\"sliding_window\": 1024, \"use_sliding_window\": false"), None);
    assert_eq!(with("\"sliding_window\": null"), None);
    let kinds = "\"sliding_window\": 128, \"layer_types\": [\"sliding_attention\", \"full_attention\"]";
    assert_eq!(with(kinds), Some((1, 128)));
    assert_eq!(with("\"sliding_window\": 4096, \"sliding_window_pattern\": \"LLLG\""), Some((24, 4096)));
    assert_eq!(with("\"sliding_window\": 1024, \"sliding_window_pattern\": 0"), None);
    // Llama 4's chunks: three of four layers, unless the file lists them.
    assert_eq!(with("\"attention_chunk_size\": 8192, \"no_rope_layers\": []"), Some((24, 8192)));
    assert_eq!(with("\"attention_chunk_size\": 8192, \"no_rope_layers\": [1, 0, 1]"), Some((2, 8192)));
    let kinds =
        "\"attention_chunk_size\": 8192, \"layer_types\": [\"chunked_attention\", \"full_attention\"]";
    assert_eq!(with(kinds), Some((1, 8192)));
    let gemma = LLAMA_8B.replace("\"llama\"", "\"gemma3_text\"");
    let gemma = gemma.replace("\"rope_scaling\"", "\"sliding_window\": 1024, \"rope_scaling\"");
    assert_eq!(read(&gemma).unwrap().architecture.sliding.map(|s| s.layers), Some(27));
}

#[test]
fn quantised_checkpoints_are_told() {
    let with = |q: &str| {
        let json =
            LLAMA_8B.replace("\"rope_scaling\"", &format!("\"quantization_config\": {q}, \"rope_scaling\""));
        read(&json).unwrap().weights
    };
    assert_eq!(with(r#"{"quant_method": "awq", "bits": 4}"#), Dtype::Int4);
    assert_eq!(with(r#"{"quant_method": "compressed-tensors", "format": "float-quantized"}"#), Dtype::Fp8);
    assert_eq!(with(r#"{"quant_method": "modelopt", "quant_algo": "NVFP4"}"#), Dtype::Fp4);
    assert_eq!(with(r#"{"quant_method": "gptq"}"#), Dtype::Int4);
}

#[test]
fn families_that_are_not_known_are_read_and_told() {
    let unknown = read(&LLAMA_8B.replace("\"llama\"", "\"whatever\"")).unwrap();
    assert!(
        unknown.notes.iter().any(|note| note.contains("\"whatever\" is not known")),
        "{:?}",
        unknown.notes
    );
    assert_eq!(unknown.architecture, read(LLAMA_8B).unwrap().architecture);
    for known in
        [LLAMA_8B, QWEN_30B_A3B, MIXTRAL, DEEPSEEK_V3, GPT_OSS_120B, QWEN3_NEXT, JAMBA, GRANITE_H_SMALL]
    {
        let notes = read(known).unwrap().notes;
        assert!(!notes.iter().any(|note| note.contains("not known")), "{notes:?}");
    }
}

mod absurd {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::{Value, json};

    use super::*;

    const FILES: [&str; 9] = [
        LLAMA_8B,
        QWEN_30B_A3B,
        MIXTRAL,
        DEEPSEEK_V3,
        GPT_OSS_120B,
        QWEN3_NEXT,
        JAMBA,
        NEMOTRON_NANO_9B,
        GRANITE_H_SMALL,
    ];
    /// Fields that a published file has none of, or few.
    const MORE: [&str; 14] = [
        "attention_chunk_size",
        "sliding_window",
        "sliding_window_pattern",
        "n_shared_experts",
        "moe_shared_expert_intermediate_size",
        "interleave_moe_layer_step",
        "intermediate_size_mlp",
        "no_rope_layers",
        "layer_types",
        "attn_type_list",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "quantization_config",
        "model_type",
    ];

    fn values() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            2 => Just(None),
            6 => prop_oneof![Just(0_u64), Just(1), Just(2), Just(3), Just(7), Just(u64::from(u32::MAX)), 0_u64..100_000]
                .prop_map(|n| Some(json!(n))),
            1 => prop_oneof![
                Just(json!(-1)), Just(json!(1e300)), Just(json!("x")), Just(json!("LLG")), Just(json!([])),
                Just(json!([0, 1])), Just(json!(["sliding_attention"])), Just(json!({})), Just(Value::Null),
                Just(json!(true)), Just(json!("gemma2")), Just(json!({"bits": 3})),
            ]
            .prop_map(Some),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

        /// Published files with fields lost or spoilt are read to something finite, or refused.
        #[test]
        fn files_are_read_or_refused(
            file in 0..FILES.len(),
            spoilt in proptest::collection::vec((0_usize..60, values()), 1..6),
        ) {
            let mut file: serde_json::Map<String, Value> = serde_json::from_str(FILES[file]).unwrap();
            let mut names: Vec<String> = file.keys().cloned().collect();
            names.extend(MORE.map(str::to_owned));
            for (at, value) in spoilt {
                let name = &names[at % names.len()];
                match value {
                    Some(value) => file.insert(name.clone(), value),
                    None => file.remove(name),
                };
            }
            let Ok(config) = serde_json::from_value::<HfConfig>(Value::Object(file)) else { return Ok(()) };
            match config.read("x") {
                Ok(HfModel { architecture: a, .. }) => {
                    prop_assert!(a.layers > 0 && a.hidden > 0 && a.heads > 0 && a.head_dim > 0 && a.vocab > 0);
                    prop_assert!(a.total_parameters.is_finite() && a.active_parameters > 0.0);
                    prop_assert!(a.active_parameters <= a.total_parameters * (1.0 + 1e-9));
                    prop_assert!(a.sliding.is_none_or(|s| s.layers <= a.layers && s.window_tokens > 0));
                    prop_assert!(a.recurrent.is_none_or(|r| r.layers < a.layers && r.state_bytes.is_finite()));
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
