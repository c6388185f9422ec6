//! What all parts of a running agent share.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use plimsoll_fleet::{Endpoint, PoolId, ReplicaId, RouteTable};
use tokio::sync::{Notify, watch};

use crate::adapters::groups::Groups;
use crate::adapters::store::Store;
use crate::admit::task::TaskBook;
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::hash::QuickMap;
use crate::local::LocalEngine;
use crate::metrics::RequestLabels;
use crate::replica::Replica;
use crate::route::{Availability, Memory, PoolView};
use crate::series::{ChoiceSeries, Series};
use crate::spend::SpendLedger;
use crate::telemetry::TrafficBook;

/// Bytes of prompt per token until usage says better.
const BYTES_PER_TOKEN: f64 = 4.0;
/// Answer tokens expected until usage says better.
const EXPECTED_OUTPUT: f64 = 200.0;

/// What was learned of a pool's requests.
#[derive(Debug)]
pub struct PoolStats {
    bytes_per_token: f64,
    output: QuickMap<String, f64>,
}

impl Default for PoolStats {
    fn default() -> Self {
        Self { bytes_per_token: BYTES_PER_TOKEN, output: QuickMap::default() }
    }
}

impl PoolStats {
    /// Bytes of prompt for each of its tokens.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token
    }

    /// Answer tokens to expect of a class.
    pub fn expected_output(&self, class: &str) -> f64 {
        self.output.get(class).copied().unwrap_or(EXPECTED_OUTPUT)
    }

    /// Takes note of what an engine said that a request took.
    pub fn learn(&mut self, class: &str, prompt_bytes: usize, prompt_tokens: u64, output_tokens: u64) {
        if prompt_tokens > 0 && prompt_bytes > 0 {
            let ratio = (prompt_bytes as f64 / prompt_tokens as f64).clamp(0.5, 32.0);
            self.bytes_per_token += 0.02 * (ratio - self.bytes_per_token);
        }
        if output_tokens > 0 {
            let expected = self.output.entry(class.to_owned()).or_insert(output_tokens as f64);
            *expected += 0.05 * (output_tokens as f64 - *expected);
        }
    }
}

/// What outlives a route table: a pool's learned figures and the router's memory.
#[derive(Debug)]
pub(crate) struct PoolMemory {
    pub(crate) router: Mutex<Memory>,
    pub(crate) stats: Mutex<PoolStats>,
    /// By class.
    series: Mutex<QuickMap<String, Arc<Series>>>,
}

impl PoolMemory {
    /// Prompt tokens that one hashed block stands for.
    pub(crate) fn tokens_per_block(&self) -> f64 {
        crate::route::BLOCK_BYTES as f64 / self.stats.lock().bytes_per_token()
    }
}

/// A pool in the current table.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Its name, `namespace/name`.
    pub(crate) name: String,
    pub(crate) view: Arc<PoolView>,
    /// In the order of the view's endpoints.
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) memory: Arc<PoolMemory>,
}

impl Pool {
    /// The series of one of its classes.
    pub(crate) fn series(&self, config: &AgentConfig, class: &str) -> Arc<Series> {
        let mut all = self.memory.series.lock();
        if let Some(known) = all.get(class) {
            return known.clone();
        }
        let labels =
            RequestLabels { agent: config.name.clone(), pool: self.name.clone(), class: class.to_owned() };
        let made = Arc::new(Series::new(&config.metrics, labels));
        all.insert(class.to_owned(), made.clone());
        made
    }
}

/// An engine of this node.
#[derive(Debug, Clone)]
pub(crate) struct LocalReplica {
    pub(crate) replica: Arc<Replica>,
    pub(crate) engine: Arc<LocalEngine>,
    pub(crate) endpoint: Endpoint,
    /// Its pool.
    pub(crate) pool: Arc<PoolView>,
}

/// The current table, arranged.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) routes: RouteTable,
    pub(crate) epoch: String,
    pub(crate) by_name: QuickMap<String, Arc<Pool>>,
    tenant_weights: QuickMap<String, f64>,
}

