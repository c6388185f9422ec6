//! Engines of others, read for pools that adopt them: from pods to what they run and hold. Pure; nothing here can
//! change a pod.

mod args;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use plimsoll_fleet::{
    AcceleratorClass, AdoptedReplica, Dtype, EngineKind, ModelPool, NodeName, PoolId, Shape,
};

use crate::observe;
use crate::validate::Validated;
use crate::world::World;
use args::CommandLine;

/// Labels that tie the pods of one engine together where a pool names none: those of LeaderWorkerSet, of AIBrix's
/// PodSet (StormService) and of KubeRay. The first whose labels a pod has all of counts.
const GROUPS: [&[&str]; 3] = [
    &["leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/group-index"],
    &["stormservice.orchestration.aibrix.ai/podset-name"],
    &["ray.io/cluster"],
];

/// Why pods are not understood: one CamelCase word, then what is wrong and what to do.
fn problem(reason: &str, text: impl std::fmt::Display) -> String {
    format!("{reason}: {text}")
}

/// Keeps of another's container what tells which engine it runs: of interest only where it holds accelerators.
pub fn keep(container: &mut Container) -> Container {
    let mut kept = Container {
        name: std::mem::take(&mut container.name),
        resources: container.resources.take(),
        ..Container::default()
    };
    if observe::asks_for_extended_resource(&kept) {
        kept.image = container.image.take();
        kept.command = container.command.take();
        kept.args = container.args.take();
        kept.env = container.env.take();
        // What it takes from elsewhere, such as Secrets, is not read.
        kept.env.iter_mut().for_each(|env| env.retain(|v| v.value.is_some()));
    }
    kept
}

/// The engines that accepted pools adopt, in order of pool and name. A pod that two pools select belongs to the first by
/// identity. O(pools that adopt × pods of others).
pub fn adopt(world: &World, validated: &Validated) -> Vec<AdoptedReplica> {
    let mut pools: Vec<_> = validated
        .accepted()
        .filter_map(|(resource, a)| Some((&a.pool, resource.spec.adopt.as_ref()?)))
        .filter(|(pool, _)| pool.mode == plimsoll_fleet::pool::Mode::Advise)
        .collect();
    pools.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    let mut taken: BTreeMap<String, &PoolId> = BTreeMap::new();
    let mut adopted = Vec::new();
    for (pool, adopt) in pools {
        let Ok(selector) = Selector::try_from(adopt.selector.clone()) else { continue };
        let mut groups: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
        for pod in world.foreign_pods.iter().filter(|p| matches(p, pool, &selector)) {
            let uid = pod.metadata.uid.clone().unwrap_or_else(|| pod.name_any());
            match taken.get(&uid) {
                Some(owner) => adopted.push(unread(
                    pool,
                    pod.name_any(),
                    problem(
                        "AdoptedElsewhere",
                        format!("pool {owner} adopts it already; narrow one of the selectors"),
                    ),
                )),
                None => {
                    taken.insert(uid, &pool.id);
                    groups.entry(group(pod, &adopt.group_labels)).or_default().push(pod);
                }
            }
        }
        for (name, mut pods) in groups {
            pods.sort_by_key(|p| p.name_any());
            adopted.push(engine(world, validated, pool, name, &pods));
        }
    }
    adopted.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    adopted
}

fn matches(pod: &Arc<Pod>, pool: &ModelPool, selector: &Selector) -> bool {
    pod.metadata.namespace.as_deref() == Some(pool.id.namespace())
        && selector.matches(pod.labels())
        && observe::holds_resources(pod)
}

/// The name of the engine that a pod is (part of).
fn group(pod: &Pod, chosen: &[String]) -> String {
    let labels = pod.labels();
    let name = |keys: &[&str]| {
        let values: Option<Vec<&str>> = keys.iter().map(|k| labels.get(*k).map(String::as_str)).collect();
        values.filter(|v| !v.is_empty()).map(|v| v.join("-"))
    };
    let found = if chosen.is_empty() {
        GROUPS.iter().find_map(|keys| name(keys))
    } else {
        name(&chosen.iter().map(String::as_str).collect::<Vec<_>>())
    };
    found.unwrap_or_else(|| pod.name_any())
}

fn unread(pool: &ModelPool, name: String, problem: String) -> AdoptedReplica {
    AdoptedReplica {
        pool: pool.id.clone(),
        name,
        shape: None,
        copies: 1,
        gpus: Vec::new(),
        ready: false,
        problem,
    }
}

