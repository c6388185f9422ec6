//! The typed messages of agents, to the domain and back.

use plimsoll_fleet as fleet;
use plimsoll_fleet::telemetry::LogHistogram;
use plimsoll_fleet::{InvalidName, NodeName, PoolId, ReplicaId};

use crate::v1;

/// A message with a field that the domain does not accept.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidMessage {
    /// A name is not valid.
    #[error("in {message}.{field}")]
    Name {
        /// Message type.
        message: &'static str,
        /// Field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidName,
    },
    /// A number is out of range.
    #[error("{message}.{field} is {value}, which is out of range")]
    Range {
        /// Message type.
        message: &'static str,
        /// Field.
        field: &'static str,
        /// The value.
        value: f64,
    },
}

impl From<InvalidMessage> for tonic::Status {
    fn from(error: InvalidMessage) -> Self {
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        Self::invalid_argument(format!("{error}{source}"))
    }
}

fn name<T>(
    message: &'static str,
    field: &'static str,
    value: Result<T, InvalidName>,
) -> Result<T, InvalidMessage> {
    value.map_err(|source| InvalidMessage::Name { message, field, source })
}

fn finite(message: &'static str, field: &'static str, value: f64) -> Result<f64, InvalidMessage> {
    if value.is_finite() { Ok(value) } else { Err(InvalidMessage::Range { message, field, value }) }
}

fn non_empty(text: String) -> Option<String> {
    if text.is_empty() { None } else { Some(text) }
}

impl From<&fleet::Objective> for v1::Objective {
    fn from(o: &fleet::Objective) -> Self {
        Self { percentile: o.percentile.value(), ms: o.ms }
    }
}

impl TryFrom<v1::Objective> for fleet::Objective {
    type Error = InvalidMessage;

    fn try_from(o: v1::Objective) -> Result<Self, Self::Error> {
        let percentile = fleet::Percentile::new(o.percentile).map_err(|e| InvalidMessage::Range {
            message: "Objective",
            field: "percentile",
            value: e.0,
        })?;
        Ok(Self { percentile, ms: finite("Objective", "ms", o.ms)? })
    }
}

impl From<&fleet::SloClass> for v1::SloClass {
    fn from(c: &fleet::SloClass) -> Self {
        Self {
            name: c.name.clone(),
            ttft: c.slo.ttft.as_ref().map(Into::into),
            tpot: c.slo.tpot.as_ref().map(Into::into),
            e2e: c.slo.e2e.as_ref().map(Into::into),
            match_headers: c.match_headers.clone().into_iter().collect(),
            expected_share: c.expected_share,
        }
    }
}

impl TryFrom<v1::SloClass> for fleet::SloClass {
    type Error = InvalidMessage;

    fn try_from(c: v1::SloClass) -> Result<Self, Self::Error> {
        Ok(Self {
            name: c.name,
            slo: fleet::Slo {
                ttft: c.ttft.map(TryInto::try_into).transpose()?,
                tpot: c.tpot.map(TryInto::try_into).transpose()?,
                e2e: c.e2e.map(TryInto::try_into).transpose()?,
            },
            match_headers: c.match_headers.into_iter().collect(),
            expected_share: finite("SloClass", "expected_share", c.expected_share)?,
        })
    }
}

impl From<fleet::Role> for v1::Role {
    fn from(role: fleet::Role) -> Self {
        match role {
            fleet::Role::Mixed => Self::Mixed,
            fleet::Role::Prefill => Self::Prefill,
            fleet::Role::Decode => Self::Decode,
        }
    }
}

impl From<v1::Role> for fleet::Role {
    fn from(role: v1::Role) -> Self {
        match role {
            v1::Role::Mixed => Self::Mixed,
            v1::Role::Prefill => Self::Prefill,
            v1::Role::Decode => Self::Decode,
        }
    }
}

impl From<&fleet::StepCoefficients> for v1::StepCoefficients {
    fn from(c: &fleet::StepCoefficients) -> Self {
        let fleet::StepCoefficients {
            base_ms,
            per_request_ms,
            per_context_token_ms,
            per_prefill_token_ms,
            api_overhead_ms,
            kv_tokens,
            max_running,
            max_batched_tokens,
        } = *c;
        Self {
            base_ms,
            per_request_ms,
            per_context_token_ms,
            per_prefill_token_ms,
            api_overhead_ms,
            kv_tokens,
            max_running,
            max_batched_tokens,
        }
    }
}

