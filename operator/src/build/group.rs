//! The pods of a replica over several nodes, or the LeaderWorkerSet that makes them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodAntiAffinity, PodSpec, PodTemplateSpec, Service, ServicePort,
    ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;
use kube::api::ObjectMeta;
use plimsoll_crds::ModelPool;
use plimsoll_fleet as fleet;
use plimsoll_fleet::{NodeName, ReplicaAssignment};
use serde_json::Value;

use super::pod::{self, Unbuildable};
use super::{Inputs, engine};
use crate::{lws, names};

/// A pod's place in its replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Whether it is the one that serves.
    pub leads: bool,
    /// Its rank as arguments name it: a number, or a reference to a variable that holds one.
    pub rank: String,
    /// Pods of the replica.
    pub size: u32,
    /// Address of the leader.
    pub leader: String,
    /// Nodes it may run on (empty: wherever capacity appears).
    pub nodes: Vec<NodeName>,
    /// Whether a LeaderWorkerSet makes it.
    pub in_set: bool,
}

impl Seat {
    /// The only pod of a replica.
    pub fn alone(nodes: &[NodeName]) -> Self {
        let nodes = nodes.iter().take(1).cloned().collect();
        Self { leads: true, rank: "0".to_owned(), size: 1, leader: String::new(), nodes, in_set: false }
    }

    /// What tells the pods of a group from others.
    pub(super) fn mark(
        &self,
        labels: &mut BTreeMap<String, String>,
        annotations: &mut BTreeMap<String, String>,
        spec: &mut PodSpec,
    ) {
        if self.size < 2 {
            return;
        }
        // In a set all workers are made from one template; their labels of that API tell their ranks.
        let rank = if self.in_set && !self.leads { "worker" } else { self.rank.as_str() };
        labels.insert(names::RANK.to_owned(), rank.to_owned());
        if !self.in_set {
            // A group whose parts restart one by one would wait for itself: it is made anew as a whole.
            spec.restart_policy = Some("Never".to_owned());
        }
        if self.leads {
            return;
        }
        // Only leaders serve: what selects a pool's replicas (gateways, scale) must not find the others.
        labels.remove(names::POOL);
        annotations.clear();
        for container in &mut spec.containers {
            container.ports = None;
            container.startup_probe = None;
            container.readiness_probe = None;
        }
    }
}

/// A replica over several nodes that is to be created.
#[derive(Debug, Clone, PartialEq)]
pub enum NewGroup {
    /// By its pods, the leader first.
    Pods {
        /// The headless Service under which workers find their leader.
        service: Box<Service>,
        /// The pods.
        pods: Vec<Pod>,
    },
    /// By a LeaderWorkerSet.
    Set {
        /// The object.
        body: Box<Value>,
    },
}

/// Nodes that a replica takes: as planned, or as many as its class's nodes make necessary.
pub fn size(inputs: &Inputs<'_>, assignment: &ReplicaAssignment) -> u32 {
    if !assignment.nodes.is_empty() {
        return assignment.nodes.len() as u32;
    }
    let class = inputs.validated.accelerator(&assignment.shape.accelerator);
    class.map_or(1, |class| assignment.shape.nodes_of(class.node_gpus(inputs.nodes)))
}

