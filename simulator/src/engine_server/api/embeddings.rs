//! `/v1/embeddings`: one prefill a text, and a vector that depends on the text alone.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as Shares;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::error::ApiError;
use super::generate::{adapter_of, check_model};
use super::request::Prompt;
use super::{json_response, read_json, request_id};
use crate::engine_server::core::State;
use crate::engine_server::metrics::Finished;
use crate::engine_server::shared::{Shared, Work};
use crate::text::{Tokens, detokenize};

/// Most texts in one request, as OpenAI's.
const MAX_INPUTS: usize = 2048;
/// Components that one word changes.
const COMPONENTS_PER_WORD: u64 = 16;

#[derive(Deserialize)]
struct EmbeddingRequest {
    model: Option<String>,
    input: Prompt,
    encoding_format: Option<String>,
    dimensions: Option<u32>,
}

/// A unit vector made of the text's words: texts that share words are near each other.
fn embed(text: &str, dimensions: usize) -> Vec<f32> {
    let mut vector = vec![0f32; dimensions.max(1)];
    let size = vector.len() as u64;
    for word in text.split_whitespace() {
        for i in 0..COMPONENTS_PER_WORD {
            let hash = xxh3_64_with_seed(word.as_bytes(), i);
            let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
            // Below the vector's length.
            vector[((hash & (u64::MAX >> 1)) % size) as usize] += sign;
        }
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    } else {
        vector[0] = 1.0;
    }
    vector
}

pub(super) async fn embeddings(
    Shares(shared): Shares<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: EmbeddingRequest = read_json(&shared, body).await?;
    check_model(&shared, request.model.as_deref())?;
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::bad(
                Some("encoding_format"),
                format!("encoding_format: {other:?} is unknown; use \"float\" or \"base64\"."),
            ));
        }
    };
    let own = shared.config.architecture.hidden;
    let dimensions = request.dimensions.unwrap_or(own);
    if dimensions == 0 || dimensions > own {
        return Err(ApiError::bad(
            Some("dimensions"),
            format!("dimensions: must be between 1 and the model's {own}, got {dimensions}."),
        ));
    }
    let inputs: Vec<Tokens> = split(request.input)?;
    for tokens in &inputs {
        if tokens.is_empty() || tokens.len() >= shared.max_model_len {
            return Err(ApiError::bad(
                Some("input"),
                format!(
                    "This model's maximum context length is {} tokens. However, you requested {} tokens in the input for \
                     embedding generation. Each text must have at least 1 token and fit.",
                    shared.max_model_len,
                    tokens.len()
                ),
            ));
        }
    }
    let mut generations = Vec::with_capacity(inputs.len());
    for tokens in &inputs {
        generations.push(shared.submit(Work {
            prompt_blocks: tokens.block_hashes(shared.config.engine.block_tokens, 0),
            prompt_tokens: tokens.len(),
            output_tokens: 1,
            priority: 0,
            adapter: adapter_of(&shared, request.model.as_deref())?,
            ends: Finished::Stop,
            transfer_ms: None,
        }));
    }
    for generation in &mut generations {
        if generation.end().await.is_none_or(|p| p.state != State::Done) {
            return Err(ApiError::internal("The engine did not finish the request."));
        }
    }
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, tokens)| {
            let vector = embed(&detokenize(&tokens.ids()), dimensions as usize);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"index": index, "object": "embedding", "embedding": embedding})
        })
        .collect();
    let total: u64 = inputs.iter().map(|t| u64::from(t.len())).sum();
    Ok(json_response(&json!({
        "id": format!("embd-{}", request_id(&headers)),
        "object": "list",
        "created": jiff::Timestamp::now().as_second(),
        "model": request.model.as_deref().unwrap_or(&shared.config.served_model),
        "data": data,
        "usage": {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0},
    })))
}

/// One token list a text.
fn split(input: Prompt) -> Result<Vec<Tokens>, ApiError> {
    let parts: Vec<Prompt> = match input {
        Prompt::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Prompt::IdLists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        one => vec![one],
    };
    if parts.is_empty() || parts.len() > MAX_INPUTS {
        return Err(ApiError::bad(
            Some("input"),
            format!("input: has {} texts; give between 1 and {MAX_INPUTS}.", parts.len()),
        ));
    }
    parts.iter().map(Prompt::tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_units_and_near_when_words_are_shared() {
        let dot = |a: &str, b: &str| embed(a, 512).iter().zip(embed(b, 512)).map(|(x, y)| x * y).sum::<f32>();
        let near = dot("the load line of a ship", "the load line of a boat");
        assert!((dot("a b", "a b") - 1.0).abs() < 1e-5);
        assert!(near > 0.5 && near > dot("the load line of a ship", "quite another matter"), "{near}");
        assert_eq!(embed("", 4), [1.0, 0.0, 0.0, 0.0]);
    }
}
