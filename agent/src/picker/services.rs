//! The two gRPC services of one port, told apart by their path.

use std::convert::Infallible;
use std::task::{Context, Poll};

use plimsoll_proto::ext_proc::external_processor_server::ExternalProcessorServer;
use plimsoll_proto::health::health_server::HealthServer;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

use super::{Picker, health};

/// Picking, and health checks.
#[derive(Debug, Clone)]
pub(super) struct Services {
    pub(super) picker: ExternalProcessorServer<Picker>,
    pub(super) health: HealthServer<health::Service>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Generated services are ready always.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path().starts_with("/grpc.health.v1.") {
            self.health.call(request)
        } else {
            // What is neither is told that there is no such method.
            self.picker.call(request)
        }
    }
}
