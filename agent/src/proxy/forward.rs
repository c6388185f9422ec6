//! One attempt at one replica: admission or a hop, the engine's reply, and its way back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Either, Full, Limited};
use hyper::body::{Body, Incoming};
use plimsoll_fleet::Endpoint;
use xxhash_rust::xxh3::xxh3_64;

use super::account::{Account, Outcome, Place, Sizes};
use super::handler::{Answer, Proxy, drain, error_answer};
use super::handover::{Tries, without_hand_over};
use super::headers::{self as names, positive, text};
use super::hop::Hop;
use super::relay::{AnswerBody, Relay};
use super::resumption::Resumption;
use super::routing::ADAPTER_WAIT_MS;
use super::upstream::{InBody, UpstreamError, Whom};
use crate::adapters::visit::{self, Using};
use crate::admit::lengths::LengthKey;
use crate::admit::{Refusal, RefusalReason, Wish};
use crate::body::{self, Api, Parsed};
use crate::driver::Driver;
use crate::local::{self, LocalEngine};
use crate::openai::{ApiError, reshaped};
use crate::replica::{Flight, Replica};
use crate::route::Ranked;
use crate::route::residency::{self, News};
use crate::shared::Pool;
use crate::sse::{SseScanner, id_of, rename_model, usage_of, with_cached_tokens};

/// Why an attempt at one replica gave no answer.
#[derive(Debug)]
pub(super) enum Missed {
    /// Not admitted: the next choice may.
    Refused(Refusal),
    /// Broke before the first byte of an answer; whoever tried knows what that says of the replica.
    Unreached(UpstreamError),
    /// Failed before the first byte of an answer: the next choice may do better.
    Failed(String),
    /// Failed once an answer that does not stream had begun.
    Begun(String),
}

/// How long an agent that is gone is not asked again, real time.
const AGENT_GONE: Duration = Duration::from_secs(2);

/// What the routing loop needs of a request.
#[derive(Debug, Clone)]
pub(super) struct Routed {
    pub(super) api: Api,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) parsed: Parsed,
    /// Its model is an adapter, which engines know by the same name.
    pub(super) adapter: bool,
    /// The adapter was chosen among a group.
    pub(super) chosen: bool,
    pub(super) strip_usage: bool,
    /// When its answer is worthless, model ms.
    pub(super) deadline_ms: Option<f64>,
    pub(super) ttft_objective_ms: Option<f64>,
    pub(super) tpot_objective_ms: Option<f64>,
    /// When it must be over to meet its objective, model ms.
    pub(super) finish_by_ms: Option<f64>,
    /// When its task's stage should be over, model ms.
    pub(super) stage_by_ms: Option<f64>,
    /// Its tier.
    pub(super) priority: i32,
}

impl Routed {
    /// A reader for the stream of an endpoint.
    pub(super) fn scanner(&self, endpoint: &Endpoint) -> SseScanner {
        let scanner = SseScanner::new(self.strip_usage, self.renamed(endpoint));
        if self.chosen { scanner.keeping_id() } else { scanner }
    }

    /// The engine's name of the model and the client's, where they differ.
    fn renamed<'a>(&'a self, endpoint: &'a Endpoint) -> Option<(&'a str, &'a str)> {
        let served = &self.parsed.model;
        let engine = self.engine_model(endpoint);
        (engine != served).then_some((engine, served.as_str()))
    }

    /// For logs.
    pub(super) fn request_id(&self) -> &str {
        text(&self.headers, names::REQUEST_ID).unwrap_or("?")
    }

    /// The name that an engine knows the model by.
    fn engine_model<'a>(&'a self, endpoint: &'a Endpoint) -> &'a str {
        if self.adapter { &self.parsed.model } else { &endpoint.engine_model }
    }
}

/// What one engine is asked for a request: all of it, or one of its phases.
#[derive(Debug, Clone)]
pub(super) struct Errand {
    pub(super) hop: Hop,
    pub(super) body: Bytes,
    /// The prompt's cache comes from elsewhere.
    pub(super) prefilled: bool,
}

