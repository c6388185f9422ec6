//! The parts without I/O, and a simulated engine measured in real time.

use tokio::time::Instant;

use super::stream::Reading;
use super::*;
use crate::engine_server::{EngineServer, EngineServerConfig};

fn token(text: &str) -> String {
    format!("{{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}")
}

fn read(events: &[(u64, &str)]) -> Result<Answer, ProfileError> {
    let sent = Instant::now();
    let mut reading = Reading::default();
    for (ms, data) in events {
        reading.event(data, sent + Duration::from_millis(*ms))?;
    }
    reading.answer(sent)
}

#[test]
fn a_stream_is_timed_by_its_tokens() {
    let role = "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}";
    let end = "{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}";
    let usage = "{\"choices\":[],\"usage\":{\"prompt_tokens\":70,\"completion_tokens\":3,\
                 \"prompt_tokens_details\":{\"cached_tokens\":16}}}";
    let (a, b, c) = (token("a"), token("b"), token("c"));
    let events =
        [(5, role), (100, a.as_str()), (110, &b), (120, &c), (120, end), (121, usage), (121, "[DONE]")];
    let answer = read(&events).unwrap();
    assert_eq!((answer.ttft_ms, answer.tpot_ms()), (100.0, Some(10.0)));
    assert_eq!((answer.input_tokens, answer.cached_tokens, answer.output_tokens), (70, 16, 3));
    // Without usage, pieces are counted.
    let answer = read(&[(100, a.as_str()), (110, &b), (120, &c), (121, "[DONE]")]).unwrap();
    assert_eq!((answer.usage, answer.output_tokens, answer.tpot_ms()), (false, 3, Some(10.0)));
}

#[test]
fn pieces_of_several_tokens_are_not_taken_for_slow_ones() {
    let usage = "{\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":12}}";
    let (a, b, c) = (token("a b c d"), token("e f g h"), token("i j k l"));
    let answer = read(&[(100, a.as_str()), (140, &b), (180, &c), (181, usage), (181, "[DONE]")]).unwrap();
    assert_eq!(answer.tpot_ms(), Some(10.0));
}

#[test]
fn streams_that_break_say_how() {
    let says = |events: &[(u64, &str)], what: &str| {
        let error = read(events).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    let a = token("a");
    says(&[(1, a.as_str())], "no [DONE]");
    says(&[(1, "[DONE]")], "without a token");
    says(&[(1, "{\"error\":{\"message\":\"boom\"}}")], "boom");
    says(&[(1, "<html>")], "cannot be read");
}

#[test]
fn prompts_get_their_length_from_two_trials() {
    let t = Tokenizer::from((64.0, 104.0), (512.0, 642.0));
    assert!((t.scale - 538.0 / 448.0).abs() < 1e-9);
    let prompt = t.template + t.scale * f64::from(t.text(4096));
    assert!((prompt - 4096.0).abs() < 1.0, "{prompt}");
    assert_eq!(
        Tokenizer::from((64.0, 10.0), (512.0, 10.0)).text(100),
        100,
        "an endpoint that counts wrongly"
    );
}

#[test]
fn hiccups_do_not_count_and_rounds_do() {
    assert_eq!(middle(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(middle(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(middle(vec![]), None);
    let mut many = vec![10.0; 10];
    (many[3], many[7], many[8]) = (500.0, 11.0, 9.0);
    assert!((middle(many).unwrap() - 10.1).abs() < 0.11);
    assert_eq!((ClosedLoop::new(1, 1, 1).rounds(), ClosedLoop::new(64, 1, 1).rounds()), (4, 2));
    assert_eq!(ClosedLoop::new(2, 1, 1).rounds(), 7);
}

async fn engine(speed: f64) -> EngineServer {
    let mut config = EngineServerConfig::from_presets("llama-3.1-8b", "h100", 1, "bf16").unwrap();
    config.speed = speed;
    EngineServer::start(config).await.unwrap()
}

fn config(url: String) -> ProfileConfig {
    ProfileConfig {
        url,
        model: "llama-3.1-8b".to_owned(),
        api_key: None,
        timeout: Duration::from_secs(60),
        seed: 7,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_engine_is_measured_as_it_is() {
    let engine = engine(1.0).await;
    let profiler = Profiler::connect(config(engine.base_url())).await.unwrap();
    assert_eq!(profiler.notes, Vec::<String>::new());
    assert!(profiler.max_model_len.is_some_and(|n| n > 1000), "{:?}", profiler.max_model_len);
    let sample = profiler.measure(&ClosedLoop::new(1, 1000, 20), |_, _| ()).await.unwrap();
    assert!((sample.input_tokens - 1000.0).abs() < 3.0, "{sample:?}");
    assert_eq!((sample.output_tokens, sample.cached_tokens, sample.requests), (20.0, 0.0, 3));
    let many = profiler.measure(&ClosedLoop::new(4, 200, 20), |_, _| ()).await.unwrap();
    assert_eq!((many.requests, many.concurrency), (12, 4));
    assert!((many.input_tokens - 200.0).abs() < 25.0 && (many.output_tokens - 20.0).abs() < 3.0, "{many:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_endpoint_is_said() {
    let engine = engine(50.0).await;
    let mut wrong = config(engine.base_url());
    wrong.model = "gpt-9".to_owned();
    let error = Profiler::connect(wrong).await.err().unwrap().to_string();
    assert!(error.contains("it serves: llama-3.1-8b"), "{error}");
    engine.shutdown().await;
    let error = Profiler::connect(config("http://127.0.0.1:9".to_owned())).await.err().unwrap().to_string();
    assert!(error.contains("is the endpoint up"), "{error}");
}

/// An endpoint that answers every request in one way.
async fn endpoint(status: u16, content_type: &'static str, body: String, delay: Duration) -> String {
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    let answer = move || async move {
        tokio::time::sleep(delay).await;
        (status, [("content-type", content_type)], body.clone())
    };
    let models = move || async move {
        let open = "{\"data\":[{\"id\":\"llama-3.1-8b\"}]}";
        if status.as_u16() == 401 { (status, String::new()) } else { (StatusCode::OK, open.to_owned()) }
    };
    let app =
        axum::Router::new().route("/v1/chat/completions", post(answer)).route("/v1/models", get(models));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}/v1")
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_cannot_be_measured_are_told_apart() {
    let all: String = (0..32).map(|i| format!("data: {}\n\n", token(&format!("w{i}")))).collect();
    let whole = format!("{all}data: [DONE]\n\n");
    for (status, kind, body, says) in [
        (401, "application/json", String::new(), "the API key is missing"),
        (200, "application/json", "{\"choices\":[]}".to_owned(), "does not stream"),
        (200, "text/event-stream", whole, "proxy_buffering off"),
        (400, "application/json", "no chat template".to_owned(), "no chat template"),
        (500, "application/json", "CUDA error".to_owned(), "refused the request with 500: CUDA error"),
    ] {
        let url = endpoint(status, kind, body, Duration::from_millis(60)).await;
        let error = Profiler::connect(config(url)).await.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}
