//! How the operator and the scheduler do on a large fleet: `make scale`.
//!
//! Starts a real API server (etcd and kube-apiserver on loopback), fills it with nodes, runs `plimsoll operator` and
//! `plimsoll scheduler` as processes, and measures what docs/benchmarks.md tells of. There is no kubelet: pods count when
//! they are created.

mod fleet;
mod pools;
mod report;
mod seen;

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::Client;
use kube::api::{Api, PostParams};
use plimsoll_e2e::Error;
use plimsoll_e2e::apiserver::{ApiServer, client};
use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::system::{self, Process};
use serde_json::{Value, json};
use tokio::time::Instant;

use report::{Line, Times};
use seen::{Pool, Seen};

/// Longest time anything may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Time over which the operator must have been calm to count as settled.
const CALM: Duration = Duration::from_secs(15);
/// Requests a second up to which it is calm.
const CALM_RATE: f64 = 2.0;

/// Measure a large fleet on a real API server
#[derive(Debug, clap::Parser)]
struct Args {
    /// ModelPools
    #[arg(long, default_value_t = 500)]
    pools: usize,
    /// Nodes
    #[arg(long, default_value_t = 2000)]
    nodes: usize,
    /// Changes made one at a time
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Seconds over which requests are counted once all is settled
    #[arg(long, default_value_t = 180)]
    settled_seconds: u64,
    /// Pools applied at one time in the burst
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
    /// Keep the programs' logs in this folder
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args = Args::parse();
    let server = ApiServer::start().await?;
    let admin = client(&server.administrator()).await?;
    eprintln!("the API server is up; making {} nodes", args.nodes);
    prepare(&server, &admin, args.nodes).await?;
    let mut parts = Parts::start(&server).await?;
    let outcome = measure(&args, &server, &admin, &mut parts).await;
    if let Some(folder) = &args.logs {
        std::fs::create_dir_all(folder)?;
        for name in ["operator.out", "scheduler.out", "kube-apiserver.out", "audit.log"] {
            std::fs::copy(server.folder().join(name), folder.join(name))?;
        }
    }
    let lines = outcome?;
    print!("{}", report::table(&lines));
    let missed = lines.iter().filter(|l| l.met == Some(false)).count();
    if missed > 0 { Err(format!("{missed} figures miss their target").into()) } else { Ok(()) }
}

/// The programs under test.
struct Parts {
    operator: Process,
    scheduler: Process,
}

impl Parts {
    async fn start(server: &ApiServer) -> Result<Self, Error> {
        let dir = server.folder();
        let [grpc, scheduler_http, operator_http] = [(); 3].map(|()| plimsoll_e2e::apiserver::free_address());
        let (grpc, scheduler_http, operator_http) = (grpc?, scheduler_http?, operator_http?);
        let data = dir.join("scheduler").display().to_string();
        let scheduler = ["scheduler", "--listen", &grpc, "--http-listen", &scheduler_http, "--data", &data];
        let scheduler = Process::start("scheduler", &scheduler, dir)?;
        let (kubeconfig, url) = (server.account().display().to_string(), format!("http://{grpc}"));
        let operator =
            ["operator", "--kubeconfig", &kubeconfig, "--scheduler", &url, "--http-listen", &operator_http];
        let mut operator = Process::start("operator", &operator, dir)?;
        plimsoll_e2e::eventually("the operator leads", 60, || {
            let (leads, alive) = (operator.output().contains("leading"), operator.alive());
            async move { if leads && alive { Ok(()) } else { Err("not yet".into()) } }
        })
        .await?;
        Ok(Self { operator, scheduler })
    }
}

