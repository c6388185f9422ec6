//! One request: sent, read to its end, timed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::http::{Target, with_causes};
use super::prompt::prompt;
use super::{OutputLength, ReplayConfig, ReplayEndpoint};
use crate::sse::SseParser;
use crate::trace::TraceRequest;

/// Most of an error answer that is read, bytes.
pub(crate) const MAX_ERROR_BYTES: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// What errors are counted by: few different values.
    pub(super) kind: String,
    /// What was said.
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn new(kind: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: kind.into(), detail: detail.into() }
    }
}

/// What was measured of a request that ended well, wall milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Measured {
    pub(super) ttft_ms: f64,
    /// `None` for an answer of one token.
    pub(super) tpot_ms: Option<f64>,
    pub(super) e2e_ms: f64,
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Answered(Measured),
    Failed(Failure),
}

/// A request's record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestRecord {
    /// How late it left, wall milliseconds.
    pub(super) lag_ms: f64,
    pub(super) outcome: Outcome,
}

impl RequestRecord {
    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Outcome::Failed(failure) => Some(failure),
            Outcome::Answered(_) => None,
        }
    }
}

/// The part of the configuration that a request needs.
#[derive(Clone)]
pub(super) struct PerRequest {
    model: String,
    endpoint: ReplayEndpoint,
    output_length: OutputLength,
    max_input_tokens: Option<u32>,
    seed: u64,
    timeout: Duration,
}

impl ReplayConfig {
    pub(super) fn clone_for_request(&self) -> PerRequest {
        PerRequest {
            model: self.model.clone(),
            endpoint: self.endpoint,
            output_length: self.output_length,
            max_input_tokens: self.max_input_tokens,
            seed: self.seed,
            timeout: self.timeout,
        }
    }
}

fn body(config: &PerRequest, request: &TraceRequest, index: u64) -> Bytes {
    let text = prompt(request, index, config.endpoint, config.max_input_tokens, config.seed);
    let mut body = json!({
        "model": config.model,
        "max_tokens": request.output_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    match config.endpoint {
        ReplayEndpoint::Chat => body["messages"] = json!([{"role": "user", "content": text}]),
        ReplayEndpoint::Completions => body["prompt"] = json!(text),
    }
    if config.output_length == OutputLength::Exact {
        body["ignore_eos"] = json!(true);
    }
    Bytes::from(body.to_string())
}

/// Sends a request and reads its answer.
pub(super) async fn measure(
    target: Target,
    config: PerRequest,
    request: TraceRequest,
    index: u64,
    lag_ms: f64,
) -> RequestRecord {
    let body = body(&config, &request, index);
    let outcome = match tokio::time::timeout(config.timeout, exchange(&target, body)).await {
        Ok(Ok(measured)) => Outcome::Answered(measured),
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(_) => {
            Outcome::Failed(Failure::new("timeout", format!("no whole answer within {:?}", config.timeout)))
        }
    };
    RequestRecord { lag_ms, outcome }
}

#[derive(Deserialize)]
pub(crate) struct Event {
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
pub(crate) struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize, Serialize, Default, Clone, Copy)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize, Serialize, Default, Clone, Copy)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: Option<u64>,
}

impl Choice {
    /// Whether it brings text, or the end.
    pub(crate) fn has_token(&self) -> bool {
        self.has_text() || self.finish_reason.is_some()
    }

    /// Whether it brings text.
    pub(crate) fn has_text(&self) -> bool {
        let filled = |s: &Option<String>| s.as_ref().is_some_and(|s| !s.is_empty());
        filled(&self.text)
            || self.delta.as_ref().is_some_and(|d| filled(&d.content) || filled(&d.reasoning_content))
    }
}

/// What a stream has shown so far.
#[derive(Default)]
struct Reading {
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
    usage: Option<Usage>,
    done: bool,
    failure: Option<Failure>,
}

