//! Architectures from Hugging Face's `config.json`.
//!
//! Read are decoders with grouped-query or latent attention, dense or with routed experts, and hybrids of attention with
//! recurrent layers ([`recurrent`]). What the file does not say is taken as the model families that leave it out have it;
//! what cannot be priced (encoders, models without any attention) is refused rather than guessed.

mod recurrent;

use serde::Deserialize;

use crate::{Attention, Dtype, ModelArchitecture, Moe, RecurrentState, SlidingWindow};

/// The fields of a `config.json` that decide memory and speed. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HfConfig {
    /// Family, e.g. `llama`.
    pub model_type: Option<String>,
    /// Classes that load it.
    pub architectures: Option<Vec<String>>,
    /// The decoder's own part in multimodal models.
    #[serde(alias = "llm_config", alias = "language_config")]
    pub text_config: Option<Box<Self>>,
    hidden_size: Option<u32>,
    num_hidden_layers: Option<u32>,
    num_attention_heads: Option<u32>,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: Option<u32>,
    vocab_size: Option<u32>,
    max_position_embeddings: Option<u32>,
    tie_word_embeddings: Option<bool>,
    is_encoder_decoder: Option<bool>,
    // Mixture of experts, under the names of its families. Some files give two of them.
    num_local_experts: Option<u32>,
    num_experts: Option<u32>,
    n_routed_experts: Option<u32>,
    moe_num_experts: Option<u32>,
    num_experts_per_tok: Option<u32>,
    num_experts_per_token: Option<u32>,
    experts_per_token: Option<u32>,
    moe_k: Option<u32>,
    moe_intermediate_size: Option<u32>,
    n_shared_experts: Option<u32>,
    shared_expert_intermediate_size: Option<u32>,
    moe_shared_expert_intermediate_size: Option<u32>,
    shared_intermediate_size: Option<u32>,
    expert_layer_period: Option<u32>,
    expert_layer_offset: Option<u32>,
    first_k_dense_replace: Option<u32>,
    decoder_sparse_step: Option<u32>,
    moe_layer_freq: Option<serde_step::Step>,
    interleave_moe_layer_step: Option<u32>,
    intermediate_size_mlp: Option<u32>,
    mlp_only_layers: Option<Vec<u32>>,
    // Latent attention.
    kv_lora_rank: Option<u32>,
    q_lora_rank: Option<u32>,
    qk_nope_head_dim: Option<u32>,
    qk_rope_head_dim: Option<u32>,
    v_head_dim: Option<u32>,
    // Windows.
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    sliding_window_pattern: Option<serde_step::Pattern>,
    attention_chunk_size: Option<u32>,
    no_rope_layers: Option<Vec<u32>>,
    no_rope_layer_interval: Option<u32>,
    // Layers of another kind.
    layer_types: Option<Vec<String>>,
    attn_output_gate: Option<bool>,
    #[serde(flatten)]
    recurrent: recurrent::Fields,
    quantization_config: Option<Quantization>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
}

/// How the checkpoint is quantised.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
struct Quantization {
    quant_method: Option<String>,
    bits: Option<u32>,
    w_bit: Option<u32>,
    quant_algo: Option<String>,
    format: Option<String>,
}

mod serde_step {
    use serde::Deserialize;

    /// Every how many layers one sees everything; some families write the layers down, `L` for a window, `G` for none.
    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Pattern {
        Every(u32),
        Letters(String),
    }

    impl Pattern {
        /// Layers of `layers` that have a window.
        pub(super) fn windows(&self, layers: u32) -> Option<u32> {
            match self {
                Self::Every(0) => None,
                Self::Every(every) => Some(layers - layers / every),
                Self::Letters(letters) => {
                    let local = letters.chars().cycle().take(layers as usize).filter(|c| *c == 'L');
                    Some(local.count() as u32)
                }
            }
        }
    }

    /// Every how many layers there are experts; some families list the layers instead.
    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Step {
        Every(u32),
        Listed(Vec<u32>),
    }
}

