//! What a simulated engine is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_engine::{DoesNotFit, EngineConfig, ReplicaModel};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, Dtype, LengthDistribution, ModelArchitecture, Role, Shape, presets};

/// Configuration of an [`EngineServer`](super::EngineServer).
#[derive(Debug, Clone, PartialEq)]
pub struct EngineServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Name of the model in requests.
    pub served_model: String,
    /// The model.
    pub architecture: ModelArchitecture,
    /// Its formats.
    pub variant: Variant,
    /// The accelerator.
    pub accelerator: AcceleratorClass,
    /// Parallelism.
    pub shape: Shape,
    /// The engine's own settings.
    pub engine: EngineConfig,
    /// Virtual seconds that pass in one wall second; 1 is real time.
    pub speed: f64,
    /// Virtual time from start to ready; until then every endpoint answers 503.
    pub startup: Duration,
    /// LoRA adapters that fit on the accelerator at once; 0 turns LoRA off.
    pub max_lora_slots: usize,
    /// Virtual time to bring an adapter to the accelerator.
    pub lora_load: Duration,
    /// Lengths of answers that nothing but the model ends.
    pub answer: LengthDistribution,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// Longest context, tokens (`--max-model-len`); `None`: the model's, or as much of it as the KV cache holds
    /// (`--max-model-len auto`).
    pub max_model_len: Option<u32>,
    /// Prefill and decode engines take no request without SGLang's `bootstrap_room`; else vLLM's protocol is spoken as well.
    pub needs_room: bool,
    /// Seed of answers: the same seed and prompt give the same answer.
    pub seed: u64,
}

