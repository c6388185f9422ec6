//! Errors in vLLM's shape.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::json;

/// An error answer: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct ApiError {
    pub(in super::super) status: StatusCode,
    pub(in super::super) kind: &'static str,
    pub(in super::super) param: Option<&'static str>,
    pub(in super::super) message: String,
}

impl ApiError {
    /// 400, about one field.
    pub(in super::super) fn bad(param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", param, message: message.into() }
    }

    /// 404 for a model that is not served here.
    pub(in super::super) fn unknown_model(model: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            param: Some("model"),
            message: format!("The model `{model}` does not exist."),
        }
    }

    /// 413.
    pub(in super::super) fn too_large(limit_bytes: usize) -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            kind: "RequestEntityTooLarge",
            param: None,
            message: format!(
                "The request body is larger than the limit of {limit_bytes} bytes; shorten the prompt."
            ),
        }
    }

    /// 500.
    pub(in super::super) fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            param: None,
            message: message.into(),
        }
    }

    /// 503 while the engine starts or ends.
    pub(in super::super) fn unavailable(message: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "ServiceUnavailableError",
            param: None,
            message: message.to_owned(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.status.as_u16(),
        }});
        (self.status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}
