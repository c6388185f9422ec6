//! Agents beside engines: admission, refusals, drains, liveness, and life without a scheduler.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_proto::convert::{route_delta, route_table};
use plimsoll_proto::v1;
use plimsoll_proto::v1::agent_message::Message as Up;
use plimsoll_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use plimsoll_proto::v1::scheduler_message::Message as Down;
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// What has been answered is no load: else whoever asks again would be sent away from its own cache.
#[tokio::test]
async fn an_answer_does_not_count_itself_as_load() {
    let engine = Engine::start().await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    node.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(node.addr()))]));
    let mut request = chat(node.addr(), false);
    request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1;prompt=1000".parse().unwrap());
    let got = send(request).await;
    assert_eq!((got.status, got.header("x-plimsoll-load")), (200, "0,0,0,0"), "{}", got.text);
}

#[tokio::test]
async fn a_refused_hop_goes_to_the_next_choice() {
    let (a, b) = (Engine::start().await, Engine::start().await);
    let gateway = agent("gw", None, |_| {}).await;
    let n1 = agent("n1", Some("n1"), |c| c.limits.max_queue = 0).await;
    let n2 = agent("n2", Some("n2"), |_| {}).await;
    let mut first = endpoint("chat-1", "n1", a.addr, Some(n1.addr()));
    first.coefficients.max_running = 1;
    let mut slow = endpoint("chat-2", "n2", b.addr, Some(n2.addr()));
    slow.coefficients.base_ms = 1000.0;
    // One slot and a backlog of two: the fourth is refused there, however good it looks to the gateway.
    let routes = table(1, vec![first, slow]);
    for agent in [&gateway, &n1, &n2] {
        agent.set_routes(routes.clone());
    }
    a.next(&[Act::Endless, Act::Endless, Act::Endless]);
    let mut tasks = Vec::new();
    for i in 1..=3 {
        let mut request = chat(n1.addr(), true);
        request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1;prompt=1;stream=1".parse().unwrap());
        tasks.push(tokio::spawn(send(request)));
        until("it is there", || a.requests() == i).await;
    }
    let refused = {
        let mut request = chat(n1.addr(), true);
        request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1;prompt=1;stream=1".parse().unwrap());
        send(request).await
    };
    assert_eq!((refused.status, refused.header("x-plimsoll-refused")), (429, "queue_full"));
    assert!(refused.header("x-plimsoll-load").starts_with("3,0,"), "{}", refused.header("x-plimsoll-load"));
    assert!(!refused.header("retry-after").is_empty());
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-2"), "{}", got.text);
    for task in tasks {
        task.abort();
    }
    assert_eq!((a.requests(), b.requests()), (3, 1));
    // Refusals cost nothing: the gateway counts one request, finished.
    let traffic = gateway.take_traffic();
    assert_eq!((traffic[0].arrived, traffic[0].finished, traffic[0].refused), (1, 1, 0));
}

#[tokio::test]
async fn an_agent_whose_address_is_dead_is_passed_by() {
    // Nobody accepts here, and once its backlog is full nothing answers: as where a deleted pod's address was.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = socket.listen(1).unwrap();
    let address = silent.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        held.push(stream);
    }
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.limits.connect_timeout = Duration::from_millis(200)).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(address))]));
    for _ in 0..2 {
        let got = send(chat(gateway.addr(), true)).await;
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-1"), "{}", got.text);
    }
    assert_eq!(engine.requests(), 2);
}

#[tokio::test]
async fn a_gateway_that_has_no_routes_yet_says_so() {
    let gateway = agent("gw", None, |_| {}).await;
    let got = send(chat(gateway.addr(), false)).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (503, Some("no_routes_yet")));
    assert!(!got.header("retry-after").is_empty());
    gateway.set_routes(table(1, Vec::new()));
    assert_ne!(send(chat(gateway.addr(), false)).await.status, 404, "the pool is known");
}

#[tokio::test]
async fn when_every_choice_refuses_the_client_is_told_when_to_return() {
    let a = Engine::start().await;
    let n1 = agent("n1", Some("n1"), |c| c.limits.max_queue = 0).await;
    let mut only = endpoint("chat-1", "n1", a.addr, Some(n1.addr()));
    only.coefficients.max_running = 1;
    n1.set_routes(table(1, vec![only]));
    a.next(&[Act::Endless, Act::Endless, Act::Endless]);
    let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(send(chat(n1.addr(), true)))).collect();
    until("they are there", || a.requests() == 3).await;
    let got = send(chat(n1.addr(), true)).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert!(got.header("retry-after").parse::<u32>().unwrap() >= 1);
    let mut request = chat(n1.addr(), true);
    request.headers_mut().insert("x-plimsoll-deadline-ms", "1".parse().unwrap());
    let got = send(request).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("deadline")));
    for task in tasks {
        task.abort();
    }
    assert_eq!(n1.take_traffic()[0].refused, 2);
}

