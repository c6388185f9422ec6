//! Routes: what agents need to know, derived from a plan and what runs.
//!
//! Ready replicas take requests. One that the plan no longer wants takes none from the moment that all wanted ones
//! are ready; until then it helps out, so that a change of shape never leaves a gap.

use std::collections::BTreeMap;

use plimsoll_engine::{KvTransfer, LinkTier};
use plimsoll_fleet::pairing;
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::pool::{EngineKind, Mode};
use plimsoll_fleet::rollout::Gate;
use plimsoll_fleet::{
    ClusterSnapshot, Endpoint, HandOver, HandOverProtocol, ModelPool, NodeName, Plan, PoolPlan, PoolRoute,
    ReplicaPhase, ReplicaStatus, RequestClass, Role, RouteTable, Shape, StepCoefficients,
};

use crate::plan::candidates::planned_classes;
use crate::plan::performance::{Performance, Query};
use crate::plan::{EngineModel, engine_config};

/// For a replica whose shape the engine model cannot describe (adopted, or its class is gone): a mid-size model on a
/// mid-size accelerator, so that choosing among replicas still works.
const UNKNOWN: StepCoefficients = StepCoefficients {
    base_ms: 30.0,
    per_request_ms: 0.05,
    per_context_token_ms: 1e-4,
    per_prefill_token_ms: 0.05,
    api_overhead_ms: 17.0,
    kv_tokens: 100_000.0,
    max_running: 256,
    max_batched_tokens: 8192,
};

/// Where SGLang's prefill servers have their bootstrap server unless told otherwise (`--disaggregation-bootstrap-port`).
const SGLANG_BOOTSTRAP_PORT: u16 = 8998;

/// Stands for the node of endpoints that Plimsoll does not run: no agent answers for it, so that routers send to the
/// endpoint itself.
const OUTSIDE: &str = "external.plimsoll.dev";

/// Derives the route table of a plan. `agents` gives the address of each node's agent; `previous_version` is the
/// version of the table in force.
///
/// Pools of the snapshot that have no endpoint are listed with the reason; pools that are gone are not. O(replicas).
pub fn routes(
    plan: &Plan,
    snapshot: &ClusterSnapshot,
    agents: &BTreeMap<NodeName, String>,
    previous_version: u64,
) -> RouteTable {
    let mut pools: Vec<&ModelPool> = snapshot.pools.iter().collect();
    pools.sort_by(|a, b| a.id.cmp(&b.id));
    pools.dedup_by(|a, b| a.id == b.id);
    RouteTable {
        version: previous_version.saturating_add(1),
        plan: plan.number,
        pools: pools.into_iter().map(|p| route(plan.pool(&p.id), snapshot, agents, p)).collect(),
        tenant_weights: tenant_weights(snapshot),
    }
}

/// Those that are not what they would be without being said.
fn tenant_weights(snapshot: &ClusterSnapshot) -> Vec<(String, f64)> {
    let named = snapshot.tenants.iter().filter(|t| t.weight.is_finite() && t.weight > 0.0 && t.weight != 1.0);
    named
        .map(|t| (&t.name, t.weight))
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .map(|(n, w)| (n.clone(), w))
        .collect()
}

