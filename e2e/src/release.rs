//! The parts of a Helm release on `devcluster`, which runs no pods but engines'. Each pod of the release's Deployments and
//! DaemonSets is a process here ([`Pod`]) with an address of its own and the arguments and environment of its template;
//! each Service a [`Relay`] to the ready ones. Deployments roll with one pod more, or all at once where they say Recreate.
//!
//! Left out: volumes other than folders and Secrets, and whatever a container's isolation is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use serde_json::Value;

use crate::kubectl::{Kubectl, items};
use crate::pod::{self, Pod, Spec};
use crate::relay::Relay;
use crate::{Error, eventually};

/// Longest time for a pod to become ready, or to go: gateways may finish their answers for minutes.
const PATIENCE_SECONDS: u64 = 330;

type Pods = Arc<Mutex<Vec<Arc<Pod>>>>;

/// A Deployment or DaemonSet.
#[derive(Debug)]
struct Workload {
    component: String,
    /// Nodes of a DaemonSet; places without a node of a Deployment.
    places: Vec<Option<String>>,
    template: Arc<Value>,
    recreate: bool,
}

/// The processes of a release.
#[derive(Debug)]
pub struct Release {
    namespace: String,
    folder: PathBuf,
    /// Kubeconfig of pods that have an account.
    kubeconfig: PathBuf,
    pods: Pods,
    services: tokio::sync::Mutex<BTreeMap<(String, u64), Relay>>,
    /// Nodes without power.
    dark: Mutex<Vec<String>>,
    number: AtomicU32,
}

impl Release {
    /// A release in `namespace`, with its files in `folder`; nothing runs yet.
    pub fn new(namespace: &str, folder: &Path, kubeconfig: &Path) -> Self {
        Self {
            namespace: namespace.to_owned(),
            folder: folder.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            pods: Pods::default(),
            services: tokio::sync::Mutex::default(),
            dark: Mutex::default(),
            number: AtomicU32::new(0),
        }
    }

    /// Makes processes and relays what the cluster's objects say, as its controllers would; waits until they are.
    ///
    /// # Errors
    /// If the objects cannot be read, or a part does not become ready in time.
    pub async fn sync(&self, kubectl: &Kubectl) -> Result<(), Error> {
        self.sync_services(kubectl).await?;
        self.sync_secrets(kubectl).await?;
        let workloads = self.workloads(kubectl).await?;
        for pod in self.staying(|_| true) {
            if !workloads.iter().any(|w| w.component == pod.spec().component) {
                pod.stop();
            }
        }
        // All that is missing starts side by side; what is outdated then goes one by one.
        for workload in &workloads {
            self.fill(workload).await?;
        }
        for workload in &workloads {
            self.roll(workload).await?;
        }
        self.settled().await
    }

    /// Waits until every pod that stays is ready and all others are gone.
    ///
    /// # Errors
    /// If that does not happen in time: which pods are not.
    pub async fn settled(&self) -> Result<(), Error> {
        eventually("the parts are ready", PATIENCE_SECONDS, || async {
            let unready = self.unready();
            if unready.is_empty() { Ok(()) } else { Err(unready.join(", ").into()) }
        })
        .await
    }

    /// Pods that are not ready, or not gone yet.
    pub fn unready(&self) -> Vec<String> {
        let mut pods = self.pods.lock();
        pods.retain(|pod| !pod.gone());
        pods.iter()
            .filter(|pod| !pod.ready())
            .map(|pod| format!("{}{}", pod.spec().name, if pod.stopping() { " (stopping)" } else { "" }))
            .collect()
    }

    /// The pods of a component, besides those about to go.
    pub fn pods(&self, component: &str) -> Vec<Arc<Pod>> {
        self.staying(|pod| pod.spec().component == component)
    }

