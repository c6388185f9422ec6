//! A rollout under traffic: a worse configuration stops at its canary and is taken back, a good one goes through, and no request is lost.

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{Up, run};
use plimsoll_e2e::traffic::Traffic;
use plimsoll_e2e::{Error, eventually};
use serde_json::Value;

fn pool(args: &str) -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {{name: chat}}
spec:
  model: {{name: llama-3.1-8b, preset: llama-3.1-8b}}
  slo: {{ttft: {{p95: 30s}}, tpot: {{p95: 300ms}}}}
  scaling: {{min: 3, max: 3}}
  maxContextTokens: 16384
  engine: {{kind: simulated, args: [{args}]}}
  rollout:
    canary: {{minRequests: 40, block: 5s, warmUp: 5s, deadline: 2h}}
"
    )
}

async fn apply(kubectl: &Kubectl, args: &str) -> Result<(), Error> {
    kubectl.apply_text(&pool(args)).await.map(drop)
}

/// The objects at this path of the API.
async fn list(kubectl: &Kubectl, path: &str) -> Result<Vec<Value>, Error> {
    Ok(kubectl.get_json(path).await?["items"].as_array().cloned().unwrap_or_default())
}

/// The condition Progressing, if it says what is wanted and it is about the newest spec.
async fn progressing(kubectl: &Kubectl, reason: &str) -> Result<String, Error> {
    let pool = kubectl.pool("chat").await?;
    let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == "Progressing").cloned().unwrap_or(Value::Null);
    if found["reason"] == reason && found["observedGeneration"] == pool["metadata"]["generation"] {
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    } else {
        Err(format!("Progressing is {found}, status {}", pool["status"]["summary"]).into())
    }
}

/// The engine arguments `--speed` of the pool's pods that serve.
async fn speeds(kubectl: &Kubectl) -> Result<Vec<Option<String>>, Error> {
    let pods = list(kubectl, "/api/v1/namespaces/default/pods").await?;
    let serves = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            && pod["metadata"]["annotations"]["plimsoll.dev/draining"].is_null()
    };
    let speed = |pod: &Value| {
        let args = pod["spec"]["containers"][0]["args"].as_array().cloned().unwrap_or_default();
        let at = args.iter().position(|a| a == "--speed")?;
        Some(args.get(at + 1)?.as_str()?.to_owned())
    };
    Ok(pods.iter().filter(|p| serves(p)).map(speed).collect())
}

async fn all_run(kubectl: &Kubectl, wanted: Option<&str>) -> Result<(), Error> {
    let speeds = speeds(kubectl).await?;
    if speeds.len() == 3 && speeds.iter().all(|s| s.as_deref() == wanted) {
        Ok(())
    } else {
        Err(format!("pods run {speeds:?}").into())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worse_configuration_stops_at_its_canary_and_is_taken_back() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let up = Up::start(dir.path(), &["--nodes", "4x1xl4", "--speed", "10"]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    apply(&kubectl, "").await?;
    eventually("three replicas serve", 120, || all_run(&kubectl, None)).await?;
    up.wait_serving("llama-3.1-8b", 60).await?;
    eventually("the configuration is accepted", 60, || async {
        let revisions = list(&kubectl, "/apis/apps/v1/namespaces/default/controllerrevisions").await?;
        let accepted = |r: &Value| r["metadata"]["annotations"]["plimsoll.dev/accepted"].is_string();
        if revisions.iter().any(accepted) { Ok(()) } else { Err(format!("{revisions:?}").into()) }
    })
    .await?;
    let traffic = Traffic::start(up.openai()?, "llama-3.1-8b", 6, 12);

    // A release that is twelve times as slow: every token takes longer than the objective allows.
    apply(&kubectl, "--speed, '0.08'").await?;
    // First that it stops, then that it was taken back.
    eventually("the rollout is stopped and taken back", 240, || async {
        let message = progressing(&kubectl, "SLORegression").await?;
        let parts = [
            "TPOT of class default met by ",
            " under the older configuration",
            "was taken back",
            "is in force",
        ];
        if parts.iter().all(|part| message.contains(part)) { Ok(()) } else { Err(message.into()) }
    })
    .await?;
    eventually("all run the older configuration", 120, || all_run(&kubectl, None)).await?;
    let explained =
        run(&["explain", "chat", "--scheduler", up.endpoints.scheduler.as_deref().unwrap_or_default()])
            .await?;
    assert!(explained.contains("stopped: TPOT of class default"), "{explained}");
    progressing(&kubectl, "SLORegression").await?;

    // One that is as good goes through, canary first.
    apply(&kubectl, "--speed, '1.01'").await?;
    eventually("all run the new configuration", 240, || all_run(&kubectl, Some("1.01"))).await?;
    eventually("the rollout is over", 60, || progressing(&kubectl, "UpToDate")).await?;

    let counts = traffic.finish().await?;
    println!("{counts}");
    assert!(counts.whole > 100, "{counts}");
    assert_eq!((counts.lost.len(), counts.refused()), (0, 0), "{counts}");
    up.process.interrupt(30).await?;
    Ok(())
}
