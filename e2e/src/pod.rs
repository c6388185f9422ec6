//! A pod of the chart as a process of this machine: started again when it ends, probed, stopped with hook and grace as a
//! kubelet does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::system::binary;
use crate::{Error, openai};

/// Time between looks at a pod's readiness.
const PROBE: Duration = Duration::from_millis(500);
/// Wait before a container that ended is started again, from the second time on.
const BACKOFF: Duration = Duration::from_secs(5);

/// What a process is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    /// End in order.
    Stop,
    /// Be gone at once: its node has lost its power.
    Cut,
}

/// What is known of a pod while its process runs.
#[derive(Debug)]
struct State {
    ready: AtomicBool,
    stopping: AtomicBool,
    restarts: AtomicU64,
    pid: Mutex<Option<u32>>,
}

/// How a pod is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name; unique.
    pub name: String,
    /// Component of the chart: `operator`, `gateway`, …
    pub component: String,
    /// Pod template that it was made from.
    pub template: Arc<Value>,
    /// Node it runs on, if it belongs to one.
    pub node: Option<String>,
    /// Its address.
    pub ip: IpAddr,
    /// Arguments of the binary.
    pub args: Vec<String>,
    /// Environment, whole.
    pub env: BTreeMap<String, String>,
    /// Folder of its own.
    pub folder: PathBuf,
}

/// A pod that runs, or is on its way out. Its process is killed when the value is dropped.
#[derive(Debug)]
pub struct Pod {
    spec: Spec,
    state: Arc<State>,
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Pod {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn start(spec: Spec) -> Result<Self, Error> {
        let program = binary()?;
        let (orders, received) = watch::channel(Order::Run);
        let state = Arc::new(State {
            ready: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            pid: Mutex::new(None),
        });
        let task = tokio::spawn(run(program, spec.clone(), Arc::clone(&state), received));
        Ok(Self { spec, state, orders, task })
    }

    /// What it was started from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether it may be sent to.
    pub fn ready(&self) -> bool {
        self.state.ready.load(Ordering::Relaxed) && !self.stopping()
    }

    /// Whether it is on its way out.
    pub fn stopping(&self) -> bool {
        self.state.stopping.load(Ordering::Relaxed)
    }

    /// Whether it has gone.
    pub fn gone(&self) -> bool {
        self.task.is_finished()
    }

    /// How often its process was started again.
    pub fn restarts(&self) -> u64 {
        self.state.restarts.load(Ordering::Relaxed)
    }

    /// Takes it out of its Services and lets it end in order.
    pub fn stop(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        self.orders.send_replace(Order::Stop);
    }

    /// Ends it at once and for good, as a power cut does.
    pub fn cut(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        self.orders.send_replace(Order::Cut);
    }

    /// Kills its process as `kill -9` does; it is started again.
    ///
    /// # Errors
    /// If none runs.
    pub fn kill(&self) -> Result<(), Error> {
        let pid = (*self.state.pid.lock()).ok_or_else(|| format!("{} has no process", self.spec.name))?;
        signal(pid, "-KILL")
    }

    /// The last lines that it printed.
    pub fn last_lines(&self, lines: usize) -> String {
        let text = std::fs::read(self.spec.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The process goes with the task that holds it.
        self.task.abort();
    }
}

fn signal(pid: u32, name: &str) -> Result<(), Error> {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(format!("kill {name} {pid} failed").into()) }
}

async fn run(program: PathBuf, spec: Spec, state: Arc<State>, mut orders: watch::Receiver<Order>) {
    loop {
        if let Ok(mut child) = spawn(&program, &spec) {
            *state.pid.lock() = child.id();
            let ended = watch_over(&spec, &state, &mut child, &mut orders).await;
            *state.pid.lock() = None;
            state.ready.store(false, Ordering::Relaxed);
            if let Err(order) = ended {
                if order == Order::Stop {
                    end(&spec, &mut child, &mut orders).await;
                }
                let _ = child.kill().await;
                return;
            }
        }
        let wait = if state.restarts.fetch_add(1, Ordering::Relaxed) == 0 { Duration::ZERO } else { BACKOFF };
        tokio::select! {
            () = sleep(wait) => {}
            _ = to_end(&mut orders) => return,
        }
    }
}

fn spawn(program: &PathBuf, spec: &Spec) -> Result<Child, Error> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(spec.folder.join("log"))?;
    Ok(Command::new(program)
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .current_dir(&spec.folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?)
}

/// Probes a process until it ends by itself, or gets an order to.
async fn watch_over(
    spec: &Spec,
    state: &State,
    child: &mut Child,
    orders: &mut watch::Receiver<Order>,
) -> Result<(), Order> {
    let mut looks = tokio::time::interval(PROBE);
    let url = readiness(spec);
    loop {
        tokio::select! {
            _ = child.wait() => return Ok(()),
            order = to_end(orders) => return Err(order),
            _ = looks.tick() => {
                let answer = timeout(Duration::from_secs(5), openai::request("GET", &url, "")).await;
                let ready = matches!(answer, Ok(Ok((200, _))));
                state.ready.store(ready, Ordering::Relaxed);
            }
        }
    }
}

/// Waits for an order to end. A dropped sender means that nobody wants the pod any more.
async fn to_end(orders: &mut watch::Receiver<Order>) -> Order {
    orders.wait_for(|order| *order != Order::Run).await.map_or(Order::Cut, |order| *order)
}

/// Hook, SIGTERM, grace.
async fn end(spec: &Spec, child: &mut Child, orders: &mut watch::Receiver<Order>) {
    let container = &spec.template["spec"]["containers"][0];
    let hook = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
    let grace = spec.template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    let in_order = async {
        sleep(Duration::from_secs(hook)).await;
        if let Some(pid) = child.id() {
            let _ = signal(pid, "-TERM");
        }
        let _ = child.wait().await;
    };
    tokio::select! {
        _ = timeout(Duration::from_secs(grace), in_order) => {}
        () = cut(orders) => {}
    }
}

async fn cut(orders: &mut watch::Receiver<Order>) {
    let _ = orders.wait_for(|order| *order == Order::Cut).await;
}

/// Where its readiness is asked for.
fn readiness(spec: &Spec) -> String {
    let container = &spec.template["spec"]["containers"][0];
    let get = &container["readinessProbe"]["httpGet"];
    let port = port(container, &get["port"]).unwrap_or_default();
    format!("http://{}{}", SocketAddr::new(spec.ip, port), get["path"].as_str().unwrap_or("/"))
}

/// A port given by number or by the name that a container has for it.
pub fn port(container: &Value, wanted: &Value) -> Option<u16> {
    let number = match wanted.as_u64() {
        Some(number) => number,
        None => {
            let ports = container["ports"].as_array()?;
            ports.iter().find(|p| p["name"] == *wanted)?["containerPort"].as_u64()?
        }
    };
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let container = json!({"ports": [{"name": "http", "containerPort": 8080}]});
        assert_eq!(port(&container, &json!("http")), Some(8080));
        assert_eq!(port(&container, &json!(9)), Some(9));
        assert_eq!(port(&container, &json!("grpc")), None);
    }
}
