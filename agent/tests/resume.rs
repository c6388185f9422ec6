//! Engines and agents that die while answers stream: what the client sees is one whole answer.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::BodyExt;
use parking_lot::Mutex;
use plimsoll_agent::metrics::{ReasonLabels, ResumeLabels};
use plimsoll_agent::{AgentHandle, AgentMetrics};
use plimsoll_simulator::engine_server::EngineServer;
use serde_json::{Value, json};
use support::*;

fn resumed(metrics: &AgentMetrics, outcome: &'static str) -> u64 {
    metrics.resumed.get_or_create(&ResumeLabels { agent: "gw".into(), outcome }).get()
}

/// A gateway over two engines that share a script, and how it counts; `via` an agent, or directly.
async fn two(via: bool) -> ([Engine; 2], [AgentHandle; 2], AgentMetrics) {
    let a = Engine::start().await;
    let b = Engine::start_with(a.state.script.clone()).await;
    for engine in [&a, &b] {
        engine.state.tokens.store(6, SeqCst);
    }
    let metrics = AgentMetrics::default();
    let gateway = agent("gw", None, |c| c.metrics = metrics.clone()).await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    let via = via.then(|| node.addr());
    let mut routes =
        table(1, vec![endpoint("chat-1", "n1", a.addr, via), endpoint("chat-2", "n1", b.addr, via)]);
    routes.pools[0].endpoints[1].engine_model = "other-name".into();
    gateway.set_routes(routes.clone());
    node.set_routes(routes);
    ([a, b], [gateway, node], metrics)
}

fn request(addr: std::net::SocketAddr, more: Value) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let mut body = json!({"model": "chat-model", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(addr, "/v1/chat/completions", body.to_string())
}

#[tokio::test]
async fn another_engine_goes_on() {
    for via in [false, true] {
        let (engines, [gateway, node], metrics) = two(via).await;
        let acts = [Act::DieAfter(2), Act::EndEarlyAfter(4), Act::DieAfter(0)];
        for (i, act) in acts.into_iter().enumerate() {
            engines[0].next(&[act]);
            let got = send(request(gateway.addr(), json!({"max_tokens": 100}))).await;
            assert_eq!(got.content(), "t0 t1 t2 t3 t4 t5 ", "{act:?} {via}: {}", got.text);
            assert_eq!(got.text.matches("[DONE]").count(), 1, "{}", got.text);
            assert!(!got.text.contains("\"error\""), "{}", got.text);
            let events = got.events();
            assert!(events.iter().all(|e| e["id"] == "id-0" && e["model"] == "chat-model"), "{}", got.text);
            let count = |of: &dyn Fn(&Value) -> bool| events.iter().filter(|e| of(e)).count();
            assert_eq!(count(&|e| e["choices"][0]["delta"]["role"].is_string()), 1, "{}", got.text);
            assert_eq!(count(&|e| e["choices"][0]["finish_reason"].is_string()), 1, "{}", got.text);
            let usage = &events.last().unwrap()["usage"];
            assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(40), &json!(6)));
            let traffic = &gateway.take_traffic()[0];
            assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (1, 1, 0));
            // With the last, nothing may have come before the end: then it is asked for as if for the first time.
            assert!(resumed(&metrics, "resumed") >= (i as u64 + 1).min(2));
            until("every place is free", || node.engines().iter().all(|e| e.outstanding_tokens == 0.0)).await;
        }
    }
}

