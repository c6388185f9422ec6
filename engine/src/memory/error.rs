//! Why a model does not fit.

/// Why a model cannot run in a shape, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DoesNotFit {
    /// The weights leave no room.
    #[error(
        "{subject} needs {:.0} GB of weights ({:.1} GB on each GPU), {gpus}× {accelerator} hold {:.0} GB \
         usable ({:.1} GB each); {remedy}",
        needed_bytes / 1e9, needed_bytes_per_gpu / 1e9,
        available_bytes_per_gpu * f64::from(*gpus) / 1e9, available_bytes_per_gpu / 1e9
    )]
    Weights {
        /// Model and shape, e.g. `llama-3.1-70b as fp8 TP2 H100`.
        subject: String,
        /// Accelerator class.
        accelerator: String,
        /// GPUs of the shape.
        gpus: u32,
        /// Weights of the whole model, bytes.
        needed_bytes: f64,
        /// Weights on the fullest GPU, bytes.
        needed_bytes_per_gpu: f64,
        /// What one GPU has for weights and KV cache, bytes.
        available_bytes_per_gpu: f64,
        /// What to change.
        remedy: String,
    },
    /// The weights fit, but a request of the longest context does not.
    #[error(
        "{subject} has room for {kv_tokens:.0} tokens of KV cache, fewer than one request of \
         {max_context_tokens} tokens needs; {remedy}"
    )]
    KvCache {
        /// Model and shape, e.g. `llama-3.1-70b as fp8 TP2 H100`.
        subject: String,
        /// Tokens of KV cache that would fit.
        kv_tokens: f64,
        /// Longest request, tokens.
        max_context_tokens: u32,
        /// What to change.
        remedy: String,
    },
    /// The heads cannot be split evenly.
    #[error(
        "{model} has {heads} attention heads{}, which do not split over tensor parallel {tensor_parallel}; use {allowed}",
        kv_heads.map(|n| format!(" ({n} for keys and values)")).unwrap_or_default()
    )]
    Heads {
        /// Model name.
        model: String,
        /// Query heads.
        heads: u32,
        /// Heads of keys and values, where they are the reason.
        kv_heads: Option<u32>,
        /// Tensor-parallel degree asked for.
        tensor_parallel: u32,
        /// Degrees that would work.
        allowed: String,
    },
    /// More pipeline stages than layers.
    #[error(
        "{model} has {layers} layers, fewer than pipeline parallel {pipeline_parallel} needs; use at most {layers}"
    )]
    Layers {
        /// Model name.
        model: String,
        /// Layers.
        layers: u32,
        /// Pipeline-parallel degree asked for.
        pipeline_parallel: u32,
    },
    /// The tensor-parallel group is larger than the fast-link domain.
    #[error(
        "tensor parallel {tensor_parallel} needs as many {accelerator} in one link domain, which has {link_domain_size}; \
         use tensor parallel of at most {link_domain_size} and pipeline parallel for the rest"
    )]
    LinkDomain {
        /// Accelerator class.
        accelerator: String,
        /// Accelerators in one fast-link domain.
        link_domain_size: u32,
        /// Tensor-parallel degree asked for.
        tensor_parallel: u32,
    },
    /// Experts or attention ranks that the model or the shape cannot have.
    #[error("{model} as {shape}: {problem}; {remedy}")]
    Experts {
        /// Model name.
        model: String,
        /// The shape.
        shape: String,
        /// What is wrong.
        problem: String,
        /// What to change.
        remedy: String,
    },
    /// A figure that makes no sense.
    #[error("{object}: {field} is {value}; {remedy}")]
    Invalid {
        /// The object that holds the field, e.g. `accelerator class h100`.
        object: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        remedy: &'static str,
    },
}
