//! Requests to engines and other agents over pooled HTTP/1.1: to engines as it is, to agents over TLS where there is any.
//!
//! A connection has no task of its own: whoever waits for its answer drives it ([`Link`]). What comes is then read, judged
//! and passed on in one turn, with no other task to wake and no other thread to hand it to.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use plimsoll_proto::tls::{ClientTls, ConnectError, Connector, Stream};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::idle::Idle;

/// How long an unused connection is kept: less than the 5 s after which uvicorn, under vLLM and SGLang, closes it, so that
/// no request meets a connection that is just being closed.
const KEPT: Duration = Duration::from_secs(4);

/// Most unused connections to one address.
const MOST_KEPT: usize = 1024;

/// How long to wait for a refusal: a host that is up refuses at once.
const REFUSAL_WAIT: Duration = Duration::from_millis(250);

/// A body that is at hand, or one that passes through.
pub(crate) type OutBody = Either<Full<Bytes>, Limited<Incoming>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("cannot connect to {address}: {detail}")]
    Connect { address: String, detail: String, timed_out: bool },
    #[error("{address} is not trusted, or does not trust this agent: {detail}")]
    Tls { address: String, detail: String },
    #[error("{address} did not begin to answer within {after:?}")]
    FirstByte { address: String, after: Duration },
    #[error("{address} sent nothing for {after:?}")]
    Idle { address: String, after: Duration },
    #[error("{address} closed the connection: {detail}")]
    Broken { address: String, detail: String },
    #[error("{address} answered with more than {limit} bytes")]
    TooLong { address: String, limit: usize },
    #[error("{0:?} is not an address")]
    Address(String),
}

/// Who is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Whom {
    /// An engine, which speaks plain HTTP.
    Engine,
    /// An agent.
    Agent,
}

/// A connection, and the one end of it that takes requests.
struct Link {
    /// `None`: it is closed.
    connection: Option<Connection<TokioIo<Stream>, OutBody>>,
    requests: SendRequest<OutBody>,
}

impl Link {
    /// Reads and writes what there is to read and write.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether it takes a request, as far as is known.
    fn is_free(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.connection.is_some() && self.requests.is_ready()
    }
}

/// An answer's body. Dropped before its end, it closes the connection, and with it ends the engine's work.
pub(crate) struct InBody {
    body: Incoming,
    link: Option<Box<Link>>,
    home: (Whom, Arc<str>, Arc<Idle<Box<Link>>>),
}

impl std::fmt::Debug for InBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InBody").field("from", &self.home.1).finish_non_exhaustive()
    }
}

impl InBody {
    /// The connection is free for another request once all of the answer has come.
    fn ended(&mut self, cx: &mut Context<'_>) {
        if let Some(mut link) = self.link.take()
            && link.is_free(cx)
        {
            let (whom, address, idle) = &self.home;
            idle.put(*whom, address, link, Instant::now());
        }
    }
}

