//! One attempt at one replica: admission or a hop, the engine's reply, and its way back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Either, Full, Limited};
use hyper::body::{Body, Incoming};
use plimsoll_fleet::Endpoint;

use super::account::{Account, Outcome, Place};
use super::handler::{Answer, Proxy, drain, error_answer};
use super::headers::{self as names, positive, text};
use super::hop::Hop;
use super::relay::{AnswerBody, Relay};
use super::upstream::UpstreamError;
use crate::admit::{Ask, Refusal, RefusalReason};
use crate::body::{self, Api, Parsed};
use crate::local::{self, LocalEngine};
use crate::openai::ApiError;
use crate::replica::{Flight, Replica};
use crate::route::{self, Ranked};
use crate::shared::Pool;
use crate::sse::{SseScanner, rename_model, usage_of};

/// Why an attempt at one replica gave no answer.
pub(super) enum Missed {
    /// Not admitted: the next choice may.
    Refused(Refusal),
    /// Failed before the first byte of an answer: the next choice may do better.
    Failed(String),
    /// Failed once the answer had begun: it is not asked for twice.
    Begun(String),
}

/// What the routing loop needs of a request.
pub(super) struct Routed<'a> {
    pub(super) api: Api,
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) parsed: Parsed,
    pub(super) strip_usage: bool,
    /// When its answer is worthless, model ms.
    pub(super) deadline_ms: Option<f64>,
    pub(super) ttft_objective_ms: Option<f64>,
}

impl Proxy {
    /// Tries one replica.
    pub(super) async fn attempt(
        &self,
        routed: &Routed<'_>,
        account: &Account,
        pool: &Arc<Pool>,
        ranked: &Ranked,
    ) -> Result<Reply, Missed> {
        let shared = &self.shared;
        let endpoint = &pool.view.route.endpoints[ranked.endpoint];
        let replica = &pool.replicas[ranked.endpoint];
        let now = shared.clock.now_ms();
        let first_token_in_ms = routed.ttft_objective_ms.map(|ms| account.begun_ms() + ms - now);
        let hop = Hop {
            replica: endpoint.replica.clone(),
            prompt_tokens: account.prompt_estimate,
            cached_tokens: ranked.cached_tokens,
            expected_output: account.expected_output,
            streaming: routed.parsed.stream,
            first_token_in_ms,
        };
        let body = body::rewrite(&routed.body, &routed.parsed, &endpoint.engine_model, routed.strip_usage);
        let body = Either::Left(Full::new(body));
        let mut headers = routed.headers.clone();
        match &replica.local {
            Some(engine) => {
                let permit = self
                    .admit(engine, replica, endpoint, pool.view.route.priority, &hop, routed.deadline_ms)
                    .await
                    .map_err(Missed::Refused)?;
                let place = Place::Here(permit);
                self.send(&endpoint.engine_address, routed.path, headers, body, place, replica, routed.api)
                    .await
            }
            None => {
                let address = match &endpoint.agent_address {
                    Some(agent) => {
                        let limits = &shared.config.limits;
                        let value = HeaderValue::from_str(&hop.to_text());
                        headers.insert(names::HOP, value.map_err(|e| Missed::Failed(e.to_string()))?);
                        if let Some(key) =
                            limits.hop_secret.as_deref().and_then(|k| HeaderValue::from_str(k).ok())
                        {
                            headers.insert(names::HOP_KEY, key);
                        }
                        if let Some(deadline) = routed.deadline_ms {
                            headers.insert(
                                names::DEADLINE_MS,
                                HeaderValue::from((deadline - now).max(1.0) as u64),
                            );
                        }
                        agent
                    }
                    None => &endpoint.engine_address,
                };
                let uncached = account.prompt_estimate - ranked.cached_tokens;
                let place = Place::There(Flight::new(replica.clone(), uncached));
                self.send(address, routed.path, headers, body, place, replica, routed.api).await
            }
        }
    }

    /// Asks for admission to an engine of this node.
    pub(super) async fn admit(
        &self,
        engine: &Arc<LocalEngine>,
        replica: &Arc<Replica>,
        endpoint: &Endpoint,
        priority: i32,
        hop: &Hop,
        deadline_ms: Option<f64>,
    ) -> Result<local::Permit, Refusal> {
        let shared = &self.shared;
        let now = shared.clock.now_ms();
        // What waits ahead is the admission's business: the prediction is for the engine as it runs.
        let load = route::ReplicaLoad { prefill_tokens: 0.0, waiting: 0.0, ..replica.load(now) };
        let prediction = route::predict(
            &endpoint.coefficients,
            &load,
            hop.prompt_tokens,
            hop.cached_tokens,
            hop.expected_output,
        );
        let ask = Ask {
            id: shared.next_id(),
            priority,
            prompt_tokens: hop.prompt_tokens.max(1.0),
            expected_output: hop.expected_output,
            prefill_ms: prediction.prefill_ms,
            service_ms: prediction.prefill_ms + prediction.decode_ms,
            start_by_ms: hop.first_token_in_ms.map(|ms| now + ms - prediction.prefill_ms),
            deadline_ms,
            streaming: hop.streaming,
        };
        let admitted = local::admit(engine, replica, shared.clock, ask).await;
        if let Err(refusal) = &admitted {
            self.count_reason(&shared.config.metrics.refusals, refusal.reason.as_str());
        }
        admitted
    }

