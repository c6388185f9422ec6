//! A small cluster, an operator-like client and agents, all over real sockets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use plimsoll_fleet::pool::{EngineSpec, Mode, Parallelism, Placement, Scaling};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::telemetry::{AgentReport, EngineReport, LogHistogram, ReplicaTraffic, TrafficReport};
use plimsoll_fleet::*;
use plimsoll_proto::convert::apply_route_delta;
use plimsoll_proto::document::{decode, encode};
use plimsoll_proto::v1;
use plimsoll_proto::v1::agent_service_client::AgentServiceClient;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_proto::v1::scheduler_message::Message as Down;
use plimsoll_scheduler::planner::EnginePlanner;
use plimsoll_scheduler::service::{Scheduler, SchedulerConfig, SchedulerHandle};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Longest wait for anything; a slow machine needs some of it, a broken service all of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fails the test instead of hanging it.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub fn pool(name: &str, rps: f64) -> ModelPool {
    let p95 = |ms| Some(Objective { percentile: Percentile::P95, ms });
    ModelPool {
        id: name.parse().unwrap(),
        uid: format!("uid-{name}"),
        generation: 1,
        served_name: name.to_owned(),
        source: None,
        architecture: presets::model("llama-3.1-8b").unwrap(),
        variants: vec![Variant {
            name: "bf16".into(),
            weights: Dtype::Bf16,
            kv: Dtype::Bf16,
            quality: 1.0,
            source: None,
        }],
        slo_classes: vec![SloClass {
            name: "default".into(),
            slo: Slo { ttft: p95(3000.0), tpot: p95(120.0), e2e: None },
            match_headers: BTreeMap::new(),
            expected_share: 1.0,
        }],
        demand: Some(DemandPrior {
            rps,
            input: LengthDistribution { mean_tokens: 600.0, p95_tokens: 1500.0 },
            output: LengthDistribution { mean_tokens: 150.0, p95_tokens: 400.0 },
        }),
        scaling: Scaling {
            min_replicas: 1,
            max_replicas: 12,
            scale_to_zero_after_seconds: None,
            min_zones: 1,
        },
        parallelism: Parallelism { tensor: vec![1], ..Parallelism::default() },
        placement: Placement::default(),
        engine: EngineSpec {
            kind: EngineKind::Simulated,
            image: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: BTreeMap::new(),
            cold_start_seconds: 60.0,
            measured_cold_start_seconds: BTreeMap::new(),
        },
        priority: 0,
        min_quality: 0.0,
        mode: Mode::Enforce,
        max_context_tokens: Some(4096),
        rollout: Default::default(),
        revision: String::new(),
        observed: Vec::new(),
    }
}

fn node(name: &str, gpus: u32) -> NodeInfo {
    NodeInfo {
        name: NodeName::new(name).unwrap(),
        accelerator: "l40s".into(),
        allocatable_gpus: gpus,
        foreign_gpus: 0,
        zone: "a".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        spot: false,
        schedulable: true,
        ready: true,
        fault: String::new(),
    }
}

/// Two nodes with L40S and the pools given.
pub fn cluster(pools: Vec<ModelPool>) -> ClusterSnapshot {
    ClusterSnapshot {
        pools,
        nodes: vec![node("n1", 8), node("n2", 8)],
        accelerators: vec![presets::accelerator("l40s").unwrap()],
        ..ClusterSnapshot::default()
    }
}

/// Does what an operator would: replicas of the plan come up, and those that are drained go.
pub fn act(
    snapshot: &mut ClusterSnapshot,
    plan: &Plan,
    now: Timestamp,
    phase: ReplicaPhase,
    drained: &[String],
) {
    snapshot.replicas.retain(|r| !drained.contains(&r.id.to_string()));
    for pool in &plan.pools {
        for wanted in &pool.replicas {
            match snapshot.replicas.iter_mut().find(|r| r.id == wanted.id) {
                Some(r) => r.phase = phase,
                None => snapshot.replicas.push(ReplicaStatus {
                    id: wanted.id.clone(),
                    pool: pool.pool.clone(),
                    shape: wanted.shape.clone(),
                    nodes: wanted.nodes.clone(),
                    phase,
                    address: Some("127.0.0.1:9".into()),
                    plan: plan.number,
                    since: now,
                    created_at: now,
                    ready_at: (phase == ReplicaPhase::Ready).then_some(now),
                    message: String::new(),
                    outdated: false,
                    revision: String::new(),
                    ended: false,
                    adapter_room: None,
                    gated: false,
                }),
            }
        }
    }
}