fn route(
    plan: Option<&PoolPlan>,
    snapshot: &ClusterSnapshot,
    agents: &BTreeMap<NodeName, String>,
    pool: &ModelPool,
) -> PoolRoute {
    let replicas: Vec<&ReplicaStatus> = snapshot.replicas.iter().filter(|r| r.pool == pool.id).collect();
    let external = pool.engine.kind == EngineKind::External;
    let wanted = |r: &ReplicaStatus| external || plan.is_none_or(|p| p.replicas.iter().any(|w| w.id == r.id));
    let place = |r: &ReplicaStatus| {
        r.nodes.first().cloned().or_else(|| NodeName::new(OUTSIDE).ok().filter(|_| external))
    };
    let ready =
        |r: &&&ReplicaStatus| r.phase == ReplicaPhase::Ready && r.address.is_some() && place(r).is_some();
    let wanted_ready = replicas.iter().filter(ready).filter(|r| wanted(r)).count();
    let want = plan.map_or(0, |p| p.replicas.len());
    // What a canary is compared with takes its share of requests beside it.
    let compared =
        pool.rollout.gate == Gate::Canary && replicas.iter().filter(ready).any(|r| r.outdated && !wanted(r));
    let settled = plan.is_some() && wanted_ready == want && !compared;
    let mix = plan.map(|p| planned_classes(pool, &p.demand.classes)).unwrap_or_default();
    let mut coefficients: BTreeMap<Shape, StepCoefficients> = BTreeMap::new();
    let mut endpoints = Vec::new();
    for r in &replicas {
        let serving = r.phase == ReplicaPhase::Ready;
        let (Some(address), Some(node)) = (&r.address, place(r)) else { continue };
        if !serving && r.phase != ReplicaPhase::Draining {
            continue;
        }
        let step = *coefficients
            .entry(r.shape.clone())
            .or_insert_with(|| step(snapshot, pool, &r.shape, &mix).unwrap_or(UNKNOWN));
        endpoints.push(Endpoint {
            replica: r.id.clone(),
            zone: snapshot.nodes.iter().find(|n| n.name == node).map(|n| n.zone.clone()).unwrap_or_default(),
            role: r.shape.role,
            agent_address: agents.get(&node).cloned(),
            node,
            engine_address: address.clone(),
            engine_model: pool.served_name.clone(),
            weights: Vec::new(),
            coefficients: step,
            draining: !serving
                || (settled && pool.mode == Mode::Enforce && !wanted(r))
                || !takes_part(snapshot, r),
            engine: pool.engine.kind,
            hand_over: hand_over(snapshot, pool, r, &mix),
        });
    }
    endpoints.sort_by(|a, b| a.replica.cmp(&b.replica));
    // While a change is under way every ready replica helps alike; weights are for the fleet as planned.
    if let Some(p) = plan.filter(|_| settled) {
        weigh(p, &replicas, &mut endpoints);
    }
    let open = endpoints.iter().any(|e| !e.draining);
    let waking = match plan.map(|p| p.outcome) {
        Some(PoolOutcome::ScaledToZero) => true,
        _ => want > 0,
    };
    let cold = pool.engine.expected_cold_start_seconds();
    let cold_ms = if cold.is_finite() { cold.clamp(0.0, 3600.0) * 1e3 } else { 60_000.0 };
    PoolRoute {
        pool: pool.id.clone(),
        served_name: pool.served_name.clone(),
        slo_classes: pool.slo_classes.clone(),
        priority: pool.priority,
        max_context_tokens: pool
            .max_context_tokens
            .map_or(pool.architecture.max_context_tokens, |m| m.min(pool.architecture.max_context_tokens)),
        usd_per_million_tokens: plan
            .and_then(|p| token_prices(p, &mix, coefficients.values().next()?))
            .unwrap_or((0.0, 0.0)),
        endpoints,
        // Half again as long as a start is expected to take, and the loops' own delays.
        wake_wait_ms: if waking { 1.5 * cold_ms + 10_000.0 } else { 0.0 },
        objectives: snapshot
            .priorities
            .iter()
            .filter(|p| p.pool == pool.id)
            .map(|p| (p.objective.clone(), p.priority))
            .collect(),
        adapters: Vec::new(),
        unavailable_reason: if open { String::new() } else { unavailable(plan, &replicas, pool) },
    }
}

/// Whether a replica serves and, where prefill and decode are apart, has a compatible counterpart that does.
pub(crate) fn takes_part(snapshot: &ClusterSnapshot, replica: &ReplicaStatus) -> bool {
    let serves = |r: &&ReplicaStatus| r.phase == ReplicaPhase::Ready;
    if !serves(&replica) {
        return false;
    }
    // Only where there are such replicas is it worth a look at all others.
    replica.shape.role == Role::Mixed
        || snapshot
            .pools
            .iter()
            .find(|p| p.id == replica.pool)
            .is_none_or(|pool| pairing::is_paired(pool, replica, snapshot.replicas.iter().filter(serves)))
}

/// Prompt that a transfer's time a token is taken at, tokens, where the demand says none.
const TYPICAL_PROMPT: f64 = 1000.0;