/// Engines that guess ahead, or whose characters have several tokens, send fewer events than tokens.
#[tokio::test]
async fn tokens_are_counted_by_an_engine_where_events_are_fewer() {
    for (limit, left) in [(10, Some(6)), (4, None)] {
        let (engines, [gateway, _node], metrics) = two(true).await;
        for engine in &engines {
            engine.state.per_event.store(2, SeqCst);
        }
        engines[0].next(&[Act::DieAfter(4)]);
        let got = send(request(gateway.addr(), json!({"max_tokens": limit}))).await;
        let text = if left.is_some() { "t0 t1 t2 t3 t4 t5 " } else { "t0 t1 t2 t3 " };
        assert_eq!(got.content(), text, "{}", got.text);
        assert!(got.text.ends_with("data: [DONE]\n\n"), "{}", got.text);
        let ends: Vec<Value> = got
            .events()
            .iter()
            .map(|e| e["choices"][0]["finish_reason"].clone())
            .filter(|f| !f.is_null())
            .collect();
        assert_eq!(ends, [if left.is_some() { "stop" } else { "length" }], "{}", got.text);
        let rest = engines.iter().map(|e| e.state.last_body.lock().clone());
        let asked: Vec<Value> = rest.filter(|b| b["continue_final_message"] == true).collect();
        assert_eq!(asked.first().map(|b| b["max_tokens"].clone()), left.map(|n| json!(n)));
        let outcome = if left.is_some() { "resumed" } else { "finished" };
        assert_eq!(resumed(&metrics, outcome), 1);
    }
}

#[tokio::test]
async fn what_went_on_was_asked_for_the_rest_alone() {
    let (engines, [gateway, _node], _) = two(false).await;
    engines[0].next(&[Act::DieAfter(2)]);
    let mut asked = request(gateway.addr(), json!({"max_tokens": 100, "temperature": 0.5}));
    asked.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    assert_eq!(send(asked).await.header("x-request-id"), "mine");
    let states: Vec<_> = engines.iter().map(|e| e.state.last_body.lock().clone()).collect();
    let rest = states.iter().find(|b| b["continue_final_message"] == true).unwrap();
    assert_eq!((&rest["max_tokens"], &rest["temperature"]), (&json!(98), &json!(0.5)));
    assert_eq!(rest["messages"][1], json!({"role": "assistant", "content": "t0 t1"}));
    assert_eq!(rest["stream_options"]["include_usage"], true);
    let names: Vec<String> = engines
        .iter()
        .map(|e| e.state.last_headers.lock()["x-request-id"].to_str().unwrap().to_owned())
        .collect();
    assert!(names.contains(&"mine".to_owned()) && names.contains(&"mine-r1".to_owned()), "{names:?}");
    let models: Vec<&str> = states.iter().map(|b| b["model"].as_str().unwrap()).collect();
    assert_eq!(models, ["engine-model", "other-name"]);
}

#[tokio::test]
async fn twice_at_most() {
    let (engines, [gateway, _node], metrics) = two(true).await;
    engines[0].next(&[Act::DieAfter(1), Act::DieAfter(3)]);
    let got = send(request(gateway.addr(), json!({}))).await;
    assert_eq!(got.content(), "t0 t1 t2 t3 t4 t5 ", "{}", got.text);
    engines[0].next(&[Act::DieAfter(1), Act::DieAfter(3), Act::DieAfter(4)]);
    let got = send(request(gateway.addr(), json!({}))).await;
    assert_eq!(got.content(), "t0 t1 t2 t3 ");
    assert!(got.text.trim_end().lines().last().unwrap().starts_with("data: {\"error\":"), "{}", got.text);
    assert_eq!((resumed(&metrics, "resumed"), resumed(&metrics, "too_often")), (4, 1));
    let traffic = &gateway.take_traffic()[0];
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (2, 1, 1));
}

