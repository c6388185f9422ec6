//! Everything but generation: models, adapters, tokens, version, metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shares;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::error::ApiError;
use super::generate::check_model;
use super::request::{ChatRequest, Prompt};
use super::{json_response, read_json};
use crate::engine_server::lora::LoraError;
use crate::engine_server::shared::Shared;
use crate::text::detokenize as text_of_ids;

/// The vLLM release whose interface this follows.
const VERSION: &str = "0.32.0+simulated";

pub(super) async fn version() -> Response {
    json_response(&json!({"version": VERSION}))
}

/// How long the engine must have had nothing to do before it counts as idle.
const QUIET: Duration = Duration::from_secs(5);

/// Answers once the engine has been idle for a while: what a pod's `preStop` waits for. Not of vLLM's interface.
pub(super) async fn idle(Shares(shared): Shares<Arc<Shared>>) -> Response {
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(250)).await;
        if shared.is_busy() {
            since = Instant::now();
        }
    }
    json_response(&json!({"idle": true}))
}

pub(super) async fn metrics(Shares(shared): Shares<Arc<Shared>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, shared.metrics_page()).into_response()
}

pub(super) async fn models(Shares(shared): Shares<Arc<Shared>>) -> Response {
    let base = &shared.config.served_model;
    let model = |id: &str, root: &str, parent: Value| {
        json!({
            "id": id, "object": "model", "created": shared.started_unix_s, "owned_by": "vllm", "root": root,
            "parent": parent, "max_model_len": shared.max_model_len, "permission": [],
        })
    };
    let mut data = vec![model(base, &shared.config.architecture.name, Value::Null)];
    data.extend(shared.adapters.lock().iter().map(|(name, a)| model(name, &a.path, json!(base))));
    json_response(&json!({"object": "list", "data": data}))
}

impl From<LoraError> for ApiError {
    fn from(e: LoraError) -> Self {
        let (status, kind, param) = match &e {
            LoraError::NotFound(_) => (StatusCode::NOT_FOUND, "NotFoundError", Some("lora_name")),
            LoraError::NoSuchPath { .. } => (StatusCode::NOT_FOUND, "NotFoundError", Some("lora_path")),
            LoraError::Disabled => (StatusCode::BAD_REQUEST, "BadRequestError", None),
            LoraError::Incomplete | LoraError::AlreadyLoaded(_) | LoraError::BaseName(_) => {
                (StatusCode::BAD_REQUEST, "InvalidUserInput", Some("lora_name"))
            }
        };
        Self { status, kind, param, message: e.to_string() }
    }
}

#[derive(Deserialize)]
struct LoraRequest {
    #[serde(default)]
    lora_name: String,
    #[serde(default)]
    lora_path: String,
    #[serde(default)]
    load_inplace: bool,
}

pub(super) async fn load_lora(Shares(shared): Shares<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let r: LoraRequest = read_json(&shared, body).await?;
    let base = &shared.config.served_model;
    shared.adapters.lock().check_load(base, &r.lora_name, &r.lora_path, r.load_inplace)?;
    tokio::time::sleep(shared.clock.scaled(shared.config.lora_load)).await;
    shared.adapters.lock().load(base, &r.lora_name, &r.lora_path, r.load_inplace)?;
    tracing::info!(adapter = r.lora_name, path = r.lora_path, "adapter loaded");
    Ok(format!("Success: LoRA adapter '{}' added successfully.", r.lora_name).into_response())
}

pub(super) async fn unload_lora(
    Shares(shared): Shares<Arc<Shared>>,
    body: Body,
) -> Result<Response, ApiError> {
    let r: LoraRequest = read_json(&shared, body).await?;
    shared.adapters.lock().unload(&r.lora_name)?;
    tracing::info!(adapter = r.lora_name, "adapter unloaded");
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", r.lora_name).into_response())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenizeRequest {
    Chat(ChatRequest),
    Prompt { model: Option<String>, prompt: Prompt },
}

pub(super) async fn tokenize(Shares(shared): Shares<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let (model, tokens) = match read_json(&shared, body).await? {
        TokenizeRequest::Chat(chat) => (chat.sampling.model.clone(), chat.prompt()?.tokens),
        TokenizeRequest::Prompt { model, prompt } => (model, prompt.tokens()?),
    };
    check_model(&shared, model.as_deref())?;
    Ok(json_response(&json!({
        "count": tokens.len(), "max_model_len": shared.max_model_len, "tokens": tokens.ids(), "token_strs": null,
    })))
}

#[derive(Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(super) async fn detokenize(
    Shares(shared): Shares<Arc<Shared>>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: DetokenizeRequest = read_json(&shared, body).await?;
    check_model(&shared, request.model.as_deref())?;
    Ok(json_response(&json!({"prompt": text_of_ids(&request.tokens)})))
}
