//! LoRA adapters on simulated engines: loaded where the routes place them, reached by name, loaded again after a restart.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use plimsoll_agent::AgentHandle;
use plimsoll_agent::adapters::store::{StoreConfig, key};
use plimsoll_fleet::{AdapterRoute, EngineKind, ReplicaId, RouteTable};
use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig};
use serde_json::{Value, json};
use support::hub::{Hub, weights};
use support::*;

const SPEED: f64 = 50.0;

fn fast(config: &mut EngineServerConfig) {
    config.speed = SPEED;
}

fn adapter(name: &str, source: &str, placed: &[&str], held: &[&str]) -> AdapterRoute {
    let ids = |names: &[&str]| names.iter().map(|n| ReplicaId::new(*n).unwrap()).collect();
    AdapterRoute {
        served_name: name.to_owned(),
        source: source.to_owned(),
        placed: ids(placed),
        held: ids(held),
        group: None,
        load_ms: 27.0,
        ..AdapterRoute::default()
    }
}

struct World {
    engines: [EngineServer; 2],
    gateway: AgentHandle,
    node: AgentHandle,
    step: plimsoll_fleet::StepCoefficients,
}

impl World {
    async fn new() -> Self {
        Self::with(None).await
    }

    /// With a cache of adapters on the node.
    async fn with(store: Option<StoreConfig>) -> Self {
        let (a, step) = simulated_engine(fast).await;
        let (b, _) = simulated_engine(fast).await;
        let gateway = agent("gw", None, |c| c.time_scale = SPEED).await;
        let node = agent("n1", Some("n1"), |c| (c.time_scale, c.adapter_store) = (SPEED, store)).await;
        Self { engines: [a, b], gateway, node, step }
    }

    fn routes(&self, version: u64, adapters: Vec<AdapterRoute>) {
        let endpoints = self.engines.iter().enumerate().map(|(i, engine)| {
            let mut e = endpoint(&format!("chat-{i}"), "n1", engine.addr(), Some(self.node.addr()));
            (e.engine_model, e.coefficients) = ("llama-3.1-8b".into(), self.step);
            e.engine = EngineKind::Simulated;
            e
        });
        let mut table: RouteTable = table(version, endpoints.collect());
        table.pools[0].adapters = adapters;
        self.node.set_routes(table.clone());
        self.gateway.set_routes(table);
    }

