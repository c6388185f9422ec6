//! The scheduler over real sockets, and its loops in simulated time.

#[cfg(test)]
mod cold_starts;
#[cfg(test)]
#[path = "../etcd/mod.rs"]
mod etcd;
#[cfg(test)]
mod loops;
#[cfg(test)]
mod rollouts;
mod standby;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tls;

use std::collections::BTreeSet;
use std::time::Duration;

use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::telemetry::{AdapterState, EngineReport};
use plimsoll_fleet::{Adapter, Budget, BudgetScope, ClusterSnapshot, EngineKind, Plan, ReplicaPhase};
use plimsoll_proto::document::{decode, encode};
use plimsoll_proto::v1;
use plimsoll_scheduler::explain::{Action, diff};
use plimsoll_scheduler::service::{Scheduler, SchedulerConfig, SchedulerError};
use support::*;

pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_snapshot_to_plan_to_routes_at_every_agent() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    // It serves before it has seen anything, and says what is missing.
    let status = operator.client.explain(v1::ExplainRequest { pool: String::new() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("operator"), "{}", status.message());
    let mut early = Agent::connect(&s, "n1", Some("n1"), None).await;
    early.report(vec![], vec![]).await;
    early.until("an ack", |a| a.acknowledged == 1).await;
    assert!(early.whole.is_empty(), "no table is better than an empty one");

    let mut cluster = cluster(vec![pool("default/chat", 3.0)]);
    operator.push(&cluster).await;
    let plan = operator.plan(|p| p.number > 0).await;
    assert!(!plan.pools[0].replicas.is_empty(), "{plan:#?}");

    act(&mut cluster, &plan, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let count = plan.pools[0].replicas.len();
    early.until("routes", |a| a.endpoints().len() == count).await;
    assert!(early.whole[0], "the first table is whole");
    let mut late = Agent::connect(&s, "gateway", None, None).await;
    late.until("routes", |a| !a.whole.is_empty()).await;
    assert_eq!(late.table, early.table);
    assert!(late.whole[0]);
    let own: Vec<_> = early.endpoints().into_iter().filter(|e| e.node.as_str() == "n1").cloned().collect();
    assert!(own.iter().all(|e| e.agent_address.as_deref() == Some("n1.agents:8080")));

    // A change comes as a delta, to both; a reconnect goes on from what is held.
    cluster.pools.push(pool("default/code", 1.0));
    operator.push(&cluster).await;
    let plan = operator.plan(|p| p.pools.len() == 2).await;
    for agent in [&mut early, &mut late] {
        agent.until("both pools", |a| a.table.pools.len() == 2).await;
        assert!(!agent.whole.last().unwrap());
    }
    let (table, epoch) = (late.table.clone(), late.epoch.clone());
    drop(late);
    act(&mut cluster, &plan, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut again = Agent::connect(&s, "gateway", None, Some((&table, &epoch))).await;
    let all = plan.pools.iter().map(|p| p.replicas.len()).sum::<usize>();
    again.until("the newer routes", |a| a.endpoints().len() == all).await;
    assert!(again.whole.iter().all(|whole| !whole), "resumed by deltas alone");
    let mut stranger = Agent::connect(&s, "other", None, Some((&table, "another-store"))).await;
    stranger.until("routes", |a| !a.whole.is_empty()).await;
    assert!(stranger.whole[0], "a version of another store means nothing");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_count_once_and_show_in_observations() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    operator.push(&cluster(vec![pool("default/chat", 1.0)])).await;
    let mut a = Agent::connect(&s, "n1", Some("n1"), None).await;
    let mut b = Agent::connect(&s, "n2", Some("n2"), None).await;
    for _ in 0..3 {
        a.report(vec![traffic("default/chat", 10)], vec![]).await;
        a.repeat(vec![traffic("default/chat", 10)], vec![]).await;
        b.report(vec![traffic("default/chat", 5)], vec![]).await;
    }
    a.until("acks", |a| a.acknowledged == 3).await;
    let seen = operator.seen(|o| o.pools.first().is_some_and(|p| p.finished >= 45)).await;
    let chat = &seen.pools[0];
    assert_eq!(chat.finished, 45);
    assert_eq!(seen.agents, 2);
    assert_eq!(chat.attainment, Some(1.0));
    assert!(chat.ttft_ms.is_some_and(|t| (t / 400.0 - 1.0).abs() < 0.2), "{chat:?}");
    assert!(chat.tpot_ms.is_some_and(|t| (t / 30.0 - 1.0).abs() < 0.2), "{chat:?}");
    assert_eq!(chat.ttft_objective_ms, Some(3000.0));
    // The connection dropped before the ack came: the same report again, in a new session.
    let sequence = a.sequence;
    drop(a);
    let mut a = Agent::connect(&s, "n1", Some("n1"), None).await;
    a.sequence = sequence;
    a.repeat(vec![traffic("default/chat", 10)], vec![]).await;
    a.report(vec![traffic("default/chat", 1)], vec![]).await;
    a.until("acks", |a| a.acknowledged == sequence + 1).await;
    let seen = operator.seen(|o| o.pools[0].finished > 45).await;
    assert_eq!(seen.pools[0].finished, 46);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_are_placed_with_the_routes_and_their_failures_told() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 3.0)]);
    cluster.pools[0].engine.kind = EngineKind::Vllm;
    cluster.adapters = vec![Adapter {
        namespace: "default".into(),
        name: "sql".into(),
        served_name: "acme/sql".into(),
        base_pool: "default/chat".parse().unwrap(),
        source: "hf://acme/sql".into(),
        sha256: None,
        rank: 8,
        size_bytes: None,
        expected_rps: 1.0,
        group: None,
        observed_rps: None,
        pinned: false,
    }];
    operator.push(&cluster).await;
    let plan = operator.plan(|p| p.pools.iter().any(|p| !p.replicas.is_empty())).await;
    act(&mut cluster, &plan, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut agent = Agent::connect(&s, "n1", Some("n1"), None).await;
    let of = |a: &Agent| a.table.pools.first().and_then(|p| p.adapters.first()).cloned();
    let everywhere = |a: &Agent| {
        let endpoints = a.endpoints().len();
        endpoints > 0 && of(a).is_some_and(|sql| sql.placed.len() == endpoints)
    };
    agent.until("places it everywhere", everywhere).await;
    let replica = of(&agent).unwrap().placed[0].clone();
    let state = AdapterState {
        adapter: "acme/sql".into(),
        bytes: Some(84),
        load_ms: Some(7),
        on_disk: true,
        hits: 3,
        misses: 1,
    };
    let failing = EngineReport {
        adapter_failures: vec![("acme/sql".into(), "no such repository".into())],
        adapter_states: vec![state],
        ..engine(&replica, false)
    };
    agent.report(vec![], vec![failing]).await;
    let seen = operator.seen(|o| o.adapters.iter().any(|a| !a.failure.is_empty())).await;
    assert_eq!(seen.adapters[0].failure, format!("replica {replica}: no such repository"));
    let (sql, place) = (&seen.adapters[0], &seen.adapters[0].places[0]);
    assert_eq!((sql.bytes, sql.hits, sql.misses), (Some(84), 3, 1));
    assert_eq!((place.replica.as_str(), place.in_engine, place.load_ms), (replica.as_str(), false, Some(7)));
    let holding = EngineReport { adapters: vec!["acme/sql".into()], ..engine(&replica, false) };
    agent.report(vec![], vec![holding]).await;
    agent.until("is told who holds it", |a| of(a).is_some_and(|sql| sql.held == [replica.clone()])).await;
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_number_names_history_and_routes() {
    let dir = tempfile::tempdir().unwrap();
    let s = start(Some(dir.path()), |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 3.0)]);
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut agent = Agent::connect(&s, "n1", Some("n1"), None).await;
    let count = first.pools[0].replicas.len();
    // The table that counts is the last one: with the agent that has just come.
    let settled = |a: &Agent| {
        a.endpoints().len() == count
            && a.endpoints().iter().all(|e| e.node.as_str() != "n1" || e.agent_address.is_some())
    };
    agent.until("routes", settled).await;
    let (table, epoch) = (agent.table.clone(), agent.epoch.clone());
    drop((agent, operator));
    s.stop().await;

    let s = start(Some(dir.path()), |_| {}).await;
    let mut operator = s.operator().await;
    let kept = operator.plan(|_| true).await;
    assert_eq!(kept, first, "the plan in force is there before any snapshot");
    let mut same = Agent::connect(&s, "n1", Some("n1"), Some((&table, &epoch))).await;
    same.until("a word on routes", |a| !a.whole.is_empty()).await;
    assert!(!same.whole[0], "what it holds is known");
    let mut new = Agent::connect(&s, "gateway", None, None).await;
    new.until("routes", |a| !a.whole.is_empty()).await;
    assert_eq!(new.table, same.table, "an agent that knows nothing can route at once");

    // The same cluster: nothing moves.
    operator.push(&cluster).await;
    let answer =
        operator.client.explain(v1::ExplainRequest { pool: "chat".into() }).await.unwrap().into_inner();
    let history: Vec<ScalingRecord> = decode("history", answer.history.as_ref()).unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].plan, first.number);
    assert!(history[0].reason.contains("first plan, demand 3.0 rps"), "{}", history[0].reason);
    // More is asked for: the number goes on, old names stay, new ones are new.
    cluster.pools[0].demand.as_mut().unwrap().rps = 40.0;
    cluster.pools[0].generation = 2;
    operator.push(&cluster).await;
    let next = operator.plan(|p| p.pools[0].generation == 2).await;
    assert!(next.number > first.number);
    let names = |p: &Plan| p.pools[0].replicas.iter().map(|r| r.id.to_string()).collect::<Vec<_>>();
    assert!(names(&next).len() > names(&first).len(), "{next:#?}");
    assert!(
        names(&first).iter().all(|n| names(&next).contains(n)),
        "{:?} → {:?}",
        names(&first),
        names(&next)
    );
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_whose_store_is_lost_keeps_what_runs() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 3.0)]);
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    drop(operator);
    s.stop().await;

    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    operator.push(&cluster).await;
    let anew = operator.plan(|p| p.number > 0).await;
    assert_eq!(anew.pools[0].replicas, first.pools[0].replicas, "same names, shapes and nodes");
    // A new replica takes no name that a pod has already.
    cluster.pools[0].demand.as_mut().unwrap().rps = 40.0;
    cluster.pools[0].generation = 2;
    operator.push(&cluster).await;
    let next = operator.plan(|p| p.pools[0].generation == 2).await;
    let mut names: Vec<_> = next.pools[0].replicas.iter().map(|r| r.id.clone()).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert!(names.len() == count && count > first.pools[0].replicas.len(), "{names:?}");
    assert!(first.pools[0].replicas.iter().all(|r| names.contains(&r.id)), "{names:?}");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_vanishes_is_routed_around() {
    let s = start(None, |c| c.agent_timeout = Duration::from_millis(1500)).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 1.0)]);
    operator.push(&cluster).await;
    let plan = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &plan, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let on = plan.pools[0].replicas[0].nodes[0].to_string();
    let doomed = Agent::connect(&s, &on, Some(&on), None).await;
    let mut gateway = Agent::connect(&s, "gateway", None, None).await;
    gateway.until("a route by the agent", |g| g.endpoints().iter().any(|e| e.agent_address.is_some())).await;
    drop(doomed);
    gateway.until("a route without it", |g| g.endpoints().iter().all(|e| e.agent_address.is_none())).await;
    assert!(!gateway.endpoints().is_empty(), "the engine itself still serves");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_drained_before_it_may_go() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 1.0)]);
    cluster.pools[0].scaling.min_replicas = 2;
    operator.push(&cluster).await;
    let two = operator.plan(|p| p.number > 0).await;
    assert_eq!(two.pools[0].replicas.len(), 2);
    act(&mut cluster, &two, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut agents = Vec::new();
    for node in ["n1", "n2"] {
        agents.push(Agent::connect(&s, node, Some(node), None).await);
    }
    let mut gateway = Agent::connect(&s, "gateway", None, None).await;
    gateway.until("routes", |g| g.endpoints().len() == 2).await;

    (cluster.pools[0].scaling.min_replicas, cluster.pools[0].scaling.max_replicas) = (1, 1);
    cluster.pools[0].generation = 2;
    operator.push(&cluster).await;
    let one = operator.plan(|p| p.pools[0].replicas.len() == 1).await;
    let kept = &one.pools[0].replicas[0].id;
    let gone = two.pools[0].replicas.iter().find(|r| &r.id != kept).unwrap().clone();
    gateway
        .until("a draining route", |g| g.endpoints().iter().any(|e| e.draining && e.replica == gone.id))
        .await;
    let agent = agents.iter_mut().find(|a| gone.nodes[0].as_str() == a.node_name()).unwrap();
    let name = gone.id.to_string();
    agent.until("the drain", |a| a.drains == std::slice::from_ref(&name)).await;
    agent.report(vec![], vec![engine(&gone.id, false)]).await;
    agent.report(vec![], vec![engine(&gone.id, true)]).await;
    let seen = operator.seen(|o| !o.drained_replicas.is_empty()).await;
    assert_eq!(seen.drained_replicas, std::slice::from_ref(&name));
    gateway.until("one route", |g| g.endpoints().len() == 1).await;
    act(&mut cluster, &one, now(), ReplicaPhase::Ready, &[name]);
    operator.push(&cluster).await;
    operator.seen(|o| o.drained_replicas.is_empty()).await;
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_that_rises_brings_a_plan_with_its_reason() {
    // Virtual time runs 30 times as fast: half a minute is a second.
    let s = start(None, |c| c.time_scale = 30.0).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 1.0)]);
    operator.push(&cluster).await;
    let first = operator.plan(|p| p.number > 0).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;
    let mut agent = Agent::connect(&s, "gateway", None, None).await;
    let before = first.pools[0].replicas.len();
    let feed = async {
        loop {
            // 1,800 in a wall second are 60 in a virtual one.
            agent.report(vec![traffic("default/chat", 1800)], vec![]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let grown = tokio::select! {
        plan = operator.plan(|p| p.pools[0].replicas.len() > before) => plan,
        () = feed => unreachable!(),
    };
    assert!(grown.trigger.contains("demand of default/chat rose"), "{}", grown.trigger);
    let answer =
        operator.client.explain(v1::ExplainRequest { pool: "chat".into() }).await.unwrap().into_inner();
    let history: Vec<ScalingRecord> = decode("history", answer.history.as_ref()).unwrap();
    assert!(history[0].reason.contains("rose from"), "{}", history[0].reason);
    assert!(history[0].replicas.1 > history[0].replicas.0);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_if_and_explain_answer_and_refuse_clearly() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    operator.push(&cluster(vec![pool("default/chat", 3.0)])).await;
    let plan = operator.plan(|p| p.number > 0).await;
    let ask = |changes: &[&str]| v1::WhatIfRequest {
        changes: changes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let answer = operator.client.what_if(ask(&["demand/chat*12"])).await.unwrap().into_inner();
    let base: Plan = decode("plan", answer.base.as_ref()).unwrap();
    let changed: Plan = decode("plan", answer.changed.as_ref()).unwrap();
    assert_eq!(base.number, plan.number);
    assert!(changed.usd_per_hour > base.usd_per_hour, "{} {}", changed.usd_per_hour, base.usd_per_hour);
    let status = operator.client.what_if(ask(&["nonsense"])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("nonsense"), "{}", status.message());
    let other = v1::WhatIfRequest {
        changes: vec![],
        snapshot: Some(encode("snapshot", &cluster(vec![pool("default/else", 1.0)])).unwrap()),
        ..Default::default()
    };
    let answer = operator.client.what_if(other).await.unwrap().into_inner();
    let base: Plan = decode("plan", answer.base.as_ref()).unwrap();
    assert_eq!(base.pools[0].pool.to_string(), "default/else");
    // Manifests over what runs: what they do not name stays, what is as it was changes nothing.
    let applying = |pools| v1::WhatIfRequest {
        objects: Some(encode("objects", &ClusterSnapshot { pools, ..Default::default() }).unwrap()),
        ..Default::default()
    };
    let both = |answer: v1::WhatIfResponse| -> (Plan, Plan) {
        assert!(answer.applied);
        (decode("plan", answer.base.as_ref()).unwrap(), decode("plan", answer.changed.as_ref()).unwrap())
    };
    let same = pool("default/chat", 3.0);
    let (base, after) = both(operator.client.what_if(applying(vec![same])).await.unwrap().into_inner());
    assert_eq!(base.number, plan.number, "the plan in force");
    assert!(diff(&base, &after).iter().all(|d| !d.is_change()), "{:?}", diff(&base, &after));
    let (more, new) = (pool("default/chat", 30.0), pool("default/new", 1.0));
    let (base, after) = both(operator.client.what_if(applying(vec![more, new])).await.unwrap().into_inner());
    let actions: Vec<_> = diff(&base, &after).iter().map(|d| (d.pool.to_string(), d.action)).collect();
    let wanted = [("default/chat".to_owned(), Action::Change), ("default/new".to_owned(), Action::Add)];
    assert_eq!(actions, wanted);
    let twice = applying(vec![pool("default/chat", 3.0), pool("default/chat", 4.0)]);
    let status = operator.client.what_if(twice).await.unwrap_err();
    assert!(status.message().contains("default/chat twice"), "{}", status.message());
    let status = operator.client.explain(v1::ExplainRequest { pool: "none".into() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert!(status.message().contains("default/chat"), "{}", status.message());
    let status = operator.client.explain(v1::ExplainRequest { pool: "NOT/ok".into() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let mut twice = cluster(vec![pool("default/chat", 3.0)]);
    twice.pools.push(twice.pools[0].clone());
    let bad = v1::PushSnapshotRequest {
        snapshot: Some(encode("snapshot", &twice).unwrap()),
        operator: "test".into(),
        sequence: 99,
    };
    let status = operator.client.push_snapshot(bad).await.unwrap_err();
    assert!(status.message().contains("default/chat twice"), "{}", status.message());
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_never_add_up_to_more_than_the_cap() {
    let s = start(None, |_| {}).await;
    let mut operator = s.operator().await;
    let mut cluster = cluster(vec![pool("default/chat", 1.0)]);
    cluster.budgets.push(Budget {
        name: "team-a".into(),
        scope: BudgetScope::default(),
        parent: None,
        usd_per_hour: None,
        usd_per_month: None,
        tokens_per_minute: Some(60_000.0),
        watts: None,
        grams_co2e_per_hour: None,
        on_limit: Default::default(),
    });
    operator.push(&cluster).await;
    let mut a = Agent::connect(&s, "n1", Some("n1"), None).await;
    let mut b = Agent::connect(&s, "n2", Some("n2"), None).await;
    for agent in [&mut a, &mut b] {
        agent.report(vec![], vec![]).await;
        agent.until("a lease", |a| !a.leases.is_empty()).await;
    }
    let all: Vec<_> = a.leases.iter().chain(&b.leases).collect();
    assert!(all.iter().all(|l| l.budget == "team-a" && l.amount > 0.0));
    assert!(all.iter().map(|l| l.amount).sum::<f64>() <= 60_000.0);
    assert_ne!(a.leases[0].epoch, b.leases[0].epoch);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_begin_wrong_are_told_why() {
    let s = start(None, |_| {}).await;
    let mut unnamed = Agent::connect(&s, "", None, None).await;
    let status = soon("an answer", unnamed.read()).await.unwrap_err();
    assert!(status.message().contains("Hello.agent"), "{}", status.message());
    let mut crooked = Agent::connect(&s, "x", Some("n1"), None).await;
    crooked.report(vec![], vec![]).await;
    soon("an ack", crooked.read()).await.unwrap();
    s.stop().await;
    let status = soon("the end", crooked.read()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let ended = soon("the end", async { while crooked.read().await.is_ok() {} });
    ended.await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("scheduler.redb"), b"rubbish".repeat(1000)).unwrap();
    let planner = || std::sync::Arc::new(plimsoll_scheduler::planner::EnginePlanner::default());
    let mut config = SchedulerConfig::new(planner());
    config.data_dir = Some(dir.path().to_owned());
    let error = Scheduler::start(config, Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("move it away"), "{error}");
    let mut config = SchedulerConfig::new(planner());
    config.time_scale = -1.0;
    let error = Scheduler::start(config, Default::default()).await.unwrap_err();
    assert!(matches!(error, SchedulerError::Scale(_)), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = SchedulerConfig::new(planner());
    config.listen = taken.local_addr().unwrap();
    let error = Scheduler::start(config, Default::default()).await.unwrap_err();
    assert!(matches!(error, SchedulerError::Listen { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_on_by_itself_and_an_eviction_is_answered() {
    let s = start(None, |c| c.time_scale = 60.0).await;
    let mut operator = s.operator().await;
    let mut chat = pool("default/chat", 1.0);
    chat.scaling.min_replicas = 2;
    let mut cluster = cluster(vec![chat]);
    operator.push(&cluster).await;
    let ids = |p: &Plan| p.pools[0].replicas.iter().map(|r| r.id.clone()).collect::<BTreeSet<_>>();
    let first = operator.plan(|p| p.pools.first().is_some_and(|p| p.replicas.len() == 2)).await;
    act(&mut cluster, &first, now(), ReplicaPhase::Ready, &[]);
    operator.push(&cluster).await;

    // A new image: both are outdated, one is given a successor.
    cluster.pools[0].generation = 2;
    cluster.replicas.iter_mut().for_each(|r| r.outdated = true);
    operator.push(&cluster).await;
    let second = operator.plan(|p| p.pools[0].generation == 2).await;
    assert_eq!(ids(&second).intersection(&ids(&first)).count(), 1, "{second:#?}");

    // It serves, the old one goes: nothing else changes, and yet the next one is due.
    act(&mut cluster, &second, now(), ReplicaPhase::Ready, &[]);
    let wanted = ids(&second);
    cluster.replicas.retain(|r| wanted.contains(&r.id));
    operator.push(&cluster).await;
    let third = operator.plan(|p| ids(p).is_disjoint(&ids(&first))).await;
    assert!(third.trigger.starts_with("rollout of default/chat: 1 of 2 replaced"), "{}", third.trigger);
    assert_eq!(ids(&third).intersection(&wanted).count(), 1);

    act(&mut cluster, &third, now(), ReplicaPhase::Ready, &[]);
    let wanted = ids(&third);
    cluster.replicas.retain(|r| wanted.contains(&r.id));
    operator.push(&cluster).await;
    let evicted = cluster.replicas[0].id.clone();
    cluster.replicas[0].phase = ReplicaPhase::Draining;
    operator.push(&cluster).await;
    let fourth = operator.plan(|p| !ids(p).contains(&evicted)).await;
    assert!(fourth.trigger.contains("is being evicted"), "{}", fourth.trigger);
    assert_eq!(ids(&fourth).len(), 2);
    s.stop().await;
}