/// A decoder read from a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct HfModel {
    /// The architecture.
    pub architecture: ModelArchitecture,
    /// Format of the checkpoint's weights.
    pub weights: Dtype,
    /// What was assumed or left out, one sentence each.
    pub notes: Vec<String>,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableConfig {
    /// A field that every decoder has is not there.
    #[error("{0} is missing; this is no config.json of a decoder, or of a family that names it otherwise")]
    Missing(&'static str),
    /// A figure that cannot be.
    #[error("{field} is {value}; {remedy}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What it must be.
        remedy: &'static str,
    },
    /// A kind of model whose cost is not modelled.
    #[error("{0} models are not modelled; only decoders with attention in some layers at least are")]
    Kind(String),
}

/// Families whose feed-forward layers have two matrices, not the gated three.
const UNGATED: [&str; 9] =
    ["gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "starcoder2"];
/// Families that encode and write nothing.
const ENCODERS: [&str; 15] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "albert",
    "electra",
    "deberta",
    "deberta-v2",
    "distilbert",
    "mpnet",
    "modernbert",
    "nomic_bert",
    "vit",
    "clip",
    "siglip",
];
/// More layers than any model has; also keeps what is done layer by layer short.
const MOST_LAYERS: u32 = 10_000;
/// Beginnings of the names of families that are known to have the shapes assumed here.
const KNOWN: [&str; 40] = [
    "llama",
    "mistral",
    "ministral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi",
    "deepseek",
    "kimi",
    "gpt_oss",
    "cohere",
    "granite",
    "glm",
    "chatglm",
    "olmo",
    "stablelm",
    "internlm",
    "baichuan",
    "exaone",
    "nemotron",
    "jamba",
    "minimax",
    "ernie",
    "hunyuan",
    "smollm",
    "starcoder2",
    "gpt2",
    "gpt_neo",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "seed_oss",
    "apertus",
    "arcee",
    "bamba",
    "lfm2",
    "yi",
];
/// Families without attention, or with attention beside a state in every layer.
const OTHER_KINDS: [&str; 7] = ["mamba", "mamba2", "falcon_mamba", "rwkv", "zamba", "zamba2", "falcon_h1"];
/// Families whose attention has a gate as wide as its queries.
const GATED_ATTENTION: [&str; 3] = ["qwen3_next", "qwen3_5", "qwen3_5_moe"];
/// Families that tie their embeddings where the file does not say.
const TIED: [&str; 9] =
    ["gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2", "gpt2", "opt", "bloom"];

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, UnreadableConfig> {
    value.ok_or(UnreadableConfig::Missing(field))
}

fn positive(value: u32, field: &'static str) -> Result<u32, UnreadableConfig> {
    if value > 0 {
        Ok(value)
    } else {
        Err(UnreadableConfig::Invalid { field, value, remedy: "it must be at least 1" })
    }
}

