//! What an engine's command line says of what it runs. Pure.

use k8s_openapi::api::core::v1::Container;
use plimsoll_fleet::{Dtype, EngineKind, Role};

/// What a container's command line says. Flags that are not there have the engine's own defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandLine {
    /// Which engine.
    pub engine: EngineKind,
    /// The model as it is given to the engine: a repository, a folder or a file (empty: not said).
    pub model: String,
    /// Tensor-parallel degree (`None`: not said).
    pub tensor: Option<u32>,
    /// Pipeline-parallel degree (`None`: not said).
    pub pipeline: Option<u32>,
    /// Data-parallel copies (`None`: not said).
    pub data: Option<u32>,
    /// Number format of the weights, where flags or the model's name tell it (`None`: that of the checkpoint).
    pub weights: Option<Dtype>,
    /// Phases it serves.
    pub role: Role,
}

/// Reads a container's command line; `None` if it is no engine that Plimsoll knows.
pub fn read(container: &Container) -> Option<CommandLine> {
    let words = words(container);
    let engine = engine(&words, container.image.as_deref().unwrap_or_default())?;
    let number = |names: &[&str]| value(&words, names).and_then(|v| v.parse::<u32>().ok()).filter(|n| *n > 0);
    let model = match engine {
        EngineKind::Llamacpp => {
            value(&words, &["-m", "--model", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"])
        }
        EngineKind::Sglang => value(&words, &["--model-path", "--model"]),
        _ => value(&words, &["--model"]).or_else(|| served(&words)),
    }
    .unwrap_or_default();
    let weights = stated_weights(&words).or_else(|| weights_of_name(model)).or_else(|| compute_dtype(&words));
    let connector = value(&words, &["--kv-transfer-config"])
        .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let hands_over = connector.as_ref().and_then(|c| c["kv_role"].as_str());
    let role = match value(&words, &["--disaggregation-mode"]).or(hands_over) {
        Some("prefill" | "kv_producer") => Role::Prefill,
        Some("decode" | "kv_consumer") => Role::Decode,
        _ => Role::Mixed,
    };
    Some(CommandLine {
        engine,
        model: model.to_owned(),
        tensor: number(&["--tensor-parallel-size", "-tp", "--tp", "--tp-size"]),
        pipeline: number(&["--pipeline-parallel-size", "-pp", "--pp", "--pp-size"]),
        data: number(&["--data-parallel-size", "-dp", "--dp", "--dp-size"]),
        weights,
        role,
    })
}

/// The words of command and arguments, scripts given to a shell taken apart, and variables of the container's own
/// environment put in.
fn words(container: &Container) -> Vec<String> {
    let given = container.command.iter().flatten().chain(container.args.iter().flatten());
    let given: Vec<String> = given.map(|word| expand(word, container)).collect();
    let is_shell = |w: &String| matches!(w.rsplit('/').next(), Some("sh" | "bash" | "ash" | "dash"));
    // `sh -c SCRIPT` and its like; words elsewhere may hold spaces of their own.
    let script = given.first().is_some_and(is_shell);
    given
        .into_iter()
        .flat_map(|word| if script && word.contains(char::is_whitespace) { split(&word) } else { vec![word] })
        .collect()
}

/// Puts in `$(NAME)`, `${NAME}` and `$NAME` where the container sets NAME to a literal value.
fn expand(word: &str, container: &Container) -> String {
    let mut text = word.to_owned();
    if !text.contains('$') {
        return text;
    }
    let mut variables: Vec<(&str, &str)> =
        container.env.iter().flatten().filter_map(|v| Some((v.name.as_str(), v.value.as_deref()?))).collect();
    // `$MODEL_NAME` is not `$MODEL` followed by `_NAME`.
    variables.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in variables {
        for form in [format!("$({name})"), format!("${{{name}}}"), format!("${name}")] {
            text = text.replace(&form, value);
        }
    }
    text
}

/// Splits a script into words as a shell would, as far as quotes and line continuations go.
fn split(script: &str) -> Vec<String> {
    let (mut words, mut word, mut open, mut quote) = (Vec::new(), String::new(), false, None);
    let mut letters = script.chars();
    while let Some(c) = letters.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                open = true;
            }
            (None | Some('"'), '\\') => match letters.next() {
                None | Some('\n') => {}
                Some(next) => {
                    word.push(next);
                    open = true;
                }
            },
            (None, c) if c.is_whitespace() || c == ';' => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            _ => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

fn engine(words: &[String], image: &str) -> Option<EngineKind> {
    let is_program = |w: &str, name: &str| w.rsplit('/').next() == Some(name);
    let says = |test: &dyn Fn(&str) -> bool| words.iter().any(|w| test(w));
    if says(&|w| is_program(w, "vllm") || w.starts_with("vllm.")) {
        return Some(EngineKind::Vllm);
    }
    if says(&|w| is_program(w, "sglang") || w.starts_with("sglang.")) {
        return Some(EngineKind::Sglang);
    }
    if says(&|w| is_program(w, "llama-server") || is_program(w, "llama.cpp")) {
        return Some(EngineKind::Llamacpp);
    }
    // The image's own entry point is not in the pod.
    [("vllm", EngineKind::Vllm), ("sglang", EngineKind::Sglang), ("llama.cpp", EngineKind::Llamacpp)]
        .into_iter()
        .find(|(name, _)| image.to_lowercase().contains(name))
        .map(|(_, kind)| kind)
}

/// The value of the first flag of these names, as `--flag value` or `--flag=value`; `-` and `_` are one.
fn value<'a>(words: &'a [String], names: &[&str]) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(i, word)| {
        let (flag, inline) = word.split_once('=').map_or((word.as_str(), None), |(f, v)| (f, Some(v)));
        if !flag.starts_with('-') || !names.contains(&flag.replace('_', "-").as_str()) {
            return None;
        }
        inline.or_else(|| words.get(i + 1).map(String::as_str).filter(|v| !v.starts_with("--")))
    })
}

