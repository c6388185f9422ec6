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

    group_answers(&kubectl, &up).await?;

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

/// Two more adapters, of one group: the group answers by one of them, and takes what the answer was worth.
async fn group_answers(kubectl: &Kubectl, up: &Up) -> Result<(), Error> {
    let of = |name: &str| adapter(name, ", adapterGroup: tone");
    kubectl.apply_text(&[of("brief"), of("warm")].concat()).await?;
    let base = up.openai()?;
    let mut judged = Vec::new();
    eventually("the group answers, and both are known", 60, || async {
        let (status, listed) = openai::request("GET", &format!("{base}/models/tone"), "").await?;
        if status == 200 && listed.contains("\"brief\",\"warm\"") {
            Ok(())
        } else {
            Err(format!("{status}: {listed}").into())
        }
    })
    .await?;
    for stream in [false, true, false, true] {
        let reply = openai::chat(base, "tone", "Where is my parcel?", 8, stream).await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let event = reply.text.lines().find_map(|l| l.strip_prefix("data: ")).unwrap_or(&reply.text);
        let answer: Value = serde_json::from_str(event)?;
        let model = answer["model"].as_str().unwrap_or_default().to_owned();
        assert!(["brief", "warm"].contains(&model.as_str()), "{answer}");
        let body = serde_json::json!({"id": answer["id"], "reward": if model == "warm" { 1.0 } else { 0.0 }});
        let (status, said) = openai::request("POST", &format!("{base}/feedback"), body.to_string()).await?;
        assert_eq!(status, 200, "{said}");
        assert!(said.contains(&model), "{said}");
        let (again, said) = openai::request("POST", &format!("{base}/feedback"), body.to_string()).await?;
        assert_eq!(again, 409, "{said}");
        judged.push(model);
    }
    println!("e2e: the group answered by {judged:?}");

    // A group's name is a model's name: what has it already keeps it.
    kubectl.apply_text(&adapter("clash", ", adapterGroup: llama-3.1-8b")).await?;
    eventually("the clash is told", 60, || async {
        let clash = kubectl.get_json(&format!("{ADAPTERS}/clash")).await?;
        let told = clash["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Accepted" && c["status"] == "False" && c["reason"] == "NameTaken")
        });
        if told { Ok(()) } else { Err(clash.to_string().into()) }
    })
    .await
}
