//! The proxy against engines that behave and misbehave.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;
use support::*;

#[tokio::test]
async fn streams_a_chat_through_a_static_route_table() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert_eq!(got.content(), "t0 t1 t2 ");
    assert!(got.text.ends_with("data: [DONE]\n\n"));
    assert!(!got.text.contains("usage"), "the client did not ask for usage: {}", got.text);
    assert!(got.text.contains("\"chat-model\"") && !got.text.contains("engine-model"));
    assert_eq!(got.header("x-plimsoll-replica"), "chat-1");
    assert_eq!(got.header("x-plimsoll-plan"), "31");
    assert!(!got.header("x-request-id").is_empty());
    let body = engine.state.last_body.lock().clone();
    assert_eq!(body["model"], "engine-model");
    assert_eq!(body["stream_options"]["include_usage"], true);

    let traffic = gateway.take_traffic();
    assert_eq!((traffic[0].arrived, traffic[0].finished, traffic[0].attained), (1, 1, 1));
    assert_eq!(traffic[0].cached_tokens, 16);
    assert_eq!(traffic[0].lengths, [(5, 1, 1)]);
    assert_eq!(traffic[0].ttft_ms.count(), 1);
    assert_eq!(traffic[0].tpot_us.count(), 1);
}

#[tokio::test]
async fn answers_that_do_not_stream_are_whole_and_counted() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let got = send(chat(gateway.addr(), false)).await;
    assert_eq!((got.status, got.json()["model"].as_str()), (200, Some("chat-model")));
    assert_eq!(got.json()["usage"]["prompt_tokens"], 40);
    let traffic = gateway.take_traffic();
    assert_eq!(
        (traffic[0].finished, traffic[0].output_tokens.count(), traffic[0].ttft_ms.count()),
        (1, 1, 0)
    );

    let mut request = chat(gateway.addr(), false);
    request.headers_mut().insert("x-kind", "batch".parse().unwrap());
    request.headers_mut().insert("traceparent", "00-1-2-01".parse().unwrap());
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    let got = send(request).await;
    assert_eq!(got.header("x-request-id"), "mine");
    let headers = engine.state.last_headers.lock().clone();
    assert_eq!(headers["traceparent"], "00-1-2-01");
    assert!(!headers.contains_key("authorization"));
    assert_eq!(gateway.take_traffic()[0].slo_class, "batch");
}

#[tokio::test]
async fn embeddings_and_completions_pass_and_tokenizing_is_no_demand() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    for path in ["/v1/embeddings", "/v1/completions", "/tokenize"] {
        let body = json!({"model": "chat-model", "input": "x", "prompt": "x"});
        assert_eq!(send(post(gateway.addr(), path, body.to_string())).await.status, 200, "{path}");
    }
    // The engine of these tests does not count what it tokenises.
    assert_eq!(engine.requests(), 2);
    assert_eq!(gateway.take_traffic()[0].arrived, 2);
}

#[tokio::test]
async fn usage_reaches_a_client_that_asked_for_it() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let body = json!({"model": "chat-model", "stream": true, "stream_options": {"include_usage": true}, "messages": []});
    let got = send(post(gateway.addr(), "/v1/chat/completions", body.to_string())).await;
    assert!(got.text.contains("\"cached_tokens\":16"), "{}", got.text);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_engines_work() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    let routes = table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(node.addr()))]);
    gateway.set_routes(routes.clone());
    node.set_routes(routes);
    for (i, stream) in [(1, true), (2, false)] {
        engine.next(&[Act::Endless]);
        let request = chat(gateway.addr(), stream);
        let task = tokio::spawn(async move {
            let response = client().request(request).await.unwrap();
            let mut body = response.into_body();
            body.frame().await.unwrap().unwrap();
            std::future::pending::<()>().await;
        });
        until("the engine has the request", || engine.requests() == i).await;
        if stream {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        task.abort();
        until("the engine saw it leave", || engine.state.cancelled.load(SeqCst) == i).await;
        until("the place is free", || node.engines()[0].outstanding_tokens == 0.0).await;
    }
    let traffic = gateway.take_traffic();
    assert_eq!((traffic[0].arrived, traffic[0].finished, traffic[0].failed), (2, 0, 0));
    assert!(node.take_traffic().is_empty(), "a hop is not counted again");
}