    /// The adapters that an engine itself lists.
    async fn held(&self, engine: usize) -> BTreeSet<String> {
        let request = http::Request::get(format!("http://{}/v1/models", self.engines[engine].addr()));
        let list = send(request.body(Default::default()).unwrap()).await.json();
        let models = list["data"].as_array().unwrap().iter();
        models.filter(|m| m["parent"].is_string()).map(|m| m["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn until_held(&self, engine: usize, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        for _ in 0..500 {
            if self.held(engine).await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.held(engine).await, wanted);
    }

    async fn ask(&self, model: &str) -> Got {
        let body =
            json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]});
        send(post(self.gateway.addr(), "/v1/chat/completions", body.to_string())).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_are_loaded_where_they_are_placed_and_answer_by_name() {
    let world = World::new().await;
    world.routes(
        1,
        vec![
            adapter("law", "hf://acme/law", &["chat-1"], &["chat-1"]),
            adapter("sql", "hf://acme/sql", &["chat-0", "chat-1"], &["chat-0", "chat-1"]),
        ],
    );
    world.until_held(0, &["sql"]).await;
    world.until_held(1, &["law", "sql"]).await;

    for _ in 0..4 {
        let got = world.ask("law").await;
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-1"), "{}", got.text);
        assert_eq!(got.json()["model"], "law");
    }
    let base = world.ask("chat-model").await;
    assert_eq!((base.status, &base.json()["model"]), (200, &json!("chat-model")), "{}", base.text);

    let request = http::Request::get(format!("http://{}/v1/models", world.gateway.addr()));
    let list = send(request.body(Default::default()).unwrap()).await.json();
    let listed: Vec<(&Value, &Value)> =
        list["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["parent"])).collect();
    let (name, none) = (json!("chat-model"), Value::Null);
    assert_eq!(listed, [(&name, &none), (&json!("law"), &name), (&json!("sql"), &name)]);
    let unknown = world.ask("poetry").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.message().contains("law"), "{}", unknown.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_is_unloaded_once_requests_go_elsewhere() {
    let world = World::new().await;
    world.routes(1, vec![adapter("law", "hf://acme/law", &["chat-0"], &[])]);
    world.until_held(0, &["law"]).await;
    // Placed on the other, which does not hold it yet: nobody is sent to the one that will give it up.
    world.routes(2, vec![adapter("law", "hf://acme/law", &["chat-1"], &["chat-0"])]);
    world.until_held(1, &["law"]).await;
    world.routes(3, vec![adapter("law", "hf://acme/law", &["chat-1"], &["chat-0", "chat-1"])]);
    let got = world.ask("law").await;
    assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, "chat-1"), "{}", got.text);
    world.until_held(0, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_cannot_load_is_no_ones_fault_but_its_own() {
    let world = World::new().await;
    let both = ["chat-0", "chat-1"];
    world.routes(
        1,
        vec![adapter("gone", "missing:law", &both, &[]), adapter("sql", "hf://acme/sql", &both, &both)],
    );
    world.until_held(0, &["sql"]).await;
    assert_eq!(world.ask("sql").await.status, 200);
    let got = world.ask("gone").await;
    assert_eq!(got.status, 503, "{}", got.text);
    assert!(got.message().contains("\"gone\" is not loaded"), "{}", got.message());
    assert_eq!(got.json()["error"]["code"], "adapter_not_loaded");
    assert!(!got.header("retry-after").is_empty());
    assert_eq!(world.ask("chat-model").await.status, 200);
}

/// Adapters of one group on both replicas.
fn group(names: &[&str], held: &[&str]) -> Vec<AdapterRoute> {
    let both: &[&str] = &["chat-0", "chat-1"];
    let of = |name: &&str| {
        let on: &[&str] = if held.contains(name) { both } else { &[] };
        AdapterRoute { group: Some("tasks".into()), ..adapter(name, &format!("hf://acme/{name}"), on, on) }
    };
    names.iter().map(of).collect()
}

impl World {
    async fn with_group(names: &[&str], held: &[&str]) -> Self {
        let world = Self::new().await;
        world.routes(1, group(names, held));
        world.until_held(0, held).await;
        world.until_held(1, held).await;
        world
    }

    async fn ask_with(
        &self,
        model: &str,
        system: &str,
        stream: bool,
        headers: &[(&'static str, &str)],
    ) -> Got {
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": "hello"}]);
        let body = json!({"model": model, "max_tokens": 4, "stream": stream, "messages": messages});
        let mut request = post(self.gateway.addr(), "/v1/chat/completions", body.to_string());
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        send(request).await
    }

    async fn judge(&self, id: &str, reward: f64) -> Got {
        let body = json!({"id": id, "reward": reward});
        send(post(self.gateway.addr(), "/v1/feedback", body.to_string())).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_learns_from_feedback_which_adapter_is_good_at_what() {
    let world = World::with_group(&["law", "sql"], &["law", "sql"]).await;
    let (lawyer, clerk) = ("You are a careful lawyer.", "You write SQL.");
    let (mut right, mut late) = (0, 0);
    for at in 0..160 {
        let (system, good) = if at % 2 == 0 { (lawyer, "law") } else { (clerk, "sql") };
        let stream = at % 4 < 2;
        let got = world.ask_with("tasks", system, stream, &[]).await;
        let adapter = got.header("x-plimsoll-adapter").to_owned();
        assert_eq!(got.status, 200, "{}", got.text);
        let first = if stream { got.events()[0].clone() } else { got.json() };
        assert_eq!(first["model"], adapter.as_str(), "the body says who answered");
        // By the answer's id or the request's, whichever its user kept.
        let id = if at % 3 == 0 { got.header("x-request-id") } else { first["id"].as_str().unwrap() };
        let judged = world.judge(id, f64::from(u8::from(adapter == good))).await;
        assert_eq!((judged.status, &judged.json()["model"]), (200, &json!(adapter)), "{}", judged.text);
        if at >= 80 {
            (right, late) = (right + usize::from(adapter == good), late + 1);
        }
    }
    assert!(right * 10 >= late * 8, "{right} of {late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_answers_with_what_engines_hold_and_is_listed() {
    let world = World::with_group(&["law", "sql"], &["law"]).await;
    for headers in [&[][..], &[("x-plimsoll-adapter-group", "tasks"), ("x-plimsoll-context", "[1, -0.5]")]] {
        let model = if headers.is_empty() { "tasks" } else { "chat-model" };
        for _ in 0..10 {
            let got = world.ask_with(model, "Be brief.", false, headers).await;
            assert_eq!((got.status, got.header("x-plimsoll-adapter")), (200, "law"), "{}", got.text);
        }
    }
    let request = http::Request::get(format!("http://{}/v1/models/tasks", world.gateway.addr()));
    let listed = send(request.body(Default::default()).unwrap()).await.json();
    assert_eq!((&listed["parent"], &listed["adapters"]), (&json!("chat-model"), &json!(["law", "sql"])));
    // An adapter is still to be had by its own name, and says nothing of groups.
    let got = world.ask("law").await;
    assert_eq!((got.status, got.header("x-plimsoll-adapter")), (200, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_groups_request_or_a_judgement_is_told() {
    let world = World::with_group(&["law"], &["law"]).await;
    let group = "x-plimsoll-adapter-group";
    for (model, headers, status, code, word) in [
        ("tasks", vec![("x-plimsoll-context", "[2]")], 400, "invalid_context", "between -1 and 1"),
        ("chat-model", vec![(group, "poetry")], 404, "group_not_found", "there are: tasks"),
        ("chat-model", vec![(group, "law")], 404, "group_not_found", "there are: tasks"),
        ("law", vec![(group, "tasks")], 400, "group_mismatch", "name \"chat-model\" or the group"),
        ("nobody", vec![], 404, "model_not_found", "tasks"),
    ] {
        let got = world.ask_with(model, "Be brief.", false, &headers).await;
        assert_eq!((got.status, &got.json()["error"]["code"]), (status, &json!(code)), "{}", got.text);
        assert!(got.message().contains(word), "{}", got.message());
    }
    let got = world.ask_with("tasks", "Be brief.", false, &[]).await;
    let id = got.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(world.judge("chatcmpl-none", 1.0).await.status, 404);
    assert_eq!(world.judge(&id, 2.0).await.status, 400);
    assert_eq!(world.judge(&id, 1.0).await.status, 200);
    assert_eq!(world.judge(got.header("x-request-id"), 1.0).await.status, 409);
    let request = http::Request::get(format!("http://{}/v1/feedback", world.gateway.addr()));
    let wrong = send(request.body(Default::default()).unwrap()).await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, "POST"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_an_adapter_that_is_placed_nowhere_has_it_loaded() {
    let world = World::new().await;
    let names = ["law", "ode", "pun", "sql"];
    let routes = |version, held: &[(&str, &str)]| {
        let adapters = names.iter().map(|name| {
            let at: Vec<&str> = held.iter().filter(|(n, _)| n == name).map(|(_, at)| *at).collect();
            let placed: &[&str] = if *name == "law" { &["chat-0", "chat-1"] } else { &[] };
            adapter(name, &format!("hf://acme/{name}"), placed, if *name == "law" { placed } else { &at })
        });
        world.routes(version, adapters.collect());
    };
    routes(1, &[]);
    world.until_held(0, &["law"]).await;
    world.until_held(1, &["law"]).await;
    // However many ask at once: one load, and all are answered where it is.
    let asks = (0..6).map(|_| world.ask("ode"));
    let all = futures::future::join_all(asks).await;
    let host = all[0].header("x-plimsoll-replica").to_owned();
    for got in &all {
        assert_eq!((got.status, got.header("x-plimsoll-replica")), (200, host.as_str()), "{}", got.text);
        assert_eq!(got.json()["model"], "ode");
    }
    let engine = usize::from(host == "chat-1");
    world.until_held(engine, &["law", "ode"]).await;
    let report = || world.node.engines().into_iter().find(|e| e.replica.as_str() == host).unwrap();
    let state = report().adapter_states.into_iter().find(|s| s.adapter == "ode").unwrap();
    assert!(state.load_ms.is_some() && state.misses >= 1 && state.hits + state.misses == 6, "{state:?}");
    // Now that the routes know, it is found; another takes its place once nobody uses it.
    routes(2, &[("ode", &host)]);
    assert_eq!(world.ask("ode").await.status, 200);
    for name in ["pun", "sql", "ode", "pun"] {
        let got = world.ask(name).await;
        assert_eq!(got.status, 200, "{name}: {}", got.text);
        for engine in 0..2 {
            let held = world.held(engine).await;
            assert!(held.contains("law") && held.len() <= 2, "{held:?}");
        }
    }
    let unknown = world.ask("poetry").await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_load_what_the_node_has_fetched_and_checked() {
    let (hub, dir) = (Hub::start().await, tempfile::tempdir().unwrap());
    let mut store = StoreConfig::new(dir.path(), 1 << 20);
    store.engine_dir = "/in-the-engine".into();
    let world = World::with(Some(store)).await;
    let file = weights(8, 64, 1);
    hub.put_adapter("/law", &file);
    hub.put_adapter("/large", &weights(64, 64, 1));
    hub.put_adapter("/cut", &file[..file.len() - 1]);
    let both = ["chat-0", "chat-1"];
    let from = |name: &str| format!("http://{}/{name}", hub.addr);
    let of = |name: &str, held: &[&str]| {
        let mut route = adapter(name, &from(name), &both, held);
        (route.files.rank, route.files.hidden, route.files.layers) = (8, 64, 1);
        route
    };
    world.routes(1, vec![of("cut", &[]), of("large", &[]), of("law", &both), of("none", &[])]);
    world.until_held(0, &["law"]).await;
    world.until_held(1, &["law"]).await;
    assert_eq!(world.ask("law").await.status, 200);
    // The engine was told where it is for engines; for both it was fetched once.
    let request = http::Request::get(format!("http://{}/v1/models", world.engines[0].addr()));
    let list = send(request.body(Default::default()).unwrap()).await.json();
    let law = list["data"].as_array().unwrap().iter().find(|m| m["id"] == "law").unwrap();
    let name = key(&from("law"), &adapter_files());
    assert_eq!(law["root"], format!("/in-the-engine/adapters/{name}"));
    let fetched = hub.log().iter().filter(|l| l.starts_with("GET /law/adapter_model")).count();
    assert_eq!(fetched, 1);
    let failures = || world.node.engines().remove(0).adapter_failures;
    until("all failures are told", || failures().len() == 3).await;
    for (name, why) in [("cut", "cut off"), ("large", "set spec.rank to 64"), ("none", "correct spec.source")]
    {
        let (_, told) = failures().into_iter().find(|(n, _)| n == name).unwrap();
        assert!(told.contains(why), "{name}: {told}");
        let got = world.ask(name).await;
        assert_eq!((got.status, got.json()["error"]["code"].clone()), (503, json!("adapter_not_loaded")));
    }
    let state =
        world.node.engines().remove(0).adapter_states.into_iter().find(|s| s.adapter == "law").unwrap();
    assert!(state.on_disk && state.bytes.is_some_and(|b| b > file.len() as u64), "{state:?}");
    assert_eq!(world.ask("chat-model").await.status, 200);
}

fn adapter_files() -> plimsoll_fleet::AdapterFiles {
    plimsoll_fleet::AdapterFiles { rank: 8, hidden: 64, layers: 1, ..Default::default() }
}
