//! LoRA adapters, loaded and unloaded by the agents as the routes place them, while the engines run.

use std::collections::BTreeSet;

use serde_json::json;

use crate::engine::eventually;
use crate::world::{ADAPTERS, World};

pub async fn at_run_time(world: &mut World) {
    let world: &World = world;
    let both_hold = |names: &'static [&'static str]| async move {
        let told = |node: usize| world.nodes[node].engines().remove(0).adapters == names;
        told(0)
            && told(1)
            && world.engines[0].holds().await == names
            && world.engines[1].holds().await == names
    };
    world.place(&ADAPTERS, &[]);
    eventually("the agents have them loaded", || both_hold(&["blue", "green", "red"])).await;
    world.place(&ADAPTERS, &ADAPTERS);
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
    // More than an engine has on its device at once, at the same time.
    let (first, second, third) = tokio::join!(ask("red"), ask("green"), ask("blue"));
    assert!([first, second, third].iter().all(|t| texts.contains(t)));
    world.place(&["blue", "red"], &["blue", "red"]);
    eventually("the agents have one unloaded", || both_hold(&["blue", "red"])).await;
    let gone = world.ask("/v1/completions", &json!({"model": "green", "prompt": "x"})).await;
    assert_eq!(gone.status, 404, "{}", gone.text);
    assert!(gone.message().contains("green"), "{}", gone.text);
    // Nor does the engine itself know it any more.
    let itself = world.engines[0].ask("/v1/completions", &json!({"model": "green", "prompt": "x"})).await;
    assert_eq!(itself.status, 404, "{}", itself.text);
}
