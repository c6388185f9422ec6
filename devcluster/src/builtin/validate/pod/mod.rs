//! Pods, and the specs of pods in templates.

mod containers;
mod environment;
mod handlers;
mod scheduling;
mod security;
mod update;
mod volumes;

use serde_json::Value;

use super::field::{At, Faults, entries, is_empty, items, text, texts};
use super::{addresses, meta, names};
pub(super) use scheduling::taint_effect;
pub(super) use update::{status, updated};
pub(super) use volumes::{host_path, nfs, no_steps_back};

/// Most name servers, search domains and letters of all search domains.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LETTERS: usize = 2048;

/// Whose spec it is: a pod's own, or that of pods to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of<'a> {
    /// A pod's, with its name.
    Pod(&'a str),
    /// A template's.
    Template,
}

/// Checks a new pod.
pub(super) fn created(pod: &Value, faults: &mut Faults) {
    whole(pod, faults);
    let (spec, at) = (&pod["spec"], At::root("spec"));
    if !is_empty(&spec["ephemeralContainers"]) {
        faults.forbidden(&at.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(&spec["nodeName"]).is_empty() && !is_empty(&spec["schedulingGates"]) {
        faults.forbidden(&at.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// Checks a pod's metadata and spec as they stand.
fn whole(pod: &Value, faults: &mut Faults) {
    let (spec, at) = (&pod["spec"], At::root("spec"));
    meta::created("Pod", &pod["metadata"], faults);
    annotations(&pod["metadata"]["annotations"], &At::root("metadata").child("annotations"), faults);
    self::spec(spec, &at, Of::Pod(text(&pod["metadata"]["name"])), faults);
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&spec[list]).enumerate() {
            let image = text(&container["image"]);
            if image.trim() != image {
                let why = "must not have leading or trailing whitespace";
                faults.invalid(&at.child(list).index(i).child("image"), image, why);
            }
        }
    }
}

/// Checks a template of pods.
pub(super) fn template(template: &Value, at: &At, faults: &mut Faults) {
    let metadata = &template["metadata"];
    meta::labels(&metadata["labels"], &at.child("labels"), faults);
    meta::annotations(&metadata["annotations"], &at.child("annotations"), faults);
    annotations(&metadata["annotations"], &at.child("annotations"), faults);
    spec(&template["spec"], &at.child("spec"), Of::Template, faults);
    if !is_empty(&template["spec"]["ephemeralContainers"]) {
        let why = "ephemeral containers not allowed in pod template";
        faults.forbidden(&at.child("spec").child("ephemeralContainers"), why);
    }
}

/// Annotations of pods that mean something.
fn annotations(annotations: &Value, at: &At, faults: &mut Faults) {
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = annotations[COST].as_str() {
        let good = cost.parse::<i32>().is_ok() && !cost.starts_with('+');
        let zeros = cost.trim_start_matches('-').starts_with('0') && cost != "0";
        if !good || zeros {
            faults.invalid(&at.key(COST), cost, "must be a 32bit integer");
        }
    }
}

/// Checks the spec of a pod or a template.
pub(super) fn spec(spec: &Value, at: &At, of: Of<'_>, faults: &mut Faults) {
    let volumes = volumes::all(&spec["volumes"], of, &at.child("volumes"), faults);
    let claims = resource_claims(&spec["resourceClaims"], &at.child("resourceClaims"), faults);
    let around = containers::Around { spec, volumes: &volumes, claims: &claims };
    containers::regular(&around, &at.child("containers"), faults);
    containers::first(&around, &at.child("initContainers"), faults);
    host_ports(spec, of, at, faults);
    faults.one_of(&at.child("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    faults.one_of(&at.child("dnsPolicy"), &spec["dnsPolicy"], &policies);
    meta::labels(&spec["nodeSelector"], &at.child("nodeSelector"), faults);
    security::of_pod(spec, &at.child("securityContext"), faults);
    scheduling::affinity(&spec["affinity"], &at.child("affinity"), faults);
    dns(spec, &at.child("dnsConfig"), faults);
    for (i, gate) in items(&spec["readinessGates"]).enumerate() {
        let kind = text(&gate["conditionType"]);
        let at = at.child("readinessGates").index(i).child("conditionType");
        faults.invalid_for(&at, kind, names::qualified_name(kind));
    }
    scheduling::gates(&spec["schedulingGates"], &at.child("schedulingGates"), faults);
    scheduling::spread(&spec["topologySpreadConstraints"], &at.child("topologySpreadConstraints"), faults);
    security::users_of_host(spec, at, faults);
    let named = |field: &str, rule: fn(&str) -> Vec<String>, faults: &mut Faults| {
        let name = text(&spec[field]);
        if !name.is_empty() {
            faults.invalid_for(&at.child(field), name, rule(name));
        }
    };
    named("serviceAccountName", names::dns_subdomain, faults);
    named("nodeName", names::dns_subdomain, faults);
    faults.in_range(
        &at.child("activeDeadlineSeconds"),
        &spec["activeDeadlineSeconds"],
        1,
        i64::from(i32::MAX),
    );
    named("hostname", names::dns_label, faults);
    named("subdomain", names::dns_label, faults);
    scheduling::tolerations(&spec["tolerations"], &at.child("tolerations"), faults);
    for (i, alias) in items(&spec["hostAliases"]).enumerate() {
        let at = at.child("hostAliases").index(i);
        addresses::ip(text(&alias["ip"]), &at.child("ip"), faults);
        for (n, name) in texts(&alias["hostnames"]).enumerate() {
            faults.invalid_for(&at.child("hostnames").index(n), name, names::dns_subdomain(name));
        }
    }
    named("priorityClassName", names::dns_subdomain, faults);
    if let Some(class) = spec["runtimeClassName"].as_str() {
        faults.invalid_for(&at.child("runtimeClassName"), class, names::dns_subdomain(class));
    }
    let preemption = ["PreemptLowerPriority", "Never"];
    faults.one_of(&at.child("preemptionPolicy"), &spec["preemptionPolicy"], &preemption);
    for (resource, value) in entries(&spec["overhead"]) {
        let at = at.child("overhead").child("limits").key(resource);
        super::resources::container_resource(resource, &at, faults);
        super::resources::amount_of(resource, value, &at, faults);
    }
    if spec["os"].is_object() {
        match text(&spec["os"]["name"]) {
            "" => faults.required(&at.child("os").child("name"), ""),
            "linux" | "windows" => {}
            other => faults.not_supported(&at.child("os"), other, &["linux", "windows"]),
        }
    }
}

/// Checks the resource claims of a pod; their names.
fn resource_claims<'a>(claims: &'a Value, at: &At, faults: &mut Faults) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for (i, claim) in items(claims).enumerate() {
        let (at, name) = (at.index(i), text(&claim["name"]));
        if name.is_empty() {
            faults.required(&at.child("name"), "");
        } else if seen.contains(&name) {
            faults.duplicate(&at.child("name"), name);
        } else {
            faults.invalid_for(&at.child("name"), name, names::dns_label(name));
            seen.push(name);
        }
        let (own, template) = (&claim["resourceClaimName"], &claim["resourceClaimTemplateName"]);
        if own.is_string() && template.is_string() {
            let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            faults.invalid(&at, claim.clone(), why);
        }
        if own.is_null() && template.is_null() {
            let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            faults.invalid(&at, claim.clone(), why);
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = claim[field].as_str() {
                faults.invalid_for(&at.child(field), name, names::dns_subdomain(name));
            }
        }
    }
    seen
}

/// On the host's network a container's port is the host's.
fn host_ports(spec: &Value, of: Of<'_>, at: &At, faults: &mut Faults) {
    if spec["hostNetwork"] != true {
        return;
    }
    for (i, container) in items(&spec["containers"]).enumerate() {
        for (p, port) in items(&container["ports"]).enumerate() {
            let (host, own) = (port["hostPort"].as_i64().unwrap_or(0), port["containerPort"].as_i64());
            if (of != Of::Template || host != 0) && Some(host) != own {
                let at = at.child("containers").index(i).child("ports").index(p).child("hostPort");
                faults.invalid(&at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn dns(spec: &Value, at: &At, faults: &mut Faults) {
    let config = &spec["dnsConfig"];
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            return faults.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if is_empty(&config["nameservers"]) {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return faults.required(&at.child("nameservers"), why);
        }
    }
    let servers = at.child("nameservers");
    if items(&config["nameservers"]).count() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        faults.invalid(&servers, config["nameservers"].clone(), &why);
    }
    for (i, server) in texts(&config["nameservers"]).enumerate() {
        addresses::ip(server, &servers.index(i), faults);
    }
    let searches = at.child("searches");
    let domains: Vec<&str> = texts(&config["searches"]).collect();
    if domains.len() > MAX_SEARCHES {
        let why = format!("must not have more than {MAX_SEARCHES} search paths");
        faults.invalid(&searches, config["searches"].clone(), &why);
    }
    if domains.join(" ").len() > MAX_SEARCH_LETTERS {
        let why = format!(
            "must not have more than {MAX_SEARCH_LETTERS} characters (including spaces) in the search list"
        );
        faults.invalid(&searches, config["searches"].clone(), &why);
    }
    for (i, domain) in domains.iter().enumerate().filter(|(_, domain)| **domain != ".") {
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        faults.invalid_for(&searches.index(i), domain, names::search_domain(domain));
    }
    for (i, option) in items(&config["options"]).enumerate() {
        if text(&option["name"]).is_empty() {
            faults.required(&at.child("options").index(i), "must not be empty");
        }
    }
}
