//! One request's conversation with Envoy.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use plimsoll_proto::ext_proc::processing_request::Request as Said;
use plimsoll_proto::ext_proc::processing_response::Response as Answer;
use plimsoll_proto::ext_proc::{
    BodySendMode, HttpBody, HttpHeaders, HttpTrailers, Metadata, ProcessingRequest, ProcessingResponse,
    ProtocolConfiguration, TrailersResponse,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::pick::Picked;
use super::wire::{self, Head};
use crate::body::{Api, BadBody, Scan};
use crate::openai::ApiError;
use crate::proxy::account::Outcome;
use crate::proxy::handler::{Proxy, wrong_method};
use crate::proxy::headers as names;
use crate::replica::Flight;
use crate::sse::{SseScanner, usage_of};

/// Longest answer that is collected for the token counts at its end, bytes.
const LONGEST_COUNTED: usize = 4 << 20;

/// Converses until Envoy has heard all, or goes.
pub(super) async fn run(
    proxy: Proxy,
    mut inbound: Streaming<ProcessingRequest>,
    answers: mpsc::Sender<Result<ProcessingResponse, Status>>,
) {
    let mut conversation = Conversation::new(proxy);
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            () = answers.closed() => break,
        };
        let Ok(Some(message)) = message else { break };
        let silent = message.observability_mode;
        let said = tokio::select! {
            said = conversation.hear(message) => said,
            // The client has gone while its request waited.
            () = answers.closed() => break,
        };
        for answer in said.into_iter().filter(|_| !silent) {
            if answers.send(Ok(answer)).await.is_err() {
                return conversation.end();
            }
        }
        if conversation.over {
            break;
        }
    }
    conversation.end();
}

/// How Envoy sends bodies, as it says with its first message.
#[derive(Debug, Clone, Copy)]
struct Modes {
    request: BodySendMode,
    response: BodySendMode,
}

impl Modes {
    /// Releases that say nothing are taken for what the endpoint-picker protocol prescribes.
    fn of(config: Option<ProtocolConfiguration>) -> Self {
        match config {
            None => {
                Self { request: BodySendMode::FullDuplexStreamed, response: BodySendMode::FullDuplexStreamed }
            }
            Some(config) => {
                Self { request: config.request_body_mode(), response: config.response_body_mode() }
            }
        }
    }
}

/// A request on its way in.
#[derive(Debug)]
struct Coming {
    api: Api,
    headers: HeaderMap,
    subset: Option<Vec<String>>,
    scan: Scan,
}

/// An engine's answer on its way out.
#[derive(Debug)]
struct Going {
    status: u16,
    /// Of a stream.
    events: Option<SseScanner>,
    /// Of an answer that does not stream, as long as it is short enough.
    whole: Option<BytesMut>,
}

pub(super) struct Conversation {
    proxy: Proxy,
    modes: Modes,
    coming: Option<Coming>,
    picked: Option<Picked>,
    going: Option<Going>,
    pub(super) over: bool,
}

impl Conversation {
    pub(super) fn new(proxy: Proxy) -> Self {
        Self { proxy, modes: Modes::of(None), coming: None, picked: None, going: None, over: false }
    }

    /// Answers one message.
    pub(super) async fn hear(&mut self, message: ProcessingRequest) -> Vec<ProcessingResponse> {
        let ProcessingRequest { request, metadata_context: metadata, protocol_config, .. } = message;
        if protocol_config.is_some() {
            self.modes = Modes::of(protocol_config);
        }
        let answered = match request {
            Some(Said::RequestHeaders(headers)) => self.request_headers(headers, metadata.as_ref()).await,
            Some(Said::RequestBody(body)) => self.request_body(body).await,
            Some(Said::RequestTrailers(_)) => self.request_trailers().await,
            Some(Said::ResponseHeaders(headers)) => Ok(self.response_headers(headers, metadata.as_ref())),
            Some(Said::ResponseBody(body)) => Ok(self.response_body(body)),
            Some(Said::ResponseTrailers(HttpTrailers { .. })) => {
                self.settle();
                Ok(vec![wire::answer(Answer::ResponseTrailers(TrailersResponse::default()), None)])
            }
            None => Ok(Vec::new()),
        };
        answered.unwrap_or_else(|error| {
            tracing::debug!(status = error.status.as_u16(), message = %error.message, "not picked");
            self.over = true;
            let mut headers = HeaderMap::new();
            error.headers(&mut headers);
            let body = Bytes::from(error.body());
            vec![wire::immediate(error.status.as_u16(), &headers, body, error.code)]
        })
    }

