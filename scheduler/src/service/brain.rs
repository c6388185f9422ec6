//! The loops: pulse (time passes), and brain (plan, fast loop, drains, routes; one at a time).

use std::sync::Arc;
use std::time::Duration;

use plimsoll_fleet::{Plan, RouteTable};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::observe::observations;
use super::persist;
use super::shared::Shared;
use crate::clock::timestamp;
use crate::control::{Pace, Routing};
use crate::planner::Planned;
use crate::records::differs;

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
            state.pulse(shared.wall_now());
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
    let (demand, drain, canaries, cold_starts) = {
        let state = shared.state.lock();
        (state.demand.clone(), state.drain.clone(), state.canaries.clone(), state.cold_starts.clone())
    };
    let store = Arc::clone(&shared.store);
    if let Some(Err(error)) = blocking("saving demand", move || {
        persist::save_soft(store.as_ref(), &demand, &drain, &canaries, &cold_starts)
    })
    .await
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

/// Plans, amends, drains and routes, one after the other, whenever something woke it.
pub async fn brain(shared: Arc<Shared>, stop: CancellationToken) {
    // The fast loop looks once a virtual second, but four times a wall second at most.
    let period = shared.clock.wall_seconds(1.0).clamp(0.25, 1.0);
    let mut ticks = interval(Duration::from_secs_f64(period));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let config = &shared.config;
    let mut pace = Pace::new(config.replan_interval.as_secs_f64(), config.debounce.as_secs_f64());
    let mut retry_at: Option<Instant> = None;
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
        let due = pace.due(&mut shared.state.lock(), shared.wall_now());
        let mut ok = true;
        if let Some(trigger) = due {
            ok = replan(&shared, trigger).await;
            pace.planned(shared.wall_now());
        } else {
            ok &= fast_loop(&shared).await;
        }
        ok &= route(&shared).await;
        if !ok {
            retry_at = Some(Instant::now() + RETRY);
        }
    }
}

/// Makes a plan and puts it into force if it differs.
#[tracing::instrument(skip(shared))]
async fn replan(shared: &Arc<Shared>, trigger: String) -> bool {
    let request = shared.state.lock().plan_request(trigger.clone(), shared.wall_now());
    let Some(request) = request else { return true };
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
        (snapshot, state.records_of(&plan, shared.wall_now()))
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
    shared.state.lock().put_into_force(Arc::clone(&plan), next_serial, changed);
    shared.plans.send_replace(Some(plan));
    true
}

/// One look of the fast loop.
async fn fast_loop(shared: &Arc<Shared>) -> bool {
    let change = shared.state.lock().fast(shared.wall_now(), &shared.config.fast);
    let Some(change) = change else { return true };
    shared.metrics.fast_changes.inc();
    enforce(shared, change.plan, change.next_serial).await
}

/// Brings drains and routes up to date with plan, snapshot and agents.
async fn route(shared: &Arc<Shared>) -> bool {
    let timeout = shared.config.agent_timeout_signed();
    let Some(routing) = shared.state.lock().routing(shared.wall_now(), timeout) else { return true };
    let routing = Arc::new(routing);
    let (planner, from) = (Arc::clone(&shared.planner), Arc::clone(&routing));
    let Some(made) = blocking("routing", move || from.table(planner.as_ref())).await else {
        shared.state.lock().routes_dirty = true;
        return false;
    };
    if let Some(table) = made
        && !publish(shared, table, &routing).await
    {
        shared.state.lock().routes_dirty = true;
        return false;
    }
    // Drains go out after the routes that no longer lead there.
    shared.drains.send_if_modified(|held| {
        let differs = **held != routing.drains;
        if differs {
            *held = Arc::new(routing.drains.clone());
        }
        differs
    });
    true
}

async fn publish(shared: &Arc<Shared>, table: RouteTable, routing: &Arc<Routing>) -> bool {
    let table = Arc::new(table);
    let (store, saved, routing) = (Arc::clone(&shared.store), Arc::clone(&table), Arc::clone(routing));
    let save = move || persist::save_routes(store.as_ref(), &saved, &routing.agents, &routing.drain);
    let result = blocking("saving routes", save).await;
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
