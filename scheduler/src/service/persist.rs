//! What survives a restart, and under which keys.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use jiff::Timestamp;
use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::{ClusterSnapshot, NodeName, Plan, PoolId, RouteTable};

use crate::canary::Canaries;
use crate::clock::{Anchor, Clock, InvalidScale};
use crate::cold_start::ColdStarts;
use crate::control::Records;
use crate::demand::DemandTracker;
use crate::drain::DrainState;
use crate::ledger::Reserves;
use crate::store::{Store, StoreError, Write, get_json};

const PLAN: &str = "plan/current";
const PLAN_HISTORY: &str = "plan/history/";
const SERIAL: &str = "plan/next-serial";
const SNAPSHOT: &str = "snapshot";
const ROUTES: &str = "routes/current";
const AGENTS: &str = "routes/agents";
const DRAIN: &str = "drain";
const DEMAND: &str = "demand";
const CANARIES: &str = "canaries";
const COLD_STARTS: &str = "cold-starts";
const LEDGER: &str = "ledger";
const CLOCK: &str = "clock";
const IDENTITY: &str = "identity";
const RECORDS: &str = "records/";

/// Plans kept.
const PLANS_KEPT: u64 = 100;
/// What a store held at start.
#[derive(Debug)]
pub struct Loaded {
    /// Names the store: route versions compare only within one.
    pub identity: String,
    /// Tokens reserved by an earlier life: none of a new store, `None` if the store does not say.
    pub reserves: Option<Reserves>,
    /// Clock.
    pub clock: Clock,
    /// Plan in force.
    pub plan: Option<Plan>,
    /// First free serial number.
    pub next_serial: u64,
    /// Snapshot the plan was made from (virtual times).
    pub snapshot: Option<ClusterSnapshot>,
    /// Routes in force.
    pub routes: RouteTable,
    /// Agents by node.
    pub agents: BTreeMap<NodeName, (String, String)>,
    /// Drains under way.
    pub drain: DrainState,
    /// Demand.
    pub demand: Option<DemandTracker>,
    /// Judgements of new engine configurations.
    pub canaries: Canaries,
    /// Cold starts as measured.
    pub cold_starts: ColdStarts,
    /// Scaling records.
    pub records: Records,
}

/// Why what was stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The time scale is out of range.
    #[error(transparent)]
    Scale(#[from] InvalidScale),
}

/// Reads everything, and gives a new store its identity.
pub fn load(store: &dyn Store, scale: f64, wall_now: Timestamp) -> Result<Loaded, LoadError> {
    let stored_identity: Option<String> = get_json(store, IDENTITY)?;
    let fresh = stored_identity.is_none();
    let identity = stored_identity.unwrap_or_else(|| {
        let random = RandomState::new().build_hasher().finish();
        format!("{:x}-{random:016x}", wall_now.as_millisecond())
    });
    let clock = Clock::new(scale, get_json::<Anchor>(store, CLOCK)?, wall_now)?;
    store.transact(&[], &[Write::json(IDENTITY, &identity)?, Write::json(CLOCK, &clock.anchor())?])?;
    let mut records = Records::new();
    for (key, bytes) in store.list(RECORDS)? {
        let list: VecDeque<ScalingRecord> = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Value { key: key.clone(), source })?;
        if let Ok(pool) = key[RECORDS.len()..].parse() {
            records.insert(pool, list);
        }
    }
    Ok(Loaded {
        identity,
        reserves: get_json(store, LEDGER)?.or_else(|| fresh.then(Reserves::new)),
        clock,
        plan: get_json(store, PLAN)?,
        next_serial: get_json(store, SERIAL)?.unwrap_or(1),
        snapshot: get_json(store, SNAPSHOT)?,
        routes: get_json(store, ROUTES)?.unwrap_or_default(),
        agents: get_json(store, AGENTS)?.unwrap_or_default(),
        drain: get_json(store, DRAIN)?.unwrap_or_default(),
        demand: get_json(store, DEMAND)?,
        canaries: get_json(store, CANARIES)?.unwrap_or_default(),
        cold_starts: get_json(store, COLD_STARTS)?.unwrap_or_default(),
        records,
    })
}

/// Writes a new plan with everything that belongs to it, all or nothing: a serial number once used is never used again.
pub fn save_plan(
    store: &dyn Store,
    plan: &Plan,
    next_serial: u64,
    snapshot: &ClusterSnapshot,
    records: &[(PoolId, VecDeque<ScalingRecord>)],
) -> Result<(), StoreError> {
    let mut writes = vec![
        Write::json(PLAN, plan)?,
        Write::json(format!("{PLAN_HISTORY}{:020}", plan.number), plan)?,
        Write::json(SERIAL, &next_serial)?,
        Write::json(SNAPSHOT, snapshot)?,
    ];
    for (pool, list) in records {
        writes.push(Write::json(format!("{RECORDS}{pool}"), list)?);
    }
    if let Some(old) = plan.number.checked_sub(PLANS_KEPT) {
        writes.push(Write::Delete(format!("{PLAN_HISTORY}{old:020}")));
    }
    store.transact(&[], &writes).map(drop)
}

/// Writes routes before any agent sees them: a version never names two tables.
pub fn save_routes(
    store: &dyn Store,
    table: &RouteTable,
    agents: &BTreeMap<NodeName, (String, String)>,
    drain: &DrainState,
) -> Result<(), StoreError> {
    let writes = [Write::json(ROUTES, table)?, Write::json(AGENTS, agents)?, Write::json(DRAIN, drain)?];
    store.transact(&[], &writes).map(drop)
}

/// Writes demand, drains, judgements and cold starts, of which a few seconds may be lost.
pub fn save_soft(
    store: &dyn Store,
    demand: &DemandTracker,
    drain: &DrainState,
    canaries: &Canaries,
    cold_starts: &ColdStarts,
) -> Result<(), StoreError> {
    let writes = [
        Write::json(DEMAND, demand)?,
        Write::json(DRAIN, drain)?,
        Write::json(CANARIES, canaries)?,
        Write::json(COLD_STARTS, cold_starts)?,
    ];
    store.transact(&[], &writes).map(drop)
}

/// Writes down what may be granted, before it is.
pub fn save_reserves(store: &dyn Store, reserves: &Reserves) -> Result<(), StoreError> {
    store.transact(&[], &[Write::json(LEDGER, reserves)?]).map(drop)
}

/// Forgets the records of pools that are gone.
pub fn forget_records(store: &dyn Store, pools: &[PoolId]) -> Result<(), StoreError> {
    let writes: Vec<Write> = pools.iter().map(|p| Write::Delete(format!("{RECORDS}{p}"))).collect();
    store.transact(&[], &writes).map(drop)
}