    async fn request_headers(
        &mut self,
        wire: HttpHeaders,
        metadata: Option<&Metadata>,
    ) -> Result<Vec<ProcessingResponse>, ApiError> {
        let Head { method, path, headers, .. } = wire::head(wire.headers);
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let Some(api) = Api::from_path(&path) else {
            // The list of models is ours to answer, and what there is not.
            let answer = self.proxy.other(&method, &path)?;
            let (head, body) = answer.into_parts();
            self.over = true;
            return Ok(vec![wire::immediate(
                head.status.as_u16(),
                &head.headers,
                body.at_hand(),
                "answered_here",
            )]);
        };
        if method != Method::POST {
            return Err(wrong_method(&method, &path, "POST"));
        }
        let duplex = match self.modes.request {
            BodySendMode::FullDuplexStreamed => true,
            BodySendMode::Buffered => false,
            _ => {
                return Err(ApiError::server(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "gateway_misconfigured",
                    "the gateway's request_body_mode must be FULL_DUPLEX_STREAMED or BUFFERED: the model is named in the body",
                ));
            }
        };
        self.coming = Some(Coming { api, headers, subset: wire::subset(metadata), scan: Scan::new(api) });
        if wire.end_of_stream {
            return self.choose(true).await;
        }
        // In full duplex the headers are answered once it is known where they are to go.
        Ok(if duplex {
            Vec::new()
        } else {
            vec![wire::answer(Answer::RequestHeaders(wire::headers(None, false)), None)]
        })
    }

    async fn request_body(&mut self, body: HttpBody) -> Result<Vec<ProcessingResponse>, ApiError> {
        let Some(coming) = &mut self.coming else {
            // Nobody asked for it: let it pass.
            return Ok(vec![wire::answer(Answer::RequestBody(wire::body(None, false)), None)]);
        };
        let limit = self.proxy.shared.config.limits.max_body_bytes;
        if coming.scan.length() + body.body.len() > limit {
            return Err(ApiError::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is over the limit of {limit} bytes; send a shorter one"),
            ));
        }
        coming.scan.push(body.body).map_err(bad_body)?;
        if body.end_of_stream { self.choose(true).await } else { Ok(Vec::new()) }
    }

    async fn request_trailers(&mut self) -> Result<Vec<ProcessingResponse>, ApiError> {
        let mut answers = if self.coming.is_some() { self.choose(false).await? } else { Vec::new() };
        answers.push(wire::answer(Answer::RequestTrailers(TrailersResponse::default()), None));
        Ok(answers)
    }

    /// The whole body is there: picks, and sends all back. `end`: no trailers follow.
    async fn choose(&mut self, end: bool) -> Result<Vec<ProcessingResponse>, ApiError> {
        let Some(Coming { api, headers, subset, scan }) = self.coming.take() else { return Ok(Vec::new()) };
        let mut parsed = scan.finish().map_err(bad_body)?;
        let picked = self.proxy.pick(&headers, api, &mut parsed, subset.as_deref()).await?;
        let addresses = picked.addresses();
        tracing::debug!(model = %parsed.model, %addresses, "picked");
        let mut set = vec![(wire::DESTINATION, addresses.as_str())];
        set.extend(picked.prefiller().map(|address| (wire::PREFILLER, address)));
        let (mutation, metadata) = (Some(wire::mutation(set)), Some(wire::destination(&addresses)));
        let answers = if self.modes.request == BodySendMode::Buffered {
            vec![wire::answer(Answer::RequestBody(wire::body(mutation, true)), metadata)]
        } else {
            let first = wire::answer(Answer::RequestHeaders(wire::headers(mutation, true)), metadata);
            let parts = wire::parts(scan.into_parts(), end).into_iter();
            std::iter::once(first).chain(parts.map(|p| wire::answer(Answer::RequestBody(p), None))).collect()
        };
        self.picked = Some(picked);
        Ok(answers)
    }

    fn response_headers(
        &mut self,
        wire: HttpHeaders,
        metadata: Option<&Metadata>,
    ) -> Vec<ProcessingResponse> {
        let Head { status, headers, .. } = wire::head(wire.headers);
        let served = wire::served(metadata);
        let mut mutation = None;
        if let Some(picked) = &mut self.picked {
            let by = answered_by(picked, served.as_deref(), status, &self.proxy);
            if let Some(replica) = &by {
                mutation = Some(wire::mutation([(names::REPLICA.as_str(), replica.as_str())]));
            }
        }
        let streams =
            headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        self.going = Some(Going {
            status,
            events: streams.then(|| SseScanner::new(false, None)),
            whole: (!streams).then(BytesMut::new),
        });
        if wire.end_of_stream {
            self.settle();
        }
        vec![wire::answer(Answer::ResponseHeaders(wire::headers(mutation, false)), None)]
    }

    fn response_body(&mut self, body: HttpBody) -> Vec<ProcessingResponse> {
        let HttpBody { body, end_of_stream } = body;
        if let Some(going) = &mut self.going {
            if let Some(events) = &mut going.events {
                events.push(body.clone());
                if let Some(picked) = &mut self.picked {
                    let new = picked.account.saw(events.seen());
                    if new > 0 {
                        picked.flight.produced(new as f64);
                    }
                }
            } else if let Some(whole) = &mut going.whole {
                if whole.len() + body.len() <= LONGEST_COUNTED {
                    whole.extend_from_slice(&body);
                } else {
                    going.whole = None;
                }
            }
        }
        if end_of_stream {
            self.settle();
        }
        if self.modes.response == BodySendMode::FullDuplexStreamed {
            let parts = wire::parts(vec![body], end_of_stream).into_iter();
            parts.map(|p| wire::answer(Answer::ResponseBody(p), None)).collect()
        } else {
            vec![wire::answer(Answer::ResponseBody(wire::body(None, false)), None)]
        }
    }

    /// The answer is over.
    fn settle(&mut self) {
        let (Some(mut picked), Some(going)) = (self.picked.take(), self.going.take()) else { return };
        let usage = match (&going.events, &going.whole) {
            (Some(events), _) => events.seen().usage,
            (None, Some(whole)) => usage_of(whole),
            (None, None) => None,
        };
        let broken = going.events.as_ref().is_some_and(|e| e.seen().error);
        let outcome = match going.status {
            200..=399 if broken => Outcome::Failed,
            200..=399 => Outcome::Finished,
            429 => Outcome::Refused,
            400..=499 => Outcome::Invalid,
            _ => Outcome::Failed,
        };
        picked.account.settle(outcome, usage.filter(|_| going.status < 400));
    }

    /// Envoy says no more. Where it does not show answers' bodies, the request still goes on: its place is held for as long
    /// as it was expected to take.
    pub(super) fn end(mut self) {
        let unseen = self.modes.response == BodySendMode::None;
        let Some(going) = &self.going else { return };
        if let Some(picked) = &mut self.picked
            && unseen
            && going.status < 400
        {
            let first = picked.order.first().map_or(0.0, |r| r.prediction.decode_ms);
            let clock = self.proxy.shared.clock;
            let flight = std::mem::replace(&mut picked.flight, Flight::none());
            picked.account.unseen();
            tokio::spawn(async move {
                tokio::time::sleep(clock.real(first)).await;
                drop(flight);
            });
            self.settle();
        }
    }
}

