//! Where engines take KV caches from each other. Not of vLLM's interface: real engines move them over NIXL or Mooncake.

use std::sync::Arc;

use axum::extract::{Path, Query, State as Shares};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::json_response;
use crate::engine_server::shared::Shared;

#[derive(Deserialize)]
pub(super) struct How {
    /// Whoever computes it may have yet to come.
    #[serde(default)]
    wait: bool,
}

pub(super) async fn give(
    Shares(shared): Shares<Arc<Shared>>,
    Path(name): Path<String>,
    Query(how): Query<How>,
) -> Result<Response, ApiError> {
    let cache = shared.keeper.give(&name, how.wait).await?;
    tracing::debug!(name, "KV cache taken");
    Ok(json_response(&json!(cache)))
}