#[tokio::test]
async fn failures_before_the_first_byte_go_to_the_next_choice() {
    let a = Engine::start().await;
    let b = Engine::start_with(a.state.script.clone()).await;
    for act in [Act::Unavailable, Act::HangUp, Act::HangUpAfterHead] {
        let gateway = agent("gw", None, |_| {}).await;
        gateway.set_routes(table(
            1,
            vec![endpoint("chat-1", "n1", a.addr, None), endpoint("chat-2", "n2", b.addr, None)],
        ));
        let before = a.requests() + b.requests();
        a.next(&[act]);
        let got = send(chat(gateway.addr(), true)).await;
        assert_eq!(a.requests() + b.requests(), before + 2, "{act:?}");
        assert_eq!((got.status, got.content().as_str()), (200, "t0 t1 t2 "), "{act:?}: {}", got.text);
    }
}

#[tokio::test]
async fn the_only_replica_is_tried_again_but_not_for_ever() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.limits.settle_wait = Duration::from_secs(5)).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    engine.next(&[Act::HangUp]);
    assert_eq!(send(chat(gateway.addr(), true)).await.content(), "t0 t1 t2 ");
    engine.next(&[Act::HangUp; 10]);
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!((got.status, engine.requests()), (502, 5), "{}", got.text);
}

#[tokio::test]
async fn an_answer_of_which_the_client_has_nothing_is_asked_for_again() {
    let a = Engine::start().await;
    let b = Engine::start_with(a.state.script.clone()).await;
    let gateway = agent("gw", None, |_| {}).await;
    let n1 = agent("n1", Some("n1"), |_| {}).await;
    for (i, via) in [(1, None), (2, Some(n1.addr()))] {
        let routes =
            table(i, vec![endpoint("chat-1", "n1", a.addr, via), endpoint("chat-2", "n1", b.addr, via)]);
        n1.set_routes(routes.clone());
        gateway.set_routes(routes);
        a.next(&[Act::DieAfter(1)]);
        let got = send(chat(gateway.addr(), false)).await;
        assert_eq!((got.status, a.requests() + b.requests()), (200, 2 * i as usize), "{}", got.text);
        assert_eq!(got.json()["choices"][0]["message"]["content"], "xxx");
        let traffic = &gateway.take_traffic()[0];
        assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (1, 1, 0));
        assert_eq!(traffic.lengths, [(5, 1, 1)], "what came to nothing is not the client's");
    }
    // A dying engine may still say so; what two engines say is the answer.
    a.next(&[Act::Fail]);
    assert_eq!(send(chat(gateway.addr(), false)).await.status, 200);
    a.next(&[Act::Fail, Act::Fail]);
    let got = send(chat(gateway.addr(), false)).await;
    assert_eq!((got.status, got.message().as_str()), (500, "the engine died"));
    // Not where asking leaves something behind.
    a.next(&[Act::DieAfter(1)]);
    let body = json!({"model": "chat-model", "input": "x"}).to_string();
    let got = send(post(gateway.addr(), "/v1/responses", body)).await;
    assert_eq!(got.status, 502);
    assert!(got.message().contains("had begun"), "{}", got.message());
}

#[tokio::test]
async fn an_engine_that_dies_midway_ends_the_stream_with_an_error() {
    let engine = Engine::start().await;
    let other = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    for (via, version) in [(None, 1), (Some(node.addr()), 2)] {
        let mut routes = table(
            version,
            vec![endpoint("chat-1", "n1", engine.addr, via), endpoint("chat-2", "n2", other.addr, None)],
        );
        routes.pools[0].endpoints[1].draining = true;
        gateway.set_routes(routes.clone());
        node.set_routes(routes);
        for act in [Act::DieAfter(2), Act::EndEarlyAfter(2)] {
            engine.next(&[act]);
            let got = send(chat(gateway.addr(), true)).await;
            assert_eq!(got.status, 200);
            assert_eq!(got.content(), "t0 t1 ", "{act:?}");
            let last = got.text.trim_end().lines().last().unwrap().strip_prefix("data: ").unwrap();
            let error: serde_json::Value = serde_json::from_str(last).unwrap();
            assert!(error["error"]["message"].as_str().unwrap().contains("chat-1"), "{last}");
            assert_eq!(got.text.matches("\"error\"").count(), 1);
        }
        engine.next(&[Act::DieAfter(1); 3]);
        let got = send(chat(gateway.addr(), false)).await;
        assert_eq!(got.status, 502, "{}", got.text);
        assert_eq!(got.json()["error"]["type"], "server_error");
    }
    assert_eq!(other.requests(), 0, "one that drains takes nothing new");
    assert_eq!(gateway.take_traffic()[0].failed, 6);
}

