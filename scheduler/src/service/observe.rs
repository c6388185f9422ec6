//! What the operator and people are shown, merged over all agents.

use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::{AdapterRoute, ModelPool, ReplicaId, ReplicaPhase};
use plimsoll_proto::v1;

use super::shared::Shared;
use crate::clock::seconds;
use crate::control::State;

/// Builds the observations of this moment.
pub fn observations(shared: &Shared, state: &State) -> v1::Observations {
    let wall = shared.wall_now();
    let now = seconds(shared.clock.to_virtual(wall));
    let timeout = shared.config.agent_timeout_signed();
    let window = state.demand.config().window_seconds;
    let agents = state.agents.values().filter(|a| wall.duration_since(a.last_seen) <= timeout).count();
    let mut pools = Vec::new();
    if let Some(snapshot) = &state.snapshot {
        for pool in &snapshot.pools {
            let seen = state.demand.seen(pool, window, now);
            let (finished, refused, failed) = state.demand.totals(&pool.id);
            let slo = pool.slo_classes.first().map(|c| c.slo).unwrap_or_default();
            let own = snapshot.replicas.iter().filter(|r| r.pool == pool.id);
            pools.push(v1::PoolObservation {
                pool: pool.id.to_string(),
                rps: state.demand.observed_rps(&pool.id).unwrap_or(0.0),
                ttft_ms: seen.ttft_ms,
                tpot_ms: seen.tpot_ms,
                e2e_ms: seen.e2e_ms,
                attainment: seen.attainment,
                finished,
                refused,
                failed,
                output_tokens_per_second: seen.output_tokens_per_second,
                usd_total: state.usd.get(&pool.id).copied().unwrap_or(0.0),
                holding: state.demand.holding(&pool.id),
                ready_replicas: own.filter(|r| r.phase == ReplicaPhase::Ready).count() as u32,
                wanted_replicas: state
                    .plan
                    .as_ref()
                    .and_then(|p| p.pool(&pool.id))
                    .map_or(0, |p| p.replicas.len() as u32),
                served_name: pool.served_name.clone(),
                ttft_objective_ms: slo.ttft.map(|o| o.ms),
                tpot_objective_ms: slo.tpot.map(|o| o.ms),
                canary: canary(state, pool),
                drift: pool.drift_text().unwrap_or_default(),
            });
        }
    }
    let fresh = state.demand.config().stale_after_seconds;
    v1::Observations {
        pools,
        drained_replicas: state.drain.drained.iter().map(ToString::to_string).collect(),
        stalled_replicas: state
            .engines
            .iter()
            .filter(|(_, e)| e.report.stalled && now - e.at <= fresh)
            .map(|(id, _)| id.to_string())
            .collect(),
        agents: agents as u32,
        adapters: adapters(state),
    }
}

/// Where the routes in force place adapters, and what came of it.
fn adapters(state: &State) -> Vec<v1::AdapterObservation> {
    let Some(table) = state.table() else { return Vec::new() };
    let names = |ids: &[ReplicaId]| ids.iter().map(ToString::to_string).collect();
    let failure = |adapter: &AdapterRoute| {
        let failures = adapter.placed.iter().filter_map(|id| {
            let engine = state.engines.get(id)?;
            let (_, why) = engine.report.adapter_failures.iter().find(|(a, _)| *a == adapter.served_name)?;
            Some(format!("replica {id}: {why}"))
        });
        failures.take(1).collect()
    };
    let all = table.pools.iter().flat_map(|pool| &pool.adapters);
    all.map(|a| v1::AdapterObservation {
        served_name: a.served_name.clone(),
        placed: names(&a.placed),
        held: names(&a.held),
        failure: failure(a),
        ..measured(state, a)
    })
    .collect()
}

/// What agents have measured of an adapter.
fn measured(state: &State, adapter: &AdapterRoute) -> v1::AdapterObservation {
    let mut all = v1::AdapterObservation::default();
    for (id, engine) in &state.engines {
        let known = engine.report.adapter_states.iter().find(|s| s.adapter == adapter.served_name);
        let in_engine = adapter.held.contains(id);
        if in_engine || known.is_some_and(|s| s.on_disk) {
            let load_ms = known.and_then(|s| s.load_ms);
            all.places.push(v1::AdapterPlace { replica: id.to_string(), in_engine, load_ms });
        }
        let Some(known) = known else { continue };
        all.bytes = all.bytes.max(known.bytes);
        all.hits = all.hits.saturating_add(known.hits);
        all.misses = all.misses.saturating_add(known.misses);
    }
    all.places.sort_by(|a, b| a.replica.cmp(&b.replica));
    all
}

/// The judgement under way, or else that an earlier one stopped a rollout.
fn canary(state: &State, pool: &ModelPool) -> Option<v1::Canary> {
    let Some(canary) = state.canaries.of(&pool.id) else {
        let stopped = (!pool.rollout.stopped.is_empty()).then(|| pool.rollout.stopped.clone());
        let standing = v1::CanaryStanding::Regressed.into();
        return stopped.map(|text| v1::Canary { revision: String::new(), standing, text });
    };
    let standing = match canary.standing {
        Standing::Watching => v1::CanaryStanding::Watching,
        Standing::Passed => v1::CanaryStanding::Passed,
        Standing::Held => v1::CanaryStanding::Held,
        Standing::Regressed => v1::CanaryStanding::Regressed,
    };
    Some(v1::Canary {
        revision: canary.revision.clone(),
        standing: standing.into(),
        text: canary.text.clone(),
    })
}
