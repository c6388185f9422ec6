//! Answers on their way back to the client.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::account::{Account, Outcome, Place};
use super::resumption::{Cut, Found, Leg, Next, Resuming, Resumption};
use super::upstream::{InBody, chain};
use crate::openai::ApiError;
use crate::resume;
use crate::sse::{Seen, SseScanner};

/// The body of an answer to a client (or to an agent that forwarded a request).
#[derive(Debug)]
pub(crate) enum AnswerBody {
    /// At hand.
    Full(Option<Bytes>),
    /// A stream from an engine.
    Stream(Box<Relay>),
}

impl AnswerBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()).filter(|b: &Bytes| !b.is_empty()))
    }
}

impl AnswerBody {
    /// What is at hand of it.
    pub(crate) fn at_hand(self) -> Bytes {
        match self {
            Self::Full(bytes) => bytes.unwrap_or_default(),
            Self::Stream(_) => Bytes::new(),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(relay) => relay.poll(cx).map(|b| b.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(relay) => relay.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A stream from an engine to a client. Dropping it drops the engine's connection: that is how a client's disconnect
/// ends the engine's work.
#[derive(Debug)]
pub(crate) struct Relay {
    upstream: Option<InBody>,
    first: Option<Bytes>,
    scanner: SseScanner,
    /// Set when first there is nothing to read, and only looked after when it rings.
    idle: Option<Pin<Box<Sleep>>>,
    idle_after: Duration,
    heard_at: Instant,
    /// The client's account; `None` on a hop, which the other agent counts.
    account: Option<Account>,
    /// Token events that streams showed which this one continues.
    earlier_events: u64,
    token_events: u64,
    place: Option<Place>,
    replica: String,
    /// The stream must say that it is complete.
    needs_end: bool,
    /// What it takes to go on elsewhere; `None` on a hop and where nobody can.
    resumption: Option<Box<Resumption>>,
    resuming: Option<Resuming>,
    /// Why the stream broke for which another is sought.
    broken: Option<Fault>,
    over: bool,
}

/// Why a stream ended before its answer did.
#[derive(Debug)]
struct Fault {
    what: String,
    /// The engine's own word to the client.
    event: Option<Bytes>,
}

impl Relay {
    pub(super) fn new(
        upstream: InBody,
        first: Bytes,
        scanner: SseScanner,
        idle_after: Duration,
        account: Option<Account>,
        place: Place,
        replica: String,
        needs_end: bool,
        resumption: Option<Resumption>,
    ) -> Self {
        Self {
            upstream: Some(upstream),
            first: Some(first),
            scanner,
            idle: None,
            idle_after,
            heard_at: Instant::now(),
            account,
            earlier_events: 0,
            token_events: 0,
            place: Some(place),
            replica,
            needs_end,
            resumption: resumption.map(Box::new),
            resuming: None,
            broken: None,
            over: false,
        }
    }

    /// What all streams of the answer have shown.
    fn seen(&self) -> Seen {
        let mut seen = *self.scanner.seen();
        seen.token_events += self.earlier_events;
        if let Some(resumption) = &self.resumption {
            seen.usage = resumption.transcript.total(seen.usage);
        }
        seen
    }

    fn saw(&mut self) {
        let seen = self.seen();
        if let Some(account) = &mut self.account {
            account.saw(&seen);
            if let Some(id) = self.scanner.take_id() {
                account.answered_as(&id);
            }
        }
        let new = seen.token_events - self.token_events;
        if new > 0 {
            self.token_events = seen.token_events;
            if let Some(place) = &mut self.place {
                place.produced(new as f64);
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.over = true;
        self.upstream = None;
        self.resuming = None;
        let usage = self.seen().usage;
        if let Some(place) = self.place.take().filter(|_| outcome == Outcome::Finished) {
            place.finished(usage.map(|u| u.completion_tokens as f64));
        }
        if let Some(mut account) = self.account.take() {
            account.settle(outcome, usage);
        }
    }

    /// Tells the client what happened as a last event, and ends.
    fn fail(&mut self, rest: Bytes, fault: Fault) -> Bytes {
        let what = &fault.what;
        // On a hop the agent that asked logs the rest.
        let request_id = self.resumption.as_ref().map(|r| r.request_id());
        tracing::warn!(request_id, replica = %self.replica, what, "stream broke off");
        self.end(Outcome::Failed);
        let mut out = terminated(rest);
        match fault.event {
            Some(event) => out.extend_from_slice(&event),
            None => {
                let message = format!(
                    "replica {} {what}; the answer above is incomplete, send the request again",
                    self.replica
                );
                let error = ApiError::server(StatusCode::BAD_GATEWAY, "engine_failed", message);
                out.extend_from_slice(error.event().as_bytes());
            }
        }
        out.into()
    }

    /// The stream ended before the answer did: looks for somebody to go on, or tells the client.
    fn broke(&mut self, out: Bytes, cut: Cut, fault: Fault) -> Bytes {
        self.upstream = None;
        let (Some(resumption), Some(account)) = (&mut self.resumption, &mut self.account) else {
            return self.fail(out, fault);
        };
        match resumption.next(cut, account, &fault.what) {
            Next::Finish(end) => {
                let mut out = terminated(out);
                out.extend_from_slice(&end);
                self.end(Outcome::Finished);
                out.into()
            }
            Next::Wait(resuming) => {
                self.place = None;
                self.resuming = Some(resuming);
                self.broken = Some(fault);
                terminated(out).into()
            }
            Next::Leave => self.fail(out, fault),
        }
    }

    /// Another engine goes on with the answer.
    fn go_on(&mut self, leg: Leg) {
        self.resuming = None;
        self.broken = None;
        if let Some(resumption) = &mut self.resumption {
            resumption.go_on(&leg);
            self.replica = resumption.replica().to_string();
        }
        self.earlier_events += self.scanner.seen().token_events;
        self.scanner = leg.scanner;
        self.upstream = Some(leg.rest);
        self.first = Some(leg.first);
        self.place = Some(leg.place);
        self.heard_at = Instant::now();
    }

    /// Usage should say what the one who computed the prompt says of it, which may come as late as this.
    fn heed_prefill(&mut self) {
        if let Some(prefill) = self.place.as_ref().and_then(Place::prefilled_by) {
            self.scanner.prompt_came_from_elsewhere(prefill.cached_tokens());
        }
    }

    /// Has the transcript read what passes.
    fn pass(&mut self, events: Bytes) -> (Bytes, Option<Fault>) {
        let Some(resumption) = &mut self.resumption else { return (events, None) };
        let passed = resumption.transcript.pass(events);
        let fault = passed.broke.map(|b| Fault { what: format!("failed ({})", b.message), event: b.event });
        (passed.out, fault)
    }

    /// Ready once nothing has come for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (heard_at, idle_after) = (self.heard_at, self.idle_after);
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(heard_at + idle_after)));
        loop {
            ready!(idle.as_mut().poll(cx));
            if heard_at.elapsed() >= idle_after {
                return Poll::Ready(());
            }
            idle.as_mut().reset(heard_at + idle_after);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            if let Some(resuming) = &mut self.resuming {
                match ready!(Pin::new(resuming).poll(cx)) {
                    Ok(Found::Leg(leg)) => self.go_on(leg),
                    Ok(Found::End(end)) => {
                        if let Some(resumption) = &self.resumption {
                            resumption.finished();
                        }
                        self.end(Outcome::Finished);
                        return Poll::Ready(Some(end));
                    }
                    Err((outcome, why)) => {
                        if let Some(resumption) = &self.resumption {
                            resumption.left(outcome, &why);
                        }
                        let fault = self.broken.take();
                        let fault = fault
                            .unwrap_or_else(|| Fault { what: "broke off its answer".into(), event: None });
                        return Poll::Ready(Some(self.fail(Bytes::new(), fault)));
                    }
                }
            }
            let next = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => {
                    let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
                    match Pin::new(upstream).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) => Some(Ok(data)),
                            Err(_) => continue,
                        },
                        Poll::Ready(Some(Err(e))) => Some(Err((Cut::Connection, chain(&e)))),
                        Poll::Ready(None) => None,
                        Poll::Pending => {
                            ready!(self.poll_idle(cx));
                            Some(Err((Cut::Engine, format!("nothing for {:?}", self.idle_after))))
                        }
                    }
                }
            };
            let out = match next {
                Some(Ok(data)) => {
                    self.heard_at = Instant::now();
                    self.heed_prefill();
                    let out = self.scanner.push(data);
                    let (out, fault) = self.pass(out);
                    self.saw();
                    match fault {
                        Some(fault) => self.broke(out, Cut::Engine, fault),
                        None => out,
                    }
                }
                Some(Err((cut, detail))) => {
                    let seen = self.seen();
                    if seen.done {
                        // Everything was there but the formal end.
                        self.end(if seen.error { Outcome::Failed } else { Outcome::Finished });
                        return Poll::Ready(None);
                    }
                    // An event cut short is no use to anybody.
                    let what = format!("broke off its answer ({detail})");
                    self.broke(Bytes::new(), cut, Fault { what, event: None })
                }
                None => self.ended(),
            };
            if !out.is_empty() {
                return Poll::Ready(Some(out));
            }
        }
    }

    /// The connection's end was in order; whether the stream's is remains to be seen.
    fn ended(&mut self) -> Bytes {
        self.heed_prefill();
        let cut_short = self.resumption.is_some() && !resume::is_whole(self.scanner.tail());
        let rest = if cut_short { Bytes::new() } else { self.scanner.finish() };
        let (rest, fault) = self.pass(rest);
        self.saw();
        let seen = self.seen();
        if let Some(fault) = fault {
            return self.broke(rest, Cut::Engine, fault);
        }
        if seen.error {
            self.end(Outcome::Failed);
            return rest;
        }
        // One that was not read to its end is taken at its word.
        let mut was_read = || self.resumption.as_mut().is_some_and(|r| r.transcript.read().finished());
        if self.needs_end && !seen.done && (!seen.finished || was_read()) {
            let what = "ended its answer without finishing it".to_owned();
            return self.broke(rest, Cut::Engine, Fault { what, event: None });
        }
        self.end(Outcome::Finished);
        rest
    }
}

/// Events with the blank line that ends the last, so that another can follow.
fn terminated(events: Bytes) -> Vec<u8> {
    let mut out = events.to_vec();
    if !out.is_empty() && !out.ends_with(b"\n\n") && !out.ends_with(b"\n\r\n") {
        out.extend_from_slice(if out.ends_with(b"\n") { b"\n" } else { b"\n\n" });
    }
    out
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Clients may hang up once they have read `[DONE]`.
        if self.scanner.seen().done && !self.scanner.seen().error {
            self.end(Outcome::Finished);
        }
    }
}
