//! Events of a stream, as far as continuing it needs them.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::sse::Usage;

/// What a stream calls itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Name {
    pub(super) id: Option<String>,
    pub(super) created: Option<Value>,
    pub(super) model: Option<String>,
    pub(super) object: Option<String>,
    pub(super) system_fingerprint: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Option<Vec<Choice>>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(super) error: Option<Value>,
    #[serde(default)]
    pub(super) object: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: u64,
    #[serde(default)]
    pub(super) delta: Option<Delta>,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    #[serde(default)]
    pub(super) logprobs: Option<IgnoredAny>,
}

#[derive(Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    pub(super) role: Option<String>,
    #[serde(default)]
    pub(super) content: Option<String>,
    #[serde(default)]
    pub(super) reasoning: Option<String>,
    #[serde(default)]
    pub(super) reasoning_content: Option<String>,
    #[serde(default)]
    pub(super) refusal: Option<String>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    pub(super) function_call: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) audio: Option<IgnoredAny>,
}

impl Choice {
    /// Whether it is the only one and has nothing but text.
    pub(super) fn plain(&self) -> bool {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        self.index == 0
            && self.logprobs.is_none()
            && self.delta.as_ref().is_none_or(|d| {
                !some(&d.reasoning)
                    && !some(&d.reasoning_content)
                    && !some(&d.refusal)
                    && d.tool_calls.as_ref().is_none_or(Vec::is_empty)
                    && d.function_call.is_none()
                    && d.audio.is_none()
            })
    }

    pub(super) fn shown(&self) -> &str {
        let delta = self.delta.as_ref().and_then(|d| d.content.as_deref());
        delta.or(self.text.as_deref()).unwrap_or_default()
    }
}

/// The data of an event's lines.
pub(super) fn data_of(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    event.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"data:")).map(<[u8]>::trim_ascii)
}

/// Whether what is left of a stream that ended is a whole event but for its end.
pub fn is_whole(tail: &[u8]) -> bool {
    data_of(tail).all(|d| d == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(d).is_ok())
}

pub(super) fn event_of(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// Cuts the beginning off a text; whether any is left.
pub(super) fn cut(text: Option<&mut Value>, bytes: usize) -> bool {
    match text {
        Some(Value::String(text)) => {
            if text.is_char_boundary(bytes) {
                text.drain(..bytes);
            }
            !text.is_empty()
        }
        _ => false,
    }
}

/// Whether an error event means that the engine failed, not that the request is at fault.
pub(super) fn is_failure(error: &Value) -> bool {
    let code = &error["code"];
    let number = code.as_u64().or_else(|| code.as_str()?.parse().ok());
    number.is_some_and(|n| n >= 500)
        || code == "engine_failed"
        || matches!(
            error["type"].as_str(),
            Some("server_error" | "InternalServerError" | "ServiceUnavailableError")
        )
}