/// What makes a replica over `size` nodes.
///
/// # Errors
/// [`Unbuildable`] if the plan asks for what the resources do not hold.
pub fn group(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    plan: u64,
    size: u32,
) -> Result<NewGroup, Unbuildable> {
    let id = assignment.id.as_str();
    if inputs.lws && lws::can_name(id) {
        return set(inputs, resource, pool, assignment, plan, size);
    }
    let service = service(resource, pool);
    let service_name = service.metadata.name.clone().unwrap_or_default();
    let hostname = names::dns_label(id, 63);
    let leader = format!("{hostname}.{service_name}.{}.svc", pool.id.namespace());
    let mut pods = Vec::new();
    for rank in 0..size {
        let seat = Seat {
            leads: rank == 0,
            rank: rank.to_string(),
            size,
            leader: leader.clone(),
            nodes: assignment.nodes.get(rank as usize).cloned().into_iter().collect(),
            in_set: false,
        };
        let mut pod = pod::pod(inputs, resource, pool, assignment, plan, &seat)?;
        if rank == 0 {
            if let Some(spec) = &mut pod.spec {
                spec.hostname = Some(hostname.clone());
                spec.subdomain = Some(service_name.clone());
            }
        } else {
            pod.metadata.name = Some(worker_name(id, rank));
            // The leader's pod, once it is known.
            pod.metadata.owner_references = None;
        }
        pods.push(pod);
    }
    Ok(NewGroup::Pods { service: Box::new(service), pods })
}

/// Name of a worker's pod; no replica's, which end in a number.
fn worker_name(replica: &str, rank: u32) -> String {
    format!("{replica}-w{rank}")
}

/// Finds the leaders of a pool, before they are ready too.
fn service(resource: &ModelPool, pool: &fleet::ModelPool) -> Service {
    let text = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let value = names::label_value(pool.id.name());
    let own = [(names::MANAGED_BY, names::PLIMSOLL), (names::POOL, value.as_str())];
    Service {
        metadata: ObjectMeta {
            name: Some(names::group_service(pool.id.name())),
            namespace: Some(pool.id.namespace().to_owned()),
            labels: Some(text(&own)),
            owner_references: resource.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(text(&[own[0], own[1], (names::RANK, "0")])),
            ports: Some(vec![ServicePort {
                name: Some("rendezvous".to_owned()),
                port: names::RENDEZVOUS_PORT,
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn set(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    assignment: &ReplicaAssignment,
    plan: u64,
    size: u32,
) -> Result<NewGroup, Unbuildable> {
    let (first, others) = match assignment.nodes.as_slice() {
        [first, others @ ..] => (vec![first.clone()], others.to_vec()),
        [] => (Vec::new(), Vec::new()),
    };
    let mut templates = Vec::new();
    for (leads, nodes) in [(true, first), (false, others)] {
        let rank = if leads { "0".to_owned() } else { "$(PLIMSOLL_RANK)".to_owned() };
        let leader = format!("$({})", lws::LEADER_ADDRESS);
        let seat = Seat { leads, rank, size, leader, nodes, in_set: true };
        let made = pod::pod(inputs, resource, pool, assignment, plan, &seat)?;
        let mut spec = made.spec.unwrap_or_default();
        if !leads {
            let index = format!("metadata.labels['{}']", lws::WORKER_INDEX);
            for container in &mut spec.containers {
                // Before those that refer to it.
                container.env.get_or_insert_default().insert(0, engine::pod_field("PLIMSOLL_RANK", &index));
            }
            if size > 2 {
                apart(&mut spec, assignment.id.as_str());
            }
        }
        let metadata = ObjectMeta {
            labels: made.metadata.labels,
            annotations: made.metadata.annotations,
            ..ObjectMeta::default()
        };
        templates.push(PodTemplateSpec { metadata: Some(metadata), spec: Some(spec) });
    }
    let worker = templates.pop().unwrap_or_default();
    let leader = templates.pop().unwrap_or_default();
    let body = lws::body(resource, pool, assignment.id.as_str(), size, &leader, &worker);
    Ok(NewGroup::Set { body: Box::new(body) })
}

/// One pod of the replica a node: workers of a set share one list of nodes.
fn apart(spec: &mut PodSpec, replica: &str) {
    let selector = LabelSelector {
        match_labels: Some([(names::REPLICA.to_owned(), names::label_value(replica))].into()),
        match_expressions: None,
    };
    let term = PodAffinityTerm {
        label_selector: Some(selector),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    spec.affinity.get_or_insert_with(Affinity::default).pod_anti_affinity = Some(PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: Some(vec![term]),
        preferred_during_scheduling_ignored_during_execution: None,
    });
}
