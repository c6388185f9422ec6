//! The loops: pulse (time passes), and brain (plan, fast loop, drains, routes; one at a time).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::{ClusterSnapshot, NodeName, Plan, PoolId, PoolPlan, ReplicaId, RouteTable};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::observe::observations;
use super::persist::{self, RECORDS_KEPT};
use super::state::{Drains, Due, EngineSeen, Floor, Shared, State};
use crate::clock::{seconds, timestamp};
use crate::demand::{material_change, misses_objectives};
use crate::drain::{self, DrainInput};
use crate::fast::{self, FastInput, ReplicaLoad};
use crate::planner::{PlanRequest, Planned};
use crate::records::{differs, free_serial, scaling_records};
use crate::rollout;
use crate::routes::takes_part;

/// Virtual seconds between plans that demand alone calls for.
const DEMAND_REPLAN_SECONDS: f64 = 15.0;
/// Virtual seconds over which attainment is judged.
const ATTAINMENT_SECONDS: f64 = 60.0;
/// Virtual seconds after which a draining replica without an agent counts as drained.
const UNWATCHED_DRAIN_SECONDS: f64 = 300.0;
/// Virtual seconds for which what the fast loop has shown counts at least.
const FLOOR_SECONDS: f64 = 300.0;
/// Wall time between writes of demand.
const SOFT_SAVE: Duration = Duration::from_secs(20);
/// Wall time to wait after a failed plan or write.
const RETRY: Duration = Duration::from_secs(2);

/// Runs a blocking piece of work off the async threads; `None` if it panicked, which is logged.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(%error, "{what} failed; this is a defect");
            None
        }
    }
}

/// About once a second: time passes for demand and spending, observations go out, demand is compared with the plan.
pub async fn pulse(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_millis(1000));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut saved = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let seen = {
            let mut state = shared.state.lock();
            let now = shared.now_seconds();
            pass_time(&mut state, now);
            judge_canaries(&mut state, now);
            if let Some(due) = heed_speeds(&mut state) {
                shared.request_plan(&mut state, due.why, due.urgent);
            }
            if let Some(due) = heed_adapters(&mut state, now) {
                shared.request_plan(&mut state, due.why, due.urgent);
            }
            if let Some(due) = demand_trigger(&state, now).or_else(|| rollout_trigger(&state, now)) {
                shared.request_plan(&mut state, due.why, due.urgent);
            }
            observations(&shared, &state)
        };
        shared.metrics.agents.set(i64::from(seen.agents));
        shared.observations.send_replace(Arc::new(seen));
        shared.wake.notify_one();
        reserve_tokens(&shared).await;
        if saved.elapsed() >= SOFT_SAVE {
            saved = Instant::now();
            save_soft(&shared).await;
        }
    }
    // What is kept at an orderly stop is up to date; after a crash it is a few seconds old.
    save_soft(&shared).await;
}

async fn save_soft(shared: &Arc<Shared>) {
    let soft = {
        let state = shared.state.lock();
        persist::Soft {
            demand: state.demand.clone(),
            drain: state.drain.clone(),
            canaries: state.canaries.clone(),
            cold_starts: state.cold_starts.clone(),
            adapters: state.adapters.clone(),
        }
    };
    let store = Arc::clone(&shared.store);
    if let Some(Err(error)) =
        blocking("saving demand", move || persist::save_soft(store.as_ref(), &soft)).await
    {
        shared.metrics.store_failures.inc();
        tracing::warn!(%error, "demand was not saved");
    }
}

/// Writes down which tokens may be granted next, if there are too few.
pub async fn reserve_tokens(shared: &Arc<Shared>) {
    let _one = shared.reserving.lock().await;
    let Some(reserves) = shared.state.lock().ledger.wants(shared.now_seconds()) else { return };
    let (store, wanted) = (Arc::clone(&shared.store), reserves.clone());
    match blocking("reserving tokens", move || persist::save_reserves(store.as_ref(), &wanted)).await {
        Some(Ok(())) => shared.state.lock().ledger.reserved(reserves),
        Some(Err(error)) => {
            shared.metrics.store_failures.inc();
            tracing::warn!(%error, "no more tokens can be granted on budgets until the store can be written");
        }
        None => {}
    }
}