    /// Lets a pod end in order; another takes its place at once, as its controller would see to.
    ///
    /// # Errors
    /// If there is no such pod, or no other can be started.
    pub async fn replace(&self, name: &str) -> Result<(), Error> {
        let pod =
            self.staying(|pod| pod.spec().name == name).pop().ok_or_else(|| format!("no pod {name}"))?;
        let place = pod.spec().node.clone();
        pod.stop();
        if place.is_some() {
            // A DaemonSet's next pod waits until the place is free.
            self.until_gone(std::slice::from_ref(&pod)).await?;
        }
        self.start(&pod.spec().component, &pod.spec().template, place).await
    }

    /// Cuts the power of a node's pods, or gives it back.
    ///
    /// # Errors
    /// If a pod cannot be started again.
    pub async fn set_power(&self, node: &str, on: bool) -> Result<(), Error> {
        let of_node = |pod: &Pod| pod.spec().node.as_deref() == Some(node);
        if !on {
            self.dark.lock().push(node.to_owned());
            for pod in self.staying(of_node) {
                pod.cut();
            }
            return Ok(());
        }
        self.dark.lock().retain(|dark| dark != node);
        let templates: BTreeMap<String, Arc<Value>> = {
            let pods = self.pods.lock();
            let placed = pods.iter().filter(|pod| pod.spec().node.is_some());
            placed.map(|pod| (pod.spec().component.clone(), Arc::clone(&pod.spec().template))).collect()
        };
        for (component, template) in templates {
            self.start(&component, &template, Some(node.to_owned())).await?;
        }
        Ok(())
    }

    /// Address of a Service's port, `host:port`.
    ///
    /// # Errors
    /// If there is no such Service or port.
    pub async fn service(&self, name: &str, port: u64) -> Result<SocketAddr, Error> {
        let services = self.services.lock().await;
        let relay = services.get(&(name.to_owned(), port));
        Ok(relay.ok_or_else(|| format!("no Service {name} with port {port}"))?.addr())
    }

    fn staying(&self, wanted: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock();
        pods.iter().filter(|pod| !pod.stopping() && wanted(pod)).cloned().collect()
    }

    async fn until_gone(&self, pods: &[Arc<Pod>]) -> Result<(), Error> {
        eventually("pods are gone", PATIENCE_SECONDS, || async {
            let left: Vec<&str> = pods.iter().filter(|p| !p.gone()).map(|p| p.spec().name.as_str()).collect();
            if left.is_empty() { Ok(()) } else { Err(left.join(", ").into()) }
        })
        .await
    }

    async fn workloads(&self, kubectl: &Kubectl) -> Result<Vec<Workload>, Error> {
        let nodes = kubectl.json(&["get", "nodes"]).await?;
        let nodes: Vec<String> = items(&nodes)
            .iter()
            .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
            .filter(|node| !self.dark.lock().contains(node))
            .collect();
        let list = kubectl.json(&["-n", &self.namespace, "get", "deployments,daemonsets"]).await?;
        items(&list)
            .iter()
            .map(|object| {
                let spec = &object["spec"];
                let places = if object["kind"] == "DaemonSet" {
                    nodes.iter().cloned().map(Some).collect()
                } else {
                    vec![None; usize::try_from(spec["replicas"].as_u64().unwrap_or(1))?]
                };
                Ok(Workload {
                    component: component(&spec["selector"]["matchLabels"])?,
                    places,
                    template: Arc::new(spec["template"].clone()),
                    recreate: spec["strategy"]["type"] == "Recreate",
                })
            })
            .collect()
    }

    /// Starts pods in places that have none.
    async fn fill(&self, workload: &Workload) -> Result<(), Error> {
        let mut free = workload.places.clone();
        for pod in self.pods(&workload.component) {
            match free.iter().position(|place| *place == pod.spec().node) {
                Some(taken) => drop(free.swap_remove(taken)),
                None => pod.stop(),
            }
        }
        for place in free {
            self.start(&workload.component, &workload.template, place).await?;
        }
        Ok(())
    }

