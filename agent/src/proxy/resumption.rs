//! Streams that broke off: asking another engine to go on.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use plimsoll_fleet::ReplicaId;
use serde::Deserialize;
use serde_json::json;
use tracing::Instrument;

use super::account::{Account, Place, Sizes};
use super::forward::{Content, Missed, Routed};
use super::handler::Proxy;
use super::handover::Tries;
use super::headers as names;
use super::routing::{MOST_FAILURES, request};
use super::upstream::InBody;
use crate::body::{self, Api};
use crate::replica::Replica;
use crate::resume::{Ask, Decision, Deferred, MOST_RESUMES, Transcript};
use crate::route::{Ranked, Reason};
use crate::shared::Pool;
use crate::sse::SseScanner;

/// How long to wait for an engine's count of the tokens so far: without it, events count.
const COUNT_WAIT: Duration = Duration::from_secs(1);

/// What broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The connection that the stream came by.
    Connection,
    /// The engine, by its agent's word, its own, or its silence.
    Engine,
}

/// The rest of an answer, under way to the client.
pub(super) struct Leg {
    pub(super) first: Bytes,
    pub(super) rest: InBody,
    pub(super) scanner: SseScanner,
    pub(super) place: Place,
    replica: Arc<Replica>,
    through_agent: bool,
    ask: Ask,
}

/// What a search comes to.
pub(super) enum Found {
    /// The rest, under way.
    Leg(Leg),
    /// These last events: no token is missing after all.
    End(Bytes),
}

/// Why nobody goes on: for metrics, and for people.
type NoLeg = (&'static str, String);

/// A search for an engine that goes on; it ends when dropped.
pub(super) struct Resuming(Pin<Box<dyn Future<Output = Result<Found, NoLeg>> + Send>>);

impl fmt::Debug for Resuming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resuming")
    }
}

impl Future for Resuming {
    type Output = Result<Found, NoLeg>;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        self.get_mut().0.as_mut().poll(cx)
    }
}

/// What to do about a broken stream.
pub(super) enum Next {
    /// Send this and end: nothing else was missing.
    Finish(Bytes),
    /// Wait for the rest.
    Wait(Resuming),
    /// Tell the client.
    Leave,
}

/// What it takes to go on with one answer.
#[derive(Debug)]
pub(crate) struct Resumption {
    proxy: Proxy,
    routed: Routed,
    pub(super) transcript: Deferred,
    replica: Arc<Replica>,
    through_agent: bool,
    resumed: u32,
    span: tracing::Span,
}

impl Resumption {
    pub(super) fn new(proxy: Proxy, routed: Routed, replica: Arc<Replica>, through_agent: bool) -> Self {
        let transcript = Deferred::new(routed.api);
        let span = tracing::Span::current();
        Self { proxy, routed, transcript, replica, through_agent, resumed: 0, span }
    }

    pub(super) fn request_id(&self) -> &str {
        self.routed.request_id()
    }

    pub(super) fn replica(&self) -> &ReplicaId {
        &self.replica.id
    }