#[tokio::test]
async fn what_cannot_be_split_ends_with_an_error() {
    let (engines, [gateway, _node], metrics) = two(true).await;
    for (acts, more, outcome) in [
        (&[Act::DieAfter(2)][..], json!({"seed": 3}), "unfit_request"),
        (&[Act::DieAfter(2)], json!({"stop": [" two"]}), "stop_string"),
        (&[Act::DieAfter(2), Act::Complain], json!({}), "refused"),
    ] {
        engines[0].next(acts);
        let before = engines[0].requests() + engines[1].requests();
        let got = send(request(gateway.addr(), more)).await;
        assert_eq!(engines[0].requests() + engines[1].requests() - before, acts.len());
        assert_eq!(got.content(), "t0 t1 ");
        let last = got.text.trim_end().lines().last().unwrap();
        assert!(last.starts_with("data: {\"error\":") && last.contains("chat-"), "{}", got.text);
        assert_eq!(got.text.matches("\"error\"").count(), 1);
        assert_eq!(resumed(&metrics, outcome), 1, "{outcome}");
    }
    assert_eq!(gateway.take_traffic()[0].failed, 3);
}

/// Slow enough that answers still flow when something is killed, on a busy machine too.
const SPEED: f64 = 3.0;
const TOKENS: u64 = 1200;

async fn engine(speed: f64) -> (EngineServer, plimsoll_fleet::StepCoefficients) {
    simulated_engine(|config| config.speed = speed).await
}

