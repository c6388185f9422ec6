//! The first token: what an engine must show before requests are sent to it.
//!
//! Engines answer their health checks once their weights are loaded, and may yet fail, or compile for minutes, at the first
//! request. So the agent beside an engine asks it for one token, as a client would.

use std::time::Duration;

use serde_json::{Value, json};

use crate::proxy::upstream::Upstream;

/// Longest time for one token. Where the first request compiles kernels for longer, a later one is the first to be answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most that is read of the answer, bytes.
const LONGEST: usize = 1 << 20;

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It made a token.
    Token,
    /// It answers, but does not take such requests: nothing can be told, and clients will see for themselves.
    NoSuchRequest(u16),
    /// It made none.
    None(String),
}

/// Judges an answer.
pub(crate) fn judge(status: u16, body: &[u8]) -> Outcome {
    match status {
        200..=299 => {
            let answer: Value = serde_json::from_slice(body).unwrap_or_default();
            let choice = &answer["choices"][0];
            let text = choice["text"].as_str().is_some_and(|t| !t.is_empty());
            // A first token may be one without text, such as that which ends an answer.
            if text || answer["usage"]["completion_tokens"].as_u64() > Some(0) {
                Outcome::Token
            } else {
                Outcome::None("it answered without a token".to_owned())
            }
        }
        400..=499 => Outcome::NoSuchRequest(status),
        _ => Outcome::None(format!("it answered {status}")),
    }
}

/// Asks an engine for one token.
pub(crate) async fn ask(upstream: &Upstream, address: &str, model: &str) -> Outcome {
    let body = json!({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0});
    let whole = upstream.post(address, "/v1/completions", &body, PATIENCE, LONGEST);
    match tokio::time::timeout(PATIENCE, whole).await {
        Ok(Ok((status, body))) => judge(status.as_u16(), &body),
        Ok(Err(error)) => Outcome::None(error.to_string()),
        Err(_) => Outcome::None(format!("it made no token within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_is_a_token() {
        assert_eq!(judge(200, br#"{"choices": [{"text": "2"}]}"#), Outcome::Token);
        let end = br#"{"choices": [{"text": ""}], "usage": {"completion_tokens": 1}}"#;
        assert_eq!(judge(200, end), Outcome::Token);
        for nothing in
            [&b"{}"[..], b"", b"ok", br#"{"choices": [{"text": ""}], "usage": {"completion_tokens": 0}}"#]
        {
            assert!(matches!(judge(200, nothing), Outcome::None(_)), "{}", String::from_utf8_lossy(nothing));
        }
        assert!(matches!(judge(503, b""), Outcome::None(_)));
        assert_eq!(judge(404, b""), Outcome::NoSuchRequest(404), "an engine of chats alone");
    }
}