/// Why a simulated engine cannot be configured or started.
#[derive(Debug, thiserror::Error)]
pub enum EngineServerError {
    /// No such preset.
    #[error("unknown {what} {name:?}; known: {known}")]
    UnknownPreset {
        /// `model`, `accelerator` or `dtype`.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A setting that makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
        /// The setting.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model does not fit.
    #[error(transparent)]
    DoesNotFit(Box<DoesNotFit>),
    /// The address cannot be listened on.
    #[error("listen address {addr}: {source}; choose another port, or 0 for any free one")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

fn known<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

impl EngineServerConfig {
    /// A configuration from preset names: one replica of `model` on `tensor_parallel` accelerators, weights in
    /// `dtype` (KV cache in 16 bits), on any free local port, in real time, ready at once, with 8 adapter
    /// slots.
    ///
    /// # Errors
    /// [`EngineServerError::UnknownPreset`] with the known names; [`EngineServerError::Invalid`] for a
    /// parallelism that the model or the accelerator does not allow. Whether it fits is asked at the start.
    pub fn from_presets(
        model: &str,
        accelerator: &str,
        tensor_parallel: u32,
        dtype: &str,
    ) -> Result<Self, EngineServerError> {
        let unknown =
            |what, name: &str, known| EngineServerError::UnknownPreset { what, name: name.to_owned(), known };
        let architecture = presets::model(model).ok_or_else(|| {
            unknown("model", model, known(presets::models().iter().map(|m| m.name.as_str())))
        })?;
        let class = presets::accelerator(accelerator).ok_or_else(|| {
            unknown(
                "accelerator",
                accelerator,
                known(presets::accelerators().iter().map(|a| a.name.as_str())),
            )
        })?;
        let weights = dtype
            .parse::<Dtype>()
            .map_err(|_| unknown("dtype", dtype, known(Dtype::ALL.iter().map(|d| d.as_str()))))?;
        if !architecture.supports_tensor_parallel(tensor_parallel) {
            return Err(EngineServerError::Invalid {
                field: "tensor parallel",
                problem: format!(
                    "{tensor_parallel} does not divide the {} attention heads of {model}; use up to {}",
                    architecture.heads,
                    architecture.max_tensor_parallel(class.link_domain_size)
                ),
            });
        }
        if tensor_parallel > class.link_domain_size {
            return Err(EngineServerError::Invalid {
                field: "tensor parallel",
                problem: format!(
                    "{tensor_parallel} is more than the {} {accelerator} of one node; use up to {}",
                    class.link_domain_size,
                    architecture.max_tensor_parallel(class.link_domain_size)
                ),
            });
        }
        Ok(Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            served_model: model.to_owned(),
            variant: Variant { name: dtype.to_owned(), weights, kv: Dtype::Bf16, quality: 1.0, source: None },
            shape: Shape {
                variant: dtype.to_owned(),
                accelerator: accelerator.to_owned(),
                tensor_parallel,
                pipeline_parallel: 1,
                data_parallel: 1,
                expert_parallel: 1,
                role: Role::Mixed,
            },
            architecture,
            accelerator: class,
            engine: EngineConfig::default(),
            speed: 1.0,
            startup: Duration::ZERO,
            max_lora_slots: 8,
            lora_load: Duration::from_millis(300),
            answer: LengthDistribution { mean_tokens: 220.0, p95_tokens: 600.0 },
            max_body_bytes: 32 << 20,
            max_model_len: None,
            needs_room: false,
            seed: 0,
        })
    }

    /// The performance model of the replica, with the context length decided.
    pub(super) fn replica_model(&self) -> Result<ReplicaModel, EngineServerError> {
        let mut architecture = self.architecture.clone();
        if let Some(wanted) = self.max_model_len {
            if wanted == 0 || wanted > architecture.max_context_tokens {
                return Err(EngineServerError::Invalid {
                    field: "max model len",
                    problem: format!(
                        "{wanted} is not between 1 and the {} tokens of {}",
                        architecture.max_context_tokens, architecture.name
                    ),
                });
            }
            architecture.max_context_tokens = wanted;
        }
        let build = |architecture: &ModelArchitecture| {
            ReplicaModel::new(architecture, &self.variant, &self.accelerator, &self.shape, &self.engine)
        };
        let model = match build(&architecture) {
            // The cast saturates; a cache of no token at all stays an error.
            Err(DoesNotFit::KvCache { kv_tokens, .. })
                if self.max_model_len.is_none() && kv_tokens >= 1.0 =>
            {
                architecture.max_context_tokens = kv_tokens as u32;
                tracing::info!(
                    max_model_len = architecture.max_context_tokens,
                    "context shortened to the KV cache"
                );
                build(&architecture)
            }
            other => other,
        };
        model.map_err(|e| EngineServerError::DoesNotFit(Box::new(e)))
    }

    /// Checks what types do not.
    pub(super) fn validate(&self) -> Result<(), EngineServerError> {
        if !(self.speed.is_finite() && self.speed > 0.0) {
            return Err(EngineServerError::Invalid {
                field: "speed",
                problem: format!(
                    "{} is not a positive number of virtual seconds a second, such as 1 or 20",
                    self.speed
                ),
            });
        }
        if self.served_model.is_empty() {
            return Err(EngineServerError::Invalid {
                field: "served model",
                problem: "is empty; give the name that requests carry in \"model\"".to_owned(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("llama-9", "h100", 1, "bf16", "unknown model \"llama-9\"; known: llama-3.2-1b,")]
    #[case("llama-3.1-8b", "h1000", 1, "bf16", "unknown accelerator \"h1000\"; known: ")]
    #[case("llama-3.1-8b", "h100", 1, "bf17", "unknown dtype \"bf17\"; known: fp32, bf16")]
    #[case("llama-3.1-8b", "h100", 3, "bf16", "tensor parallel: 3 does not divide the 32 attention heads")]
    #[case("llama-3.1-8b", "h100", 0, "bf16", "tensor parallel: 0 does not divide")]
    #[case(
        "llama-3.1-8b",
        "l4",
        2,
        "bf16",
        "tensor parallel: 2 is more than the 1 l4 of one node; use up to 1"
    )]
    fn wrong_presets_say_what_there_is(
        #[case] model: &str,
        #[case] accelerator: &str,
        #[case] tp: u32,
        #[case] dtype: &str,
        #[case] expected: &str,
    ) {
        let e = EngineServerConfig::from_presets(model, accelerator, tp, dtype).unwrap_err().to_string();
        assert!(e.starts_with(expected), "{e}");
    }

    #[test]
    fn the_context_is_shortened_to_the_cache_unless_a_length_is_asked_for() {
        let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "l4", 1, "bf16").unwrap();
        let auto = config.replica_model().unwrap();
        assert!(auto.max_context_tokens() < config.architecture.max_context_tokens);
        assert!(f64::from(auto.max_context_tokens()) <= auto.memory().kv_tokens);
        config.max_model_len = Some(8192);
        assert_eq!(config.replica_model().unwrap().max_context_tokens(), 8192);
        config.max_model_len = Some(100_000);
        assert!(matches!(config.replica_model(), Err(EngineServerError::DoesNotFit(_))));
        config.max_model_len = Some(1 << 20);
        assert!(matches!(config.replica_model(), Err(EngineServerError::Invalid { .. })));
    }

    #[test]
    fn speed_must_be_positive() {
        let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
        assert!(config.validate().is_ok());
        config.speed = 0.0;
        assert!(config.validate().unwrap_err().to_string().starts_with("speed: 0"));
    }
}