impl Proxy {
    /// Tries one replica, or a pair; takes note of failures.
    pub(super) async fn attempt(
        &self,
        routed: &Routed,
        sizes: Sizes,
        pool: &Arc<Pool>,
        ranked: &Ranked,
        tries: &mut Tries,
    ) -> Result<Reply, Missed> {
        if let Some(partner) = ranked.prefill {
            // Boxed, as all that few requests need: their futures would be moved with every other's.
            return Box::pin(self.hand_over(routed, sizes, pool, ranked, partner, tries)).await;
        }
        let errand = self.whole(routed, sizes, pool, ranked);
        self.run(routed, pool, ranked.endpoint, errand).await
    }

    /// The whole request for one replica.
    pub(super) fn whole(&self, routed: &Routed, sizes: Sizes, pool: &Pool, ranked: &Ranked) -> Errand {
        let endpoint = &pool.view.route.endpoints[ranked.endpoint];
        let now = self.shared.clock.now_ms();
        let body =
            body::rewrite(&routed.body, &routed.parsed, routed.engine_model(endpoint), routed.strip_usage);
        Errand {
            hop: Hop {
                replica: endpoint.replica.clone(),
                prompt_tokens: sizes.prompt_tokens,
                cached_tokens: ranked.cached_tokens,
                expected_output: sizes.expected_output,
                streaming: routed.parsed.stream,
                first_token_in_ms: routed.ttft_objective_ms.map(|ms| sizes.begun_ms + ms - now),
                tpot_ms: routed.tpot_objective_ms.filter(|_| routed.parsed.stream),
                finish_in_ms: routed.finish_by_ms.map(|by| by - now),
                stage_in_ms: routed.stage_by_ms.map(|by| by - now),
                most_output: routed.parsed.max_output.map(f64::from),
                priority: Some(routed.priority),
                adapter: routed.adapter.then(|| routed.parsed.model.clone()),
                marks: residency::marks(&routed.parsed.prefix),
                seen: None,
            },
            // Where engines hand over caches, whose they take is not for clients to say.
            body: if endpoint.hand_over.is_some() { without_hand_over(body) } else { body },
            prefilled: false,
        }
    }

    /// Does an errand at one replica, and takes note if that fails.
    pub(super) async fn run(
        &self,
        routed: &Routed,
        pool: &Arc<Pool>,
        endpoint: usize,
        errand: Errand,
    ) -> Result<Reply, Missed> {
        let tried = self.run_once(routed, pool, endpoint, errand).await;
        if let Err(Missed::Failed(_) | Missed::Begun(_) | Missed::Unreached(_)) = &tried {
            let replica = &pool.view.route.endpoints[endpoint].replica;
            self.shared.book.lock().replica_failed(replica);
        }
        tried
    }

