//! The Kubernetes API as people use it: through the real kubectl where there is one, else by the same calls.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config, Discovery, ResourceExt};
use serde_json::Value;

use crate::Error;
use crate::system::Endpoints;

/// Oldest kubectl that is used. Older ones read OpenAPI v2 as protobuf only, which the local cluster's API does not speak.
const OLDEST_MINOR: u32 = 27;

/// A way to speak to the API.
pub struct Kubectl {
    client: Client,
    kubeconfig: PathBuf,
    binary: Result<PathBuf, String>,
}

impl Kubectl {
    /// Connects; uses the real kubectl if one of at least 1.27 is on the path and `PLIMSOLL_E2E_NO_KUBECTL` is not set.
    ///
    /// # Errors
    /// If the kubeconfig is not usable.
    pub async fn connect(endpoints: &Endpoints) -> Result<Self, Error> {
        let kubeconfig = Kubeconfig::read_from(&endpoints.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let binary = if std::env::var_os("PLIMSOLL_E2E_NO_KUBECTL").is_some() {
            Err("PLIMSOLL_E2E_NO_KUBECTL is set".to_owned())
        } else {
            usable_kubectl().await
        };
        Ok(Self { client: Client::try_from(config)?, kubeconfig: endpoints.kubeconfig.clone(), binary })
    }

    /// Connects to a cluster that brings a kubectl of its own version.
    ///
    /// # Errors
    /// If the kubeconfig is not usable.
    pub async fn of_cluster(kubeconfig: &Path, binary: &Path) -> Result<Self, Error> {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default())
                .await?;
        Ok(Self {
            client: Client::try_from(config)?,
            kubeconfig: kubeconfig.to_owned(),
            binary: Ok(binary.to_owned()),
        })
    }

    /// Connects, and makes all calls itself.
    ///
    /// # Errors
    /// If the kubeconfig is not usable.
    pub async fn without_binary(kubeconfig: &Path) -> Result<Self, Error> {
        Ok(Self {
            client: crate::apiserver::client(kubeconfig).await?,
            kubeconfig: kubeconfig.to_owned(),
            binary: Err("not wanted".to_owned()),
        })
    }

    /// `kubectl ARGS --output=json`, for example `get pods`.
    ///
    /// # Errors
    /// If there is no kubectl, or it exits with a failure.
    pub async fn json(&self, args: &[&str]) -> Result<Value, Error> {
        let mut all = args.to_vec();
        all.push("--output=json");
        Ok(serde_json::from_str(&self.kubectl(&all).await?)?)
    }

    /// Which client this is, for the run's own record.
    pub fn describe_client(&self) -> String {
        match &self.binary {
            Ok(path) => format!("real kubectl ({})", path.display()),
            Err(why) => format!("the suite's own HTTP calls ({why})"),
        }
    }

    /// Whether the real kubectl is used.
    pub fn is_real(&self) -> bool {
        self.binary.is_ok()
    }

