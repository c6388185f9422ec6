//! A client's request: its class, budget and replica; what to try next; waiting for a pool to wake.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use plimsoll_fleet::{Endpoint, PoolRoute, SloClass};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::account::{Account, Outcome, Sizes};
use super::choosing::ForGroup;
use super::forward::{Missed, Routed};
use super::handler::{Answer, Proxy};
use super::handover::Tries;
use super::headers::{self as names, positive, text};
use crate::admit::{Refusal, RefusalReason};
use crate::body::{self, Api, Parsed};
use crate::metrics::{ReasonLabels, RequestLabels, ResumeLabels};
use crate::openai::ApiError;
use crate::route::{self, Excluded};
use crate::shared::{Pool, Shared};

/// Engines that one request may fail at: what breaks engines must not go round all of them.
pub(super) const MOST_FAILURES: u32 = 3;

/// What a wait for a pool to wake allows for the delays of the control loops, real time.
const LOOP_DELAYS: Duration = Duration::from_secs(10);

/// How long a request waits for an adapter that no replica holds, model ms.
pub(super) const ADAPTER_WAIT_MS: f64 = 10_000.0;

impl Proxy {
    /// A request from a client: route it.
    pub(super) async fn client(
        &self,
        mut parts: http::request::Parts,
        api: Api,
        raw: Bytes,
        request_id: &HeaderValue,
    ) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let mut parsed = body::parse(api, &raw).map_err(|e| {
            let error = ApiError::invalid(StatusCode::BAD_REQUEST, "invalid_body", e.to_string());
            match e.param() {
                Some(param) => error.with_param(param),
                None => error,
            }
        })?;
        let group = self.choose_adapter(&parts.headers, api, &raw, &mut parsed)?;
        let pool = shared.table.load().by_name.get(&parsed.model).cloned();
        let Some(pool) = pool else { return Err(self.unknown_model(&parsed.model)) };
        let adapter = pool.view.is_adapter(&parsed.model);
        let wish = group.as_ref().map(|of| &*of.chosen.wish);
        let Opened { mut account, ttft_objective_ms } =
            self.open(&parts.headers, api, &mut parsed, &pool, wish)?;
        let chosen = group.is_some();
        let raw = match group {
            Some(ForGroup { body, group, chosen }) => {
                account.chosen(chosen.ticket, group);
                if let Ok(id) = request_id.to_str() {
                    account.answered_as(id);
                }
                body
            }
            None => raw,
        };
        let route = &pool.view.route;
        let class = slo_class(route, &parts.headers);
        let tpot_objective_ms = positive(&parts.headers, &names::TPOT_OBJECTIVES)
            .or_else(|| class.and_then(|c| c.slo.tpot).map(|o| o.ms));
        let begun_ms = account.begun_ms();
        let mut deadline_ms = positive(&parts.headers, &[names::DEADLINE_MS]).map(|ms| begun_ms + ms);
        let finish_by_ms = class.and_then(|c| c.slo.e2e).map(|o| begun_ms + o.ms);
        let mut stage_by_ms = None;
        let mut priority = names::priority(&parts.headers, route);
        if let Some(name) = text(&parts.headers, names::TASK).filter(|t| !t.is_empty()) {
            let task = xxh3_64_with_seed(name.as_bytes(), names::tenant(&parts.headers));
            let class = xxh3_64(account.class.as_bytes());
            let call = shared.tasks.lock().call(begun_ms, task, class, deadline_ms, priority);
            account.task = Some(task);
            (deadline_ms, stage_by_ms, priority) = (call.deadline_ms, call.finish_by_ms, call.priority);
        }
        names::keep_for_engine(&mut parts.headers);
        let mut headers = parts.headers;
        headers.insert(names::REQUEST_ID, request_id.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(value) = HeaderValue::from_str(&account.class) {
            headers.insert(names::SLO_CLASS, value);
        }
        let routed = Routed {
            api,
            headers,
            strip_usage: parsed.stream && api.is_generation() && !parsed.include_usage,
            deadline_ms,
            tpot_objective_ms,
            finish_by_ms,
            stage_by_ms,
            priority,
            ttft_objective_ms,
            parsed,
            adapter,
            chosen,
            body: raw,
        };
        self.route(routed, account).await
    }