/// What makes a prefill or decode replica half of a pair.
fn hand_over(
    snapshot: &ClusterSnapshot,
    pool: &ModelPool,
    replica: &ReplicaStatus,
    classes: &[RequestClass],
) -> Option<HandOver> {
    if replica.shape.role == Role::Mixed {
        return None;
    }
    let protocol = HandOverProtocol::of(pool.engine.kind)?;
    let shape = &replica.shape;
    let accelerator = snapshot.accelerators.iter().find(|a| a.name == shape.accelerator)?;
    let variant = pool.variant(&shape.variant)?;
    let rps: f64 = classes.iter().map(|c| c.rps).sum();
    let prompt = match classes.iter().map(|c| c.rps * c.input_tokens).sum::<f64>() / rps {
        mean if mean.is_finite() && mean >= 1.0 => mean,
        _ => TYPICAL_PROMPT,
    };
    // Both sides alike: a pair is as fast as the slower of its halves.
    let over = |tier| {
        let side = (accelerator, shape);
        KvTransfer::new(&pool.architecture, variant, side, side, tier)
    };
    let set_up_ms = over(LinkTier::Network).ms(0.0);
    let per_token = |tier| (over(tier).ms(prompt) - set_up_ms) / prompt;
    let figures = [set_up_ms, per_token(LinkTier::Network), per_token(LinkTier::Domain)];
    if figures.iter().any(|ms| !ms.is_finite()) {
        return None;
    }
    let [set_up_ms, network_ms_per_token, node_ms_per_token] = figures;
    Some(HandOver {
        protocol,
        format: pairing::cache_format(pool, replica)?,
        tensor_parallel: shape.tensor_parallel,
        bootstrap_port: match protocol {
            HandOverProtocol::Sglang => SGLANG_BOOTSTRAP_PORT,
            HandOverProtocol::Vllm => 0,
        },
        network_ms_per_token,
        node_ms_per_token,
        set_up_ms,
    })
}

fn step(
    snapshot: &ClusterSnapshot,
    pool: &ModelPool,
    shape: &Shape,
    classes: &[RequestClass],
) -> Option<StepCoefficients> {
    let accelerator = snapshot.accelerators.iter().find(|a| a.name == shape.accelerator)?;
    let variant = pool.variant(&shape.variant)?;
    EngineModel.coefficients(&Query {
        pool,
        variant,
        accelerator,
        shape,
        classes,
        arrival_scv: 1.0,
        margin: 0.0,
        stretch: 1.0,
        engine: engine_config(pool, &snapshot.adapters),
        limits: None,
    })
}