    /// A client for direct reads.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs the real kubectl.
    ///
    /// # Errors
    /// If there is none, or it exits with a failure: what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String, Error> {
        let binary = self.binary.as_ref().map_err(String::as_str)?;
        let output = tokio::process::Command::new(binary)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(stdout)
        } else {
            Err(format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }

    /// `kubectl apply -f PATH` (a file or a folder).
    ///
    /// # Errors
    /// If a manifest is refused: the API's message.
    pub async fn apply(&self, path: &Path) -> Result<String, Error> {
        if self.is_real() {
            return self.kubectl(&["apply", "-f", path.to_str().ok_or("path is not UTF-8")?]).await;
        }
        let mut files: Vec<PathBuf> = if path.is_dir() {
            std::fs::read_dir(path)?.filter_map(|e| e.ok().map(|e| e.path())).collect()
        } else {
            vec![path.to_owned()]
        };
        files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
        files.sort();
        let mut said = String::new();
        for file in files {
            said.push_str(&self.apply_yaml(&std::fs::read_to_string(file)?).await?);
        }
        Ok(said)
    }

    /// Applies manifests given as text.
    ///
    /// # Errors
    /// If one is refused: the API's message.
    pub async fn apply_text(&self, yaml: &str) -> Result<String, Error> {
        if !self.is_real() {
            return self.apply_yaml(yaml).await;
        }
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), yaml)?;
        self.apply(file.path()).await
    }

    async fn apply_yaml(&self, yaml: &str) -> Result<String, Error> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
        let mut said = String::new();
        for document in documents.into_iter().filter(|d| !d.is_null()) {
            let object: DynamicObject = serde_json::from_value(document)?;
            let types = object.types.clone().ok_or("a manifest has no kind")?;
            let gvk = GroupVersionKind::try_from(types)?;
            let (resource, capabilities) =
                discovery.resolve_gvk(&gvk).ok_or_else(|| format!("no kind {gvk:?}"))?;
            let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
            let api: Api<DynamicObject> = match capabilities.scope {
                kube::discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
                kube::discovery::Scope::Namespaced => {
                    Api::namespaced_with(self.client.clone(), &namespace, &resource)
                }
            };
            let name = object.name_any();
            api.patch(&name, &PatchParams::apply("kubectl").force(), &Patch::Apply(&object)).await?;
            said.push_str(&format!("{}/{name} applied\n", resource.plural));
        }
        Ok(said)
    }

    /// `kubectl get RESOURCE`: the table as text, rendered by the server.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn get(&self, resource: &str, path: &str) -> Result<String, Error> {
        if self.is_real() {
            return self.kubectl(&["get", resource]).await;
        }
        let request = http::Request::get(path)
            .header("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
            .body(Vec::new())?;
        let table: Value = self.client.request(request).await?;
        let mut lines = Vec::new();
        let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
        let shown: Vec<usize> =
            (0..columns.len()).filter(|&i| columns[i]["priority"].as_i64().unwrap_or(0) == 0).collect();
        let row = |cells: &[Value], upper: bool| {
            shown
                .iter()
                .map(|&i| {
                    let text = cells.get(i).map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned));
                    let text = text.unwrap_or_default();
                    if upper { text.to_uppercase() } else { text }
                })
                .collect::<Vec<_>>()
                .join("   ")
        };
        let names: Vec<Value> = columns.iter().map(|c| c["name"].clone()).collect();
        lines.push(row(&names, true));
        for r in table["rows"].as_array().into_iter().flatten() {
            lines.push(row(r["cells"].as_array().map_or(&[], Vec::as_slice), false));
        }
        Ok(lines.join("\n"))
    }

    /// A ModelPool of namespace `default`, as JSON.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn pool(&self, name: &str) -> Result<Value, Error> {
        self.get_json(&format!("/apis/plimsoll.dev/v1alpha1/namespaces/default/modelpools/{name}")).await
    }

    /// Any object or list, as JSON.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn get_json(&self, path: &str) -> Result<Value, Error> {
        Ok(self.client.request(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// What `kubectl describe mp NAME` shows of Events: the text of describe itself, or the events' messages.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn describe_pool(&self, name: &str) -> Result<String, Error> {
        if self.is_real() {
            return self.kubectl(&["describe", "mp", name]).await;
        }
        let events = self.get_json("/api/v1/namespaces/default/events").await?;
        let mut text = String::new();
        for event in events["items"].as_array().into_iter().flatten() {
            let regarding = if event["involvedObject"].is_object() {
                &event["involvedObject"]
            } else {
                &event["regarding"]
            };
            if regarding["name"] == name {
                let said = event["message"].as_str().or_else(|| event["note"].as_str()).unwrap_or_default();
                text.push_str(&format!("{}  {said}\n", event["reason"].as_str().unwrap_or_default()));
            }
        }
        Ok(text)
    }

    /// `kubectl delete -f` of everything a folder made, by deleting the pools.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn delete_pool(&self, name: &str) -> Result<(), Error> {
        if self.is_real() {
            self.kubectl(&["delete", "mp", name, "--timeout=60s"]).await?;
            return Ok(());
        }
        let path = format!("/apis/plimsoll.dev/v1alpha1/namespaces/default/modelpools/{name}");
        let request = http::Request::delete(path).body(Vec::new())?;
        let _: Value = self.client.request(request).await?;
        Ok(())
    }

    /// Names and phases of Plimsoll's pods in namespace `default`, by pool.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn pods_of(&self, pool: &str) -> Result<Vec<(String, String)>, Error> {
        let list = self
            .get_json(&format!("/api/v1/namespaces/default/pods?labelSelector=plimsoll.dev/pool%3D{pool}"))
            .await?;
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| {
                (
                    p["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                    p["status"]["phase"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect())
    }
}

/// The items of a list.
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// A kubectl: the one on the path, else one that `scripts/kube/binaries` built.
///
/// # Errors
/// If there is none that can be used: why.
pub async fn any_kubectl() -> Result<PathBuf, String> {
    let missing = match usable_kubectl().await {
        Ok(found) => return Ok(found),
        Err(why) => why,
    };
    let cache = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let folder = cache("PLIMSOLL_CACHE")
        .or_else(|| cache("XDG_CACHE_HOME").map(|folder| folder.join("plimsoll")))
        .or_else(|| cache("HOME").map(|folder| folder.join(".cache/plimsoll")))
        .ok_or_else(|| missing.clone())?;
    let built = std::fs::read_dir(folder.join("kube")).map_err(|_| missing.clone())?;
    let mut built: Vec<PathBuf> =
        built.filter_map(|e| e.ok().map(|e| e.path().join("bin/kubectl"))).filter(|p| p.is_file()).collect();
    built.sort();
    built.pop().ok_or(missing)
}

/// The kubectl on the path, or why there is none that can be used.
async fn usable_kubectl() -> Result<PathBuf, String> {
    let path = find("kubectl").ok_or("no kubectl here")?;
    let output = tokio::process::Command::new(&path)
        .args(["version", "--client", "--output=json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("{} does not run: {e}", path.display()))?;
    let minor = client_minor(&output.stdout)
        .ok_or_else(|| format!("{} does not tell its version", path.display()))?;
    if minor < OLDEST_MINOR {
        return Err(format!("{} is 1.{minor}; 1.{OLDEST_MINOR} or newer is needed", path.display()));
    }
    Ok(path)
}

/// The minor version in what `kubectl version --client --output=json` prints; vendors write `27+`.
fn client_minor(json: &[u8]) -> Option<u32> {
    let version: Value = serde_json::from_slice(json).ok()?;
    version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse().ok()
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::var_os("PATH")?
        .to_str()?
        .split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_versions_are_read() {
        let minor = |text: &str| client_minor(text.as_bytes());
        assert_eq!(minor(r#"{"clientVersion": {"major": "1", "minor": "32"}}"#), Some(32));
        assert_eq!(minor(r#"{"clientVersion": {"major": "1", "minor": "20+"}}"#), Some(20));
        assert_eq!(minor("Client Version: v1.20.2"), None);
    }
}