    /// Opens the account of a request: its class, its expected sizes, and what is set aside on budgets. One for an adapter is counted as demand
    /// for it, or for the one that a group would rather have had (`wish`), and its prompt's hashes become the adapter's.
    pub(crate) fn open(
        &self,
        headers: &HeaderMap,
        api: Api,
        parsed: &mut Parsed,
        pool: &Arc<Pool>,
        wish: Option<&str>,
    ) -> Result<Opened, ApiError> {
        let route = &pool.view.route;
        if pool.view.is_adapter(&parsed.model) {
            self.shared.book.lock().adapter_asked(wish.unwrap_or(&parsed.model));
            // Engines cache a prompt for each adapter apart.
            let seed = xxh3_64(parsed.model.as_bytes());
            parsed.prefix.iter_mut().for_each(|block| *block = xxh3_64_with_seed(&block.to_le_bytes(), seed));
        }
        let class = slo_class(route, headers);
        let class_name = class.map_or(plimsoll_fleet::slo::DEFAULT_SLO_CLASS, |c| c.name.as_str()).to_owned();
        let span = tracing::Span::current();
        span.record("model", parsed.model.as_str());
        span.record("pool", tracing::field::display(&route.pool));
        span.record("class", class_name.as_str());

        let counted = api != Api::Tokenize;
        let mut account =
            Account::begin(self.shared.clone(), pool.clone(), class_name, parsed.prompt_bytes, counted);
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
        if let Err(e) = self.reserve(&mut account, headers, worst_output) {
            account.settle(Outcome::Refused, None);
            return Err(e);
        }
        let ttft_objective_ms = positive(headers, &names::TTFT_OBJECTIVES)
            .or_else(|| class.and_then(|c| c.slo.ttft).map(|o| o.ms));
        Ok(Opened { account, ttft_objective_ms })
    }

    /// Sets the worst case aside on the leases of the budgets that the request answers to: those named like its
    /// tenant, its pool's namespace or its pool.
    pub(super) fn reserve(
        &self,
        account: &mut Account,
        headers: &HeaderMap,
        worst_output: f64,
    ) -> Result<(), ApiError> {
        let mut ledger = self.shared.spend.lock();
        if ledger.is_empty() {
            return Ok(());
        }
        let pool = account.pool.clone();
        let mut budgets = vec![pool.name.as_str(), pool.view.route.pool.namespace()];
        budgets.extend(names::first_text(headers, &names::TENANTS));
        budgets.dedup();
        let now = jiff::Timestamp::now().as_millisecond();
        match ledger.reserve(&budgets, account.prompt_estimate + worst_output, now) {
            Ok(reservation) => {
                account.reservation = reservation;
                Ok(())
            }
            Err(e) => Err(ApiError::busy("budget_exhausted", e.to_string(), Duration::from_secs(5))),
        }
    }

