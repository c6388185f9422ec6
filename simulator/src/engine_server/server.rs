//! The listening socket and its connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::api::ApiError;
use super::shared::Shared;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How a server's tasks are told to end.
#[derive(Clone, Default)]
pub(super) struct Stop {
    /// Take no more connections, finish open requests.
    pub(super) gently: CancellationToken,
    /// Drop everything at once.
    pub(super) now: CancellationToken,
}

/// Accepts connections until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    shared: Arc<Shared>,
    stop: Stop,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.gently.cancelled() => return,
            () = stop.now.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(connection(stream, router.clone(), shared.clone(), stop.clone()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, shared: Arc<Shared>, stop: Stop) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, shared) = (router.clone(), shared.clone());
        async move { Ok::<_, Infallible>(answer(router, &shared, request.map(Body::new)).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            // Dropping the connection closes its socket in the middle of whatever it was sending.
            () = stop.now.cancelled() => return,
            () = stop.gently.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers one request: not before the engine is ready, and with its `x-request-id`.
async fn answer(router: Router, shared: &Shared, mut request: Request<Body>) -> Response {
    let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| {
        let number = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let hash = xxhash_rust::xxh3::xxh3_128_with_seed(
            &number.to_le_bytes(),
            shared.started_unix_s.cast_unsigned(),
        );
        HeaderValue::from_str(&format!("{hash:032x}")).unwrap_or(HeaderValue::from_static("request"))
    });
    request.headers_mut().insert(&REQUEST_ID, id.clone());
    let mut response = if shared.is_ready() {
        match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    } else {
        ApiError::unavailable("The engine is starting; its weights are not loaded yet.").into_response()
    };
    response.headers_mut().insert(&REQUEST_ID, id);
    response
}
