//! A replica's pod. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
    ImageVolumeSource, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::api::ObjectMeta;
use plimsoll_crds::ModelPool;
use plimsoll_fleet as fleet;
use plimsoll_fleet::ReplicaAssignment;

use super::{Inputs, engine, template};
use crate::names;
use crate::record::ReplicaRecord;
use crate::revision;

/// Where weights from a volume or an image are mounted.
pub(super) const WEIGHTS: &str = "/weights";
/// The engine's writable home: model cache, compilation cache.
const HOME: &str = "/cache";
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
    /// A replica over several nodes.
    #[error(
        "replica {replica} spans {nodes} nodes, and a replica is one pod; allow only tensor × pipeline degrees that fit one node"
    )]
    Nodes {
        /// Replica.
        replica: String,
        /// Nodes.
        nodes: usize,
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

/// The pod of a replica that the plan wants.
///
/// # Errors
/// [`Unbuildable`] if the plan asks for what the resources do not hold.
pub fn pod(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    plan: u64,
) -> Result<Pod, Unbuildable> {
    let replica = assignment.id.to_string();
    let shape = &assignment.shape;
    let class = inputs.validated.accelerator(&shape.accelerator).ok_or_else(|| Unbuildable::Accelerator {
        replica: replica.clone(),
        accelerator: shape.accelerator.clone(),
    })?;
    let variant = pool
        .variant(&shape.variant)
        .ok_or_else(|| Unbuildable::Variant { replica: replica.clone(), variant: shape.variant.clone() })?;
    if assignment.nodes.len() > 1 {
        return Err(Unbuildable::Nodes { replica, nodes: assignment.nodes.len() });
    }
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
    };
    let record_text = serde_json::to_string(&record)
        .map_err(|e| Unbuildable::Record { replica: replica.clone(), problem: e.to_string() })?;
    let adapters: Vec<&fleet::Adapter> = inputs.validated.adapters_of(&pool.id).collect();
    let weights = engine::weights(variant.source.as_deref().or(pool.source.as_deref()));
    let launch = engine::launch(&inputs.config.images, pool, shape, variant, class, &weights, &adapters);
    let spec = spec(inputs, resource, pool, assignment, class, &weights, launch);
    let template = template::annotation(&template::inputs(resource, pool, shape));
    let labels = BTreeMap::from(
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
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(replica),
            namespace: Some(pool.id.namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([
                (names::REPLICA.to_owned(), record_text),
                (names::TEMPLATE.to_owned(), template),
            ])),
            owner_references: resource.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

fn spec(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    class: &fleet::AcceleratorClass,
    weights: &engine::Weights,
    launch: engine::Launch,
) -> PodSpec {
    let gpu_resource = class.vendor.resource_name();
    let mut env: Vec<EnvVar> = launch.env;
    for (name, value) in [
        ("HOME", HOME),
        ("HF_HOME", "/cache/huggingface"),
        ("USER", names::PLIMSOLL),
        ("LOGNAME", names::PLIMSOLL),
    ] {
        env.push(literal(name, value));
    }
    // The owner's variables come last: they win.
    env.retain(|v| !resource.spec.engine.env.iter().any(|own| own.name == v.name));
    env.extend(resource.spec.engine.env.iter().cloned());
    let mut volumes = vec![
        empty_dir("cache", None),
        // Tensor parallelism exchanges through shared memory; the runtime's default of 64 MiB is too small.
        empty_dir("shm", Some("Memory")),
    ];
    let mut mounts = vec![mount("cache", HOME, false), mount("shm", "/dev/shm", false)];
    match weights {
        engine::Weights::Claim { claim, .. } => {
            volumes.push(Volume {
                name: "weights".to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.clone(),
                    read_only: Some(true),
                }),
                ..Volume::default()
            });
            mounts.push(mount("weights", WEIGHTS, true));
        }
        engine::Weights::Image { reference } => {
            volumes.push(Volume {
                name: "weights".to_owned(),
                image: Some(ImageVolumeSource { reference: Some(reference.clone()), pull_policy: None }),
                ..Volume::default()
            });
            mounts.push(mount("weights", WEIGHTS, true));
        }
        engine::Weights::HuggingFace { .. } | engine::Weights::Remote { .. } | engine::Weights::None => {}
    }
    let engine = Container {
        name: "engine".to_owned(),
        image: Some(pool.engine.image.clone().unwrap_or(launch.image)),
        command: (!launch.command.is_empty()).then_some(launch.command),
        args: Some(launch.args.into_iter().chain(pool.engine.args.iter().cloned()).collect()),
        env: Some(env),
        ports: Some(vec![ContainerPort {
            name: Some("engine".to_owned()),
            container_port: names::ENGINE_PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(resource, gpu_resource, assignment.shape.gpus())),
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
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let mut node_selector = pool.placement.node_selector.clone();
    if assignment.nodes.is_empty() {
        // Wherever capacity of the class appears.
        node_selector.extend(class.node_selector.clone());
    }
    PodSpec {
        containers: vec![engine],
        affinity: assignment.nodes.first().map(|node| pinned(node.as_str())),
        node_selector: (!node_selector.is_empty()).then_some(node_selector),
        tolerations: Some(tolerations(pool, gpu_resource)),
        termination_grace_period_seconds: i64::try_from(inputs.config.termination_grace.as_secs()).ok(),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

pub(super) fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

fn empty_dir(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None }),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// Required affinity to one node. The cluster's own scheduler still binds the pod, so it accounts for its resources.
fn pinned(node: &str) -> Affinity {
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_fields: Some(vec![NodeSelectorRequirement {
                        key: "metadata.name".to_owned(),
                        operator: "In".to_owned(),
                        values: Some(vec![node.to_owned()]),
                    }]),
                    match_expressions: None,
                }],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn tolerations(pool: &fleet::ModelPool, gpu_resource: Option<&str>) -> Vec<Toleration> {
    let mut tolerations: Vec<Toleration> = pool
        .placement
        .tolerations
        .iter()
        .map(|t| Toleration {
            key: t.key.clone(),
            operator: t.operator.clone(),
            value: t.value.clone(),
            effect: t.effect.clone(),
            toleration_seconds: None,
        })
        .collect();
    // GPU nodes are commonly tainted with their own resource's name.
    tolerations.extend(gpu_resource.map(|resource| Toleration {
        key: Some(resource.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        ..Toleration::default()
    }));
    tolerations
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