    /// Replaces pods of another template.
    async fn roll(&self, workload: &Workload) -> Result<(), Error> {
        let outdated = self.staying(|pod| {
            pod.spec().component == workload.component && pod.spec().template != workload.template
        });
        if workload.recreate {
            outdated.iter().for_each(|pod| pod.stop());
            self.until_gone(&outdated).await?;
        }
        for pod in outdated {
            let place = pod.spec().node.clone();
            if place.is_some() {
                pod.stop();
                self.until_gone(std::slice::from_ref(&pod)).await?;
            }
            self.start(&workload.component, &workload.template, place).await?;
            eventually(&format!("a new {} is ready", workload.component), PATIENCE_SECONDS, || async {
                let waiting = self.pods(&workload.component).iter().any(|pod| !pod.ready());
                if waiting { Err("it is not".into()) } else { Ok(()) }
            })
            .await?;
            if !pod.stopping() {
                pod.stop();
            }
        }
        Ok(())
    }

    async fn start(&self, component: &str, template: &Arc<Value>, node: Option<String>) -> Result<(), Error> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("{component}-{number}");
        let folder = self.folder.join(&name);
        std::fs::create_dir_all(&folder)?;
        let ip = address(number);
        let services = self.services.lock().await;
        let values = Values {
            release: self,
            services: &services,
            template,
            name: &name,
            node: node.as_deref(),
            ip,
            folder: &folder,
        };
        let spec = Spec {
            args: values.args()?,
            env: values.env()?,
            name: name.clone(),
            component: component.to_owned(),
            template: Arc::clone(template),
            ip,
            folder: folder.clone(),
            node: node.clone(),
        };
        self.pods.lock().push(Arc::new(Pod::start(spec)?));
        Ok(())
    }

    /// Keeps a folder for each Secret, for the pods that mount it.
    async fn sync_secrets(&self, kubectl: &Kubectl) -> Result<(), Error> {
        let list = kubectl.json(&["-n", &self.namespace, "get", "secrets"]).await?;
        for object in items(&list) {
            let folder = self.secret(object["metadata"]["name"].as_str().unwrap_or_default());
            std::fs::create_dir_all(&folder)?;
            for (file, data) in object["data"].as_object().into_iter().flatten() {
                let bytes = BASE64_STANDARD.decode(data.as_str().unwrap_or_default())?;
                if std::fs::read(folder.join(file)).ok().as_ref() != Some(&bytes) {
                    std::fs::write(folder.join(file), bytes)?;
                }
            }
        }
        Ok(())
    }

    fn secret(&self, name: &str) -> PathBuf {
        self.folder.join("secrets").join(name)
    }

    async fn sync_services(&self, kubectl: &Kubectl) -> Result<(), Error> {
        let list = kubectl.json(&["-n", &self.namespace, "get", "services"]).await?;
        let mut services = self.services.lock().await;
        let mut wanted = Vec::new();
        for object in items(&list) {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let component = component(&object["spec"]["selector"])?;
            for port in object["spec"]["ports"].as_array().into_iter().flatten() {
                let key = (name.to_owned(), port["port"].as_u64().unwrap_or_default());
                wanted.push(key.clone());
                if services.contains_key(&key) {
                    continue;
                }
                let (pods, component, target) =
                    (Arc::clone(&self.pods), component.clone(), port["targetPort"].clone());
                let targets = move || {
                    let of = |pod: &&Arc<Pod>| pod.spec().component == component && pod.ready();
                    let address = |pod: &Arc<Pod>| {
                        let container = &pod.spec().template["spec"]["containers"][0];
                        pod::port(container, &target).map(|port| SocketAddr::new(pod.spec().ip, port))
                    };
                    pods.lock().iter().filter(of).filter_map(address).collect()
                };
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                // Ports below 1024 are root's.
                let own = u16::try_from(key.1).ok().filter(|port| *port >= 1024).unwrap_or(0);
                let relay = Relay::start(SocketAddr::new(address(number), own), Arc::new(targets)).await?;
                services.insert(key, relay);
            }
        }
        services.retain(|key, _| wanted.contains(key));
        Ok(())
    }
}

