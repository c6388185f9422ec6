//! The client's end: a connector for hyper and tonic.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::credentials::{PeerCredentials, dns_name};
use super::error::TlsError;
use super::folder::Folder;
use super::stream::Stream;

/// A peer that takes connections but has not finished a handshake by then is as good as silent.
const HANDSHAKE: Duration = Duration::from_secs(5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is spoken inside a connection, as its handshake says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP among agents and gateways. A name of its own tells peers from the public on one port.
    Peer,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http,
}

impl Alpn {
    /// Its name in the handshake.
    pub fn id(self) -> &'static [u8] {
        match self {
            Self::Peer => b"plimsoll-peer",
            Self::Grpc => b"h2",
            Self::Http => b"http/1.1",
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not even without TLS.
    #[error(transparent)]
    Tcp(BoxError),
    /// The connection broke, or nothing came, before the handshake was over.
    #[error("the connection ended in the TLS handshake")]
    Broken(#[source] io::Error),
    /// The peer speaks no TLS.
    #[error("the peer speaks no TLS, and plaintext is refused here")]
    NoTls,
    /// One side does not accept the other's certificate, or something else of the handshake.
    #[error("the TLS handshake failed")]
    Refused(#[source] io::Error),
    /// The peer's certificate has no name that it could be asked for.
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
}

/// The client's end of mutual TLS.
#[derive(Debug, Clone)]
pub struct ClientTls {
    credentials: Folder<PeerCredentials>,
    name: Option<ServerName<'static>>,
    permissive: bool,
}

impl ClientTls {
    pub(super) fn new(
        credentials: Folder<PeerCredentials>,
        name: Option<ServerName<'static>>,
        permissive: bool,
    ) -> Self {
        Self { credentials, name, permissive }
    }

    async fn handshake(&self, tcp: TcpStream, host: &str, alpn: Alpn) -> Result<Stream, ConnectError> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => dns_name(host).map_err(|_| ConnectError::Name(host.to_owned()))?,
        };
        let connector = TlsConnector::from(self.credentials.current().client(alpn));
        match tokio::time::timeout(HANDSHAKE, connector.connect(name, tcp)).await {
            Ok(Ok(tls)) => Ok(Stream::Tls(Box::new(tls.into()))),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(ConnectError::Broken(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// A server that may be called at `url`. With TLS it does not matter whether that begins with `http` or `https`.
///
/// # Errors
/// [`TlsError::Url`] if it can't be called.
pub fn endpoint(url: &str, tls: Option<&ClientTls>) -> Result<Endpoint, TlsError> {
    let wrong = |problem: String| TlsError::Url { url: url.to_owned(), problem };
    let plain = match url.split_once("://") {
        // tonic would want to make this TLS itself.
        Some(("https", rest)) if tls.is_some() => format!("http://{rest}"),
        Some(("https", _)) => return Err(wrong("TLS takes certificates: name their folder".to_owned())),
        _ => url.to_owned(),
    };
    Endpoint::from_shared(plain).map_err(|e| wrong(e.to_string()))
}

/// A channel that connects when first used, and again as often as needed.
pub fn lazy(endpoint: &Endpoint, tls: Option<&ClientTls>) -> Channel {
    match tls {
        Some(tls) => endpoint.connect_with_connector_lazy(Connector::always(tls.clone())),
        None => endpoint.connect_lazy(),
    }
}

/// A channel that is connected.
///
/// # Errors
/// If it can't be.
pub async fn connect(
    endpoint: &Endpoint,
    tls: Option<&ClientTls>,
) -> Result<Channel, tonic::transport::Error> {
    match tls {
        Some(tls) => endpoint.connect_with_connector(Connector::always(tls.clone())).await,
        None => endpoint.connect().await,
    }
}

/// What a failed handshake says of the peer.
fn failed(error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::NoTls,
        Some(_) => ConnectError::Refused(error),
        None => ConnectError::Broken(error),
    }
}

/// Makes connections for hyper and tonic.
#[derive(Debug, Clone)]
pub struct Connector {
    http: HttpConnector,
    tls: Option<Arc<ClientTls>>,
    alpn: Alpn,
    /// Whether also of addresses that do not begin with `https`.
    always: bool,
}

impl Connector {
    /// For gRPC: TLS always.
    fn always(tls: ClientTls) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        Self { http, tls: Some(Arc::new(tls)), alpn: Alpn::Grpc, always: true }
    }

    /// For agents: TLS where the address begins with `https`, if there is any.
    pub fn peers(mut http: HttpConnector, tls: Option<ClientTls>) -> Self {
        http.enforce_http(false);
        Self { http, tls: tls.map(Arc::new), alpn: Alpn::Peer, always: false }
    }

    async fn tcp(&mut self, uri: Uri) -> Result<TcpStream, ConnectError> {
        std::future::poll_fn(|cx| self.http.poll_ready(cx)).await.map_err(|e| ConnectError::Tcp(e.into()))?;
        let connected = self.http.call(uri).await.map_err(|e| ConnectError::Tcp(e.into()))?;
        Ok(connected.into_inner())
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`ConnectError`] if there is none, or none that is trusted.
    pub async fn connect(mut self, uri: Uri) -> Result<Stream, ConnectError> {
        let wanted = self.always || uri.scheme_str() == Some("https");
        let tcp = self.tcp(uri.clone()).await?;
        let Some(tls) = self.tls.clone().filter(|_| wanted) else { return Ok(Stream::Plain(tcp)) };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        match tls.handshake(tcp, host, self.alpn).await {
            // What is no TLS may answer with anything, or close.
            Err(ConnectError::NoTls | ConnectError::Broken(_)) if tls.permissive => {
                tracing::debug!(%uri, "a peer without TLS");
                Ok(Stream::Plain(self.tcp(uri).await?))
            }
            made => made,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