impl TryFrom<v1::StepCoefficients> for fleet::StepCoefficients {
    type Error = InvalidMessage;

    fn try_from(c: v1::StepCoefficients) -> Result<Self, Self::Error> {
        const M: &str = "StepCoefficients";
        Ok(Self {
            base_ms: finite(M, "base_ms", c.base_ms)?,
            per_request_ms: finite(M, "per_request_ms", c.per_request_ms)?,
            per_context_token_ms: finite(M, "per_context_token_ms", c.per_context_token_ms)?,
            per_prefill_token_ms: finite(M, "per_prefill_token_ms", c.per_prefill_token_ms)?,
            api_overhead_ms: finite(M, "api_overhead_ms", c.api_overhead_ms)?,
            kv_tokens: finite(M, "kv_tokens", c.kv_tokens)?,
            max_running: c.max_running,
            max_batched_tokens: c.max_batched_tokens,
        })
    }
}

impl From<&fleet::Endpoint> for v1::Endpoint {
    fn from(e: &fleet::Endpoint) -> Self {
        Self {
            replica: e.replica.to_string(),
            node: e.node.to_string(),
            zone: e.zone.clone(),
            role: v1::Role::from(e.role).into(),
            agent_address: e.agent_address.clone().unwrap_or_default(),
            engine_address: e.engine_address.clone(),
            engine_model: e.engine_model.clone(),
            weights: e
                .weights
                .iter()
                .map(|(class, weight)| v1::ClassWeight { class: class.clone(), weight: *weight })
                .collect(),
            coefficients: Some((&e.coefficients).into()),
            draining: e.draining,
            engine: v1::Engine::from(e.engine).into(),
            hand_over: e.hand_over.as_ref().map(Into::into),
        }
    }
}

impl From<fleet::EngineKind> for v1::Engine {
    fn from(kind: fleet::EngineKind) -> Self {
        match kind {
            fleet::EngineKind::Vllm => Self::Vllm,
            fleet::EngineKind::Sglang => Self::Sglang,
            fleet::EngineKind::Llamacpp => Self::Llamacpp,
            fleet::EngineKind::Simulated => Self::Simulated,
            fleet::EngineKind::External => Self::Unspecified,
        }
    }
}

impl From<v1::Engine> for fleet::EngineKind {
    fn from(engine: v1::Engine) -> Self {
        match engine {
            v1::Engine::Vllm => Self::Vllm,
            v1::Engine::Sglang => Self::Sglang,
            v1::Engine::Llamacpp => Self::Llamacpp,
            v1::Engine::Simulated => Self::Simulated,
            v1::Engine::Unspecified => Self::External,
        }
    }
}

impl From<&fleet::HandOver> for v1::HandOver {
    fn from(h: &fleet::HandOver) -> Self {
        Self {
            protocol: match h.protocol {
                fleet::HandOverProtocol::Vllm => v1::HandOverProtocol::Vllm,
                fleet::HandOverProtocol::Sglang => v1::HandOverProtocol::Sglang,
            }
            .into(),
            format: h.format.clone(),
            tensor_parallel: h.tensor_parallel,
            bootstrap_port: u32::from(h.bootstrap_port),
            network_ms_per_token: h.network_ms_per_token,
            node_ms_per_token: h.node_ms_per_token,
            set_up_ms: h.set_up_ms,
        }
    }
}

/// `None` where the protocol is one of a newer scheduler: such replicas serve, but not as halves of pairs.
fn hand_over(h: v1::HandOver) -> Result<Option<fleet::HandOver>, InvalidMessage> {
    const M: &str = "HandOver";
    let protocol = match h.protocol() {
        v1::HandOverProtocol::Vllm => fleet::HandOverProtocol::Vllm,
        v1::HandOverProtocol::Sglang => fleet::HandOverProtocol::Sglang,
        v1::HandOverProtocol::Unspecified => return Ok(None),
    };
    Ok(Some(fleet::HandOver {
        protocol,
        format: h.format,
        tensor_parallel: h.tensor_parallel,
        bootstrap_port: u16::try_from(h.bootstrap_port).map_err(|_| InvalidMessage::Range {
            message: M,
            field: "bootstrap_port",
            value: f64::from(h.bootstrap_port),
        })?,
        network_ms_per_token: finite(M, "network_ms_per_token", h.network_ms_per_token)?,
        node_ms_per_token: finite(M, "node_ms_per_token", h.node_ms_per_token)?,
        set_up_ms: finite(M, "set_up_ms", h.set_up_ms)?,
    }))
}

