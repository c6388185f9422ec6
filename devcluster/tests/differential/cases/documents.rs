//! What servers say of themselves: versions, discovery, OpenAPI.

use crate::script::Script;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// As kubectl asks.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
/// The groups that devcluster serves, with their versions.
const GROUPS: &[&str] = &[
    "admissionregistration.k8s.io/v1",
    "apiextensions.k8s.io/v1",
    "apiregistration.k8s.io/v1",
    "apps/v1",
    "authentication.k8s.io/v1",
    "authorization.k8s.io/v1",
    "autoscaling/v1",
    "autoscaling/v2",
    "batch/v1",
    "certificates.k8s.io/v1",
    "coordination.k8s.io/v1",
    "discovery.k8s.io/v1",
    "events.k8s.io/v1",
    "flowcontrol.apiserver.k8s.io/v1",
    "networking.k8s.io/v1",
    "node.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "resource.k8s.io/v1",
    "scheduling.k8s.io/v1",
    "storage.k8s.io/v1",
];

pub fn discovery() -> Script {
    let mut s = Script::bare("discovery");
    for (name, path) in [
        ("healthz", "/healthz"),
        ("livez", "/livez"),
        ("readyz", "/readyz"),
        ("version", "/version"),
        ("core versions", "/api"),
        ("core", "/api/v1"),
        ("groups", "/apis"),
        ("no group", "/apis/none.example.com"),
        ("no version", "/apis/apps/v9"),
        ("no path", "/nothing"),
    ] {
        s.get(name, path);
    }
    for group_version in GROUPS {
        let (group, _) = group_version.split_once('/').unwrap();
        s.get(&format!("group {group}"), &format!("/apis/{group}"));
        s.get(group_version, &format!("/apis/{group_version}"));
    }
    s.get_as("aggregated core", AGGREGATED, "/api");
    s.get_as("aggregated", AGGREGATED, "/apis");
    s.get_as("aggregated as kubectl", DISCOVERY, "/apis");
    s.kubectl("api-versions", "api-versions", "");
    s.kubectl("api-resources", "api-resources -o wide --sort-by=name", "");
    s.kubectl("version as text", "version", "");
    s.kubectl("raw", "get --raw /readyz", "");
    s.kubectl("cluster-info", "cluster-info", "");
    s
}

pub fn openapi() -> Script {
    let mut s = Script::bare("openapi");
    for (path, recursive) in [
        ("pods", false),
        ("pod.spec.containers", false),
        ("pod.spec.containers.resources", true),
        ("deployment", true),
        ("deployment.spec.strategy", true),
        ("service.spec.ports", false),
        ("configmap", true),
        ("secret.type", false),
        ("hpa.spec", true),
        ("lease", true),
        ("node.status", true),
        ("events", true),
        ("job.spec", true),
        ("networkpolicy.spec", true),
        ("pdb.spec", true),
        ("crd.spec.versions", false),
        ("clusterrole.rules", true),
        ("priorityclass", true),
        ("storageclass", true),
        ("pvc.spec", true),
    ] {
        let more = if recursive { " --recursive" } else { "" };
        s.kubectl(&format!("explain {path}"), &format!("explain {path}{more}"), "");
    }
    s.get("schemas of core", "/openapi/v3/api/v1").part = "/body/components/schemas";
    for group_version in GROUPS {
        let path = format!("/openapi/v3/apis/{group_version}");
        s.get(&format!("schemas of {group_version}"), &path).part = "/body/components/schemas";
    }
    s.kubectl("explain nothing", "explain pod.spec.nothing", "");
    s
}