/// State of a running agent.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    pub(crate) address: String,
    pub(crate) incarnation: u64,
    pub(crate) clock: Clock,
    pub(crate) table: ArcSwap<Table>,
    /// Counts changes of the table and of the drains.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) locals: ArcSwap<HashMap<ReplicaId, LocalReplica>>,
    pub(crate) book: Mutex<TrafficBook>,
    pub(crate) spend: Mutex<SpendLedger>,
    pub(crate) drains: Mutex<BTreeSet<ReplicaId>>,
    /// Rings when a report should not wait.
    pub(crate) report_now: Notify,
    pub(crate) holding: AtomicUsize,
    pub(crate) stopping: AtomicBool,
    pub(crate) retries: Mutex<RetryBudget>,
    pub(crate) tasks: Mutex<TaskBook>,
    pub(crate) choices: ChoiceSeries,
    /// Groups of adapters, and what was learnt of them.
    pub(crate) groups: Mutex<Groups>,
    /// The node's cache of adapters.
    pub(crate) store: Option<Arc<Store>>,
    serial: AtomicU64,
    memories: Mutex<HashMap<PoolId, Arc<PoolMemory>>>,
    replicas: Mutex<HashMap<ReplicaId, Arc<Replica>>>,
}

/// Retries are at most a fifth of requests, beyond a small reserve.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tokens: f64,
}

impl RetryBudget {
    /// What one engine may have under way when it dies.
    const MOST: f64 = 256.0;

    pub(crate) fn earn(&mut self) {
        self.tokens = (self.tokens + 0.2).min(Self::MOST);
    }

    pub(crate) fn spend(&mut self) -> bool {
        let ok = self.tokens >= 1.0;
        if ok {
            self.tokens -= 1.0;
        }
        ok
    }
}