pub struct Running {
    pub handle: SchedulerHandle,
    stop: CancellationToken,
}

pub async fn start(data: Option<&Path>, change: impl FnOnce(&mut SchedulerConfig)) -> Running {
    let mut config = SchedulerConfig::new(Arc::new(EnginePlanner::default()));
    config.data_dir = data.map(Path::to_owned);
    config.debounce = Duration::from_millis(20);
    change(&mut config);
    let stop = CancellationToken::new();
    let handle = Scheduler::start(config, stop.clone()).await.unwrap();
    Running { handle, stop }
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        soon("the scheduler to stop", self.handle.join()).await.unwrap();
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.handle.addr())).unwrap().connect().await.unwrap()
    }

    pub async fn operator(&self) -> Operator {
        let mut client = PlanServiceClient::new(self.channel().await);
        let watch =
            client.watch_fleet(v1::WatchFleetRequest { plans_only: false }).await.unwrap().into_inner();
        Operator { client, watch, sequence: 0 }
    }
}

pub struct Operator {
    pub client: PlanServiceClient<Channel>,
    watch: Streaming<v1::FleetUpdate>,
    sequence: u64,
}

impl Operator {
    pub async fn push(&mut self, snapshot: &ClusterSnapshot) {
        self.sequence += 1;
        let request = v1::PushSnapshotRequest {
            snapshot: Some(encode("snapshot", snapshot).unwrap()),
            operator: "test".into(),
            sequence: self.sequence,
        };
        self.client.push_snapshot(request).await.unwrap();
    }

    /// The next plan that `wanted` accepts.
    pub async fn plan(&mut self, wanted: impl Fn(&Plan) -> bool) -> Plan {
        soon("a plan", async {
            loop {
                let update = self.watch.message().await.unwrap().unwrap().update.unwrap();
                if let v1::fleet_update::Update::Plan(document) = update {
                    let plan: Plan = decode("plan", Some(&document)).unwrap();
                    if wanted(&plan) {
                        return plan;
                    }
                }
            }
        })
        .await
    }

    /// The next observations that `wanted` accepts.
    pub async fn seen(&mut self, wanted: impl Fn(&v1::Observations) -> bool) -> v1::Observations {
        soon("observations", async {
            loop {
                let update = self.watch.message().await.unwrap().unwrap().update.unwrap();
                if let v1::fleet_update::Update::Observations(seen) = update
                    && wanted(&seen)
                {
                    return seen;
                }
            }
        })
        .await
    }
}

pub struct Agent {
    up: mpsc::Sender<v1::AgentMessage>,
    down: Streaming<v1::SchedulerMessage>,
    name: String,
    node: Option<NodeName>,
    pub sequence: u64,
    pub incarnation: u64,
    pub table: RouteTable,
    pub epoch: String,
    /// Whether each table came whole (`true`) or as a delta.
    pub whole: Vec<bool>,
    pub drains: Vec<String>,
    /// What its next report says that replicas served.
    pub served: Vec<ReplicaTraffic>,
    pub leases: Vec<v1::BudgetLease>,
    pub acknowledged: u64,
}

