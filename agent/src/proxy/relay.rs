//! Answers on their way back to the client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::account::{Account, Outcome, Place};
use super::upstream::chain;
use crate::openai::ApiError;
use crate::sse::SseScanner;

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
    upstream: Option<Incoming>,
    first: Option<Bytes>,
    scanner: SseScanner,
    idle: Pin<Box<Sleep>>,
    idle_after: Duration,
    /// The client's account; `None` on a hop, which the other agent counts.
    account: Option<Account>,
    token_events: u64,
    place: Option<Place>,
    replica: String,
    /// The stream must say that it is complete.
    needs_end: bool,
    over: bool,
}

impl Relay {
    pub(crate) fn new(
        upstream: Incoming,
        first: Bytes,
        scanner: SseScanner,
        idle_after: Duration,
        account: Option<Account>,
        place: Place,
        replica: String,
        needs_end: bool,
    ) -> Self {
        Self {
            upstream: Some(upstream),
            first: Some(first),
            scanner,
            idle: Box::pin(tokio::time::sleep(idle_after)),
            idle_after,
            account,
            token_events: 0,
            place: Some(place),
            replica,
            needs_end,
            over: false,
        }
    }

    fn saw(&mut self) {
        let seen = *self.scanner.seen();
        if let Some(account) = &mut self.account {
            account.saw(&seen);
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
        self.place = None;
        if let Some(mut account) = self.account.take() {
            account.settle(outcome, self.scanner.seen().usage);
        }
    }

    /// Tells the client what happened as a last event, and ends.
    fn fail(&mut self, rest: Bytes, what: &str) -> Bytes {
        tracing::warn!(replica = %self.replica, what, "stream broke off");
        let error = ApiError::server(
            StatusCode::BAD_GATEWAY,
            "engine_failed",
            format!(
                "replica {} {what}; the answer above is incomplete, send the request again",
                self.replica
            ),
        );
        self.end(Outcome::Failed);
        let mut out = rest.to_vec();
        if !out.is_empty() && !out.ends_with(b"\n\n") {
            out.extend_from_slice(if out.ends_with(b"\n") { b"\n" } else { b"\n\n" });
        }
        out.extend_from_slice(error.event().as_bytes());
        out.into()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.over {
                return Poll::Ready(None);
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
                        Poll::Ready(Some(Err(e))) => Some(Err(chain(&e))),
                        Poll::Ready(None) => None,
                        Poll::Pending => {
                            if self.idle.as_mut().poll(cx).is_pending() {
                                return Poll::Pending;
                            }
                            let what = format!("sent nothing for {:?}", self.idle_after);
                            return Poll::Ready(Some(self.fail(Bytes::new(), &what)));
                        }
                    }
                }
            };
            match next {
                Some(Ok(data)) => {
                    self.idle.as_mut().reset(Instant::now() + self.idle_after);
                    let out = self.scanner.push(data);
                    self.saw();
                    if !out.is_empty() {
                        return Poll::Ready(Some(out));
                    }
                }
                Some(Err(detail)) => {
                    let seen = *self.scanner.seen();
                    if seen.done {
                        // Everything was there but the formal end.
                        self.end(if seen.error { Outcome::Failed } else { Outcome::Finished });
                        return Poll::Ready(None);
                    }
                    // An event cut short is no use to anybody.
                    let what = format!("broke off its answer ({detail})");
                    return Poll::Ready(Some(self.fail(Bytes::new(), &what)));
                }
                None => {
                    let rest = self.scanner.finish();
                    self.saw();
                    let seen = *self.scanner.seen();
                    if seen.error {
                        self.end(Outcome::Failed);
                    } else if self.needs_end && !seen.done && !seen.finished {
                        return Poll::Ready(Some(self.fail(rest, "ended its answer without finishing it")));
                    } else {
                        self.end(Outcome::Finished);
                    }
                    return Poll::Ready(Some(rest).filter(|r| !r.is_empty()));
                }
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Clients may hang up once they have read `[DONE]`.
        if self.scanner.seen().done && !self.scanner.seen().error {
            self.end(Outcome::Finished);
        }
    }
}