/// One engine: the pods of one group.
fn engine(
    world: &World,
    validated: &Validated,
    pool: &ModelPool,
    name: String,
    pods: &[&Pod],
) -> AdoptedReplica {
    let mut gpus: BTreeMap<NodeName, u32> = BTreeMap::new();
    let mut classes: BTreeMap<&str, &AcceleratorClass> = BTreeMap::new();
    let mut problems = Vec::new();
    for pod in pods {
        match on(world, validated, pod) {
            Ok((node, class)) => {
                let resource = class.resource_name();
                let n = resource.zip(pod.spec.as_ref()).map_or(0, |(r, spec)| observe::held(spec, r));
                if n > 0 {
                    *gpus.entry(node).or_default() += n;
                    classes.insert(&class.name, class);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    let held = gpus.values().sum();
    let shape = match problems.into_iter().next() {
        Some(problem) => Err(problem),
        None => shape(pool, pods, held, &classes),
    };
    let (shape, copies, problem) = match shape {
        Ok((shape, copies)) => (Some(shape), copies, String::new()),
        Err(problem) => (None, 1, problem),
    };
    AdoptedReplica {
        pool: pool.id.clone(),
        name,
        shape,
        copies,
        gpus: gpus.into_iter().collect(),
        ready: pods.iter().all(|p| ready(p)),
        problem,
    }
}

/// Where a pod runs.
fn on<'a>(
    world: &World,
    validated: &'a Validated,
    pod: &Pod,
) -> Result<(NodeName, &'a AcceleratorClass), String> {
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    let name = bound
        .and_then(|n| NodeName::new(n).ok())
        .ok_or_else(|| problem("Unscheduled", format!("pod {} waits for a node", pod.name_any())))?;
    let node = world.nodes.iter().find(|n| n.name_any() == name.as_str());
    match node.and_then(|n| observe::class_of(n, validated.accelerator_classes())) {
        Some(class) => Ok((name, class)),
        None => Err(problem(
            "UnknownAccelerator",
            format!("node {name} is of no AcceleratorClass; apply one whose nodeSelector fits its labels"),
        )),
    }
}

fn ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What an engine runs, and how many copies of it.
fn shape(
    pool: &ModelPool,
    pods: &[&Pod],
    held: u32,
    classes: &BTreeMap<&str, &AcceleratorClass>,
) -> Result<(Shape, u32), String> {
    let mut classes = classes.values();
    let class = match (classes.next(), classes.next()) {
        (Some(class), None) => class,
        (None, _) => {
            return Err(problem(
                "NoAccelerators",
                "it asks for no accelerator; select only the engines' own pods",
            ));
        }
        (Some(a), Some(b)) => {
            return Err(problem(
                "MixedAccelerators",
                format!(
                    "its pods run on {} and {}; one engine of two classes cannot be judged",
                    a.name, b.name
                ),
            ));
        }
    };
    let line = command_line(pods).ok_or_else(|| {
        problem(
            "UnknownEngine",
            "its command line is not one of vLLM, SGLang or llama.cpp; it counts in cost only",
        )
    })?;
    let variant = variant(pool, &line)?;
    let (tensor, pipeline) = degrees(&line, held);
    if !pool.architecture.supports_tensor_parallel(tensor) || pipeline > pool.architecture.layers.max(1) {
        return Err(problem(
            "WrongModel",
            format!(
                "TP{tensor} PP{pipeline} does not divide {}, the pool's model; check spec.model and spec.adopt.selector",
                pool.architecture.name
            ),
        ));
    }
    let needs = tensor.saturating_mul(pipeline);
    if needs > held {
        return Err(problem(
            "GroupIncomplete",
            format!(
                "its arguments ask for {needs} accelerators and it holds {held}; name in spec.adopt.groupLabels the labels that tie its pods together"
            ),
        ));
    }
    // Each data-parallel copy has accelerators of its own, unless attention alone is data-parallel.
    let copies = if line.data.is_some_and(|d| d > 1) { held / needs } else { 1 };
    let shape = Shape {
        variant,
        accelerator: class.name.clone(),
        tensor_parallel: tensor,
        pipeline_parallel: pipeline,
        data_parallel: 1,
        expert_parallel: 1,
        role: line.role,
    };
    Ok((shape, copies.max(1)))
}

/// The command line of the engine among a group's pods: the one that names a model, else the first that is one.
fn command_line(pods: &[&Pod]) -> Option<CommandLine> {
    let lines: Vec<CommandLine> = pods
        .iter()
        .filter_map(|p| p.spec.as_ref())
        .flat_map(|s| &s.containers)
        .filter(|c| observe::asks_for_extended_resource(c))
        .filter_map(args::read)
        .collect();
    lines.iter().find(|l| !l.model.is_empty()).or(lines.first()).cloned()
}

/// Tensor- and pipeline-parallel degrees; what flags leave open is the engine's default.
fn degrees(line: &CommandLine, held: u32) -> (u32, u32) {
    match line.engine {
        // It spreads layers over all that it is given.
        EngineKind::Llamacpp => (1, held),
        _ => (line.tensor.unwrap_or(1), line.pipeline.unwrap_or(1)),
    }
}

/// The pool's variant that an engine runs.
fn variant(pool: &ModelPool, line: &CommandLine) -> Result<String, String> {
    let sixteen = |d: Dtype| matches!(d, Dtype::Bf16 | Dtype::Fp16);
    let Some(weights) = line.weights else {
        // The checkpoint as it is: the best variant.
        return pool
            .variants
            .first()
            .map(|v| v.name.clone())
            .ok_or_else(|| problem("NoVariant", "the pool has no variant"));
    };
    let fits = |v: &&plimsoll_fleet::shape::Variant| {
        v.weights == weights || (sixteen(v.weights) && sixteen(weights))
    };
    pool.variants.iter().find(fits).map(|v| v.name.clone()).ok_or_else(|| {
        problem(
            "NoVariant",
            format!("it runs {weights} weights, which no variant of the pool has; add one to spec.variants"),
        )
    })
}
