//! The data plane over simulated engines: a gateway, two nodes, conversations that share prefixes.

#![allow(clippy::unwrap_used)]

mod support;

use plimsoll_fleet::RouteTable;
use plimsoll_simulator::engine_server::EngineServer;
use serde_json::{Value, json};
use support::*;

const SPEED: f64 = 50.0;

async fn engine() -> (EngineServer, plimsoll_fleet::StepCoefficients) {
    simulated_engine(|config| config.speed = SPEED).await
}

fn turn(conversation: usize, turns: usize) -> Value {
    let mut messages =
        vec![json!({"role": "system", "content": format!("You are number {conversation}. ").repeat(300)})];
    for t in 0..turns {
        messages
            .push(json!({"role": "user", "content": format!("question {t} of {conversation}? ").repeat(20)}));
        messages.push(
            json!({"role": "assistant", "content": format!("answer {t} to {conversation}. ").repeat(20)}),
        );
    }
    messages.push(json!({"role": "user", "content": "and now?"}));
    json!({"model": "chat-model", "stream": true, "max_tokens": 16, "messages": messages})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_return_to_their_cache_and_survive_a_dying_engine() {
    let ((a, step), (b, _)) = (engine().await, engine().await);
    let gateway = agent("gw", None, |c| c.time_scale = SPEED).await;
    let n1 = agent("n1", Some("n1"), |c| c.time_scale = SPEED).await;
    let n2 = agent("n2", Some("n2"), |c| c.time_scale = SPEED).await;
    let routes = |version| -> RouteTable {
        let mut endpoints = vec![
            endpoint("chat-1", "n1", a.addr(), Some(n1.addr())),
            endpoint("chat-2", "n2", b.addr(), Some(n2.addr())),
        ];
        for e in &mut endpoints {
            e.engine_model = "llama-3.1-8b".into();
            e.coefficients = step;
        }
        table(version, endpoints)
    };
    for agent in [&gateway, &n1, &n2] {
        agent.set_routes(routes(1));
    }
    let mut homes: Vec<Vec<String>> = vec![Vec::new(); 6];
    for turns in 0..4 {
        for (conversation, home) in homes.iter_mut().enumerate() {
            let body = turn(conversation, turns).to_string();
            let got = send(post(gateway.addr(), "/v1/chat/completions", body)).await;
            assert_eq!(got.status, 200, "{}", got.text);
            assert!(got.text.ends_with("data: [DONE]\n\n") && !got.content().is_empty(), "{}", got.text);
            home.push(got.header("x-plimsoll-replica").to_owned());
        }
    }
    for home in &homes {
        assert!(home.iter().all(|r| r == &home[0]), "a conversation stays where its cache is: {homes:?}");
    }
    let (query, hit) = [&a, &b]
        .iter()
        .map(|e| e.stats())
        .fold((0, 0), |(q, h), s| (q + s.prefix_query_tokens, h + s.prefix_hit_tokens));
    assert!(hit as f64 > 0.6 * query as f64, "{hit} of {query} prompt tokens were cached");
    let traffic = gateway.take_traffic().remove(0);
    assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (24, 24, 0));
    assert!(traffic.cached_tokens > 0, "usage says what was cached");
    assert!(n1.take_traffic().is_empty() && n2.take_traffic().is_empty(), "counted once");

    // One engine dies while nothing is under way to it: the other answers everything.
    a.kill();
    let tasks: Vec<_> = (0..12)
        .map(|i| tokio::spawn(send(post(gateway.addr(), "/v1/chat/completions", turn(i % 6, 1).to_string()))))
        .collect();
    for task in tasks {
        let got = task.await.unwrap();
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-2"), "{}", got.text);
    }
    until("the node sees it dead", || !n1.engines()[0].healthy).await;
    assert!(
        n2.engines()[0].healthy && n2.engines()[0].running.is_some() && n2.engines()[0].kv_usage.is_some()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_from_an_engine_that_dies_ends_with_an_error() {
    let (engine, step) = engine().await;
    let node = agent("n1", Some("n1"), |c| c.time_scale = SPEED).await;
    let mut only = endpoint("chat-1", "n1", engine.addr(), Some(node.addr()));
    only.engine_model = "llama-3.1-8b".into();
    only.coefficients = step;
    node.set_routes(table(1, vec![only]));
    let body = json!({"model": "chat-model", "stream": true, "max_tokens": 100_000, "ignore_eos": true,
        "messages": [{"role": "user", "content": "count"}]});
    let task = tokio::spawn(send(post(node.addr(), "/v1/chat/completions", body.to_string())));
    until("tokens flow", || engine.stats().generation_tokens > 20).await;
    engine.kill();
    let got = task.await.unwrap();
    assert_eq!(got.status, 200);
    let last = got.text.trim_end().lines().last().unwrap().to_owned();
    assert!(last.starts_with("data: {\"error\":") && last.contains("chat-1"), "{last}");
    assert_eq!(node.take_traffic()[0].failed, 1);
}
