//! Engine metrics under each engine's own names ([`Driver`]). What is absent stays unknown; it is never zero.

use crate::driver::{Driver, Figure};

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EngineMetrics {
    /// Running requests.
    pub running: Option<f64>,
    /// Waiting requests.
    pub waiting: Option<f64>,
    /// Share of KV cache in use, 0–1.
    pub kv_usage: Option<f64>,
    /// Sum of its counters of tokens: changes whenever it works.
    pub token_counter: Option<f64>,
    /// Adapters of requests under way, and those resident as far as its metrics say.
    pub adapters: Vec<String>,
}

/// Reads Prometheus text. Lines it does not understand are passed over; figures that are not numbers stay unknown.
pub fn parse(driver: Driver, text: &str) -> EngineMetrics {
    let mut m = EngineMetrics::default();
    let mut adapters: Vec<String> = Vec::new();
    // Lines of adapters in requests are never taken back; the value is the time at which each was true.
    let mut in_requests: (f64, Vec<String>) = (f64::NEG_INFINITY, Vec::new());
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, labels, rest) = match line.split_once('{') {
            Some((name, rest)) => match rest.rsplit_once('}') {
                Some((labels, value)) => (name, labels, value),
                None => continue,
            },
            None => match line.split_once(char::is_whitespace) {
                Some((name, value)) => (name, "", value),
                None => continue,
            },
        };
        let Some(value) = rest.split_whitespace().next().and_then(|v| v.parse::<f64>().ok()) else {
            continue;
        };
        if !value.is_finite() {
            continue;
        }
        let add = |slot: &mut Option<f64>| *slot = Some(slot.unwrap_or(0.0) + value);
        match driver.figure(name) {
            Some(Figure::Running) => add(&mut m.running),
            Some(Figure::Waiting) => add(&mut m.waiting),
            // Several data-parallel ranks: the fullest counts.
            Some(Figure::KvUsage) => m.kv_usage = Some(m.kv_usage.unwrap_or(0.0).max(value)),
            Some(Figure::Tokens) => add(&mut m.token_counter),
            Some(Figure::Adapter) if value > 0.0 => {
                let name = label(labels, "lora_name").or_else(|| label(labels, "adapter"));
                adapters.extend(name.filter(|name| !name.is_empty()));
            }
            Some(Figure::Adapters) if value >= in_requests.0 => {
                let lists = ["running_lora_adapters", "waiting_lora_adapters"].map(|key| label(labels, key));
                let names = lists.iter().flatten().flat_map(|list| list.split(',')).map(str::trim);
                in_requests = (value, names.filter(|name| !name.is_empty()).map(str::to_owned).collect());
            }
            Some(Figure::Adapter | Figure::Adapters) | None => {}
        }
    }
    adapters.extend(in_requests.1);
    adapters.sort_unstable();
    adapters.dedup();
    m.adapters = adapters;
    m
}

fn label(labels: &str, key: &str) -> Option<String> {
    let mut rest = labels;
    while let Some(eq) = rest.find("=\"") {
        let name = rest[..eq].trim_start_matches([',', ' ']);
        let mut value = String::new();
        let mut chars = rest[eq + 2..].char_indices();
        let mut end = None;
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, other)) => value.push(other),
                    None => return None,
                },
                '"' => {
                    end = Some(eq + 2 + i + 1);
                    break;
                }
                _ => value.push(c),
            }
        }
        if name == key {
            return end.map(|_| value);
        }
        rest = &rest[end?..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case(
        "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 3.0\nvllm:num_requests_waiting{a=\"}\"} 2\nvllm:kv_cache_usage_perc 0.5\nvllm:generation_tokens_total{} 1e3 1700000000"
    )]
    #[case(
        "# HELP x\nsglang:num_running_reqs 3\nsglang:num_queue_reqs 2\nsglang:token_usage 0.5\nsglang:generation_tokens_total 1000"
    )]
    #[case(
        "llamacpp:requests_processing 3\nllamacpp:requests_deferred 2\nllamacpp:kv_cache_usage_ratio 0.5\nllamacpp:tokens_predicted_total 1000\n"
    )]
    fn three_engines_say_the_same(#[case] text: &str) {
        let m = parse(Driver::OpenAi, text);
        assert_eq!(
            (m.running, m.waiting, m.kv_usage, m.token_counter),
            (Some(3.0), Some(2.0), Some(0.5), Some(1000.0))
        );
    }

    #[test]
    fn absence_and_nan_are_unknown() {
        assert_eq!(parse(Driver::OpenAi, "vllm:num_requests_running NaN\nother 3\n").running, None);
        assert_eq!(parse(Driver::OpenAi, ""), EngineMetrics::default());
    }

    #[test]
    fn adapters_are_read_from_labels() {
        let m = parse(
            Driver::Vllm,
            "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"b, a\",waiting_lora_adapters=\"\"} 1.7e9\nvllm:lora_adapter_loaded{lora_name=\"c\\\"d\",level=\"gpu\"} 1",
        );
        assert_eq!(m.adapters, ["a", "b", "c\"d"]);
    }

    #[test]
    fn of_adapters_in_requests_the_latest_word_counts() {
        // As vLLM says it: one line for each set that there ever was.
        let line = |running: &str, at: &str| {
            format!(
                "vllm:lora_requests_info{{max_lora=\"2\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"\"}} {at}\n"
            )
        };
        let lines = [
            line("red", "1.7961257096637504e+09"),
            line("", "1.7961257097877727e+09"),
            line("blue", "1.796125709783102e+09"),
        ];
        assert!(parse(Driver::Vllm, &lines.concat()).adapters.is_empty());
        assert_eq!(parse(Driver::Vllm, &lines[..1].concat()).adapters, ["red"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~\\n]{0,300}") { let _ = parse(Driver::OpenAi, &text); }
    }
}
