//! Roles and bindings.

use serde_json::Value;

use super::field::{At, Faults, inner, is_empty, items, text};
use super::{names, selectors};

/// The API group of roles.
const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks the rules of a role.
pub(super) fn role(role: &Value, in_namespace: bool, faults: &mut Faults) {
    for (i, rule) in items(&role["rules"]).enumerate() {
        self::rule(rule, in_namespace, &At::root("rules").index(i), faults);
    }
    let aggregated = &role["aggregationRule"];
    if in_namespace || !aggregated.is_object() {
        return;
    }
    let at = At::root("aggregationRule").child("clusterRoleSelectors");
    let all = &aggregated["clusterRoleSelectors"];
    if is_empty(all) {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        faults.required(&at, why);
    }
    for (i, selector) in items(all).enumerate() {
        selectors::labels(selector, &at.index(i), faults);
    }
}

fn rule(rule: &Value, in_namespace: bool, at: &At, faults: &mut Faults) {
    if is_empty(&rule["verbs"]) {
        faults.required(&at.child("verbs"), "verbs must contain at least one value");
    }
    let urls = &rule["nonResourceURLs"];
    if !is_empty(urls) {
        let at = at.child("nonResourceURLs");
        if in_namespace {
            faults.invalid(&at, urls.clone(), "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !is_empty(&rule[*field])) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            faults.invalid(&at, urls.clone(), why);
        }
        return;
    }
    if is_empty(&rule["apiGroups"]) {
        faults.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if is_empty(&rule["resources"]) {
        faults.required(&at.child("resources"), "resource rules must supply at least one resource");
    }
}

/// Checks a binding.
pub(super) fn binding(new: &Value, old: Option<&Value>, in_namespace: bool, faults: &mut Faults) {
    let (role, at) = (&new["roleRef"], At::root("roleRef"));
    let group = role["apiGroup"].as_str().filter(|g| !g.is_empty()).unwrap_or(GROUP);
    if group != GROUP {
        faults.not_supported(&at.child("apiGroup"), group, &[GROUP]);
    }
    let kinds: &[&str] = if in_namespace { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let kind = text(&role["kind"]);
    if !kinds.contains(&kind) {
        faults.not_supported(&at.child("kind"), kind, kinds);
    }
    let name = text(&role["name"]);
    if name.is_empty() {
        faults.required(&at.child("name"), "");
    } else {
        faults.invalid_for(&at.child("name"), name, names::path_segment(name));
    }
    for (i, subject) in items(&new["subjects"]).enumerate() {
        self::subject(subject, in_namespace, &At::root("subjects").index(i), faults);
    }
    if let Some(old) = old
        && old["roleRef"] != *role
    {
        let shown = inner(role, &["APIGroup=apiGroup", "kind", "name"]);
        faults.invalid_as(&at, &shown, "cannot change roleRef");
    }
}

fn subject(subject: &Value, in_namespace: bool, at: &At, faults: &mut Faults) {
    let part = |field: &str| text(&subject[field]);
    let (name, group) = (part("name"), part("apiGroup"));
    if name.is_empty() {
        faults.required(&at.child("name"), "");
    }
    match part("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                faults.invalid_for(&at.child("name"), name, names::dns_subdomain(name));
            }
            if !group.is_empty() {
                faults.not_supported(&at.child("apiGroup"), group, &[""]);
            }
            if !in_namespace && part("namespace").is_empty() {
                faults.required(&at.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if !group.is_empty() && group != GROUP {
                faults.not_supported(&at.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => faults.not_supported(&at.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}