/// Definitions, classes, namespaces and nodes.
async fn prepare(server: &ApiServer, admin: &Client, nodes: usize) -> Result<(), Error> {
    let kubectl = Kubectl::without_binary(&server.administrator()).await?;
    kubectl.apply_text(&system::run(&["crds"]).await?).await?;
    let classes = fleet::PRESETS.map(|preset| {
        json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass", "metadata": {"name": preset},
            "spec": {"preset": preset}})
    });
    plimsoll_e2e::eventually("the definitions are served", 30, || {
        let text = classes.each_ref().map(Value::to_string).join("\n---\n");
        let kubectl = &kubectl;
        async move { kubectl.apply_text(&text).await.map(drop) }
    })
    .await?;
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    for i in 0..fleet::NAMESPACES {
        let namespace = json!({"metadata": {"name": fleet::namespace(i)}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    }
    let api: Api<Node> = Api::all(admin.clone());
    futures::stream::iter(0..nodes)
        .map(|i| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &serde_json::from_value(fleet::node(i))?).await?;
                Ok::<_, Error>(())
            }
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
}

async fn measure(
    args: &Args,
    server: &ApiServer,
    admin: &Client,
    parts: &mut Parts,
) -> Result<Vec<Line>, Error> {
    let mut seen = Seen::start(admin);
    let mut lines = Vec::new();
    let cpu = |parts: &Parts| -> Result<(f64, f64), Error> {
        Ok((parts.operator.cpu_seconds()?, parts.scheduler.cpu_seconds()?))
    };
    let before = cpu(parts)?;

    eprintln!("applying {} pools at once", args.pools);
    let began = Instant::now();
    let applied = burst(args, admin).await?;
    eprintln!("accepted by the API within {:.1} s", began.elapsed().as_secs_f64());
    for (name, (generation, _)) in &applied {
        seen.wait(name, LIMIT, |pool| complete(pool, *generation)).await?;
    }
    let settling = Instant::now();
    let offset = settle(server).await?;
    eprintln!("settled {:.0} s later", settling.elapsed().as_secs_f64());
    let (pools, mut times) = (seen.now(), Times::default());
    let mut pods = 0;
    for (name, (generation, at)) in &applied {
        let pool = pools.get(name).ok_or_else(|| format!("{name} was never seen"))?;
        let (_, _, desired) = pool.planned.ok_or_else(|| format!("{name} has no plan"))?;
        let created = pool.first(*at, |n| n >= desired).filter(|_| complete(pool, *generation).is_some());
        times.add(*at, created.ok_or_else(|| format!("{name} lacks pods: {pool:?}"))?);
        pods += desired;
    }
    let after = cpu(parts)?;
    eprintln!(
        "CPU seconds since the burst began: operator {:.1}, scheduler {:.1}",
        after.0 - before.0,
        after.1 - before.1
    );
    let (plans, slowest_ms) = report::plans(&parts.scheduler.output());
    eprintln!("{plans} plans, the slowest took {slowest_ms:.0} ms");
    lines
        .push(times.line(format!("{} pools ({pods} pods) at once: apply → its pods", args.pools), Some(5.0)));

    eprintln!("counting requests for {} s", args.settled_seconds);
    tokio::time::sleep(Duration::from_secs(args.settled_seconds)).await;
    let (requests, _) = server.requests(offset)?;
    lines.extend(report::requests(&requests, args.settled_seconds as f64, 5.0));
    for (name, process, target) in
        [("operator", &parts.operator, Some(300.0)), ("scheduler", &parts.scheduler, None)]
    {
        lines.push(report::memory(
            format!("{name}, resident memory settled / peak"),
            process.memory_bytes("VmRSS")?,
            process.memory_bytes("VmHWM")?,
            target,
        ));
    }

    eprintln!("making {} changes, one at a time", args.changes);
    lines.extend(changes(args, admin, &mut seen).await?);
    for (name, process) in [("operator", &mut parts.operator), ("scheduler", &mut parts.scheduler)] {
        if !process.alive() {
            return Err(format!("{name} ended:\n{}", process.output()).into());
        }
    }
    Ok(lines)
}

/// When a plan for this generation was seen and all its pods were.
fn complete(pool: &Pool, generation: i64) -> Option<()> {
    pool.planned.filter(|(of, _, desired)| *of >= generation && pool.pods() >= *desired).map(drop)
}