    /// Sends a request and waits for the first byte of its answer, or for all of it if it does not stream.
    pub(super) async fn send(
        &self,
        address: &str,
        path: &str,
        headers: HeaderMap,
        body: super::upstream::OutBody,
        place: Place,
        replica: &Arc<Replica>,
        api: Api,
    ) -> Result<Reply, Missed> {
        let shared = &self.shared;
        let failed = |e: UpstreamError| {
            replica.failed(shared.clock.now_ms());
            Missed::Failed(e.to_string())
        };
        let response =
            self.upstream.send(address, path, Method::POST, headers, body).await.map_err(failed)?;
        let (head, mut body) = response.into_parts();
        if let Some(load) = head.headers.get(names::LOAD).and_then(|v| v.to_str().ok()) {
            replica.take_hint(load, shared.clock.now_ms());
        }
        let refused = text(&head.headers, names::REFUSED.as_str()).and_then(RefusalReason::from_text);
        if refused.is_some() || head.status == StatusCode::TOO_MANY_REQUESTS {
            if matches!(
                refused,
                Some(RefusalReason::EngineDown | RefusalReason::Draining | RefusalReason::UnknownReplica)
            ) {
                // Its agent knows better than our table: others first for a while.
                replica.failed(shared.clock.now_ms());
            }
            let after = positive(&head.headers, &["retry-after"]).unwrap_or(1.0);
            return Err(Missed::Refused(Refusal {
                reason: refused.unwrap_or(RefusalReason::QueueFull),
                retry_after_ms: shared.clock.model_ms(Duration::from_secs_f64(after.min(3600.0))),
            }));
        }
        if head.headers.contains_key(names::BEGUN) {
            return Err(Missed::Begun(format!("replica {} broke off its answer", replica.id)));
        }
        if matches!(head.status.as_u16(), 502..=504) {
            replica.failed(shared.clock.now_ms());
            return Err(Missed::Failed(format!("{address} answered {}", head.status)));
        }
        let streams = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let content = if streams && head.status.is_success() {
            let first =
                self.upstream.part(address, &mut body, self.upstream.first_byte).await.map_err(failed)?;
            match first {
                Some(first) => Content::Stream { first, rest: body },
                None if api.is_generation() => {
                    return Err(failed(UpstreamError::Broken {
                        address: address.to_owned(),
                        detail: "the stream ended before it began".into(),
                    }));
                }
                None => Content::Whole(Bytes::new()),
            }
        } else {
            let limit = shared.config.limits.max_answer_bytes;
            let first =
                self.upstream.part(address, &mut body, self.upstream.first_byte).await.map_err(failed)?;
            let Some(first) = first else {
                return Ok(Reply { head, content: Content::Whole(Bytes::new()), place });
            };
            let whole = self.upstream.collect(address, first, body, limit).await.map_err(|e| {
                replica.failed(shared.clock.now_ms());
                Missed::Begun(e.to_string())
            })?;
            Content::Whole(whole)
        };
        replica.succeeded();
        Ok(Reply { head, content, place })
    }

