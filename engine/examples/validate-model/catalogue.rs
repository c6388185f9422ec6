//! Models by name: the presets, and those that only older measurements use.

use plimsoll_fleet::{Attention, ModelArchitecture, presets};

/// OPT: learned positions and feed-forward layers of two matrices; what counts here is sizes.
fn opt(name: &str, layers: u32, hidden: u32, heads: u32, parameters: f64) -> Option<ModelArchitecture> {
    let embedding = 50_272.0 * f64::from(hidden);
    Some(ModelArchitecture {
        name: name.to_owned(),
        total_parameters: parameters,
        active_parameters: parameters - embedding,
        layers,
        hidden,
        heads,
        head_dim: hidden / heads,
        attention: Attention::Grouped { kv_heads: heads },
        vocab: 50_272,
        tied_embeddings: true,
        max_context_tokens: 2048,
        moe: None,
        ..presets::model("llama-2-7b")?
    })
}

/// The model of this name.
pub fn model(name: &str) -> Option<ModelArchitecture> {
    match name {
        "opt-13b" => opt("opt-13b", 40, 5120, 40, 12.85e9),
        "opt-66b" => opt("opt-66b", 64, 9216, 72, 65.7e9),
        _ => presets::model(name),
    }
}