impl Body for InBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut next = Pin::new(&mut this.body).poll_frame(cx);
        if next.is_pending()
            && let Some(link) = &mut this.link
        {
            // Now that the connection knows that more is wanted.
            link.drive(cx);
            next = Pin::new(&mut this.body).poll_frame(cx);
        }
        if matches!(next, Poll::Ready(None)) {
            this.ended(cx);
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The client side of the proxy. Its connections live on the runtime that it is used on.
#[derive(Clone)]
pub(crate) struct Upstream {
    connector: Connector,
    idle: Arc<Idle<Box<Link>>>,
    /// The scheme of agents' addresses.
    agents: &'static str,
    pub(crate) first_byte: Duration,
    pub(crate) idle_after: Duration,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl Upstream {
    pub(crate) fn new(
        connect: Duration,
        first_byte: Duration,
        idle_after: Duration,
        tls: Option<ClientTls>,
    ) -> Self {
        let agents = if tls.is_some() { "https" } else { "http" };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let connector = Connector::peers(connector, tls);
        Self { connector, idle: Arc::new(Idle::new(KEPT, MOST_KEPT)), agents, first_byte, idle_after }
    }

    /// One of the same kind with connections of its own, for another runtime.
    pub(crate) fn anew(&self) -> Self {
        Self { idle: Arc::new(Idle::new(KEPT, MOST_KEPT)), ..self.clone() }
    }

    /// Closes connections that were not used for a while, until stopped.
    pub(crate) async fn keep_tidy(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(KEPT / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.idle.sweep(Instant::now());
        }
    }

    /// Sends a request and waits for the head of the answer. Dropping the future closes the connection, and with it the
    /// engine's work.
    pub(crate) async fn send(
        &self,
        whom: Whom,
        address: &str,
        path: PathAndQuery,
        method: http::Method,
        headers: http::HeaderMap,
        body: OutBody,
    ) -> Result<Response<InBody>, UpstreamError> {
        let wrong = || UpstreamError::Address(address.to_owned());
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.into();
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(address).map_err(|_| wrong())?;
        request.headers_mut().insert(header::HOST, host);
        tokio::time::timeout(self.first_byte, self.exchange(whom, address, request)).await.unwrap_or_else(
            |_| Err(UpstreamError::FirstByte { address: address.to_owned(), after: self.first_byte }),
        )
    }

    /// Asks over a connection that is at hand, else over a new one.
    async fn exchange(
        &self,
        whom: Whom,
        address: &str,
        mut request: Request<OutBody>,
    ) -> Result<Response<InBody>, UpstreamError> {
        loop {
            let (key, mut link, reused) = match self.at_hand(whom, address).await {
                Some((key, link)) => (key, link, true),
                None => (Arc::from(address), Box::pin(self.open(whom, address)).await?, false),
            };
            let answer = link.requests.try_send_request(request);
            let mut answer = pin!(answer);
            let answered = std::future::poll_fn(|cx| {
                link.drive(cx);
                answer.as_mut().poll(cx)
            })
            .await;
            match answered {
                Ok(answer) => {
                    let home = (whom, key, self.idle.clone());
                    return Ok(answer.map(|body| InBody { body, link: Some(link), home }));
                }
                Err(mut failed) => match failed.take_message() {
                    // Closed while it was unused: nothing of the request has left.
                    Some(unsent) if reused => request = unsent,
                    _ => {
                        let detail = chain(failed.error());
                        return Err(UpstreamError::Broken { address: address.to_owned(), detail });
                    }
                },
            }
        }
    }

    /// The connection that was used last, of those that are still open.
    async fn at_hand(&self, whom: Whom, address: &str) -> Option<(Arc<str>, Box<Link>)> {
        std::future::poll_fn(|cx| {
            while let Some((key, mut link)) = self.idle.take(whom, address, Instant::now()) {
                if link.is_free(cx) {
                    return Poll::Ready(Some((key, link)));
                }
            }
            Poll::Ready(None)
        })
        .await
    }

    async fn open(&self, whom: Whom, address: &str) -> Result<Box<Link>, UpstreamError> {
        let uri = http::Uri::builder()
            .scheme(if whom == Whom::Agent { self.agents } else { "http" })
            .authority(address)
            .path_and_query("/")
            .build()
            .map_err(|_| UpstreamError::Address(address.to_owned()))?;
        let stream = self.connector.clone().connect(uri).await.map_err(|e| {
            let (address, detail) = (address.to_owned(), chain(&e));
            if distrust(&e) {
                UpstreamError::Tls { address, detail }
            } else {
                UpstreamError::Connect { address, detail, timed_out: timed_out(&e) }
            }
        })?;
        let (requests, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| UpstreamError::Broken { address: address.to_owned(), detail: chain(&e) })?;
        Ok(Box::new(Link { connection: Some(connection), requests }))
    }

    /// Whether nobody listens at an address. Silence is no proof.
    pub(crate) async fn refuses(&self, address: &str) -> bool {
        matches!(tokio::time::timeout(REFUSAL_WAIT, TcpStream::connect(address)).await, Ok(Err(_)))
    }

    /// The next part of an answer; `None` at its end. `within` bounds the wait.
    pub(crate) async fn part(
        &self,
        address: &str,
        body: &mut InBody,
        within: Duration,
    ) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            // What is at hand needs no timer.
            let frame = match at_once(body.frame()).await {
                Some(frame) => Ok(frame),
                None => tokio::time::timeout(within, body.frame()).await,
            };
            match frame {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => {}
                },
                Ok(Some(Err(e))) => {
                    return Err(UpstreamError::Broken { address: address.to_owned(), detail: chain(&e) });
                }
                Err(_) => return Err(UpstreamError::Idle { address: address.to_owned(), after: within }),
            }
        }
    }

    /// The rest of an answer whose first part is at hand.
    pub(crate) async fn collect(
        &self,
        address: &str,
        first: Bytes,
        mut body: InBody,
        limit: usize,
    ) -> Result<Bytes, UpstreamError> {
        let mut all: Option<BytesMut> = None;
        while let Some(part) = self.part(address, &mut body, self.idle_after).await? {
            let buffer = all.get_or_insert_with(|| BytesMut::from(&first[..]));
            if buffer.len() + part.len() > limit {
                return Err(UpstreamError::TooLong { address: address.to_owned(), limit });
            }
            buffer.extend_from_slice(&part);
        }
        Ok(all.map_or(first, BytesMut::freeze))
    }

    /// A small GET, e.g. of an engine's health or metrics.
    pub(crate) async fn get(
        &self,
        address: &str,
        path: &str,
        within: Duration,
    ) -> Result<(u16, Bytes), UpstreamError> {
        let (method, headers) = (http::Method::GET, http::HeaderMap::new());
        let whole = self.small(address, path, method, headers, Bytes::new(), within, 16 << 20);
        let answer = tokio::time::timeout(within, whole)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::FirstByte { address: address.to_owned(), after: within }));
        answer.map(|(status, body)| (status.as_u16(), body))
    }

    /// A small POST of JSON to an engine. `within` limits the wait for the answer's first part, `most` its bytes.
    pub(crate) async fn post(
        &self,
        address: &str,
        path: &str,
        ask: &Value,
        within: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let headers = http::HeaderMap::from_iter([json]);
        let body = Bytes::from(ask.to_string());
        self.small(address, path, http::Method::POST, headers, body, within, most).await
    }

    async fn small(
        &self,
        address: &str,
        path: &str,
        method: http::Method,
        headers: http::HeaderMap,
        body: Bytes,
        within: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let body = Either::Left(Full::new(body));
        let path = PathAndQuery::try_from(path).map_err(|_| UpstreamError::Address(address.to_owned()))?;
        let response = self.send(Whom::Engine, address, path, method, headers, body).await?;
        let status = response.status();
        let mut body = response.into_body();
        match self.part(address, &mut body, within).await? {
            Some(first) => Ok((status, self.collect(address, first, body, most).await?)),
            None => Ok((status, Bytes::new())),
        }
    }
}

/// What a future comes to if it is asked once; `None`: it is not ready.
pub(super) async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Whether a connection failed because the peers do not trust each other: the agent there is not gone.
fn distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error)
        .filter_map(|e| e.downcast_ref::<ConnectError>())
        .any(|e| matches!(e, ConnectError::NoTls | ConnectError::Refused(_) | ConnectError::Name(_)))
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error)
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::TimedOut)
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
