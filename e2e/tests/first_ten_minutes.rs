//! What a newcomer does, with the clients a newcomer has: start, apply, look, ask, load, explain, stop, start again.

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{Up, run, workspace};
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::Value;

fn note(text: &str) {
    println!("e2e: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_served_tokens_and_back() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let data_text = data.to_str().ok_or("path is not UTF-8")?.to_owned();
    let up = Up::start(dir.path(), &["--data", &data_text]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    note(&format!("Kubernetes API driven by {}", kubectl.describe_client()));

    // Apply, and look.
    let said = kubectl.apply(&workspace().join("examples")).await?;
    for name in ["chat", "code", "tiny", "team-a"] {
        assert!(said.contains(name), "{said}");
    }
    for pool in ["chat", "code"] {
        eventually(&format!("{pool} is ready"), 90, || async {
            let object = kubectl.pool(pool).await?;
            if condition(&object, "Ready") == Some("True") {
                Ok(())
            } else {
                Err(format!("{}", object["status"]).into())
            }
        })
        .await?;
    }
    let table = kubectl.get("mp", "/apis/plimsoll.dev/v1alpha1/namespaces/default/modelpools").await?;
    note(&format!("kubectl get mp\n{table}"));
    for part in ["NAME", "MODEL", "READY", "SHAPE", "$/H", "WHY", "H100", "llama-3.1-70b"] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }

    // Ask.
    up.wait_serving("llama-3.1-70b", 60).await?;
    let reply = openai::chat(up.openai()?, "llama-3.1-70b", "What is a load line?", 24, true).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.done && reply.pieces >= 12, "{reply:?}");
    match openai::python_with_openai() {
        Some(python) => {
            let said = openai::run_python_client(&python, up.openai()?, "llama-3.1-70b").await?;
            note(&format!("OpenAI API driven by the real package: {}", said.trim()));
        }
        None => note("OpenAI API driven by the suite's own HTTP calls (no openai package here)"),
    }

    // A pool at zero wakes for a request.
    eventually("tiny is planned", 60, || async {
        let object = kubectl.pool("tiny").await?;
        if condition(&object, "Planned").is_some() { Ok(()) } else { Err("not planned".into()) }
    })
    .await?;
    up.wait_serving("llama-3.1-8b", 90).await?;

    // Load: replicas rise and fall, and every step is explained.
    let before = replicas(&kubectl.pool("chat").await?);
    let scheduler = up.endpoints.scheduler.clone().ok_or("no scheduler announced")?;
    let url = up.openai()?.to_owned();
    let azure = workspace().join("../shared/data/traces/azure2023_conv.csv");
    let azure_text = azure.to_string_lossy().into_owned();
    let mut args = vec![
        "replay",
        "--scheduler",
        &scheduler,
        "--url",
        &url,
        "--model",
        "llama-3.1-70b",
        "--speed",
        "10",
        "--duration",
        "10m",
    ];
    if azure.exists() {
        args.extend(["--trace", &azure_text]);
    } else {
        args.extend(["--generate", "azure-conv"]);
    }
    let replay = run(&args);
    let peak = async {
        let mut peak = before;
        for _ in 0..70 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            peak = peak.max(replicas(&kubectl.pool("chat").await?));
        }
        Ok::<u64, Error>(peak)
    };
    let (report, peak) = tokio::join!(replay, peak);
    let (report, peak) = (report?, peak?);
    note(&format!("{}\n{report}", args.join(" ")));
    for part in ["TTFT", "TPOT", "p99", "attainment"] {
        assert!(report.contains(part), "no {part} in\n{report}");
    }
    // Twelve times the load takes more than a replica or two of any shape.
    assert!(peak >= before + 3, "replicas rose only from {before} to {peak} under load");
    eventually("replicas fall after the load", 180, || async {
        let now = replicas(&kubectl.pool("chat").await?);
        if now < peak { Ok(()) } else { Err(format!("still {now} of {peak}").into()) }
    })
    .await?;
    let described = kubectl.describe_pool("chat").await?;
    assert!(described.contains("Scaled"), "{described}");
    let explained = run(&["explain", "chat", "--scheduler", &scheduler]).await?;
    note(&format!("plimsoll explain chat\n{explained}"));
    for part in ["why", "plan", "recent decisions", "$"] {
        assert!(explained.contains(part), "no {part:?} in\n{explained}");
    }
    // Exit status 2 says that the changed world leaves demand unserved; the table is there either way.
    let what_if = run(&["plan", "--scheduler", &scheduler, "--what-if", "gpu/h100-8"])
        .await
        .unwrap_or_else(|error| error.to_string());
    assert!(what_if.contains("changes (gpu/h100-8)"), "{what_if}");
    note(&format!("plimsoll plan --what-if gpu/h100-8\n{what_if}"));

    // The view and the metrics.
    let view = up.endpoints.view.clone().ok_or("no view announced")?;
    let (status, page) = openai::request("GET", &view, "").await?;
    assert!(status == 200 && page.contains("<h1>Plimsoll"), "{status}");
    let (_, metrics) = openai::request("GET", &format!("{view}/metrics"), "").await?;
    assert!(metrics.contains("plimsoll_"), "{metrics}");
    let (_, fleet) = openai::request("GET", &format!("{view}/api/fleet"), "").await?;
    let fleet: Value = serde_json::from_str(&fleet)?;
    assert_eq!(fleet["pools"].as_array().map(Vec::len), Some(3), "{fleet}");

    // Stop, and start again: objects and plan numbers are still there.
    let plan_before = fleet["plan"].as_u64().ok_or("no plan number")?;
    let status_before = kubectl.pool("chat").await?["status"]["plan"].as_u64();
    up.process.interrupt(20).await?;
    let up = Up::start(dir.path(), &["--data", &data_text]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    up.wait_serving("llama-3.1-70b", 90).await?;
    let object = kubectl.pool("chat").await?;
    assert!(
        status_before.is_some() && object["status"]["plan"].as_u64() >= status_before,
        "{}",
        object["status"]
    );
    let view = up.endpoints.view.clone().ok_or("no view announced")?;
    let (_, fleet) = openai::request("GET", &format!("{view}/api/fleet"), "").await?;
    let fleet: Value = serde_json::from_str(&fleet)?;
    assert!(fleet["plan"].as_u64() >= Some(plan_before), "{fleet}");

    // Delete: nothing is left.
    kubectl.delete_pool("chat").await?;
    eventually("chat's pods are gone", 60, || async {
        let pods = kubectl.pods_of("chat").await?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}").into()) }
    })
    .await?;
    let reply = openai::chat(up.openai()?, "llama-3.1-70b", "hello", 4, false).await?;
    assert_eq!(reply.status, 404, "{}", reply.text);
    up.process.interrupt(20).await?;
    Ok(())
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn replicas(object: &Value) -> u64 {
    object["status"]["replicas"].as_u64().unwrap_or(0)
}
