//! Prefill and decode on engines of their own, behind a gateway and two nodes' agents, by both protocols.

#![allow(clippy::unwrap_used)]

mod support;

use plimsoll_agent::AgentHandle;
use plimsoll_fleet::{Endpoint, HandOver, HandOverProtocol, Role, RouteTable, StepCoefficients};
use plimsoll_simulator::engine_server::EngineServer;
use serde_json::{Value, json};
use support::*;

const SPEED: f64 = 50.0;
/// Of engines that are killed at work: a busy machine must be in time.
const SLOW: f64 = 1.0;

async fn engine(role: Role, protocol: HandOverProtocol, speed: f64) -> (EngineServer, StepCoefficients) {
    simulated_engine(|config| {
        config.speed = speed;
        config.shape.role = role;
        config.needs_room = protocol == HandOverProtocol::Sglang;
    })
    .await
}

/// A gateway, and a node for each engine.
struct Fleet {
    gateway: AgentHandle,
    nodes: Vec<AgentHandle>,
    engines: Vec<EngineServer>,
    table: RouteTable,
}

impl Fleet {
    /// Replicas `r0`, `r1`, …
    async fn start(protocol: HandOverProtocol, roles: &[Role]) -> Self {
        Self::start_at(protocol, roles, SPEED).await
    }