impl TryFrom<v1::Endpoint> for fleet::Endpoint {
    type Error = InvalidMessage;

    fn try_from(e: v1::Endpoint) -> Result<Self, Self::Error> {
        let (role, engine) = (e.role().into(), e.engine().into());
        Ok(Self {
            replica: name("Endpoint", "replica", ReplicaId::new(e.replica))?,
            node: name("Endpoint", "node", NodeName::new(e.node))?,
            zone: e.zone,
            role,
            agent_address: non_empty(e.agent_address),
            engine_address: e.engine_address,
            engine_model: e.engine_model,
            weights: e
                .weights
                .into_iter()
                .map(|w| Ok((w.class, finite("ClassWeight", "weight", w.weight)?)))
                .collect::<Result<_, InvalidMessage>>()?,
            coefficients: e.coefficients.unwrap_or_default().try_into()?,
            draining: e.draining,
            engine,
            hand_over: e.hand_over.map(hand_over).transpose()?.flatten(),
        })
    }
}

impl From<&fleet::PoolRoute> for v1::PoolRoute {
    fn from(p: &fleet::PoolRoute) -> Self {
        Self {
            pool: p.pool.to_string(),
            served_name: p.served_name.clone(),
            slo_classes: p.slo_classes.iter().map(Into::into).collect(),
            priority: p.priority,
            max_context_tokens: p.max_context_tokens,
            endpoints: p.endpoints.iter().map(Into::into).collect(),
            wake_wait_ms: p.wake_wait_ms,
            usd_per_million_input_tokens: p.usd_per_million_tokens.0,
            usd_per_million_output_tokens: p.usd_per_million_tokens.1,
            unavailable_reason: p.unavailable_reason.clone(),
            objectives: p
                .objectives
                .iter()
                .map(|(objective, priority)| v1::ObjectivePriority {
                    objective: objective.clone(),
                    priority: *priority,
                })
                .collect(),
            adapters: p.adapters.iter().map(Into::into).collect(),
        }
    }
}

impl From<&fleet::AdapterRoute> for v1::AdapterRoute {
    fn from(a: &fleet::AdapterRoute) -> Self {
        let names = |ids: &[ReplicaId]| ids.iter().map(ToString::to_string).collect();
        Self {
            served_name: a.served_name.clone(),
            source: a.source.clone(),
            placed: names(&a.placed),
            held: names(&a.held),
            group: a.group.clone().unwrap_or_default(),
            load_ms: a.load_ms,
            files: Some(v1::AdapterFiles {
                rank: a.files.rank,
                sha256: a.files.sha256.clone(),
                hidden: a.files.hidden,
                layers: a.files.layers,
            }),
        }
    }
}

impl TryFrom<v1::AdapterRoute> for fleet::AdapterRoute {
    type Error = InvalidMessage;

    fn try_from(a: v1::AdapterRoute) -> Result<Self, Self::Error> {
        let ids = |field, names: Vec<String>| {
            let id = |id| name("AdapterRoute", field, ReplicaId::new(id));
            names.into_iter().map(id).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            served_name: a.served_name,
            source: a.source,
            placed: ids("placed", a.placed)?,
            held: ids("held", a.held)?,
            group: Some(a.group).filter(|group| !group.is_empty()),
            load_ms: finite("AdapterRoute", "load_ms", a.load_ms)?,
            files: a.files.map_or_else(Default::default, |f| fleet::AdapterFiles {
                rank: f.rank,
                sha256: f.sha256,
                hidden: f.hidden,
                layers: f.layers,
            }),
        })
    }
}

impl TryFrom<v1::PoolRoute> for fleet::PoolRoute {
    type Error = InvalidMessage;

