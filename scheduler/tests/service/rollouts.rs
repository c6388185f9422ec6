//! Canaries: agents' counts let a rollout go on, or stop it.

use std::collections::BTreeSet;

use plimsoll_fleet::canary::CanaryPolicy;
use plimsoll_fleet::telemetry::ReplicaTraffic;
use plimsoll_fleet::{ClusterSnapshot, Plan, ReplicaId, ReplicaPhase};
use plimsoll_proto::v1::{CanaryStanding, Observations};

use crate::now;
use crate::support::*;

const SCALE: f64 = 20.0;

fn ids(plan: &Plan) -> BTreeSet<ReplicaId> {
    plan.pools[0].replicas.iter().map(|r| r.id.clone()).collect()
}

fn standing(seen: &Observations) -> Option<CanaryStanding> {
    seen.pools.first()?.canary.as_ref().map(|c| c.standing())
}

/// What every replica served in a moment, where those of the new configuration miss `missed` of 20 requests.
fn served(cluster: &ClusterSnapshot, missed: u64) -> Vec<ReplicaTraffic> {
    let of = |r: &plimsoll_fleet::ReplicaStatus| ReplicaTraffic {
        replica: r.id.clone(),
        slo_class: "default".into(),
        finished: 20,
        failed: 0,
        missed_ttft: if r.outdated { 1 } else { missed },
        missed_tpot: 0,
        missed_e2e: 0,
        work: Default::default(),
    };
    cluster.replicas.iter().map(of).collect()
}

/// A scheduler with three replicas of an older configuration and one of a new one, as it is after the first step of a rollout.
async fn canary(data: Option<&std::path::Path>) -> (Running, Operator, Agent, ClusterSnapshot, Plan) {
    let s = start(data, |c| c.time_scale = SCALE).await;
    let mut operator = s.operator().await;
    let mut chat = pool("default/chat", 1.0);
    chat.scaling.min_replicas = 4;
    chat.rollout.canary = Some(CanaryPolicy {
        replicas: 1,
        min_requests: 100,
        block_seconds: 5.0,
        warm_up_seconds: 5.0,
        tolerance: 0.05,
        deadline_seconds: 3600.0,
        hold_without_traffic: true,
    });
    let mut cluster = cluster(vec![chat]);
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.pools.first().is_some_and(|p| p.replicas.len() == 4)).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    cluster.pools[0].generation = 2;
    cluster.pools[0].revision = "two".into();
    cluster.replicas.iter_mut().for_each(|r| r.outdated = true);
    operator.push(&cluster).await;
    let second = operator.plan(|p| p.pools[0].generation == 2).await;
    assert_eq!(ids(&second).difference(&ids(&first)).count(), 1, "one canary: {second:#?}");
    act(&mut cluster, &second, now(), ReplicaPhase::Ready, &[]);
    let wanted = ids(&second);
    cluster.replicas.retain(|r| wanted.contains(&r.id));
    operator.push(&cluster).await;
    let agent = Agent::connect(&s, "gateway", None, None).await;
    (s, operator, agent, cluster, second)
}

/// Reports until the judgement stands as wanted; the text that goes with it.
async fn report_until(
    operator: &mut Operator,
    agent: &mut Agent,
    cluster: &ClusterSnapshot,
    missed: u64,
    wanted: CanaryStanding,
) -> String {
    for _ in 0..120 {
        agent.served = served(cluster, missed);
        agent.report(Vec::new(), Vec::new()).await;
        let seen = operator.seen(|s| standing(s).is_some()).await;
        if standing(&seen) == Some(wanted) {
            return seen.pools[0].canary.clone().unwrap().text;
        }
    }
    panic!("the canary never came to {wanted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_serves_as_well_lets_the_rest_follow() {
    let (s, mut operator, mut agent, cluster, second) = canary(None).await;
    let text = report_until(&mut operator, &mut agent, &cluster, 1, CanaryStanding::Passed).await;
    assert!(text.starts_with("passed: "), "{text}");
    let third = operator.plan(|p| p.number > second.number).await;
    assert!(third.trigger.starts_with("rollout of default/chat: 1 of 4 replaced"), "{}", third.trigger);
    assert_eq!(ids(&third).difference(&ids(&second)).count(), 1);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_serves_worse_stops_the_rollout_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (s, mut operator, mut agent, mut cluster, second) = canary(Some(dir.path())).await;
    let text = report_until(&mut operator, &mut agent, &cluster, 10, CanaryStanding::Regressed).await;
    assert!(text.starts_with("TTFT of class default met by 50.0 % of "), "{text}");
    drop((operator, agent));
    s.stop().await;

    let s = start(Some(dir.path()), |c| c.time_scale = SCALE).await;
    let mut operator = s.operator().await;
    operator.push(&cluster).await;
    let seen = operator.seen(|o| standing(o).is_some()).await;
    assert_eq!(standing(&seen), Some(CanaryStanding::Regressed), "it is not judged anew");
    // Whatever else calls for a plan, no further replica is replaced.
    cluster.pools[0].generation = 3;
    cluster.pools[0].priority = 1;
    operator.push(&cluster).await;
    let later = operator.plan(|p| p.pools[0].generation == 3).await;
    assert_eq!(ids(&later), ids(&second));
    // The operator puts the older configuration into force: the canary alone is outdated, and goes.
    let old: BTreeSet<ReplicaId> =
        cluster.replicas.iter().filter(|r| r.outdated).map(|r| r.id.clone()).collect();
    cluster.replicas.iter_mut().for_each(|r| r.outdated = !r.outdated);
    cluster.pools[0].generation = 4;
    cluster.pools[0].revision = "one".into();
    cluster.pools[0].rollout.canary = None;
    cluster.pools[0].rollout.stopped = "TTFT fell".into();
    operator.push(&cluster).await;
    let back = operator.plan(|p| p.pools[0].generation == 4).await;
    assert!(ids(&back).is_superset(&old) && ids(&back).len() == 4, "{back:#?}");
    let seen = operator
        .seen(|o| o.pools.first().and_then(|p| p.canary.as_ref()).is_some_and(|c| c.text == "TTFT fell"))
        .await;
    assert_eq!(seen.pools[0].canary.as_ref().unwrap().revision, "");
    s.stop().await;
}
