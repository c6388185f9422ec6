//! Requests to engines and other agents over pooled HTTP/1.1: to engines as it is, to agents over TLS where there is any.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use plimsoll_proto::tls::{ClientTls, ConnectError, Connector};
use tokio::net::TcpStream;

/// How long an unused connection is kept: less than the 5 s after which uvicorn, under vLLM and SGLang, closes it, so that
/// no request meets a connection that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(4);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    /// An engine, which speaks plain HTTP.
    Engine,
    /// An agent.
    Agent,
}

/// The client side of the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    client: Client<Connector, OutBody>,
    /// The scheme of agents' addresses.
    agents: &'static str,
    pub(crate) first_byte: Duration,
    pub(crate) idle: Duration,
}

impl Upstream {
    pub(crate) fn new(
        connect: Duration,
        first_byte: Duration,
        idle: Duration,
        tls: Option<ClientTls>,
    ) -> Self {
        let agents = if tls.is_some() { "https" } else { "http" };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(1024)
            .build(Connector::peers(connector, tls));
        Self { client, agents, first_byte, idle }
    }

    /// Sends a request and waits for the head of the answer. Dropping the future closes the connection, and with it the
    /// engine's work.
    pub(crate) async fn send(
        &self,
        whom: Whom,
        address: &str,
        path: &str,
        method: http::Method,
        headers: http::HeaderMap,
        body: OutBody,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let uri = http::Uri::builder()
            .scheme(if whom == Whom::Agent { self.agents } else { "http" })
            .authority(address)
            .path_and_query(path)
            .build()
            .map_err(|_| UpstreamError::Address(address.to_owned()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        match tokio::time::timeout(self.first_byte, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) if e.is_connect() && distrust(&e) => {
                Err(UpstreamError::Tls { address: address.to_owned(), detail: chain(&e) })
            }
            Ok(Err(e)) if e.is_connect() => Err(UpstreamError::Connect {
                address: address.to_owned(),
                detail: chain(&e),
                timed_out: timed_out(&e),
            }),
            Ok(Err(e)) => Err(UpstreamError::Broken { address: address.to_owned(), detail: chain(&e) }),
            Err(_) => Err(UpstreamError::FirstByte { address: address.to_owned(), after: self.first_byte }),
        }
    }

    /// Whether nobody listens at an address. Silence is no proof.
    pub(crate) async fn refuses(&self, address: &str) -> bool {
        matches!(tokio::time::timeout(REFUSAL_WAIT, TcpStream::connect(address)).await, Ok(Err(_)))
    }

    /// The next part of an answer; `None` at its end. `within` bounds the wait.
    pub(crate) async fn part(
        &self,
        address: &str,
        body: &mut Incoming,
        within: Duration,
    ) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            match tokio::time::timeout(within, body.frame()).await {
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
        mut body: Incoming,
        limit: usize,
    ) -> Result<Bytes, UpstreamError> {
        let mut all: Option<BytesMut> = None;
        while let Some(part) = self.part(address, &mut body, self.idle).await? {
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
        let whole = async {
            let body = Either::Left(Full::new(Bytes::new()));
            let response = self
                .send(Whom::Engine, address, path, http::Method::GET, http::HeaderMap::new(), body)
                .await?;
            let status = response.status().as_u16();
            let mut body = response.into_body();
            match self.part(address, &mut body, within).await? {
                Some(first) => Ok((status, self.collect(address, first, body, 16 << 20).await?)),
                None => Ok((status, Bytes::new())),
            }
        };
        tokio::time::timeout(within, whole)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::FirstByte { address: address.to_owned(), after: within }))
    }
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
