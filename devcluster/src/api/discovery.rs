//! What is served, told to clients: the old per-group documents and the aggregated one.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::resources::{Resource, Served, api_version};

/// `/api`.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": api_version(name, v), "version": v});
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// `/apis`.
pub fn groups(served: &Served) -> Value {
    let groups: Vec<Value> =
        served.groups().iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn one_group(served: &Served, name: &str) -> Option<Value> {
    served.groups().iter().find(|(g, _)| *g == name).map(|(g, v)| group(g, v))
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resources(served: &Served, group: &str, version: &str) -> Option<Value> {
    let of: Vec<_> = served.resources.iter().filter(|r| r.group == group && r.version == version).collect();
    if of.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for r in of {
        let mut entry = json!({
            "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
            "verbs": r.verbs,
        });
        if !r.short_names.is_empty() {
            entry["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        if r.verbs.iter().any(|verb| verb == "list") {
            entry["storageVersionHash"] = storage_version_hash(&r.group, &r.version, &r.kind).into();
        }
        list.push(entry);
        for s in &r.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", r.plural, s.name), "singularName": "", "namespaced": r.namespaced,
                "kind": s.kind, "verbs": s.verbs,
            });
            if !s.version.is_empty() {
                entry["group"] = s.group.clone().into();
                entry["version"] = s.version.clone().into();
            }
            list.push(entry);
        }
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list,
    }))
}

/// `/api` and `/apis` as `APIGroupDiscoveryList` (v2); `core` chooses which.
pub fn aggregated(served: &Served, core: bool) -> Value {
    let items: Vec<Value> = served
        .groups()
        .iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = served
                        .resources
                        .iter()
                        .filter(|r| r.group == *name && r.version == *version)
                        .map(|r| aggregated_resource(r))
                        .collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(r: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": r.plural, "singularResource": r.singular, "verbs": r.verbs,
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": kind(&r.group, &r.version, &r.kind),
    });
    if !r.short_names.is_empty() {
        entry["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        entry["categories"] = json!(r.categories);
    }
    let subresources: Vec<Value> = r
        .subresources
        .iter()
        .map(|s| {
            let (g, v) = if s.version.is_empty() { (&r.group, &r.version) } else { (&s.group, &s.version) };
            json!({"subresource": s.name, "verbs": s.verbs, "responseKind": kind(g, v, &s.kind)})
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// What tells clients whether objects are stored in another form than before.
fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    // Kinds that are served in several groups or versions are stored in one.
    let stored = match (group, kind) {
        ("events.k8s.io", "Event") => "/v1/Event".to_owned(),
        ("autoscaling", "HorizontalPodAutoscaler") => "autoscaling/v2/HorizontalPodAutoscaler".to_owned(),
        _ => format!("{group}/{version}/{kind}"),
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, stored.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest.as_ref().get(..8).unwrap_or_default())
}
