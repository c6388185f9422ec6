//! The parts as processes of their own, each with a certificate, none of them speaking to anybody without one.

#[path = "../../proto/tests/tls/certs.rs"]
mod certs;

use std::path::Path;
use std::time::Duration;

use certs::Authority;
use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{Process, binary};
use plimsoll_e2e::{Error, eventually, openai};

const OBJECTS: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec: {preset: l4}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: small}
spec:
  model: {name: llama-3.1-8b, preset: llama-3.1-8b}
  slo: {ttft: {p95: 4s}, tpot: {p95: 150ms}}
  scaling: {min: 1, max: 1}
  maxContextTokens: 16384
";

fn free_address() -> Result<String, Error> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "path is not UTF-8".into())
}

fn name(part: &str) -> String {
    format!("plimsoll-{part}.plimsoll.svc")
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_with_certificates_serve_and_take_up_renewed_ones() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let authority = Authority::new("ours");
    let folder = |part: &str| -> Result<String, Error> {
        let folder = dir.path().join("certificates").join(part);
        std::fs::create_dir_all(&folder)?;
        authority.fill(&folder, &name(part));
        Ok(text(&folder)?.to_owned())
    };
    let cluster_args =
        ["devcluster", "--dir", text(dir.path())?, "--api-listen", "127.0.0.1:0", "--nodes", "1x1xl4"];
    let mut cluster = Process::start("devcluster", &cluster_args, dir.path())?;
    let endpoints = cluster.endpoints(dir.path()).await?;
    let (scheduler, gateway, http) = (free_address()?, free_address()?, free_address()?);
    let url = format!("http://{scheduler}");
    let (scheduler_name, agent_name) = (name("scheduler"), name("agent"));
    let [of_scheduler, of_operator, of_agent, of_gateway] =
        [folder("scheduler")?, folder("operator")?, folder("agent")?, folder("gateway")?];
    let all = ["scheduler", "operator", "agent", "gateway"].map(name).join(",");
    let peers = ["agent", "gateway"].map(name).join(",");
    let state = dir.path().join("state");

    let mut parts = Vec::new();
    let mut start = |part: &str, args: &[&str]| -> Result<(), Error> {
        parts.push(Process::start(part, args, dir.path())?);
        Ok(())
    };
    let tls = |folder| ["--tls-dir", folder, "--tls-scheduler-name", scheduler_name.as_str()];
    let args = ["scheduler", "--listen", &scheduler, "--http-listen", &http, "--tls-allow", &all];
    start("scheduler", &[&args[..], &tls(&of_scheduler)].concat())?;
    let args = ["operator", "--kubeconfig", text(&endpoints.kubeconfig)?, "--scheduler", &url];
    start("operator", &[&args[..], &tls(&of_operator)].concat())?;
    let common =
        ["agent", "--scheduler", &url, "--no-direct", "--tls-agent-name", &agent_name, "--tls-allow", &peers];
    let args = ["--listen", &gateway, "--state", text(&state)?];
    start("gateway", &[&common[..], &args[..], &tls(&of_gateway)].concat())?;
    let args = ["--node", "l4-1", "--listen", "127.0.0.1:0", "--peers-only"];
    start("agent", &[&common[..], &args[..], &tls(&of_agent)].concat())?;

    Kubectl::connect(&endpoints).await?.apply_text(OBJECTS).await?;
    let base = format!("http://{gateway}/v1");
    let serves = async || -> Result<(), Error> {
        let reply = openai::chat(&base, "llama-3.1-8b", "hello", 4, true).await?;
        let whole = reply.status == 200 && reply.done && reply.error.is_none();
        if whole { Ok(()) } else { Err(format!("{} {}", reply.status, reply.text).into()) }
    };
    eventually("the pool serves, through its agent alone", 90, &serves).await?;
    // The scheduler reaches itself, too.
    eventually("the scheduler is ready", 30, || async {
        let (status, said) = openai::request("GET", &format!("http://{http}/readyz"), "").await?;
        if status == 200 { Ok(()) } else { Err(said.into()) }
    })
    .await?;

    let explain = async |more: &[&str]| -> Result<std::process::Output, Error> {
        let args = [&["explain", "small", "--scheduler", &url][..], more].concat();
        Ok(tokio::process::Command::new(binary()?).args(args).output().await?)
    };
    let said = explain(&tls(&of_operator)).await?;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said = explain(&[]).await?;
    assert!(!said.status.success(), "whoever shows no certificate is told");
    let stranger = folder("engine")?;
    let said = explain(&tls(&stranger)).await?;
    assert!(!said.status.success(), "one of the authority who has no business here is told");

    // Renewed by the same authority, under way: requests flow, and what starts now trusts what runs.
    for part in ["scheduler", "operator", "agent", "gateway"] {
        folder(part)?;
    }
    for _ in 0..40 {
        serves().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let log = std::fs::read_to_string(dir.path().join("scheduler.out"))?;
    assert!(log.contains("new connections use the new certificate"), "{log}");
    let said = explain(&tls(&of_operator)).await?;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}