#[tokio::test]
async fn waiting_requests_get_their_turn_in_order_of_slack() {
    let a = Engine::start().await;
    let n1 = agent("n1", Some("n1"), |_| {}).await;
    let mut only = endpoint("chat-1", "n1", a.addr, Some(n1.addr()));
    only.coefficients.max_running = 1;
    n1.set_routes(table(1, vec![only]));
    *a.state.pause.lock() = Duration::from_millis(30);
    let mut running = Vec::new();
    for i in 1..=3 {
        running.push(tokio::spawn(send(chat(n1.addr(), true))));
        until("it runs", || a.requests() == i).await;
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, ttft) in [("loose", "900000"), ("tight", "30000"), ("middle", "100000")] {
        let mut request = chat(n1.addr(), true);
        request.headers_mut().insert("x-llm-d-slo-ttft-ms", ttft.parse().unwrap());
        let order = order.clone();
        tasks.push(tokio::spawn(async move {
            let response = client().request(request).await.unwrap();
            order.lock().push(name);
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for task in running {
        task.await.unwrap();
    }
    for task in tasks {
        task.await.unwrap();
    }
    let order = order.lock().clone();
    assert_eq!(order.len(), 3);
    // They leave one by one as the first three end; all may have been queued before the first left.
    assert!(
        order.iter().position(|n| *n == "tight") <= order.iter().position(|n| *n == "loose"),
        "{order:?}"
    );
}

/// Who is served, in order, of eight long requests each of two tenants that all wait; web's came first.
async fn turns(
    weights: &[(&str, f64)],
    change: impl FnOnce(&mut plimsoll_agent::AgentConfig),
) -> Vec<&'static str> {
    let a = Engine::start().await;
    let n1 = agent("n1", Some("n1"), change).await;
    let mut only = endpoint("chat-1", "n1", a.addr, Some(n1.addr()));
    only.coefficients.max_running = 1;
    let mut routes = table(1, vec![only]);
    routes.tenant_weights = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    n1.set_routes(routes);
    a.next(&[Act::Endless, Act::Endless, Act::Endless]);
    let mut running = Vec::new();
    for i in 1..=3 {
        running.push(tokio::spawn(send(chat(n1.addr(), true))));
        until("it runs", || a.requests() == i).await;
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for name in std::iter::repeat_n("web", 8).chain(std::iter::repeat_n("research", 8)) {
        let body = serde_json::json!({"model": "chat-model", "stream": true, "max_tokens": 3,
            "messages": [{"role": "user", "content": format!("{} {}", tasks.len(), "x".repeat(160_000))}]});
        let mut request = post(n1.addr(), "/v1/chat/completions", body.to_string());
        request.headers_mut().insert("x-plimsoll-tenant", name.parse().unwrap());
        request.headers_mut().insert("x-kind", "batch".parse().unwrap());
        let order = order.clone();
        tasks.push(tokio::spawn(async move {
            let response = client().request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            order.lock().push(name);
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("all wait", || n1.engines()[0].outstanding_tokens > 16.0 * 40_000.0).await;
    assert_eq!(a.requests(), 3);
    running.iter().for_each(tokio::task::JoinHandle::abort);
    for task in tasks {
        task.await.unwrap();
    }
    std::mem::take(&mut *order.lock())
}

#[tokio::test]
async fn tenants_take_turns_by_the_weights_of_the_routes_unless_the_agent_has_its_own() {
    let of_research = |order: &[&str]| order[..8].iter().filter(|name| **name == "research").count();
    let even = turns(&[], |_| {}).await;
    assert!((3..=4).contains(&of_research(&even)), "{even:?}");
    let weighed = turns(&[("research", 4.0)], |_| {}).await;
    assert!(of_research(&weighed) >= 5, "{weighed:?}");
    let own = turns(&[("research", 4.0)], |c| c.tenant_weights = [("research".to_owned(), 1.0)].into()).await;
    assert!((3..=4).contains(&of_research(&own)), "{own:?}");
}

#[tokio::test]
async fn a_draining_engine_takes_nothing_new_and_acknowledges_when_empty() {
    let (a, b) = (Engine::start().await, Engine::start().await);
    let gateway = agent("gw", None, |_| {}).await;
    let n1 = agent("n1", Some("n1"), |_| {}).await;
    let old = table(
        1,
        vec![endpoint("chat-1", "n1", a.addr, Some(n1.addr())), endpoint("chat-2", "n2", b.addr, None)],
    );
    let mut new = old.clone();
    new.version = 2;
    new.pools[0].endpoints[0].draining = true;
    // The gateway goes by the old table; its hops to chat-1 are refused and served by chat-2.
    gateway.set_routes(old.clone());
    n1.set_routes(old);
    a.next(&[Act::Endless]);
    let mut request = chat(n1.addr(), true);
    request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1;prompt=1;stream=1".parse().unwrap());
    let task = tokio::spawn(send(request));
    until("it runs", || a.requests() == 1).await;
    n1.set_routes(new);
    for _ in 0..8 {
        let got = send(chat(gateway.addr(), true)).await;
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-2"));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!n1.engines()[0].drained, "it still answers one");
    assert_eq!(a.requests(), 1);
    task.abort();
    until("it is drained", || n1.engines()[0].drained).await;
}

#[tokio::test]
async fn a_new_engine_gets_requests_once_it_has_made_a_token() {
    let (a, b) = (Engine::start().await, Engine::start().await);
    let node = agent("n1", Some("n1"), |_| {}).await;
    let old = endpoint("chat-1", "n1", a.addr, Some(node.addr()));
    node.set_routes(table(1, vec![old.clone()]));
    until("the first is healthy", || node.engines()[0].healthy).await;
    assert_eq!(a.requests(), 0, "what served when the agent came is trusted");
    // Its health check is fine from the beginning, and its first requests fail.
    b.next(&[Act::Fail; 500]);
    node.set_routes(table(2, vec![old, endpoint("chat-2", "n1", b.addr, Some(node.addr()))]));
    until("the new one is asked in vain", || b.requests() >= 2).await;
    assert_eq!(b.state.last_body.lock()["max_tokens"], 1);
    for _ in 0..4 {
        assert_eq!(send(chat(node.addr(), true)).await.header("x-plimsoll-replica"), "chat-1");
    }
    assert!(!node.engines()[1].healthy);
    b.state.script.lock().clear();
    until("it makes a token", || node.engines()[1].healthy).await;
    // It comes back from an outage: again one token first.
    let asked = b.requests();
    b.state.healthy.store(false, SeqCst);
    until("it is unhealthy", || !node.engines()[1].healthy).await;
    b.state.healthy.store(true, SeqCst);
    until("it is healthy again", || node.engines()[1].healthy).await;
    assert_eq!(b.requests(), asked + 1);
}

#[tokio::test]
async fn an_engine_that_moves_nothing_is_stalled_whatever_its_health_check_says() {
    let (a, b) = (Engine::start().await, Engine::start().await);
    let node = agent("n1", Some("n1"), |c| c.limits.stall_after = Duration::from_millis(400)).await;
    let mut one = endpoint("chat-1", "n1", a.addr, Some(node.addr()));
    one.coefficients.base_ms = 1.0;
    node.set_routes(table(1, vec![one, endpoint("chat-2", "n1", b.addr, Some(node.addr()))]));
    until("both are seen healthy", || node.engines().iter().all(|e| e.healthy && e.running == Some(0.0)))
        .await;
    // It holds work that never moves.
    *a.state.metrics.lock() = Some("vllm:num_requests_running 2\nvllm:generation_tokens_total 7\n".into());
    until("it is stalled", || node.engines()[0].stalled).await;
    assert!(node.engines()[0].healthy);
    for _ in 0..4 {
        assert_eq!(send(chat(node.addr(), true)).await.header("x-plimsoll-replica"), "chat-2");
    }
    // No metrics at all: unknown, not zero.
    *b.state.metrics.lock() = None;
    until("its figures are unknown", || node.engines()[1].running.is_none()).await;
    // The health check fails: nothing is left.
    b.state.healthy.store(false, SeqCst);
    until("it is unhealthy", || !node.engines()[1].healthy).await;
    let got = send(chat(node.addr(), true)).await;
    assert_eq!(got.status, 503);
    assert!(
        got.message().contains("1 not healthy") && got.message().contains("1 stalled"),
        "{}",
        got.message()
    );
    *a.state.metrics.lock() = Some("vllm:num_requests_running 0\nvllm:generation_tokens_total 9\n".into());
    until("it moves again", || !node.engines()[0].stalled).await;
    assert_eq!(send(chat(node.addr(), true)).await.header("x-plimsoll-replica"), "chat-1");
}

#[tokio::test]
async fn an_agent_restarts_on_its_kept_table_with_the_scheduler_down() {
    let engine = Engine::start().await;
    let dir = tempfile::tempdir().unwrap();
    plimsoll_agent::persist::save(
        dir.path(),
        &table(5, vec![endpoint("chat-1", "n1", engine.addr, None)]),
        "e",
    )
    .unwrap();
    let node = agent("n1", Some("n1"), |c| {
        c.state_dir = Some(dir.path().to_owned());
        c.scheduler = Some("http://127.0.0.1:9".into());
    })
    .await;
    assert_eq!(node.routes().version, 5);
    assert_eq!(send(chat(node.addr(), true)).await.content(), "t0 t1 t2 ");
}

type Said = Result<v1::SchedulerMessage, tonic::Status>;

/// A scheduler that records what it hears and says what it is told to.
#[derive(Clone, Default)]
struct Scheduler {
    hellos: Arc<Mutex<Vec<v1::Hello>>>,
    reports: Arc<Mutex<Vec<AgentReport>>>,
    down: Arc<Mutex<Option<mpsc::Sender<Said>>>>,
    acknowledge: Arc<std::sync::atomic::AtomicBool>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl AgentService for Scheduler {
    type SessionStream = ReceiverStream<Said>;

    async fn session(
        &self,
        request: tonic::Request<tonic::Streaming<v1::AgentMessage>>,
    ) -> Result<tonic::Response<Self::SessionStream>, tonic::Status> {
        let (tx, rx) = mpsc::channel(64);
        *self.down.lock() = Some(tx.clone());
        let this = self.clone();
        let mut up = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(Some(message))) = this.stop.run_until_cancelled(up.message()).await {
                match message.message {
                    Some(Up::Hello(hello)) => this.hellos.lock().push(hello),
                    Some(Up::Report(report)) => {
                        let report = AgentReport::try_from(report).unwrap();
                        let sequence = report.sequence;
                        this.reports.lock().push(report);
                        if this.acknowledge.load(SeqCst) {
                            let ack = Down::Ack(v1::ReportAck { sequence });
                            let _ = tx.send(Ok(v1::SchedulerMessage { message: Some(ack) })).await;
                        }
                    }
                    None => {}
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(rx)))
    }
}

impl Scheduler {
    async fn serve(&self, listener: tokio::net::TcpListener) {
        let stop = self.stop.clone();
        let service = AgentServiceServer::new(self.clone());
        tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tokio::select! {
                _ = tonic::transport::Server::builder().serve_with_incoming(service, incoming) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn say(&self, message: Down) {
        let down = self.down.lock().clone().unwrap();
        down.send(Ok(v1::SchedulerMessage { message: Some(message) })).await.unwrap();
    }
}

#[tokio::test]
async fn the_stream_carries_routes_down_and_reports_up_and_resumes() {
    let engine = Engine::start().await;
    let scheduler = Scheduler::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    scheduler.serve(listener).await;
    let dir = tempfile::tempdir().unwrap();
    let node = agent("n1", Some("n1"), |c| {
        c.state_dir = Some(dir.path().to_owned());
        c.scheduler = Some(format!("http://{addr}"));
    })
    .await;
    until("it says hello", || !scheduler.hellos.lock().is_empty()).await;
    {
        let hello = scheduler.hellos.lock()[0].clone();
        assert_eq!((hello.agent.as_str(), hello.node.as_str(), hello.route_version), ("n1", "n1", 0));
        assert_eq!(hello.address, node.addr().to_string());
    }
    let first = table(1, vec![]);
    let second = table(2, vec![endpoint("chat-1", "n1", engine.addr, Some(node.addr()))]);
    scheduler.say(Down::Routes(route_table(&first, "e1"))).await;
    scheduler.say(Down::Delta(route_delta(&first, &second))).await;
    until("it has the table", || node.routes().version == 2).await;
    until("its engine serves", || node.engines().first().is_some_and(|e| e.healthy)).await;
    // Unacknowledged, reports stop at the window; what happens meanwhile is kept for the next.
    assert_eq!(send(chat(node.addr(), true)).await.status, 200);
    until("the window is full", || scheduler.reports.lock().len() == 8).await;
    assert_eq!(send(chat(node.addr(), true)).await.status, 200);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(scheduler.reports.lock().len(), 8);

    // The scheduler dies and comes back: the agent serves meanwhile, then says what it has and repeats itself.
    scheduler.stop.cancel();
    *scheduler.down.lock() = None;
    assert_eq!(send(chat(node.addr(), true)).await.status, 200);
    let reborn = Scheduler::default();
    reborn.acknowledge.store(true, SeqCst);
    let listener = loop {
        match tokio::net::TcpListener::bind(addr).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    reborn.serve(listener).await;
    until("it is back", || reborn.reports.lock().len() > 10).await;
    let hello = reborn.hellos.lock()[0].clone();
    assert_eq!((hello.route_version, hello.route_epoch.as_str()), (2, "e1"));
    let reports = reborn.reports.lock().clone();
    let numbers: Vec<u64> = reports.iter().map(|r| r.sequence).collect();
    assert_eq!(numbers[..10], (1..=10).collect::<Vec<_>>());
    let arrived: u64 = reports.iter().flat_map(|r| &r.traffic).map(|t| t.arrived).sum();
    assert_eq!(arrived, 3, "every request is reported once");
    assert!(reports[8].interval_seconds > 0.2, "the ninth covers the time without a window");
    assert_eq!(reports.last().unwrap().engines[0].replica.as_str(), "chat-1");

    // A delta that does not fit makes it ask for a full table; drains are obeyed and acknowledged.
    let odd = v1::RouteDelta { base_version: 77, version: 78, ..v1::RouteDelta::default() };
    reborn.say(Down::Delta(odd)).await;
    until("it asks again", || reborn.hellos.lock().len() == 2).await;
    assert_eq!(reborn.hellos.lock()[1].route_version, 0);
    reborn.say(Down::Drains(v1::Drains { replicas: vec!["chat-1".into(), "never-seen".into()] })).await;
    until("both are acknowledged", || {
        reborn
            .reports
            .lock()
            .last()
            .is_some_and(|r| r.engines.len() == 2 && r.engines.iter().all(|e| e.drained))
    })
    .await;
    assert_eq!(plimsoll_agent::persist::load(dir.path()).unwrap().unwrap().0.version, 2);
}

#[tokio::test]
async fn model_time_scales_what_is_reported() {
    let engine = Engine::start().await;
    *engine.state.pause.lock() = Duration::from_millis(10);
    let node = agent("n1", Some("n1"), |c| c.time_scale = 100.0).await;
    node.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    assert_eq!(send(chat(node.addr(), true)).await.status, 200);
    let e2e = node.take_traffic()[0].e2e_ms.mean().unwrap();
    assert!(e2e >= 3000.0, "30 ms at 100 times speed: {e2e}");
}

#[tokio::test]
async fn a_request_has_the_priority_of_the_objective_that_it_names() {
    let a = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let n1 = agent("n1", Some("n1"), |_| {}).await;
    let mut only = endpoint("chat-1", "n1", a.addr, Some(n1.addr()));
    only.coefficients.max_running = 1;
    let mut routes = table(1, vec![only]);
    routes.pools[0].objectives = vec![("batch".into(), -1)];
    for agent in [&gateway, &n1] {
        agent.set_routes(routes.clone());
    }
    // Three fill the engine and its backlog, one waits.
    a.next(&[Act::Endless, Act::Endless, Act::Endless]);
    let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(send(chat(n1.addr(), true)))).collect();
    until("they are there", || a.requests() == 3).await;
    let ask = async |header: &'static str, objective: &str| {
        let mut request = chat(gateway.addr(), true);
        request.headers_mut().insert(header, objective.parse().unwrap());
        tokio::time::timeout(Duration::from_millis(500), send(request)).await.ok()
    };
    for header in ["x-llm-d-inference-objective", "x-gateway-inference-objective"] {
        let mut shed = None;
        for _ in 0..40 {
            // Until the fourth has come to wait, this one waits itself.
            shed = ask(header, "batch").await;
            if shed.is_some() {
                break;
            }
        }
        let shed = shed.expect("it is refused");
        assert_eq!(
            (shed.status, shed.json()["error"]["code"].as_str()),
            (429, Some("displaced")),
            "{}",
            shed.text
        );
    }
    assert!(ask("x-llm-d-inference-objective", "unknown").await.is_none(), "it waits like any other");
    for task in tasks {
        task.abort();
    }
}
