//! One request: sent, its stream read to the end, timed at arrival.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use tokio::time::Instant;

use super::ProfileError;
use crate::replay::http::{Target, with_causes};
use crate::replay::measure::{Choice, Event, MAX_ERROR_BYTES, Usage, excerpt, is_plain_token};
use crate::sse::SseParser;

/// What was seen of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Answer {
    /// To the first token, milliseconds.
    pub(super) ttft_ms: f64,
    /// To the last, milliseconds.
    pub(super) e2e_ms: f64,
    /// Pieces of text that came.
    pub(super) events: u64,
    /// Whether token counts are the endpoint's own.
    pub(super) usage: bool,
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
}

impl Answer {
    /// Mean time per token after the first, milliseconds. Where a piece holds several tokens, so does the first: the time
    /// is then taken from piece to piece.
    pub(super) fn tpot_ms(&self) -> Option<f64> {
        if self.events < 2 || self.output_tokens < 2 {
            return None;
        }
        let per_piece = self.output_tokens as f64 / self.events as f64;
        Some((self.e2e_ms - self.ttft_ms) / ((self.events - 1) as f64 * per_piece))
    }
}

/// What a stream has shown so far.
#[derive(Default)]
pub(super) struct Reading {
    first: Option<Instant>,
    last: Option<Instant>,
    events: u64,
    usage: Option<Usage>,
    done: bool,
}

impl Reading {
    pub(super) fn event(&mut self, data: &str, now: Instant) -> Result<(), ProfileError> {
        if self.done {
            return Ok(());
        }
        if self.first.is_some() && is_plain_token(data) {
            self.events += 1;
            self.last = Some(now);
            return Ok(());
        }
        if data.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Event = serde_json::from_str(data).map_err(|e| ProfileError::Broken {
            kind: "an event that cannot be read",
            detail: format!("{e} in {}", excerpt(data)),
        })?;
        if let Some(error) = event.error.filter(|e| !e.is_null()) {
            return Err(ProfileError::Broken {
                kind: "error in the stream",
                detail: excerpt(&error.to_string()),
            });
        }
        if event.choices.iter().any(Choice::has_token) {
            // The last event often brings the reason for the end and no text.
            self.events += u64::from(event.choices.iter().any(Choice::has_text));
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
        self.usage = event.usage.or(self.usage);
        Ok(())
    }

    pub(super) fn answer(&self, sent: Instant) -> Result<Answer, ProfileError> {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            let detail = "the stream ended without a token".to_owned();
            return Err(ProfileError::Broken { kind: "empty answer", detail });
        };
        if !self.done {
            let detail = format!("no [DONE] after {} pieces", self.events);
            return Err(ProfileError::Broken { kind: "the stream was cut off", detail });
        }
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let usage = self.usage.unwrap_or_default();
        let counted = usage.completion_tokens > 0;
        Ok(Answer {
            ttft_ms: ms(first - sent),
            e2e_ms: ms(last - sent),
            events: self.events.max(1),
            usage: counted,
            input_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0),
            output_tokens: if counted { usage.completion_tokens } else { self.events.max(1) },
        })
    }
}

/// Sends a request and reads its answer.
pub(super) async fn exchange(target: &Target, body: Bytes) -> Result<Answer, ProfileError> {
    let sent = Instant::now();
    let response = target.generate(body).await.map_err(|e| ProfileError::Broken {
        kind: if e.is_connect() { "cannot connect" } else { "the connection was lost" },
        detail: with_causes(&e),
    })?;
    let status = response.status();
    if !status.is_success() {
        let detail = match Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await {
            Ok(body) => excerpt(&String::from_utf8_lossy(&body.to_bytes())),
            Err(e) => e.to_string(),
        };
        return Err(ProfileError::Refused { status: status.as_u16(), detail });
    }
    let content_type = response.headers().get(http::header::CONTENT_TYPE);
    let content_type = content_type.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if content_type.starts_with("application/json") {
        return Err(ProfileError::NoStream { content_type });
    }
    let mut body = response.into_body();
    let mut parser = SseParser::default();
    let mut reading = Reading::default();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| ProfileError::Broken { kind: "the stream was cut off", detail: with_causes(&e) })?;
        let Some(data) = frame.data_ref() else { continue };
        let now = Instant::now();
        let mut problem = None;
        parser
            .feed(data, |event| {
                if problem.is_none() {
                    problem = reading.event(event, now).err();
                }
            })
            .map_err(|e| ProfileError::Broken {
                kind: "an event that cannot be read",
                detail: e.to_string(),
            })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
    }
    reading.answer(sent)
}
