//! LoRA adapters, loaded and unloaded while the engine runs.

use std::collections::BTreeSet;

use serde_json::json;

use crate::engine::eventually;
use crate::world::{ADAPTERS, World};

pub async fn at_run_time(world: &mut World) {
    let world: &World = world;
    for engine in &world.engines {
        for name in ADAPTERS {
            engine.adapter(name, true).await;
        }
    }
    let resident = |node: usize| world.nodes[node].engines().remove(0).adapters;
    for node in 0..2 {
        eventually("the agent sees what is loaded", || async { resident(node) == ["blue", "green", "red"] })
            .await;
    }
    let ask = |name: &'static str| async move {
        let body = json!({"model": name, "prompt": "the load line", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        let got = world.ask("/v1/completions", &body).await;
        assert_eq!((got.status, got.json()["model"].as_str()), (200, Some(name)), "{}", got.text);
        got.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let mut texts = BTreeSet::from([ask("chat-model").await]);
    for name in ADAPTERS {
        let text = ask(name).await;
        assert_eq!(text, ask(name).await);
        texts.insert(text);
    }
    assert_eq!(texts.len(), 4, "each adapter answers in its own way: {texts:?}");
    // More than the engine holds on its device at once, at the same time.
    let (first, second, third) = tokio::join!(ask("red"), ask("green"), ask("blue"));
    assert!([first, second, third].iter().all(|t| texts.contains(t)));
    world.engines[0].adapter("green", false).await;
    world.engines[1].adapter("green", false).await;
    eventually("the agent sees that it is gone", || async {
        resident(0) == ["blue", "red"] && resident(1) == ["blue", "red"]
    })
    .await;
    let gone = world.ask("/v1/completions", &json!({"model": "green", "prompt": "x"})).await;
    assert_eq!(gone.status, 404, "{}", gone.text);
    assert!(gone.message().contains("green"), "{}", gone.text);
}