    fn try_from(p: v1::PoolRoute) -> Result<Self, Self::Error> {
        Ok(Self {
            pool: name("PoolRoute", "pool", p.pool.parse::<PoolId>())?,
            served_name: p.served_name,
            slo_classes: p.slo_classes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            priority: p.priority,
            max_context_tokens: p.max_context_tokens,
            endpoints: p.endpoints.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            wake_wait_ms: finite("PoolRoute", "wake_wait_ms", p.wake_wait_ms)?,
            usd_per_million_tokens: (p.usd_per_million_input_tokens, p.usd_per_million_output_tokens),
            unavailable_reason: p.unavailable_reason,
            objectives: p.objectives.into_iter().map(|o| (o.objective, o.priority)).collect(),
            adapters: p.adapters.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

/// Wraps a route table; `epoch` names the scheduler state its version counts in.
pub fn route_table(table: &fleet::RouteTable, epoch: &str) -> v1::RouteTable {
    v1::RouteTable {
        version: table.version,
        plan: table.plan,
        pools: table.pools.iter().map(Into::into).collect(),
        epoch: epoch.to_owned(),
        tenant_weights: weights_out(&table.tenant_weights),
    }
}

fn weights_out(weights: &[(String, f64)]) -> Vec<v1::TenantWeight> {
    weights
        .iter()
        .map(|(tenant, weight)| v1::TenantWeight { tenant: tenant.clone(), weight: *weight })
        .collect()
}

fn weights_in(weights: Vec<v1::TenantWeight>) -> Result<Vec<(String, f64)>, InvalidMessage> {
    weights
        .into_iter()
        .map(|w| match w.weight {
            weight if weight.is_finite() && weight > 0.0 => Ok((w.tenant, weight)),
            value => Err(InvalidMessage::Range { message: "TenantWeight", field: "weight", value }),
        })
        .collect()
}

impl TryFrom<v1::RouteTable> for fleet::RouteTable {
    type Error = InvalidMessage;

    fn try_from(t: v1::RouteTable) -> Result<Self, Self::Error> {
        Ok(Self {
            version: t.version,
            plan: t.plan,
            pools: t.pools.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            tenant_weights: weights_in(t.tenant_weights)?,
        })
    }
}

/// The change from one route table to a newer one. O(pools).
pub fn route_delta(base: &fleet::RouteTable, newer: &fleet::RouteTable) -> v1::RouteDelta {
    let old: std::collections::BTreeMap<&PoolId, &fleet::PoolRoute> =
        base.pools.iter().map(|p| (&p.pool, p)).collect();
    let kept: std::collections::BTreeSet<&PoolId> = newer.pools.iter().map(|p| &p.pool).collect();
    v1::RouteDelta {
        base_version: base.version,
        version: newer.version,
        plan: newer.plan,
        changed: newer
            .pools
            .iter()
            .filter(|p| old.get(&p.pool).is_none_or(|o| o != p))
            .map(Into::into)
            .collect(),
        removed: old.keys().filter(|id| !kept.contains(*id)).map(ToString::to_string).collect(),
        tenant_weights: (base.tenant_weights != newer.tenant_weights)
            .then(|| v1::TenantWeights { weights: weights_out(&newer.tenant_weights) }),
    }
}

/// Applies a delta. `Ok(None)` if it starts from another version than `base`: ask for a full table.
///
/// # Errors
/// [`InvalidMessage`] if a route in it is not valid.
pub fn apply_route_delta(
    base: &fleet::RouteTable,
    delta: v1::RouteDelta,
) -> Result<Option<fleet::RouteTable>, InvalidMessage> {
    if delta.base_version != base.version {
        return Ok(None);
    }
    let mut pools: std::collections::BTreeMap<PoolId, fleet::PoolRoute> =
        base.pools.iter().map(|p| (p.pool.clone(), p.clone())).collect();
    for id in delta.removed {
        pools.remove(&name("RouteDelta", "removed", id.parse())?);
    }
    for changed in delta.changed {
        let route = fleet::PoolRoute::try_from(changed)?;
        pools.insert(route.pool.clone(), route);
    }
    Ok(Some(fleet::RouteTable {
        version: delta.version,
        plan: delta.plan,
        pools: pools.into_values().collect(),
        tenant_weights: match delta.tenant_weights {
            Some(changed) => weights_in(changed.weights)?,
            None => base.tenant_weights.clone(),
        },
    }))
}

impl From<&LogHistogram> for v1::Histogram {
    fn from(h: &LogHistogram) -> Self {
        Self { bins: h.bins.clone(), sum: h.sum }
    }
}

fn histogram(field: &'static str, h: Option<v1::Histogram>) -> Result<LogHistogram, InvalidMessage> {
    let h = h.unwrap_or_default();
    if h.bins.len() > LogHistogram::MAX_BINS {
        return Err(InvalidMessage::Range { message: "Histogram", field, value: h.bins.len() as f64 });
    }
    Ok(LogHistogram { bins: h.bins, sum: finite("Histogram", field, h.sum)? })
}

impl From<&fleet::telemetry::TrafficReport> for v1::TrafficReport {
    fn from(t: &fleet::telemetry::TrafficReport) -> Self {
        Self {
            pool: t.pool.to_string(),
            slo_class: t.slo_class.clone(),
            arrived: t.arrived,
            finished: t.finished,
            attained: t.attained,
            refused: t.refused,
            failed: t.failed,
            holding: t.holding,
            lengths: t
                .lengths
                .iter()
                .map(|&(i, o, count)| v1::LengthCell { input_log2: i.into(), output_log2: o.into(), count })
                .collect(),
            input_tokens: Some((&t.input_tokens).into()),
            output_tokens: Some((&t.output_tokens).into()),
            cached_tokens: t.cached_tokens,
            ttft_ms: Some((&t.ttft_ms).into()),
            tpot_us: Some((&t.tpot_us).into()),
            e2e_ms: Some((&t.e2e_ms).into()),
            interarrival_sum_squares: t.interarrival_moments.0,
            interarrival_sum: t.interarrival_moments.1,
        }
    }
}

impl TryFrom<v1::TrafficReport> for fleet::telemetry::TrafficReport {
    type Error = InvalidMessage;

    fn try_from(t: v1::TrafficReport) -> Result<Self, Self::Error> {
        const M: &str = "TrafficReport";
        Ok(Self {
            pool: name(M, "pool", t.pool.parse())?,
            slo_class: t.slo_class,
            arrived: t.arrived,
            finished: t.finished,
            attained: t.attained,
            refused: t.refused,
            failed: t.failed,
            holding: t.holding,
            lengths: t
                .lengths
                .into_iter()
                .map(|c| (c.input_log2.min(63) as u8, c.output_log2.min(63) as u8, c.count))
                .collect(),
            input_tokens: histogram("input_tokens", t.input_tokens)?,
            output_tokens: histogram("output_tokens", t.output_tokens)?,
            cached_tokens: t.cached_tokens,
            ttft_ms: histogram("ttft_ms", t.ttft_ms)?,
            tpot_us: histogram("tpot_us", t.tpot_us)?,
            e2e_ms: histogram("e2e_ms", t.e2e_ms)?,
            interarrival_moments: (
                finite(M, "interarrival_sum_squares", t.interarrival_sum_squares)?,
                finite(M, "interarrival_sum", t.interarrival_sum)?,
            ),
        })
    }
}

impl From<&fleet::telemetry::ReplicaTraffic> for v1::ReplicaTraffic {
    fn from(t: &fleet::telemetry::ReplicaTraffic) -> Self {
        Self {
            replica: t.replica.to_string(),
            slo_class: t.slo_class.clone(),
            finished: t.finished,
            failed: t.failed,
            missed_ttft: t.missed_ttft,
            missed_tpot: t.missed_tpot,
            missed_e2e: t.missed_e2e,
            input_tokens: t.work.input_tokens,
            cached_tokens: t.work.cached_tokens,
            output_tokens: t.work.output_tokens,
            decode_tokens: t.work.decode_tokens,
            decode_us: t.work.decode_us,
        }
    }
}

impl TryFrom<v1::ReplicaTraffic> for fleet::telemetry::ReplicaTraffic {
    type Error = InvalidMessage;

    fn try_from(t: v1::ReplicaTraffic) -> Result<Self, Self::Error> {
        Ok(Self {
            replica: name("ReplicaTraffic", "replica", ReplicaId::new(t.replica))?,
            slo_class: t.slo_class,
            finished: t.finished,
            failed: t.failed,
            missed_ttft: t.missed_ttft,
            missed_tpot: t.missed_tpot,
            missed_e2e: t.missed_e2e,
            work: fleet::telemetry::Work {
                input_tokens: t.input_tokens,
                cached_tokens: t.cached_tokens,
                output_tokens: t.output_tokens,
                decode_tokens: t.decode_tokens,
                decode_us: t.decode_us,
            },
        })
    }
}

impl From<&fleet::telemetry::EngineReport> for v1::EngineReport {
    fn from(e: &fleet::telemetry::EngineReport) -> Self {
        Self {
            replica: e.replica.to_string(),
            healthy: e.healthy,
            stalled: e.stalled,
            running: e.running,
            waiting: e.waiting,
            kv_usage: e.kv_usage,
            outstanding_tokens: e.outstanding_tokens,
            adapters: e.adapters.clone(),
            drained: e.drained,
            adapter_failures: e
                .adapter_failures
                .iter()
                .map(|(adapter, why)| v1::AdapterFailure { adapter: adapter.clone(), why: why.clone() })
                .collect(),
            adapter_states: e
                .adapter_states
                .iter()
                .cloned()
                .map(|s| v1::AdapterState {
                    adapter: s.adapter,
                    bytes: s.bytes,
                    load_ms: s.load_ms,
                    on_disk: s.on_disk,
                    hits: s.hits,
                    misses: s.misses,
                })
                .collect(),
        }
    }
}

/// An engine's figure: not a number means unknown, never zero.
fn known(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite())
}

impl TryFrom<v1::EngineReport> for fleet::telemetry::EngineReport {
    type Error = InvalidMessage;

    fn try_from(e: v1::EngineReport) -> Result<Self, Self::Error> {
        Ok(Self {
            replica: name("EngineReport", "replica", ReplicaId::new(e.replica))?,
            healthy: e.healthy,
            stalled: e.stalled,
            running: known(e.running),
            waiting: known(e.waiting),
            kv_usage: known(e.kv_usage),
            outstanding_tokens: finite("EngineReport", "outstanding_tokens", e.outstanding_tokens)?,
            adapters: e.adapters,
            drained: e.drained,
            adapter_failures: e.adapter_failures.into_iter().map(|f| (f.adapter, f.why)).collect(),
            adapter_states: e
                .adapter_states
                .into_iter()
                .map(|s| fleet::telemetry::AdapterState {
                    adapter: s.adapter,
                    bytes: s.bytes,
                    load_ms: s.load_ms,
                    on_disk: s.on_disk,
                    hits: s.hits,
                    misses: s.misses,
                })
                .collect(),
        })
    }
}

impl From<&fleet::telemetry::AgentReport> for v1::AgentReport {
    fn from(r: &fleet::telemetry::AgentReport) -> Self {
        Self {
            agent: r.agent.clone(),
            node: r.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            address: r.address.clone(),
            sequence: r.sequence,
            incarnation: r.incarnation,
            interval_seconds: r.interval_seconds,
            traffic: r.traffic.iter().map(Into::into).collect(),
            engines: r.engines.iter().map(Into::into).collect(),
            route_version: r.route_version,
            replicas: r.replicas.iter().map(Into::into).collect(),
            adapters: r
                .adapters
                .iter()
                .map(|(name, arrived)| v1::AdapterTraffic { served_name: name.clone(), arrived: *arrived })
                .collect(),
        }
    }
}

impl TryFrom<v1::AgentReport> for fleet::telemetry::AgentReport {
    type Error = InvalidMessage;

    fn try_from(r: v1::AgentReport) -> Result<Self, Self::Error> {
        Ok(Self {
            agent: r.agent,
            node: non_empty(r.node).map(|n| name("AgentReport", "node", NodeName::new(n))).transpose()?,
            address: r.address,
            sequence: r.sequence,
            incarnation: r.incarnation,
            interval_seconds: finite("AgentReport", "interval_seconds", r.interval_seconds)?,
            traffic: r.traffic.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            engines: r.engines.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            replicas: r.replicas.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            adapters: r.adapters.into_iter().map(|a| (a.served_name, a.arrived)).collect(),
            route_version: r.route_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(version: u64, pools: &[(&str, u32)]) -> fleet::RouteTable {
        fleet::RouteTable {
            version,
            plan: version,
            pools: pools
                .iter()
                .map(|(id, context)| fleet::PoolRoute {
                    pool: id.parse().unwrap(),
                    served_name: format!("model-{id}"),
                    slo_classes: vec![fleet::SloClass {
                        name: "default".into(),
                        slo: fleet::Slo {
                            ttft: Some(fleet::Objective { percentile: fleet::Percentile::P95, ms: 800.0 }),
                            ..fleet::Slo::default()
                        },
                        match_headers: [("x-tier".to_owned(), "gold".to_owned())].into(),
                        expected_share: 1.0,
                    }],
                    priority: 3,
                    max_context_tokens: *context,
                    endpoints: vec![fleet::Endpoint {
                        replica: ReplicaId::new("chat-1").unwrap(),
                        node: NodeName::new("n1").unwrap(),
                        zone: "a".into(),
                        role: fleet::Role::Decode,
                        agent_address: Some("127.0.0.1:1".into()),
                        engine_address: "127.0.0.1:2".into(),
                        engine_model: "m".into(),
                        weights: vec![("default".into(), 0.5)],
                        coefficients: fleet::StepCoefficients { base_ms: 7.5, ..Default::default() },
                        draining: false,
                        engine: fleet::EngineKind::Sglang,
                        hand_over: Some(fleet::HandOver {
                            protocol: fleet::HandOverProtocol::Sglang,
                            format: "r1/bf16/pp1".into(),
                            tensor_parallel: 2,
                            bootstrap_port: 8998,
                            network_ms_per_token: 0.01,
                            node_ms_per_token: 0.001,
                            set_up_ms: 2.0,
                        }),
                    }],
                    wake_wait_ms: 1.0,
                    usd_per_million_tokens: (0.1, 0.2),
                    unavailable_reason: String::new(),
                    objectives: vec![("batch".into(), -1), ("chat".into(), 100)],
                    adapters: vec![fleet::AdapterRoute {
                        served_name: format!("{id}-sql"),
                        source: "hf://acme/sql".into(),
                        placed: vec![ReplicaId::new("r1").unwrap(), ReplicaId::new("r2").unwrap()],
                        held: vec![ReplicaId::new("r2").unwrap()],
                        group: Some("tasks".into()),
                        load_ms: 27.0,
                        files: fleet::AdapterFiles {
                            rank: 16,
                            sha256: "ab".repeat(32),
                            hidden: 4096,
                            layers: 32,
                        },
                    }],
                })
                .collect(),
            tenant_weights: vec![("research".into(), 2.0)],
        }
    }

    #[test]
    fn route_tables_round_trip() {
        let t = table(3, &[("default/a", 1), ("default/b", 2)]);
        let wire = route_table(&t, "e");
        assert_eq!(fleet::RouteTable::try_from(wire).unwrap(), t);
    }

    #[test]
    fn deltas_carry_only_what_changed_and_rebuild_the_newer_table() {
        let a = table(3, &[("default/a", 1), ("default/b", 2), ("default/c", 3)]);
        let b = table(4, &[("default/a", 1), ("default/b", 9), ("default/d", 4)]);
        let delta = route_delta(&a, &b);
        assert_eq!(delta.changed.len(), 2);
        assert_eq!(delta.removed, ["default/c"]);
        assert_eq!(apply_route_delta(&a, delta.clone()).unwrap(), Some(b.clone()));
        assert_eq!(apply_route_delta(&b, delta).unwrap(), None, "a delta from another base is refused");
        // Weights stay unless a delta names them; then all of them are in it.
        let c = fleet::RouteTable { version: 5, tenant_weights: Vec::new(), ..b.clone() };
        let delta = route_delta(&b, &c);
        assert!(delta.changed.is_empty());
        assert_eq!(apply_route_delta(&b, delta).unwrap(), Some(c));
    }

    #[test]
    fn nonsense_is_refused_by_field() {
        let mut wire = route_table(&table(1, &[("default/a", 1)]), "e");
        wire.pools[0].endpoints[0].coefficients.as_mut().unwrap().base_ms = f64::NAN;
        let error = fleet::RouteTable::try_from(wire).unwrap_err();
        assert_eq!(error.to_string(), "StepCoefficients.base_ms is NaN, which is out of range");
        let mut wire = route_table(&table(1, &[]), "e");
        wire.tenant_weights[0].weight = 0.0;
        let error = fleet::RouteTable::try_from(wire).unwrap_err();
        assert_eq!(error.to_string(), "TenantWeight.weight is 0, which is out of range");
        let report = v1::AgentReport { node: "Not A Name".into(), ..Default::default() };
        let status = tonic::Status::from(fleet::telemetry::AgentReport::try_from(report).unwrap_err());
        assert!(status.message().contains("AgentReport.node"), "{}", status.message());
    }

    #[test]
    fn an_engine_figure_that_is_not_a_number_is_unknown_not_zero() {
        let wire =
            v1::EngineReport { replica: "r".into(), running: Some(f64::NAN), ..v1::EngineReport::default() };
        assert_eq!(fleet::telemetry::EngineReport::try_from(wire).unwrap().running, None);
    }
}
