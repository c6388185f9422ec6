//! The scheduler over gRPC.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::{ClusterSnapshot, Plan, PoolId, ReplicaId};
use plimsoll_proto::tls::{self, ClientTls};
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_proto::{document, v1};
use tonic::transport::Channel;
use tracing::warn;

use crate::brain::{
    AdapterObservation, Brain, BrainError, CanaryReport, FleetUpdate, Observations, PoolObservation,
};

/// Plans of large fleets pass gRPC's default limit of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 256 * 1024 * 1024;

/// A scheduler behind a gRPC channel.
#[derive(Debug, Clone)]
pub struct GrpcBrain {
    client: PlanServiceClient<Channel>,
    identity: String,
}

impl GrpcBrain {
    /// A scheduler at an address such as `http://scheduler:9090`. Connects when first used, and again as often as needed.
    ///
    /// # Errors
    /// [`BrainError::Unreachable`] if the address is not a URI.
    pub fn new(address: &str, identity: &str, tls: Option<&ClientTls>) -> Result<Self, BrainError> {
        let endpoint = tls::endpoint(address, tls)
            .map_err(|e| BrainError::Unreachable(e.to_string()))?
            .connect_timeout(Duration::from_secs(5))
            // Dead peers are noticed although the stream of updates may be quiet.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        Ok(Self::over(tls::lazy(&endpoint, tls), identity))
    }

    /// A scheduler behind a channel that exists.
    pub fn over(channel: Channel, identity: &str) -> Self {
        let client = PlanServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, identity: identity.to_owned() }
    }
}

fn refused(request: &'static str) -> impl FnOnce(tonic::Status) -> BrainError {
    move |status| match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
            BrainError::Unreachable(status.message().to_owned())
        }
        _ => BrainError::Refused { request, reason: status.message().to_owned() },
    }
}

impl Brain for GrpcBrain {
    async fn push(&self, snapshot: Arc<ClusterSnapshot>, sequence: u64) -> Result<(), BrainError> {
        let document = document::encode("snapshot", &*snapshot)
            .map_err(|e| BrainError::Unreadable { what: "snapshot", reason: e.to_string() })?;
        let mut request = tonic::Request::new(v1::PushSnapshotRequest {
            snapshot: Some(document),
            operator: self.identity.clone(),
            sequence,
        });
        request.set_timeout(Duration::from_secs(30));
        self.client.clone().push_snapshot(request).await.map_err(refused("the snapshot"))?;
        Ok(())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Result<FleetUpdate, BrainError>>, BrainError> {
        let request = v1::WatchFleetRequest { plans_only: false };
        let stream =
            self.client.clone().watch_fleet(request).await.map_err(refused("to stream plans"))?.into_inner();
        Ok(stream
            .filter_map(|message| async move {
                match message {
                    Ok(message) => update(message),
                    Err(status) => Some(Err(refused("to go on streaming plans")(status))),
                }
            })
            .boxed())
    }
}

fn update(message: v1::FleetUpdate) -> Option<Result<FleetUpdate, BrainError>> {
    match message.update? {
        v1::fleet_update::Update::Plan(plan) => Some(
            document::decode::<Plan>("plan", Some(&plan))
                .map(|plan| FleetUpdate::Plan(Arc::new(plan)))
                .map_err(|e| BrainError::Unreadable { what: "plan", reason: e.to_string() }),
        ),
        v1::fleet_update::Update::Observations(o) => {
            Some(Ok(FleetUpdate::Observations(Arc::new(observations(o)))))
        }
    }
}

fn replica_ids(ids: Vec<String>) -> std::collections::BTreeSet<ReplicaId> {
    ids.into_iter()
        .filter_map(|id| {
            ReplicaId::new(id).inspect_err(|e| warn!(error = %e, "ignored a replica's name")).ok()
        })
        .collect()
}

/// `None` for what this version does not know: then nothing is concluded from it.
fn canary(canary: v1::Canary) -> Option<CanaryReport> {
    let standing = match canary.standing() {
        v1::CanaryStanding::Unspecified => return None,
        v1::CanaryStanding::Watching => Standing::Watching,
        v1::CanaryStanding::Passed => Standing::Passed,
        v1::CanaryStanding::Held => Standing::Held,
        v1::CanaryStanding::Regressed => Standing::Regressed,
    };
    Some(CanaryReport { revision: canary.revision, standing, text: canary.text })
}

fn observations(o: v1::Observations) -> Observations {
    let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
    Observations {
        pools: o
            .pools
            .into_iter()
            .filter_map(|p| {
                let id = p
                    .pool
                    .parse::<PoolId>()
                    .inspect_err(|e| warn!(error = %e, "ignored a pool's name"))
                    .ok()?;
                let observation = PoolObservation {
                    rps: finite(Some(p.rps)).unwrap_or(0.0),
                    ttft_ms: finite(p.ttft_ms),
                    tpot_ms: finite(p.tpot_ms),
                    e2e_ms: finite(p.e2e_ms),
                    attainment: finite(p.attainment),
                    canary: p.canary.and_then(canary),
                    drift: p.drift,
                };
                Some((id, observation))
            })
            .collect(),
        drained: replica_ids(o.drained_replicas),
        stalled: replica_ids(o.stalled_replicas),
        agents: o.agents,
        adapters: o
            .adapters
            .into_iter()
            .map(|a| {
                let seen = AdapterObservation {
                    placed: replica_ids(a.placed),
                    held: replica_ids(a.held),
                    failure: a.failure,
                    bytes: a.bytes,
                    hits: a.hits,
                    misses: a.misses,
                    places: a
                        .places
                        .into_iter()
                        .filter_map(|p| Some((ReplicaId::new(p.replica).ok()?, (p.in_engine, p.load_ms))))
                        .collect(),
                };
                (a.served_name, seen)
            })
            .collect(),
    }
}
