//! The HTTP interface: vLLM's endpoints.

mod admin;
mod answer;
mod embeddings;
mod error;
mod generate;
mod handover;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::shared::Shared;

pub(super) use error::ApiError;

/// All routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(admin::models))
        .route("/v1/load_lora_adapter", post(admin::load_lora))
        .route("/v1/unload_lora_adapter", post(admin::unload_lora))
        .route("/hand_over/{name}", post(handover::give))
        .route("/tokenize", post(admin::tokenize))
        .route("/detokenize", post(admin::detokenize))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/idle", get(admin::idle))
        .route("/version", get(admin::version))
        .route("/metrics", get(admin::metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, json_type(), "{\"detail\":\"Not Found\"}") })
        .with_state(shared)
}

fn json_type() -> [(http::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "application/json")]
}

fn json_response(value: &Value) -> Response {
    (json_type(), value.to_string()).into_response()
}

/// The `x-request-id` that the server gave or was given.
fn request_id(headers: &HeaderMap) -> &str {
    headers.get("x-request-id").and_then(|v| v.to_str().ok()).unwrap_or("request")
}

/// Reads a JSON body up to the configured size.
async fn read_json<T: DeserializeOwned>(shared: &Shared, body: Body) -> Result<T, ApiError> {
    let limit = shared.config.max_body_bytes;
    let bytes: Bytes = Limited::new(body, limit)
        .collect()
        .await
        .map_err(|e| {
            if e.is::<LengthLimitError>() {
                ApiError::too_large(limit)
            } else {
                ApiError::bad(None, format!("The request body could not be read: {e}"))
            }
        })?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| {
        let what = if e.is_data() { "The request body has a wrong field" } else { "JSON decode error" };
        ApiError::bad(None, format!("{what}: {e}"))
    })
}