/// `vllm serve MODEL`.
fn served(words: &[String]) -> Option<&str> {
    let at = words.iter().position(|w| w == "serve")?;
    words.get(at + 1).map(String::as_str).filter(|w| !w.starts_with('-'))
}

fn stated_weights(words: &[String]) -> Option<Dtype> {
    weights_of_method(value(words, &["--quantization", "-q"])?)
}

/// Number format by the name of a quantisation method of vLLM or SGLang.
fn weights_of_method(method: &str) -> Option<Dtype> {
    let method = method.to_lowercase().replace('-', "_");
    match method.as_str() {
        "awq" | "awq_marlin" | "gptq" | "gptq_marlin" | "marlin" | "bitsandbytes" | "w4afp8"
        | "moe_wna16" => Some(Dtype::Int4),
        "fp8" | "fbgemm_fp8" | "ptpc_fp8" | "w8a8_fp8" | "modelopt" | "modelopt_fp8" => Some(Dtype::Fp8),
        "w8a8_int8" | "experts_int8" | "blockwise_int8" => Some(Dtype::Int8),
        "modelopt_fp4" | "nvfp4" | "mxfp4" | "petit_nvfp4" => Some(Dtype::Fp4),
        _ => None,
    }
}

/// Number format by the name of a checkpoint or file, such as `Llama-3.1-8B-Instruct-AWQ-INT4` or `x-Q4_K_M.gguf`.
fn weights_of_name(name: &str) -> Option<Dtype> {
    let name = name.to_lowercase();
    let parts: Vec<&str> = name.split(['-', '.', '/', ':', ' ']).collect();
    let any = |forms: &[&str]| parts.iter().any(|p| forms.contains(p));
    let begins = |forms: &[&str]| parts.iter().any(|p| forms.iter().any(|f| p.starts_with(f)));
    if any(&["nvfp4", "mxfp4", "fp4"]) {
        Some(Dtype::Fp4)
    } else if any(&["awq", "gptq", "int4", "w4a16", "4bit"]) || begins(&["q4_", "iq4_"]) {
        Some(Dtype::Int4)
    } else if any(&["int8", "w8a8", "w8a16", "8bit"]) || begins(&["q8_"]) {
        Some(Dtype::Int8)
    } else if any(&["fp8"]) {
        Some(Dtype::Fp8)
    } else if any(&["bf16"]) {
        Some(Dtype::Bf16)
    } else if any(&["f16", "fp16"]) {
        Some(Dtype::Fp16)
    } else {
        None
    }
}

