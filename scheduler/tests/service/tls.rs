//! A scheduler that asks for certificates.

#[path = "../../../proto/tests/tls/certs.rs"]
mod certs;

use plimsoll_proto::document::encode;
use plimsoll_proto::tls::{self, Mutual, Names};
use plimsoll_proto::v1;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_scheduler::service::SchedulerTls;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::*;
use certs::{AGENT, Authority, SCHEDULER};

const OPERATOR: &str = "plimsoll-operator.plimsoll.svc";

async fn client(s: &Running, authority: &Authority, name: &str) -> PlanServiceClient<Channel> {
    let mutual = Mutual::open(authority.folder(name).path(), &Names::default(), false).unwrap();
    let way = mutual.client(Some(SCHEDULER)).unwrap();
    let endpoint = tls::endpoint(&format!("https://{}", s.handle.addr()), Some(&way)).unwrap();
    PlanServiceClient::new(tls::connect(&endpoint, Some(&way)).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_operator_says_what_the_cluster_has_and_nobody_says_anything_without_a_certificate() {
    let ours = Authority::new("ours");
    let mutual = Mutual::open(ours.folder(SCHEDULER).path(), &Names::default(), false).unwrap();
    let tls = SchedulerTls {
        leader: mutual.client(Some(SCHEDULER)).unwrap(),
        operators: Names::new(&[OPERATOR.to_owned(), SCHEDULER.to_owned()]).unwrap(),
        mutual,
    };
    let s = start(None, |config| config.tls = Some(tls)).await;
    let push = || v1::PushSnapshotRequest {
        snapshot: Some(encode("snapshot", &cluster(vec![pool("default/chat", 1.0)])).unwrap()),
        operator: "test".into(),
        sequence: 1,
    };

    let mut agent = client(&s, &ours, AGENT).await;
    let refused = agent.push_snapshot(push()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("only the operator"), "{refused}");
    // What else there is to ask is for everybody with a certificate.
    let nothing_yet = agent.explain(v1::ExplainRequest { pool: String::new() }).await.unwrap_err();
    assert_eq!(nothing_yet.code(), Code::FailedPrecondition, "{nothing_yet}");

    client(&s, &ours, OPERATOR).await.push_snapshot(push()).await.unwrap();
    // One that stands by hands on what an operator says.
    client(&s, &ours, SCHEDULER).await.push_snapshot(push()).await.unwrap();

    let plain = Channel::from_shared(format!("http://{}", s.handle.addr())).unwrap().connect().await;
    if let Ok(channel) = plain {
        let refused = PlanServiceClient::new(channel).push_snapshot(push()).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{refused}");
    }
    s.stop().await;
}