    /// Chooses, tries, and tries the next, until there is an answer.
    pub(super) async fn route(&self, routed: Routed, mut account: Account) -> Result<Answer, ApiError> {
        let shared = &self.shared;
        let mut held: Option<Held> = None;
        let mut failures = 0;
        let mut tries = Tries::default();
        let mut settle_until = tokio::time::Instant::now() + shared.config.limits.settle_wait;
        loop {
            // Subscribed before the table is read, so that no change is missed.
            let mut changed = shared.changed.subscribe();
            let Some(pool) = shared.table.load().by_name.get(&routed.parsed.model).cloned() else {
                account.settle(Outcome::Refused, None);
                return Err(self.unknown_model(&routed.parsed.model));
            };
            account.pool = pool.clone();
            let class = account.class.clone();
            let request = request(&routed, &class, account.sizes(), &pool);
            let choice = match self.choose(&pool, &request) {
                choice if choice.order.is_empty() => self.visit(&pool, &request).unwrap_or(choice),
                choice => choice,
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
            // Routes may say so before the agent beside a new engine knows that it serves.
            if held.take().is_some() {
                settle_until = tokio::time::Instant::now() + shared.config.limits.settle_wait;
            }

            let mut refusal: Option<Refusal> = None;
            let mut failure: Option<String> = None;
            let mut lasting = false;
            tries.spoiled.clear();
            for (i, ranked) in choice.order.iter().enumerate() {
                if tries.is_spoiled(ranked) {
                    continue;
                }
                if i > 0 {
                    let reason = match (&failure, &refusal) {
                        (Some(_), _) => "failed",
                        (_, Some(r)) => r.reason.as_str(),
                        _ => "other",
                    };
                    // Refusals cost nobody any work; failures do.
                    if failure.is_some() && (failures >= MOST_FAILURES || !shared.retries.lock().spend()) {
                        break;
                    }
                    self.count_reason(&shared.config.metrics.retries, reason);
                    let mut memory = pool.memory.router.lock();
                    memory.shift(&pool.view, &request, first.endpoint, ranked.endpoint);
                    if let Some(partner) = ranked.prefill {
                        memory.remember(&pool.view, &request, partner.endpoint);
                    }
                }
                self.count_choice(ranked.reason);
                match self.attempt(&routed, account.sizes(), &pool, ranked, &mut tries).await {
                    // What a dying engine says, but also one whom the request itself upsets: one more is asked.
                    Ok(reply)
                        if reply.head.status == StatusCode::INTERNAL_SERVER_ERROR
                            && routed.api.is_generation()
                            && failures == 0
                            && i + 1 < choice.order.len()
                            && !routed.too_late(shared) =>
                    {
                        failure = Some(format!("it answered {}", reply.head.status));
                        failures += 1;
                    }
                    // It was restarted a moment ago, and its agent has yet to load the adapter again.
                    Ok(reply) if routed.adapter && reply.head.status == StatusCode::NOT_FOUND => {
                        refusal = Some(Refusal { reason: RefusalReason::EngineDown, retry_after_ms: 1000.0 });
                    }
                    Ok(reply) => {
                        let endpoint = &pool.view.route.endpoints[ranked.endpoint];
                        // What the halves of a pair had cached is not one engine's to say.
                        account.much_cached = (ranked.prefill.is_none()
                            && ranked.cached_tokens >= route::MUCH_EXPECTED)
                            .then(|| pool.view.keys[ranked.endpoint]);
                        return Ok(self.deliver(
                            routed,
                            endpoint,
                            &pool.replicas[ranked.endpoint],
                            reply,
                            account,
                            shared.table.load().routes.plan,
                        ));
                    }
                    Err(Missed::Refused(r)) => {
                        lasting |= matches!(
                            r.reason,
                            RefusalReason::QueueFull
                                | RefusalReason::Deadline
                                | RefusalReason::Displaced
                                | RefusalReason::Adapter
                        );
                        refusal = Some(r);
                    }
                    // The client has nothing of it yet: it is asked for again, unless asking has effects of its own.
                    Err(Missed::Begun(what)) if routed.api != Api::Responses && !routed.too_late(shared) => {
                        tracing::warn!(request_id = routed.request_id(), replica = %pool.view.route.endpoints[ranked.endpoint].replica, %what, "answer lost");
                        self.count_resumed("asked_again");
                        failure = Some(what);
                        failures += 1;
                    }
                    Err(Missed::Begun(what)) => {
                        account.settle(Outcome::Failed, None);
                        return Err(ApiError::server(
                            StatusCode::BAD_GATEWAY,
                            "engine_failed",
                            format!("{what}; the answer had begun and is lost, send the request again"),
                        ));
                    }
                    Err(Missed::Unreached(error)) => {
                        failure = Some(error.to_string());
                        failures += 1;
                    }
                    Err(Missed::Failed(what)) => {
                        tracing::warn!(request_id = routed.request_id(), replica = %pool.view.route.endpoints[ranked.endpoint].replica, %what, "attempt failed");
                        failure = Some(what);
                        failures += 1;
                    }
                }
            }

            // All that were chosen have gone, failed or started to drain: the table is about to say so, or one comes back.
            let may_retry = failure.is_none() || (failures < MOST_FAILURES && shared.retries.lock().spend());
            if !lasting && may_retry && tokio::time::Instant::now() < settle_until {
                let _ =
                    tokio::time::timeout(Duration::from_millis(50) * (1 + failures), changed.changed()).await;
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

    /// The replica that an adapter which nobody holds is to be loaded at for a request: one that is to hold it anyway, else the same for
    /// all who ask.
    fn visit(&self, pool: &Pool, request: &route::Request<'_>) -> Option<route::Choice> {
        let name = request.adapter?;
        let without = route::Request { adapter: None, ..*request };
        pool.view.hosts(name).into_iter().find_map(|host| {
            let host = &pool.view.route.endpoints[host].replica;
            let choice = self.choose_among(pool, &without, |endpoint| endpoint.replica == *host);
            (!choice.order.is_empty()).then_some(choice)
        })
    }

    /// Chooses and takes note of it.
    pub(crate) fn choose(&self, pool: &Pool, request: &route::Request<'_>) -> route::Choice {
        self.choose_among(pool, request, |_| true)
    }

    /// The same among some of the endpoints.
    pub(crate) fn choose_among(
        &self,
        pool: &Pool,
        request: &route::Request<'_>,
        may: impl Fn(&Endpoint) -> bool,
    ) -> route::Choice {
        let shared = &self.shared;
        let now = shared.clock.now_ms();
        let began = tokio::time::Instant::now();
        let mut memory = pool.memory.router.lock();
        let load = |i: usize| {
            let load = pool.replicas[i].load(now);
            let may = may(&pool.view.route.endpoints[i]);
            route::ReplicaLoad {
                availability: if may { load.availability } else { route::Availability::Unhealthy },
                ..load
            }
        };
        let choice = route::choose(&pool.view, request, load, &mut memory);
        if let Some(first) = choice.order.first() {
            memory.record(&pool.view, request, first.endpoint);
            if let Some(partner) = first.prefill {
                memory.remember(&pool.view, request, partner.endpoint);
            }
        }
        drop(memory);
        let config = &shared.config;
        let seconds = shared.choices.seconds(&config.metrics, &config.name);
        seconds.observe(began.elapsed().as_secs_f64());
        choice
    }

    /// Counts why a replica was chosen.
    pub(crate) fn count_choice(&self, reason: route::Reason) {
        let config = &self.shared.config;
        self.shared.choices.reason(&config.metrics, &config.name, reason).inc();
    }

    /// Counts what became of an answer that broke off.
    pub(super) fn count_resumed(&self, outcome: &'static str) {
        let labels = ResumeLabels { agent: self.shared.config.name.clone(), outcome };
        self.shared.config.metrics.resumed.get_or_create(&labels).inc();
    }

    pub(crate) fn count_reason(
        &self,
        family: &prometheus_client::metrics::family::Family<
            ReasonLabels,
            prometheus_client::metrics::counter::Counter,
        >,
        reason: &'static str,
    ) {
        family.get_or_create(&ReasonLabels { agent: self.shared.config.name.clone(), reason }).inc();
    }

    pub(super) fn refusal_error(&self, model: &str, r: &Refusal) -> ApiError {
        let after = self.shared.clock.real(r.retry_after_ms);
        let code = r.reason.as_str();
        match r.reason {
            RefusalReason::QueueFull | RefusalReason::Displaced => ApiError::busy(
                code,
                format!(
                    "every queue for {model:?} is full, or holds requests of a higher priority; try again later"
                ),
                after,
            ),
            RefusalReason::Deadline => ApiError::busy(
                code,
                format!(
                    "no replica of {model:?} can meet the deadline; allow more than {} asks, or try again later",
                    names::DEADLINE_MS
                ),
                after,
            ),
            RefusalReason::Adapter => ApiError::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "adapter_not_loaded",
                format!(
                    "the adapter {model:?} is not loaded, and did not come in time or could not be; try again, or see the condition Loaded of its \
                     LoraAdapter for why"
                ),
            )
            .with_retry_after(after),
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
    pub(crate) async fn hold(
        &self,
        pool: &Arc<Pool>,
        excluded: Excluded,
        account: &Account,
        changed: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Result<(), ApiError> {
        let shared = &self.shared;
        let route = &pool.view.route;
        let load_wait_ms = if excluded.unloaded > 0 { ADAPTER_WAIT_MS } else { 0.0 };
        let until_ms = account.begun_ms() + route.wake_wait_ms.max(load_wait_ms);
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
}

/// A request whose account is open.
pub(crate) struct Opened {
    pub(crate) account: Account,
    pub(crate) ttft_objective_ms: Option<f64>,
}

/// What the router is asked about a request.
pub(super) fn request<'a>(
    routed: &'a Routed,
    class: &'a str,
    sizes: Sizes,
    pool: &Pool,
) -> route::Request<'a> {
    question(&routed.parsed, routed.ttft_objective_ms, class, sizes, pool)
}

/// The same of one that is not routed here.
pub(crate) fn question<'a>(
    parsed: &'a Parsed,
    ttft_objective_ms: Option<f64>,
    class: &'a str,
    sizes: Sizes,
    pool: &Pool,
) -> route::Request<'a> {
    route::Request {
        class,
        prefix: &parsed.prefix,
        prompt_tokens: sizes.prompt_tokens,
        tokens_per_block: pool.memory.tokens_per_block(),
        expected_output: sizes.expected_output,
        adapter: Some(parsed.model.as_str()).filter(|name| pool.view.is_adapter(name)),
        ttft_objective_ms,
    }
}

impl Routed {
    /// Whether its answer is worthless by now.
    pub(super) fn too_late(&self, shared: &Shared) -> bool {
        self.deadline_ms.is_some_and(|deadline| shared.clock.now_ms() >= deadline)
    }
}

/// A request that waits for its pool to wake; it ends when dropped.
pub(crate) struct Held {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    class: String,
}

impl Held {
    pub(crate) fn begin(shared: &Arc<Shared>, pool: &Arc<Pool>, class: &str) -> Option<Self> {
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
                    && c.match_headers.iter().all(|(name, value)| {
                        let said = headers.get(name.as_str()).and_then(|v| v.to_str().ok());
                        said.map(str::trim) == Some(value.as_str())
                    })
            })
        })
        .or_else(|| classes.first())
}

fn unavailable(route: &PoolRoute, excluded: Excluded) -> String {
    let mut text = format!("no replica of {:?} is ready", route.served_name);
    let Excluded { draining, unhealthy, stalled, unplanned, unpaired, unloaded } = excluded;
    let mut parts: Vec<String> = Vec::new();
    if !route.unavailable_reason.is_empty() {
        parts.push(route.unavailable_reason.clone());
    }
    for (count, what) in [
        (draining, "draining"),
        (unhealthy, "not healthy"),
        (stalled, "stalled"),
        (unplanned, "without a share in the plan"),
        (unpaired, "without a prefill replica"),
        (unloaded, "without the adapter"),
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
