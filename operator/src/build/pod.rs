//! A replica's pod. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodResourceClaim, PodSecurityContext, PodSpec, Probe,
    ResourceClaim, ResourceRequirements, SeccompProfile, SecurityContext, Toleration,
};
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::api::ObjectMeta;
use plimsoll_crds::ModelPool;
use plimsoll_fleet as fleet;
use plimsoll_fleet::ReplicaAssignment;

use super::group::Seat;
use super::{Inputs, engine, finish, queue, storage, template};
use crate::record::{GroupRecord, ReplicaRecord};
use crate::{devices, names, revision};

/// The user engines run as: not root, as the restricted pod security standard demands.
const USER: i64 = 1000;

/// Why the plan's replica cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbuildable {
    /// The plan names an accelerator class that is not accepted.
    #[error(
        "replica {replica} needs AcceleratorClass {accelerator}, which does not exist or is invalid; create or correct it"
    )]
    Accelerator {
        /// Replica.
        replica: String,
        /// Class.
        accelerator: String,
    },
    /// The plan names a variant the pool does not have.
    #[error("replica {replica} needs variant {variant}, which spec.variants does not list")]
    Variant {
        /// Replica.
        replica: String,
        /// Variant.
        variant: String,
    },
    /// A replica over several nodes of an engine that runs on one.
    #[error(
        "replica {replica} spans {nodes} nodes, and {engine} runs on one; allow only tensor × pipeline degrees that fit one node"
    )]
    Nodes {
        /// Replica.
        replica: String,
        /// Nodes.
        nodes: u32,
        /// Engine.
        engine: &'static str,
    },
    /// A replica over more nodes than its pipeline stages can be spread over.
    #[error(
        "replica {replica} spans {nodes} nodes, and its {stages} pipeline stages cannot be spread over these evenly; allow a pipeline degree that is a multiple of the nodes, or tensor × pipeline degrees that fit one node"
    )]
    Stages {
        /// Replica.
        replica: String,
        /// Nodes.
        nodes: u32,
        /// Pipeline stages.
        stages: u32,
    },
    /// The record cannot be written.
    #[error("replica {replica}'s record cannot be written: {problem}")]
    Record {
        /// Replica.
        replica: String,
        /// Why.
        problem: String,
    },
}