impl Reading {
    fn event(&mut self, data: &str, now: Instant) {
        if self.done || self.failure.is_some() {
            return;
        }
        if self.first.is_some() && is_plain_token(data) {
            self.tokens += 1;
            self.last = Some(now);
            return;
        }
        if data.trim() == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Event = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(e) => {
                self.failure = Some(Failure::new("malformed event", format!("{e} in {}", excerpt(data))));
                return;
            }
        };
        if let Some(error) = event.error.filter(|e| !e.is_null()) {
            self.failure = Some(Failure::new("error in stream", excerpt(&error.to_string())));
            return;
        }
        if event.choices.iter().any(Choice::has_token) {
            self.tokens += 1;
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
        self.usage = event.usage.or(self.usage);
    }
}

/// Whether an event certainly is one more token in the middle of an answer, told without parsing it: most
/// events are.
pub(crate) fn is_plain_token(data: &str) -> bool {
    let text = data.split_once("\"content\":\"").or_else(|| data.split_once("\"text\":\""));
    text.is_some_and(|(_, text)| !text.starts_with('"'))
        && data.contains("\"finish_reason\":null")
        && data.ends_with("}]}")
        && !data.contains("\"error\"")
}

async fn exchange(target: &Target, body: Bytes) -> Result<Measured, Failure> {
    let sent = Instant::now();
    let response = target.generate(body).await.map_err(|e| {
        let kind = if e.is_connect() { "connection refused" } else { "connection lost before the answer" };
        Failure::new(kind, with_causes(&e))
    })?;
    let status = response.status();
    if !status.is_success() {
        let text = match Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await {
            Ok(body) => excerpt(&String::from_utf8_lossy(&body.to_bytes())),
            Err(e) => e.to_string(),
        };
        return Err(Failure::new(format!("HTTP {}", status.as_u16()), text));
    }
    let mut body = response.into_body();
    let mut parser = SseParser::default();
    let mut reading = Reading::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::new("stream cut off", with_causes(&e)))?;
        let Some(data) = frame.data_ref() else { continue };
        let now = Instant::now();
        parser
            .feed(data, |event| reading.event(event, now))
            .map_err(|e| Failure::new("malformed event", e.to_string()))?;
        if let Some(failure) = reading.failure.take() {
            return Err(failure);
        }
    }
    let (Some(first), Some(last)) = (reading.first, reading.last) else {
        return Err(Failure::new("empty answer", "the stream ended without a token"));
    };
    if !reading.done {
        return Err(Failure::new("stream cut off", format!("no [DONE] after {} events", reading.tokens)));
    }
    let usage = reading.usage.unwrap_or_default();
    let output_tokens = if usage.completion_tokens > 0 { usage.completion_tokens } else { reading.tokens };
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    Ok(Measured {
        ttft_ms: ms(first - sent),
        tpot_ms: (output_tokens > 1).then(|| ms(last - first) / (output_tokens - 1) as f64),
        e2e_ms: ms(last - sent),
        input_tokens: usage.prompt_tokens,
        cached_tokens: usage.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0),
        output_tokens,
    })
}

pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certain_events_are_taken_unparsed() {
        let chunk = |delta: &str, rest: &str| {
            format!("{{\"id\":\"x\",\"choices\":[{{\"index\":0,{delta},{rest}}}]}}")
        };
        let none = "\"finish_reason\":null";
        assert!(is_plain_token(&chunk("\"delta\":{\"content\":\"a\"}", none)));
        assert!(is_plain_token(&chunk("\"text\":\"a\"", none)));
        assert!(!is_plain_token(&chunk("\"delta\":{\"content\":\"\"}", none)));
        assert!(!is_plain_token(&chunk("\"delta\":{\"content\":\"a\"}", "\"finish_reason\":\"stop\"")));
        assert!(!is_plain_token("[DONE]"));
        assert!(!is_plain_token(
            "{\"error\":{\"message\":\"x\"},\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}"
        ));
        assert!(!is_plain_token("{\"choices\":[],\"usage\":{}}"));
    }
}
