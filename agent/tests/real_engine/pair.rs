//! Prefill on one engine, decode on the other: caches really go over, by NIXL over loopback.

use http_body_util::BodyExt;
use serde_json::json;

use crate::answers::chat;
use crate::engine::eventually;
use crate::support::{client, post};
use crate::world::World;

fn long(subject: &str) -> String {
    format!("{subject} is drawn where the water may come and no higher; ").repeat(12)
}

pub async fn handed_over(world: &mut World) {
    let moved = || world.engines[1].metric("vllm:nixl_bytes_transferred_sum", "");
    let computed =
        || world.engines[1].metric("vllm:prompt_tokens_by_source_total", "source=\"local_compute\"");
    // Their first meeting takes longer than engines wait for each other on a busy machine: then the decode half prefills.
    eventually("a cache goes over", || async {
        assert_eq!(world.chat(chat(&long("first meeting"), 2, false)).await.status, 200);
        moved().await > 0.0
    })
    .await;
    for (n, stream) in [(0, false), (1, true)] {
        let (before, local) = (moved().await, computed().await);
        let mut body = chat(&long(&format!("line {n}")), 8, stream);
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        let got = world.chat(body.clone()).await;
        assert_eq!(got.status, 200, "{}", got.text);
        assert_eq!(
            (got.header("x-plimsoll-replica"), got.header("x-plimsoll-prefill-replica")),
            ("r1", "r0"),
            "{}",
            got.text
        );
        assert!(moved().await > before, "no cache went over");
        assert_eq!(computed().await, local, "the decode half computed a prompt");
        let (text, usage) = if stream {
            (got.content(), got.events().pop().unwrap()["usage"].clone())
        } else {
            (
                got.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
                got.json()["usage"].clone(),
            )
        };
        assert_eq!(usage["completion_tokens"], 8);
        assert!(
            !got.text.contains("remote_host"),
            "where caches lie is not the client's business: {}",
            got.text
        );
        // What one engine alone says to it.
        (body["model"], body["stream"]) = ("tiny".into(), false.into());
        body.as_object_mut().unwrap().remove("stream_options");
        let alone = world.engines[0].ask("/v1/chat/completions", &body).await;
        assert_eq!(alone.json()["choices"][0]["message"]["content"], text);
    }
    let idle = || async { world.engines[0].metric("vllm:kv_cache_usage_perc", "").await == 0.0 };
    eventually("the prefill half has let go of all caches", idle).await;
}

/// A client that leaves while the decode half answers.
pub async fn cancelled(world: &mut World) {
    let body = chat(&long("a line that nobody reads"), 400, true).to_string();
    let response = client().request(post(world.gateway.addr(), "/v1/chat/completions", body)).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    for engine in &world.engines {
        let running = || async { engine.metric("vllm:num_requests_running", "").await == 0.0 };
        eventually("nothing is under way", running).await;
    }
}

/// With the prefill half gone, the decode half does it all: vLLM's can.
pub async fn without_its_prefill_half(world: &mut World) {
    world.engines[0].kill();
    let got = world.chat(chat(&long("a line with one half"), 8, true)).await;
    assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "r1"), "{}", got.text);
    assert!(got.text.ends_with("data: [DONE]\n\n"), "{}", got.text);
}
