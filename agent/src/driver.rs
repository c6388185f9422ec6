//! What an agent asks of an engine, and under which names it answers, by the engine's kind.
//!
//! | | vLLM, simulated | SGLang | llama.cpp | any other OpenAI server |
//! |---|---|---|---|---|
//! | health | `/health` | `/health` | `/health` | `/health`, or the list of models where there is none |
//! | metrics | `vllm:*` | `sglang:*` | `llamacpp:*` | any of these, where there are any |
//! | adapters at run time | `/v1/load_lora_adapter` | none | none | none |
//! | hand-over of KV caches | `kv_transfer_params` | rooms | none | none |
//!
//! A request ends in every one of them when its connection is closed. Hand-overs are
//! [`plimsoll_fleet::HandOverProtocol`]'s.

use plimsoll_fleet::EngineKind;

use crate::adapters::store::CLAIMS;
use crate::adapters::store::source::Source;

/// One kind of engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// vLLM, and the simulated engine, which answers as it does.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
    /// Anything that speaks OpenAI's API.
    OpenAi,
}

/// Where an engine takes adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterPaths {
    /// To load one.
    pub load: &'static str,
    /// To unload one.
    pub unload: &'static str,
}

/// What a line of an engine's metrics tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Requests that run; several lines add up.
    Running,
    /// Requests that wait; several lines add up.
    Waiting,
    /// Share of the KV cache in use; the fullest of several counts.
    KvUsage,
    /// A counter of tokens; several lines add up.
    Tokens,
    /// Adapters in the labels of what they are resident by.
    Adapter,
    /// Adapters in the labels of requests.
    Adapters,
}

/// Health checks of an OpenAI server, in order: one that knows no health is well if it lists its models.
const HEALTH: [&str; 2] = ["/health", "/v1/models"];

impl Driver {
    /// Of an engine of this kind.
    pub fn of(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Vllm | EngineKind::Simulated => Self::Vllm,
            EngineKind::Sglang => Self::Sglang,
            EngineKind::Llamacpp => Self::LlamaCpp,
            EngineKind::External => Self::OpenAi,
        }
    }

    /// Paths that say whether it is well. The next is asked where one does not exist (404).
    pub fn health_paths(self) -> &'static [&'static str] {
        match self {
            Self::Vllm | Self::Sglang | Self::LlamaCpp => &HEALTH[..1],
            Self::OpenAi => &HEALTH,
        }
    }

    /// Where it is told to load and unload adapters while it runs; `None`: it can't be.
    pub fn adapter_paths(self) -> Option<AdapterPaths> {
        match self {
            Self::Vllm => {
                Some(AdapterPaths { load: "/v1/load_lora_adapter", unload: "/v1/unload_lora_adapter" })
            }
            Self::Sglang | Self::LlamaCpp | Self::OpenAi => None,
        }
    }

    /// What an engine is told to load for a source.
    ///
    /// # Errors
    /// Why it can load nothing from there.
    pub fn adapter_path(self, kind: EngineKind, source: &str) -> Result<String, String> {
        // It loads nothing, and takes any name.
        if kind == EngineKind::Simulated {
            return Ok(source.to_owned());
        }
        if let Ok(Source::Claim { claim, path }) = Source::parse(source) {
            return Ok(format!("{CLAIMS}/{claim}/{path}").trim_end_matches('/').to_owned());
        }
        let own = source.strip_prefix("hf://").or_else(|| source.strip_prefix("file://"));
        own.map(str::to_owned).ok_or_else(|| {
            format!(
                "engines cannot fetch {source} themselves; give agents a cache of adapters (agent.adapterCache in the chart), or use a source \
                 such as hf://org/repo"
            )
        })
    }

    /// What a metric of this name tells; `None`: nothing that is asked for.
    pub fn figure(self, name: &str) -> Option<Figure> {
        let (engine, metric) = name.split_once(':')?;
        match (self, engine) {
            (Self::Vllm | Self::OpenAi, "vllm") => vllm(metric),
            (Self::Sglang | Self::OpenAi, "sglang") => sglang(metric),
            (Self::LlamaCpp | Self::OpenAi, "llamacpp") => llamacpp(metric),
            _ => None,
        }
    }
}

fn vllm(metric: &str) -> Option<Figure> {
    Some(match metric {
        "num_requests_running" => Figure::Running,
        "num_requests_waiting" => Figure::Waiting,
        "kv_cache_usage_perc" | "gpu_cache_usage_perc" => Figure::KvUsage,
        "generation_tokens_total" | "prompt_tokens_total" => Figure::Tokens,
        "lora_adapter_loaded" => Figure::Adapter,
        "lora_requests_info" => Figure::Adapters,
        _ => return None,
    })
}

fn sglang(metric: &str) -> Option<Figure> {
    Some(match metric {
        "num_running_reqs" => Figure::Running,
        // Of prefill and decode servers: for a partner, for room, for a transfer.
        "num_queue_reqs"
        | "num_prefill_prealloc_queue_reqs"
        | "num_prefill_inflight_queue_reqs"
        | "num_decode_prealloc_queue_reqs"
        | "num_decode_transfer_queue_reqs" => Figure::Waiting,
        "token_usage" => Figure::KvUsage,
        "generation_tokens_total" | "prompt_tokens_total" => Figure::Tokens,
        _ => return None,
    })
}

fn llamacpp(metric: &str) -> Option<Figure> {
    Some(match metric {
        "requests_processing" => Figure::Running,
        "requests_deferred" => Figure::Waiting,
        "kv_cache_usage_ratio" => Figure::KvUsage,
        "tokens_predicted_total" | "prompt_tokens_total" => Figure::Tokens,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_read_under_its_own_names_alone() {
        let running =
            ["vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"];
        let kinds = [EngineKind::Vllm, EngineKind::Sglang, EngineKind::Llamacpp];
        for (i, kind) in kinds.into_iter().enumerate() {
            for (j, name) in running.into_iter().enumerate() {
                let own = Driver::of(kind).figure(name) == Some(Figure::Running);
                assert_eq!(own, i == j, "{kind:?} {name}");
                assert_eq!(Driver::OpenAi.figure(name), Some(Figure::Running));
            }
        }
        assert_eq!(Driver::of(EngineKind::Simulated), Driver::Vllm);
        assert_eq!(Driver::OpenAi.figure("process_cpu_seconds_total"), None);
        assert_eq!(Driver::OpenAi.figure("vllm:cache_config_info"), None);
    }

    #[test]
    fn only_a_server_that_may_know_no_health_is_asked_for_its_models() {
        for driver in [Driver::Vllm, Driver::Sglang, Driver::LlamaCpp] {
            assert_eq!(driver.health_paths(), ["/health"]);
        }
        assert_eq!(Driver::OpenAi.health_paths(), ["/health", "/v1/models"]);
    }
}