    /// Tries one replica: through the agent beside it, or directly if that is gone.
    async fn run_once(
        &self,
        routed: &Routed,
        pool: &Arc<Pool>,
        endpoint: usize,
        errand: Errand,
    ) -> Result<Reply, Missed> {
        let shared = &self.shared;
        let (replica, index) = (&pool.replicas[endpoint], endpoint);
        let endpoint = &pool.view.route.endpoints[endpoint];
        let now = shared.clock.now_ms();
        let Errand { mut hop, body, prefilled } = errand;
        let out = || Either::Left(Full::new(body.clone()));
        let mut headers = routed.headers.clone();
        let api = routed.api;
        let reached = |missed| self.reached(replica, missed);
        match &replica.local {
            Some(engine) => {
                let permit = self
                    .admit(
                        engine,
                        replica,
                        endpoint,
                        &routed.headers,
                        routed.priority,
                        &hop,
                        routed.deadline_ms,
                    )
                    .await
                    .map_err(Missed::Refused)?;
                engine.held.lock().note(&hop.marks);
                let place = Place::Here(permit);
                self.send(Whom::Engine, &endpoint.engine_address, headers, out(), place, replica, api)
                    .await
                    .map_err(reached)
            }
            None => {
                let uncached = hop.prompt_tokens - hop.cached_tokens;
                let place = || {
                    Place::There(if prefilled {
                        Flight::prefilled(replica.clone(), hop.prompt_tokens)
                    } else {
                        Flight::new(replica.clone(), uncached)
                    })
                };
                let agent = endpoint.agent_address.as_deref().filter(|_| !replica.agent_gone(now));
                if let Some(agent) = agent {
                    hop.seen = replica.followed();
                    let mut hop_headers = headers.clone();
                    self.hop_headers(&mut hop_headers, &hop, routed.deadline_ms)?;
                    let missed = match self
                        .send(Whom::Agent, agent, hop_headers, out(), place(), replica, api)
                        .await
                    {
                        Ok(reply) => {
                            self.hear(pool, index, &reply.head.headers);
                            return Ok(Reply { through_agent: true, ..reply });
                        }
                        Err(missed) => missed,
                    };
                    let how = match &missed {
                        Missed::Unreached(UpstreamError::Connect { timed_out: false, .. }) => "refused",
                        // Its pod may be gone with its address while the engine, in a pod of its own, lives.
                        Missed::Unreached(UpstreamError::Connect { timed_out: true, .. }) => "silent",
                        Missed::Unreached(UpstreamError::Broken { .. })
                            if self.upstream.refuses(agent).await =>
                        {
                            "reset"
                        }
                        _ => return Err(reached(missed)),
                    };
                    if shared.config.limits.ask_engines_directly {
                        tracing::warn!(request_id = routed.request_id(), replica = %replica.id, agent, how, "the agent is gone, its engine is asked directly");
                        self.count_reason(&shared.config.metrics.bypasses, how);
                    }
                    replica.agent_lost(shared.clock.now_ms() + shared.clock.model_ms(AGENT_GONE));
                    if how == "reset" {
                        // The engine may not have seen yet that whoever asked has gone: names must differ.
                        names::rename_request(&mut headers, "direct");
                    }
                }
                if !shared.config.limits.ask_engines_directly {
                    return Err(Missed::Refused(Refusal {
                        reason: RefusalReason::EngineDown,
                        retry_after_ms: shared.clock.model_ms(AGENT_GONE),
                    }));
                }
                self.send(Whom::Engine, &endpoint.engine_address, headers, out(), place(), replica, api)
                    .await
                    .map_err(reached)
            }
        }
    }

    /// Takes in what the agent beside an engine says that others have sent there.
    fn hear(&self, pool: &Pool, endpoint: usize, headers: &HeaderMap) {
        let Some(news) = text(headers, names::HELD).and_then(News::parse) else { return };
        pool.replicas[endpoint].follow(news.upto);
        let tokens_per_block = pool.memory.tokens_per_block();
        pool.memory.router.lock().hear(&pool.view, endpoint, tokens_per_block, &news);
    }

    /// Adds what the agent beside an engine is told.
    fn hop_headers(
        &self,
        headers: &mut HeaderMap,
        hop: &Hop,
        deadline_ms: Option<f64>,
    ) -> Result<(), Missed> {
        let limits = &self.shared.config.limits;
        let value = HeaderValue::from_str(&hop.to_text());
        headers.insert(names::HOP, value.map_err(|e| Missed::Failed(e.to_string()))?);
        if let Some(key) = limits.hop_secret.as_deref().and_then(|k| HeaderValue::from_str(k).ok()) {
            headers.insert(names::HOP_KEY, key);
        }
        if let Some(deadline) = deadline_ms {
            let left_ms = (deadline - self.shared.clock.now_ms()).max(1.0);
            headers.insert(names::DEADLINE_MS, HeaderValue::from(left_ms as u64));
        }
        Ok(())
    }

    /// What was tried was the replica itself: that it was not reached speaks against it.
    fn reached(&self, replica: &Replica, missed: Missed) -> Missed {
        match missed {
            Missed::Unreached(error) => {
                replica.failed(self.shared.clock.now_ms());
                Missed::Failed(error.to_string())
            }
            other => other,
        }
    }