#[tokio::test]
async fn bad_requests_are_named() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.limits.max_body_bytes = 1000).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let addr = gateway.addr();
    let path = "/v1/chat/completions";

    let got = send(post(addr, path, "{\"model\": \"chat-model\",}")).await;
    assert_eq!(got.status, 400);
    assert!(got.message().contains("line 1 column 24"), "{}", got.message());
    let got = send(post(addr, path, "{\"messages\": []}")).await;
    assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some("model")));
    let got = send(post(addr, path, "{\"model\": \"nope\"}")).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    assert!(got.message().contains("served are: chat-model"), "{}", got.message());
    let got = send(post(addr, path, "x".repeat(1001))).await;
    assert_eq!(got.status, 413);
    assert!(got.message().contains("limit of 1000 bytes"), "{}", got.message());
    let got =
        send(http::Request::get(format!("http://{addr}{path}")).body(Default::default()).unwrap()).await;
    assert_eq!((got.status, got.header("allow")), (405, "POST"));
    let got = send(post(addr, "/v1/models", "")).await;
    assert_eq!((got.status, got.header("allow")), (405, "GET, HEAD"));
    let got = send(post(addr, "/v1/nothing", "")).await;
    assert_eq!(got.status, 404);
    let mut request = chat(addr, false);
    request.headers_mut().insert("x-big", "y".repeat(40_000).parse().unwrap());
    let got = send(request).await;
    assert_eq!(got.status, 431, "{}", got.text);
    let mut request = chat(addr, false);
    request.headers_mut().insert("x-plimsoll-hop", "nonsense".parse().unwrap());
    assert_eq!(send(request).await.status, 400);
    // A request that says it was routed is never routed again.
    let mut request = chat(addr, false);
    request.headers_mut().insert("x-plimsoll-hop", "replica=chat-1".parse().unwrap());
    let got = send(request).await;
    assert_eq!((got.status, got.header("x-plimsoll-refused")), (429, "unknown_replica"));
    assert_eq!(engine.requests(), 0);

    let got =
        send(http::Request::get(format!("http://{addr}/v1/models")).body(Default::default()).unwrap()).await;
    assert_eq!(got.json()["data"][0]["id"], "chat-model");
    for path in ["/health", "/healthz", "/readyz"] {
        let request = http::Request::get(format!("http://{addr}{path}")).body(Default::default()).unwrap();
        assert_eq!(send(request).await.status, 200);
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_limited_too() {
    let gateway = agent("gw", None, |c| c.limits.max_body_bytes = 1000).await;
    gateway.set_routes(table(1, vec![]));
    let mut stream = tokio::net::TcpStream::connect(gateway.addr()).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut text =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..20 {
        text.push_str(&format!("64\r\n{}\r\n", "z".repeat(100)));
    }
    text.push_str("0\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn http2_without_tls_works() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let h2 = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let response = h2.request(chat(gateway.addr(), true)).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_request_that_waited_gives_a_new_engine_as_long_to_settle_as_any_other() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.limits.settle_wait = Duration::from_secs(1)).await;
    let mut asleep = table(1, vec![]);
    asleep.pools[0].wake_wait_ms = 60_000.0;
    gateway.set_routes(asleep);
    let task = tokio::spawn(send(chat(gateway.addr(), true)));
    // Longer than it may take to settle: that begins when there is somebody to ask.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    engine.next(&[Act::HangUp]);
    gateway.set_routes(table(2, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let got = task.await.unwrap();
    assert_eq!((got.status, got.content().as_str()), (200, "t0 t1 t2 "), "{}", got.text);
}

#[tokio::test]
async fn a_request_waits_for_its_pool_to_wake() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    let mut asleep = table(1, vec![]);
    asleep.pools[0].wake_wait_ms = 60_000.0;
    gateway.set_routes(asleep.clone());
    let task = tokio::spawn(send(chat(gateway.addr(), true)));
    let mut arrived = 0;
    for _ in 0..500 {
        if let Some(traffic) = gateway.take_traffic().first() {
            arrived += traffic.arrived;
            if traffic.holding == 1 {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(arrived, 1, "the scheduler sees demand while the request waits");
    let mut awake = table(2, vec![endpoint("chat-1", "n1", engine.addr, None)]);
    awake.pools[0].wake_wait_ms = 60_000.0;
    gateway.set_routes(awake);
    assert_eq!(task.await.unwrap().content(), "t0 t1 t2 ");
    assert_eq!(gateway.take_traffic()[0].holding, 0);

    asleep.version = 3;
    asleep.pools[0].wake_wait_ms = 100.0;
    asleep.pools[0].unavailable_reason = "no shape fits".into();
    gateway.set_routes(asleep);
    let got = send(chat(gateway.addr(), true)).await;
    assert_eq!(got.status, 503);
    assert!(
        got.message().contains("no shape fits") && !got.header("retry-after").is_empty(),
        "{}",
        got.message()
    );
    assert_eq!(gateway.take_traffic()[0].refused, 1);
}

#[tokio::test]
async fn two_hundred_streams_at_once() {
    let engine = Engine::start().await;
    engine.state.tokens.store(20, SeqCst);
    *engine.state.pause.lock() = Duration::from_millis(2);
    let gateway = agent("gw", None, |_| {}).await;
    let node = agent("n1", Some("n1"), |_| {}).await;
    let routes = table(1, vec![endpoint("chat-1", "n1", engine.addr, Some(node.addr()))]);
    gateway.set_routes(routes.clone());
    node.set_routes(routes);
    let wanted: String = (0..20).map(|i| format!("t{i} ")).collect();
    let tasks: Vec<_> = (0..200).map(|_| tokio::spawn(send(chat(gateway.addr(), true)))).collect();
    for task in tasks {
        let got = task.await.unwrap();
        assert_eq!((got.status, got.content()), (200, wanted.clone()));
    }
    let traffic = gateway.take_traffic();
    assert_eq!((traffic[0].finished, traffic[0].refused + traffic[0].failed), (200, 0));
    assert_eq!(node.engines()[0].outstanding_tokens, 0.0);
}

#[tokio::test]
async fn a_budget_whose_lease_is_spent_refuses_and_others_flow() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    gateway.grant_lease(&plimsoll_fleet::lease::BudgetLease {
        epoch: 1,
        budget: "team-a".into(),
        agent: "gw".into(),
        amount: 10.0,
        expires_at: jiff::Timestamp::MAX,
    });
    let mut request = chat(gateway.addr(), false);
    request.headers_mut().insert("x-plimsoll-tenant", "team-a".parse().unwrap());
    let got = send(request).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("budget_exhausted")));
    assert!(got.message().contains("team-a"));
    assert_eq!(send(chat(gateway.addr(), false)).await.status, 200);
}

#[tokio::test]
async fn what_is_under_way_is_finished_at_shutdown() {
    let engine = Engine::start().await;
    engine.state.tokens.store(10, SeqCst);
    *engine.state.pause.lock() = Duration::from_millis(20);
    let gateway = agent("gw", None, |_| {}).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let task = tokio::spawn(send(chat(gateway.addr(), true)));
    until("it has begun", || engine.requests() == 1).await;
    gateway.stop();
    assert!(task.await.unwrap().text.ends_with("data: [DONE]\n\n"));
    gateway.join().await;
}

#[tokio::test]
async fn threads_of_its_own_serve_many_at_once_and_end_with_the_agent() {
    let engine = Engine::start().await;
    let gateway = agent("gw", None, |c| c.serve_threads = 2).await;
    gateway.set_routes(table(1, vec![endpoint("chat-1", "n1", engine.addr, None)]));
    let asked: Vec<_> = (0..16).map(|i| tokio::spawn(send(chat(gateway.addr(), i % 2 == 0)))).collect();
    for got in asked {
        assert_eq!(got.await.unwrap().status, 200);
    }
    // What is under way when it is asked to stop is still answered.
    engine.next(&[Act::Endless]);
    let endless = tokio::spawn(send(chat(gateway.addr(), true)));
    until("it runs", || engine.requests() == 17).await;
    gateway.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!endless.is_finished());
    endless.abort();
    tokio::time::timeout(Duration::from_secs(20), gateway.join()).await.unwrap();
    assert_eq!(engine.requests(), 17);
}