fn pass_time(state: &mut State, now: f64) {
    let mut demand = std::mem::take(&mut state.demand);
    let busy = state.busy_pools();
    demand.tick(now, |pool| busy.contains(pool));
    state.demand = demand;
    let hours = (now - state.usd_until).max(0.0) / 3600.0;
    state.usd_until = now;
    if !state.snapshot_is_current {
        return;
    }
    let Some(snapshot) = state.snapshot.clone() else { return };
    for replica in &snapshot.replicas {
        let Some(first) = replica.nodes.first() else { continue };
        let spot = snapshot.nodes.iter().any(|n| &n.name == first && n.spot);
        *state.usd.entry(replica.pool.clone()).or_default() +=
            hours * fast::price(&replica.shape, spot, &snapshot);
    }
}

/// Why demand calls for a new plan, if it does.
fn demand_trigger(state: &State, now: f64) -> Option<Due> {
    let (snapshot, plan) = (state.snapshot.as_ref()?, state.plan.as_ref()?);
    let planned: BTreeMap<&PoolId, &PoolPlan> = plan.pools.iter().map(|p| (&p.pool, p)).collect();
    let mut found: Option<String> = None;
    for pool in &snapshot.pools {
        let Some(planned) = planned.get(&pool.id) else { continue };
        let idle = state.demand.idle_seconds(&pool.id);
        let asked = state.demand.holding(&pool.id) > 0 || (idle <= 0.0 && state.demand.has_traffic(&pool.id));
        if asked && planned.replicas.is_empty() && planned.outcome == PoolOutcome::ScaledToZero {
            return Some(Due { why: format!("requests wake {}", pool.id), urgent: true });
        }
        if found.is_some() {
            continue;
        }
        let limit = pool.scaling.scale_to_zero_after_seconds;
        if !planned.replicas.is_empty() && limit.is_some_and(|limit| idle >= limit) {
            found = Some(format!("{} is idle", pool.id));
        } else {
            // A fall can wait for the next regular plan; a rise cannot.
            let (from, to) = (planned.demand.total_rps(), state.rate(pool, now).rps);
            found = material_change(&pool.id, from, to)
                .filter(|_| to > from)
                .or_else(|| misses_objectives(pool, &state.demand.seen(pool, ATTAINMENT_SECONDS, now)));
        }
    }
    found.map(|why| Due { why, urgent: false })
}

/// Judges what rolls out; what that lets through or stops is in force at once.
fn judge_canaries(state: &mut State, now: f64) {
    let Some(snapshot) = state.snapshot.clone().filter(|_| state.snapshot_is_current) else { return };
    state.canaries.judge(&snapshot, now);
    if state.canaries.differs(&snapshot) {
        let mut gated = ClusterSnapshot::clone(&snapshot);
        state.canaries.apply(&mut gated);
        state.snapshot = Some(Arc::new(gated));
        state.routes_dirty = true;
    }
}

/// Puts into force that replicas have come to run at another speed; why that calls for a new plan.
fn heed_speeds(state: &mut State) -> Option<Due> {
    let snapshot = state.snapshot.clone().filter(|_| state.snapshot_is_current)?;
    if !state.speeds.differs(&snapshot) {
        return None;
    }
    let mut heeded = ClusterSnapshot::clone(&snapshot);
    let changed = state.speeds.apply(&mut heeded);
    let pool = heeded.pools.iter().find(|p| changed.contains(&p.id))?;
    let what = pool.drift_text().unwrap_or_else(|| "replicas run as predicted again".to_owned());
    let why = format!("{}: {what}", pool.id);
    state.snapshot = Some(Arc::new(heeded));
    Some(Due { why, urgent: false })
}