/// Takes note of who answered, by Envoy's word, and of who did not; gives the replica's name.
fn answered_by(picked: &mut Picked, served: Option<&str>, status: u16, proxy: &Proxy) -> Option<String> {
    let shared = &proxy.shared;
    let now = shared.clock.now_ms();
    let first = picked.order.first().copied()?;
    let position = served
        .and_then(|address| picked.order.iter().position(|r| picked.endpoint(r).engine_address == address));
    let failed = matches!(status, 0 | 502..=504);
    // Who was tried before had its chance. Without a word of who answered, an answer is the first's, and Envoy's own error
    // says that none was reached.
    let tried = match (position, failed) {
        (Some(at), true) => at + 1,
        (Some(at), false) => at,
        (None, true) => picked.order.len(),
        (None, false) => 0,
    };
    for ranked in &picked.order[..tried] {
        picked.pool.replicas[ranked.endpoint].failed(now);
        shared.book.lock().replica_failed(&picked.endpoint(ranked).replica);
    }
    if failed && position.is_none() {
        return None;
    }
    if position.is_none() && served.is_some() {
        // The gateway's own choice, past ours.
        return None;
    }
    let by = position.map_or(first, |at| picked.order[at]);
    if by.endpoint != first.endpoint {
        proxy.count_reason(&shared.config.metrics.retries, "failed");
        picked.flight =
            Flight::new(picked.pool.replicas[by.endpoint].clone(), picked.account.sizes().prompt_tokens);
    }
    if !failed {
        picked.pool.replicas[by.endpoint].succeeded();
    }
    let replica = picked.endpoint(&by).replica.clone();
    picked.account.served_by(&replica);
    Some(replica.to_string())
}

fn bad_body(error: BadBody) -> ApiError {
    let said = ApiError::invalid(StatusCode::BAD_REQUEST, "invalid_body", error.to_string());
    match error.param() {
        Some(param) => said.with_param(param),
        None => said,
    }
}
