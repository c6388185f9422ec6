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

pub async fn from_the_nodes_caches(world: &mut World) {
    for name in ADAPTERS {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = std::fs::read(world.home.join("tiny/adapters").join(name).join(file)).unwrap();
            world.hub.put(&format!("/{name}/{file}"), bytes);
        }
    }
    // What they hold was loaded from elsewhere.
    world.place(&[], &[]);
    let holds = |names: &'static [&'static str]| {
        let world: &World = world;
        move || async move { world.engines[0].holds().await == names && world.engines[1].holds().await == names }
    };
    eventually("the engines are empty", holds(&[])).await;
    world.place_downloads(&["blue", "red"], &[]);
    eventually("both are downloaded and loaded", holds(&["blue", "red"])).await;
    world.place_downloads(&["blue", "red"], &["blue", "red"]);
    assert_eq!(world.hub.downloads(), 4, "two adapters, for two nodes");
    let ask = |world: &World, name: &'static str| {
        let body = json!({"model": name, "prompt": "the load line", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        let (gateway, path) = (world.gateway.addr(), "/v1/completions");
        async move {
            let mut request = crate::support::post(gateway, path, body.to_string());
            request.headers_mut().insert("x-plimsoll-deadline-ms", http::HeaderValue::from_static("60000"));
            crate::support::send(request).await
        }
    };
    let text = |got: &crate::support::Got| {
        assert_eq!(got.status, 200, "{}", got.text);
        got.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let (blue, red) = (text(&ask(world, "blue").await), text(&ask(world, "red").await));
    // Placed nowhere: loaded for who asks, at one of the two.
    let green = text(&ask(world, "green").await);
    assert_eq!(BTreeSet::from([&blue, &red, &green]).len(), 3);
    let visits = |holds: Vec<String>| holds == ["blue", "green", "red"];
    let both = [visits(world.engines[0].holds().await), visits(world.engines[1].holds().await)];
    assert_eq!(both.iter().filter(|v| **v).count(), 1, "{both:?}");
    // An engine that comes back gets its own from the node's disk.
    let before = world.hub.downloads();
    world.engines[0].restart();
    world.engines[0].ready().await;
    eventually("it has its adapters again", || async { world.engines[0].holds().await == ["blue", "red"] })
        .await;
    assert_eq!((text(&ask(world, "blue").await), world.hub.downloads()), (blue, before));
    world.place(&[], &[]);
    eventually("the engines are empty", || async {
        world.engines[0].holds().await.is_empty() && world.engines[1].holds().await.is_empty()
    })
    .await;
}
