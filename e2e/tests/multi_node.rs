//! A model that fits no node: a replica over two, served, mended when a part of it is lost, and taken away whole.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::Up;
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::json;

const LARGE: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: large}
spec:
  model: {name: llama-3.1-405b, preset: llama-3.1-405b}
  variants: [{name: bf16, weights: bf16}]
  slo: {ttft: {p95: 10s}, tpot: {p95: 150ms}}
  demand: {rps: 0.2, input: {mean: 500, p95: 1500}, output: {mean: 100, p95: 300}}
  parallelism: {pipeline: [1, 2]}
  scaling: {min: 1, max: 1}
  maxContextTokens: 16384
";

/// Name and node of each pod of the pool's one replica that is not on its way out, leader first.
async fn group(pods: &Api<Pod>) -> Result<Vec<(String, String)>, Error> {
    let list = pods.list(&ListParams::default().labels("plimsoll.dev/rank")).await?;
    let mut group: Vec<(String, String)> = list
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .map(|p| (p.name_any(), p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default()))
        .collect();
    group.sort();
    Ok(group)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_over_two_nodes_serves_and_is_mended_whole() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let up = Up::start(dir.path(), &["--nodes", "4x8xh100"]).await?;
    let kubectl = Kubectl::connect(&up.endpoints).await?;
    let pods: Api<Pod> = Api::default_namespaced(kubectl.client());
    let nodes: Api<Node> = Api::all(kubectl.client());
    kubectl.apply_text(LARGE).await?;
    up.wait_serving("llama-3.1-405b", 120).await?;
    let first = group(&pods).await?;
    println!("e2e: {first:?}");
    let [(leader, on), (worker, beside)] = &first[..] else { return Err(format!("{first:?}").into()) };
    assert!(
        *worker == format!("{leader}-w1") && on != beside && !on.is_empty() && !beside.is_empty(),
        "{first:?}"
    );
    let table = kubectl.get("mp", "/apis/plimsoll.dev/v1alpha1/namespaces/default/modelpools").await?;
    println!("e2e: kubectl get mp\n{table}");
    assert!(table.contains("TP8 PP2 H100") && table.contains("1/1"), "{table}");
    let reply = openai::chat(up.openai()?, "llama-3.1-405b", "What is a load line?", 24, true).await?;
    assert_eq!((reply.status, reply.done), (200, true), "{}", reply.text);

    // A part of it is taken away: all of it is replaced.
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(worker, &now).await?;
    let replaced = |old: Vec<(String, String)>, not_on: Option<String>| {
        let pods = pods.clone();
        async move {
            eventually("another group takes its place", 90, || async {
                let group = group(&pods).await?;
                let new =
                    group.len() == 2 && group.iter().all(|(name, _)| old.iter().all(|(o, _)| o != name));
                let bound = group.iter().all(|(_, on)| !on.is_empty() && Some(on) != not_on.as_ref());
                if new && bound { Ok(group) } else { Err(format!("{group:?}").into()) }
            })
            .await
        }
    };
    let second = replaced(first.clone(), None).await?;
    up.wait_serving("llama-3.1-405b", 120).await?;

    // The worker's node breaks: it moves off that node.
    let broken = second[1].1.clone();
    let fault = json!({"status": {"conditions": [{"type": "XIDErrors", "status": "True"}]}});
    nodes.patch_status(&broken, &PatchParams::default(), &Patch::Strategic(fault)).await?;
    let third = replaced(second, Some(broken)).await?;
    println!("e2e: moved to {third:?}");
    up.wait_serving("llama-3.1-405b", 120).await?;

    kubectl.delete_pool("large").await?;
    eventually("nothing is left", 60, || async {
        let left = pods.list(&ListParams::default()).await?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} pods").into()) }
    })
    .await?;
    up.process.interrupt(20).await?;
    Ok(())
}
