//! Model presets, from the models' published configuration files.

use crate::{Attention, ModelArchitecture, Moe};

struct Facts {
    name: &'static str,
    layers: u32,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    vocab: u32,
    total_billion: f64,
    /// Active non-embedding parameters, billions (`None`: dense, derived from the total).
    active_billion: Option<f64>,
    tied: bool,
    context: u32,
    /// (experts, experts per token, expert parameters in billions).
    moe: Option<(u32, u32, f64)>,
    /// (KV rank, rotary width) of latent attention.
    latent: Option<(u32, u32)>,
}

const fn dense(
    name: &'static str,
    dims: (u32, u32, u32, u32, u32),
    vocab: u32,
    total_billion: f64,
    tied: bool,
    context: u32,
) -> Facts {
    let (layers, hidden, heads, kv_heads, head_dim) = dims;
    Facts {
        name,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        vocab,
        total_billion,
        active_billion: None,
        tied,
        context,
        moe: None,
        latent: None,
    }
}

const FACTS: &[Facts] = &[
    // (layers, hidden, heads, KV heads, head width)
    dense("llama-3.2-1b", (16, 2048, 32, 8, 64), 128_256, 1.236, true, 131_072),
    dense("llama-3.2-3b", (28, 3072, 24, 8, 128), 128_256, 3.213, true, 131_072),
    dense("llama-3.1-8b", (32, 4096, 32, 8, 128), 128_256, 8.03, false, 131_072),
    dense("llama-3.1-70b", (80, 8192, 64, 8, 128), 128_256, 70.55, false, 131_072),
    dense("llama-3.1-405b", (126, 16_384, 128, 8, 128), 128_256, 405.85, false, 131_072),
    dense("llama-2-7b", (32, 4096, 32, 32, 128), 32_000, 6.74, false, 4096),
    dense("llama-2-70b", (80, 8192, 64, 8, 128), 32_000, 68.98, false, 4096),
    dense("qwen2.5-7b", (28, 3584, 28, 4, 128), 152_064, 7.62, false, 131_072),
    dense("qwen2.5-72b", (80, 8192, 64, 8, 128), 152_064, 72.71, false, 131_072),
    dense("qwen3-8b", (36, 4096, 32, 8, 128), 151_936, 8.19, false, 40_960),
    dense("qwen3-32b", (64, 5120, 64, 8, 128), 151_936, 32.76, false, 40_960),
    dense("mistral-7b", (32, 4096, 32, 8, 128), 32_768, 7.25, false, 32_768),
    dense("mistral-small-24b", (40, 5120, 32, 8, 128), 131_072, 23.57, false, 32_768),
    dense("gemma-2-27b", (46, 4608, 32, 16, 128), 256_000, 27.23, true, 8192),
    dense("phi-4", (40, 5120, 40, 10, 128), 100_352, 14.66, false, 16_384),
    Facts {
        name: "mixtral-8x7b",
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 32_000,
        total_billion: 46.70,
        active_billion: Some(12.62),
        tied: false,
        context: 32_768,
        moe: Some((8, 2, 45.10)),
        latent: None,
    },
    Facts {
        name: "qwen3-30b-a3b",
        layers: 48,
        hidden: 2048,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        vocab: 151_936,
        total_billion: 30.53,
        active_billion: Some(2.73),
        tied: false,
        context: 40_960,
        moe: Some((128, 8, 28.99)),
        latent: None,
    },
    Facts {
        name: "gpt-oss-120b",
        layers: 36,
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        vocab: 201_088,
        total_billion: 116.83,
        active_billion: Some(4.55),
        tied: false,
        context: 131_072,
        moe: Some((128, 4, 114.71)),
        latent: None,
    },
    Facts {
        name: "deepseek-v3",
        layers: 61,
        hidden: 7168,
        heads: 128,
        kv_heads: 128,
        head_dim: 192,
        vocab: 129_280,
        total_billion: 671.03,
        active_billion: Some(35.70),
        tied: false,
        context: 163_840,
        moe: Some((256, 8, 653.91)),
        latent: Some((512, 64)),
    },
];

fn build(f: &Facts) -> ModelArchitecture {
    let total = f.total_billion * 1e9;
    let tables = if f.tied { 1.0 } else { 2.0 } * f64::from(f.vocab) * f64::from(f.hidden);
    ModelArchitecture {
        name: f.name.to_owned(),
        layers: f.layers,
        hidden: f.hidden,
        heads: f.heads,
        head_dim: f.head_dim,
        attention: match f.latent {
            Some((kv_rank, rope_dim)) => Attention::Latent { kv_rank, rope_dim },
            None => Attention::Grouped { kv_heads: f.kv_heads },
        },
        vocab: f.vocab,
        total_parameters: total,
        active_parameters: f.active_billion.map_or(total - tables, |b| b * 1e9),
        tied_embeddings: f.tied,
        max_context_tokens: f.context,
        moe: f.moe.map(|(experts, experts_per_token, billion)| Moe {
            experts,
            experts_per_token,
            expert_parameters: billion * 1e9,
        }),
    }
}

/// All presets, in the order of this file.
pub fn models() -> Vec<ModelArchitecture> {
    FACTS.iter().map(build).collect()
}

/// The preset of this name.
pub fn model(name: &str) -> Option<ModelArchitecture> {
    FACTS.iter().find(|f| f.name == name).map(build)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recomputes dense parameter counts from the dimensions: a typo in a preset shows as a wrong total.
    #[test]
    fn dense_presets_are_consistent_with_their_dimensions() {
        for m in models().iter().filter(|m| m.moe.is_none()) {
            let Attention::Grouped { kv_heads } = m.attention else { continue };
            let d = f64::from(m.hidden);
            let q = f64::from(m.heads * m.head_dim);
            let kv = f64::from(kv_heads * m.head_dim);
            let attention = f64::from(m.layers) * (2.0 * d * q + 2.0 * d * kv);
            let mlp = m.active_parameters - attention;
            let intermediate = mlp / (3.0 * d * f64::from(m.layers));
            assert!(
                intermediate > 2.0 * d && intermediate < 9.0 * d,
                "{}: implied MLP width {intermediate} for hidden {d}",
                m.name
            );
        }
    }

    #[test]
    fn moe_presets_are_active_in_part() {
        for m in models() {
            if let Some(moe) = &m.moe {
                let dense = m.total_parameters - m.embedding_parameters() - moe.expert_parameters;
                let active =
                    dense + moe.expert_parameters * f64::from(moe.experts_per_token) / f64::from(moe.experts);
                assert!(
                    (active / m.active_parameters - 1.0).abs() < 0.25,
                    "{}: {active:e} vs {:e}",
                    m.name,
                    m.active_parameters
                );
            }
        }
    }
}
