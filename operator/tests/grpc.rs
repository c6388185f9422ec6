//! The scheduler over real gRPC on a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{assignment, chat, plan};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use plimsoll_fleet::ClusterSnapshot;
use plimsoll_operator::grpc::GrpcBrain;
use plimsoll_operator::{Brain, BrainError, FleetUpdate};
use plimsoll_proto::v1::plan_service_server::{PlanService, PlanServiceServer};
use plimsoll_proto::{document, v1};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Scheduler {
    pushed: Arc<Mutex<Vec<(ClusterSnapshot, String, u64)>>>,
    updates: Vec<v1::FleetUpdate>,
}

#[tonic::async_trait]
impl PlanService for Scheduler {
    async fn push_snapshot(
        &self,
        request: Request<v1::PushSnapshotRequest>,
    ) -> Result<Response<v1::PushSnapshotResponse>, Status> {
        let request = request.into_inner();
        if request.sequence == 13 {
            return Err(Status::invalid_argument("snapshot.pools has default/a twice; send each pool once"));
        }
        let snapshot = document::decode("snapshot", request.snapshot.as_ref())?;
        self.pushed.lock().push((snapshot, request.operator, request.sequence));
        Ok(Response::new(v1::PushSnapshotResponse { plan: 0 }))
    }

    type WatchFleetStream = BoxStream<'static, Result<v1::FleetUpdate, Status>>;

    async fn watch_fleet(
        &self,
        _request: Request<v1::WatchFleetRequest>,
    ) -> Result<Response<Self::WatchFleetStream>, Status> {
        let updates: Vec<_> = self.updates.iter().cloned().map(Ok).collect();
        Ok(Response::new(stream::iter(updates).boxed()))
    }

    async fn what_if(&self, _: Request<v1::WhatIfRequest>) -> Result<Response<v1::WhatIfResponse>, Status> {
        Err(Status::unimplemented("not asked by the operator"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Err(Status::unimplemented("not asked by the operator"))
    }
}

async fn serve(scheduler: Scheduler) -> GrpcBrain {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = PlanServiceServer::new(scheduler);
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
    GrpcBrain::new(&address, "me", None).unwrap()
}

fn update(update: v1::fleet_update::Update) -> v1::FleetUpdate {
    v1::FleetUpdate { update: Some(update) }
}

#[tokio::test]
async fn snapshots_go_out_and_plans_and_observations_come_in() {
    let plan = plan(5, &chat(), vec![assignment("chat-1", "gpu-1")]);
    let observations = v1::Observations {
        pools: vec![
            v1::PoolObservation {
                pool: "default/chat".into(),
                rps: 2.5,
                ttft_ms: Some(f64::NAN),
                tpot_ms: Some(31.0),
                ..Default::default()
            },
            v1::PoolObservation { pool: "Not A Name".into(), ..Default::default() },
        ],
        drained_replicas: vec!["chat-9".into(), "!".into()],
        agents: 2,
        ..Default::default()
    };
    let scheduler = Scheduler {
        updates: vec![
            update(v1::fleet_update::Update::Plan(document::encode("plan", &plan).unwrap())),
            update(v1::fleet_update::Update::Observations(observations)),
        ],
        ..Scheduler::default()
    };
    let brain = serve(scheduler.clone()).await;
    let snapshot =
        ClusterSnapshot { accelerators: plimsoll_fleet::presets::accelerators(), ..Default::default() };
    brain.push(Arc::new(snapshot.clone()), 1).await.unwrap();
    assert_eq!(*scheduler.pushed.lock(), [(snapshot, "me".to_owned(), 1)]);
    let refused = brain.push(Arc::default(), 13).await.unwrap_err();
    assert!(matches!(&refused, BrainError::Refused { reason, .. } if reason.contains("twice")), "{refused}");

    let updates: Vec<_> = brain.watch().await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(updates[0], FleetUpdate::Plan(Arc::new(plan)));
    let FleetUpdate::Observations(seen) = &updates[1] else { panic!("{updates:?}") };
    let chat = &seen.pools[&"default/chat".parse().unwrap()];
    // Not a number means unknown, never zero; what has no valid name is left out.
    assert_eq!((chat.rps, chat.ttft_ms, chat.tpot_ms), (2.5, None, Some(31.0)));
    assert_eq!((seen.pools.len(), seen.agents), (1, 2));
    assert_eq!(seen.drained, ["chat-9".parse().unwrap()].into());
}

#[tokio::test]
async fn a_scheduler_that_is_away_is_an_error_not_a_hang() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let brain = GrpcBrain::new(&address, "me", None).unwrap();
    assert!(matches!(brain.push(Arc::default(), 1).await, Err(BrainError::Unreachable(_))));
    assert!(matches!(brain.watch().await, Err(BrainError::Unreachable(_))));
    let wrong = GrpcBrain::new("not an address", "me", None).unwrap_err();
    assert!(wrong.to_string().contains("http://host:port"), "{wrong}");
}