/// Gives each endpoint its share of each class's planned flow: those that answer (all but prefill replicas) of what is answered, and prefill
/// replicas of what is prefilled apart, so that what some prefill others decode. Classes of which no flow reaches a ready replica keep an even
/// share.
fn weigh(plan: &PoolPlan, replicas: &[&ReplicaStatus], endpoints: &mut [Endpoint]) {
    let shape_of = |e: &Endpoint| replicas.iter().find(|r| r.id == e.replica).map(|r| r.shape.clone());
    let shapes: Vec<Option<Shape>> = endpoints.iter().map(shape_of).collect();
    let open: Vec<bool> = endpoints.iter().map(|e| !e.draining).collect();
    let answers: Vec<bool> = endpoints.iter().map(|e| e.role != Role::Prefill).collect();
    let in_zone: Vec<String> = endpoints.iter().map(|e| e.zone.clone()).collect();
    let mut classes: Vec<&str> = plan.flows.iter().map(|f| f.class.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    for class in classes {
        let mut weights = vec![0.0; endpoints.len()];
        for flow in plan.flows.iter().filter(|f| f.class == class) {
            let here = |i: usize| flow.zone.is_empty() || flow.zone == in_zone[i];
            let members: Vec<usize> = (0..endpoints.len())
                .filter(|i| open[*i] && here(*i) && shapes[*i].as_ref() == Some(&flow.shape))
                .collect();
            for i in &members {
                weights[*i] += flow.rps / members.len() as f64;
            }
        }
        for part in [true, false] {
            let own = |i: &usize| answers[*i] == part;
            let total: f64 = (0..endpoints.len()).filter(own).map(|i| weights[i]).sum();
            if total > 0.0 {
                for i in (0..endpoints.len()).filter(own) {
                    endpoints[i].weights.push((class.to_owned(), weights[i] / total));
                }
            }
        }
    }
}

/// Splits the pool's cost over prompt and answer tokens by the engine time each takes, $ per million. With no demand
/// the pool counts as loaded to its line.
fn token_prices(plan: &PoolPlan, mix: &[RequestClass], step: &StepCoefficients) -> Option<(f64, f64)> {
    let rps = plan.served_rps();
    let rate = if rps > 1e-9 { rps } else { plan.max_rps() };
    let replicas = plan.replicas.len() as f64;
    if rate <= 0.0 || replicas <= 0.0 || mix.is_empty() {
        return None;
    }
    let total: f64 = mix.iter().map(|c| c.rps).sum();
    let share = |c: &RequestClass| if total > 0.0 { c.rps / total } else { 1.0 / mix.len() as f64 };
    let input: f64 =
        mix.iter().map(|c| share(c) * c.input_tokens * (1.0 - c.cached_fraction.clamp(0.0, 1.0))).sum();
    let output: f64 = mix.iter().map(|c| share(c) * c.output_tokens).sum();
    let context: f64 = mix.iter().map(|c| share(c) * (c.input_tokens + 0.5 * c.output_tokens)).sum();
    // Requests running in one replica, by Little's law.
    let tpot_s = plan.prediction.tpot_ms.unwrap_or(step.base_ms) / 1e3;
    let running = (rate / replicas * output * tpot_s).max(1.0);
    let prompt_ms = step.per_prefill_token_ms;
    let answer_ms = step.base_ms / running + step.per_request_ms + context * step.per_context_token_ms;
    let work_per_hour = 3600.0 * rate * (input * prompt_ms + output * answer_ms);
    let usd_per_ms = plan.usd_per_hour / work_per_hour;
    usd_per_ms.is_finite().then_some((1e6 * usd_per_ms * prompt_ms, 1e6 * usd_per_ms * answer_ms))
}

fn unavailable(plan: Option<&PoolPlan>, replicas: &[&ReplicaStatus], pool: &ModelPool) -> String {
    let Some(plan) = plan else { return "the pool has not been planned yet".to_owned() };
    if plan.outcome == PoolOutcome::ScaledToZero {
        return format!("scaled to zero: {}", plan.why.summary);
    }
    if pool.mode == Mode::Advise {
        return "spec.mode is Advise: the plan is shown, no replica is started".to_owned();
    }
    if plan.replicas.is_empty() {
        return format!("{}: {}", plan.outcome, plan.why.summary);
    }
    let message = replicas
        .iter()
        .find(|r| r.phase != ReplicaPhase::Ready && !r.message.is_empty())
        .map(|r| format!(" ({}: {})", r.id, r.message))
        .unwrap_or_default();
    format!("starting: 0 of {} replicas ready{message}", plan.replicas.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::support::*;

    fn world() -> (World, Plan) {
        let mut w = World::up();
        w.add(pool("chat", "llama-3.1-8b", 800.0, 50.0), demand(vec![class("a", 30.0, 1200.0, 250.0)]));
        let p = w.run();
        (w, p)
    }

    fn agents() -> BTreeMap<NodeName, String> {
        [(NodeName::new("h-0").unwrap(), "10.0.0.1:80".to_owned())].into()
    }

    #[test]
    fn ready_replicas_get_their_share_of_each_class() {
        let (w, p) = world();
        let t = routes(&p, &w.snapshot, &agents(), 6);
        assert_eq!((t.version, t.plan), (7, p.number));
        let r = &t.pools[0];
        assert_eq!(r.endpoints.len(), p.pools[0].replicas.len());
        let total: f64 = r.endpoints.iter().flat_map(|e| &e.weights).map(|(_, w)| w).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
        assert!(
            r.endpoints
                .iter()
                .all(|e| !e.draining && e.coefficients.base_ms > 0.0 && e.engine_model == "chat")
        );
        assert!(r.usd_per_million_tokens.0 > 0.0 && r.usd_per_million_tokens.1 > r.usd_per_million_tokens.0);
        assert_eq!(r.unavailable_reason, "");
        assert_eq!(r.objective_priority(Some("batch")), 0);
        let mut w = w;
        let of = |pool: &str, objective: &str, priority| plimsoll_fleet::RequestPriority {
            pool: pool.parse().unwrap(),
            objective: objective.to_owned(),
            priority,
        };
        w.snapshot.priorities = vec![of("chat", "batch", -1), of("other", "batch", 7)];
        let r = routes(&p, &w.snapshot, &agents(), 7).pools.remove(0);
        let named = [Some("batch"), Some("unknown"), None];
        assert_eq!(named.map(|name| r.objective_priority(name)), [-1, 0, 0]);
    }

    #[test]
    fn prefill_and_decode_serve_only_beside_a_compatible_counterpart() {
        use plimsoll_fleet::pairing::{Incompatible, compatible};
        let (mut w, p) = world();
        let replica = |id: &str, role, revision: &str| {
            let mut r = w.snapshot.replicas[0].clone();
            r.id = plimsoll_fleet::ReplicaId::new(id).unwrap();
            (r.shape.role, r.revision) = (role, revision.to_owned());
            r
        };
        let (prefill, decode) = (replica("p1", Role::Prefill, "one"), replica("d1", Role::Decode, "one"));
        let newer = replica("p2", Role::Prefill, "two");
        let mut coming = replica("d2", Role::Decode, "two");
        coming.phase = ReplicaPhase::Starting;
        let pool = w.snapshot.pools[0].clone();
        let pair = |p: &ReplicaStatus, d: &ReplicaStatus| compatible(&pool, p, d);
        assert_eq!(pair(&prefill, &decode), Ok(()));
        assert!(matches!(pair(&newer, &decode), Err(Incompatible::Revision { .. })));
        assert!(matches!(pair(&decode, &prefill), Err(Incompatible::Roles { .. })));
        let unknown = |r: &ReplicaStatus| ReplicaStatus { revision: String::new(), ..r.clone() };
        assert!(matches!(pair(&unknown(&prefill), &unknown(&decode)), Err(Incompatible::Revision { .. })));
        let split = |tp, pp| {
            let mut d = decode.clone();
            (d.shape.tensor_parallel, d.shape.pipeline_parallel) = (tp, pp);
            pair(
                &ReplicaStatus {
                    shape: Shape { tensor_parallel: 2, ..prefill.shape.clone() },
                    ..prefill.clone()
                },
                &d,
            )
        };
        assert_eq!((split(4, 1), split(1, 1)), (Ok(()), Ok(())));
        assert!(matches!(split(3, 1), Err(Incompatible::Layout { .. })));
        assert!(matches!(split(2, 2), Err(Incompatible::Layout { .. })));
        let mut other = decode.clone();
        other.shape.variant = "none such".to_owned();
        assert!(matches!(pair(&prefill, &other), Err(Incompatible::Format { .. })));

        // The newer prefill replica takes nothing before a decode replica of its revision serves.
        w.snapshot.replicas = vec![prefill, decode, newer, coming];
        let open = |w: &World| -> Vec<String> {
            w.snapshot
                .replicas
                .iter()
                .filter(|r| takes_part(&w.snapshot, r))
                .map(|r| r.id.to_string())
                .collect()
        };
        assert_eq!(open(&w), ["p1", "d1"]);
        let t = routes(&p, &w.snapshot, &agents(), 0);
        let of =
            |id: &str| t.pools[0].endpoints.iter().find(|e| e.replica.as_str() == id).map(|e| e.draining);
        assert_eq!((of("p1"), of("p2")), (Some(false), Some(true)));
        // Routers pair by the table what `compatible` pairs by the replicas.
        let whole = w.snapshot.pools[0].clone();
        for (p, d) in [("p1", "d1"), ("p2", "d1"), ("d1", "p1"), ("p1", "p1")] {
            let find = |id: &str| {
                let of = |e: &&Endpoint| e.replica.as_str() == id;
                t.pools[0].endpoints.iter().find(of).cloned().unwrap()
            };
            let status = |id: &str| w.snapshot.replicas.iter().find(|r| r.id.as_str() == id).unwrap();
            let ms = find(d).transfer_ms(&find(p), 1000.0);
            assert_eq!(ms.is_some(), compatible(&whole, status(p), status(d)).is_ok(), "{p} {d}");
            assert!(ms.is_none_or(|ms| ms > 0.0 && ms < 1000.0), "{ms:?}");
        }
        w.snapshot.replicas[3].phase = ReplicaPhase::Ready;
        assert_eq!(open(&w), ["p1", "d1", "p2", "d2"]);
    }

    #[test]
    fn unwanted_replicas_serve_until_the_wanted_ones_are_ready() {
        let (mut w, p) = world();
        let mut old = w.snapshot.replicas[0].clone();
        old.id = plimsoll_fleet::ReplicaId::new("chat-old").unwrap();
        w.snapshot.replicas.push(old);
        let draining = |w: &World| {
            let t = routes(&p, &w.snapshot, &agents(), 0);
            t.pools[0].endpoints.iter().find(|e| e.replica.as_str() == "chat-old").map(|e| e.draining)
        };
        assert_eq!(draining(&w), Some(true));
        w.snapshot.replicas[0].phase = ReplicaPhase::Starting;
        assert_eq!(draining(&w), Some(false), "a wanted one is not ready: the old one helps out");
        if let Some(old) = w.snapshot.replicas.iter_mut().find(|r| r.id.as_str() == "chat-old") {
            old.phase = ReplicaPhase::Draining;
        }
        assert_eq!(draining(&w), Some(true));
    }

    #[test]
    fn endpoints_that_plimsoll_does_not_run_are_routed_to_as_long_as_they_are_listed() {
        let mut w = World::up();
        let mut p = pool("chat", "llama-3.1-8b", 800.0, 50.0);
        p.engine.kind = EngineKind::External;
        w.add(p, demand(vec![class("a", 30.0, 1200.0, 250.0)]));
        let endpoint = |i: u32| ReplicaStatus {
            id: plimsoll_fleet::ReplicaId::new(format!("default.chat.external-{i}")).unwrap(),
            pool: "chat".parse().unwrap(),
            shape: Shape {
                variant: "bf16".into(),
                accelerator: "external".into(),
                tensor_parallel: 1,
                pipeline_parallel: 1,
                data_parallel: 1,
                expert_parallel: 1,
                role: plimsoll_fleet::Role::Mixed,
            },
            nodes: Vec::new(),
            phase: ReplicaPhase::Ready,
            address: Some(format!("llm-{i}.example:8000")),
            plan: 0,
            since: jiff::Timestamp::UNIX_EPOCH,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            ready_at: Some(jiff::Timestamp::UNIX_EPOCH),
            message: String::new(),
            outdated: false,
            revision: String::new(),
            ended: false,
            adapter_room: None,
            gated: false,
        };
        w.snapshot.replicas = vec![endpoint(0), endpoint(1)];
        let addresses = |p: &Plan, w: &World| -> Vec<String> {
            let t = routes(p, &w.snapshot, &agents(), 0);
            assert!(t.pools[0].endpoints.iter().all(|e| !e.draining && e.agent_address.is_none()));
            t.pools[0].endpoints.iter().map(|e| e.engine_address.clone()).collect()
        };
        let out = crate::plan::plan(&w.input()).plan;
        assert_eq!(addresses(&out, &w), ["llm-0.example:8000", "llm-1.example:8000"]);
        assert_eq!((out.pools[0].replicas.len(), out.pools[0].usd_per_hour), (2, 0.0));
        // One that is listed anew counts at once; one that is struck off is gone from the next plan.
        w.snapshot.replicas = vec![endpoint(1), endpoint(2)];
        assert_eq!(addresses(&out, &w), ["llm-1.example:8000", "llm-2.example:8000"]);
        w.previous = Some(out);
        let next = crate::plan::plan(&w.input()).plan;
        let ids: Vec<&str> = next.pools[0].replicas.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids, ["default.chat.external-1", "default.chat.external-2"]);
    }

    #[test]
    fn tenants_weights_come_in_order_of_name() {
        let (mut w, p) = world();
        let tenant = |name: &str, weight| plimsoll_fleet::Tenant {
            name: name.into(),
            tier: None,
            priority: 0,
            weight,
            budget: None,
            api_key_sha256: Vec::new(),
        };
        w.snapshot.tenants =
            [("web", 0.5), ("even", 1.0), ("research", 2.0)].map(|(n, w)| tenant(n, w)).into();
        let t = routes(&p, &w.snapshot, &agents(), 6);
        assert_eq!(t.tenant_weights, [("research".to_owned(), 2.0), ("web".to_owned(), 0.5)]);
        let changed = RouteTable { version: 9, tenant_weights: Vec::new(), ..t.clone() };
        assert!(!changed.says_same(&t) && t.says_same(&RouteTable { version: 9, ..t.clone() }));
    }

    #[test]
    fn a_pool_without_endpoint_says_why() {
        let (mut w, p) = world();
        w.snapshot.replicas.iter_mut().for_each(|r| r.phase = ReplicaPhase::Starting);
        let t = routes(&p, &w.snapshot, &agents(), 0);
        assert!(
            t.pools[0].unavailable_reason.starts_with("starting: 0 of"),
            "{}",
            t.pools[0].unavailable_reason
        );
        assert!(t.pools[0].wake_wait_ms > 60_000.0);
        w.add(pool("new", "llama-3.1-8b", 800.0, 50.0), demand(vec![]));
        let t = routes(&p, &w.snapshot, &agents(), 0);
        assert_eq!(t.pools[1].unavailable_reason, "the pool has not been planned yet");
        w.snapshot.pools.clear();
        assert!(routes(&p, &w.snapshot, &agents(), 0).pools.is_empty());
    }
}
