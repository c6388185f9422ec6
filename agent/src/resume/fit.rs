//! Which requests can be answered by two engines, one after the other.

use serde_json::{Map, Value, json};

use super::Unfit;

/// Members with which an answer cannot be split, beyond those whose harmless values [`unfit_member`] knows.
const NEVER: [&str; 17] = [
    "seed",
    "functions",
    "function_call",
    "prompt_logprobs",
    "structured_outputs",
    "structural_tag",
    "json_schema",
    "grammar",
    "regex",
    "ebnf",
    "suffix",
    "echo",
    "use_beam_search",
    "truncate_prompt_tokens",
    "prompt_embeds",
    "return_token_ids",
    "audio",
];

/// The first member that asks for something that two engines cannot give together.
pub(super) fn unfit_member(request: &Map<String, Value>) -> Option<Unfit> {
    let set = |key: &str| request.get(key).filter(|v| !v.is_null() && **v != false);
    let unfit = NEVER.into_iter().find(|key| set(key).is_some());
    let unfit = unfit.or_else(|| {
        let is = |key: &'static str, harmless: &dyn Fn(&Value) -> bool| {
            set(key).filter(|v| !harmless(v)).map(|_| key)
        };
        is("best_of", &|v| *v == 1)
            .or_else(|| is("tools", &|v| v.as_array().is_some_and(Vec::is_empty)))
            .or_else(|| is("tool_choice", &|v| v == "none"))
            .or_else(|| is("logprobs", &|_| false))
            .or_else(|| is("top_logprobs", &|v| *v == 0))
            .or_else(|| is("response_format", &|v| v["type"] == "text"))
            .or_else(|| is("modalities", &|v| *v == json!(["text"])))
            .or_else(|| (request.get("include_reasoning")? == false).then_some("include_reasoning"))
    });
    let guided = || request.iter().any(|(key, v)| key.starts_with("guided_") && !v.is_null());
    unfit.or_else(|| guided().then_some("guided_*")).map(Unfit::Member)
}

/// Whether the text ends with the beginning of a stop string.
pub(super) fn ends_within(text: &str, stop: Option<&Value>) -> bool {
    let within = |stop: &str| stop.char_indices().skip(1).any(|(i, _)| text.ends_with(&stop[..i]));
    match stop {
        Some(Value::String(stop)) => within(stop),
        Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).any(within),
        _ => false,
    }
}
