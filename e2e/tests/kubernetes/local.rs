//! `plimsoll devcluster`: the in-process Kubernetes API with simulated nodes and engines. The chart's pods are processes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use plimsoll_e2e::kubectl::{Kubectl, any_kubectl};
use plimsoll_e2e::kubernetes::{find_helm, helm};
use plimsoll_e2e::relay::Relay;
use plimsoll_e2e::release::Release;
use plimsoll_e2e::system::Process;
use plimsoll_e2e::{Error, eventually};

use crate::lane::{Lane, Life};
use crate::suite::condition;

/// A cluster of three simulated nodes.
pub struct Local {
    process: Process,
    kubectl: Kubectl,
    helm: PathBuf,
    kubeconfig: PathBuf,
    /// The parts' way to the API.
    api: Relay,
    release: Release,
    nodes: Vec<String>,
    crashes: AtomicU32,
    _folder: tempfile::TempDir,
}

impl Local {
    /// Starts it, or says why it cannot be.
    pub async fn start() -> Result<Result<Self, String>, Error> {
        let helm = match find_helm().await {
            Ok(helm) => helm,
            Err(error) => {
                let why = error.to_string();
                return Ok(Err(format!("helm is not to be had: {}", why.lines().last().unwrap_or_default())));
            }
        };
        let kubectl = match any_kubectl().await {
            Ok(kubectl) => kubectl,
            Err(why) => return Ok(Err(why)),
        };
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_str().ok_or("the folder's name is not UTF-8")?;
        let args = ["devcluster", "--dir", path, "--api-listen", "127.0.0.1:0", "--nodes", "3x2xh100"];
        let mut process = Process::start("devcluster", &args, folder.path())?;
        let endpoints = process.endpoints(folder.path()).await?;
        let kubectl = Kubectl::of_cluster(&endpoints.kubeconfig, &kubectl).await?;
        // It comes with the definitions; here the chart brings them.
        kubectl.kubectl(&["delete", "crd", "--all"]).await?;
        let server: SocketAddr = endpoints.kubernetes.trim_start_matches("http://").parse()?;
        let api = Relay::start("127.0.0.1:0".parse()?, Arc::new(move || vec![server])).await?;
        let kubeconfig = folder.path().join("kubeconfig-of-parts");
        let text = std::fs::read_to_string(&endpoints.kubeconfig)?;
        std::fs::write(&kubeconfig, text.replace(&server.to_string(), &api.addr().to_string()))?;
        let parts = folder.path().join("parts");
        let release = Release::new("plimsoll", &parts, &kubeconfig);
        Ok(Ok(Self {
            process,
            kubectl,
            helm,
            kubeconfig: endpoints.kubeconfig,
            api,
            release,
            nodes: (1..=3).map(|number| format!("h100-{number}")).collect(),
            crashes: AtomicU32::new(0),
            _folder: folder,
        }))
    }
}

impl Lane for Local {
    fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    fn nodes(&self) -> &[String] {
        &self.nodes
    }

    async fn helm(&self, args: &[&str]) -> Result<String, Error> {
        let said = helm(&self.helm, &self.kubeconfig, args).await?;
        self.release.sync(&self.kubectl).await?;
        Ok(said)
    }

    async fn openai(&self) -> Result<String, Error> {
        Ok(format!("http://{}/v1", self.release.service("plimsoll-gateway", 80).await?))
    }

    async fn parts(&self, component: &str) -> Result<Vec<Life>, Error> {
        let pods = self.release.pods(component);
        Ok(pods.iter().map(|pod| (pod.spec().name.clone(), pod.restarts().to_string())).collect())
    }

    async fn unsettled(&self) -> Result<Vec<String>, Error> {
        Ok(self.release.unready())
    }

    async fn crash_part(&self, name: &str) -> Result<(), Error> {
        let component = name.rsplit_once('-').map_or(name, |(component, _)| component);
        let pods = self.release.pods(component);
        let pod = pods.iter().find(|pod| pod.spec().name == name);
        pod.ok_or_else(|| format!("no part {name}"))?.kill()
    }

    async fn delete_part(&self, name: &str) -> Result<(), Error> {
        self.release.replace(name).await
    }

    async fn crash_engine(&self, name: &str) -> Result<(), Error> {
        let word = self.crashes.fetch_add(1, Ordering::Relaxed);
        let crash = format!("devcluster.plimsoll.dev/crash={word}");
        self.kubectl
            .kubectl(&["-n", "models", "annotate", "--overwrite", "pod", name, &crash])
            .await
            .map(drop)
    }

    async fn set_api(&self, there: bool) -> Result<(), Error> {
        self.api.set_cut(!there);
        Ok(())
    }

    async fn restart_kubelet(&self) -> Result<bool, Error> {
        Ok(false)
    }

    async fn set_node(&self, name: &str, there: bool) -> Result<(), Error> {
        let power = format!("devcluster.plimsoll.dev/power={}", if there { "on" } else { "off" });
        self.kubectl.kubectl(&["annotate", "--overwrite", "node", name, &power]).await?;
        self.release.set_power(name, there).await?;
        let wanted = if there { "True" } else { "Unknown" };
        eventually("the node's condition Ready follows", 60, || async {
            let node = self.kubectl.json(&["get", "node", name]).await?;
            let ready = condition(&node["status"], "Ready");
            if ready == wanted { Ok(()) } else { Err(format!("Ready is {ready}").into()) }
        })
        .await
    }

    fn has_own_controllers(&self) -> bool {
        false
    }

    fn other_image(&self) -> &'static str {
        "plimsoll/plimsoll:again"
    }

    fn no_image(&self) -> Option<&'static str> {
        None
    }

    async fn logs(&self) -> String {
        let mut all = String::new();
        for component in ["operator", "scheduler"] {
            for pod in self.release.pods(component) {
                all.push_str(&format!("[{}]\n{}\n", pod.spec().name, pod.last_lines(20)));
            }
        }
        all
    }

    async fn end(self) -> Result<Vec<String>, Error> {
        let left = self.release.unready();
        self.process.interrupt(20).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(left.into_iter().map(|part| format!("runs on after the release is gone: {part}")).collect())
    }
}
