//! Which node a pod goes to: the filters of kube-scheduler's default profile that a laptop needs, as a pure function.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity::milli;

/// Amounts by resource name, in thousandths of the resource's unit.
pub type Resources = BTreeMap<String, i128>;

/// A node and what runs on it.
#[derive(Debug, Clone)]
pub struct NodeView<'a> {
    /// The node.
    pub node: &'a Node,
    /// Sum of the requests of the pods bound to it, `pods` (their number, in thousandths) included.
    pub used: Resources,
}

/// Why no node takes a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// Kube-scheduler's own form: `0/6 nodes are available: 3 Insufficient nvidia.com/gpu. …`.
    pub message: String,
}

/// Why one node does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    reasons: Vec<String>,
    /// Whether evicting other pods could help.
    preemptable: bool,
}

/// The best node for `pod`, by name.
///
/// # Errors
/// [`Unschedulable`] with every node's reason, counted.
pub fn choose(pod: &Pod, nodes: &[NodeView<'_>]) -> Result<String, Unschedulable> {
    let requests = requests(pod);
    let mut refusals = Vec::new();
    let mut best: Option<(i64, String)> = None;
    for view in nodes {
        let name = view.node.metadata.name.clone().unwrap_or_default();
        match refusal(pod, &requests, view) {
            Some(refusal) => refusals.push(refusal),
            None => {
                let score = score(pod, &requests, view);
                // Ties go to the first name, so that placement is repeatable.
                let better = |(s, n): &(i64, String)| score > *s || (score == *s && name < *n);
                if best.as_ref().is_none_or(better) {
                    best = Some((score, name));
                }
            }
        }
    }
    match best {
        Some((_, name)) => Ok(name),
        None => Err(Unschedulable { message: explain(&refusals) }),
    }
}

fn explain(refusals: &[Refusal]) -> String {
    if refusals.is_empty() {
        return "no nodes available to schedule pods".into();
    }
    let total = refusals.len();
    let filters = tally(refusals.iter().flat_map(|r| r.reasons.iter().map(String::as_str)));
    let preemption = tally(refusals.iter().map(|r| match r.preemptable {
        true => "No preemption victims found for incoming pod",
        false => "Preemption is not helpful for scheduling",
    }));
    format!(
        "0/{total} nodes are available: {filters}. preemption: 0/{total} nodes are available: {preemption}."
    )
}

fn tally<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}

/// Filters in the order of kube-scheduler's default plugins; the first that refuses speaks.
fn refusal(pod: &Pod, requests: &Resources, view: &NodeView<'_>) -> Option<Refusal> {
    let hopeless = |reason: String| Some(Refusal { reasons: vec![reason], preemptable: false });
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let node_spec = view.node.spec.as_ref();
    let cordoned = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if node_spec.and_then(|s| s.unschedulable) == Some(true) && !tolerates(tolerations, &cordoned) {
        return hopeless("node(s) were unschedulable".into());
    }
    if !matches_affinity(pod, view.node) {
        return hopeless("node(s) didn't match Pod's node affinity/selector".into());
    }
    let taints = node_spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let untolerated = taints
        .iter()
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerates(tolerations, taint));
    if let Some(taint) = untolerated {
        let value = taint.value.as_deref().unwrap_or_default();
        return hopeless(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    let allocatable = allocatable(view.node);
    let mut reasons = Vec::new();
    let mut preemptable = true;
    for (resource, wanted) in requests.iter().filter(|(_, wanted)| **wanted > 0) {
        let total = allocatable.get(resource).copied().unwrap_or(0);
        let used = view.used.get(resource).copied().unwrap_or(0);
        if wanted + used > total {
            reasons.push(if resource == "pods" {
                "Too many pods".to_owned()
            } else {
                format!("Insufficient {resource}")
            });
            preemptable &= *wanted <= total;
        }
    }
    (!reasons.is_empty()).then_some(Refusal { reasons, preemptable })
}

/// More is better: preferred affinity, then few `PreferNoSchedule` taints, then free room.
fn score(pod: &Pod, requests: &Resources, view: &NodeView<'_>) -> i64 {
    let node_affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let preferred =
        node_affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let weight: i64 = preferred
        .unwrap_or_default()
        .iter()
        .filter(|term| matches_term(&term.preference, view.node))
        .map(|term| i64::from(term.weight))
        .sum();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = view.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let soft =
        taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerates(tolerations, t)).count() as i64;
    let allocatable = allocatable(view.node);
    let free: i64 = allocatable
        .iter()
        .filter(|(_, total)| **total > 0)
        .map(|(resource, total)| {
            let used =
                view.used.get(resource).copied().unwrap_or(0) + requests.get(resource).copied().unwrap_or(0);
            i64::try_from((total - used).max(0) * 100 / total).unwrap_or(0)
        })
        .sum();
    let free = free / i64::try_from(allocatable.len().max(1)).unwrap_or(1);
    (weight - 100 * soft) * 1_000 + free
}

/// What a node can give to pods.
pub fn allocatable(node: &Node) -> Resources {
    let status = node.status.as_ref();
    let given = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    amounts(given)
}

fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Resources {
    quantities.into_iter().flatten().filter_map(|(name, q)| Some((name.clone(), milli(&q.0)?))).collect()
}

/// What a pod asks for: the sum of its containers, or its largest init container if that is more, plus overhead.
pub fn requests(pod: &Pod) -> Resources {
    let mut out = Resources::new();
    let Some(spec) = pod.spec.as_ref() else { return out };
    for container in &spec.containers {
        for (name, amount) in container_requests(container) {
            *out.entry(name).or_default() += amount;
        }
    }
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        for (name, amount) in container_requests(container) {
            let entry = out.entry(name).or_default();
            *entry = (*entry).max(amount);
        }
    }
    for (name, amount) in amounts(spec.overhead.as_ref()) {
        *out.entry(name).or_default() += amount;
    }
    out.insert("pods".into(), 1_000);
    out
}

fn container_requests(container: &Container) -> Resources {
    let Some(resources) = &container.resources else { return Resources::new() };
    // A limit stands in for an absent request, as the API server's defaults have it.
    let mut out = amounts(resources.limits.as_ref());
    out.extend(amounts(resources.requests.as_ref()));
    out
}

/// Whether a pod's node selector and required node affinity accept a node.
pub fn matches_affinity(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let field =
        |key: &str| (key == "metadata.name").then(|| node.metadata.name.as_deref().unwrap_or_default());
    expressions.iter().all(|r| meets(r, label(&r.key))) && fields.iter().all(|r| meets(r, field(&r.key)))
}

fn meets(requirement: &NodeSelectorRequirement, have: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = have.is_some_and(|h| values.iter().any(|v| v == h));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let limit = || number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => number(have).zip(limit()).is_some_and(|(have, limit)| have > limit),
        "Lt" => number(have).zip(limit()).is_some_and(|(have, limit)| have < limit),
        _ => false,
    }
}

fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && ((key.is_empty() && exists) || key == taint.key)
            && (exists
                || toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}
