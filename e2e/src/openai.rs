//! Requests to the OpenAI-compatible endpoint, by HTTP calls of our own, and the `openai` package where it is at hand.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::Error;
use crate::system::workspace;

/// Longest time that a streamed answer may take.
const STREAM_TIME: Duration = Duration::from_secs(180);

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Body, whole.
    pub text: String,
    /// Pieces of content of a streamed answer, or the one message.
    pub pieces: usize,
    /// Why it finished, if it did.
    pub finish_reason: Option<String>,
    /// Whether a stream ended with `[DONE]`.
    pub done: bool,
    /// Error carried inside a stream, if any.
    pub error: Option<String>,
}

/// Sends any request and reads the whole answer.
///
/// # Errors
/// If the connection fails or the answer takes longer than two minutes.
pub async fn request(method: &str, url: &str, body: impl Into<Bytes>) -> Result<(u16, String), Error> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = http::Request::builder()
        .method(method)
        .uri(url)
        .header("content-type", "application/json")
        .header("authorization", "Bearer any")
        .body(Full::new(body.into()))?;
    let exchange = async {
        let response = client.request(request).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok::<_, Error>((status, String::from_utf8_lossy(&bytes).into_owned()))
    };
    tokio::time::timeout(Duration::from_secs(120), exchange)
        .await
        .map_err(|_| format!("{method} {url}: no whole answer in 120 s"))?
}

/// One chat request with exactly `tokens` answer tokens.
///
/// # Errors
/// If the exchange fails; an HTTP error status is a [`Reply`].
pub async fn chat(base: &str, model: &str, prompt: &str, tokens: u32, stream: bool) -> Result<Reply, Error> {
    let body = question(model, prompt, tokens, stream);
    let (status, text) = request("POST", &format!("{base}/chat/completions"), body).await?;
    Ok(parse(status, text, stream))
}

fn question(model: &str, prompt: &str, tokens: u32, stream: bool) -> String {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": true,
        "stream": stream,
    })
    .to_string()
}

/// What became of a streamed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Streamed {
    /// It came whole: as many tokens as were asked for, and `[DONE]`.
    Whole {
        /// Pieces of content.
        pieces: usize,
    },
    /// Some of it came, then it broke off, ended in an error or left something out.
    Lost {
        /// Pieces of content that came.
        pieces: usize,
        /// What was seen instead of the rest.
        why: String,
    },
    /// Nothing of it came.
    NotBegun {
        /// What was seen instead.
        why: String,
    },
}

/// One streamed chat request with exactly `tokens` answer tokens, over a connection of its own, as far as it comes.
pub async fn stream(base: &str, model: &str, prompt: &str, tokens: u32) -> Streamed {
    let mut text = String::new();
    let exchange = read_stream(base, question(model, prompt, tokens, true), &mut text);
    let outcome = match tokio::time::timeout(STREAM_TIME, exchange).await {
        Ok(outcome) => outcome.map_err(|e| causes(e.as_ref())),
        Err(_) => Err(format!("no whole answer in {} s", STREAM_TIME.as_secs())),
    };
    let status = outcome.as_ref().copied().unwrap_or(200);
    let reply = parse(status, text, true);
    let why = match outcome {
        Err(why) => why,
        // A stream that goes on at another engine may bring several tokens in one piece.
        Ok(200) if reply.error.is_none() && reply.done && reply.pieces * 10 >= tokens as usize * 9 => {
            return Streamed::Whole { pieces: reply.pieces };
        }
        Ok(200) => match &reply.error {
            Some(error) => format!("an error in the stream: {error}"),
            None if reply.done => format!("{} pieces of {tokens}, then [DONE]", reply.pieces),
            None => "the stream ended without [DONE]".to_owned(),
        },
        Ok(status) => format!("{status} {}", reply.text),
    };
    if reply.pieces > 0 { Streamed::Lost { pieces: reply.pieces, why } } else { Streamed::NotBegun { why } }
}

/// Reads an answer into `text` as it comes; the status.
async fn read_stream(base: &str, body: String, text: &mut String) -> Result<u16, Error> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = http::Request::post(format!("{base}/chat/completions"))
        .header("content-type", "application/json")
        .header("authorization", "Bearer any")
        .body(Full::from(body))?;
    let response = client.request(request).await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            text.push_str(&String::from_utf8_lossy(data));
        }
    }
    Ok(status)
}

/// An error with those that caused it, in one line.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

fn parse(status: u16, text: String, stream: bool) -> Reply {
    let mut reply =
        Reply { status, text: String::new(), pieces: 0, finish_reason: None, done: false, error: None };
    let events: Vec<&str> = if stream && status == 200 {
        text.lines().filter_map(|l| l.strip_prefix("data:")).map(str::trim).collect()
    } else {
        vec![text.as_str()]
    };
    for event in events {
        if event == "[DONE]" {
            reply.done = true;
            continue;
        }
        let Ok(value) = serde_json::from_str::<Value>(event) else { continue };
        if let Some(error) = value.get("error") {
            reply.error = Some(error.to_string());
        }
        let choice = &value["choices"][0];
        let content = choice["delta"]["content"].as_str().or_else(|| choice["message"]["content"].as_str());
        if content.is_some_and(|c| !c.is_empty()) {
            reply.pieces += 1;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            reply.finish_reason = Some(reason.to_owned());
        }
    }
    reply.text = text;
    reply
}

/// Python of the virtual environment that holds the `openai` package, if there is one (`scripts/test-tools`).
pub fn python_with_openai() -> Option<PathBuf> {
    let python = workspace().join(".cache/venv/bin/python");
    let works = std::process::Command::new(&python)
        .args(["-c", "import openai"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    works.then_some(python)
}

/// Runs `e2e/openai_client.py` against an endpoint; what it printed.
///
/// # Errors
/// If it exits with a failure; says what it printed.
pub async fn run_python_client(python: &std::path::Path, base: &str, model: &str) -> Result<String, Error> {
    let output = tokio::process::Command::new(python)
        .arg(workspace().join("e2e/openai_client.py"))
        .args([base, model])
        .kill_on_drop(true)
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("the openai client failed:\n{text}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}
