//! An endpoint picker for gateways of the Gateway API Inference Extension: Envoy's external processing, with the choice that the
//! proxy makes.
//!
//! Envoy opens a stream for each request and shows its headers and body; the answer names the engines to send it to, in order,
//! in a header and in dynamic metadata. What Envoy then shows of the engine's answer is accounted for as a request through the
//! proxy is. Bodies are read as they come, once, and go back as they came.

mod conversation;
#[cfg(test)]
mod fuzz;
mod health;
mod pick;
mod services;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_proto::ext_proc::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use plimsoll_proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use plimsoll_proto::health::health_server::HealthServer;
use plimsoll_proto::tls::{self, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use self::services::Services;
use crate::proxy::handler::Proxy;

/// Answers on their way to Envoy, of one request: a body's parts wait here while Envoy is slow.
const WINDOW: usize = 16;
/// Requests of one connection at a time; Envoy opens more connections where it has more.
const STREAMS: u32 = 16_384;
/// What messages take beside the body that they carry, bytes.
const OVERHEAD: usize = 1 << 20;

#[derive(Debug, Clone)]
struct Picker {
    proxy: Proxy,
}

#[tonic::async_trait]
impl ExternalProcessor for Picker {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (answers, stream) = mpsc::channel(WINDOW);
        tokio::spawn(conversation::run(self.proxy.clone(), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves until cancelled; requests under way have the proxy's grace period.
pub(crate) async fn serve(listener: TcpListener, proxy: Proxy, stop: CancellationToken) {
    let config = &proxy.shared.config;
    let (grace, longest) = (config.limits.shutdown_grace, config.limits.max_body_bytes + OVERHEAD);
    let public = config.public.clone();
    let picker = ExternalProcessorServer::new(Picker { proxy: proxy.clone() })
        .max_decoding_message_size(longest)
        .max_encoding_message_size(longest);
    let services = Services { picker, health: HealthServer::new(health::Service::new(proxy.shared.clone())) };
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .tcp_nodelay(true);
    let end = stop.clone().cancelled_owned();
    let serving = async {
        match &public {
            Some(public) => {
                let incoming = tls::incoming_public(listener, ServerTls::of(None, Some(public)));
                server.serve_with_incoming_shutdown(services, incoming, end).await
            }
            None => server.serve_with_incoming_shutdown(services, TcpIncoming::from(listener), end).await,
        }
    };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(%error, "the endpoint picker has ended");
        },
        () = late => tracing::warn!(?grace, "picked requests were still under way at the end of the grace period"),
    }
}

/// Binds the picker's port.
pub(crate) async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
