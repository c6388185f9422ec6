//! Bad input of every kind: the message names what is wrong and what to do, and nothing else is disturbed.

use std::time::Duration;

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{Up, run};
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::{Value, json};

fn pool(name: &str, model: &str, preset: &str, rest: &str) -> String {
    format!(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelPool\nmetadata: {{name: {name}}}\nspec:\n  model: {{name: {model}, preset: {preset}}}\n{rest}\n"
    )
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Everything a person sees of a pool: table cells, conditions, reasons.
fn said(object: &Value) -> String {
    object["status"].to_string()
}

async fn explained(kubectl: &Kubectl, name: &str, parts: &[&str]) -> Result<(), Error> {
    eventually(&format!("{name} says {parts:?}"), 60, || async {
        let text = said(&kubectl.pool(name).await?);
        if parts.iter().all(|p| text.contains(p)) { Ok(()) } else { Err(text.into()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_and_requests_are_answered_in_words() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let up = Up::start(dir.path(), &["--nodes", "1x4xl40s,2x1xl4"]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    println!("e2e: Kubernetes API driven by {}", kubectl.describe_client());

    // A healthy pool, which must stay so.
    kubectl
        .apply_text(&pool(
            "good",
            "llama-3.1-8b",
            "llama-3.1-8b",
            "  slo: {ttft: {p95: 4s}, tpot: {p95: 150ms}}\n  scaling: {min: 1, max: 1}",
        ))
        .await?;
    up.wait_serving("llama-3.1-8b", 60).await?;

    // Refused by the API, with the field.
    let refused = [
        ("  slo: {tpot: {p95: 0ms}}", vec!["spec.slo.tpot", "between 1ms and 10s"]),
        ("  slo: {ttft: {p95: 1s}}\n  scaling: {min: 5, max: 2}", vec!["spec.scaling", "max"]),
        ("  slo: {ttft: {p95: 1s}}\n  parallelism: {tensor: [0]}", vec!["spec.parallelism.tensor"]),
        ("  slo: {ttft: {p95: 1s}}\n  minQuality: 7", vec!["spec.minQuality"]),
    ];
    for (rest, parts) in refused {
        let error = kubectl.apply_text(&pool("bad", "bad", "llama-3.1-8b", rest)).await;
        let Err(error) = error else { return Err(format!("accepted: {rest}").into()) };
        for part in parts {
            assert!(error.to_string().contains(part), "{rest}: no {part:?} in {error}");
        }
    }

    // Accepted by the schema, explained in the status.
    kubectl.apply_text(&pool("huge", "deepseek-v3", "deepseek-v3", "  slo: {tpot: {p95: 100ms}}")).await?;
    explained(&kubectl, "huge", &["GB of weights", "no shape fits"]).await?;
    kubectl
        .apply_text(&pool("fast", "fast", "llama-3.1-8b", "  slo: {tpot: {p95: 1ms}}\n  demand: {rps: 1, input: {mean: 500, p95: 1000}, output: {mean: 100, p95: 200}}"))
        .await?;
    explained(&kubectl, "fast", &["TPOT p95", "1 ms"]).await?;
    kubectl
        .apply_text(&pool(
            "odd",
            "odd",
            "llama-3.1-8b",
            "  slo: {tpot: {p95: 100ms}}\n  parallelism: {tensor: [3]}",
        ))
        .await?;
    explained(&kubectl, "odd", &["tensor", "3"]).await?;
    kubectl.apply_text(&pool("twin", "llama-3.1-8b", "llama-3.1-8b", "  slo: {tpot: {p95: 100ms}}")).await?;
    explained(&kubectl, "twin", &["llama-3.1-8b", "good"]).await?;
    let twin = kubectl.pool("twin").await?;
    assert_eq!(condition(&twin, "Accepted").map(|c| &c["status"]), Some(&json!("False")), "{twin}");
    kubectl
        .apply_text(&format!(
            "apiVersion: plimsoll.dev/v1alpha1\nkind: Budget\nmetadata: {{name: pocket-money}}\nspec: {{scope: {{pools: [default/poor]}}, usdPerHour: 0.1}}\n---\n{}",
            pool("poor", "poor", "llama-3.2-1b", "  slo: {tpot: {p95: 100ms}}\n  demand: {rps: 1, input: {mean: 500, p95: 1000}, output: {mean: 100, p95: 200}}")
        ))
        .await?;
    explained(&kubectl, "poor", &["pocket-money"]).await?;

    // Requests.
    let base = up.openai()?.to_owned();
    let chat = format!("{base}/chat/completions");
    let (status, text) =
        openai::request("POST", &chat, "{\"model\": \"llama-3.1-8b\", \"messages\": [").await?;
    assert!(status == 400 && text.contains("\"error\""), "{status} {text}");
    let (status, text) =
        openai::request("POST", &chat, json!({"model": "nope", "messages": []}).to_string()).await?;
    assert!(status == 404 && text.contains("nope") && text.contains("llama-3.1-8b"), "{status} {text}");
    let (status, text) = openai::request("POST", &chat, "{}").await?;
    assert!(status == 400 && text.contains("model"), "{status} {text}");
    let (status, text) = openai::request("DELETE", &chat, "").await?;
    assert!(status == 405, "{status} {text}");
    let long = "x".repeat(40 << 20);
    let body = json!({"model": "llama-3.1-8b", "messages": [{"role": "user", "content": long}]}).to_string();
    match openai::request("POST", &chat, body).await {
        Ok((status, text)) => assert!(status == 413 && text.contains("limit"), "{status} {text}"),
        // The server may answer and close while the body is still being sent.
        Err(error) => println!("e2e: the oversize body was cut off: {error}"),
    }

    // A client that goes away frees its place in the engine.
    let pod =
        kubectl.get_json("/api/v1/namespaces/default/pods?labelSelector=plimsoll.dev/pool%3Dgood").await?;
    let name = pod["items"][0]["metadata"]["name"].as_str().ok_or("no pod")?.to_owned();
    let engine = pod["items"][0]["status"]["podIP"].as_str().ok_or("no pod IP")?.to_owned();
    let metrics = format!("http://{engine}:8000/metrics");
    let gone = tokio::spawn({
        let base = base.clone();
        async move { openai::chat(&base, "llama-3.1-8b", "a long story", 5000, true).await.map(|r| r.status) }
    });
    eventually("the request runs", 20, || running(&metrics, 1.0)).await?;
    gone.abort();
    eventually("the engine has dropped it", 20, || running(&metrics, 0.0)).await?;

    // An engine that dies mid-stream ends the stream with an error, at once, and is replaced.
    let stream = tokio::spawn({
        let base = base.clone();
        async move { openai::chat(&base, "llama-3.1-8b", "another long story", 5000, true).await }
    });
    eventually("the request runs", 20, || running(&metrics, 1.0)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    delete_now(&kubectl, &name).await?;
    let reply =
        tokio::time::timeout(Duration::from_secs(30), stream).await.map_err(|_| "the stream hung")???;
    assert!(reply.error.is_some() || (reply.done && reply.finish_reason.is_some()), "{reply:?}");
    up.wait_serving("llama-3.1-8b", 60).await?;

    // A trace that was cut short.
    let trace = dir.path().join("cut.csv");
    std::fs::write(
        &trace,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,100,4\n2023-11-16 18:17:04.0319600,31",
    )?;
    let path = trace.to_str().ok_or("path is not UTF-8")?;
    let replay = ["replay", "--url", &base, "--model", "llama-3.1-8b", "--trace", path];
    let Err(error) = run(&replay).await else { return Err("a cut trace was replayed".into()) };
    assert!(error.to_string().contains("line 3") && error.to_string().contains("allow-truncated"), "{error}");
    let report = run(&[&replay[..], &["--allow-truncated"]].concat()).await?;
    assert!(report.contains("1/1"), "{report}");

    // After all this the healthy pool serves as before.
    let reply = openai::chat(&base, "llama-3.1-8b", "hello", 4, true).await?;
    assert!(reply.status == 200 && reply.done, "{reply:?}");
    up.process.interrupt(20).await?;
    Ok(())
}

async fn running(metrics: &str, wanted: f64) -> Result<(), Error> {
    let (_, text) = openai::request("GET", metrics, "").await?;
    let value = text
        .lines()
        .find(|l| l.starts_with("vllm:num_requests_running"))
        .and_then(|l| l.rsplit(' ').next())
        .and_then(|v| v.parse::<f64>().ok())
        .ok_or("no vllm:num_requests_running")?;
    if (value - wanted).abs() < 0.5 { Ok(()) } else { Err(format!("{value} running").into()) }
}

/// `kubectl delete pod NAME --force --grace-period=0`.
async fn delete_now(kubectl: &Kubectl, name: &str) -> Result<(), Error> {
    let body = json!({"gracePeriodSeconds": 0}).to_string().into_bytes();
    let request = http::Request::delete(format!("/api/v1/namespaces/default/pods/{name}"))
        .header("content-type", "application/json")
        .body(body)?;
    let _: Value = kubectl.client().request(request).await?;
    Ok(())
}
