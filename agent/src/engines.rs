//! The engines of this node: probes, liveness, drain acknowledgement.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use plimsoll_fleet::telemetry::{AdapterState, EngineReport};
use plimsoll_fleet::{AdapterRoute, ReplicaId};
use tokio_util::sync::CancellationToken;

use crate::adapters::store::key;
use crate::adapters::tend;
use crate::adapters::upkeep::Counts;
use crate::driver::Driver;
use crate::metrics::EngineLabels;
use crate::proxy::upstream::Upstream;
use crate::scrape;
use crate::shared::{LocalReplica, Shared};
use crate::trial::{self, Outcome};

/// How often waiting requests are looked at even if nothing happened: assumed prefills and deadlines pass silently.
const PUMP_EVERY: Duration = Duration::from_millis(20);

/// Probes every local engine until cancelled.
pub(crate) async fn run(shared: Arc<Shared>, upstream: Upstream, stop: CancellationToken) {
    let mut probes: HashMap<ReplicaId, CancellationToken> = HashMap::new();
    let mut changed = shared.changed.subscribe();
    let mut pump = tokio::time::interval(PUMP_EVERY);
    pump.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let locals = shared.locals.load_full();
        probes.retain(|id, token| {
            let keep = locals.contains_key(id);
            if !keep {
                token.cancel();
            }
            keep
        });
        for id in locals.keys() {
            if !probes.contains_key(id) {
                let token = stop.child_token();
                probes.insert(id.clone(), token.clone());
                tokio::spawn(tend::run(shared.clone(), upstream.clone(), id.clone(), token.clone()));
                tokio::spawn(probe(shared.clone(), upstream.clone(), id.clone(), token));
            }
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                result = changed.changed() => if result.is_err() { return } else { break },
                _ = pump.tick() => {
                    let now = shared.clock.now_ms();
                    for local in locals.values() {
                        if local.engine.counts().1 > 0 {
                            local.engine.pump(&local.replica, now);
                        }
                    }
                }
            }
        }
    }
}

async fn probe(shared: Arc<Shared>, upstream: Upstream, id: ReplicaId, stop: CancellationToken) {
    let every = shared.config.limits.probe_interval;
    let within = (every * 2).max(Duration::from_secs(1));
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        // The entry may have moved (an engine restarted on another port).
        let Some(local) = shared.locals.load().get(&id).cloned() else { return };
        let address = &local.endpoint.engine_address;
        let driver = Driver::of(local.endpoint.engine);
        let looked = async {
            tokio::join!(
                is_well(&upstream, address, driver, within),
                upstream.get(address, "/metrics", within)
            )
        };
        let (healthy, metrics) = tokio::select! {
            () = stop.cancelled() => return,
            looked = looked => looked,
        };
        // Only a good answer changes what is known; silence is not zero.
        let scraped = match metrics {
            Ok((200..=299, text)) => {
                std::str::from_utf8(&text).map(|text| scrape::parse(driver, text)).unwrap_or_default()
            }
            _ => scrape::EngineMetrics::default(),
        };
        let made = scraped.token_counter.is_some_and(|tokens| tokens > 0.0);
        observe(&shared, &local, healthy, scraped);
        if !local.engine.draining() && local.engine.liveness.lock().awaits_token() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = try_out(&shared, &local, &upstream, made) => {}
            }
        }
    }
}

/// Whether an engine says that it is well.
async fn is_well(upstream: &Upstream, address: &str, driver: Driver, within: Duration) -> bool {
    for path in driver.health_paths() {
        match upstream.get(address, path, within).await {
            Ok((404, _)) => {}
            answer => return matches!(answer, Ok((200..=299, _))),
        }
    }
    false
}

/// Lets an engine show that it makes tokens; `made`: its own counters say that it has.
async fn try_out(shared: &Shared, local: &LocalReplica, upstream: &Upstream, made: bool) {
    let endpoint = &local.endpoint;
    let outcome = if made {
        Outcome::Token
    } else {
        trial::ask(upstream, &endpoint.engine_address, &endpoint.engine_model).await
    };
    let replica = &local.replica.id;
    match outcome {
        Outcome::Token => tracing::info!(%replica, "the engine makes tokens"),
        Outcome::NoSuchRequest(status) => {
            tracing::info!(%replica, status, "the engine answers, and refuses to complete a text");
        }
        Outcome::None(why) => {
            // The first time, and then about once a minute.
            if local.engine.liveness.lock().made_none() % 60 == 1 {
                tracing::warn!(%replica, %why, "the engine makes no token; nothing is sent to it");
            }
            return;
        }
    }
    local.engine.liveness.lock().proved();
    shared.refresh_state(local);
    shared.report_now.notify_one();
    shared.changed.send_modify(|n| *n += 1);
}

