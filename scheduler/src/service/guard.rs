//! Who may say what the cluster has: plans follow from it, so not everybody with a certificate.

use std::convert::Infallible;
use std::task::{Context, Poll};

use plimsoll_proto::tls::{Names, Peer};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

/// The call that says it.
const PUSH_SNAPSHOT: &str = "/plimsoll.v1.PlanService/PushSnapshot";

/// Services of which one call is the operators' alone. What another scheduler hands on it has judged itself, so schedulers
/// are among them.
#[derive(Clone)]
pub struct Guarded<S> {
    services: S,
    operators: Names,
}

impl<S> Guarded<S> {
    /// Guards services.
    pub fn new(services: S, operators: Names) -> Self {
        Self { services, operators }
    }
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.services.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let stranger = request.uri().path() == PUSH_SNAPSHOT
            && request.extensions().get::<Peer>().is_some_and(|peer| !peer.is_one_of(&self.operators));
        if stranger {
            let why = "only the operator may say what the cluster has; its certificate has another name";
            return Box::pin(std::future::ready(Ok(Status::permission_denied(why).into_http())));
        }
        self.services.call(request)
    }
}