/// One pod of a replica that the plan wants: all of it, or its part in the seat given.
///
/// # Errors
/// [`Unbuildable`] if the plan asks for what the resources do not hold.
pub fn pod(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    plan: u64,
    seat: &Seat,
) -> Result<Pod, Unbuildable> {
    let replica = assignment.id.to_string();
    let shape = &assignment.shape;
    let class = inputs.validated.accelerator(&shape.accelerator).ok_or_else(|| Unbuildable::Accelerator {
        replica: replica.clone(),
        accelerator: shape.accelerator.clone(),
    })?;
    if seat.size > 1 && !pool.engine.kind.spans_nodes() {
        let engine = pool.engine.kind.as_str();
        return Err(Unbuildable::Nodes { replica, nodes: seat.size, engine });
    }
    let variant = pool
        .variant(&shape.variant)
        .ok_or_else(|| Unbuildable::Variant { replica: replica.clone(), variant: shape.variant.clone() })?;
    if !shape.splits().any(|nodes| nodes == seat.size) {
        return Err(Unbuildable::Stages { replica, nodes: seat.size, stages: shape.pipeline_parallel });
    }
    let room = inputs.validated.adapter_room(&pool.id);
    let record = ReplicaRecord {
        pool: pool.id.clone(),
        shape: shape.clone(),
        nodes: assignment.nodes.clone(),
        spot: assignment.spot,
        plan,
        engine: pool.engine.kind,
        served_name: pool.served_name.clone(),
        variant: variant.clone(),
        architecture: pool.architecture.clone(),
        accelerator: class.clone(),
        max_context_tokens: pool.max_context_tokens,
        // A simulated engine is not told: it always has the most.
        adapter_room: (pool.engine.kind != fleet::EngineKind::Simulated).then_some(room),
        group: (seat.size > 1).then(|| GroupRecord {
            replica: assignment.id.clone(),
            size: seat.size,
            owner_uid: resource.metadata.uid.clone().unwrap_or_default(),
        }),
    };
    let record_text = serde_json::to_string(&record)
        .map_err(|e| Unbuildable::Record { replica: replica.clone(), problem: e.to_string() })?;
    let weights = engine::weights(variant.source.as_deref().or(pool.source.as_deref()));
    let mut launch = engine::launch(&inputs.config.images, pool, shape, variant, class, &weights, room);
    engine::join(&mut launch, pool.engine.kind, seat);
    let claim =
        claim_template(inputs, resource, &pool.id, assignment, seat.size).and_then(|t| t.metadata.name);
    let mut spec = spec(inputs, resource, pool, assignment, class, claim, &weights, launch, seat);
    let template = template::annotation(&template::inputs(resource, pool, shape));
    // Pods of a LeaderWorkerSet are queued together by Kueue's own integration.
    let together = if seat.in_set { 1 } else { seat.size };
    let (queue_labels, queue_annotations) = queue::metadata(resource, assignment.id.as_str(), together);
    let mut labels = BTreeMap::from(
        [
            (names::MANAGED_BY, names::PLIMSOLL),
            ("app.kubernetes.io/name", pool.engine.kind.as_str()),
            ("app.kubernetes.io/component", "engine"),
            ("app.kubernetes.io/part-of", names::PLIMSOLL),
            (names::POOL, &names::label_value(pool.id.name())),
            (names::REPLICA, &names::label_value(&replica)),
            (names::VARIANT, &names::label_value(&shape.variant)),
            (names::ACCELERATOR, &names::label_value(&shape.accelerator)),
            (names::ROLE, &shape.role.to_string()),
            (revision::REVISION, &pool.revision),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    labels.extend(queue_labels);
    let mut annotations =
        BTreeMap::from([(names::REPLICA.to_owned(), record_text), (names::TEMPLATE.to_owned(), template)]);
    annotations.extend(queue_annotations);
    annotations.extend(
        names::UNDISTURBED.iter().map(|(annotation, value)| ((*annotation).to_owned(), (*value).to_owned())),
    );
    seat.mark(&mut labels, &mut annotations, &mut spec);
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(replica),
            namespace: Some(pool.id.namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: resource.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// The template of the claim of each of the `size` pods of a replica that claims its accelerators; `None` if it requests an extended resource.
pub fn claim_template(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::PoolId,
    assignment: &ReplicaAssignment,
    size: u32,
) -> Option<ResourceClaimTemplate> {
    let shape = &assignment.shape;
    let class = inputs.validated.accelerator(&shape.accelerator)?;
    let request = inputs.devices.request(class, &assignment.nodes)?;
    Some(devices::claim_template(resource, pool, &class.name, request, shape.gpus_on_each(size)))
}

fn claimed() -> ResourceClaim {
    ResourceClaim { name: devices::CLAIM.to_owned(), request: None }
}

/// The ports at which an engine is reached: its API's, and where engines find each other's KV caches.
fn ports(kind: fleet::EngineKind, role: fleet::Role) -> Vec<ContainerPort> {
    let port = |name: &str, container_port: i32| ContainerPort {
        name: Some(name.to_owned()),
        container_port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let apart = match (kind, role) {
        (_, fleet::Role::Mixed) => None,
        (fleet::EngineKind::Vllm, _) => Some(port("hand-over", names::HAND_OVER_PORT)),
        (fleet::EngineKind::Sglang, fleet::Role::Prefill) => Some(port("bootstrap", names::BOOTSTRAP_PORT)),
        _ => None,
    };
    [port("engine", names::ENGINE_PORT)].into_iter().chain(apart).collect()
}

#[expect(clippy::too_many_arguments, reason = "one call, each argument one part of the pod")]
fn spec(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    class: &fleet::AcceleratorClass,
    claim_template: Option<String>,
    weights: &engine::Weights,
    launch: engine::Launch,
    seat: &Seat,
) -> PodSpec {
    let gpu_resource = class.resource_name().filter(|_| claim_template.is_none());
    let mut env: Vec<EnvVar> = launch.env;
    // Simulated ones load nothing.
    let loads = pool.engine.kind.loads_adapters() && pool.engine.kind != fleet::EngineKind::Simulated;
    let adapters: Vec<&fleet::Adapter> = inputs.validated.adapters_of(&pool.id).filter(|_| loads).collect();
    let storage = storage::storage(resource, weights, &adapters, inputs.config.adapter_cache.as_deref());
    env.extend(storage.env);
    env.extend(finish::variable(seat));
    // Images of engines know no user of this number; some of their libraries ask for a name.
    env.extend([literal("USER", names::PLIMSOLL), literal("LOGNAME", names::PLIMSOLL)]);
    // The owner's variables come last: they win.
    env.retain(|v| !resource.spec.engine.env.iter().any(|own| own.name == v.name));
    env.extend(resource.spec.engine.env.iter().cloned());
    let engine = Container {
        name: "engine".to_owned(),
        image: Some(pool.engine.image.clone().unwrap_or(launch.image)),
        command: (!launch.command.is_empty()).then_some(launch.command),
        args: Some(launch.args.into_iter().chain(pool.engine.args.iter().cloned()).collect()),
        env: Some(env),
        ports: Some(ports(pool.engine.kind, assignment.shape.role)),
        resources: Some(ResourceRequirements {
            claims: claim_template.is_some().then(|| vec![claimed()]),
            ..resources(resource, gpu_resource, assignment.shape.gpus_on_each(seat.size))
        }),
        startup_probe: Some(startup(pool)),
        readiness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/health".to_owned()),
                port: IntOrString::Int(names::ENGINE_PORT),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        }),
        lifecycle: finish::hook(pool.engine.kind, seat, seconds(inputs.config.drain_timeout)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(storage.mounts),
        ..Container::default()
    };
    let mut node_selector = pool.placement.node_selector.clone();
    if assignment.nodes.is_empty() {
        // Wherever capacity of the class appears.
        node_selector.extend(class.node_selector.clone());
    }
    PodSpec {
        containers: vec![engine],
        affinity: pinned(&seat.nodes),
        node_selector: (!node_selector.is_empty()).then_some(node_selector),
        resource_claims: claim_template.map(|template| {
            vec![PodResourceClaim {
                name: devices::CLAIM.to_owned(),
                resource_claim_template_name: Some(template),
                ..PodResourceClaim::default()
            }]
        }),
        tolerations: Some(tolerations(pool, class)),
        termination_grace_period_seconds: Some(
            seconds(inputs.config.drain_timeout).saturating_add(seconds(inputs.config.termination_grace)),
        ),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // Not every file of a large cache at every start.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(storage.volumes),
        ..PodSpec::default()
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Least time an engine has to load its weights before it is started anew, seconds: a first download may take long.
const LEAST_START_SECONDS: f64 = 3600.0;
/// How many times its expected cold start an engine has.
const START_FACTOR: f64 = 8.0;
/// Time between two questions whether an engine has started, seconds.
const STARTUP_PERIOD_SECONDS: i32 = 2;

/// Ends an engine that hangs while it starts. SGLang is asked for a token; the others answer once their weights are loaded,
/// and the agent beside them asks for a token before it sends requests.
fn startup(pool: &fleet::ModelPool) -> Probe {
    let (path, timeout) = match pool.engine.kind {
        fleet::EngineKind::Sglang => ("/health_generate", 30),
        _ => ("/health", 2),
    };
    let deadline = (START_FACTOR * pool.engine.cold_start_seconds).clamp(LEAST_START_SECONDS, 86_400.0);
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(names::ENGINE_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(STARTUP_PERIOD_SECONDS),
        timeout_seconds: Some(timeout),
        failure_threshold: Some((deadline / f64::from(STARTUP_PERIOD_SECONDS)).ceil() as i32),
        ..Probe::default()
    }
}

pub(super) fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

/// Required affinity to one of some nodes. The cluster's own scheduler still binds the pod, so it accounts for its resources.
fn pinned(nodes: &[fleet::NodeName]) -> Option<Affinity> {
    // A field may be compared with one value only, so each node is a term.
    let term = |node: &fleet::NodeName| NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_string()]),
        }]),
        match_expressions: None,
    };
    (!nodes.is_empty()).then(|| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: nodes.iter().map(term).collect(),
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    })
}

fn tolerations(pool: &fleet::ModelPool, class: &fleet::AcceleratorClass) -> Vec<Toleration> {
    let all = pool.placement.tolerations.iter().cloned().chain(class.all_tolerations());
    all.map(|t| Toleration {
        key: t.key,
        operator: t.operator,
        value: t.value,
        effect: t.effect,
        toleration_seconds: None,
    })
    .collect()
}

fn resources(resource: &ModelPool, gpu_resource: Option<&str>, gpus: u32) -> ResourceRequirements {
    let quantities = |amounts: &BTreeMap<String, String>| {
        let mut all: BTreeMap<String, Quantity> =
            amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))).collect();
        if let Some(gpu) = gpu_resource {
            all.insert(gpu.to_owned(), Quantity(gpus.to_string()));
        }
        (!all.is_empty()).then_some(all)
    };
    let given = &resource.spec.engine.resources;
    ResourceRequirements {
        requests: quantities(&given.requests),
        limits: quantities(&given.limits),
        claims: None,
    }
}
