//! Layers that keep a state of constant size: gated delta nets (Qwen3-Next), Mamba and Mamba-2 (Jamba, Bamba, Granite 4,
//! Nemotron-H), lightning attention (MiniMax).
//!
//! Parameters and states are those of the published model code: projections, the convolution before the recurrence, and
//! the recurrence's own state. The convolution's window is kept in 16 bits, the state in the format that the file names,
//! or in 16 bits, as vLLM does by default.

use serde::Deserialize;

use super::{HfConfig, UnreadableConfig, need, positive};

/// Fields of recurrent layers, under the names of their families.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Fields {
    // Which layers.
    layers_block_type: Option<Vec<String>>,
    hybrid_override_pattern: Option<String>,
    full_attention_interval: Option<u32>,
    attn_layer_period: Option<u32>,
    attn_layer_offset: Option<u32>,
    attn_layer_indices: Option<Vec<u32>>,
    attn_type_list: Option<Vec<u32>>,
    // Gated delta nets.
    linear_num_key_heads: Option<u32>,
    linear_num_value_heads: Option<u32>,
    linear_key_head_dim: Option<u32>,
    linear_value_head_dim: Option<u32>,
    linear_conv_kernel_dim: Option<u32>,
    // Mamba.
    #[serde(alias = "mamba_num_heads")]
    mamba_n_heads: Option<u32>,
    #[serde(alias = "mamba_head_dim")]
    mamba_d_head: Option<Width>,
    #[serde(alias = "ssm_state_size")]
    mamba_d_state: Option<u32>,
    #[serde(alias = "n_groups")]
    mamba_n_groups: Option<u32>,
    #[serde(alias = "conv_kernel")]
    mamba_d_conv: Option<u32>,
    #[serde(alias = "expand")]
    mamba_expand: Option<u32>,
    mamba_dt_rank: Option<Width>,
    #[serde(alias = "mamba_ssm_cache_dtype")]
    mamba_ssm_dtype: Option<String>,
}

/// A width, or a word that leaves it to the model's code.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Width {
    Given(u32),
    Word(String),
}

impl Width {
    fn given(&self) -> Option<u32> {
        match self {
            Self::Given(width) => Some(*width),
            Self::Word(_) => None,
        }
    }
}

/// What mixes tokens, layer by layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mixers {
    /// Layers with attention.
    pub(super) attention: u32,
    /// Layers with a state.
    pub(super) recurrent: u32,
    /// Feed-forward blocks.
    pub(super) feed_forward: u32,
    /// How many of those have experts, where the pattern of blocks says.
    pub(super) sparse: Option<u32>,
    /// Whether feed-forward blocks are layers of their own in the file.
    pub(super) single: bool,
    /// Parameters of one recurrent mixer.
    pub(super) parameters: f64,
    /// State of one recurrent mixer for one request, bytes.
    pub(super) state_bytes: f64,
}

impl Mixers {
    /// Layers, a mixer with its feed-forward block each.
    pub(super) fn layers(&self) -> u32 {
        self.attention + self.recurrent
    }
}

/// One recurrent mixer: parameters, elements of the convolution's window, and of the state.
#[derive(Debug, Clone, Copy)]
struct Mixer {
    parameters: f64,
    window: f64,
    state: f64,
}

/// Kinds of layers that keep a state.
const RECURRENT: [&str; 2] = ["mamba", "linear_attention"];

impl HfConfig {
    pub(super) fn mixers(
        &self,
        blocks: u32,
        hidden: u32,
        heads: u32,
        head_dim: u32,
    ) -> Result<Mixers, UnreadableConfig> {
        let fields = &self.recurrent;
        let plain = |recurrent: u32| Mixers {
            attention: blocks - recurrent.min(blocks),
            recurrent: recurrent.min(blocks),
            feed_forward: blocks,
            sparse: None,
            single: false,
            parameters: 0.0,
            state_bytes: 0.0,
        };
        let mut mixers = match &fields.hybrid_override_pattern {
            Some(pattern) => pattern_of(pattern)?,
            None => plain(self.recurrent_layers(blocks)?),
        };
        if mixers.attention == 0 {
            return Err(UnreadableConfig::Kind("state-space (without any attention)".to_owned()));
        }
        if mixers.recurrent == 0 {
            return Ok(mixers);
        }
        let mixer = if fields.linear_num_value_heads.is_some() {
            self.delta_net(hidden)?
        } else if fields.attn_type_list.is_some()
            || self.model_type.as_deref().is_some_and(|family| family.starts_with("minimax"))
        {
            lightning(hidden, heads, head_dim)
        } else if fields.mamba_n_heads.is_some() {
            self.mamba2(hidden)?
        } else if fields.mamba_d_state.is_some() {
            self.mamba(hidden)?
        } else {
            return Err(UnreadableConfig::Kind("recurrent layers of an unknown kind: such".to_owned()));
        };
        let element = match fields.mamba_ssm_dtype.as_deref() {
            Some("float32" | "fp32") => 4.0,
            _ => 2.0,
        };
        mixers.parameters = mixer.parameters;
        mixers.state_bytes = 2.0 * mixer.window + element * mixer.state;
        Ok(mixers)
    }

