//! Real engines, the agents beside them, and a gateway.

use std::path::Path;
use std::time::Duration;

use plimsoll_agent::AgentHandle;
use plimsoll_agent::adapters::store::StoreConfig;
use plimsoll_fleet::{
    AdapterFiles, AdapterRoute, Endpoint, HandOver, HandOverProtocol, PoolRoute, Role, RouteTable,
};
use serde_json::Value;

use crate::engine::{MODEL, Options, Vllm};
use crate::support::hub::Hub;
use crate::support::{Got, agent, endpoint, pool, post, send};

/// An engine with work that moves nothing for so long is stalled.
pub const STALL: Duration = Duration::from_secs(4);
/// A stream that is silent for so long is given up.
pub const SILENCE: Duration = Duration::from_secs(8);
/// Adapters that the set-up made, in order of their names.
pub const ADAPTERS: [&str; 3] = ["blue", "green", "red"];

pub struct World {
    pub engines: Vec<Vllm>,
    pub nodes: Vec<AgentHandle>,
    pub gateway: AgentHandle,
    pub home: std::path::PathBuf,
    /// Where adapters can be downloaded from.
    pub hub: Hub,
    _folder: tempfile::TempDir,
}

/// One beside engines keeps adapters in a folder under `cache`.
async fn an_agent(name: &str, node: Option<&str>, cache: &Path) -> AgentHandle {
    agent(name, node, |c| {
        c.limits.probe_interval = Duration::from_millis(500);
        c.limits.stall_after = STALL;
        c.limits.idle_timeout = SILENCE;
        c.limits.settle_wait = Duration::from_secs(3);
        c.adapter_store = node.map(|_| StoreConfig::new(cache.join(name), 64 << 20));
    })
    .await
}

/// Predictions of about what so small a model does here, busy as the machine may be.
fn served(mut e: Endpoint, model: &str) -> Endpoint {
    e.engine_model = model.to_owned();
    e.coefficients.base_ms = 5.0;
    e.coefficients.per_prefill_token_ms = 0.5;
    e.coefficients.kv_tokens = 8192.0;
    e
}

impl World {
    async fn of(home: &Path, options: &[Options]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut engines: Vec<Vllm> = (options.iter().enumerate())
            .map(|(i, options)| Vllm::start(options.clone(), &folder.path().join(format!("engine-{i}.log"))))
            .collect();
        for engine in &mut engines {
            engine.ready().await;
        }
        let mut nodes = Vec::new();
        for i in 0..engines.len() {
            nodes.push(an_agent(&format!("n{i}"), Some(&format!("n{i}")), folder.path()).await);
        }
        let gateway = an_agent("gw", None, folder.path()).await;
        let hub = Hub::start().await;
        Self { engines, nodes, gateway, home: home.to_owned(), hub, _folder: folder }
    }

    fn route(&self, pools: Vec<PoolRoute>) {
        let table = RouteTable { version: 1, plan: 1, pools, ..RouteTable::default() };
        for agent in self.nodes.iter().chain([&self.gateway]) {
            agent.set_routes(table.clone());
        }
    }

    fn endpoints(&self, model: &str) -> Vec<Endpoint> {
        let of = |i: usize| {
            endpoint(&format!("r{i}"), &format!("n{i}"), self.engines[i].address, Some(self.nodes[i].addr()))
        };
        (0..self.engines.len()).map(|i| served(of(i), model)).collect()
    }

    /// Two replicas of the model.
    pub async fn replicas(home: &Path) -> Self {
        let options = Options {
            home: home.to_owned(),
            args: vec![
                "--enable-lora",
                "--max-lora-rank",
                "8",
                "--max-loras",
                "2",
                "--enable-auto-tool-choice",
                "--tool-call-parser",
                "hermes",
            ],
            pairs: false,
        };
        let world = Self::of(home, &[options.clone(), options]).await;
        world.place(&[], &[]);
        world
    }

    /// Places these adapters on both replicas; of some it is said that they are held.
    pub fn place(&self, names: &[&str], held: &[&str]) {
        let mut pool = pool(self.endpoints(MODEL));
        let ids: Vec<_> = pool.endpoints.iter().map(|e| e.replica.clone()).collect();
        let route = |name: &&str| AdapterRoute {
            served_name: (*name).to_owned(),
            // A folder that the engine sees itself.
            source: format!("file://{}", self.home.join("tiny/adapters").join(name).display()),
            placed: ids.clone(),
            held: if held.contains(name) { ids.clone() } else { Vec::new() },
            group: None,
            load_ms: 1.0,
            ..AdapterRoute::default()
        };
        pool.adapters = names.iter().map(route).collect();
        self.route(vec![pool]);
    }

    /// The same, downloaded by the agents of the nodes; those not in `placed` are placed nowhere.
    pub fn place_downloads(&self, placed: &[&str], held: &[&str]) {
        let mut pool = pool(self.endpoints(MODEL));
        let ids: Vec<_> = pool.endpoints.iter().map(|e| e.replica.clone()).collect();
        let among = |name: &str, of: &[&str]| if of.contains(&name) { ids.clone() } else { Vec::new() };
        let route = |name: &str| AdapterRoute {
            served_name: name.to_owned(),
            source: format!("http://{}/{name}", self.hub.addr),
            placed: among(name, placed),
            held: among(name, held),
            files: AdapterFiles { rank: 8, ..AdapterFiles::default() },
            ..AdapterRoute::default()
        };
        pool.adapters = ADAPTERS.iter().map(|name| route(name)).collect();
        self.route(vec![pool]);
    }

    /// One replica that embeds.
    pub async fn embeds(home: &Path) -> Self {
        let options = Options {
            home: home.to_owned(),
            args: vec!["--runner", "pooling", "--convert", "embed"],
            pairs: false,
        };
        let world = Self::of(home, &[options]).await;
        world.route(vec![pool(world.endpoints(MODEL))]);
        world
    }

    /// A prefill and a decode replica.
    pub async fn pair(home: &Path) -> Self {
        let options = Options { home: home.to_owned(), args: Vec::new(), pairs: true };
        let world = Self::of(home, &[options.clone(), options]).await;
        let mut endpoints = world.endpoints(MODEL);
        for (e, role) in endpoints.iter_mut().zip([Role::Prefill, Role::Decode]) {
            e.role = role;
            e.hand_over = Some(HandOver {
                protocol: HandOverProtocol::Vllm,
                format: "float32/32".into(),
                tensor_parallel: 1,
                bootstrap_port: 0,
                network_ms_per_token: 0.001,
                node_ms_per_token: 0.001,
                set_up_ms: 1.0,
            });
        }
        world.route(vec![pool(endpoints)]);
        world
    }

    /// A request to the gateway.
    pub async fn ask(&self, path: &str, body: &Value) -> Got {
        send(post(self.gateway.addr(), path, body.to_string())).await
    }

    pub async fn chat(&self, body: Value) -> Got {
        self.ask("/v1/chat/completions", &body).await
    }

    /// Which engine an answer came from.
    pub fn which(&self, got: &Got) -> usize {
        got.header("x-plimsoll-replica").strip_prefix('r').unwrap().parse().unwrap()
    }
}