    /// Asks for admission to an engine of this node.
    pub(super) async fn admit(
        &self,
        engine: &Arc<LocalEngine>,
        replica: &Arc<Replica>,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        priority: i32,
        hop: &Hop,
        deadline_ms: Option<f64>,
    ) -> Result<local::Permit, Refusal> {
        let shared = &self.shared;
        let using = match &hop.adapter {
            None => None,
            Some(name) => Some(self.reach_adapter(engine, endpoint, name, deadline_ms).await?),
        };
        let now = shared.clock.now_ms();
        let wish = Wish {
            priority,
            whose: LengthKey {
                tenant: names::tenant(headers),
                class: text(headers, names::SLO_CLASS).map_or(0, |c| xxh3_64(c.as_bytes())),
            },
            weight: shared.tenant_weight(names::first_text(headers, &names::TENANTS)),
            prompt_tokens: hop.prompt_tokens,
            cached_tokens: hop.cached_tokens,
            expected_output: hop.expected_output,
            most_output: hop.most_output,
            first_token_in_ms: hop.first_token_in_ms,
            tpot_ms: hop.tpot_ms,
            finish_in_ms: hop.finish_in_ms,
            stage_in_ms: hop.stage_in_ms,
            deadline_in_ms: deadline_ms.map(|deadline| deadline - now),
            streaming: hop.streaming,
        };
        let ask = wish.ask(shared.next_id(), now, &endpoint.coefficients, &replica.load(now));
        let admitted = local::admit(engine, replica, shared.clock, ask).await;
        if let Err(refusal) = &admitted {
            self.count_reason(&shared.config.metrics.refusals, refusal.reason.as_str());
        }
        admitted.map(|permit| permit.with(using))
    }

    /// Waits for an adapter at an engine of this node, within the request's deadline.
    async fn reach_adapter(
        &self,
        engine: &Arc<LocalEngine>,
        endpoint: &Endpoint,
        name: &str,
        deadline_ms: Option<f64>,
    ) -> Result<Using, Refusal> {
        let shared = &self.shared;
        let began = shared.clock.now_ms();
        let until_ms = match deadline_ms {
            // Engines that load nothing while they run hold what they were started with.
            _ if Driver::of(endpoint.engine).adapter_paths().is_none() => began,
            Some(deadline) => deadline,
            None => began + ADAPTER_WAIT_MS,
        };
        let there = engine.adapters.lock().held().is_none_or(|held| held.contains(name));
        let reached =
            visit::reach(engine, name, shared.clock, until_ms, shared.config.limits.max_queue).await;
        let how = match &reached {
            Ok(_) if there => "held",
            Ok(_) => "loaded",
            Err(_) => "failed",
        };
        self.count_reason(&shared.config.metrics.adapter_requests, how);
        if let Err(refusal) = &reached {
            self.count_reason(&shared.config.metrics.refusals, refusal.reason.as_str());
        }
        reached
    }