/// A loopback address for the `number`th pod or Service of this test process. Engines of `devcluster` have those of
/// 127.64.0.0/10.
fn address(number: u32) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let [.., own] = (number % 250 + 2).to_be_bytes();
    Ipv4Addr::new(127, 16 + high % 48, low, own).into()
}

/// The chart's component that a selector means.
fn component(selector: &Value) -> Result<String, Error> {
    let label = selector["app.kubernetes.io/component"].as_str();
    Ok(label.ok_or_else(|| format!("the selector {selector} names no component"))?.to_owned())
}

/// What a template's texts mean for one pod.
struct Values<'a> {
    release: &'a Release,
    services: &'a BTreeMap<(String, u64), Relay>,
    template: &'a Value,
    name: &'a str,
    node: Option<&'a str>,
    ip: IpAddr,
    folder: &'a Path,
}

impl Values<'_> {
    fn container(&self) -> &Value {
        &self.template["spec"]["containers"][0]
    }

    fn args(&self) -> Result<Vec<String>, Error> {
        let args = self.container()["args"].as_array().into_iter().flatten();
        args.map(|arg| self.local(arg.as_str().unwrap_or_default())).collect()
    }

    fn env(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut env = BTreeMap::new();
        for variable in self.container()["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap_or_default();
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => self.name.to_owned(),
                Some("metadata.namespace") => self.release.namespace.clone(),
                Some("status.podIP") => self.ip.to_string(),
                Some("spec.nodeName") => self.node.unwrap_or_default().to_owned(),
                Some(other) => return Err(format!("{}: no value for field {other}", self.name).into()),
                None => self.local(variable["value"].as_str().unwrap_or_default())?,
            };
            env.insert(name.to_owned(), value);
        }
        if self.template["spec"]["automountServiceAccountToken"] == true {
            let path = self.release.kubeconfig.to_str().ok_or("the kubeconfig's path is not UTF-8")?;
            env.insert("KUBECONFIG".to_owned(), path.to_owned());
        }
        Ok(env)
    }

    /// A text with addresses and paths of this machine: the pod's for any, Services' for their names, folders for mounts.
    fn local(&self, text: &str) -> Result<String, Error> {
        let mut text = text.replace("0.0.0.0", &self.ip.to_string());
        for ((service, port), relay) in self.services {
            for suffix in ["svc.cluster.local", "svc"] {
                let name = format!("{service}.{}.{suffix}:{port}", self.release.namespace);
                text = text.replace(&name, &relay.addr().to_string());
            }
        }
        for mount in self.container()["volumeMounts"].as_array().into_iter().flatten() {
            let path = mount["mountPath"].as_str().unwrap_or_default();
            if path.is_empty() || !text.contains(path) {
                continue;
            }
            let folder = self.volume(&mount["name"])?;
            text = text.replace(path, folder.to_str().ok_or("a folder's path is not UTF-8")?);
        }
        Ok(text)
    }

    /// The folder of a volume: a claim's outlives its pods.
    fn volume(&self, name: &Value) -> Result<PathBuf, Error> {
        let volumes = self.template["spec"]["volumes"].as_array().into_iter().flatten();
        let volume = volumes.into_iter().find(|volume| volume["name"] == *name);
        let volume = volume.ok_or_else(|| format!("{}: no volume {name}", self.name))?;
        let folder = match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => self.release.folder.join("claims").join(claim),
            None if volume["emptyDir"].is_object() => {
                self.folder.join("volumes").join(name.as_str().unwrap_or_default())
            }
            None if volume["secret"].is_object() => {
                let name = volume["secret"]["secretName"].as_str().unwrap_or_default();
                let folder = self.release.secret(name);
                if !folder.is_dir() {
                    return Err(format!("{}: no Secret {name}", self.name).into());
                }
                folder
            }
            None => {
                return Err(format!("{}: a volume of a kind that is no folder: {volume}", self.name).into());
            }
        };
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}