    /// The stream broke: decides, and begins to look for an engine that goes on.
    pub(super) fn next(&mut self, cut: Cut, account: &mut Account, what: &str) -> Next {
        let shared = &self.proxy.shared;
        // Where only the agent in between died, the engine is well and holds the answer's cache.
        let same = self.through_agent && cut == Cut::Connection;
        if !same {
            self.replica.failed(shared.clock.now_ms());
            account.broke_off();
        }
        let decision = self.transcript.read().decide(&self.routed.body, self.routed.parsed.include_usage);
        let no = |outcome: &'static str| {
            self.left(outcome, what);
            Next::Leave
        };
        let ask = match decision {
            Decision::Finish(end) => {
                self.proxy.count_resumed("finished");
                return Next::Finish(end);
            }
            Decision::Leave(unfit) => return no(unfit.as_str()),
            Decision::Ask(ask) => ask,
        };
        if self.resumed >= MOST_RESUMES {
            return no("too_often");
        }
        if self.routed.too_late(shared) {
            return no("deadline");
        }
        // An engine that answers on does no work but its own, however many streams its agent takes along.
        if !same && !shared.retries.lock().spend() {
            return no("retry_budget");
        }
        let Ok(parsed) = body::parse(self.routed.api, &ask.body) else { return no("unfit_request") };
        self.resumed += 1;
        let mut routed = self.routed.clone();
        names::rename_request(&mut routed.headers, &format!("r{}", self.resumed));
        routed.parsed = parsed;
        routed.body = ask.body.clone();
        let delivered = self.transcript.read().tokens() as f64;
        let mut sizes = account.sizes();
        sizes.prompt_tokens += delivered;
        sizes.expected_output = (sizes.expected_output - delivered).max(1.0);
        // The client is waiting in the middle of a sentence: nothing is more urgent.
        routed.ttft_objective_ms = None;
        routed.priority = i32::MAX;
        let search = Search {
            proxy: self.proxy.clone(),
            routed,
            sizes,
            class: account.class.clone(),
            broken: self.replica.id.clone(),
            same,
            ask,
            transcript: self.transcript.read().clone(),
            asked: (self.routed.body.clone(), self.routed.parsed.include_usage),
        };
        tracing::info!(
            request_id = self.request_id(), replica = %self.replica.id, what, delivered,
            "stream broke off, asking for the rest"
        );
        Next::Wait(Resuming(Box::pin(search.run().instrument(self.span.clone()))))
    }

    /// Another engine goes on.
    pub(super) fn go_on(&mut self, leg: &Leg) {
        self.proxy.count_resumed("resumed");
        let delivered = self.transcript.read().tokens();
        tracing::info!(
            request_id = self.request_id(), from = %self.replica.id, to = %leg.replica.id,
            directly = !leg.through_agent, delivered, "stream goes on"
        );
        self.transcript.read().go_on(&leg.ask);
        self.replica = leg.replica.clone();
        self.through_agent = leg.through_agent;
    }

    /// Nothing but the end was missing.
    pub(super) fn finished(&self) {
        self.proxy.count_resumed("finished");
    }

    /// Nobody goes on.
    pub(super) fn left(&self, outcome: &'static str, what: &str) {
        self.proxy.count_resumed(outcome);
        tracing::warn!(
            request_id = self.request_id(), replica = %self.replica.id, outcome, what, "stream is not continued"
        );
    }
}

struct Search {
    proxy: Proxy,
    routed: Routed,
    sizes: Sizes,
    class: String,
    broken: ReplicaId,
    /// The replica whose stream broke may go on itself.
    same: bool,
    ask: Ask,
    transcript: Transcript,
    /// The client's request, and whether it expects token counts.
    asked: (Bytes, bool),
}