fn observe(shared: &Shared, local: &LocalReplica, healthy: bool, scraped: scrape::EngineMetrics) {
    let now = shared.clock.now_ms();
    let engine = &local.engine;
    let (running, waiting) = engine.counts();
    // Whether it moves can only be told from its own counters, or from tokens that pass through here: an engine without
    // metrics that works on answers which do not stream is not to be suspected.
    let visible = scraped.token_counter.is_some() || engine.streaming() > 0;
    let has_work = visible && (running > 0 || scraped.running.is_some_and(|r| r > 0.0));
    // A long prompt may take longer than the limit before its first token.
    let load = local.replica.load(now);
    let prefill_ms =
        crate::route::predict(&local.endpoint.coefficients, &load, load.prefill_tokens, 0.0, 1.0).ttft_ms();
    let limit_ms = shared.clock.model_ms(shared.config.limits.stall_after).max(4.0 * prefill_ms);
    let (stalled, was_healthy, is_healthy) = {
        let mut liveness = engine.liveness.lock();
        let was = liveness.healthy();
        liveness.probed(healthy);
        let stalled = liveness.observe(now, has_work, scraped.token_counter, limit_ms);
        (stalled, was, liveness.healthy())
    };
    let was_stalled = engine.stalled.swap(stalled, Ordering::Relaxed);
    if stalled != was_stalled || was_healthy != is_healthy {
        tracing::info!(replica = %local.replica.id, healthy = is_healthy == Some(true), stalled, "engine state");
        shared.report_now.notify_one();
    }
    let empty = running == 0
        && waiting == 0
        && scraped.running.is_none_or(|r| r == 0.0)
        && scraped.waiting.is_none_or(|w| w == 0.0);
    {
        let mut since = engine.empty_since.lock();
        *since = (engine.draining() && empty).then(|| since.unwrap_or(now));
    }
    let tokens = scraped.token_counter;
    let before = std::mem::replace(&mut *engine.metrics.lock(), scraped).token_counter;
    // Counters start again where the engine does, and so does its cache.
    let restarted = before.zip(tokens).is_some_and(|(before, now)| now < before);
    if restarted || (was_healthy == Some(true) && is_healthy == Some(false)) {
        engine.held.lock().lost();
    }
    shared.refresh_state(local);
    if stalled || is_healthy == Some(false) {
        // They may still be answered elsewhere.
        engine.refuse_waiting(&local.replica);
    } else {
        engine.pump(&local.replica, now);
    }
    let metrics = &shared.config.metrics;
    let labels = EngineLabels { agent: shared.config.name.clone(), replica: local.replica.id.to_string() };
    metrics.engine_running.get_or_create(&labels).set(running as i64);
    metrics.engine_waiting.get_or_create(&labels).set(waiting as i64);
    metrics.engine_up.get_or_create(&labels).set(i64::from(is_healthy == Some(true) && !stalled));
}

/// What is known of the adapters of an engine's pool: of those of which anything is.
fn states(shared: &Shared, local: &LocalReplica) -> Vec<AdapterState> {
    let adapters = local.engine.adapters.lock();
    let state = |adapter: &AdapterRoute| {
        let counts = adapters.counts(&adapter.served_name);
        let on_disk = shared.store.as_ref().and_then(|s| s.size(&key(&adapter.source, &adapter.files)));
        (counts != Counts::default() || on_disk.is_some()).then(|| AdapterState {
            adapter: adapter.served_name.clone(),
            bytes: on_disk,
            load_ms: counts.load_ms,
            on_disk: on_disk.is_some(),
            hits: counts.hits,
            misses: counts.misses,
        })
    };
    local.pool.route.adapters.iter().filter_map(state).collect()
}

/// Reports of all local engines, and of drains asked for replicas that this agent does not know.
///
/// `drained` is safe to act on: from the moment an engine drains, its agent refuses every new request, whatever route
/// table the sender goes by; so once nothing is running or waiting (and has not been for `drain_settle`, which covers
/// figures that lag), nothing will be again.
pub(crate) fn reports(shared: &Shared) -> Vec<EngineReport> {
    let now = shared.clock.now_ms();
    let settle_ms = shared.clock.model_ms(shared.config.limits.drain_settle);
    let locals = shared.locals.load();
    let mut out: Vec<EngineReport> = locals
        .values()
        .map(|local| {
            let metrics = local.engine.metrics.lock().clone();
            let empty_since = *local.engine.empty_since.lock();
            let (held, adapter_failures) = {
                let adapters = local.engine.adapters.lock();
                (adapters.held().map(|held| held.iter().cloned().collect()), adapters.failures())
            };
            EngineReport {
                replica: local.replica.id.clone(),
                healthy: local.engine.liveness.lock().healthy() == Some(true),
                stalled: local.engine.stalled.load(Ordering::Relaxed),
                running: metrics.running,
                waiting: metrics.waiting,
                kv_usage: metrics.kv_usage,
                outstanding_tokens: local.engine.outstanding_tokens(),
                adapters: held.unwrap_or(metrics.adapters),
                adapter_failures,
                adapter_states: states(shared, local),
                drained: local.engine.draining()
                    && local.engine.counts() == (0, 0)
                    && empty_since.is_some_and(|since| now - since >= settle_ms),
            }
        })
        .collect();
    for id in shared.drains.lock().iter().filter(|id| !locals.contains_key(*id)) {
        // Nothing goes to a replica this agent has never heard of, or has outlived.
        out.push(EngineReport {
            replica: id.clone(),
            healthy: false,
            stalled: false,
            running: None,
            waiting: None,
            kv_usage: None,
            outstanding_tokens: 0.0,
            adapters: Vec::new(),
            adapter_failures: Vec::new(),
            adapter_states: Vec::new(),
            drained: true,
        });
    }
    out.sort_by(|a, b| a.replica.cmp(&b.replica));
    out
}
