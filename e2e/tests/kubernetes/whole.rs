//! The beginning and the end: install by Helm, a first pool; deletion of pool and namespace, uninstall.

use plimsoll_e2e::kubectl::{Kubectl, items};
use plimsoll_e2e::{Error, eventually, openai};

use crate::lane::Lane;
use crate::suite::{MODEL, Suite};

/// The chart of the release before, as `e2e/lanes/previous/make` packed it.
pub const PREVIOUS: &str = "e2e/lanes/previous/plimsoll.tgz";

const CLASS: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: h100}
spec: {preset: h100}
";

fn pool(name: &str, min: u32) -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {{name: {name}, namespace: models}}
spec:
  engine: {{kind: simulated}}
  model: {{name: {MODEL}, preset: {MODEL}}}
  slo: {{ttft: {{p95: 4s}}, tpot: {{p95: 150ms}}}}
  scaling: {{min: {min}, max: 4}}
  maxContextTokens: 16384
"
    )
}

pub async fn install<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    suite.restricted("plimsoll").await?;
    suite.restricted("models").await?;
    let values = ["-n", "plimsoll", "-f", "e2e/lanes/values.yaml"];
    suite.lane.helm(&[&["install", "plimsoll", PREVIOUS][..], &values[..]].concat()).await?;
    suite.step("the chart before is installed by Helm");
    suite.apply(CLASS).await?;
    suite.apply(&pool("small", 2)).await?;
    suite.base = suite.lane.openai().await?;
    suite.settled("a pool of two", 2).await?;
    let reply = openai::chat(&suite.base, MODEL, "hello", 8, false).await?;
    assert_eq!((reply.status, reply.finish_reason.as_deref()), (200, Some("length")), "{}", reply.text);
    let reply = openai::chat(&suite.base, MODEL, "hello", 8, true).await?;
    assert!(reply.done && reply.pieces == 8, "{}", reply.text);
    suite.step(&format!("two engines answer at the gateways' Service, {}", suite.base));
    Ok(())
}

pub async fn remove<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    suite.run(&["-n", "models", "delete", "mp", "small", "--timeout=180s"]).await?;
    eventually("the deleted pool's engines are gone", 120, || async {
        let pods = suite.json(&["-n", "models", "get", "pods"]).await?;
        if items(&pods).is_empty() { Ok(()) } else { Err(format!("{} pods", items(&pods).len()).into()) }
    })
    .await?;
    suite.step("the pool is deleted, its engines are gone");

    suite.apply(&pool("second", 1)).await?;
    let ready = ["wait", "mp/second", "--for=condition=Ready", "--timeout=180s"];
    suite.run(&[&["-n", "models"][..], &ready[..]].concat()).await?;
    suite.run(&["delete", "namespace", "models", "--timeout=180s"]).await?;
    suite.step("a namespace goes with a serving pool in it");

    suite.lane.helm(&["uninstall", "plimsoll", "-n", "plimsoll", "--wait"]).await?;
    let left = eventually("nothing is left of the release", 120, || async {
        let left = left_in_cluster(suite.lane.kubectl()).await?;
        if left.is_empty() { Ok(()) } else { Err(left.join(", ").into()) }
    })
    .await;
    suite.step("uninstalled by Helm");
    if let Err(error) = left {
        suite.fault(error.to_string());
    }
    suite.run(&["delete", "namespace", "plimsoll", "--timeout=120s"]).await?;
    Ok(())
}

/// Everything with our name or label, besides what stays on purpose (the definitions, and AcceleratorClasses with them)
/// and what Kubernetes made itself.
async fn left_in_cluster(kubectl: &Kubectl) -> Result<Vec<String>, Error> {
    let kinds = kubectl.kubectl(&["api-resources", "--verbs=list", "--output=name"]).await?;
    let stays = [
        "acceleratorclasses",
        "apiservices",
        "componentstatuses",
        "customresourcedefinitions",
        "events",
        "nodes",
    ];
    let kinds: Vec<&str> = kinds
        .split_whitespace()
        .filter(|kind| !stays.contains(&kind.split('.').next().unwrap_or_default()))
        .collect();
    let list = kubectl.json(&["get", &kinds.join(","), "--all-namespaces"]).await?;
    let mut left = Vec::new();
    for object in items(&list) {
        let (kind, metadata) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        let made_by_kubernetes = matches!(
            (kind, name),
            ("Namespace", "plimsoll") | ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default")
        );
        // The lane's own: its node, and what it grants kube-proxy.
        let text = format!("{name} {}", metadata["labels"])
            .replace("plimsoll-node", "")
            .replace("plimsoll-lane", "");
        let ours = text.contains("plimsoll") || metadata["namespace"] == "plimsoll";
        if ours && !made_by_kubernetes {
            left.push(format!("{kind} {name}"));
        }
    }
    Ok(left)
}
