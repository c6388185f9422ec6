//! Each part as its own process, killed while requests stream: nothing that an engine began to answer is lost, and the
//! system settles again by itself.

use std::path::Path;
use std::time::Duration;

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::openai::{self, Reply};
use plimsoll_e2e::system::{Endpoints, Process};
use plimsoll_e2e::{Error, eventually};

const POOL: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: small}
spec:
  model: {name: llama-3.1-8b, preset: llama-3.1-8b}
  slo: {ttft: {p95: 4s}, tpot: {p95: 150ms}}
  scaling: {min: 2, max: 2}
  maxContextTokens: 16384
";

const CLASS: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec: {preset: l4}
";

struct Parts {
    dir: tempfile::TempDir,
    endpoints: Endpoints,
    scheduler_addr: String,
    _cluster: Process,
    scheduler: Option<Process>,
    operator: Option<Process>,
    gateway: Option<Process>,
    gateway_addr: String,
    agents: Vec<Option<Process>>,
}

fn free_port() -> Result<u16, Error> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "path is not UTF-8".into())
}

impl Parts {
    async fn start() -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        let mut cluster = Process::start(
            "devcluster",
            &["devcluster", "--dir", text(dir.path())?, "--api-listen", "127.0.0.1:0", "--nodes", "2x1xl4"],
            dir.path(),
        )?;
        let endpoints = cluster.endpoints(dir.path()).await?;
        let mut parts = Self {
            scheduler_addr: format!("127.0.0.1:{}", free_port()?),
            gateway_addr: format!("127.0.0.1:{}", free_port()?),
            dir,
            endpoints,
            _cluster: cluster,
            scheduler: None,
            operator: None,
            gateway: None,
            agents: vec![None, None],
        };
        parts.start_scheduler()?;
        parts.start_operator()?;
        parts.start_gateway()?;
        parts.start_agent(0)?;
        parts.start_agent(1)?;
        Ok(parts)
    }

    fn scheduler_url(&self) -> String {
        format!("http://{}", self.scheduler_addr)
    }

    fn start_scheduler(&mut self) -> Result<(), Error> {
        let data = self.dir.path().join("scheduler");
        let args =
            ["scheduler", "--listen", &self.scheduler_addr, "--data", text(&data)?, "--replan-seconds", "5"];
        self.scheduler = Some(Process::start("scheduler", &args, self.dir.path())?);
        Ok(())
    }

    fn start_operator(&mut self) -> Result<(), Error> {
        let url = self.scheduler_url();
        let args = ["operator", "--kubeconfig", text(&self.endpoints.kubeconfig)?, "--scheduler", &url];
        self.operator = Some(Process::start("operator", &args, self.dir.path())?);
        Ok(())
    }

    fn start_gateway(&mut self) -> Result<(), Error> {
        let state = self.dir.path().join("gateway");
        let url = self.scheduler_url();
        let args = ["agent", "--listen", &self.gateway_addr, "--scheduler", &url, "--state", text(&state)?];
        self.gateway = Some(Process::start("gateway", &args, self.dir.path())?);
        Ok(())
    }

    fn start_agent(&mut self, index: usize) -> Result<(), Error> {
        let node = format!("l4-{}", index + 1);
        let state = self.dir.path().join(&node);
        let url = self.scheduler_url();
        let args = [
            "agent",
            "--node",
            &node,
            "--listen",
            "127.0.0.1:0",
            "--scheduler",
            &url,
            "--state",
            text(&state)?,
        ];
        self.agents[index] = Some(Process::start(&format!("agent-{node}"), &args, self.dir.path())?);
        Ok(())
    }

    fn openai(&self) -> String {
        format!("http://{}/v1", self.gateway_addr)
    }

    async fn ask(&self, tokens: u32) -> Result<Reply, Error> {
        openai::chat(&self.openai(), "llama-3.1-8b", "hello", tokens, true).await
    }

    async fn settled(&self, what: &str) -> Result<(), Error> {
        eventually(what, 60, || async {
            let reply = self.ask(4).await?;
            if reply.status == 200 && reply.done && reply.error.is_none() {
                Ok(())
            } else {
                Err(format!("{} {}", reply.status, reply.text).into())
            }
        })
        .await
    }
}

