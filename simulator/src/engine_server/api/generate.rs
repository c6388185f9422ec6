//! `/v1/chat/completions` and `/v1/completions`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::State as Shares;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, header};
use serde_json::Value;

use super::answer::{Answer, Envelope, Events, Kind};
use super::error::ApiError;
use super::request::{ChatPrompt, ChatRequest, CompletionRequest, Sampling};
use super::{json_response, read_json, request_id};
use crate::engine_server::core::State;
use crate::engine_server::handover::{Cache, Part, kept_at};
use crate::engine_server::metrics::Finished;
use crate::engine_server::shared::{Generation, Shared, Work};
use crate::text::seed_of;

/// vLLM's `max_tokens` of plain completions.
const COMPLETION_DEFAULT_MAX_TOKENS: u32 = 16;

pub(super) async fn chat(
    Shares(shared): Shares<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: ChatRequest = read_json(&shared, body).await?;
    request.sampling.check(request.logprobs)?;
    let prompt = request.prompt()?;
    let id = format!("chatcmpl-{}", request_id(&headers));
    generate(&shared, Kind::Chat, id, &request.sampling, &prompt, None).await
}

pub(super) async fn completions(
    Shares(shared): Shares<Arc<Shared>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: CompletionRequest = read_json(&shared, body).await?;
    request.sampling.check(request.logprobs.is_some())?;
    if request.echo {
        return Err(ApiError::bad(
            Some("echo"),
            "echo: this engine does not repeat prompts; leave echo out.",
        ));
    }
    // Text that continues an answer looks like any other here, as it does to a real engine.
    let prompt = ChatPrompt { tokens: request.prompt.tokens()?, begun: None };
    let id = format!("cmpl-{}", request_id(&headers));
    let default = Some(COMPLETION_DEFAULT_MAX_TOKENS);
    generate(&shared, Kind::Completion, id, &request.sampling, &prompt, default).await
}

/// The model of a request: the base model (`None`) or an adapter, whose use this counts.
pub(super) fn adapter_of(
    shared: &Shared,
    model: Option<&str>,
) -> Result<Option<(String, u64, bool)>, ApiError> {
    match model {
        None => Ok(None),
        Some(name) if name == shared.config.served_model => Ok(None),
        Some(name) => {
            let begun = shared.adapters.lock().begin(name);
            let (number, load) = begun.ok_or_else(|| ApiError::unknown_model(name))?;
            Ok(Some((name.to_owned(), number, load)))
        }
    }
}

/// Whether a model name is served, without counting a use.
pub(super) fn check_model(shared: &Shared, model: Option<&str>) -> Result<(), ApiError> {
    match model {
        Some(name) if name != shared.config.served_model && !shared.adapters.lock().contains(name) => {
            Err(ApiError::unknown_model(name))
        }
        _ => Ok(()),
    }
}

async fn generate(
    shared: &Arc<Shared>,
    kind: Kind,
    id: String,
    sampling: &Sampling,
    prompt: &ChatPrompt,
    default_limit: Option<u32>,
) -> Result<Response, ApiError> {
    check_model(shared, sampling.model.as_deref())?;
    let tokens = &prompt.tokens;
    let prompt_tokens = tokens.len();
    let limit = sampling.limit(prompt_tokens, shared.max_model_len, default_limit)?;
    let (answered, begun) = match &prompt.begun {
        Some(begun) => (&begun.to, begun.text.as_str()),
        None => (tokens, ""),
    };
    let seed = answered.fingerprint(shared.config.seed);
    let mut answer = Answer::decide(sampling, limit, &shared.config.answer, seed, begun);
    let part = sampling.told.part(&shared.config)?;
    let cache = Cache {
        fingerprint: tokens.fingerprint(0),
        prompt_tokens,
        tensor_parallel: shared.config.shape.tensor_parallel,
    };
    let mut transfer_ms = None;
    let place = match &part {
        Part::None => None,
        Part::Leave => {
            let number = shared.next_id.fetch_add(1, Ordering::Relaxed);
            Some(shared.keeper.open(&format!("{id}-{number}"))?)
        }
        Part::Room(room) => {
            // Its own answer is the prompt's first token, whatever the other engine goes on to say.
            (answer.tokens, answer.ends) = (1, Finished::Length);
            Some(shared.keeper.open(room)?)
        }
        Part::Take { address, name } => {
            let wait = sampling.told.meets();
            transfer_ms = Some(shared.keeper.take(address, name, &cache, wait).await?);
            None
        }
    };
    let salt = sampling.cache_salt.as_deref().map_or(0, seed_of);
    let generation = shared.submit(Work {
        prompt_blocks: tokens.block_hashes(shared.config.engine.block_tokens, salt),
        prompt_tokens,
        output_tokens: answer.tokens,
        priority: sampling.priority.unwrap_or(0),
        adapter: adapter_of(shared, sampling.model.as_deref())?,
        ends: answer.ends,
        transfer_ms,
    });
    let envelope = Envelope {
        kind,
        id,
        created: jiff::Timestamp::now().as_second(),
        model: sampling.model.clone().unwrap_or_else(|| shared.config.served_model.clone()),
        prompt_tokens,
    };
    if let Some(mut place) = place {
        let (mut body, blocks) = prefilled(generation, &answer, &envelope).await?;
        place.ready(cache);
        if matches!(part, Part::Leave) {
            let degree = shared.config.shape.tensor_parallel;
            let blocks = blocks.div_ceil(shared.config.engine.block_tokens.max(1)) as usize;
            body["kv_transfer_params"] = kept_at(shared.addr, place.name(), blocks, degree);
            place.keep();
        } else {
            place.taken().await?;
        }
        return Ok(json_response(&body));
    }
    if sampling.stream {
        let usage = sampling.stream_options.as_ref().is_some_and(|o| o.include_usage);
        Ok(stream_answer(generation, answer, envelope, usage))
    } else {
        whole_answer(generation, answer, envelope).await
    }
}