fn name(i: usize) -> String {
    format!("pool-{i}")
}

fn least(i: usize) -> usize {
    1 + i % 2
}

async fn burst(args: &Args, admin: &Client) -> Result<BTreeMap<String, (i64, Instant)>, Error> {
    futures::stream::iter(0..args.pools)
        .map(|i| async move {
            let manifest = fleet::pool(&name(i), i, least(i));
            Ok::<_, Error>((name(i), pools::apply(admin, &manifest).await?))
        })
        .buffer_unordered(args.concurrency)
        .try_collect()
        .await
}

/// Waits until the operator has little to say to the API; the end of the audit log then.
async fn settle(server: &ApiServer) -> Result<u64, Error> {
    let (_, mut offset) = server.requests(0)?;
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        tokio::time::sleep(CALM).await;
        let (requests, end) = server.requests(offset)?;
        offset = end;
        if requests.len() as f64 <= CALM_RATE * CALM.as_secs_f64() {
            return Ok(offset);
        }
        eprintln!("  {:.1} requests/s", requests.len() as f64 / CALM.as_secs_f64());
    }
    Err(format!("the operator was not calm within {LIMIT:?}").into())
}

/// New, scaled, changed and deleted pools in turn, each once the one before is done.
async fn changes(args: &Args, admin: &Client, seen: &mut Seen) -> Result<Vec<Line>, Error> {
    let kinds = [
        "new pool → its pods",
        "one more replica → its pod",
        "new objective → planned",
        "deleted → pods gone",
    ];
    let mut times: [Times; 4] = Default::default();
    for step in 0..args.changes {
        let (kind, i) = (step % kinds.len(), step / kinds.len());
        // What is changed was there from the burst on; each kind has its own.
        let existing = (3 * i + kind) % args.pools.max(1);
        let (at, done) = match kind {
            0 => {
                let new = args.pools + i;
                let manifest = fleet::pool(&name(new), new, least(new));
                let (generation, at) = pools::apply(admin, &manifest).await?;
                let done = |pool: &Pool| {
                    let (_, _, desired) = pool.planned.filter(|p| p.0 >= generation)?;
                    pool.first(at, |n| n >= desired)
                };
                (at, seen.wait(&name(new), LIMIT, done).await?)
            }
            1 => {
                let pods = seen.now().get(&name(existing)).map_or(0, Pool::pods);
                let manifest = fleet::pool(&name(existing), existing, pods + 1);
                let (_, at) = pools::apply(admin, &manifest).await?;
                (at, seen.wait(&name(existing), LIMIT, |pool| pool.first(at, |n| n > pods)).await?)
            }
            2 => {
                let mut manifest = fleet::pool(&name(existing), existing, least(existing));
                manifest["spec"]["slo"]["tpot"] = json!({"p95": "100ms"});
                let (generation, at) = pools::apply(admin, &manifest).await?;
                let planned = |pool: &Pool| pool.planned.filter(|p| p.0 >= generation).map(|p| p.1);
                (at, seen.wait(&name(existing), LIMIT, planned).await?)
            }
            _ => {
                let at = pools::delete(admin, &name(existing), existing).await?;
                (at, seen.wait(&name(existing), LIMIT, |pool| pool.first(at, |n| n == 0)).await?)
            }
        };
        times[kind].add(at, done);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let gone = args.changes / kinds.len();
    plimsoll_e2e::eventually("deleted pools are gone", 60, || async move {
        let left = pools::names(admin).await?.len();
        if left <= args.pools + args.changes.div_ceil(kinds.len()) - gone {
            Ok(())
        } else {
            Err(format!("{left} pools").into())
        }
    })
    .await?;
    let all = times.iter().fold(Times::default(), |all, t| all.and(t));
    let mut lines = vec![all.line("one change at a time, all kinds".to_owned(), Some(5.0))];
    lines.extend(kinds.iter().zip(&times).map(|(kind, times)| times.line(format!("– {kind}"), None)));
    Ok(lines)
}