    /// Turns an engine's reply into the client's answer and settles the account, now or when the stream is over.
    pub(super) fn deliver(
        &self,
        routed: &Routed<'_>,
        endpoint: &Endpoint,
        reply: Reply,
        mut account: Account,
        plan: u64,
    ) -> Answer {
        tracing::Span::current().record("replica", endpoint.replica.as_str());
        let served = &routed.parsed.model;
        let renamed =
            (endpoint.engine_model != *served).then_some((endpoint.engine_model.as_str(), served.as_str()));
        let mut headers = names::forward_response(&reply.head.headers);
        headers.insert(names::PLAN, HeaderValue::from(plan));
        if let Ok(value) = HeaderValue::from_str(endpoint.replica.as_str()) {
            headers.insert(names::REPLICA, value);
        }
        let body = match reply.content {
            Content::Stream { first, rest } => AnswerBody::Stream(Box::new(Relay::new(
                rest,
                first,
                SseScanner::new(routed.strip_usage, renamed),
                self.upstream.idle,
                Some(account),
                reply.place,
                endpoint.replica.to_string(),
                routed.api.is_generation(),
            ))),
            Content::Whole(bytes) => {
                let status = reply.head.status;
                let outcome = match status.as_u16() {
                    200..=399 => Outcome::Finished,
                    400..=499 => Outcome::Invalid,
                    _ => Outcome::Failed,
                };
                account.settle(outcome, usage_of(&bytes).filter(|_| status.is_success()));
                let quoted = |name: &str| serde_json::Value::from(name).to_string().into_bytes();
                let bytes = renamed
                    .and_then(|(from, to)| rename_model(&bytes, &quoted(from), &quoted(to)))
                    .map_or(bytes, Bytes::from);
                AnswerBody::full(bytes)
            }
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = reply.head.status;
        *answer.headers_mut() = headers;
        answer
    }

    /// A request that another agent routed here: admit it to its engine or refuse it; never forward it elsewhere.
    pub(super) async fn hop(
        &self,
        parts: &http::request::Parts,
        path: &str,
        api: Api,
        body: Incoming,
        hop: Hop,
    ) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let local = shared.locals.load().get(&hop.replica).cloned();
        tracing::Span::current().record("replica", hop.replica.as_str());
        let Some(local) = local else {
            drain(body).await;
            let refusal = Refusal { reason: RefusalReason::UnknownReplica, retry_after_ms: 1000.0 };
            return Ok(self.refuse_hop(&refusal, None));
        };
        let deadline_ms =
            positive(&parts.headers, &[names::DEADLINE_MS]).map(|ms| shared.clock.now_ms() + ms);
        let admitted = self
            .admit(&local.engine, &local.replica, &local.endpoint, local.priority, &hop, deadline_ms)
            .await;
        let permit = match admitted {
            Ok(permit) => permit,
            Err(refusal) => {
                drain(body).await;
                return Ok(self.refuse_hop(&refusal, Some(&local.replica)));
            }
        };
        let mut headers = names::forward_request(&parts.headers);
        headers.remove(names::DEADLINE_MS);
        if let Some(length) = body.size_hint().exact() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let out = Either::Right(Limited::new(body, shared.config.limits.max_body_bytes + 4096));
        let address = &local.endpoint.engine_address;
        match self.send(address, path, headers, out, Place::Here(permit), &local.replica, api).await {
            Ok(reply) => {
                let mut headers = names::forward_response(&reply.head.headers);
                if let Ok(value) = HeaderValue::from_str(&local.replica.hint_text()) {
                    headers.insert(names::LOAD, value);
                }
                let body = match reply.content {
                    Content::Stream { first, rest } => AnswerBody::Stream(Box::new(Relay::new(
                        rest,
                        first,
                        SseScanner::new(false, None),
                        self.upstream.idle,
                        None,
                        reply.place,
                        local.replica.id.to_string(),
                        api.is_generation(),
                    ))),
                    Content::Whole(bytes) => AnswerBody::full(bytes),
                };
                let mut answer = Response::new(body);
                *answer.status_mut() = reply.head.status;
                *answer.headers_mut() = headers;
                Ok(answer)
            }
            Err(Missed::Refused(refusal)) => Ok(self.refuse_hop(&refusal, Some(&local.replica))),
            Err(Missed::Failed(what)) => {
                Err(ApiError::server(StatusCode::BAD_GATEWAY, "engine_failed", what))
            }
            Err(Missed::Begun(what)) => {
                let mut answer =
                    error_answer(&ApiError::server(StatusCode::BAD_GATEWAY, "engine_failed", what));
                answer.headers_mut().insert(names::BEGUN, HeaderValue::from_static("1"));
                Ok(answer)
            }
        }
    }

    pub(super) fn refuse_hop(&self, refusal: &Refusal, replica: Option<&Arc<Replica>>) -> Answer {
        let error = ApiError::busy(
            refusal.reason.as_str(),
            format!("not admitted: {}", refusal.reason.as_str()),
            self.shared.clock.real(refusal.retry_after_ms),
        );
        let mut answer = error_answer(&error);
        let headers = answer.headers_mut();
        headers.insert(names::REFUSED, HeaderValue::from_static(refusal.reason.as_str()));
        if let Some(value) = replica.and_then(|r| HeaderValue::from_str(&r.hint_text()).ok()) {
            headers.insert(names::LOAD, value);
        }
        answer
    }
}

/// What an engine, or the agent beside it, replied.
pub(super) struct Reply {
    head: http::response::Parts,
    content: Content,
    place: Place,
}

enum Content {
    Whole(Bytes),
    Stream { first: Bytes, rest: Incoming },
}
