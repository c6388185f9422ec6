//! The server over real HTTP. Virtual time runs fast; no test judges wall time.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::*;
use crate::sse::SseParser;

fn config() -> EngineServerConfig {
    let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    config.speed = 50.0;
    config
}

async fn start(config: EngineServerConfig) -> EngineServer {
    EngineServer::start(config).await.unwrap()
}

struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Caller {
    fn new(server: &EngineServer) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{}", server.addr()),
        }
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> http::Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("x-request-id", "ticket-7")
            .body(Full::new(body.into()))
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    async fn text(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let response = self.send(method, path, body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = self.text(Method::POST, path, body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.text(Method::GET, path, "").await
    }

    async fn metric(&self, start: &str) -> f64 {
        let page = self.get("/metrics").await.1;
        let line =
            page.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no {start} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "llama-3.1-8b", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// All events of a streamed answer.
async fn events(response: http::Response<Incoming>) -> Vec<String> {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let mut events = Vec::new();
    SseParser::default().feed(&bytes, |e| events.push(e.to_owned())).unwrap();
    events
}

/// Waits for something that becomes true soon, however slow the machine.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} never happened");
}

#[tokio::test]
async fn chat_answers_whole_and_streamed_alike() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let (status, whole) = caller
        .post("/v1/chat/completions", chat("hello there", json!({"max_tokens": 40, "ignore_eos": true})))
        .await;
    assert_eq!(status, 200, "{whole}");
    assert_eq!(whole["id"], "chatcmpl-ticket-7");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["prompt_tokens"], 4 + 3 + 3);
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(text.len(), 160);

    let options = json!({
        "max_tokens": 40, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    });
    let response =
        caller.send(Method::POST, "/v1/chat/completions", chat("hello there", options).to_string()).await;
    assert_eq!(response.headers()["x-request-id"], "ticket-7");
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = events(response).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let parsed: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(parsed.len(), 1 + 40 + 1);
    assert_eq!(parsed[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String =
        parsed.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
    assert_eq!(parsed[40]["choices"][0]["finish_reason"], "length");
    assert!(parsed[39]["choices"][0]["finish_reason"].is_null());
    assert_eq!(parsed[41]["choices"], json!([]));
    assert_eq!(parsed[41]["usage"]["completion_tokens"], 40);
    server.shutdown().await;
}

#[tokio::test]
async fn a_chat_answer_is_continued_where_it_was_cut() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let (_, whole) = caller.post("/v1/chat/completions", chat("hello there", json!({}))).await;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let usage = |answer: &Value, of: &str| answer["usage"][of].as_u64().unwrap();
    let cut = text.len() / 8 * 4;
    let mut body =
        chat("hello there", json!({"continue_final_message": true, "add_generation_prompt": false}));
    body["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": text[..cut]}));
    let (status, rest) = caller.post("/v1/chat/completions", body.clone()).await;
    assert_eq!(status, 200, "{rest}");
    assert_eq!(rest["choices"][0]["message"]["content"], text[cut..]);
    assert_eq!(usage(&rest, "prompt_tokens"), usage(&whole, "prompt_tokens") + cut as u64 / 4);
    assert_eq!(usage(&rest, "completion_tokens"), usage(&whole, "completion_tokens") - cut as u64 / 4);
    body["add_generation_prompt"] = json!(true);
    let (status, refused) = caller.post("/v1/chat/completions", body).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("continue_final_message"), "{refused}");
    server.shutdown().await;
}

#[tokio::test]
async fn completions_take_text_and_tokens() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let (status, a) = caller
        .post("/v1/completions", json!({"model": "llama-3.1-8b", "prompt": "12345678", "ignore_eos": true}))
        .await;
    assert_eq!(status, 200, "{a}");
    assert_eq!((&a["usage"]["prompt_tokens"], &a["usage"]["completion_tokens"]), (&json!(2), &json!(16)));
    let (_, tokens) = caller.post("/tokenize", json!({"model": "llama-3.1-8b", "prompt": "12345678"})).await;
    assert_eq!(tokens["count"], 2);
    let (_, b) =
        caller.post("/v1/completions", json!({"prompt": tokens["tokens"], "ignore_eos": true})).await;
    assert_eq!(a["choices"][0]["text"], b["choices"][0]["text"]);
    let (_, back) = caller.post("/detokenize", json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], "12345678");
    let (_, count) = caller.post("/tokenize", chat("12345678", json!({}))).await;
    assert_eq!(count["count"], 4 + 2 + 3);
}

