//! Keys, values and states: what a request of some context keeps on a GPU.
//!
//! A layer of full attention keeps every token; one with a sliding window the last `W` (and the block being filled); a
//! recurrent layer a state of constant size. In units of a token that every attention layer keeps, a request of context
//! `s` takes `f·s + w·min(s, W) + state`, with `f + w = 1` the shares of full and sliding layers. This is how vLLM's
//! hybrid KV-cache manager charges layer groups, padding to equal groups aside.

use plimsoll_fleet::{Attention, ModelArchitecture, Shape, shape::Variant};

/// A window wider than any context.
const NO_WINDOW: f64 = 1e18;

/// Layers of the longest pipeline stage.
pub(crate) fn stage_layers(arch: &ModelArchitecture, shape: &Shape) -> u32 {
    arch.layers.div_ceil(shape.pipeline_parallel.max(1))
}

/// Elements of keys and values that one token adds to one layer on one GPU. KV heads are copied where there are fewer
/// than GPUs; a latent is always copied.
pub(crate) fn kv_elements_per_layer(arch: &ModelArchitecture, tensor_parallel: u32) -> f64 {
    match arch.attention {
        Attention::Grouped { kv_heads } => {
            2.0 * f64::from(kv_heads.div_ceil(tensor_parallel.max(1))) * f64::from(arch.head_dim)
        }
        Attention::Latent { kv_rank, rope_dim } => f64::from(kv_rank) + f64::from(rope_dim),
    }
}

/// What one request keeps on the fullest GPU of its attention rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KvLayout {
    /// Bytes of one token that all attention layers keep.
    pub(crate) token_bytes: f64,
    /// Share of them in layers with a window.
    pub(crate) sliding_share: f64,
    /// The window, tokens.
    pub(crate) window: f64,
    /// The window as it is stored, the block being filled included, tokens.
    stored_window: f64,
    /// Bytes of one request's states.
    pub(crate) state_bytes: f64,
}

impl KvLayout {
    /// Layers of each kind are spread evenly over pipeline stages. `extra_token_bytes` is what a draft model adds.
    pub(crate) fn new(
        arch: &ModelArchitecture,
        variant: &Variant,
        shape: &Shape,
        block_tokens: u32,
        extra_token_bytes: f64,
    ) -> Self {
        let stage = f64::from(stage_layers(arch, shape)) / f64::from(arch.layers.max(1));
        let layer =
            kv_elements_per_layer(arch, shape.tensor_parallel) * variant.kv.bytes_per_element() * stage;
        let (full, sliding) = (f64::from(arch.full_layers()), f64::from(arch.sliding_layers()));
        let token_bytes = layer * (full + sliding) + extra_token_bytes;
        let window = arch.sliding.map_or(NO_WINDOW, |s| f64::from(s.window_tokens));
        Self {
            token_bytes,
            sliding_share: if sliding > 0.0 { layer * sliding / token_bytes } else { 0.0 },
            window,
            stored_window: window + f64::from(block_tokens),
            state_bytes: arch.recurrent.map_or(0.0, |r| {
                f64::from(r.layers) * r.state_bytes * stage / f64::from(shape.tensor_parallel)
            }),
        }
    }

    /// A request's states, in tokens.
    pub(crate) fn state_tokens(&self) -> f64 {
        if self.state_bytes > 0.0 { self.state_bytes / self.token_bytes } else { 0.0 }
    }

    /// What a request of this context takes, in tokens that all attention layers keep.
    pub(crate) fn footprint(&self, context: f64) -> f64 {
        (1.0 - self.sliding_share) * context
            + self.sliding_share * context.min(self.stored_window)
            + self.state_tokens()
    }

    /// The longest context whose footprint is at most this; infinite where all layers have a window.
    pub(crate) fn longest(&self, footprint: f64) -> f64 {
        let room = (footprint - self.state_tokens()).max(0.0);
        if room <= self.stored_window {
            return room;
        }
        let full = 1.0 - self.sliding_share;
        if full > 1e-12 { (room - self.sliding_share * self.stored_window) / full } else { f64::INFINITY }
    }

    /// In units of tokens of full attention (of any, where none is full): how many blocks hold the capacity, and how many
    /// a request keeps beside its own sequence of blocks. Engines allocate so.
    pub(crate) fn sequence_unit(&self) -> f64 {
        let full = 1.0 - self.sliding_share;
        if full > 1e-12 { full } else { 1.0 }
    }

    /// Tokens that a request keeps beside its sequence of full-attention tokens, in the unit of
    /// [`KvLayout::sequence_unit`].
    pub(crate) fn beside_sequence(&self, context: f64) -> f64 {
        let unit = self.sequence_unit();
        let sliding = if self.sliding_share < 1.0 { self.sliding_share } else { 0.0 };
        (sliding * context.min(self.stored_window) + self.state_tokens()) / unit
    }
}

/// `∫ 2·min(x, W)` over the positions of `new` tokens after `cached` ones: attention work under a window, in the unit of
/// `c·(c + 2k)`.
pub(crate) fn windowed_attention(new: f64, cached: f64, window: f64) -> f64 {
    let upto = |x: f64| if x <= window { x * x } else { window * (2.0 * x - window) };
    (upto(cached + new) - upto(cached)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(sliding_share: f64, window: f64, state_bytes: f64) -> KvLayout {
        KvLayout { token_bytes: 100.0, sliding_share, window, stored_window: window + 16.0, state_bytes }
    }

    #[test]
    fn footprints_by_hand() {
        let half = layout(0.5, 128.0, 0.0);
        assert_eq!(half.footprint(100.0), 100.0);
        assert_eq!(half.footprint(1000.0), 500.0 + 72.0);
        assert_eq!(half.longest(572.0), 1000.0);
        assert_eq!(half.longest(100.0), 100.0);
        // In blocks of the full layers: the sequence, and as many for the window beside it.
        assert_eq!(1000.0 + half.beside_sequence(1000.0), 572.0 / half.sequence_unit());
        let hybrid = layout(0.0, NO_WINDOW, 5000.0);
        assert_eq!(hybrid.footprint(10.0), 60.0);
        assert_eq!(hybrid.longest(60.0), 10.0);
        assert_eq!(layout(1.0, 128.0, 0.0).longest(1000.0), f64::INFINITY);
    }

    #[test]
    fn windowed_work_by_hand() {
        // Token 5 of a window of 4 sees as many as token 4.
        assert_eq!(windowed_attention(3.0, 0.0, 4.0), 9.0);
        assert_eq!(windowed_attention(6.0, 0.0, 4.0), 16.0 + 2.0 * 2.0 * 4.0);
        assert_eq!(windowed_attention(2.0, 10.0, 4.0), 2.0 * 2.0 * 4.0);
        let whole = windowed_attention(100.0, 0.0, 30.0);
        let parts = windowed_attention(60.0, 0.0, 30.0) + windowed_attention(40.0, 60.0, 30.0);
        assert!((whole - parts).abs() < 1e-9);
    }
}
