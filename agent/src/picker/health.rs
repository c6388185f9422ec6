//! gRPC health checks of the picker, under the names that the endpoint-picker protocol gives.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use plimsoll_proto::health::health_check_response::ServingStatus;
use plimsoll_proto::health::health_server::Health;
use plimsoll_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::shared::Shared;

/// Answers health checks.
#[derive(Debug, Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
}

/// What a service's state is, `None` for one that there is not: the process is alive, or it can pick.
fn judge(service: &str, stopping: bool, routed: bool) -> Option<ServingStatus> {
    let serving = match service {
        "liveness" => true,
        "" | "readiness" | "envoy.service.ext_proc.v3.ExternalProcessor" => routed && !stopping,
        _ => return None,
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn state(&self, service: &str) -> Option<ServingStatus> {
        let table = self.shared.table.load();
        let routed = table.routes.version > 0 || !table.by_name.is_empty();
        judge(service, self.shared.stopping.load(Ordering::Relaxed), routed)
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.state(&service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("there is no service {service:?} here"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (service, this) = (request.into_inner().service, self.clone());
        let mut last = None;
        let states = WatchStream::new(self.shared.changed.subscribe()).filter_map(move |_| {
            let status = this.state(&service).unwrap_or(ServingStatus::ServiceUnknown);
            (last.replace(status) != Some(status)).then(|| Ok(HealthCheckResponse { status: status.into() }))
        });
        Ok(Response::new(Box::pin(states)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_is_not_yet_ready() {
        let of = |service| judge(service, false, false);
        assert_eq!(of("liveness"), Some(ServingStatus::Serving));
        assert_eq!(of("readiness"), Some(ServingStatus::NotServing));
        assert_eq!(judge("", false, true), Some(ServingStatus::Serving));
        assert_eq!(
            judge("envoy.service.ext_proc.v3.ExternalProcessor", true, true),
            Some(ServingStatus::NotServing)
        );
        assert_eq!(of("other"), None);
    }
}