/// An agent that can die as a process does: with everything it has open.
struct Process {
    handle: AgentHandle,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Process {
    async fn start(name: &'static str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.spawn(agent(name, Some(name), |c| c.time_scale = SPEED)).await.unwrap();
        Self { handle, runtime: Some(runtime) }
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn long(addr: std::net::SocketAddr, stream: bool) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let mut body = json!({"model": "chat-model", "max_tokens": TOKENS, "ignore_eos": true, "stream": stream,
        "messages": [{"role": "user", "content": "count"}]});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    post(addr, "/v1/chat/completions", body.to_string())
}

/// The answer of an engine that nobody disturbs.
async fn undisturbed(engine: &EngineServer) -> Got {
    let body = json!({"model": "llama-3.1-8b", "max_tokens": TOKENS, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": "count"}]});
    send(post(engine.addr(), "/v1/chat/completions", body.to_string())).await
}

fn same(got: &Got, whole: &Got) {
    assert_eq!(got.status, 200);
    assert!(!got.text.contains("\"error\""), "{}", &got.text[got.text.len().saturating_sub(600)..]);
    assert_eq!(got.content(), whole.content());
    assert_eq!(got.text.matches("[DONE]").count(), 1);
    let (events, expected) = (got.events(), whole.events());
    let usage = |events: &[Value]| {
        let u = events.last().unwrap()["usage"].clone();
        (u["prompt_tokens"].clone(), u["completion_tokens"].clone(), u["total_tokens"].clone())
    };
    assert_eq!(usage(&events), usage(&expected));
    assert!(events.iter().all(|e| e["id"] == events[0]["id"] && e["created"] == events[0]["created"]));
    let ends = |events: &[Value]| {
        let reasons = events.iter().filter_map(|e| e["choices"][0]["finish_reason"].as_str());
        reasons.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ends(&events), ends(&expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_is_killed_and_nothing_is_lost() {
    let ((a, step), (b, _), (calm, _)) = (engine(SPEED).await, engine(SPEED).await, engine(500.0).await);
    let whole = undisturbed(&calm).await;
    let metrics = AgentMetrics::default();
    let gateway = agent("gw", None, |c| {
        c.time_scale = SPEED;
        c.metrics = metrics.clone();
    })
    .await;
    let node = agent("n1", Some("n1"), |c| c.time_scale = SPEED).await;
    let mut endpoints = vec![
        endpoint("chat-1", "n1", a.addr(), Some(node.addr())),
        endpoint("chat-2", "n1", b.addr(), Some(node.addr())),
    ];
    for e in &mut endpoints {
        e.engine_model = "llama-3.1-8b".into();
        e.coefficients = step;
    }
    for agent in [&gateway, &node] {
        agent.set_routes(table(1, endpoints.clone()));
    }
    let mut tasks: Vec<_> = (0..6).map(|_| tokio::spawn(send(long(gateway.addr(), true)))).collect();
    tasks.push(tokio::spawn(send(long(node.addr(), true))));
    let plain: Vec<_> = (0..4).map(|_| tokio::spawn(send(long(gateway.addr(), false)))).collect();
    until("both engines are busy", || {
        [&a, &b].iter().all(|e| e.stats().generation_tokens > 100 && e.stats().running > 1)
    })
    .await;
    a.kill();
    for task in tasks {
        same(&task.await.unwrap(), &whole);
    }
    for task in plain {
        let got = task.await.unwrap();
        assert_eq!(got.status, 200, "{}", got.text);
        assert_eq!(got.json()["choices"][0]["message"]["content"], whole.content());
    }
    assert!(resumed(&metrics, "resumed") >= 1);
    let traffic = &gateway.take_traffic()[0];
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (10, 10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_agent_is_killed_and_its_engine_answers_on() {
    let ((engine, step), (calm, _)) = (engine(SPEED).await, engine(500.0).await);
    let whole = undisturbed(&calm).await;
    let metrics = AgentMetrics::default();
    let gateway = agent("gw", None, |c| {
        c.time_scale = SPEED;
        c.metrics = metrics.clone();
    })
    .await;
    let mut node = Process::start("n1").await;
    let mut only = endpoint("chat-1", "n1", engine.addr(), Some(node.handle.addr()));
    only.engine_model = "llama-3.1-8b".into();
    only.coefficients = step;
    for agent in [&gateway, &node.handle] {
        agent.set_routes(table(1, vec![only.clone()]));
    }
    // More than the retry budget has.
    let begun = Arc::new(AtomicUsize::new(0));
    let streams: Vec<_> = (0..24)
        .map(|_| {
            let (request, begun) = (long(gateway.addr(), true), begun.clone());
            tokio::spawn(async move {
                let (head, mut body) = client().request(request).await.unwrap().into_parts();
                let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
                begun.fetch_add(1, SeqCst);
                let rest = body.collect().await.unwrap().to_bytes();
                let text = String::from_utf8([first, rest].concat()).unwrap();
                Got { status: head.status.as_u16(), headers: head.headers, text }
            })
        })
        .collect();
    let plain = tokio::spawn(send(long(gateway.addr(), false)));
    until("every stream flows", || begun.load(SeqCst) == 24).await;
    node.kill();
    for stream in streams {
        same(&stream.await.unwrap(), &whole);
    }
    let got = plain.await.unwrap();
    assert_eq!(
        (got.status, &got.json()["usage"]["completion_tokens"]),
        (200, &json!(TOKENS)),
        "{}",
        got.text
    );
    assert!(resumed(&metrics, "resumed") > 20);
    let bypasses =
        |reason| metrics.bypasses.get_or_create(&ReasonLabels { agent: "gw".into(), reason }).get();
    assert!(bypasses("refused") + bypasses("reset") >= 1);
    // Before the first byte too.
    same(&send(long(gateway.addr(), true)).await, &whole);
    let traffic = &gateway.take_traffic()[0];
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (26, 26, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_ends_what_went_on() {
    let (engines, [gateway, _node], _) = two(false).await;
    engines[0].next(&[Act::DieAfter(2), Act::Endless]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (all, asked) = (seen.clone(), request(gateway.addr(), json!({})));
    let task = tokio::spawn(async move {
        let mut body = client().request(asked).await.unwrap().into_body();
        while let Some(Ok(frame)) = body.frame().await {
            all.lock().extend_from_slice(frame.data_ref().unwrap());
        }
    });
    until("it went on", || String::from_utf8_lossy(&seen.lock()).contains("t5 ")).await;
    task.abort();
    let cancelled = || engines.iter().map(|e| e.state.cancelled.load(SeqCst)).sum::<usize>();
    until("the engine saw it leave", || cancelled() == 1).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let traffic = &gateway.take_traffic()[0];
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (1, 0, 0));
}
