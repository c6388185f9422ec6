//! Two gRPC services on one server, told apart by path.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// Sends requests for `B`'s paths to `B` and everything else to `A`, which answers UNIMPLEMENTED to what it does not know.
#[derive(Debug, Clone)]
pub struct Dispatch<A, B> {
    first: A,
    second: B,
}

impl<A, B> Dispatch<A, B> {
    /// Joins two services.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

type Answer = http::Response<Body>;

impl<A, B> Service<http::Request<Body>> for Dispatch<A, B>
where
    A: Service<http::Request<Body>, Response = Answer, Error = Infallible>,
    B: Service<http::Request<Body>, Response = Answer, Error = Infallible> + NamedService,
    A::Future: Send + 'static,
    B::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<Answer, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match (self.first.poll_ready(cx), self.second.poll_ready(cx)) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        if service == B::NAME {
            Box::pin(self.second.call(request))
        } else {
            Box::pin(self.first.call(request))
        }
    }
}