/// Twelve long streams in flight, started a moment before `disturb` runs; their answers.
async fn streams_during<F, Fut>(base: &str, disturb: F) -> Result<Vec<Reply>, Error>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let mut streams = Vec::new();
    for i in 0..12 {
        let base = base.to_owned();
        streams.push(tokio::spawn(async move {
            openai::chat(&base, "llama-3.1-8b", &format!("story {i}"), 150, true).await
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    disturb().await?;
    let mut replies = Vec::new();
    for stream in streams {
        replies.push(stream.await??);
    }
    Ok(replies)
}

fn all_whole(replies: &[Reply], what: &str) {
    for reply in replies {
        assert!(
            reply.status == 200 && reply.done && reply.error.is_none(),
            "{what}: a stream was lost: {} {:?} {}",
            reply.status,
            reply.error,
            reply.text.chars().rev().take(300).collect::<Vec<_>>().into_iter().rev().collect::<String>()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_any_part_loses_nothing_begun_and_the_system_settles() -> Result<(), Error> {
    let mut parts = Parts::start().await?;
    let kubectl = Kubectl::connect(&parts.endpoints).await?;
    kubectl.apply_text(CLASS).await?;
    kubectl.apply_text(POOL).await?;
    parts.settled("the pool serves").await?;
    eventually("both replicas are ready", 60, || async {
        let object = kubectl.pool("small").await?;
        if object["status"]["readyReplicas"] == 2 { Ok(()) } else { Err(object["status"].to_string().into()) }
    })
    .await?;
    let mut pods = kubectl.pods_of("small").await?;
    pods.sort();

    // The scheduler: requests flow on the last routes; restarted, it goes on from its store.
    let base = parts.openai();
    let victim = parts.scheduler.take().ok_or("no scheduler")?;
    let replies = streams_during(&base, || victim.kill()).await?;
    all_whole(&replies, "scheduler killed");
    let reply = parts.ask(4).await?;
    assert_eq!(reply.status, 200, "requests flow while the scheduler is down: {}", reply.text);
    parts.start_scheduler()?;
    parts.settled("after the scheduler's restart").await?;

    // The operator: pods stay; restarted, it makes no second ones.
    let victim = parts.operator.take().ok_or("no operator")?;
    let replies = streams_during(&base, || victim.kill()).await?;
    all_whole(&replies, "operator killed");
    parts.start_operator()?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let mut after = kubectl.pods_of("small").await?;
    after.sort();
    assert_eq!(pods, after, "replicas were duplicated or lost");

    // A node's agent: the gateway carries its streams on, straight from the engine or at another one; new requests go
    // around it at once.
    let victim = parts.agents[0].take().ok_or("no agent")?;
    let replies = streams_during(&base, || victim.kill()).await?;
    all_whole(&replies, "agent killed");
    for reply in &replies {
        assert!(reply.pieces >= 140, "a stream is short: {} pieces", reply.pieces);
    }
    for _ in 0..10 {
        let reply = parts.ask(4).await?;
        assert!(reply.status == 200 && reply.done, "with an agent down: {} {}", reply.status, reply.text);
    }
    parts.start_agent(0)?;
    parts.settled("after the agent's restart").await?;

    // The gateway, with the scheduler down: it starts from the route table on its disk.
    let victim = parts.scheduler.take().ok_or("no scheduler")?;
    victim.kill().await?;
    let victim = parts.gateway.take().ok_or("no gateway")?;
    victim.kill().await?;
    parts.start_gateway()?;
    parts.settled("a gateway restarted without a scheduler").await?;
    parts.start_scheduler()?;
    parts.settled("at the end").await?;
    Ok(())
}
