//! Clients that leave, engines that stop, and engines that die.

use http_body_util::BodyExt;
use serde_json::json;

use crate::answers::chat;
use crate::engine::eventually;
use crate::support::{Got, client, post};
use crate::world::{STALL, World};

type Body = hyper::body::Incoming;

/// A stream whose beginning has come: its head, and what follows.
async fn begun(
    world: &World,
    content: &str,
    max_tokens: usize,
) -> (usize, http::response::Parts, Body, String) {
    let mut body = chat(content, max_tokens, true);
    body["stream_options"] = json!({"include_usage": true});
    let response =
        client().request(post(world.gateway.addr(), "/v1/chat/completions", body.to_string())).await.unwrap();
    let (head, mut body) = response.into_parts();
    assert_eq!(head.status, 200);
    let replica = head.headers["x-plimsoll-replica"].to_str().unwrap();
    let engine = replica.strip_prefix('r').unwrap().parse().unwrap();
    let mut text = String::new();
    while text.matches("\"content\"").count() < 8 {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    (engine, head, body, text)
}

/// The whole of a stream.
async fn rest((_, head, mut body, mut text): (usize, http::response::Parts, Body, String)) -> Got {
    while let Some(frame) = body.frame().await {
        text.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
    }
    Got { status: 200, headers: head.headers, text }
}

/// One answer: one role, one id, one end, the tokens that were asked for.
fn is_one(got: &Got, tokens: u64) {
    assert!(got.text.ends_with("data: [DONE]\n\n") && !got.text.contains("\"error\""), "{}", got.text);
    let events = got.events();
    let roles = events.iter().filter(|e| e["choices"][0]["delta"]["role"].is_string()).count();
    let ends = events.iter().filter(|e| e["choices"][0]["finish_reason"].is_string()).count();
    assert_eq!((roles, ends), (1, 1), "{}", got.text);
    assert!(events.iter().all(|e| e["id"] == events[0]["id"] && e["model"] == "chat-model"), "{}", got.text);
    let usage = &events.last().unwrap()["usage"];
    // Text that is read again may have other tokens than those it was made of, of a model that talks at random.
    let told = usage["completion_tokens"].as_u64().unwrap();
    assert!(told.abs_diff(tokens) <= tokens / 20, "{usage}, and {tokens} were asked for");
}

/// The client's leaving ends the engine's work, however it was asked: the engine makes fewer tokens than it was asked for.
pub async fn cancelled(world: &mut World) {
    const ASKED: usize = 900;
    let world: &World = world;
    let sum = |name: &'static str| async move {
        world.engines[0].metric(name, "").await + world.engines[1].metric(name, "").await
    };
    let idle = || async { sum("vllm:num_requests_running").await == 0.0 };
    let made = || sum("vllm:generation_tokens_total");
    eventually("nothing is under way", idle).await;
    let before = made().await;
    drop(begun(world, "a stream that nobody reads to its end", ASKED).await);
    eventually("the engine has stopped", idle).await;
    let tokens = made().await - before;
    assert!(tokens < 0.9 * ASKED as f64, "it made {tokens} of {ASKED} tokens");

    let before = made().await;
    let body = chat("an answer that nobody waits for", ASKED, false).to_string();
    let lost = tokio::spawn(client().request(post(world.gateway.addr(), "/v1/chat/completions", body)));
    eventually("the engine is at it", || async { made().await > before }).await;
    lost.abort();
    eventually("the engine has stopped", idle).await;
    let tokens = made().await - before;
    assert!(tokens < 0.9 * ASKED as f64, "it made {tokens} of {ASKED} tokens");
    for node in &world.nodes {
        eventually("its agent counts nothing", || async { node.engines()[0].outstanding_tokens == 0.0 })
            .await;
    }
}

/// An engine that answers its health check and moves nothing is dead: its stream goes on elsewhere, and it comes back.
pub async fn frozen(world: &mut World) {
    let stream = begun(world, "an engine that stands still", 800).await;
    let engine = stream.0;
    world.engines[engine].freeze(true);
    let since = tokio::time::Instant::now();
    eventually("it is declared dead", || async { world.nodes[engine].engines()[0].stalled }).await;
    let after = since.elapsed();
    assert!(after >= STALL, "{after:?}: sooner than nothing had moved for {STALL:?}");
    is_one(&rest(stream).await, 800);
    for n in 0..4 {
        let got = world.chat(chat(&format!("asked meanwhile {n}"), 4, false)).await;
        assert_eq!((got.status, world.which(&got)), (200, 1 - engine), "{}", got.text);
    }
    world.engines[engine].freeze(false);
    eventually("it is alive again", || async {
        let seen = world.nodes[engine].engines().remove(0);
        seen.healthy && !seen.stalled && seen.running == Some(0.0)
    })
    .await;
}

async fn killed(world: &mut World, engine: usize) {
    eventually("its agent sees that it is gone", || async { !world.nodes[engine].engines()[0].healthy })
        .await;
    world.engines[engine].restart();
    world.engines[engine].ready().await;
    eventually("its agent sees that it is back", || async { world.nodes[engine].engines()[0].healthy }).await;
}

/// `kill -9` in the middle of a stream: the other replica goes on where the client's text ends.
pub async fn killed_in_the_middle(world: &mut World) {
    let stream = begun(world, "an engine that is killed", 500).await;
    let engine = stream.0;
    world.engines[engine].kill();
    let got = rest(stream).await;
    is_one(&got, 500);
    let mut asked = chat("an engine that is killed", 500, false);
    asked["model"] = "chat-model".into();
    let whole = world.chat(asked).await;
    let text = whole.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let same = text.chars().zip(got.content().chars()).take_while(|(a, b)| a == b).count();
    assert!(same >= 8, "it begins as it did: {text:?} {:?}", got.content());
    killed(world, engine).await;
}

/// The same before an answer that does not stream: it is asked for again, and the client sees nothing of it.
pub async fn killed_before_the_answer(world: &mut World) {
    let address = world.gateway.addr();
    let ask = |n: usize| {
        let body = chat(&format!("an answer in one piece {n}"), 600, false).to_string();
        tokio::spawn(crate::support::send(post(address, "/v1/chat/completions", body)))
    };
    let answers: Vec<_> = (0..6).map(ask).collect();
    let busy = || async { world.engines[0].metric("vllm:num_requests_running", "").await > 0.0 };
    eventually("the engine is at it", busy).await;
    world.engines[0].kill();
    for answer in answers {
        let got = answer.await.unwrap();
        assert_eq!(
            (got.status, &got.json()["usage"]["completion_tokens"]),
            (200, &json!(600)),
            "{}",
            got.text
        );
    }
    killed(world, 0).await;
    assert_eq!(world.chat(chat("hello", 2, false)).await.status, 200);
}