impl Search {
    async fn run(self) -> Result<Found, NoLeg> {
        let Self { proxy, mut routed, sizes, class, broken, mut same, mut ask, mut transcript, asked } = self;
        let shared = &proxy.shared;
        let until = tokio::time::Instant::now() + shared.config.limits.settle_wait;
        let mut failures = 0;
        let mut tries = Tries::default();
        loop {
            let mut changed = shared.changed.subscribe();
            let Some(pool) = shared.table.load().by_name.get(&routed.parsed.model).cloned() else {
                return Err(("no_replica", "its model is no longer served".into()));
            };
            let request = request(&routed, &class, sizes, &pool);
            let mut order = proxy.choose(&pool, &request).order;
            let is_broken = |r: &Ranked| pool.view.route.endpoints[r.endpoint].replica == broken;
            let own = order.iter().position(&is_broken).map(|at| order.remove(at)).or_else(|| {
                let endpoint = pool.view.index_of(broken.as_str())?;
                let e = &pool.view.route.endpoints[endpoint];
                let alone = e.hand_over.as_ref().is_none_or(|h| h.protocol.decode_prefills());
                let usable = !e.draining && alone;
                let (prediction, reason) = (Default::default(), Reason::LastResort);
                usable.then_some(Ranked { endpoint, prediction, cached_tokens: 0.0, reason, prefill: None })
            });
            if same && let Some(own) = own {
                order.insert(0, own);
            }
            if order.is_empty() {
                return Err(("no_replica", "no other replica may be used".into()));
            }
            if let Some(text) = transcript.uncounted()
                && let Some(tokens) = count(&proxy, &routed, &pool, &order[0], text).await
                && tokens > transcript.tokens()
            {
                transcript.recount(tokens);
                ask = match transcript.decide(&asked.0, asked.1) {
                    Decision::Ask(ask) => ask,
                    Decision::Finish(end) => return Ok(Found::End(end)),
                    Decision::Leave(unfit) => {
                        return Err((unfit.as_str(), "what is left cannot be asked for".into()));
                    }
                };
                if let Ok(parsed) = body::parse(routed.api, &ask.body) {
                    (routed.parsed, routed.body) = (parsed, ask.body.clone());
                }
            }
            let mut last = String::new();
            tries.spoiled.clear();
            for ranked in &order {
                if routed.too_late(shared) {
                    return Err(("deadline", "its deadline has passed".into()));
                }
                if tries.is_spoiled(ranked) {
                    continue;
                }
                match proxy.attempt(&routed, sizes, &pool, ranked, &mut tries).await {
                    Ok(reply) => {
                        let status = reply.head.status;
                        match reply.content {
                            Content::Stream { first, rest } if status.is_success() => {
                                let endpoint = &pool.view.route.endpoints[ranked.endpoint];
                                return Ok(Found::Leg(Leg {
                                    first,
                                    rest,
                                    scanner: routed.scanner(endpoint),
                                    place: reply.place,
                                    replica: pool.replicas[ranked.endpoint].clone(),
                                    through_agent: reply.through_agent,
                                    ask,
                                }));
                            }
                            Content::Whole(said) if status.is_client_error() => {
                                let said = String::from_utf8_lossy(&said[..said.len().min(500)]).into_owned();
                                return Err(("refused", format!("{status}: {said}")));
                            }
                            _ if status == StatusCode::OK => last = "the answer is no stream".into(),
                            _ => last = status.to_string(),
                        }
                        failures += 1;
                    }
                    Err(Missed::Refused(refusal)) => {
                        // An agent that has just come back may not know its engines yet.
                        last = refusal.reason.as_str().to_owned();
                        continue;
                    }
                    Err(Missed::Failed(what) | Missed::Begun(what)) => {
                        last = what;
                        failures += 1;
                    }
                    Err(Missed::Unreached(error)) => {
                        last = error.to_string();
                        failures += 1;
                    }
                }
                same &= !is_broken(ranked);
                if failures > 0 && (failures >= MOST_FAILURES || !shared.retries.lock().spend()) {
                    return Err(("failed", last));
                }
            }
            if tokio::time::Instant::now() >= until {
                return Err(("failed", last));
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
        }
    }
}

/// How many tokens an engine counts in a text; `None`: it does not say.
async fn count(proxy: &Proxy, routed: &Routed, pool: &Arc<Pool>, by: &Ranked, text: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Counted {
        count: u64,
    }
    let body = json!({"model": routed.parsed.model, "prompt": text, "add_special_tokens": false}).to_string();
    let parsed = body::parse(Api::Tokenize, body.as_bytes()).ok()?;
    let mut asked =
        Routed { api: Api::Tokenize, body: body.into(), parsed, strip_usage: false, ..routed.clone() };
    names::rename_request(&mut asked.headers, "count");
    // It makes the engine no work.
    let sizes = Sizes { begun_ms: proxy.shared.clock.now_ms(), prompt_tokens: 1.0, expected_output: 1.0 };
    let alone = Ranked { prefill: None, ..*by };
    let mut tries = Tries::default();
    let answer = proxy.attempt(&asked, sizes, pool, &alone, &mut tries);
    match tokio::time::timeout(COUNT_WAIT, answer).await {
        Ok(Ok(reply)) if reply.head.status.is_success() => match reply.content {
            Content::Whole(said) => serde_json::from_slice::<Counted>(&said).ok().map(|c| c.count),
            Content::Stream { .. } => None,
        },
        _ => None,
    }
}
