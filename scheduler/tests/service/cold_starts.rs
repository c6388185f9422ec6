//! Starts are priced by how long they took.

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::{ClusterSnapshot, Plan, ReplicaId, ReplicaPhase};
use plimsoll_proto::document::decode;
use plimsoll_proto::v1;

use super::now;
use super::support::*;

/// An accelerator class that does what an L40S does, under another name, and dearer until its price falls.
const TWIN: &str = "l40s-twin";

fn twin_cluster() -> ClusterSnapshot {
    let mut cluster = cluster(vec![pool("default/chat", 1.0)]);
    let mut twin = cluster.accelerators[0].clone();
    twin.name = TWIN.to_owned();
    twin.usd_per_hour *= 1.5;
    cluster.accelerators.push(twin);
    cluster.nodes[1].accelerator = TWIN.to_owned();
    cluster
}

/// Classes that the pool's replicas would be on if the twin cost five hundredths less than the other.
async fn after_the_twins_price_fell(operator: &mut Operator, cluster: &ClusterSnapshot) -> Vec<String> {
    let change = format!("price/{TWIN}={}", 0.95 * cluster.accelerators[0].usd_per_hour);
    let request = v1::WhatIfRequest { changes: vec![change], ..Default::default() };
    let answer = operator.client.what_if(request).await.unwrap().into_inner();
    let plan: Plan = decode("plan", answer.changed.as_ref()).unwrap();
    plan.pools[0].replicas.iter().map(|r| r.shape.accelerator.clone()).collect()
}

/// Makes one more replica on the twin's node that took so long to be ready.
fn start_on_twin(cluster: &mut ClusterSnapshot, seconds: i64, created_at: Timestamp) {
    let mut replica = cluster.replicas[0].clone();
    replica.id = ReplicaId::new("chat-elsewhere").unwrap();
    replica.shape.accelerator = TWIN.to_owned();
    replica.nodes = vec![cluster.nodes[1].name.clone()];
    replica.created_at = created_at;
    replica.ready_at = Some(created_at + SignedDuration::from_secs(seconds));
    cluster.replicas.push(replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_a_class_is_priced_by_the_starts_that_were_seen_there() {
    let dir = tempfile::tempdir().unwrap();
    let s = start(Some(dir.path()), |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = twin_cluster();
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    assert_eq!(first.pools[0].replicas.len(), 1);
    let elsewhere = [TWIN.to_owned()];
    // A start is stated to take 60 s: a tenth of the horizon over which it is spread, and more than is saved.
    assert_ne!(after_the_twins_price_fell(&mut operator, &cluster).await, elsewhere);
    // One is seen to take 6 s there; it goes, and what was learnt stays, over a restart too.
    let calm = cluster.clone();
    start_on_twin(&mut cluster, 6, now());
    operator.push(&cluster).await;
    operator.push(&calm).await;
    assert_eq!(after_the_twins_price_fell(&mut operator, &calm).await, elsewhere);
    drop(operator);
    s.stop().await;

    let s = start(Some(dir.path()), |_| {}).await;
    let mut operator = s.operator().await;
    operator.push(&calm).await;
    assert_eq!(after_the_twins_price_fell(&mut operator, &calm).await, elsewhere);
    s.stop().await;
}
