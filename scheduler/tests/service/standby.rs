//! Two schedulers on one etcd: the one that stands by answers through the other, and takes its place as it was.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use plimsoll_fleet::{Plan, ReplicaPhase};
use plimsoll_proto::v1;
use plimsoll_scheduler::service::{Candidate, Standing};
use plimsoll_scheduler::store::etcd::EtcdConfig;

use super::etcd::Etcd;
use super::support::*;

async fn candidate(etcd: &Etcd, identity: &str) -> Running {
    let config = EtcdConfig {
        lease: Duration::from_secs(3),
        timeout: Duration::from_secs(1),
        ..EtcdConfig::new(vec![etcd.url()])
    };
    let candidate = Candidate { etcd: config, identity: identity.to_owned(), advertise: None };
    start(None, |c| c.etcd = Some(candidate)).await
}

async fn comes_to(s: &Running, what: &str, wanted: impl FnMut(&Standing) -> bool) -> Standing {
    let mut standing = s.handle.standing();
    soon(what, standing.wait_for(wanted)).await.unwrap().clone()
}

fn names(plan: &Plan) -> Vec<String> {
    plan.pools.iter().flat_map(|p| &p.replicas).map(|r| r.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_standby_hands_requests_on_and_takes_over_without_changing_anything() {
    let Some(etcd) = Etcd::start() else { return };
    let a = candidate(&etcd, "a").await;
    comes_to(&a, "a to lead", |s| *s == Standing::Leads).await;
    let b = candidate(&etcd, "b").await;
    let followed = comes_to(&b, "b to follow", |s| matches!(s, Standing::Follows(_))).await;
    assert_eq!(followed, Standing::Follows(a.handle.addr().to_string()));

    // Everything through the standby, streams included.
    let mut operator = b.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 3.0)]);
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &first, jiff::Timestamp::now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut near = Agent::connect(&a, "n1", Some("n1"), None).await;
    let mut far = Agent::connect(&b, "n2", Some("n2"), None).await;
    let count = first.pools[0].replicas.len();
    let whole = |agent: &Agent| {
        agent.endpoints().len() == count && agent.endpoints().iter().all(|e| e.agent_address.is_some())
    };
    near.until("routes", whole).await;
    far.until("routes", whole).await;
    far.report(vec![traffic("default/chat", 10)], vec![]).await;
    far.until("an ack", |a| a.acknowledged == 1).await;
    let status = operator.client.explain(v1::ExplainRequest { pool: "NOT/ok".into() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "an error comes through as it is");

    // The leader goes: streams end with a word, and the standby takes its place.
    let (table, epoch) = (far.table.clone(), far.epoch.clone());
    a.stop().await;
    let status = soon("the end", async {
        loop {
            if let Err(status) = far.read().await {
                break status;
            }
        }
    })
    .await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    comes_to(&b, "b to lead", |s| *s == Standing::Leads).await;

    let mut operator = b.operator().await;
    let kept = operator.plan(|_| true).await;
    assert_eq!(kept, first, "the plan in force is there before any snapshot");
    let mut same = Agent::connect(&b, "n2", Some("n2"), Some((&table, &epoch))).await;
    same.until("a word on routes", |a| !a.whole.is_empty()).await;
    assert!(!same.whole[0], "what it holds is known");
    assert!(same.table.version >= table.version, "{} after {}", same.table.version, table.version);
    // The same cluster: no replica starts or stops.
    operator.push(&cluster).await;
    cluster.pools[0].demand.as_mut().unwrap().rps = 40.0;
    cluster.pools[0].generation = 2;
    tokio::time::sleep(Duration::from_secs(1)).await;
    operator.push(&cluster).await;
    let next = operator.plan(|p| names(p) != names(&first)).await;
    assert_eq!(
        next.pools[0].generation, 2,
        "the next change is the one that was asked for: {}",
        next.trigger
    );
    assert!(next.number > first.number);
    assert!(names(&first).iter().all(|n| names(&next).contains(n)));
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_etcd_nobody_leads_and_with_it_the_same_plan_is_in_force_again() {
    let Some(mut etcd) = Etcd::start() else { return };
    let s = candidate(&etcd, "a").await;
    comes_to(&s, "it to lead", |s| *s == Standing::Leads).await;
    let mut operator = s.operator().await;
    operator.push(&cluster(vec![pool("default/chat", 3.0)])).await;
    let plan = operator.plan(|p| p.number > 0).await;
    etcd.kill();
    let vacant = comes_to(&s, "it to step down", |s| matches!(s, Standing::Vacant(_))).await;
    let Standing::Vacant(why) = vacant else { panic!("{vacant:?}") };
    assert!(why.contains("etcd"), "{why}");
    let status = operator.client.explain(v1::ExplainRequest { pool: String::new() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("no scheduler leads"), "{}", status.message());
    etcd.again();
    comes_to(&s, "it to lead again", |s| *s == Standing::Leads).await;
    let mut operator = s.operator().await;
    assert_eq!(operator.plan(|_| true).await, plan);
    s.stop().await;
}
