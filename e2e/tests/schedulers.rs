//! Two schedulers on one etcd, each its own process: the leader is killed, then etcd, while requests stream. Nothing is
//! lost, no replica changes because of it, and plans go on.

#[cfg(test)]
#[path = "../../scheduler/tests/etcd/mod.rs"]
mod etcd;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::openai;
use plimsoll_e2e::system::Process;
use plimsoll_e2e::traffic::Traffic;
use plimsoll_e2e::{Error, eventually};
use tokio::net::{TcpListener, TcpStream};

const MODEL: &str = "llama-3.1-8b";
const CLASS: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec: {preset: l4}
";

fn pool(replicas: u32) -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {{name: small}}
spec:
  model: {{name: {MODEL}, preset: {MODEL}}}
  slo: {{ttft: {{p95: 4s}}, tpot: {{p95: 150ms}}}}
  scaling: {{min: {replicas}, max: {replicas}}}
  maxContextTokens: 16384
"
    )
}

fn free_port() -> Result<u16, Error> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "path is not UTF-8".into())
}

/// As a Service does: each connection goes to one of the backends, in turn, that takes it.
async fn service(backends: Vec<String>) -> Result<String, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (backends, next) = (Arc::new(backends), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (backends, next) = (Arc::clone(&backends), Arc::clone(&next));
            tokio::spawn(async move {
                for _ in 0..backends.len() {
                    let at = next.fetch_add(1, Ordering::Relaxed) % backends.len();
                    if let Ok(mut server) = TcpStream::connect(&backends[at]).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// One of the schedulers.
struct Candidate {
    grpc: String,
    http: String,
    process: Option<Process>,
}

impl Candidate {
    fn new() -> Result<Self, Error> {
        let address = |port: u16| format!("127.0.0.1:{port}");
        Ok(Self { grpc: address(free_port()?), http: address(free_port()?), process: None })
    }

    fn start(&mut self, name: &str, etcd: &str, dir: &Path) -> Result<(), Error> {
        let args = [
            "scheduler",
            "--listen",
            &self.grpc,
            "--http-listen",
            &self.http,
            "--etcd",
            etcd,
            "--identity",
            name,
            "--leader-lease-seconds",
            "3",
            "--replan-seconds",
            "5",
        ];
        self.process = Some(Process::start(name, &args, dir)?);
        Ok(())
    }

    async fn metric(&self, name: &str) -> Result<f64, Error> {
        let (_, body) = openai::request("GET", &format!("http://{}/metrics", self.http), "").await?;
        let line = body.lines().find_map(|l| l.strip_prefix(&format!("plimsoll_scheduler_{name} ")));
        Ok(line.ok_or_else(|| format!("no metric {name} in {body}"))?.parse()?)
    }

    async fn leads(&self) -> Result<bool, Error> {
        Ok(self.metric("leader").await? == 1.0)
    }

    async fn ready(&self) -> Result<(), Error> {
        match openai::request("GET", &format!("http://{}/readyz", self.http), "").await? {
            (200, _) => Ok(()),
            (_, why) => Err(why.into()),
        }
    }
}

/// Replicas with their phases, and the number of the plan as the pool's status has it.
async fn seen(kubectl: &Kubectl) -> Result<(Vec<(String, String)>, u64), Error> {
    let mut pods = kubectl.pods_of("small").await?;
    pods.sort();
    let status = kubectl.pool("small").await?["status"].clone();
    Ok((pods, status["plan"].as_u64().ok_or_else(|| format!("no plan in {status}"))?))
}

async fn replicas_are(kubectl: &Kubectl, wanted: usize) -> Result<(), Error> {
    eventually(&format!("{wanted} replicas serve and no others are left"), 90, || async {
        let object = kubectl.pool("small").await?;
        let pods = kubectl.pods_of("small").await?;
        if object["status"]["readyReplicas"] == wanted && pods.len() == wanted {
            Ok(())
        } else {
            Err(format!("{pods:?} {}", object["status"]).into())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_leader_or_etcd_loses_nothing_and_changes_no_replica() -> Result<(), Error> {
    let Some(mut etcd) = etcd::Etcd::start() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let path = dir.path();
    let mut cluster = Process::start(
        "devcluster",
        &["devcluster", "--dir", text(path)?, "--api-listen", "127.0.0.1:0", "--nodes", "3x1xl4"],
        path,
    )?;
    let endpoints = cluster.endpoints(path).await?;
    let mut schedulers = [Candidate::new()?, Candidate::new()?];
    schedulers[0].start("one", &etcd.url(), path)?;
    eventually("the first leads", 30, || async {
        if schedulers[0].leads().await? { Ok(()) } else { Err("not yet".into()) }
    })
    .await?;
    schedulers[1].start("two", &etcd.url(), path)?;
    eventually("the second stands by, ready", 30, || schedulers[1].ready()).await?;
    assert!(!schedulers[1].leads().await?);

    let url = format!("http://{}", service(schedulers.iter().map(|s| s.grpc.clone()).collect()).await?);
    let kubeconfig = text(&endpoints.kubeconfig)?;
    let _operator =
        Process::start("operator", &["operator", "--kubeconfig", kubeconfig, "--scheduler", &url], path)?;
    let gateway = format!("127.0.0.1:{}", free_port()?);
    let gateway_state = path.join("gateway");
    let args = ["agent", "--listen", &gateway, "--scheduler", &url, "--state", text(&gateway_state)?];
    let _gateway = Process::start("gateway", &args, path)?;
    let mut agents = Vec::new();
    for n in 1..=3 {
        let node = format!("l4-{n}");
        let args = ["agent", "--node", &node, "--listen", "127.0.0.1:0", "--scheduler", &url];
        agents.push(Process::start(&format!("agent-{node}"), &args, path)?);
    }
    let kubectl = Kubectl::connect(&endpoints).await?;
    kubectl.apply_text(CLASS).await?;
    kubectl.apply_text(&pool(2)).await?;
    replicas_are(&kubectl, 2).await?;
    let base = format!("http://{gateway}/v1");
    eventually("requests are answered", 30, || async {
        let reply = openai::chat(&base, MODEL, "hello", 4, true).await?;
        if reply.status == 200 && reply.done { Ok(()) } else { Err(reply.text.into()) }
    })
    .await?;
    // Not in the middle of a plan's arrival.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (pods, plan) = seen(&kubectl).await?;
    let routes = schedulers[0].metric("route_version").await?;
    assert!(routes > 0.0);

    // The leader, as kill -9 does.
    let traffic = Traffic::start(&base, MODEL, 6, 120);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let victim = schedulers[0].process.take().ok_or("no leader")?;
    victim.kill().await?;
    eventually("the standby leads", 15, || async {
        if schedulers[1].leads().await? { Ok(()) } else { Err("not yet".into()) }
    })
    .await?;
    let taken_over = schedulers[1].metric("route_version").await?;
    assert!(taken_over >= routes, "routes went back from {routes} to {taken_over}");
    // Time for everybody to come, and for plans that would change something.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let counts = traffic.finish().await?;
    println!("leader killed: {counts}");
    assert!(counts.whole > 0 && counts.answered > 0);
    assert!(counts.lost.is_empty() && counts.refused() == 0, "leader killed: {counts}");
    let (after, plan_after) = seen(&kubectl).await?;
    assert_eq!(pods, after, "replicas changed because the leader did");
    assert!(plan_after >= plan, "plan {plan_after} after {plan}");

    // Plans go on: one more replica, by the new leader. The one that died comes back and stands by.
    schedulers[0].start("one", &etcd.url(), path)?;
    eventually("it stands by", 30, || schedulers[0].ready()).await?;
    assert!(!schedulers[0].leads().await?, "one that comes back takes nothing from one that leads");
    kubectl.apply_text(&pool(3)).await?;
    replicas_are(&kubectl, 3).await?;
    let (pods, plan) = seen(&kubectl).await?;
    assert!(plan > plan_after, "plan {plan} after {plan_after}");

    // etcd away for longer than the lease: nobody leads, and requests flow.
    let traffic = Traffic::start(&base, MODEL, 6, 120);
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.kill();
    eventually("nobody leads", 15, || async {
        let leads = schedulers[0].leads().await? || schedulers[1].leads().await?;
        if leads { Err("one still does".into()) } else { Ok(()) }
    })
    .await?;
    let why = schedulers[1].ready().await.err().ok_or("ready without etcd")?.to_string();
    assert!(why.contains("[-]leader failed: no scheduler leads") && why.contains("etcd"), "{why}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    etcd.again();
    eventually("one leads again", 30, || async {
        let leads = schedulers[0].leads().await? || schedulers[1].leads().await?;
        if leads { Ok(()) } else { Err("not yet".into()) }
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let counts = traffic.finish().await?;
    println!("etcd killed: {counts}");
    assert!(counts.whole > 0 && counts.answered > 0);
    assert!(counts.lost.is_empty() && counts.refused() == 0, "etcd killed: {counts}");
    let (after, plan_after) = seen(&kubectl).await?;
    assert_eq!(pods, after, "replicas changed because etcd was away");
    assert!(plan_after >= plan);
    kubectl.apply_text(&pool(2)).await?;
    replicas_are(&kubectl, 2).await?;
    Ok(())
}
