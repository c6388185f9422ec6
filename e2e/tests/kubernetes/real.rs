//! A real cluster: the one of one node that `scripts/kube` brings up, or kind's.

use std::path::Path;
use std::time::Duration;

use plimsoll_e2e::kubectl::{Kubectl, items};
use plimsoll_e2e::kubernetes::{IMAGE, Kubernetes};
use plimsoll_e2e::{Error, eventually};
use serde_json::Value;

use crate::lane::{Lane, Life};
use crate::suite::{condition, lives};

const OTHER_IMAGE: &str = "plimsoll/plimsoll:again";

/// Pods run our image under the real kubelet.
pub struct Real {
    cluster: Kubernetes,
    kubectl: Kubectl,
    nodes: Vec<String>,
}

impl Real {
    /// Brings it up.
    pub async fn start(scripts: &Path) -> Result<Self, Error> {
        let cluster = Kubernetes::start(scripts)?;
        let kubectl = cluster.kubectl().await?;
        cluster.tag_image(IMAGE, OTHER_IMAGE).await?;
        let list = kubectl.json(&["get", "nodes", "-l", "nvidia.com/gpu.product"]).await?;
        let name = |node: &Value| node["metadata"]["name"].as_str().map(str::to_owned);
        let nodes = items(&list).iter().filter_map(name).collect();
        Ok(Self { cluster, kubectl, nodes })
    }
}

/// How many pods the controllers of the release want, and what they have not done yet.
fn wanted(workloads: &[Value]) -> (u64, Vec<String>) {
    let mut behind = Vec::new();
    let mut sum = 0;
    for object in workloads {
        let (spec, status) = (&object["spec"], &object["status"]);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let (wanted, updated) = if object["kind"] == "DaemonSet" {
            (number(&status["desiredNumberScheduled"]), number(&status["updatedNumberScheduled"]))
        } else {
            (spec["replicas"].as_u64().unwrap_or(1), number(&status["updatedReplicas"]))
        };
        let seen = status["observedGeneration"] == object["metadata"]["generation"];
        if !seen || updated != wanted {
            behind.push(format!("{} is at {updated} of {wanted}", object["metadata"]["name"]));
        }
        sum += wanted;
    }
    (sum, behind)
}

impl Lane for Real {
    fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    fn nodes(&self) -> &[String] {
        &self.nodes
    }

    async fn helm(&self, args: &[&str]) -> Result<String, Error> {
        self.cluster.helm(&[args, &["--wait", "--timeout", "5m"][..]].concat()).await
    }

    async fn openai(&self) -> Result<String, Error> {
        let path = "jsonpath={.spec.clusterIP}";
        let service = ["-n", "plimsoll", "get", "service", "plimsoll-gateway", "-o", path];
        Ok(format!("http://{}/v1", self.kubectl.kubectl(&service).await?))
    }

    async fn parts(&self, component: &str) -> Result<Vec<Life>, Error> {
        let selector = format!("app.kubernetes.io/component={component}");
        lives(&self.kubectl, "plimsoll", &selector).await
    }

    async fn unsettled(&self) -> Result<Vec<String>, Error> {
        let kinds = "deployments,daemonsets,statefulsets";
        let workloads = self.kubectl.json(&["-n", "plimsoll", "get", kinds]).await?;
        let (wanted, mut behind) = wanted(items(&workloads));
        let list = self.kubectl.json(&["-n", "plimsoll", "get", "pods"]).await?;
        for pod in items(&list) {
            let metadata = &pod["metadata"];
            let stays = metadata["deletionTimestamp"].is_null();
            if !stays || condition(&pod["status"], "Ready") != "True" {
                behind.push(format!("{}{}", metadata["name"], if stays { "" } else { " (stopping)" }));
            }
        }
        if items(&list).len() as u64 != wanted {
            behind.push(format!("{} pods of {wanted}", items(&list).len()));
        }
        Ok(behind)
    }

    async fn crash_part(&self, name: &str) -> Result<(), Error> {
        self.cluster.crash(name).await
    }

    async fn delete_part(&self, name: &str) -> Result<(), Error> {
        self.kubectl.kubectl(&["-n", "plimsoll", "delete", "pod", name, "--wait=false"]).await.map(drop)
    }

    async fn crash_engine(&self, name: &str) -> Result<(), Error> {
        self.cluster.crash(name).await
    }

    async fn set_api(&self, there: bool) -> Result<(), Error> {
        self.cluster.component(&[if there { "start" } else { "kill" }, "kube-apiserver"]).await
    }

    async fn restart_kubelet(&self) -> Result<bool, Error> {
        for node in &self.nodes {
            self.cluster.component(&["restart", "kubelet", node]).await?;
        }
        // Time for it to look at every container.
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(true)
    }

    async fn set_node(&self, name: &str, there: bool) -> Result<(), Error> {
        self.cluster.component(&[if there { "start" } else { "kill" }, "kubelet", name]).await?;
        let wanted = if there { "True" } else { "Unknown" };
        eventually("the node's condition Ready follows", 180, || async {
            let node = self.kubectl.json(&["get", "node", name]).await?;
            let ready = condition(&node["status"], "Ready");
            if ready == wanted { Ok(()) } else { Err(format!("Ready is {ready}").into()) }
        })
        .await
    }

    fn has_own_controllers(&self) -> bool {
        true
    }

    fn other_image(&self) -> &'static str {
        OTHER_IMAGE
    }

    fn no_image(&self) -> Option<&'static str> {
        Some("plimsoll/plimsoll:missing")
    }

    async fn logs(&self) -> String {
        let mut all = String::new();
        for component in ["operator", "scheduler"] {
            let selector = format!("app.kubernetes.io/component={component}");
            let logs = ["-n", "plimsoll", "logs", "--prefix", "--tail=20", "-l", &selector];
            all.push_str(&self.kubectl.kubectl(&logs).await.unwrap_or_else(|e| e.to_string()));
        }
        all
    }

    async fn end(self) -> Result<Vec<String>, Error> {
        let left = self.cluster.end()?;
        Ok(left.into_iter().map(|what| format!("left on the host: {what}")).collect())
    }
}
