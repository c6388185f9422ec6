//! Errors in OpenAI's shape.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// An error as OpenAI clients expect it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What happened and what to do.
    pub message: String,
    /// `error.type`, e.g. `invalid_request_error`.
    pub kind: &'static str,
    /// The member at fault.
    pub param: Option<String>,
    /// `error.code`, e.g. `model_not_found`.
    pub code: &'static str,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// The client's fault.
    pub fn invalid(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind: "invalid_request_error",
            param: None,
            code,
            retry_after: None,
        }
    }

    /// Ours, or an engine's.
    pub fn server(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind: "server_error", param: None, code, retry_after: None }
    }

    /// Too much at the moment.
    pub fn busy(code: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            message: message.into(),
            kind: "rate_limit_error",
            param: None,
            code,
            retry_after: Some(retry_after),
        }
    }

    /// With the member at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// With the time after which to try again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The JSON text.
    pub fn body(&self) -> String {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
            .to_string()
    }

    /// As the last event of a stream that had begun.
    pub fn event(&self) -> String {
        format!("data: {}\n\n", self.body())
    }

    /// Adds `content-type` and, where known, `retry-after` (whole seconds, at least 1).
    pub fn headers(&self, headers: &mut http::HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            headers
                .insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
        }
    }
}

/// Most of an engine's own words that go into an error, characters.
const MOST_WORDS: usize = 1000;

/// What an engine says of an error, in OpenAI's shape; `None`: it has that shape. Engines' frameworks answer some faults
/// in their own way: `{"detail": …}` for a path that the engine does not serve, bare text, or nothing.
pub fn reshaped(status: StatusCode, said: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(said).unwrap_or_default();
    if value["error"]["message"].is_string() {
        return None;
    }
    let words =
        ["error", "message", "detail"].into_iter().map(|member| &value[member]).find(|v| !v.is_null());
    let words = match words {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::from_utf8_lossy(&said[..said.len().min(4 * MOST_WORDS)]).trim().to_owned(),
    };
    let words: String = words.chars().take(MOST_WORDS).collect();
    let message = match words.as_str() {
        "" => format!("the engine answered {status}"),
        words => format!("the engine answered {status}: {words}"),
    };
    let error = if status.is_server_error() {
        ApiError::server(status, "engine_error", message)
    } else {
        ApiError::invalid(status, "engine_error", message)
    };
    Some(error.body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_say_gets_openais_shape_unless_it_has_it() {
        let vllm = br#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#;
        assert_eq!(reshaped(StatusCode::BAD_REQUEST, vllm), None);
        for (said, word) in [
            (&br#"{"detail":"Not Found"}"#[..], "404 Not Found: Not Found"),
            (br#"{"detail":[{"loc":["body"],"msg":"missing"}]}"#, "missing"),
            (br#"{"object":"error","message":"no such model","code":404}"#, "no such model"),
            (br#"{"error":"out of slots"}"#, "out of slots"),
            (b"Not here\n", "404 Not Found: Not here"),
            (b"\xff\xfe", "404 Not Found"),
            (b"", "the engine answered 404 Not Found"),
        ] {
            let body: Value = serde_json::from_str(&reshaped(StatusCode::NOT_FOUND, said).unwrap()).unwrap();
            let error = &body["error"];
            assert!(error["message"].as_str().unwrap().contains(word), "{body}");
            assert_eq!(
                (&error["type"], &error["code"]),
                (&json!("invalid_request_error"), &json!("engine_error"))
            );
        }
    }
}