/// Tells plans what adapters are asked for; why that calls for a new one.
fn heed_adapters(state: &mut State, now: f64) -> Option<Due> {
    let snapshot = state.snapshot.clone().filter(|_| state.snapshot_is_current)?;
    if !state.adapters.settle(now) {
        return None;
    }
    let mut heeded = ClusterSnapshot::clone(&snapshot);
    state.adapters.apply(&mut heeded);
    let why = crate::adapters::material_change(&snapshot, &heeded);
    state.snapshot = Some(Arc::new(heeded));
    why.map(|why| Due { why, urgent: false })
}

/// Why a rollout calls for a new plan, if it does. Nothing else would: replicas that become ready change no plan.
fn rollout_trigger(state: &State, now: f64) -> Option<Due> {
    let (snapshot, plan) = (state.snapshot.as_ref()?, state.plan.as_ref()?);
    if !state.snapshot_is_current {
        return None;
    }
    // Not urgent: a step that the planner cannot take must not make it plan all the time.
    rollout::trigger(snapshot, plan, timestamp(now)).map(|why| Due { why, urgent: false })
}

/// Plans, amends, drains and routes, one after the other, whenever something woke it.
pub async fn brain(shared: Arc<Shared>, stop: CancellationToken) {
    // The fast loop looks once a virtual second, but four times a wall second at most.
    let period = shared.clock.wall_seconds(1.0).clamp(0.25, 1.0);
    let mut ticks = interval(Duration::from_secs_f64(period));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut planned_at: Option<Instant> = None;
    let mut retry_at: Option<Instant> = None;
    let mut first_due: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = shared.wake.notified() => {}
            _ = ticks.tick() => {}
        }
        if retry_at.is_some_and(|at| Instant::now() < at) {
            continue;
        }
        retry_at = None;
        let due = why_plan(&shared, planned_at, &mut first_due);
        let mut ok = true;
        if let Some(trigger) = due {
            ok = replan(&shared, trigger).await;
            planned_at = Some(Instant::now());
            first_due = None;
        } else {
            ok &= fast_loop(&shared).await;
        }
        ok &= route(&shared).await;
        if !ok {
            retry_at = Some(Instant::now() + RETRY);
        }
    }
}

/// Whether it is time to plan. A first change waits a moment for others to come with it; demand alone may not call
/// for plans faster than it can change anything.
fn why_plan(shared: &Shared, planned_at: Option<Instant>, first_due: &mut Option<Instant>) -> Option<String> {
    let mut state = shared.state.lock();
    if !state.snapshot_is_current {
        return None;
    }
    let since = planned_at.map(|at| shared.clock.virtual_seconds(at.elapsed().as_secs_f64()));
    if let Some(due) = &state.due {
        if !due.urgent && since.is_some_and(|s| s < DEMAND_REPLAN_SECONDS) {
            return None;
        }
        if first_due.get_or_insert_with(Instant::now).elapsed() < shared.config.debounce {
            return None;
        }
        return state.due.take().map(|due| due.why);
    }
    let interval = shared.config.replan_interval.as_secs_f64();
    since.is_none_or(|s| s >= interval).then(|| "periodic".to_owned())
}

fn plan_request(shared: &Shared, trigger: String) -> Option<PlanRequest> {
    let state = shared.state.lock();
    let snapshot = Arc::clone(state.snapshot.as_ref()?);
    let now = shared.now();
    let (demands, idle) = state.demands(&snapshot, seconds(now));
    // Numbers go on from what replicas remember even when the store was lost.
    let known = snapshot.replicas.iter().map(|r| r.plan).filter(|n| *n < 1 << 48).max().unwrap_or(0);
    let number = state.plan.as_ref().map_or(0, |p| p.number).max(known) + 1;
    let previous = state.plan.as_ref().map(|p| {
        let mut plan = Plan::clone(p);
        plan.created_at = shared.clock.to_virtual(plan.created_at);
        plan
    });
    let next_serial = free_serial(state.next_serial, &snapshot, previous.as_ref());
    Some(PlanRequest { snapshot, demands, previous, number, next_serial, now, trigger, idle })
}

