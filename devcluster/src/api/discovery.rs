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
        "name": name,
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
    let groups = served.groups();
    let (name, versions) = groups.iter().find(|(g, _)| *g == name)?;
    let mut document = group(name, versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
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
        // What is only computed is not stored.
        if r.allows("update") {
            entry["storageVersionHash"] = storage_version_hash(r).into();
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
    let mut document =
        json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": list});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    Some(document)
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
    // A real server leaves out of its own kinds what stands above them.
    let (group, version) = match r.custom {
        Some(_) => (r.group.as_str(), r.version.as_str()),
        None => ("", ""),
    };
    let mut entry = json!({
        "resource": r.plural, "singularResource": r.singular, "verbs": r.verbs,
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": kind(group, version, &r.kind),
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
            let (g, v) = match s.version.is_empty() {
                true => (group, version),
                false => (s.group.as_str(), s.version.as_str()),
            };
            json!({"subresource": s.name, "verbs": s.verbs, "responseKind": kind(g, v, &s.kind)})
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// What tells clients whether objects are stored in another form than before.
fn storage_version_hash(r: &Resource) -> String {
    let version = match (r.group.as_str(), r.plural.as_str()) {
        // A real server goes on storing these in the versions before.
        ("apiextensions.k8s.io", _) | (_, "volumeattributesclasses") if r.custom.is_none() => {
            format!("{}/v1beta1", r.group)
        }
        _ if r.storage_api_version.contains('/') => r.storage_api_version.clone(),
        _ => format!("/{}", r.storage_api_version),
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{version}/{}", r.kind).as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest.as_ref().get(..8).unwrap_or_default())
}