fn compute_dtype(words: &[String]) -> Option<Dtype> {
    match value(words, &["--dtype"])?.to_lowercase().as_str() {
        "bfloat16" | "bf16" => Some(Dtype::Bf16),
        "float16" | "half" | "fp16" => Some(Dtype::Fp16),
        "float32" | "float" | "fp32" => Some(Dtype::Fp32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn container(image: &str, command: &[&str], args: &[&str]) -> Container {
        serde_json::from_value(json!({
            "name": "engine", "image": image, "command": command, "args": args,
            "env": [{"name": "MODEL", "value": "Qwen/Qwen3-32B"}, {"name": "MODEL_TP", "value": "4"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        }))
        .unwrap()
    }

    type Said = (EngineKind, &'static str, Option<u32>, Option<u32>, Option<u32>, Option<Dtype>);

    #[rstest]
    #[case("vllm/vllm-openai:v0.11.0", &[], &["--model", "meta-llama/Llama-3.1-70B-Instruct", "--tensor-parallel-size=4"],
        (EngineKind::Vllm, "meta-llama/Llama-3.1-70B-Instruct", Some(4), None, None, None))]
    #[case("registry/mine:1", &["vllm", "serve", "m/M-FP8"], &["-tp", "2", "-pp", "2", "--dtype", "bfloat16"],
        (EngineKind::Vllm, "m/M-FP8", Some(2), Some(2), None, Some(Dtype::Fp8)))]
    #[case("x", &["python3", "-m", "vllm.entrypoints.openai.api_server"], &["--model=$(MODEL)", "--tensor_parallel_size", "$(MODEL_TP)", "--quantization", "awq_marlin"],
        (EngineKind::Vllm, "Qwen/Qwen3-32B", Some(4), None, None, Some(Dtype::Int4)))]
    #[case("x", &["/bin/sh", "-c"], &["ulimit -n 65535; exec vllm serve \"$MODEL\" \\\n --tensor-parallel-size $MODEL_TP \\\n --hf-overrides '{\"a\": 1}' --data-parallel-size 2"],
        (EngineKind::Vllm, "Qwen/Qwen3-32B", Some(4), None, Some(2), None))]
    #[case("lmsysorg/sglang:v0.5.4", &["python3", "-m", "sglang.launch_server"], &["--model-path", "m/M", "--tp-size", "8", "--dp", "2", "--dtype", "half"],
        (EngineKind::Sglang, "m/M", Some(8), None, Some(2), Some(Dtype::Fp16)))]
    #[case("ghcr.io/ggml-org/llama.cpp:server-cuda", &[], &["-m", "/models/x-7b-Q4_K_M.gguf", "--port", "8080"],
        (EngineKind::Llamacpp, "/models/x-7b-Q4_K_M.gguf", None, None, None, Some(Dtype::Int4)))]
    fn command_lines_are_read(
        #[case] image: &str,
        #[case] command: &[&str],
        #[case] args: &[&str],
        #[case] said: Said,
    ) {
        let line = read(&container(image, command, args)).unwrap();
        assert_eq!(
            (line.engine, line.model.as_str(), line.tensor, line.pipeline, line.data, line.weights),
            said
        );
    }

    #[test]
    fn what_is_no_engine_is_none() {
        assert_eq!(read(&container("pytorch:2", &["python", "train.py"], &["--model", "x"])), None);
        assert_eq!(read(&Container::default()), None);
        let decode = read(&container("sglang", &[], &["--disaggregation-mode", "decode"])).unwrap();
        assert_eq!((decode.role, decode.model.as_str()), (Role::Decode, ""));
        // A flag at the end, or followed by another, has no value.
        let odd = read(&container("vllm", &[], &["--tensor-parallel-size", "--model"])).unwrap();
        assert_eq!((odd.tensor, odd.model.as_str()), (None, ""));
        let zero = read(&container("vllm", &[], &["--tensor-parallel-size", "0", "--quantization", "new"]));
        assert_eq!(zero.map(|l| (l.tensor, l.weights)), Some((None, None)));
    }
}