    async fn start_at(protocol: HandOverProtocol, roles: &[Role], speed: f64) -> Self {
        let gateway = agent("gw", None, |c| c.time_scale = speed).await;
        let (mut nodes, mut engines, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
        for (i, role) in roles.iter().enumerate() {
            let name = format!("n{i}");
            let node = agent(&name, Some(&name), |c| c.time_scale = speed).await;
            let (engine, coefficients) = engine(*role, protocol, speed).await;
            let hand_over = (*role != Role::Mixed).then(|| HandOver {
                protocol,
                format: "rev/bf16/pp1".into(),
                tensor_parallel: 1,
                bootstrap_port: engine.addr().port(),
                network_ms_per_token: 0.003,
                node_ms_per_token: 0.0003,
                set_up_ms: 2.0,
            });
            endpoints.push(Endpoint {
                role: *role,
                engine_model: "llama-3.1-8b".into(),
                coefficients,
                hand_over,
                ..endpoint(&format!("r{i}"), &name, engine.addr(), Some(node.addr()))
            });
            nodes.push(node);
            engines.push(engine);
        }
        let fleet = Self { gateway, nodes, engines, table: table(1, endpoints) };
        fleet.set_routes();
        fleet
    }

    fn set_routes(&self) {
        for agent in self.nodes.iter().chain([&self.gateway]) {
            agent.set_routes(self.table.clone());
        }
    }

    async fn ask(&self, more: Value) -> Got {
        self.send(chat_body(more)).await
    }

    async fn send(&self, body: Value) -> Got {
        send(post(self.gateway.addr(), "/v1/chat/completions", body.to_string())).await
    }

    fn prefilled(&self, engine: usize) -> u64 {
        self.engines[engine].stats().prefill_tokens
    }
}

fn chat_body(more: Value) -> Value {
    let question = "why is the sky blue, and the sea, and not the sand? ".repeat(150);
    let mut body = json!({"model": "chat-model", "stream": true, "max_tokens": 16, "ignore_eos": true,
        "messages": [{"role": "user", "content": question}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const PAIR: [Role; 2] = [Role::Prefill, Role::Decode];
const BOTH: [HandOverProtocol; 2] = [HandOverProtocol::Vllm, HandOverProtocol::Sglang];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_engine_computes_the_prompt_and_the_other_answers() {
    for protocol in BOTH {
        let fleet = Fleet::start(protocol, &PAIR).await;
        let mixed = Fleet::start(protocol, &[Role::Mixed]).await;
        let expected = mixed.ask(json!({})).await.content();
        // The same question in other words to the other: nobody has it in a cache.
        let other = json!([{"role": "user", "content": "where does the wind go when it does not blow? ".repeat(150)}]);
        let otherwise = mixed.ask(json!({"messages": other})).await.content();
        for (stream, more) in [(true, json!({})), (false, json!({"messages": other, "stream": false}))] {
            let got = fleet.ask(more).await;
            assert_eq!(got.status, 200, "{protocol:?} {}", got.text);
            assert_eq!(got.header("x-plimsoll-replica"), "r1");
            assert_eq!(got.header("x-plimsoll-prefill-replica"), "r0");
            if stream {
                assert!(got.text.ends_with("data: [DONE]\n\n"));
                assert_eq!(got.content(), expected, "{protocol:?}");
                assert!(!got.text.contains("usage"), "the client did not ask for it");
            } else {
                assert_eq!(got.json()["choices"][0]["message"]["content"], *otherwise);
                assert_eq!(got.json()["usage"]["completion_tokens"], 16);
            }
        }
        let (prompt, answer) = (fleet.prefilled(0), fleet.prefilled(1));
        assert!(prompt > 1500 && answer <= 4, "{protocol:?}: {prompt} there, {answer} here");
        let traffic = fleet.gateway.take_traffic().remove(0);
        assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (2, 2, 0));
        // What came over is no hit of a prefix cache, though the decode engine calls it so.
        let cached = traffic.cached_tokens as f64 / traffic.input_tokens.sum;
        assert!(cached < 0.05, "{protocol:?}: {cached} of the prompts cached");
        assert!(fleet.nodes.iter().all(|n| n.take_traffic().is_empty()), "counted once");
        for node in &fleet.nodes {
            until("the places are free", || node.engines()[0].outstanding_tokens == 0.0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_says_what_the_prefill_engine_had_cached() {
    for protocol in BOTH {
        let fleet = Fleet::start(protocol, &PAIR).await;
        for stream in [true, false] {
            let question = format!("{stream}: who has seen the wind? ").repeat(200);
            let more = json!({"messages": [{"role": "user", "content": question}], "stream": stream,
                "stream_options": if stream { json!({"include_usage": true}) } else { Value::Null }});
            let mut found = Vec::new();
            // vLLM's decode engine needs nobody for a prompt that it has had.
            for _ in 0..if protocol == HandOverProtocol::Sglang { 2 } else { 1 } {
                let got = fleet.ask(more.clone()).await;
                assert_eq!(
                    (got.status, got.header("x-plimsoll-prefill-replica")),
                    (200, "r0"),
                    "{}",
                    got.text
                );
                let usage = match stream {
                    true => got.events().iter().map(|e| e["usage"].clone()).find(Value::is_object).unwrap(),
                    false => got.json()["usage"].clone(),
                };
                let cached = usage["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap();
                found.push(cached / usage["prompt_tokens"].as_f64().unwrap());
            }
            // The decode engine says all of it each time.
            assert!(found[0] < 0.05, "{protocol:?} {stream} {found:?}");
            assert!(
                found[1..].iter().all(|share| (0.5..1.0).contains(share)),
                "{protocol:?} {stream} {found:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefill_engine_that_dies_mid_way_costs_no_answer() {
    for protocol in BOTH {
        // Behind SGLang's decode engine, which prefills nothing, a mixed one; vLLM's decode engine helps itself.
        let spare = if protocol == HandOverProtocol::Sglang { Role::Mixed } else { Role::Decode };
        let mut fleet = Fleet::start_at(protocol, &[Role::Prefill, Role::Decode, spare], SLOW).await;
        // The spare one looks slow with prompts, so that the pair is the choice.
        fleet.table.pools[0].endpoints[2].coefficients.per_prefill_token_ms *= 20.0;
        fleet.set_routes();
        // Long enough to be killed in.
        let long = json!([{"role": "user", "content": "on and on and on it goes, and on. ".repeat(3500)}]);
        let answers = (0..4).map(|i| {
            let body = chat_body(json!({"messages": long, "seed": i}));
            tokio::spawn(send(post(fleet.gateway.addr(), "/v1/chat/completions", body.to_string())))
        });
        let answers: Vec<_> = answers.collect();
        until(&format!("the prefill engine is at work by {protocol:?}"), || fleet.prefilled(0) > 0).await;
        fleet.engines[0].kill();
        for answer in answers {
            let got = answer.await.unwrap();
            assert_eq!(got.status, 200, "{protocol:?} {}", got.text);
            assert!(got.text.ends_with("data: [DONE]\n\n"), "{}", got.text);
            assert_eq!(got.events().iter().filter(|e| e["choices"][0]["delta"]["content"] != "").count(), 16);
        }
        let traffic = fleet.gateway.take_traffic().remove(0);
        assert_eq!((traffic.arrived, traffic.finished, traffic.failed), (4, 4, 0), "{protocol:?}");
        // And those that come while it is dead.
        let got = fleet.ask(json!({})).await;
        assert_eq!((got.status, got.header("x-plimsoll-prefill-replica")), (200, ""), "{}", got.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decode_engine_that_dies_mid_answer_is_followed_by_another_pair() {
    for protocol in BOTH {
        let roles = [Role::Prefill, Role::Decode, Role::Decode];
        let fleet = Fleet::start(protocol, &roles).await;
        let body = chat_body(json!({"max_tokens": 2000}));
        let answer = tokio::spawn(send(post(fleet.gateway.addr(), "/v1/chat/completions", body.to_string())));
        let busy = || (1..3).find(|i| fleet.engines[*i].stats().generation_tokens > 30);
        until("tokens flow", || busy().is_some()).await;
        fleet.engines[busy().unwrap()].kill();
        let got = answer.await.unwrap();
        assert_eq!(got.status, 200);
        assert!(got.text.ends_with("data: [DONE]\n\n"), "{protocol:?} {}", &got.text[got.text.len() - 300..]);
        let tokens = got.events().iter().filter(|e| e["choices"][0]["delta"]["content"].is_string()).count();
        assert!(tokens >= 2000, "{protocol:?} {tokens}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_both_engines() {
    use http_body_util::BodyExt;
    for protocol in BOTH {
        let fleet = Fleet::start(protocol, &PAIR).await;
        let body = chat_body(json!({"max_tokens": 100_000}));
        let request = post(fleet.gateway.addr(), "/v1/chat/completions", body.to_string());
        let task = tokio::spawn(async move {
            let mut body = client().request(request).await.unwrap().into_body();
            while let Some(Ok(_)) = body.frame().await {}
        });
        until("tokens flow", || fleet.engines[1].stats().generation_tokens > 20).await;
        task.abort();
        for (engine, node) in fleet.engines.iter().zip(&fleet.nodes) {
            until("the engine is idle", || engine.stats().running == 0).await;
            until("its place is free", || node.engines()[0].outstanding_tokens == 0.0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_that_a_rollout_made_incompatible_are_never_paired_and_clients_cannot_pair_them() {
    let mut fleet = Fleet::start(HandOverProtocol::Vllm, &[Role::Prefill, Role::Decode]).await;
    fleet.table.version = 2;
    fleet.table.pools[0].endpoints[0].hand_over.as_mut().unwrap().format = "newer/bf16/pp1".into();
    fleet.set_routes();
    let stolen = json!({"kv_transfer_params": {"do_remote_prefill": true, "remote_host": "127.0.0.1",
        "remote_port": fleet.engines[0].addr().port(), "remote_request_id": "x"}});
    for more in [json!({}), stolen] {
        let got = fleet.ask(more).await;
        assert_eq!((got.status, got.header("x-plimsoll-prefill-replica")), (200, ""), "{}", got.text);
    }
    assert_eq!(fleet.prefilled(0), 0, "the prefill replica was not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engines_find_fault_with_reaches_the_client() {
    for protocol in BOTH {
        let fleet = Fleet::start(protocol, &PAIR).await;
        let got = fleet.ask(json!({"temperature": -1})).await;
        assert_eq!(got.status, 400, "{}", got.text);
        assert!(got.message().contains("temperature"), "{}", got.text);
        // Two answers from one prompt are one engine's work.
        if protocol == HandOverProtocol::Vllm {
            let got = fleet.ask(json!({"n": 2})).await;
            assert!(got.message().starts_with("n: this engine"), "{}", got.text);
            assert_eq!(got.header("x-plimsoll-prefill-replica"), "");
        }
    }
}