impl HfConfig {
    /// The decoder that the file describes, under a name of your choice.
    ///
    /// # Errors
    /// [`UnreadableConfig`] naming the field that is missing or wrong, or the kind of model that is not modelled.
    pub fn read(&self, name: &str) -> Result<HfModel, UnreadableConfig> {
        let mut notes = Vec::new();
        let text = match &self.text_config {
            Some(text) if self.hidden_size.is_none() => {
                notes.push("only the language model is counted, not what encodes images or sound".to_owned());
                text
            }
            _ => self,
        };
        let family = text.model_type.as_deref().or(self.model_type.as_deref()).unwrap_or_default();
        self.refuse_other_kinds(family)?;
        text.refuse_other_kinds(family)?;
        if !KNOWN.iter().any(|known| family.starts_with(known)) {
            notes.push(format!(
                "model_type {family:?} is not known; read as a decoder with gated feed-forward layers, as llama"
            ));
        }
        let blocks = positive(need(text.num_hidden_layers, "num_hidden_layers")?, "num_hidden_layers")?;
        if blocks > MOST_LAYERS {
            return Err(UnreadableConfig::Invalid {
                field: "num_hidden_layers",
                value: blocks,
                remedy: "it must be at most 10,000",
            });
        }
        let hidden = positive(need(text.hidden_size, "hidden_size")?, "hidden_size")?;
        let heads = positive(need(text.num_attention_heads, "num_attention_heads")?, "num_attention_heads")?;
        let vocab = positive(need(text.vocab_size.or(self.vocab_size), "vocab_size")?, "vocab_size")?;
        let tied =
            text.tie_word_embeddings.or(self.tie_word_embeddings).unwrap_or_else(|| TIED.contains(&family));
        let max_context_tokens = text.max_position_embeddings.unwrap_or_else(|| {
            notes.push("max_position_embeddings is missing; 8,192 tokens assumed".to_owned());
            8192
        });
        let (attention, head_dim, attention_parameters) = text.attention(hidden, heads)?;
        let weights = text.weights().or_else(|| self.weights()).unwrap_or(Dtype::Bf16);
        let mixers = text.mixers(blocks, hidden, heads, head_dim)?;
        if mixers.single {
            notes.push("a mixer and the feed-forward block after it count as one layer".to_owned());
        }
        let layers = mixers.layers();
        let matrices = if UNGATED.contains(&family) || mixers.single { 2.0 } else { 3.0 };
        let wide = |width: u32| matrices * f64::from(hidden) * f64::from(width);
        let experts = text.experts(mixers.feed_forward, mixers.sparse)?;
        let gated = text.attn_output_gate.unwrap_or_else(|| GATED_ATTENTION.contains(&family));
        let gate = if gated { f64::from(hidden) * f64::from(heads) * f64::from(head_dim) } else { 0.0 };
        let mut total = f64::from(mixers.attention) * (attention_parameters + gate)
            + f64::from(mixers.recurrent) * mixers.parameters
            + f64::from(layers) * 2.0 * f64::from(hidden);
        let mut active = total;
        let mut moe = None;
        let dense_layers = mixers.feed_forward - experts.as_ref().map_or(0, |e| e.layers);
        if dense_layers > 0 {
            // Where experts are optional, the part that every token passes is the whole of it without them.
            let shared = text.shared_intermediate_size.filter(|_| experts.is_none());
            let width = shared.or(text.intermediate_size_mlp).or(text.intermediate_size);
            let dense = f64::from(dense_layers) * wide(need(width, "intermediate_size")?);
            total += dense;
            active += dense;
        }
        if let Some(e) = experts {
            let sparse = f64::from(e.layers);
            // The router, and experts that every token passes.
            let always = sparse * (f64::from(hidden) * f64::from(e.count) + wide(e.shared_width));
            let routed = sparse * f64::from(e.count) * wide(e.width);
            total += always + routed;
            active += always + routed * f64::from(e.per_token) / f64::from(e.count);
            moe = Some(Moe { experts: e.count, experts_per_token: e.per_token, expert_parameters: routed });
        }
        let tables = if tied { 1.0 } else { 2.0 } * f64::from(vocab) * f64::from(hidden);
        Ok(HfModel {
            architecture: ModelArchitecture {
                name: name.to_owned(),
                layers,
                hidden,
                heads,
                head_dim,
                attention,
                vocab,
                total_parameters: total + tables,
                active_parameters: active,
                tied_embeddings: tied,
                max_context_tokens: positive(max_context_tokens, "max_position_embeddings")?,
                moe,
                sliding: text.sliding(family, layers),
                recurrent: (mixers.recurrent > 0)
                    .then_some(RecurrentState { layers: mixers.recurrent, state_bytes: mixers.state_bytes }),
            },
            weights,
            notes,
        })
    }

    fn refuse_other_kinds(&self, family: &str) -> Result<(), UnreadableConfig> {
        let kind = |what: &str| Err(UnreadableConfig::Kind(what.to_owned()));
        if self.is_encoder_decoder == Some(true) {
            return kind("encoder-decoder");
        }
        let fills_gaps =
            self.architectures.as_ref().is_some_and(|a| a.iter().any(|class| class.ends_with("ForMaskedLM")));
        if OTHER_KINDS.contains(&family) || ENCODERS.contains(&family) || fills_gaps {
            return kind(if family.is_empty() { "encoder" } else { family });
        }
        Ok(())
    }

