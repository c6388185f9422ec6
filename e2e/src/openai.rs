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
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": true,
        "stream": stream,
    });
    let (status, text) = request("POST", &format!("{base}/chat/completions"), body.to_string()).await?;
    Ok(parse(status, text, stream))
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