#[tokio::test]
async fn a_repeated_prompt_is_found_in_the_prefix_cache() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let long = crate::text::text_of(1, 1000);
    let body = chat(&long, json!({"max_tokens": 2, "ignore_eos": true}));
    let (_, first) = caller.post("/v1/chat/completions", body.clone()).await;
    let (_, second) = caller.post("/v1/chat/completions", body).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 1007 / 16 * 16);
    assert_eq!(caller.metric("vllm:prefix_cache_hits_total").await, 992.0);
    assert_eq!(caller.metric("vllm:prompt_tokens_total").await, 2014.0);
}

#[tokio::test]
async fn bad_requests_get_vllms_errors() {
    let mut small = config();
    small.max_model_len = Some(100);
    small.max_body_bytes = 10_000;
    let server = start(small).await;
    let caller = Caller::new(&server);
    let chat_path = "/v1/chat/completions";
    for (body, status, kind, part) in [
        (
            chat("x", json!({"model": "gpt-5"})).to_string(),
            404,
            "NotFoundError",
            "The model `gpt-5` does not exist.",
        ),
        (chat("x", json!({"n": 2})).to_string(), 400, "BadRequestError", "one answer a request"),
        (chat("x", json!({"logprobs": true})).to_string(), 400, "BadRequestError", "no probabilities"),
        (chat("x", json!({"max_tokens": 93})).to_string(), 400, "BadRequestError", "(93 > 100 - 8)"),
        (chat("x", json!({"stream_options": {}})).to_string(), 400, "BadRequestError", "stream=True"),
        (chat("x", json!({"temperature": -1})).to_string(), 400, "BadRequestError", "temperature"),
        (chat("x", json!({"max_tokens": "many"})).to_string(), 400, "BadRequestError", "wrong field"),
        (
            chat(&"x".repeat(400), json!({})).to_string(),
            400,
            "BadRequestError",
            "maximum context length is 100 tokens",
        ),
        ("{\"model\": ".to_owned(), 400, "BadRequestError", "JSON decode error"),
        (json!({"model": "llama-3.1-8b", "messages": []}).to_string(), 400, "BadRequestError", "messages"),
        (chat(&"x".repeat(20_000), json!({})).to_string(), 413, "RequestEntityTooLarge", "10000 bytes"),
    ] {
        let (got, text) = caller.text(Method::POST, chat_path, body.clone()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(got, status, "{text}");
        assert_eq!(error["error"]["type"], kind, "{text}");
        assert_eq!(error["error"]["code"], status, "{text}");
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{text}");
    }
    assert_eq!(caller.get("/v2/nothing").await.0, 404);
    assert_eq!(caller.get(chat_path).await.0, 405);
    assert_eq!(server.stats().running, 0);
}

#[tokio::test]
async fn lora_adapters_are_loaded_served_and_unloaded() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let body = chat("x", json!({"model": "french", "max_tokens": 2}));
    assert_eq!(caller.post("/v1/chat/completions", body.clone()).await.0, 404);
    let load = json!({"lora_name": "french", "lora_path": "s3://adapters/french"});
    let (status, text) = caller.post("/v1/load_lora_adapter", load.clone()).await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (200, Some("Success: LoRA adapter 'french' added successfully."))
    );
    let (status, again) = caller.post("/v1/load_lora_adapter", load).await;
    assert_eq!((status.as_u16(), &again["error"]["type"]), (400, &json!("InvalidUserInput")));
    let missing = json!({"lora_name": "m", "lora_path": "missing:m"});
    assert_eq!(caller.post("/v1/load_lora_adapter", missing).await.0, 404);
    let models: Value = serde_json::from_str(&caller.get("/v1/models").await.1).unwrap();
    assert_eq!(models["data"][1]["id"], "french");
    assert_eq!(models["data"][1]["parent"], "llama-3.1-8b");
    let (status, answer) = caller.post("/v1/chat/completions", body.clone()).await;
    assert_eq!((status.as_u16(), &answer["model"]), (200, &json!("french")));
    let unload = json!({"lora_name": "french"});
    assert_eq!(caller.post("/v1/unload_lora_adapter", unload.clone()).await.0, 200);
    assert_eq!(caller.post("/v1/unload_lora_adapter", unload).await.0, 404);
    assert_eq!(caller.post("/v1/chat/completions", body).await.0, 404);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_cache() {
    // Real time, so that the answer cannot end by itself first.
    let mut slow = config();
    slow.speed = 1.0;
    let server = start(slow).await;
    let caller = Caller::new(&server);
    for stream in [true, false] {
        let body = chat(
            &crate::text::text_of(2, 2000),
            json!({"max_tokens": 50_000, "ignore_eos": true, "stream": stream}),
        );
        let call = tokio::spawn({
            let sender = Caller::new(&server);
            async move {
                sender
                    .send(Method::POST, "/v1/chat/completions", body.to_string())
                    .await
                    .into_body()
                    .collect()
                    .await
            }
        });
        eventually("running", || server.stats().running == 1).await;
        assert!(server.stats().kv_usage > 0.0);
        call.abort();
        eventually("the cancellation", || server.stats().running == 0 && server.stats().kv_usage == 0.0)
            .await;
    }
    let page = caller.get("/metrics").await.1;
    assert!(page.contains("finished_reason=\"abort\"} 2.0"), "{page}");
}