/// Makes a plan and puts it into force if it differs.
#[tracing::instrument(skip(shared))]
async fn replan(shared: &Arc<Shared>, trigger: String) -> bool {
    let Some(request) = plan_request(shared, trigger.clone()) else { return true };
    let request = Arc::new(request);
    let (planner, ask) = (Arc::clone(&shared.planner), Arc::clone(&request));
    let began = Instant::now();
    let Some(Planned { mut plan, next_serial }) = blocking("the planner", move || planner.plan(&ask)).await
    else {
        shared.metrics.plan_failures.inc();
        shared.request_plan(&mut shared.state.lock(), trigger, true);
        return false;
    };
    let took = began.elapsed();
    shared.metrics.plans.inc();
    shared.metrics.plan_seconds.observe(took.as_secs_f64());
    plan.quality.solve_ms = took.as_secs_f64() * 1000.0;
    plan.number = request.number;
    plan.created_at = shared.wall_now();
    let current = shared.state.lock().plan.clone();
    if let Some(current) = &current
        && !differs(current, &plan)
    {
        tracing::debug!(number = current.number, took_ms = plan.quality.solve_ms, "the plan stands");
        return true;
    }
    enforce(shared, plan, next_serial).await
}

/// Writes a plan down, then puts it into force.
async fn enforce(shared: &Arc<Shared>, plan: Plan, next_serial: u64) -> bool {
    let plan = Arc::new(plan);
    let (snapshot, changed) = {
        let state = shared.state.lock();
        let Some(snapshot) = state.snapshot.clone() else { return true };
        let mut changed = Vec::new();
        for (pool, record) in scaling_records(state.plan.as_deref(), &plan, shared.wall_now()) {
            let mut list = state.records.get(&pool).cloned().unwrap_or_default();
            list.push_back(record);
            while list.len() > RECORDS_KEPT {
                list.pop_front();
            }
            changed.push((pool, list));
        }
        (snapshot, changed)
    };
    let (store, saved) = (Arc::clone(&shared.store), Arc::clone(&plan));
    let (serial_saved, records) = (next_serial, changed.clone());
    let result = blocking("saving a plan", move || {
        persist::save_plan(store.as_ref(), &saved, serial_saved, &snapshot, &records)
    })
    .await;
    match result {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            // A plan that is not written down is not acted on: after a crash its names would be used twice.
            shared.metrics.store_failures.inc();
            tracing::error!(%error, number = plan.number, "the plan was not saved and does not come into force");
            shared.request_plan(&mut shared.state.lock(), plan.trigger.clone(), true);
            return false;
        }
        None => return false,
    }
    for (pool, list) in &changed {
        if let Some(r) = list.back() {
            tracing::info!(%pool, plan = plan.number, from = r.from, to = r.to, reason = r.reason, "scales");
        }
    }
    tracing::info!(
        number = plan.number,
        trigger = plan.trigger,
        usd_per_hour = plan.usd_per_hour,
        gap = plan.quality.gap,
        solve_ms = plan.quality.solve_ms,
        "plan in force"
    );
    shared.metrics.show_plan(&plan);
    {
        let mut state = shared.state.lock();
        state.next_serial = next_serial;
        state.learn_load_lines(&plan);
        state.records.extend(changed);
        state.plan = Some(Arc::clone(&plan));
        state.routes_dirty = true;
    }
    shared.plans.send_replace(Some(plan));
    true
}

