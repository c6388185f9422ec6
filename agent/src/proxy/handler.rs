//! One request: read, route, admit or forward, relay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Incoming};
use plimsoll_fleet::{Endpoint, PoolRoute, SloClass};
use serde_json::json;
use tracing::Instrument;

use super::account::{Account, Outcome, Place};
use super::headers::{self as names, positive, text};
use super::hop::Hop;
use super::relay::{AnswerBody, Relay};
use super::upstream::{Upstream, UpstreamError};
use crate::admit::{Ask, Refusal, RefusalReason};
use crate::body::{self, Api, Parsed};
use crate::local::{self, LocalEngine};
use crate::metrics::{AgentLabels, ReasonLabels, RequestLabels};
use crate::openai::ApiError;
use crate::replica::{Flight, Replica};
use crate::route::{self, Excluded, Ranked};
use crate::shared::{Pool, Shared};
use crate::sse::{SseScanner, rename_model, usage_of};

/// The proxy of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Upstream,
}

type Answer = Response<AnswerBody>;

/// Why an attempt at one replica gave no answer.
enum Missed {
    Refused(Refusal),
    Failed(String),
}

/// What the routing loop needs of a request.
struct Routed<'a> {
    api: Api,
    path: &'a str,
    headers: HeaderMap,
    body: Bytes,
    parsed: Parsed,
    strip_usage: bool,
    /// When its answer is worthless, model ms.
    deadline_ms: Option<f64>,
    ttft_objective_ms: Option<f64>,
}

impl Proxy {
    /// Answers one request. Never fails: errors become answers in OpenAI's shape.
    pub(crate) async fn handle(self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let request_id = parts
            .headers
            .get(names::REQUEST_ID)
            .filter(|v| v.len() <= 128)
            .cloned()
            .unwrap_or_else(|| self.new_request_id());
        let path = parts.uri.path();
        let span = tracing::info_span!(
            "request", id = %request_id.to_str().unwrap_or("?"), method = %parts.method, path,
            model = tracing::field::Empty, pool = tracing::field::Empty, replica = tracing::field::Empty,
            class = tracing::field::Empty,
        );
        let result = self.dispatch(parts, body, &request_id).instrument(span.clone()).await;
        let mut answer = result.unwrap_or_else(|error| {
            span.in_scope(
                || tracing::debug!(status = error.status.as_u16(), message = %error.message, "refused"),
            );
            error_answer(&error)
        });
        answer.headers_mut().insert(names::REQUEST_ID, request_id);
        answer
    }

    fn new_request_id(&self) -> HeaderValue {
        let id = format!("{:x}-{:x}", self.shared.incarnation, self.shared.next_id());
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }

    async fn dispatch(
        &self,
        parts: http::request::Parts,
        body: Incoming,
        request_id: &HeaderValue,
    ) -> Result<Answer, ApiError> {
        let limits = &self.shared.config.limits;
        let header_bytes: usize = parts.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
        if header_bytes > limits.max_header_bytes {
            let message = format!(
                "the request's headers take {header_bytes} bytes; the limit is {}",
                limits.max_header_bytes
            );
            return Err(ApiError::invalid(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                message,
            ));
        }
        let path = parts.uri.path();
        let Some(api) = Api::from_path(path) else {
            return self.other(&parts.method, path);
        };
        if parts.method != Method::POST {
            return Err(wrong_method(&parts.method, path, "POST"));
        }
        if let Some(hop) = parts.headers.get(names::HOP) {
            let key_fits = limits.hop_secret.as_deref().is_none_or(|secret| {
                parts.headers.get(names::HOP_KEY).is_some_and(|k| same_text(k.as_bytes(), secret.as_bytes()))
            });
            let hop = hop.to_str().ok().and_then(Hop::parse);
            return match hop {
                Some(hop) if key_fits => self.hop(&parts, path, api, body, hop).await,
                _ => Err(ApiError::invalid(
                    StatusCode::BAD_REQUEST,
                    "bad_hop",
                    "x-plimsoll-hop is for agents among themselves; send the request without it",
                )),
            };
        }
        let body = self.read_body(body, &parts.headers).await?;
        self.client(&parts, path, api, body, request_id).await
    }

