//! Accepting connections: HTTP/1.1 and HTTP/2 on one port, with TLS for those who speak it where there is a certificate.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use plimsoll_proto::tls::{Accepted, ServerTls, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::handler::Rights;
use super::lanes::Lanes;
use crate::config::{AgentConfig, Clients};
use crate::shared::Shared;

/// Who may come in, and what for.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// `None`: nobody speaks TLS here.
    tls: Option<ServerTls>,
    plain: Rights,
    public: Rights,
}

impl Door {
    /// As an agent is configured.
    pub(crate) fn new(config: &AgentConfig) -> Self {
        let mutual = config.tls.as_ref().map(|tls| &tls.mutual);
        let everybody = config.clients == Clients::Everybody;
        // Without certificates among agents there is nothing to know them by.
        let plain =
            Rights { hop: mutual.is_none_or(|m| m.permissive()), api: everybody && config.public.is_none() };
        let public = Rights { hop: mutual.is_none(), api: everybody };
        // Nobody hands a request to a gateway. Its clients may take their time with the first byte, which must otherwise be
        // seen before anything else.
        let served = mutual.filter(|_| config.node.is_some());
        let tls = (served.is_some() || config.public.is_some())
            .then(|| ServerTls::of(served, config.public.as_ref()));
        Self { tls, plain, public }
    }

    async fn open(&self, tcp: TcpStream) -> std::io::Result<(Stream, Rights)> {
        let Some(tls) = &self.tls else { return Ok((Stream::Plain(tcp), self.plain)) };
        Ok(match tls.accept(tcp).await? {
            Accepted::Plain(tcp) => (Stream::Plain(tcp), self.plain),
            Accepted::Peer(stream) => (stream, Rights { hop: true, api: true }),
            Accepted::Public(stream) => (stream, self.public),
        })
    }
}

/// Serves until cancelled, then finishes what is under way for as long as the limits allow.
pub(crate) async fn serve(
    listener: TcpListener,
    door: Door,
    shared: Arc<Shared>,
    lanes: Lanes,
    stop: CancellationToken,
) {
    let limits = shared.config.limits.clone();
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let abort = CancellationToken::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.client_read_timeout)
        .max_buf_size((limits.max_header_bytes * 2).max(64 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(1024)
        .max_header_list_size((limits.max_header_bytes * 2).min(1 << 20) as u32);
    loop {
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => match slot { Ok(slot) => slot, Err(_) => break },
        };
        let (stream, from) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(pair) => pair,
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to be given back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (door, builder) = (door.clone(), builder.clone());
        let (watcher, stop, abort) = (graceful.watcher(), stop.clone(), abort.clone());
        let served = lanes.serve(stream, move |stream, proxy| async move {
            // Nothing has been asked on a connection that is not open yet.
            let opened = tokio::select! {
                biased;
                opened = door.open(stream) => opened,
                () = stop.cancelled() => return,
            };
            let (stream, rights) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::debug!(%from, %error, "a connection came to nothing");
                    return;
                }
            };
            let service = service_fn(move |request| {
                let proxy = proxy.clone();
                // hyper moves it more than once, and it is large.
                Box::pin(async move { Ok::<_, Infallible>(proxy.handle(request, rights).await) })
            });
            let connection =
                watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
            tokio::select! {
                result = connection => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended");
                    }
                }
                () = abort.cancelled() => {}
            }
            drop(slot);
        });
        if let Err(error) = served {
            tracing::warn!(%from, %error, "cannot serve a connection");
        }
    }
    shared.stopping.store(true, Ordering::Relaxed);
    drop(listener);
    if tokio::time::timeout(limits.shutdown_grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace = ?limits.shutdown_grace, "requests were still under way at the end of the grace period");
    }
    abort.cancel();
    lanes.stop().await;
}
