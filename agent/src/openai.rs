//! Errors in OpenAI's shape.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

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
