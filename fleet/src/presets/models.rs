//! Model presets, from the models' published configuration files.

use crate::{Attention, ModelArchitecture, Moe, RecurrentState, SlidingWindow};

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
    /// (layers, tokens) of sliding-window or chunked attention.
    sliding: Option<(u32, u32)>,
    /// (layers, state bytes of one) of linear attention.
    recurrent: Option<(u32, f64)>,
}

/// Everything but dimensions that a plain dense model has none of.
const PLAIN: Facts = Facts {
    name: "",
    layers: 0,
    hidden: 0,
    heads: 0,
    kv_heads: 0,
    head_dim: 0,
    vocab: 0,
    total_billion: 0.0,
    active_billion: None,
    tied: false,
    context: 0,
    moe: None,
    latent: None,
    sliding: None,
    recurrent: None,
};

const fn dense(
    name: &'static str,
    dims: (u32, u32, u32, u32, u32),
    vocab: u32,
    total_billion: f64,
    tied: bool,
    context: u32,
) -> Facts {
    let (layers, hidden, heads, kv_heads, head_dim) = dims;
    Facts { name, layers, hidden, heads, kv_heads, head_dim, vocab, total_billion, tied, context, ..PLAIN }
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
    // Every second layer.
    Facts {
        sliding: Some((23, 4096)),
        ..dense("gemma-2-27b", (46, 4608, 32, 16, 128), 256_000, 27.23, true, 8192)
    },
    // Five of six layers; the text part of the checkpoint.
    Facts {
        sliding: Some((40, 1024)),
        ..dense("gemma-3-12b", (48, 3840, 16, 8, 256), 262_208, 11.77, true, 131_072)
    },
    Facts {
        sliding: Some((52, 1024)),
        ..dense("gemma-3-27b", (62, 5376, 32, 16, 128), 262_208, 27.01, true, 131_072)
    },
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
        context: 32_768,
        moe: Some((8, 2, 45.10)),
        ..PLAIN
    },
    Facts {
        name: "mixtral-8x22b",
        layers: 56,
        hidden: 6144,
        heads: 48,
        kv_heads: 8,
        head_dim: 128,
        vocab: 32_768,
        total_billion: 140.63,
        active_billion: Some(38.76),
        context: 65_536,
        moe: Some((8, 2, 135.29)),
        ..PLAIN
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
        context: 40_960,
        moe: Some((128, 8, 28.99)),
        ..PLAIN
    },
    Facts {
        name: "qwen3-235b-a22b",
        layers: 94,
        hidden: 4096,
        heads: 64,
        kv_heads: 4,
        head_dim: 128,
        vocab: 151_936,
        total_billion: 235.09,
        active_billion: Some(20.94),
        context: 40_960,
        moe: Some((128, 8, 227.10)),
        ..PLAIN
    },
    // Three of four layers are gated DeltaNet: 32 value heads of a 128 × 128 state, and three steps of a convolution over
    // 8,192 channels, kept in 16 bits.
    Facts {
        name: "qwen3-next-80b-a3b",
        layers: 48,
        hidden: 2048,
        heads: 16,
        kv_heads: 2,
        head_dim: 256,
        vocab: 151_936,
        total_billion: 79.67,
        active_billion: Some(3.25),
        context: 262_144,
        moe: Some((512, 10, 77.31)),
        recurrent: Some((36, 2.0 * (32.0 * 128.0 * 128.0 + 3.0 * 8192.0))),
        ..PLAIN
    },
    // Chunked attention in three of four layers, taken as a window of one chunk; the text part of the checkpoint.
    Facts {
        name: "llama-4-scout",
        layers: 48,
        hidden: 5120,
        heads: 40,
        kv_heads: 8,
        head_dim: 128,
        vocab: 202_048,
        total_billion: 107.77,
        active_billion: Some(15.10),
        context: 10_485_760,
        moe: Some((16, 1, 96.64)),
        sliding: Some((36, 8192)),
        ..PLAIN
    },
    Facts {
        name: "llama-4-maverick",
        layers: 48,
        hidden: 5120,
        heads: 40,
        kv_heads: 8,
        head_dim: 128,
        vocab: 202_048,
        total_billion: 400.71,
        active_billion: Some(15.10),
        context: 1_048_576,
        moe: Some((128, 1, 386.55)),
        sliding: Some((36, 8192)),
        ..PLAIN
    },
    // Every second layer sees 128 tokens.
    Facts {
        name: "gpt-oss-20b",
        layers: 24,
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        vocab: 201_088,
        total_billion: 20.91,
        active_billion: Some(3.03),
        context: 131_072,
        moe: Some((32, 4, 19.11)),
        sliding: Some((12, 128)),
        ..PLAIN
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
        context: 131_072,
        moe: Some((128, 4, 114.71)),
        sliding: Some((18, 128)),
        ..PLAIN
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
        context: 163_840,
        moe: Some((256, 8, 653.91)),
        latent: Some((512, 64)),
        ..PLAIN
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
        sliding: f.sliding.map(|(layers, window_tokens)| SlidingWindow { layers, window_tokens }),
        recurrent: f.recurrent.map(|(layers, state_bytes)| RecurrentState { layers, state_bytes }),
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
