//! LoRA adapters from `kubectl apply` to an answer: placed, loaded, listed, served by name, and gone with their resource.

use plimsoll_e2e::kubectl::{Kubectl, items};
use plimsoll_e2e::system::Up;
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::Value;

const POOL: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: chat}
spec:
  model: {name: llama-3.1-8b, preset: llama-3.1-8b}
  slo: {ttft: {p95: 2s}, tpot: {p95: 100ms}}
  scaling: {min: 2, max: 2}
  maxContextTokens: 8192
";

fn adapter(name: &str, more: &str) -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: LoraAdapter
metadata: {{name: {name}}}
spec: {{basePool: chat, source: 'hf://acme/{name}', rank: 16{more}}}
---"
    )
}

const ADAPTERS: &str = "/apis/plimsoll.dev/v1alpha1/namespaces/default/loraadapters";

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_served_by_name_for_as_long_as_they_are_there() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let up = Up::start(dir.path(), &["--nodes", "2x2xh100"]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    let manifests =
        [POOL, "---", &adapter("sql", ""), &adapter("law", ", modelName: acme/law, pinned: true")];
    kubectl.apply_text(&manifests.concat()).await?;
    up.wait_serving("llama-3.1-8b", 120).await?;
    eventually("both are resident on both replicas", 60, || async {
        let list = kubectl.get_json(ADAPTERS).await?;
        let resident = |adapter: &Value| adapter["status"]["residentOn"].as_array().map_or(0, Vec::len) == 2;
        let loaded = |adapter: &Value| {
            let conditions = adapter["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Loaded" && c["status"] == "True"))
        };
        let all = items(&list);
        let right = all.len() == 2 && all.iter().all(|one| resident(one) && loaded(one));
        if right { Ok(()) } else { Err(list.to_string().into()) }
    })
    .await?;
    println!("e2e: kubectl get loraadapters\n{}", kubectl.get("loraadapters", ADAPTERS).await?);

    let (_, models) = openai::request("GET", &format!("{}/models", up.openai()?), "").await?;
    let models: Value = serde_json::from_str(&models)?;
    let names: Vec<&str> =
        models["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(names, ["acme/law", "llama-3.1-8b", "sql"]);
    for model in ["sql", "acme/law", "llama-3.1-8b"] {
        let reply = openai::chat(up.openai()?, model, "What is a load line?", 8, true).await?;
        assert_eq!((reply.status, reply.done), (200, true), "{model}: {}", reply.text);
    }

    let request = http::Request::delete(format!("{ADAPTERS}/sql")).body(Vec::new())?;
    let _: Value = kubectl.client().request(request).await?;
    eventually("its name is unknown", 60, || async {
        let reply = openai::chat(up.openai()?, "sql", "Are you there?", 8, false).await?;
        if reply.status == 404 { Ok(()) } else { Err(format!("{}: {}", reply.status, reply.text).into()) }
    })
    .await?;
    let reply = openai::chat(up.openai()?, "acme/law", "And you?", 8, false).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    up.process.interrupt(20).await?;
    Ok(())
}