/// One look of the fast loop.
async fn fast_loop(shared: &Arc<Shared>) -> bool {
    let change = {
        let mut state = shared.state.lock();
        if !state.snapshot_is_current {
            return true;
        }
        let (Some(snapshot), Some(plan)) = (state.snapshot.clone(), state.plan.clone()) else { return true };
        let now = shared.now_seconds();
        let loads = replica_loads(&state, now);
        let demand_rps =
            snapshot.pools.iter().map(|p| (p.id.clone(), state.rate(p, now).rps)).collect::<BTreeMap<_, _>>();
        let next_serial = free_serial(state.next_serial, &snapshot, Some(&plan));
        let input = FastInput {
            plan: &plan,
            snapshot: &snapshot,
            loads: &loads,
            demand_rps: &demand_rps,
            next_serial,
            now,
        };
        fast::decide(&mut state.fast, &input, &shared.config.fast)
    };
    let Some(mut change) = change else { return true };
    if change.added {
        let mut state = shared.state.lock();
        let now = shared.now_seconds();
        let cold = state
            .snapshot
            .as_ref()
            .and_then(|s| s.pools.iter().find(|p| p.id == change.pool))
            .map_or(60.0, |p| p.engine.expected_cold_start_seconds().clamp(30.0, 1800.0));
        let until = now + (2.0 * cold).max(FLOOR_SECONDS);
        state.floors.retain(|_, f| f.until > now);
        state.floors.insert(change.pool.clone(), Floor { rps: change.shown_rps, until });
    }
    change.plan.created_at = shared.wall_now();
    shared.metrics.fast_changes.inc();
    enforce(shared, change.plan, change.next_serial).await
}

fn replica_loads(state: &State, now: f64) -> BTreeMap<plimsoll_fleet::ReplicaId, ReplicaLoad> {
    let fresh = state.demand.config().stale_after_seconds;
    let Some(table) = state.table() else { return BTreeMap::new() };
    table
        .pools
        .iter()
        .flat_map(|p| &p.endpoints)
        .filter_map(|e| {
            let seen = state.engines.get(&e.replica).filter(|s| now - s.at <= fresh)?;
            Some((
                e.replica.clone(),
                ReplicaLoad {
                    outstanding_tokens: seen.report.outstanding_tokens,
                    capacity_tokens: e.coefficients.kv_tokens,
                    waiting: seen.report.waiting,
                },
            ))
        })
        .collect()
}