async fn whole_answer(
    generation: Generation,
    answer: Answer,
    envelope: Envelope,
) -> Result<Response, ApiError> {
    Ok(json_response(&prefilled(generation, &answer, &envelope).await?.0))
}

/// The whole answer, once it is there, and the prompt's length in tokens.
async fn prefilled(
    mut generation: Generation,
    answer: &Answer,
    envelope: &Envelope,
) -> Result<(Value, u32), ApiError> {
    match generation.end().await {
        Some(progress) if progress.state == State::Done => {
            Ok((envelope.whole(answer, progress.cached_tokens), envelope.prompt_tokens))
        }
        Some(_) => Err(ApiError::internal("The engine refused the request; see its log.")),
        None => Err(ApiError::internal("EngineCore encountered an issue: the engine died.")),
    }
}

/// What a stream has yet to send.
struct Streaming<P> {
    generation: Generation,
    answer: Answer,
    envelope: Envelope,
    events: Events,
    pieces: P,
    seen: u32,
    usage: bool,
    over: bool,
}

fn stream_answer(generation: Generation, answer: Answer, envelope: Envelope, usage: bool) -> Response {
    let streaming = Streaming {
        events: Events::new(&envelope),
        pieces: answer.pieces(),
        generation,
        answer,
        envelope,
        seen: 0,
        usage,
        over: false,
    };
    let frames = stream::unfold(streaming, |mut s| async move {
        if s.over {
            return None;
        }
        let frame = s.next_frame().await;
        Some((frame, s))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(frames)).into_response()
}

impl<P: Iterator<Item = Cow<'static, str>>> Streaming<P> {
    /// The events of all tokens that came since the last frame: one event a token, however many a frame.
    async fn next_frame(&mut self) -> Result<Bytes, std::io::Error> {
        let Some(progress) = self.generation.beyond(self.seen).await else {
            self.over = true;
            return Err(std::io::Error::other("the engine died"));
        };
        let mut out = String::with_capacity(256 * (progress.tokens - self.seen) as usize + 512);
        if progress.state == State::Refused {
            self.over = true;
            let error = ApiError::internal("The engine refused the request; see its log.");
            let body = serde_json::json!({"error": {
                "message": error.message, "type": error.kind, "param": null, "code": error.status.as_u16(),
            }});
            out.push_str(&format!("data: {body}\n\ndata: [DONE]\n\n"));
            return Ok(Bytes::from(out));
        }
        if self.seen == 0 {
            self.events.role(&mut out);
        }
        let stop: Value = self.answer.stop_reason();
        while self.seen < progress.tokens {
            self.seen += 1;
            let piece = self.pieces.next().unwrap_or_default();
            let last = self.seen == progress.tokens && progress.state == State::Done;
            self.events.token(&mut out, &piece, last.then(|| (self.answer.finish_reason(), &stop)));
        }
        if progress.state == State::Done {
            self.over = true;
            if self.usage {
                self.events.usage(&mut out, &self.envelope.usage(self.seen, progress.cached_tokens));
            }
            out.push_str("data: [DONE]\n\n");
        }
        Ok(Bytes::from(out))
    }
}