#[tokio::test]
async fn a_killed_engine_cuts_its_streams() {
    let mut slow = config();
    slow.speed = 1.0;
    let server = start(slow).await;
    let caller = Caller::new(&server);
    let body = chat("x", json!({"max_tokens": 50_000, "ignore_eos": true, "stream": true}));
    let mut stream = caller.send(Method::POST, "/v1/chat/completions", body.to_string()).await.into_body();
    assert!(stream.frame().await.unwrap().is_ok());
    server.kill();
    let mut ended = None;
    while let Some(frame) = stream.frame().await {
        ended = frame.err();
    }
    assert!(ended.is_some(), "the body must end in an error");
    let again =
        Request::get(format!("http://{}/health", server.addr())).body(Full::new(Bytes::new())).unwrap();
    eventually("refusal", || server.tasks.is_empty()).await;
    assert!(Client::builder(TokioExecutor::new()).build_http().request(again).await.is_err());
}

#[tokio::test]
async fn a_stalled_engine_is_healthy_and_goes_on_where_it_stood() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    server.stall();
    let body = chat("x", json!({"max_tokens": 20, "ignore_eos": true}));
    let call = tokio::spawn({
        let sender = Caller::new(&server);
        async move { sender.post("/v1/chat/completions", body).await }
    });
    eventually("waiting", || server.stats().waiting == 1).await;
    assert_eq!(caller.get("/health").await.0, 200);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!call.is_finished());
    assert_eq!(server.stats().generation_tokens, 0);
    server.unstall();
    let (status, answer) = call.await.unwrap();
    assert_eq!((status.as_u16(), &answer["usage"]["completion_tokens"]), (200, &json!(20)));
}

#[tokio::test]
async fn nothing_answers_before_the_engine_is_ready() {
    let mut cold = config();
    cold.startup = Duration::from_secs(20); // 400 ms of wall time
    let server = start(cold).await;
    let caller = Caller::new(&server);
    let (status, text) = caller.get("/health").await;
    // A machine so slow that start-up is over by now proves nothing.
    if !server.shared.is_ready() {
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("starting"), "{text}");
    }
    server.ready().await;
    assert_eq!(caller.get("/health").await.0, 200);
}