/// Brings drains and routes up to date with plan, snapshot and agents.
async fn route(shared: &Arc<Shared>) -> bool {
    let timeout = shared.config.agent_timeout_signed();
    let (plan, snapshot, agents, drains) = {
        let mut state = shared.state.lock();
        if !state.snapshot_is_current {
            return true;
        }
        let (Some(plan), Some(snapshot)) = (state.plan.clone(), state.snapshot.clone()) else { return true };
        let wall = shared.wall_now();
        let now = seconds(shared.clock.to_virtual(wall));
        let agents = state.live_agents(wall, timeout);
        let nodes: BTreeSet<NodeName> = agents.keys().cloned().collect();
        let rps = snapshot
            .pools
            .iter()
            .filter_map(|p| Some((p.id.clone(), state.demand.observed_rps(&p.id)?)))
            .collect();
        let mut drain = std::mem::take(&mut state.drain);
        let before = drain.clone();
        drain::decide(
            &mut drain,
            &DrainInput {
                plan: &plan,
                snapshot: &snapshot,
                rps: &rps,
                load_lines: &state.load_lines,
                agents: &nodes,
                unwatched_seconds: UNWATCHED_DRAIN_SECONDS,
                now,
            },
        );
        let changed = drain != before;
        state.drain = drain;
        // The set of agents changes with time alone, so it is compared each time.
        let endpoints_outdated = state.table().is_some_and(|t| {
            t.pools
                .iter()
                .flat_map(|p| &p.endpoints)
                .any(|e| agents.get(&e.node).map(|a| &a.1) != e.agent_address.as_ref())
        });
        if !(changed || endpoints_outdated || std::mem::take(&mut state.routes_dirty)) {
            return true;
        }
        (plan, snapshot, agents, state.drain.clone())
    };

    let mut by_node = Drains::new();
    for replica in snapshot.replicas.iter().filter(|r| drains.draining.contains_key(&r.id)) {
        if let Some(node) = replica.nodes.first() {
            by_node.entry(node.clone()).or_default().insert(replica.id.clone());
        }
    }
    let planner = Arc::clone(&shared.planner);
    let addresses: BTreeMap<NodeName, String> =
        agents.iter().map(|(n, (_, a))| (n.clone(), a.clone())).collect();
    let (current, held, rates) = {
        let state = shared.state.lock();
        let of_engine = |(id, seen): (&ReplicaId, &EngineSeen)| {
            (id.clone(), seen.report.adapters.iter().cloned().collect::<BTreeSet<_>>())
        };
        let held: BTreeMap<_, _> = state.engines.iter().map(of_engine).collect();
        let now = seconds(shared.clock.to_virtual(shared.wall_now()));
        (state.table().cloned(), held, state.adapters.rates(&snapshot, now))
    };
    let in_force = current.clone();
    let version = current.as_ref().map_or(0, |t| t.version);
    let (gone, draining) = (drains.drained.clone(), drains.draining.clone());
    let serving: BTreeSet<_> =
        snapshot.replicas.iter().filter(|r| takes_part(&snapshot, r)).map(|r| r.id.clone()).collect();
    let clock = shared.clock;
    let made = blocking("routing", move || {
        let mut table = planner.routes(&plan, &snapshot, &addresses, version);
        for pool in &mut table.pools {
            pool.endpoints.retain(|e| !gone.contains(&e.replica));
            for e in &mut pool.endpoints {
                // Whether a dropped replica drains already is decided here, by what the others can carry.
                e.draining = draining.contains_key(&e.replica) || !serving.contains(&e.replica);
            }
            if pool.unavailable_reason.is_empty() && pool.endpoints.iter().all(|e| e.draining) {
                pool.unavailable_reason = "its replicas are being stopped".to_owned();
            }
            // Agents wait by the wall's clock.
            pool.wake_wait_ms = (clock.wall_seconds(pool.wake_wait_ms)).max(pool.wake_wait_ms.min(10_000.0));
        }
        crate::adapters::route(&mut table, &snapshot, &rates, &held, in_force.as_deref());
        table.version = version + 1;
        table.plan = plan.number;
        table
    })
    .await;
    let Some(table) = made else {
        shared.state.lock().routes_dirty = true;
        return false;
    };
    if current.as_ref().is_none_or(|t| !t.says_same(&table)) && !publish(shared, table, agents, drains).await
    {
        shared.state.lock().routes_dirty = true;
        return false;
    }
    // Drains go out after the routes that no longer lead there.
    shared.drains.send_if_modified(|held| {
        let differs = **held != by_node;
        if differs {
            *held = Arc::new(by_node);
        }
        differs
    });
    true
}

async fn publish(
    shared: &Arc<Shared>,
    table: RouteTable,
    agents: BTreeMap<NodeName, (String, String)>,
    drains: drain::DrainState,
) -> bool {
    let table = Arc::new(table);
    let (store, saved) = (Arc::clone(&shared.store), Arc::clone(&table));
    let result =
        blocking("saving routes", move || persist::save_routes(store.as_ref(), &saved, &agents, &drains))
            .await;
    match result {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            shared.metrics.store_failures.inc();
            tracing::error!(%error, "routes were not saved and are not sent");
            return false;
        }
        None => return false,
    }
    let endpoints: usize = table.pools.iter().map(|p| p.endpoints.len()).sum();
    tracing::info!(version = table.version, plan = table.plan, endpoints, "routes in force");
    shared.metrics.show_routes(&table);
    shared.state.lock().push_table(Arc::clone(&table));
    shared.routes.send_replace(Some(table));
    true
}

/// A lease's end as wall time, milliseconds since 1970.
pub fn lease_end_ms(shared: &Shared, virtual_seconds: f64) -> i64 {
    shared.clock.to_wall(timestamp(virtual_seconds)).as_millisecond()
}