    /// How many layers keep a state, by whichever way the file says it.
    fn recurrent_layers(&self, layers: u32) -> Result<u32, UnreadableConfig> {
        let fields = &self.recurrent;
        if let Some(kinds) = self.layer_types.as_ref().or(fields.layers_block_type.as_ref()) {
            let recurrent = |kind: &str| RECURRENT.contains(&kind);
            let known = |kind: &&String| recurrent(kind) || kind.ends_with("attention");
            if let Some(kind) = kinds.iter().find(|kind| !known(kind)) {
                return Err(UnreadableConfig::Kind(format!("layers of kind {kind:?}: such")));
            }
            return Ok(kinds.iter().filter(|kind| recurrent(kind)).count() as u32);
        }
        if let Some(kinds) = &fields.attn_type_list {
            return Ok(kinds.iter().filter(|kind| **kind == 0).count() as u32);
        }
        if let Some(indices) = &fields.attn_layer_indices {
            return Ok(layers - (indices.iter().filter(|i| **i < layers).count() as u32).min(layers));
        }
        if let Some(period) = fields.attn_layer_period.filter(|period| *period > 0) {
            let offset = fields.attn_layer_offset.unwrap_or(0) % period;
            return Ok((0..layers).filter(|i| i % period != offset).count() as u32);
        }
        if fields.linear_num_value_heads.is_some() {
            let every = positive(fields.full_attention_interval.unwrap_or(4), "full_attention_interval")?;
            return Ok(layers - layers / every);
        }
        Ok(0)
    }

    /// Gated delta net: queries, keys, values and a gate, two scalars a value head, a convolution over all but the gate.
    fn delta_net(&self, hidden: u32) -> Result<Mixer, UnreadableConfig> {
        let fields = &self.recurrent;
        let of = |value: Option<u32>, field| Ok(f64::from(positive(need(value, field)?, field)?));
        let value_heads = of(fields.linear_num_value_heads, "linear_num_value_heads")?;
        let key_heads = of(fields.linear_num_key_heads, "linear_num_key_heads")?;
        let key_dim = of(fields.linear_key_head_dim, "linear_key_head_dim")?;
        let value_dim = of(fields.linear_value_head_dim, "linear_value_head_dim")?;
        let kernel = f64::from(fields.linear_conv_kernel_dim.unwrap_or(4));
        let (keys, values, d) = (key_heads * key_dim, value_heads * value_dim, f64::from(hidden));
        let through = 2.0 * keys + values;
        Ok(Mixer {
            parameters: d * (2.0 * keys + 2.0 * values + 2.0 * value_heads) + through * kernel + values * d,
            window: through * (kernel - 1.0).max(0.0),
            state: value_heads * key_dim * value_dim,
        })
    }

    /// Mamba-2: a state of `d_state` for each channel of each head; `n_groups` share their input and output vectors.
    fn mamba2(&self, hidden: u32) -> Result<Mixer, UnreadableConfig> {
        let fields = &self.recurrent;
        let d = f64::from(hidden);
        let heads = positive(need(fields.mamba_n_heads, "mamba_n_heads")?, "mamba_n_heads")?;
        let inner = match fields.mamba_d_head.as_ref().and_then(Width::given) {
            Some(width) => f64::from(heads) * f64::from(positive(width, "mamba_d_head")?),
            None => f64::from(fields.mamba_expand.unwrap_or(2)) * d,
        };
        let state = f64::from(positive(need(fields.mamba_d_state, "mamba_d_state")?, "mamba_d_state")?);
        let kernel = f64::from(fields.mamba_d_conv.unwrap_or(4));
        let through = inner + 2.0 * f64::from(fields.mamba_n_groups.unwrap_or(1)) * state;
        Ok(Mixer {
            parameters: d * (inner + through + f64::from(heads)) + through * kernel + inner * d,
            window: through * (kernel - 1.0).max(0.0),
            state: inner * state,
        })
    }

    /// Mamba: as many channels as `expand` times the hidden width, each with a state of `d_state`.
    fn mamba(&self, hidden: u32) -> Result<Mixer, UnreadableConfig> {
        let fields = &self.recurrent;
        let d = f64::from(hidden);
        let inner = f64::from(fields.mamba_expand.unwrap_or(2)) * d;
        let state = f64::from(positive(need(fields.mamba_d_state, "mamba_d_state")?, "mamba_d_state")?);
        let kernel = f64::from(fields.mamba_d_conv.unwrap_or(4));
        let given = fields.mamba_dt_rank.as_ref().and_then(Width::given);
        let rank = f64::from(given.unwrap_or_else(|| hidden.div_ceil(16)));
        let recurrence = inner * (rank + 2.0 * state) + rank * inner + inner * state;
        Ok(Mixer {
            parameters: d * 2.0 * inner + inner * kernel + recurrence + inner * d,
            window: inner * (kernel - 1.0).max(0.0),
            state: inner * state,
        })
    }
}

/// Lightning attention: queries, keys, values and a gate of full width; a state of `head_dim`² a head.
fn lightning(hidden: u32, heads: u32, head_dim: u32) -> Mixer {
    let (h, w) = (f64::from(heads), f64::from(head_dim));
    Mixer { parameters: 5.0 * f64::from(hidden) * h * w, window: 0.0, state: h * w * w }
}

/// Nemotron-H's pattern: one letter a block.
fn pattern_of(pattern: &str) -> Result<Mixers, UnreadableConfig> {
    let (mut attention, mut recurrent, mut dense, mut sparse) = (0, 0, 0, 0);
    for block in pattern.chars() {
        match block {
            'M' => recurrent += 1,
            '*' => attention += 1,
            '-' => dense += 1,
            'E' => sparse += 1,
            other => {
                return Err(UnreadableConfig::Kind(format!(
                    "blocks {other:?} in hybrid_override_pattern: such"
                )));
            }
        }
    }
    Ok(Mixers {
        attention,
        recurrent,
        feed_forward: dense + sparse,
        sparse: (sparse > 0).then_some(sparse),
        single: true,
        parameters: 0.0,
        state_bytes: 0.0,
    })
}