impl Shared {
    pub(crate) fn new(config: AgentConfig, address: String, incarnation: u64) -> Self {
        Self {
            clock: Clock::new(config.time_scale),
            config,
            address,
            incarnation,
            table: ArcSwap::default(),
            changed: watch::Sender::new(0),
            locals: ArcSwap::default(),
            book: Mutex::default(),
            spend: Mutex::default(),
            drains: Mutex::default(),
            report_now: Notify::new(),
            holding: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            retries: Mutex::new(RetryBudget { tokens: RetryBudget::MOST }),
            tasks: Mutex::default(),
            choices: ChoiceSeries::default(),
            groups: Mutex::default(),
            store: None,
            serial: AtomicU64::new(1),
            memories: Mutex::default(),
            replicas: Mutex::default(),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// A tenant's share against others of its tier: as this agent is configured, else as the routes say, else 1.
    pub(crate) fn tenant_weight(&self, tenant: Option<&str>) -> f64 {
        let Some(tenant) = tenant else { return 1.0 };
        let own = self.config.tenant_weights.get(tenant).copied();
        own.or_else(|| self.table.load().tenant_weights.get(tenant).copied()).unwrap_or(1.0)
    }

    /// Makes a table the current one. Requests under way keep what they hold of the old one.
    pub(crate) fn install(&self, routes: RouteTable, epoch: String) {
        let mut memories = self.memories.lock();
        let mut replicas = self.replicas.lock();
        // What the first table lists may have served all along, while this agent started.
        let first_table = self.table.load().epoch.is_empty() && self.table.load().routes.version == 0;
        let mut by_name: QuickMap<String, Arc<Pool>> = QuickMap::default();
        let mut locals: HashMap<ReplicaId, LocalReplica> = HashMap::new();
        for route in &routes.pools {
            let view = Arc::new(PoolView::new(route.clone(), routes.version));
            let memory = memories
                .entry(route.pool.clone())
                .or_insert_with(|| {
                    Arc::new(PoolMemory {
                        router: Mutex::new(Memory::new(
                            self.incarnation ^ self.serial.load(Ordering::Relaxed),
                        )),
                        stats: Mutex::default(),
                        series: Mutex::default(),
                    })
                })
                .clone();
            memory.router.lock().retain(&view);
            let of_pool: Vec<Arc<Replica>> = route
                .endpoints
                .iter()
                .map(|endpoint| {
                    let mine = self.config.node.as_ref() == Some(&endpoint.node);
                    let known =
                        replicas.get(&endpoint.replica).filter(|r| r.local.is_some() == mine).cloned();
                    let replica = known.unwrap_or_else(|| {
                        let local = mine.then(|| {
                            let engine = LocalEngine::new(
                                &endpoint.coefficients,
                                self.config.limits.max_queue,
                                self.incarnation,
                            );
                            if !first_table {
                                engine.liveness.lock().put_on_trial();
                            }
                            Arc::new(engine)
                        });
                        Arc::new(Replica::new(endpoint.replica.clone(), local))
                    });
                    replicas.insert(endpoint.replica.clone(), replica.clone());
                    if let Some(engine) = &replica.local {
                        locals.insert(
                            endpoint.replica.clone(),
                            LocalReplica {
                                replica: replica.clone(),
                                engine: engine.clone(),
                                endpoint: endpoint.clone(),
                                pool: view.clone(),
                            },
                        );
                    }
                    replica
                })
                .collect();
            let pool = Arc::new(Pool { name: route.pool.to_string(), view, replicas: of_pool, memory });
            if let Some(other) = by_name.get(&route.served_name) {
                tracing::warn!(
                    model = %route.served_name, kept = %other.view.route.pool, ignored = %route.pool,
                    "two pools serve one model name"
                );
            } else {
                by_name.insert(route.served_name.clone(), pool);
            }
        }
        for route in &routes.pools {
            let Some(pool) = by_name.get(&route.served_name).cloned() else { continue };
            for adapter in &route.adapters {
                by_name.entry(adapter.served_name.clone()).or_insert_with(|| pool.clone());
            }
        }
        let mut groups: BTreeSet<&str> = BTreeSet::new();
        for route in &routes.pools {
            let Some(pool) = by_name.get(&route.served_name).cloned() else { continue };
            for group in route.adapters.iter().filter_map(|a| a.group.as_deref()) {
                by_name.entry(group.to_owned()).or_insert_with(|| pool.clone());
                groups.insert(group);
            }
        }
        self.groups.lock().retain(|group| groups.contains(group));
        // A local engine that left the table stays known while it has work or a drain to acknowledge.
        let drains = self.drains.lock().clone();
        for (id, old) in self.locals.load().iter() {
            if !locals.contains_key(id) && (old.engine.counts() != (0, 0) || drains.contains(id)) {
                let mut old = old.clone();
                old.endpoint.draining = true;
                locals.insert(id.clone(), old);
            }
        }
        let keep: BTreeSet<&ReplicaId> = routes
            .pools
            .iter()
            .flat_map(|p| p.endpoints.iter().map(|e| &e.replica))
            .chain(locals.keys())
            .collect();
        replicas.retain(|id, _| keep.contains(id));
        let pools: BTreeSet<&PoolId> = routes.pools.iter().map(|p| &p.pool).collect();
        memories.retain(|id, _| pools.contains(id));
        self.book.lock().retain(|id| pools.contains(id));
        self.config
            .metrics
            .route_version
            .get_or_create(&crate::metrics::AgentLabels { agent: self.config.name.clone() })
            .set(routes.version as i64);
        self.locals.store(Arc::new(locals));
        let tenant_weights = routes.tenant_weights.iter().cloned().collect();
        self.table.store(Arc::new(Table { routes, epoch, by_name, tenant_weights }));
        drop((memories, replicas));
        self.apply_drains();
    }

    /// Replaces the set of replicas that the scheduler wants drained.
    pub(crate) fn set_drains(&self, drains: BTreeSet<ReplicaId>) {
        *self.drains.lock() = drains;
        self.apply_drains();
    }

    fn apply_drains(&self) {
        let drains = self.drains.lock().clone();
        for local in self.locals.load().values() {
            let draining = local.endpoint.draining || drains.contains(&local.replica.id);
            local.engine.configure(&local.endpoint.coefficients, self.config.limits.max_queue, draining);
            self.refresh_state(local);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Tells the router whether a local replica may be chosen.
    pub(crate) fn refresh_state(&self, local: &LocalReplica) {
        let state = if local.engine.draining() {
            Availability::Draining
        } else if local.engine.liveness.lock().healthy() == Some(false) {
            Availability::Unhealthy
        } else if local.engine.stalled.load(Ordering::Relaxed) {
            Availability::Stalled
        } else {
            Availability::Ready
        };
        local.replica.set_state(state);
    }
}