    /// Everything that is not an inference request.
    fn other(&self, method: &Method, path: &str) -> Result<Answer, ApiError> {
        let known = matches!(path, "/v1/models" | "/health" | "/healthz" | "/readyz");
        let model = path.strip_prefix("/v1/models/");
        if !known && model.is_none() {
            return Err(ApiError::invalid(
                StatusCode::NOT_FOUND,
                "unknown_url",
                format!(
                    "there is nothing at {path}; this server has POST /v1/chat/completions, /v1/completions, \
                     /v1/embeddings, /v1/responses and /tokenize, and GET /v1/models, /healthz and /readyz"
                ),
            ));
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(wrong_method(method, path, "GET"));
        }
        let table = self.shared.table.load();
        let model_object = |pool: &Pool| {
            let route = &pool.view.route;
            json!({
                "id": route.served_name, "object": "model", "created": 0, "owned_by": "plimsoll",
                "max_model_len": route.max_context_tokens,
            })
        };
        match (path, model) {
            ("/v1/models", _) => {
                let mut pools: Vec<&Arc<Pool>> = table.by_name.values().collect();
                pools.sort_by(|a, b| a.view.route.served_name.cmp(&b.view.route.served_name));
                let data: Vec<_> = pools.into_iter().map(|p| model_object(p)).collect();
                Ok(json_answer(StatusCode::OK, &json!({"object": "list", "data": data})))
            }
            (_, Some(name)) => match table.by_name.get(name) {
                Some(pool) => Ok(json_answer(StatusCode::OK, &model_object(pool))),
                None => Err(self.unknown_model(name)),
            },
            ("/readyz", _) if self.shared.stopping.load(Ordering::Relaxed) => {
                Ok(json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "stopping"})))
            }
            ("/readyz", _) if table.routes.version == 0 && table.by_name.is_empty() => {
                Ok(json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "no routes yet"})))
            }
            _ => Ok(json_answer(
                StatusCode::OK,
                &json!({"status": "ok", "route_version": table.routes.version, "plan": table.routes.plan}),
            )),
        }
    }

    fn unknown_model(&self, name: &str) -> ApiError {
        let table = self.shared.table.load();
        let mut known: Vec<&str> = table.by_name.keys().map(String::as_str).collect();
        known.sort_unstable();
        let listed = match known.len() {
            0 => "no model is served yet; apply a ModelPool".to_owned(),
            n if n > 20 => {
                format!("there are {n}, see GET /v1/models, among them {}", known[..20].join(", "))
            }
            _ => format!("served are: {}", known.join(", ")),
        };
        let name: String = name.chars().take(200).collect();
        ApiError::invalid(
            StatusCode::NOT_FOUND,
            "model_not_found",
            format!("the model {name:?} does not exist; {listed}"),
        )
        .with_param("model")
    }

    async fn read_body(&self, mut body: Incoming, headers: &HeaderMap) -> Result<Bytes, ApiError> {
        let limits = &self.shared.config.limits;
        let limit = limits.max_body_bytes;
        let too_long = || {
            ApiError::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is over the limit of {limit} bytes; send a shorter one"),
            )
        };
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit as u64) {
            drain(body).await;
            return Err(too_long());
        }
        let mut first: Option<Bytes> = None;
        let mut all: Option<BytesMut> = None;
        let mut length = 0;
        loop {
            let frame = match tokio::time::timeout(limits.client_read_timeout, body.frame()).await {
                Err(_) => {
                    return Err(ApiError::invalid(
                        StatusCode::REQUEST_TIMEOUT,
                        "body_timeout",
                        format!("no part of the body came for {:?}", limits.client_read_timeout),
                    ));
                }
                Ok(None) => break,
                Ok(Some(Err(e))) => {
                    return Err(ApiError::invalid(
                        StatusCode::BAD_REQUEST,
                        "body_incomplete",
                        format!("the body could not be read: {e}"),
                    ));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length > limit {
                drain(body).await;
                return Err(too_long());
            }
            match (&mut first, &mut all) {
                (None, _) => first = Some(data),
                (_, Some(buffer)) => buffer.extend_from_slice(&data),
                (Some(head), None) => {
                    let capacity = announced.map_or(2 * length, |n| n as usize).clamp(length, limit);
                    let mut buffer = BytesMut::with_capacity(capacity);
                    buffer.extend_from_slice(head);
                    buffer.extend_from_slice(&data);
                    all = Some(buffer);
                }
            }
        }
        Ok(all.map(BytesMut::freeze).or(first).unwrap_or_default())
    }

    /// A request from a client: route it.
    async fn client(
        &self,
        parts: &http::request::Parts,
        path: &str,
        api: Api,
        raw: Bytes,
        request_id: &HeaderValue,
    ) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let parsed = body::parse(api, &raw).map_err(|e| {
            let error = ApiError::invalid(StatusCode::BAD_REQUEST, "invalid_body", e.to_string());
            match e.param() {
                Some(param) => error.with_param(param),
                None => error,
            }
        })?;
        let pool = shared.table.load().by_name.get(&parsed.model).cloned();
        let Some(pool) = pool else { return Err(self.unknown_model(&parsed.model)) };
        let route = &pool.view.route;
        let class = slo_class(route, &parts.headers);
        let class_name = class.map_or(plimsoll_fleet::slo::DEFAULT_SLO_CLASS, |c| c.name.as_str()).to_owned();
        let span = tracing::Span::current();
        span.record("model", parsed.model.as_str());
        span.record("pool", route.pool.to_string());
        span.record("class", class_name.as_str());

        let mut account = Account::begin(shared.clone(), pool.clone(), class_name, parsed.prompt_bytes);
        {
            let stats = pool.memory.stats.lock();
            account.prompt_estimate = (parsed.prompt_bytes as f64 / stats.bytes_per_token()).max(1.0);
            account.expected_output = if api.is_generation() || api == Api::Responses {
                let expected = stats.expected_output(&account.class);
                parsed.max_output.map_or(expected, |m| expected.min(f64::from(m))).max(1.0)
            } else {
                1.0
            };
        }
        let worst_output = parsed.max_output.map_or(account.expected_output, f64::from);
        if let Err(e) = self.reserve(&mut account, &parts.headers, worst_output) {
            account.settle(Outcome::Refused, None);
            return Err(e);
        }

        let mut headers = names::forward_request(&parts.headers);
        headers.insert(names::REQUEST_ID, request_id.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(value) = HeaderValue::from_str(&account.class) {
            headers.insert(names::SLO_CLASS, value);
        }
        let ttft_objective_ms = positive(&parts.headers, &names::TTFT_OBJECTIVES)
            .or_else(|| class.and_then(|c| c.slo.ttft).map(|o| o.ms));
        let routed = Routed {
            api,
            path,
            headers,
            strip_usage: parsed.stream && api.is_generation() && !parsed.include_usage,
            deadline_ms: positive(&parts.headers, &[names::DEADLINE_MS]).map(|ms| account.begun_ms() + ms),
            ttft_objective_ms,
            parsed,
            body: raw,
        };
        self.route(routed, account).await
    }

    /// Sets the worst case aside on the leases of the budgets that the request answers to: those named like its
    /// tenant, its pool's namespace or its pool.
    fn reserve(&self, account: &mut Account, headers: &HeaderMap, worst_output: f64) -> Result<(), ApiError> {
        let pool = &account.pool.view.route.pool;
        let pool_text = pool.to_string();
        let mut budgets = vec![pool_text.as_str(), pool.namespace()];
        budgets.extend(names::first_text(headers, &names::TENANTS));
        budgets.dedup();
        let now = jiff::Timestamp::now().as_millisecond();
        let reserved =
            self.shared.spend.lock().reserve(&budgets, account.prompt_estimate + worst_output, now);
        match reserved {
            Ok(reservation) => {
                account.reservation = reservation;
                Ok(())
            }
            Err(e) => Err(ApiError::busy("budget_exhausted", e.to_string(), Duration::from_secs(5))),
        }
    }

    /// Chooses, tries, and tries the next, until there is an answer.
    async fn route(&self, routed: Routed<'_>, mut account: Account) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let mut held: Option<Held> = None;
        let settle_until = tokio::time::Instant::now() + shared.config.limits.settle_wait;
        loop {
            // Subscribed before the table is read, so that no change is missed.
            let mut changed = shared.changed.subscribe();
            let Some(pool) = shared.table.load().by_name.get(&routed.parsed.model).cloned() else {
                account.settle(Outcome::Refused, None);
                return Err(self.unknown_model(&routed.parsed.model));
            };
            account.pool = pool.clone();
            let stats_tokens_per_block =
                route::BLOCK_BYTES as f64 / pool.memory.stats.lock().bytes_per_token();
            let class = account.class.clone();
            let request = route::Request {
                class: &class,
                prefix: &routed.parsed.prefix,
                prompt_tokens: account.prompt_estimate,
                tokens_per_block: stats_tokens_per_block,
                expected_output: account.expected_output,
                adapter: None,
                ttft_objective_ms: routed.ttft_objective_ms,
            };
            let choice = {
                let now = shared.clock.now_ms();
                let began = tokio::time::Instant::now();
                let mut memory = pool.memory.router.lock();
                let choice = route::choose(&pool.view, &request, |i| pool.replicas[i].load(now), &mut memory);
                if let Some(first) = choice.order.first() {
                    memory.record(&pool.view, &request, first.endpoint);
                }
                drop(memory);
                let label = AgentLabels { agent: shared.config.name.clone() };
                shared
                    .config
                    .metrics
                    .choice_seconds
                    .get_or_create(&label)
                    .observe(began.elapsed().as_secs_f64());
                choice
            };
            let Some(first) = choice.order.first().copied() else {
                if held.is_none() {
                    held = Held::begin(shared, &pool, &class);
                }
                let waited = match &held {
                    Some(_) => self.hold(&pool, choice.excluded, &account, &mut changed).await,
                    None => Err(ApiError::busy(
                        "too_many_waiting",
                        format!(
                            "{}; too many requests wait for it already",
                            unavailable(&pool.view.route, choice.excluded)
                        ),
                        Duration::from_secs(5),
                    )),
                };
                if let Err(e) = waited {
                    account.settle(Outcome::Refused, None);
                    return Err(e);
                }
                continue;
            };
            held = None;

            let mut refusal: Option<Refusal> = None;
            let mut failure: Option<String> = None;
            let mut lasting = false;
            for (i, ranked) in choice.order.iter().enumerate() {
                if i > 0 {
                    let reason = match (&failure, &refusal) {
                        (Some(_), _) => "failed",
                        (_, Some(r)) => r.reason.as_str(),
                        _ => "other",
                    };
                    // Refusals cost nobody any work; failures do.
                    if failure.is_some() && !shared.retries.lock().spend() {
                        break;
                    }
                    self.count_reason(&shared.config.metrics.retries, reason);
                    pool.memory.router.lock().shift(&pool.view, &request, first.endpoint, ranked.endpoint);
                }
                self.count_reason(&shared.config.metrics.choices, ranked.reason.as_str());
                match self.attempt(&routed, &account, &pool, ranked).await {
                    Ok(reply) => {
                        let endpoint = &pool.view.route.endpoints[ranked.endpoint];
                        return Ok(self.deliver(
                            &routed,
                            endpoint,
                            reply,
                            account,
                            shared.table.load().routes.plan,
                        ));
                    }
                    Err(Missed::Refused(r)) => {
                        lasting |= matches!(
                            r.reason,
                            RefusalReason::QueueFull | RefusalReason::Deadline | RefusalReason::Displaced
                        );
                        refusal = Some(r);
                    }
                    Err(Missed::Failed(what)) => {
                        tracing::warn!(replica = %pool.view.route.endpoints[ranked.endpoint].replica, %what, "attempt failed");
                        failure = Some(what);
                    }
                }
            }

            // All that were chosen have gone or started to drain: the table is about to say so.
            if !lasting && failure.is_none() && tokio::time::Instant::now() < settle_until {
                let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
                continue;
            }
            return Err(match (failure, refusal) {
                (Some(what), _) => {
                    account.settle(Outcome::Failed, None);
                    ApiError::server(
                        StatusCode::BAD_GATEWAY,
                        "engine_failed",
                        format!(
                            "no replica of {:?} could answer: {what}; send the request again",
                            routed.parsed.model
                        ),
                    )
                    .with_retry_after(Duration::from_secs(1))
                }
                (None, refusal) => {
                    account.settle(Outcome::Refused, None);
                    let r = refusal
                        .unwrap_or(Refusal { reason: RefusalReason::EngineDown, retry_after_ms: 1000.0 });
                    self.refusal_error(&routed.parsed.model, &r)
                }
            });
        }
    }

    fn count_reason(
        &self,
        family: &prometheus_client::metrics::family::Family<
            ReasonLabels,
            prometheus_client::metrics::counter::Counter,
        >,
        reason: &'static str,
    ) {
        family.get_or_create(&ReasonLabels { agent: self.shared.config.name.clone(), reason }).inc();
    }

    fn refusal_error(&self, model: &str, r: &Refusal) -> ApiError {
        let after = self.shared.clock.real(r.retry_after_ms);
        let code = r.reason.as_str();
        match r.reason {
            RefusalReason::QueueFull | RefusalReason::Displaced => {
                ApiError::busy(code, format!("every queue for {model:?} is full; try again later"), after)
            }
            RefusalReason::Deadline => ApiError::busy(
                code,
                format!(
                    "no replica of {model:?} can meet the deadline; allow more than {} asks, or try again later",
                    names::DEADLINE_MS
                ),
                after,
            ),
            RefusalReason::Draining | RefusalReason::UnknownReplica | RefusalReason::EngineDown => {
                ApiError::server(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not_ready",
                    format!("the replicas of {model:?} are being replaced or are down; try again"),
                )
                .with_retry_after(after)
            }
        }
    }

    /// Waits for the pool to have a replica that may be used. `Ok` means: choose again.
    async fn hold(
        &self,
        pool: &Arc<Pool>,
        excluded: Excluded,
        account: &Account,
        changed: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Result<(), ApiError> {
        let shared = &self.shared;
        let route = &pool.view.route;
        let until_ms = account.begun_ms() + route.wake_wait_ms.max(0.0);
        // Engines may start faster than real ones; the loops that start them do not run faster.
        let slack = if route.wake_wait_ms > 0.0 { shared.clock.lost(LOOP_DELAYS) } else { Duration::ZERO };
        let left = shared.clock.real(until_ms + shared.clock.model_ms(slack) - shared.clock.now_ms());
        if left.is_zero() || shared.stopping.load(Ordering::Relaxed) {
            let after =
                shared.clock.real(route.wake_wait_ms).clamp(Duration::from_secs(1), Duration::from_secs(60));
            let why = unavailable(route, excluded);
            return Err(
                ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why).with_retry_after(after)
            );
        }
        // Health changes do not bump the table: look again now and then.
        let _ = tokio::time::timeout(left.min(Duration::from_millis(250)), changed.changed()).await;
        Ok(())
    }

    /// Tries one replica.
    async fn attempt(
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
    async fn admit(
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
    async fn send(
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
            let after = positive(&head.headers, &["retry-after"]).unwrap_or(1.0);
            return Err(Missed::Refused(Refusal {
                reason: refused.unwrap_or(RefusalReason::QueueFull),
                retry_after_ms: shared.clock.model_ms(Duration::from_secs_f64(after.min(3600.0))),
            }));
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
            Content::Whole(self.upstream.collect(address, body, limit).await.map_err(failed)?)
        };
        replica.succeeded();
        Ok(Reply { head, content, place })
    }

    /// Turns an engine's reply into the client's answer and settles the account, now or when the stream is over.
    fn deliver(
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
    async fn hop(
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
        }
    }

    fn refuse_hop(&self, refusal: &Refusal, replica: Option<&Arc<Replica>>) -> Answer {
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

/// What a wait for a pool to wake allows for the delays of the control loops, real time.
const LOOP_DELAYS: Duration = Duration::from_secs(10);

/// What an engine, or the agent beside it, replied.
struct Reply {
    head: http::response::Parts,
    content: Content,
    place: Place,
}

enum Content {
    Whole(Bytes),
    Stream { first: Bytes, rest: Incoming },
}

/// A request that waits for its pool to wake; it ends when dropped.
struct Held {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    class: String,
}

impl Held {
    fn begin(shared: &Arc<Shared>, pool: &Arc<Pool>, class: &str) -> Option<Self> {
        if shared.holding.fetch_add(1, Ordering::Relaxed) >= shared.config.limits.max_holding {
            shared.holding.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let held = Self { shared: shared.clone(), pool: pool.clone(), class: class.to_owned() };
        shared.book.lock().holding(&pool.view.route.pool, class, true);
        held.gauge(1);
        // The scheduler should know at once.
        shared.report_now.notify_one();
        Some(held)
    }

    fn gauge(&self, by: i64) {
        let labels = RequestLabels {
            agent: self.shared.config.name.clone(),
            pool: self.pool.view.route.pool.to_string(),
            class: self.class.clone(),
        };
        self.shared.config.metrics.holding.get_or_create(&labels).inc_by(by);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.holding.fetch_sub(1, Ordering::Relaxed);
        self.shared.book.lock().holding(&self.pool.view.route.pool, &self.class, false);
        self.gauge(-1);
    }
}

/// The class of a request: by name, by the class's match rules, else the pool's default.
fn slo_class<'a>(route: &'a PoolRoute, headers: &HeaderMap) -> Option<&'a SloClass> {
    let classes = &route.slo_classes;
    let named = text(headers, names::SLO_CLASS).or_else(|| names::first_text(headers, &names::OBJECTIVES));
    named
        .and_then(|name| classes.iter().find(|c| c.name == name))
        .or_else(|| {
            classes.iter().find(|c| {
                !c.match_headers.is_empty()
                    && c.match_headers.iter().all(|(name, value)| text(headers, name) == Some(value.as_str()))
            })
        })
        .or_else(|| classes.first())
}

fn unavailable(route: &PoolRoute, excluded: Excluded) -> String {
    let mut text = format!("no replica of {:?} is ready", route.served_name);
    let Excluded { draining, unhealthy, stalled, unplanned } = excluded;
    let mut parts: Vec<String> = Vec::new();
    if !route.unavailable_reason.is_empty() {
        parts.push(route.unavailable_reason.clone());
    }
    for (count, what) in [
        (draining, "draining"),
        (unhealthy, "not healthy"),
        (stalled, "stalled"),
        (unplanned, "without a share in the plan"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if !parts.is_empty() {
        text.push_str(": ");
        text.push_str(&parts.join(", "));
    }
    text
}

/// Equal in time that does not depend on where they differ.
fn same_text(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// Reads what is left of a body for a moment, so that the client can read the answer instead of a reset.
async fn drain(mut body: Incoming) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        let mut left = 64usize << 20;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

fn wrong_method(method: &Method, path: &str, allowed: &str) -> ApiError {
    ApiError::invalid(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{method} is not possible at {path}; use {allowed}"),
    )
}

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(AnswerBody::full(value.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn error_answer(error: &ApiError) -> Answer {
    let mut answer = Response::new(AnswerBody::full(error.body()));
    *answer.status_mut() = error.status;
    error.headers(answer.headers_mut());
    if error.status == StatusCode::METHOD_NOT_ALLOWED {
        let allow = if error.message.ends_with("GET") { "GET, HEAD" } else { "POST" };
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    answer
}
