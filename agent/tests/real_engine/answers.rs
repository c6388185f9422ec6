//! What comes back, beside what the engine itself answers.

use std::process::Command;

use serde_json::{Value, json};

use crate::engine::{CONTEXT, MODEL, eventually, workspace};
use crate::support::Got;
use crate::world::World;

/// A chat that has the same answer whenever it is asked.
pub fn chat(content: &str, max_tokens: usize, stream: bool) -> Value {
    json!({"model": "chat-model", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens,
        "temperature": 0, "ignore_eos": true, "stream": stream})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn engines_own(body: &Value) -> Value {
    with(body.clone(), json!({"model": MODEL}))
}

fn is_error(got: &Got, status: u16, part: &str) {
    assert_eq!(got.status, status, "{}", got.text);
    let error = &got.json()["error"];
    let whole = ["message", "type", "param", "code"].iter().all(|member| error.get(*member).is_some());
    assert!(whole && got.message().contains(part), "{}", got.text);
}

pub async fn whole_and_streamed(world: &mut World) {
    let body = chat("hello", 12, false);
    let whole = world.chat(body.clone()).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let answer = whole.json();
    assert_eq!(answer["model"], "chat-model", "the engine's name for it is not the client's");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    let itself = world.engines[world.which(&whole)].ask("/v1/chat/completions", &engines_own(&body)).await;
    assert_eq!(itself.json()["choices"][0]["message"]["content"], text);

    let streamed = world.chat(chat("hello", 12, true)).await;
    assert!(
        streamed.text.ends_with("data: [DONE]\n\n") && !streamed.text.contains("usage"),
        "{}",
        streamed.text
    );
    assert_eq!(streamed.content(), text);
    let events = streamed.events();
    assert!(events.len() > 2 && events.iter().all(|e| e["model"] == "chat-model"), "{}", streamed.text);
    let asked = with(chat("hello", 12, true), json!({"stream_options": {"include_usage": true}}));
    let counted = world.chat(asked).await;
    let last = counted.events().pop().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &json!(12)),
        "{}",
        counted.text
    );
    assert_eq!(last["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);

    // Token counts in every event, which the engine gives where it is asked to.
    let running = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let running = world.chat(with(chat("hello", 12, true), running)).await;
    let counts: Vec<u64> =
        running.events().iter().filter_map(|e| e["usage"]["completion_tokens"].as_u64()).collect();
    assert!(counts.len() > 2 && counts.is_sorted() && counts.last() == Some(&12), "{counts:?}");

    let plain = json!({"model": "chat-model", "prompt": "the load line", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let completion = world.ask("/v1/completions", &plain).await;
    let itself = world.engines[0].ask("/v1/completions", &engines_own(&plain)).await;
    assert_eq!(completion.json()["choices"][0]["text"], itself.json()["choices"][0]["text"]);
    let several = with(plain, json!({"n": 3, "temperature": 1, "logprobs": 2}));
    assert_eq!(world.ask("/v1/completions", &several).await.json()["choices"].as_array().unwrap().len(), 3);
}

/// A conversation goes back to where its prompt is cached, and the client, the books and the engine agree on how much of it was.
pub async fn what_was_cached(world: &mut World) {
    world.gateway.take_traffic();
    let content = "the water may come so far and no higher; ".repeat(50);
    let first = world.chat(chat(&content, 4, false)).await;
    let engine = world.which(&first);
    let hits = world.engines[engine].metric("vllm:prefix_cache_hits_total", "").await;
    let mut told = 0;
    for stream in [false, true, true] {
        let asked = with(
            chat(&content, 4, stream),
            if stream { json!({"stream_options": {"include_usage": true}}) } else { json!({}) },
        );
        let got = world.chat(asked).await;
        assert_eq!(world.which(&got), engine, "it left its cache");
        let usage =
            if stream { got.events().pop().unwrap()["usage"].clone() } else { got.json()["usage"].clone() };
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached >= 32 && cached % 32 == 0, "{usage}");
        told += cached;
    }
    let counted = || async { world.engines[engine].metric("vllm:prefix_cache_hits_total", "").await - hits };
    eventually("the engine has counted its hits", || async { counted().await >= told as f64 }).await;
    assert_eq!(counted().await, told as f64);
    let traffic = world.gateway.take_traffic();
    assert_eq!((traffic[0].finished, traffic[0].cached_tokens), (4, told));
}

pub async fn errors(world: &mut World) {
    for stream in [false, true] {
        is_error(&world.chat(chat(&"z".repeat(4 * CONTEXT), 4, stream)).await, 400, "maximum context length");
        is_error(
            &world.chat(with(chat("x", 4, stream), json!({"temperature": "hot"}))).await,
            400,
            "temperature",
        );
        is_error(
            &world.chat(with(chat("x", 4, stream), json!({"max_tokens": 100 * CONTEXT}))).await,
            400,
            "max_tokens",
        );
        is_error(
            &world.chat(with(chat("x", 4, stream), json!({"messages": "not a list"}))).await,
            400,
            "messages",
        );
        is_error(
            &world.chat(with(chat("x", 4, stream), json!({"model": "nobody"}))).await,
            404,
            "\"nobody\"",
        );
    }
    let broken = crate::support::post(world.gateway.addr(), "/v1/chat/completions", "{\"model\":");
    is_error(&crate::support::send(broken).await, 400, "not valid JSON");
    is_error(&world.ask("/v1/embeddings", &json!({"model": "chat-model", "input": "x"})).await, 404, "");
    // None of it speaks against the engines.
    for node in &world.nodes {
        assert!(node.engines()[0].healthy && !node.engines()[0].stalled);
    }
    assert_eq!(world.chat(chat("hello", 2, false)).await.status, 200);
}

pub async fn models_and_tokens(world: &mut World) {
    let request = http::Request::get(format!("http://{}/v1/models", world.gateway.addr()));
    let listed = crate::support::send(request.body(Default::default()).unwrap()).await.json();
    let names: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["chat-model"]);
    let body = json!({"model": "chat-model", "prompt": "the load line of a ship"});
    let (ours, its) =
        (world.ask("/tokenize", &body).await, world.engines[0].ask("/tokenize", &engines_own(&body)).await);
    assert_eq!((ours.status, &ours.json()["tokens"]), (200, &its.json()["tokens"]));
    let chat = json!({"model": "chat-model", "messages": [{"role": "user", "content": "hello"}]});
    assert!(world.ask("/tokenize", &chat).await.json()["count"].as_u64().unwrap() > 2);
}

/// Answers that must fit a grammar: what a model of random weights says is then JSON all the same.
pub async fn structured(world: &mut World) {
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Bergen"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": true}},
        "ignore_eos": false, "temperature": 1});
    let tools = json!({"tools": [{"type": "function", "function": {"name": "trip", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "trip"}}, "ignore_eos": false, "temperature": 1});
    let fits = |text: &str| {
        let said: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        assert!(
            ["Oslo", "Bergen"].contains(&said["city"].as_str().unwrap_or_default()) && said["days"].is_u64(),
            "{said}"
        );
    };
    let whole = world.chat(with(chat("where to?", 200, false), format.clone())).await;
    fits(
        whole.json()["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{}", whole.text)),
    );
    fits(&world.chat(with(chat("where to?", 200, true), format)).await.content());
    // What is called with is the model's and the engine's business: it arrives whole, as JSON.
    let called = world.chat(with(chat("where to?", 200, false), tools.clone())).await;
    let call = &called.json()["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "trip", "{}", called.text);
    let arguments =
        |text: &str| drop(serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text:?}")));
    arguments(call["arguments"].as_str().unwrap());
    let streamed = world.chat(with(chat("where to?", 200, true), tools)).await;
    let pieces = streamed.events().into_iter().filter_map(|e| {
        e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str().map(str::to_owned)
    });
    arguments(&pieces.collect::<String>());
    assert!(streamed.text.ends_with("data: [DONE]\n\n"), "{}", streamed.text);
}