#[tokio::test]
async fn idle_is_said_once_there_has_been_nothing_to_do_for_a_while() {
    let server = start(config()).await;
    server.ready().await;
    let caller = Caller::new(&server);
    server.stall();
    let body = chat("x", json!({"max_tokens": 3, "ignore_eos": true}));
    let call = tokio::spawn({
        let sender = Caller::new(&server);
        async move { sender.post("/v1/chat/completions", body).await }
    });
    eventually("waiting", || server.stats().waiting == 1).await;
    let asked = tokio::time::Instant::now();
    let idle = tokio::spawn(async move { caller.get("/idle").await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!idle.is_finished(), "a request is under way");
    server.unstall();
    assert_eq!(call.await.unwrap().0, 200);
    assert_eq!(idle.await.unwrap().0, 200);
    assert!(asked.elapsed() >= Duration::from_secs(10));
}

#[tokio::test]
async fn requests_beyond_the_batch_wait_their_turn() {
    let mut narrow = config();
    narrow.engine.max_running = 4;
    let server = start(narrow).await;
    // All are there before the first step, however slowly they were sent.
    server.stall();
    let calls: Vec<_> = (0..24)
        .map(|i| {
            let caller = Caller::new(&server);
            let body = chat(&format!("number {i}"), json!({"max_tokens": 60, "ignore_eos": true}));
            tokio::spawn(async move { caller.post("/v1/chat/completions", body).await.0 })
        })
        .collect();
    eventually("the queue", || server.stats().waiting == 24).await;
    server.unstall();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    // Six batches of four, one token each a step.
    assert!(server.stats().steps >= 6 * 60, "{:?}", server.stats());
    let caller = Caller::new(&server);
    assert_eq!(caller.metric("vllm:generation_tokens_total").await, 24.0 * 60.0);
    assert_eq!(caller.metric("vllm:e2e_request_latency_seconds_count").await, 24.0);
    assert_eq!(caller.metric("vllm:request_queue_time_seconds_count").await, 24.0);
}

#[tokio::test]
async fn metrics_have_vllms_names() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    caller.post("/v1/chat/completions", chat("x", json!({"max_tokens": 5, "ignore_eos": true}))).await;
    let page = caller.get("/metrics").await.1;
    for name in [
        "vllm:num_requests_running{",
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{",
        "vllm:prefix_cache_queries_total{",
        "vllm:prefix_cache_hits_total{",
        "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{",
        "vllm:num_preemptions_total{",
        "vllm:request_success_total{",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:inter_token_latency_seconds_sum{",
        "vllm:request_time_per_output_token_seconds_count{",
        "vllm:e2e_request_latency_seconds_bucket{",
        "vllm:request_queue_time_seconds_bucket{",
        "vllm:lora_requests_info{",
        "vllm:cache_config_info{",
    ] {
        assert!(page.lines().any(|l| l.starts_with(name)), "{name} not in\n{page}");
    }
    assert!(page.contains("model_name=\"llama-3.1-8b\""));
    let ttft = caller.metric("vllm:time_to_first_token_seconds_sum").await;
    // 17 ms of API time and a decode-sized step, in virtual time whatever the wall's.
    assert!((0.017..0.1).contains(&ttft), "{ttft}");
    assert!(caller.get("/version").await.1.contains("version"));
}

#[tokio::test]
async fn embeddings_are_the_same_for_the_same_text() {
    let server = start(config()).await;
    let caller = Caller::new(&server);
    let body = json!({"model": "llama-3.1-8b", "input": ["a ship", "a ship", "a pier"], "dimensions": 8});
    let (status, answer) = caller.post("/v1/embeddings", body).await;
    assert_eq!(status, 200, "{answer}");
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data[0]["embedding"], data[1]["embedding"]);
    assert_ne!(data[0]["embedding"], data[2]["embedding"]);
    assert_eq!(data[0]["embedding"].as_array().unwrap().len(), 8);
    let body = json!({"input": "a ship", "dimensions": 8, "encoding_format": "base64"});
    let (_, answer) = caller.post("/v1/embeddings", body).await;
    assert!(answer["data"][0]["embedding"].is_string());
    assert_eq!(caller.post("/v1/embeddings", json!({"input": []})).await.0, 400);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut big = EngineServerConfig::from_presets("llama-3.1-405b", "l4", 1, "bf16").unwrap();
    let Err(e) = EngineServer::start(big.clone()).await else { panic!("405b fits no L4") };
    assert!(e.to_string().contains("llama-3.1-405b"), "{e}");
    big = config();
    let first = start(big.clone()).await;
    big.listen = first.addr();
    let Err(e) = EngineServer::start(big).await else { panic!("the port is taken") };
    assert!(e.to_string().contains("choose another port"), "{e}");
}

fn half(role: plimsoll_fleet::Role, needs_room: bool) -> EngineServerConfig {
    let mut config = config();
    config.shape.role = role;
    config.needs_room = needs_room;
    config
}

fn long_prompt() -> String {
    "all the work and none of the play ".repeat(400)
}

#[tokio::test]
async fn a_decode_engine_goes_on_from_a_prefill_engines_cache_by_vllms_protocol() {
    use plimsoll_fleet::Role;
    let (p, d) = (start(half(Role::Prefill, false)).await, start(half(Role::Decode, false)).await);
    let alone = start(config()).await;
    let (prefill, decode, mixed) = (Caller::new(&p), Caller::new(&d), Caller::new(&alone));
    let body = |more: Value| {
        let mut body = json!({"model": "llama-3.1-8b", "prompt": long_prompt(), "max_tokens": 8, "seed": 5});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let ask = json!({"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": false}});
    let (status, first) = prefill.post("/v1/completions", body(ask)).await;
    let params = first["kv_transfer_params"].clone();
    assert_eq!((status, params["do_remote_prefill"].as_bool()), (StatusCode::OK, Some(true)), "{first}");
    let take = body(json!({"kv_transfer_params": params}));
    let (status, answer) = decode.post("/v1/completions", take.clone()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let whole = mixed.post("/v1/completions", body(json!({}))).await.1;
    assert_eq!(answer["choices"][0]["text"], whole["choices"][0]["text"], "as one engine would have said it");
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(
        Some(cached + 1),
        answer["usage"]["prompt_tokens"].as_u64(),
        "all but the last token came over"
    );
    assert!(d.stats().prefill_tokens <= 2, "{:?}", d.stats());

    // A cache is taken once; one for another prompt, or from an engine that is gone, is none.
    for (what, message) in [
        (take.clone(), "there is no KV cache"),
        (body(json!({"prompt": "x", "kv_transfer_params": params})), "KV load failed"),
    ] {
        let (status, answer) = decode.post("/v1/completions", what).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer["error"]["message"].as_str().unwrap().contains(message), "{answer}");
    }
    p.kill();
    let (status, _) = decode.post("/v1/completions", take).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    // Without a word of a cache it computes the prompt itself.
    let other = json!({"prompt": "and now for something else altogether ".repeat(400)});
    let whole = mixed.post("/v1/completions", body(other.clone())).await.1;
    let (status, answer) = decode.post("/v1/completions", body(other)).await;
    assert_eq!((status, &answer["choices"][0]["text"]), (StatusCode::OK, &whole["choices"][0]["text"]));
    assert!(d.stats().prefill_tokens > 3000, "{:?}", d.stats());
}

#[tokio::test]
async fn engines_meet_in_a_room_by_sglangs_protocol_whoever_comes_first() {
    use plimsoll_fleet::Role;
    let (p, d) = (start(half(Role::Prefill, true)).await, start(half(Role::Decode, true)).await);
    let (prefill, decode) = (Caller::new(&p), Caller::new(&d));
    let body = |room: Option<u64>| {
        let mut body = json!({"model": "llama-3.1-8b", "messages": [{"role": "user", "content": long_prompt()}], "max_tokens": 8});
        if let Some(room) = room {
            let more = json!({"bootstrap_host": "127.0.0.1", "bootstrap_port": p.addr().port(), "bootstrap_room": room});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        body
    };
    let path = "/v1/chat/completions";
    for (room, decode_first) in [(7, false), (8, true)] {
        let (a, b) = (prefill.post(path, body(Some(room))), decode.post(path, body(Some(room))));
        let ((first, _), (status, answer)) = if decode_first {
            let (b, a) = tokio::join!(b, a);
            (a, b)
        } else {
            tokio::join!(a, b)
        };
        assert_eq!((first, status), (StatusCode::OK, StatusCode::OK), "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], 8);
    }
    assert!(d.stats().prefill_tokens <= 4, "{:?}", d.stats());
    let (status, answer) = decode.post(path, body(Some(99))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "a room that nobody comes to: {answer}");
    let (status, answer) = decode.post(path, body(None)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}
