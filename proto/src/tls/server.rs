//! The server's end: connections with and without TLS on one port, told apart by their first byte.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use tokio_stream::wrappers::ReceiverStream;

use super::Public;
use super::client::Alpn;
use super::credentials::{PeerCredentials, PublicCredentials};
use super::folder::Folder;
use super::stream::Stream;

/// Time for a client that speaks TLS to finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a client to send anything, where it must first be seen what it speaks.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// Handshakes at one time: a part has far fewer peers, and others must not exhaust it.
const HANDSHAKES: usize = 1024;
/// The first byte of TLS: a record that belongs to a handshake. No HTTP begins so.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// A connection, and what its client has shown.
#[derive(Debug)]
pub enum Accepted {
    /// No TLS: nothing is known of the client.
    Plain(TcpStream),
    /// TLS, and a certificate of a peer.
    Peer(Stream),
    /// TLS, but no certificate.
    Public(Stream),
}

/// The server's end, for peers, for the public, or for both.
#[derive(Debug, Clone)]
pub struct ServerTls {
    peers: Option<Folder<PeerCredentials>>,
    public: Option<Folder<PublicCredentials>>,
}

impl ServerTls {
    pub(super) fn new(
        peers: Option<Folder<PeerCredentials>>,
        public: Option<Folder<PublicCredentials>>,
    ) -> Self {
        Self { peers, public }
    }

    /// For those of both kinds that are given.
    pub fn of(mutual: Option<&super::Mutual>, public: Option<&Public>) -> Self {
        Self::new(mutual.map(|m| m.credentials().clone()), public.map(|p| p.credentials().clone()))
    }

    /// Sees what a client speaks, and goes through the handshake if that is TLS.
    ///
    /// # Errors
    /// If the client says nothing in time, or the handshake fails.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Accepted> {
        let mut first = [0_u8; 1];
        let seen = timed(FIRST_BYTE, tcp.peek(&mut first)).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] != TLS_HANDSHAKE_RECORD {
            return Ok(Accepted::Plain(tcp));
        }
        timed(HANDSHAKE, self.handshake(tcp)).await
    }

    async fn handshake(&self, tcp: TcpStream) -> io::Result<Accepted> {
        let peers = |folder: &Folder<PeerCredentials>| folder.current().server.clone();
        let public = |folder: &Folder<PublicCredentials>| folder.current().server.clone();
        match (&self.peers, &self.public) {
            (Some(folder), None) => {
                let tls = TlsAcceptor::from(peers(folder)).accept(tcp).await?;
                Ok(Accepted::Peer(Stream::Tls(Box::new(tls.into()))))
            }
            (None, Some(folder)) => {
                let tls = TlsAcceptor::from(public(folder)).accept(tcp).await?;
                Ok(Accepted::Public(Stream::Tls(Box::new(tls.into()))))
            }
            (Some(for_peers), Some(for_public)) => {
                let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
                // Who says to be a peer must prove it.
                let is_peer = hello
                    .client_hello()
                    .alpn()
                    .is_some_and(|mut offered| offered.any(|id| id == Alpn::Peer.id()));
                if is_peer {
                    let tls = hello.into_stream(peers(for_peers)).await?;
                    Ok(Accepted::Peer(Stream::Tls(Box::new(tls.into()))))
                } else {
                    let tls = hello.into_stream(public(for_public)).await?;
                    Ok(Accepted::Public(Stream::Tls(Box::new(tls.into()))))
                }
            }
            (None, None) => Err(io::Error::new(io::ErrorKind::Unsupported, "this port speaks no TLS")),
        }
    }
}

async fn timed<T>(within: Duration, of: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(within, of).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Everybody's connections for a gRPC server, all over TLS. It listens for as long as it is polled.
pub fn incoming_public(listener: TcpListener, tls: ServerTls) -> ReceiverStream<io::Result<Stream>> {
    let (made, taken) = mpsc::channel(1);
    tokio::spawn(accept(listener, tls, Who::Public, made));
    ReceiverStream::new(taken)
}

/// Whose connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Peers.
    Peers,
    /// Peers, and those who speak no TLS.
    PeersAndPlain,
    /// Whoever speaks TLS.
    Public,
}

/// Peers' connections for a gRPC server; those without TLS too, where they are put up with. It listens for as long as it is
/// polled.
pub fn incoming(
    listener: TcpListener,
    tls: ServerTls,
    permissive: bool,
) -> ReceiverStream<io::Result<Stream>> {
    // One waits while the server takes the last.
    let (made, taken) = mpsc::channel(1);
    let who = if permissive { Who::PeersAndPlain } else { Who::Peers };
    tokio::spawn(accept(listener, tls, who, made));
    ReceiverStream::new(taken)
}

async fn accept(listener: TcpListener, tls: ServerTls, who: Who, made: mpsc::Sender<io::Result<Stream>>) {
    let slots = std::sync::Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?, slot))
        };
        let ((tcp, from), slot) = tokio::select! {
            () = made.closed() => return,
            next = next => match next {
                Ok(next) => next,
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to be given back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = tcp.set_nodelay(true);
        let (tls, made) = (tls.clone(), made.clone());
        tokio::spawn(async move {
            let accepted = tokio::select! {
                () = made.closed() => return,
                accepted = tls.accept(tcp) => accepted,
            };
            drop(slot);
            match accepted {
                Ok(Accepted::Peer(stream)) => drop(made.send(Ok(stream)).await),
                Ok(Accepted::Public(stream)) if who == Who::Public => drop(made.send(Ok(stream)).await),
                Ok(Accepted::Plain(tcp)) if who == Who::PeersAndPlain => {
                    drop(made.send(Ok(Stream::Plain(tcp))).await)
                }
                Ok(Accepted::Plain(_) | Accepted::Public(_)) => {
                    tracing::debug!(%from, "refused a connection without TLS, or without a certificate");
                }
                Err(error) => tracing::debug!(%from, %error, "a peer's connection came to nothing"),
            }
        });
    }
}