pub async fn responses_api(world: &mut World) {
    world.gateway.take_traffic();
    let body = json!({"model": "chat-model", "input": "hello", "max_output_tokens": 6, "temperature": 0});
    let whole = world.ask("/v1/responses", &body).await;
    assert_eq!((whole.status, &whole.json()["model"]), (200, &json!("chat-model")), "{}", whole.text);
    let streamed = world.ask("/v1/responses", &with(body, json!({"stream": true}))).await;
    assert!(
        streamed.text.contains("response.completed") || streamed.text.contains("response.incomplete"),
        "{}",
        streamed.text
    );
    assert!(!streamed.text.contains("\"model\":\"tiny\""), "{}", streamed.text);
    let traffic = world.gateway.take_traffic();
    assert_eq!((traffic[0].finished, traffic[0].failed), (2, 0));
    assert!(
        traffic[0].output_tokens.mean().unwrap() > 2.0,
        "what was used is read from both: {:?}",
        traffic[0].output_tokens
    );
}

/// The `openai` package, unchanged.
pub async fn openai_client(world: &mut World) {
    let (python, script) = (world.home.join("venv/bin/python"), workspace().join("e2e/openai_client.py"));
    let base = format!("http://{}/v1", world.gateway.addr());
    let done = tokio::task::spawn_blocking(move || {
        Command::new(python).arg(script).args([&base, "chat-model"]).output().unwrap()
    });
    let done = done.await.unwrap();
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

/// What an agent reports of its engine is what the engine says, while it works and afterwards.
pub async fn metrics(world: &mut World) {
    let mut streams = Vec::new();
    for n in 0..6 {
        let (address, body) = (world.nodes[0].addr(), chat(&format!("number {n}"), 700, true));
        streams.push(tokio::spawn(async move {
            crate::support::send(crate::support::post(address, "/v1/chat/completions", body.to_string()))
                .await
        }));
    }
    let report = || world.nodes[0].engines().remove(0);
    eventually("the agent sees them run", || async { report().running.is_some_and(|r| r >= 2.0) }).await;
    let seen = report();
    let usage = seen.kv_usage.unwrap();
    assert!(usage > 0.0 && usage <= 1.0 && seen.healthy && !seen.stalled, "{seen:?}");
    let (its, ours) =
        (world.engines[0].metric("vllm:num_requests_running", "").await, report().running.unwrap());
    assert!(its <= 6.0 && ours <= 6.0, "{its} {ours}");
    for stream in streams {
        assert_eq!(stream.await.unwrap().status, 200);
    }
    eventually("the agent sees them end", || async {
        let seen = report();
        (seen.running, seen.waiting, seen.kv_usage) == (Some(0.0), Some(0.0), Some(0.0))
            && seen.outstanding_tokens == 0.0
    })
    .await;
}

/// An engine that makes no tokens at all: it serves, and says what it used.
pub async fn embeddings(world: &mut World) {
    eventually("it is found well", || async { world.nodes[0].engines()[0].healthy }).await;
    let body = json!({"model": "chat-model", "input": ["the load line", "of a ship"]});
    let got = world.ask("/v1/embeddings", &body).await;
    assert_eq!(got.status, 200, "{}", got.text);
    let answer = got.json();
    assert_eq!((answer["data"].as_array().unwrap().len(), &answer["model"]), (2, &json!("chat-model")));
    assert!(
        answer["data"][1]["embedding"].as_array().unwrap().len() == 128
            && answer["usage"]["prompt_tokens"].as_u64().unwrap() > 2
    );
    let itself = world.engines[0].ask("/v1/embeddings", &engines_own(&body)).await;
    assert_eq!(itself.json()["data"][0]["embedding"], answer["data"][0]["embedding"]);
    let refused = world.chat(chat("x", 4, false)).await;
    assert!((400..500).contains(&refused.status) && !refused.message().is_empty(), "{}", refused.text);
}
