//! Metrics text of engines, under every driver.

use super::{Dice, fuzz};
use crate::adapters::tend::adapters_of;
use crate::driver::Driver;
use crate::scrape::{EngineMetrics, parse};

const DRIVERS: [Driver; 4] = [Driver::Vllm, Driver::Sglang, Driver::LlamaCpp, Driver::OpenAi];
const WORDS: [&str; 28] = [
    "{\"data\":[{\"id\":\"a\",\"parent\":\"m\"}]}",
    "\"parent\":null",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:lora_requests_info",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:token_usage",
    "sglang:generation_tokens_total",
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:tokens_predicted_total",
    "running_lora_adapters=\"a,b\"",
    "waiting_lora_adapters=\"\"",
    "max_lora=\"2\"",
    "{",
    "}",
    "{}",
    "=\"",
    "\\\"",
    " 1.0\n",
    " NaN",
    " +Inf",
    "# HELP ",
    " 1.7961257097877727e+09",
];

fn sound(m: &EngineMetrics) {
    for figure in [m.running, m.waiting, m.kv_usage, m.token_counter].into_iter().flatten() {
        assert!(figure.is_finite(), "{m:?}");
    }
    let mut sorted = m.adapters.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, m.adapters);
    assert!(m.adapters.iter().all(|a| !a.is_empty()), "{m:?}");
}

fn check(text: &[u8], dice: &mut Dice) {
    if let (Some(held), Ok(list)) = (adapters_of(text), serde_json::from_slice::<serde_json::Value>(text)) {
        let ids: Vec<_> = list["data"].as_array().unwrap().iter().filter_map(|m| m["id"].as_str()).collect();
        assert!(held.iter().all(|name| ids.contains(&name.as_str())));
    }
    let text = String::from_utf8_lossy(text);
    let driver = dice.of(&DRIVERS);
    let read = parse(driver, &text);
    sound(&read);
    // Comments, blank lines and other programs' metrics say nothing.
    let mut padded = String::from("# TYPE x gauge\n\nprocess_cpu_seconds_total 3\n");
    for line in text.lines() {
        padded.push_str(line);
        padded.push_str("\n \nother:num_requests_running 7\n");
    }
    assert_eq!(parse(driver, &padded), read);
}

#[test]
fn metrics_of_engines() {
    fuzz("metrics", &WORDS, check);
}

/// Text as an engine writes it, of figures that are known.
#[test]
fn what_an_engine_writes_is_what_is_read() {
    let count = super::setting("PLIMSOLL_FUZZ_COUNT").unwrap_or(super::FEW);
    for number in 0..count {
        let dice = &mut Dice::new(number);
        let ranks = 1 + dice.below(3);
        let name = dice.of(&["m", "a\\\\b", "x\\\"y}", "{", "é, running_lora_adapters=\\\"z\\\""]);
        let mut text = String::new();
        let mut expected = EngineMetrics::default();
        for rank in 0..ranks {
            let labels = format!("{{engine=\"{rank}\",model_name=\"{name}\"}}");
            let mut line = |metric: &str, slot: &mut Option<f64>, sum: bool, dice: &mut Dice| {
                if dice.one_in(5) {
                    text.push_str(&format!("vllm:{metric}{labels} NaN\n"));
                    return;
                }
                let value = dice.below(1000) as f64 / 8.0;
                let written =
                    if dice.one_in(2) { format!("{value:?}") } else { format!("{value:e} 1796125709000") };
                text.push_str(&format!("# HELP vllm:{metric} what it is\nvllm:{metric}{labels} {written}\n"));
                let before = slot.unwrap_or(0.0);
                *slot = Some(if sum { before + value } else { before.max(value) });
            };
            line("num_requests_running", &mut expected.running, true, dice);
            line("num_requests_waiting", &mut expected.waiting, true, dice);
            line("kv_cache_usage_perc", &mut expected.kv_usage, false, dice);
            line("generation_tokens_total", &mut expected.token_counter, true, dice);
            line("prompt_tokens_total", &mut expected.token_counter, true, dice);
        }
        assert_eq!(parse(Driver::Vllm, &text), expected, "{number}: {text}");
        assert_eq!(parse(Driver::Sglang, &text), EngineMetrics::default());
    }
}