    /// Sends a request and waits for the first byte of its answer, or for all of it if it does not stream.
    pub(super) async fn send(
        &self,
        whom: Whom,
        address: &str,
        headers: HeaderMap,
        body: super::upstream::OutBody,
        place: Place,
        replica: &Arc<Replica>,
        api: Api,
    ) -> Result<Reply, Missed> {
        let shared = &self.shared;
        let response = self
            .upstream
            .send(whom, address, PathAndQuery::from_static(api.path()), Method::POST, headers, body)
            .await
            .map_err(Missed::Unreached)?;
        let (head, mut body) = response.into_parts();
        if let Some(load) = names::find(&head.headers, names::LOAD).and_then(|v| v.to_str().ok()) {
            replica.take_hint(load, shared.clock.now_ms());
        }
        let refused = text(&head.headers, names::REFUSED).and_then(RefusalReason::from_text);
        if refused.is_some() || head.status == StatusCode::TOO_MANY_REQUESTS {
            if matches!(
                refused,
                Some(RefusalReason::EngineDown | RefusalReason::Draining | RefusalReason::UnknownReplica)
            ) {
                // Its agent knows better than our table: others first for a while.
                replica.failed(shared.clock.now_ms());
            }
            let after = positive(&head.headers, &[header::RETRY_AFTER]).unwrap_or(1.0);
            return Err(Missed::Refused(Refusal {
                reason: refused.unwrap_or(RefusalReason::QueueFull),
                retry_after_ms: shared.clock.model_ms(Duration::from_secs_f64(after.min(3600.0))),
            }));
        }
        if names::find(&head.headers, names::BEGUN).is_some() {
            return Err(Missed::Begun(format!("replica {} broke off its answer", replica.id)));
        }
        if matches!(head.status.as_u16(), 502..=504) {
            replica.failed(shared.clock.now_ms());
            return Err(Missed::Failed(format!("{address} answered {}", head.status)));
        }
        let streams = names::find(&head.headers, header::CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let content = if streams && head.status.is_success() {
            let first = self
                .upstream
                .part(address, &mut body, self.upstream.first_byte)
                .await
                .map_err(Missed::Unreached)?;
            match first {
                Some(first) => Content::Stream { first, rest: body },
                None if api.is_generation() => {
                    replica.failed(shared.clock.now_ms());
                    return Err(Missed::Failed(format!("the stream of {address} ended before it began")));
                }
                None => Content::Whole(Bytes::new()),
            }
        } else {
            let limit = shared.config.limits.max_answer_bytes;
            let first = self
                .upstream
                .part(address, &mut body, self.upstream.first_byte)
                .await
                .map_err(Missed::Unreached)?;
            let Some(first) = first else {
                let content = Content::Whole(Bytes::new());
                return Ok(Reply { head, content, place, through_agent: false });
            };
            let whole = self.upstream.collect(address, first, body, limit).await.map_err(|e| {
                replica.failed(shared.clock.now_ms());
                Missed::Begun(e.to_string())
            })?;
            Content::Whole(whole)
        };
        replica.succeeded();
        Ok(Reply { head, content, place, through_agent: false })
    }

    /// Turns an engine's reply into the client's answer and settles the account, now or when the stream is over.
    pub(super) fn deliver(
        &self,
        routed: Routed,
        endpoint: &Endpoint,
        replica: &Arc<Replica>,
        reply: Reply,
        mut account: Account,
        plan: u64,
    ) -> Answer {
        tracing::Span::current().record("replica", endpoint.replica.as_str());
        account.served_by(&endpoint.replica);
        let mut headers = reply.head.headers;
        names::keep_for_client(&mut headers);
        if let Some(prefill) = reply.place.prefilled_by() {
            account.prefilled_by(prefill.clone());
            if let Ok(value) = HeaderValue::from_str(prefill.replica.as_str()) {
                headers.insert(names::PREFILL_REPLICA, value);
            }
        }
        headers.insert(names::PLAN, HeaderValue::from(plan));
        if let Some(value) = routed.chosen.then(|| HeaderValue::from_str(&routed.parsed.model).ok()).flatten()
        {
            headers.insert(names::ADAPTER, value);
        }
        if let Ok(value) = HeaderValue::from_str(endpoint.replica.as_str()) {
            headers.insert(names::REPLICA, value);
        }
        let body = match reply.content {
            Content::Stream { first, rest } => AnswerBody::Stream(Box::new(Relay::new(
                rest,
                first,
                routed.scanner(endpoint),
                self.upstream.idle_after,
                Some(account),
                reply.place,
                endpoint.replica.to_string(),
                routed.api.is_generation(),
                (routed.api.is_generation() && reply.head.status.is_success())
                    .then(|| Resumption::new(self.clone(), routed, replica.clone(), reply.through_agent)),
            ))),
            Content::Whole(bytes) => {
                let status = reply.head.status;
                let outcome = match status.as_u16() {
                    200..=399 => Outcome::Finished,
                    400..=499 => Outcome::Invalid,
                    _ => Outcome::Failed,
                };
                let usage = usage_of(&bytes).filter(|_| status.is_success());
                let bytes = match reply.place.prefilled_by().filter(|_| usage.is_some()) {
                    Some(prefill) => {
                        with_cached_tokens(&bytes, prefill.cached_tokens()).map_or(bytes, Bytes::from)
                    }
                    None => bytes,
                };
                reply.place.finished(usage.map(|u| u.completion_tokens as f64));
                if let Some(id) = account.wants_id().then(|| id_of(&bytes)).flatten() {
                    account.answered_as(&id);
                }
                account.settle(outcome, usage);
                if outcome != Outcome::Finished
                    && let Some(error) = reshaped(status, &bytes)
                {
                    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                    return answer_of(status, headers, AnswerBody::full(error));
                }
                let quoted = |name: &str| serde_json::Value::from(name).to_string().into_bytes();
                let bytes = routed
                    .renamed(endpoint)
                    .and_then(|(from, to)| rename_model(&bytes, &quoted(from), &quoted(to)))
                    .map_or(bytes, Bytes::from);
                AnswerBody::full(bytes)
            }
        };
        answer_of(reply.head.status, headers, body)
    }

    /// A request that another agent routed here: admit it to its engine or refuse it; never forward it elsewhere.
    pub(super) async fn hop(
        &self,
        mut parts: http::request::Parts,
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
        let priority = hop.priority.unwrap_or_else(|| names::priority(&parts.headers, &local.pool.route));
        let admitted = self
            .admit(
                &local.engine,
                &local.replica,
                &local.endpoint,
                &parts.headers,
                priority,
                &hop,
                deadline_ms,
            )
            .await;
        let permit = match admitted {
            Ok(permit) => permit,
            Err(refusal) => {
                drain(body).await;
                return Ok(self.refuse_hop(&refusal, Some(&local.replica)));
            }
        };
        let news = local.engine.held.lock().exchange(hop.seen, &hop.marks);
        names::keep_for_engine(&mut parts.headers);
        let mut headers = parts.headers;
        headers.remove(names::DEADLINE_MS);
        if let Some(length) = body.size_hint().exact() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let out = Either::Right(Limited::new(body, shared.config.limits.max_body_bytes + 4096));
        let address = &local.endpoint.engine_address;
        let place = Place::Here(permit);
        let sent = self.send(Whom::Engine, address, headers, out, place, &local.replica, api).await;
        match sent.map_err(|missed| self.reached(&local.replica, missed)) {
            Ok(reply) => {
                let mut headers = reply.head.headers;
                names::keep_for_client(&mut headers);
                if hop.seen != Some(news.upto)
                    && let Ok(value) = HeaderValue::from_str(&news.to_text())
                {
                    headers.insert(names::HELD, value);
                }
                let body = match reply.content {
                    Content::Stream { first, rest } => AnswerBody::Stream(Box::new(Relay::new(
                        rest,
                        first,
                        SseScanner::new(false, None),
                        self.upstream.idle_after,
                        None,
                        reply.place,
                        local.replica.id.to_string(),
                        api.is_generation(),
                        None,
                    ))),
                    Content::Whole(bytes) => {
                        let usage = usage_of(&bytes).filter(|_| reply.head.status.is_success());
                        reply.place.finished(usage.map(|u| u.completion_tokens as f64));
                        // It is no load any more, and is not to be told as one.
                        drop(reply.place);
                        AnswerBody::full(bytes)
                    }
                };
                if let Ok(value) = HeaderValue::from_str(&local.replica.hint_text()) {
                    headers.insert(names::LOAD, value);
                }
                Ok(answer_of(reply.head.status, headers, body))
            }
            Err(Missed::Refused(refusal)) => Ok(self.refuse_hop(&refusal, Some(&local.replica))),
            Err(Missed::Failed(what)) => {
                Err(ApiError::server(StatusCode::BAD_GATEWAY, "engine_failed", what))
            }
            Err(Missed::Unreached(error)) => {
                Err(ApiError::server(StatusCode::BAD_GATEWAY, "engine_failed", error.to_string()))
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

fn answer_of(status: StatusCode, headers: HeaderMap, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// What an engine, or the agent beside it, replied.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: http::response::Parts,
    pub(super) content: Content,
    pub(super) place: Place,
    /// The agent beside the engine passes it on.
    pub(super) through_agent: bool,
}

#[derive(Debug)]
pub(super) enum Content {
    Whole(Bytes),
    Stream { first: Bytes, rest: InBody },
}
