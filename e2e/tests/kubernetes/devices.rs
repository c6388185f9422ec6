//! Accelerators that the cluster's own scheduler allocates (`resource.k8s.io/v1`).

use plimsoll_e2e::kubectl::items;
use plimsoll_e2e::{Error, eventually};
use serde_json::{Value, json};

use crate::lane::Lane;
use crate::suite::{Suite, condition};

const NODE: &str = "plimsoll-node-claimed";
const DRIVER: &str = "gpu.plimsoll-lane.example";

/// A node without a kubelet, which nothing but the step's own pods may be bound to, and two devices of a driver on it.
fn cluster_objects() -> String {
    format!(
        "
apiVersion: v1
kind: Node
metadata: {{name: {NODE}, labels: {{plimsoll-lane: claimed}}}}
spec: {{taints: [{{key: plimsoll-lane, value: claimed, effect: NoSchedule}}]}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {{name: {DRIVER}}}
spec: {{selectors: [{{cel: {{expression: 'device.driver == \"{DRIVER}\"'}}}}]}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {{name: {NODE}}}
spec:
  driver: {DRIVER}
  nodeName: {NODE}
  pool: {{name: {NODE}, generation: 1, resourceSliceCount: 1}}
  devices:
  - {{name: gpu-0, attributes: {{type: {{string: gpu}}}}}}
  - {{name: gpu-1, attributes: {{type: {{string: gpu}}}}}}
  - {{name: video-0, attributes: {{type: {{string: encoder}}}}}}
"
    )
}

fn pool_objects() -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {{name: claimed}}
spec:
  preset: h100
  nodeSelector: {{plimsoll-lane: claimed}}
  tolerations: [{{key: plimsoll-lane, operator: Exists}}]
  dra: {{deviceClassName: {DRIVER}, driver: {DRIVER}, attributes: {{type: gpu}}}}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {{name: claimed, namespace: models}}
spec:
  engine: {{kind: simulated}}
  model: {{name: claimed, preset: llama-3.1-8b}}
  slo: {{ttft: {{p95: 4s}}, tpot: {{p95: 150ms}}}}
  scaling: {{min: 2, max: 2}}
  placement: {{accelerators: [claimed]}}
  parallelism: {{tensor: [1]}}
  maxContextTokens: 16384
"
    )
}

/// Replicas of a class with a DeviceClass claim devices, and the cluster's own scheduler allocates them: the node is not
/// real, so what is bound to it never starts.
pub async fn claimed<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    if !suite.lane.has_own_controllers() {
        return Ok(());
    }
    suite.apply(&cluster_objects()).await?;
    ready_node(suite).await?;
    suite.apply(&pool_objects()).await?;
    let bound = eventually("both replicas are bound, with a device each", 180, || async {
        // As a kubelet does: the cluster takes a silent node's pods away.
        ready_node(suite).await?;
        bound(suite).await
    })
    .await;
    match bound {
        Ok(devices) => {
            suite.step(&format!("the cluster's scheduler allocated {} to two replicas", devices.join(", ")))
        }
        Err(error) => suite.fault(error.to_string()),
    }
    let class = suite.json(&["get", "acceleratorclass", "claimed"]).await?;
    suite.check(condition(&class["status"], "ClaimsDevices") == "True", || {
        format!("the class does not say that it claims devices: {}", class["status"])
    });
    away(suite).await
}

async fn ready_node<L: Lane>(suite: &Suite<L>) -> Result<(), Error> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let amount = json!({"cpu": "64", "memory": "512Gi", "pods": "100", "ephemeral-storage": "1Ti"});
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Lane", "message": "not real",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let status = json!({"status": {"capacity": amount, "allocatable": amount, "conditions": [ready]}});
    suite.run(&["patch", "node", NODE, "--subresource=status", "-p", &status.to_string()]).await.map(drop)
}

/// The devices of the pool's two pods, each bound to the node with a claim of one GPU.
async fn bound<L: Lane>(suite: &Suite<L>) -> Result<Vec<String>, Error> {
    let pods = suite.json(&["-n", "models", "get", "pods", "-l", "plimsoll.dev/pool=claimed"]).await?;
    let on: Vec<&str> =
        items(&pods).iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or("no node")).collect();
    if on != [NODE, NODE] {
        let pool = suite.json(&["-n", "models", "get", "mp", "claimed"]).await?;
        return Err(format!("pods on {on:?}; {}", pool["status"]["why"]).into());
    }
    let claims = suite.json(&["-n", "models", "get", "resourceclaims"]).await?;
    let mut devices: Vec<String> = items(&claims)
        .iter()
        .filter_map(|claim| claim["status"]["allocation"]["devices"]["results"].as_array())
        .flatten()
        .filter_map(|result| result["device"].as_str().map(str::to_owned))
        .collect();
    devices.sort();
    if devices == ["gpu-0", "gpu-1"] { Ok(devices) } else { Err(format!("devices {devices:?}").into()) }
}

async fn away<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    suite.run(&["-n", "models", "delete", "mp", "claimed", "--timeout=180s", "--wait=false"]).await?;
    let gone = eventually("the claims and pods are gone", 180, || async {
        // No kubelet ends them.
        let force = ["--force", "--grace-period=0", "--ignore-not-found", "--wait=false"];
        let pods = ["-n", "models", "delete", "pods", "-l", "plimsoll.dev/pool=claimed"];
        suite.run(&[&pods[..], &force[..]].concat()).await?;
        let left =
            suite.json(&["-n", "models", "get", "mp,pods,resourceclaims,resourceclaimtemplates"]).await?;
        let name = |object: &Value| object["metadata"]["name"].as_str().map(str::to_owned);
        let of_step: Vec<String> =
            items(&left).iter().filter_map(name).filter(|name| name.starts_with("claimed")).collect();
        if of_step.is_empty() { Ok(()) } else { Err(of_step.join(", ").into()) }
    })
    .await;
    if let Err(error) = gone {
        suite.fault(error.to_string());
    }
    for object in [
        "acceleratorclass/claimed",
        &format!("resourceslice/{NODE}"),
        &format!("deviceclass/{DRIVER}"),
        &format!("node/{NODE}"),
    ] {
        suite.run(&["delete", object, "--timeout=60s"]).await?;
    }
    Ok(())
}
