//! What a model preset implies besides its architecture: the public checkpoint and the format it is published in.

use plimsoll_fleet::Dtype;

/// Where a preset's weights are published, and in which format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Source, e.g. `hf://meta-llama/Llama-3.1-8B-Instruct`.
    pub source: &'static str,
    /// Format of the published weights: the best-quality variant.
    pub weights: Dtype,
}

const CHECKPOINTS: &[(&str, &str, Dtype)] = &[
    ("llama-3.2-1b", "hf://meta-llama/Llama-3.2-1B-Instruct", Dtype::Bf16),
    ("llama-3.2-3b", "hf://meta-llama/Llama-3.2-3B-Instruct", Dtype::Bf16),
    ("llama-3.1-8b", "hf://meta-llama/Llama-3.1-8B-Instruct", Dtype::Bf16),
    ("llama-3.1-70b", "hf://meta-llama/Llama-3.1-70B-Instruct", Dtype::Bf16),
    ("llama-3.1-405b", "hf://meta-llama/Llama-3.1-405B-Instruct", Dtype::Bf16),
    ("llama-2-7b", "hf://meta-llama/Llama-2-7b-chat-hf", Dtype::Bf16),
    ("llama-2-70b", "hf://meta-llama/Llama-2-70b-chat-hf", Dtype::Bf16),
    ("qwen2.5-7b", "hf://Qwen/Qwen2.5-7B-Instruct", Dtype::Bf16),
    ("qwen2.5-72b", "hf://Qwen/Qwen2.5-72B-Instruct", Dtype::Bf16),
    ("qwen3-8b", "hf://Qwen/Qwen3-8B", Dtype::Bf16),
    ("qwen3-32b", "hf://Qwen/Qwen3-32B", Dtype::Bf16),
    ("qwen3-30b-a3b", "hf://Qwen/Qwen3-30B-A3B", Dtype::Bf16),
    ("mistral-7b", "hf://mistralai/Mistral-7B-Instruct-v0.3", Dtype::Bf16),
    ("mistral-small-24b", "hf://mistralai/Mistral-Small-24B-Instruct-2501", Dtype::Bf16),
    ("mixtral-8x7b", "hf://mistralai/Mixtral-8x7B-Instruct-v0.1", Dtype::Bf16),
    ("gemma-2-27b", "hf://google/gemma-2-27b-it", Dtype::Bf16),
    ("phi-4", "hf://microsoft/phi-4", Dtype::Bf16),
    ("gemma-3-12b", "hf://google/gemma-3-12b-it", Dtype::Bf16),
    ("gemma-3-27b", "hf://google/gemma-3-27b-it", Dtype::Bf16),
    ("mixtral-8x22b", "hf://mistralai/Mixtral-8x22B-Instruct-v0.1", Dtype::Bf16),
    ("qwen3-235b-a22b", "hf://Qwen/Qwen3-235B-A22B", Dtype::Bf16),
    ("qwen3-next-80b-a3b", "hf://Qwen/Qwen3-Next-80B-A3B-Instruct", Dtype::Bf16),
    ("llama-4-scout", "hf://meta-llama/Llama-4-Scout-17B-16E-Instruct", Dtype::Bf16),
    ("llama-4-maverick", "hf://meta-llama/Llama-4-Maverick-17B-128E-Instruct", Dtype::Bf16),
    ("gpt-oss-20b", "hf://openai/gpt-oss-20b", Dtype::Fp4),
    ("gpt-oss-120b", "hf://openai/gpt-oss-120b", Dtype::Fp4),
    ("deepseek-v3", "hf://deepseek-ai/DeepSeek-V3", Dtype::Fp8),
];

/// The checkpoint of the model preset of this name.
pub fn checkpoint(preset: &str) -> Option<Checkpoint> {
    CHECKPOINTS
        .iter()
        .find(|(name, _, _)| *name == preset)
        .map(|&(_, source, weights)| Checkpoint { source, weights })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_preset_has_a_checkpoint() {
        for model in plimsoll_fleet::presets::models() {
            assert!(checkpoint(&model.name).is_some(), "{}", model.name);
        }
    }
}