    /// Keys and values, width of a head, and the parameters of one layer's projections.
    fn attention(&self, hidden: u32, heads: u32) -> Result<(Attention, u32, f64), UnreadableConfig> {
        let d = f64::from(hidden);
        let h = f64::from(heads);
        if let Some(kv_rank) = self.kv_lora_rank.filter(|r| *r > 0) {
            let rope_dim = need(self.qk_rope_head_dim, "qk_rope_head_dim")?;
            let nope = need(self.qk_nope_head_dim, "qk_nope_head_dim")?;
            let value = need(self.v_head_dim, "v_head_dim")?;
            let head_dim = positive(nope.saturating_add(rope_dim), "qk_nope_head_dim + qk_rope_head_dim")?;
            let query = h * f64::from(head_dim);
            let queries = match self.q_lora_rank {
                Some(rank) if rank > 0 => f64::from(rank) * (d + query),
                _ => d * query,
            };
            let rank = f64::from(kv_rank);
            let keys = d * (rank + f64::from(rope_dim)) + rank * h * (f64::from(nope) + f64::from(value));
            let parameters = queries + keys + h * f64::from(value) * d;
            return Ok((Attention::Latent { kv_rank, rope_dim }, head_dim, parameters));
        }
        let kv_heads = positive(self.num_key_value_heads.unwrap_or(heads), "num_key_value_heads")?;
        let head_dim = match self.head_dim {
            Some(width) => positive(width, "head_dim")?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(UnreadableConfig::Invalid {
                    field: "num_attention_heads",
                    value: heads,
                    remedy: "it does not divide hidden_size, and head_dim is missing",
                });
            }
        };
        let parameters = 2.0 * d * f64::from(head_dim) * (h + f64::from(kv_heads));
        Ok((Attention::Grouped { kv_heads }, head_dim, parameters))
    }

    /// Layers of chunked attention (Llama 4): all but those without positions, every fourth where nothing is said.
    fn chunked(&self, layers: u32) -> Option<SlidingWindow> {
        let window_tokens = self.attention_chunk_size.filter(|c| *c > 0)?;
        let rotary = self.no_rope_layers.as_ref().filter(|l| !l.is_empty());
        let count = match (&self.layer_types, rotary) {
            (Some(kinds), _) => {
                kinds.iter().filter(|k| *k == "chunked_attention").count().min(layers as usize) as u32
            }
            (None, Some(rotary)) => {
                rotary.iter().take(layers as usize).filter(|uses| **uses > 0).count() as u32
            }
            (None, None) => {
                layers - layers / self.no_rope_layer_interval.filter(|every| *every > 0).unwrap_or(4)
            }
        };
        (count > 0).then_some(SlidingWindow { layers: count, window_tokens })
    }

    /// Layers that see the last tokens only.
    fn sliding(&self, family: &str, layers: u32) -> Option<SlidingWindow> {
        if let Some(chunked) = self.chunked(layers) {
            return Some(chunked);
        }
        let window_tokens =
            self.sliding_window.filter(|w| *w > 0 && self.use_sliding_window != Some(false))?;
        let pattern = self.sliding_window_pattern.as_ref().and_then(|p| p.windows(layers));
        let count = match (&self.layer_types, pattern) {
            (Some(kinds), _) => {
                kinds.iter().filter(|k| *k == "sliding_attention").count().min(layers as usize) as u32
            }
            (None, Some(windows)) => windows,
            (None, _) if family == "gemma2" => layers.div_ceil(2),
            (None, _) if family.starts_with("gemma3") => layers - layers / 6,
            (None, _) if family == "cohere2" => layers - layers / 4,
            (None, _) if family == "gpt_oss" => layers.div_ceil(2),
            (None, _) if ["mistral", "mixtral"].contains(&family) => layers,
            // Others name a window that they do not use.
            (None, _) => return None,
        };
        (count > 0).then_some(SlidingWindow { layers: count, window_tokens })
    }

    /// Experts of `layers` feed-forward blocks, `sparse` of which have them where the pattern of blocks says so.
    fn experts(&self, layers: u32, sparse: Option<u32>) -> Result<Option<Experts>, UnreadableConfig> {
        let count =
            self.num_local_experts.or(self.num_experts).or(self.n_routed_experts).or(self.moe_num_experts);
        let Some(count) = count.filter(|n| *n > 1) else { return Ok(None) };
        let per_token =
            self.num_experts_per_tok.or(self.num_experts_per_token).or(self.experts_per_token).or(self.moe_k);
        let per_token = positive(need(per_token, "num_experts_per_tok")?, "num_experts_per_tok")?;
        if per_token > count {
            return Err(UnreadableConfig::Invalid {
                field: "num_experts_per_tok",
                value: per_token,
                remedy: "it must be at most the number of experts",
            });
        }
        let width = need(self.moe_intermediate_size.or(self.intermediate_size), "moe_intermediate_size")?;
        let step = match &self.moe_layer_freq {
            Some(serde_step::Step::Every(n)) => Some(*n),
            _ => None,
        };
        let every = step.or(self.decoder_sparse_step).or(self.interleave_moe_layer_step).unwrap_or(1).max(1);
        let listed = match &self.moe_layer_freq {
            Some(serde_step::Step::Listed(flags)) => {
                Some(flags.iter().filter(|f| **f > 0).count().min(layers as usize) as u32)
            }
            _ => None,
        };
        // Every so manieth, from one that is not the first.
        let offset = self.expert_layer_period.filter(|p| *p > 0).map(|period| {
            let offset = self.expert_layer_offset.unwrap_or(0);
            (0..layers).filter(|i| i % period == offset % period).count() as u32
        });
        let dense_first = self.first_k_dense_replace.unwrap_or(0).min(layers);
        let named_dense = self.mlp_only_layers.as_ref().map_or(0, |l| l.len().min(layers as usize) as u32);
        let sparse = sparse
            .or(listed)
            .or(offset)
            .unwrap_or_else(|| ((layers - dense_first) / every).saturating_sub(named_dense));
        let one_shared = self.shared_expert_intermediate_size.or(self.shared_intermediate_size);
        let shared_width = match (self.n_shared_experts, one_shared) {
            (Some(n), _) => n.saturating_mul(self.moe_shared_expert_intermediate_size.unwrap_or(width)),
            (None, Some(w)) => w,
            // Llama 4 has one shared expert and no field for it.
            (None, None) if self.interleave_moe_layer_step.is_some() => width,
            (None, None) => 0,
        };
        Ok(Some(Experts { layers: sparse, count, per_token, width, shared_width }))
    }

    fn weights(&self) -> Option<Dtype> {
        if let Some(q) = &self.quantization_config {
            let method = q.quant_method.as_deref().unwrap_or_default();
            let form = [
                method,
                q.quant_algo.as_deref().unwrap_or_default(),
                q.format.as_deref().unwrap_or_default(),
            ]
            .join(" ")
            .to_lowercase();
            let says = |word: &str| form.contains(word);
            return Some(match q.bits.or(q.w_bit) {
                Some(4) => Dtype::Int4,
                Some(8) => Dtype::Int8,
                _ if says("fp4") => Dtype::Fp4,
                _ if says("fp8") || says("float-quantized") => Dtype::Fp8,
                _ if says("awq") || says("gptq") || says("pack-quantized") => Dtype::Int4,
                _ if says("int") || says("compressed-tensors") => Dtype::Int8,
                _ => Dtype::Bf16,
            });
        }
        match self.torch_dtype.as_deref().or(self.dtype.as_deref())? {
            "float32" => Some(Dtype::Fp32),
            "float16" => Some(Dtype::Fp16),
            "bfloat16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

struct Experts {
    /// Layers that have them.
    layers: u32,
    count: u32,
    per_token: u32,
    width: u32,
    /// Width of what every token passes beside them.
    shared_width: u32,
}

#[cfg(test)]
mod tests;