impl Agent {
    pub async fn connect(
        to: &Running,
        name: &str,
        node: Option<&str>,
        held: Option<(&RouteTable, &str)>,
    ) -> Self {
        let (up, receiver) = mpsc::channel(64);
        let hello = v1::Hello {
            agent: name.into(),
            node: node.unwrap_or_default().into(),
            address: format!("{name}.agents:8080"),
            incarnation: 1,
            route_version: held.map_or(0, |h| h.0.version),
            route_epoch: held.map(|h| h.1.to_owned()).unwrap_or_default(),
        };
        up.send(v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello)) }).await.unwrap();
        let mut client = AgentServiceClient::new(to.channel().await);
        let down = client.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self {
            up,
            down,
            name: name.into(),
            node: node.map(|n| NodeName::new(n).unwrap()),
            sequence: 0,
            incarnation: 1,
            table: held.map(|h| h.0.clone()).unwrap_or_default(),
            epoch: held.map(|h| h.1.to_owned()).unwrap_or_default(),
            whole: Vec::new(),
            drains: Vec::new(),
            served: Vec::new(),
            leases: Vec::new(),
            acknowledged: 0,
        }
    }

    pub async fn report(&mut self, traffic: Vec<TrafficReport>, engines: Vec<EngineReport>) {
        self.sequence += 1;
        self.repeat(traffic, engines).await;
    }

    /// Sends a report under the newest sequence number again.
    pub async fn repeat(&mut self, traffic: Vec<TrafficReport>, engines: Vec<EngineReport>) {
        let report = AgentReport {
            agent: self.name.clone(),
            node: self.node.clone(),
            address: format!("{}.agents:8080", self.name),
            sequence: self.sequence,
            incarnation: self.incarnation,
            interval_seconds: 1.0,
            traffic,
            engines,
            replicas: std::mem::take(&mut self.served),
            route_version: self.table.version,
            adapters: Vec::new(),
        };
        let message = v1::agent_message::Message::Report((&report).into());
        self.up.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// Reads one message and takes it in.
    pub async fn read(&mut self) -> Result<(), Status> {
        let message = self.down.message().await?.ok_or_else(|| Status::cancelled("end"))?;
        match message.message.unwrap() {
            Down::Routes(table) => {
                self.epoch.clone_from(&table.epoch);
                self.table = RouteTable::try_from(table).unwrap();
                self.whole.push(true);
            }
            Down::Delta(delta) => {
                self.table =
                    apply_route_delta(&self.table, delta).unwrap().expect("a delta from what is held");
                self.whole.push(false);
            }
            Down::Ack(ack) => self.acknowledged = ack.sequence,
            Down::Leases(leases) => self.leases.extend(leases.leases),
            Down::Drains(drains) => self.drains = drains.replicas,
        }
        Ok(())
    }

    /// Reads until `done`.
    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        soon(what, async {
            while !done(self) {
                self.read().await.unwrap();
            }
        })
        .await;
    }

    pub fn endpoints(&self) -> Vec<&Endpoint> {
        self.table.pools.iter().flat_map(|p| &p.endpoints).collect()
    }
}

pub fn traffic(pool: &str, finished: u64) -> TrafficReport {
    let mut input = LogHistogram::default();
    let mut output = LogHistogram::default();
    let mut ttft_ms = LogHistogram::default();
    let mut tpot_us = LogHistogram::default();
    for _ in 0..finished {
        input.record(600.0);
        output.record(150.0);
        ttft_ms.record(400.0);
        tpot_us.record(30_000.0);
    }
    TrafficReport {
        pool: pool.parse().unwrap(),
        slo_class: "default".into(),
        arrived: finished,
        finished,
        attained: finished,
        refused: 0,
        failed: 0,
        holding: 0,
        lengths: vec![(9, 7, finished)],
        input_tokens: input,
        output_tokens: output,
        cached_tokens: 0,
        ttft_ms,
        tpot_us,
        e2e_ms: LogHistogram::default(),
        interarrival_moments: (0.0, 0.0),
    }
}

pub fn engine(replica: &ReplicaId, drained: bool) -> EngineReport {
    EngineReport {
        replica: replica.clone(),
        healthy: true,
        stalled: false,
        running: Some(0.0),
        waiting: Some(0.0),
        kv_usage: Some(0.0),
        outstanding_tokens: 0.0,
        adapters: Vec::new(),
        adapter_failures: Vec::new(),
        adapter_states: Vec::new(),
        drained,
    }
}

impl Agent {
    pub fn node_name(&self) -> &str {
        self.node.as_ref().map_or("", |n| n.as_str())
    }
}
