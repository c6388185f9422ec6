//! Names of resources, and amounts of them.

use serde_json::Value;

use super::field::{At, Faults, NOT_NEGATIVE, POSITIVE, entries, items, text};
use super::names;
use crate::builtin::quantity::{self, NANO};

const HUGE_PAGES: &str = "hugepages-";
const REQUESTS: &str = "requests.";
/// What containers have by names without a prefix.
const OF_CONTAINERS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// What quotas count by names without a prefix.
const OF_QUOTAS: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// What is counted in whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with(HUGE_PAGES)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with(REQUESTS)
        && names::qualified_name(&format!("{REQUESTS}{name}")).is_empty()
}

/// Whether more may be promised of a resource than there is.
fn is_shared(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// An amount in billionths; nothing where there is none.
pub(super) fn amount(value: &Value) -> Option<i128> {
    quantity::nanos(value.as_str()?)
}

/// Checks an amount that must not be below zero.
pub(super) fn not_negative(value: &Value, at: &At, faults: &mut Faults) {
    if amount(value).is_some_and(|a| a < 0) {
        faults.invalid(at, value.clone(), NOT_NEGATIVE);
    }
}

/// Checks an amount that must be above zero.
pub(super) fn positive(value: &Value, at: &At, faults: &mut Faults) {
    if amount(value).is_none_or(|a| a <= 0) {
        let shown = value.as_str().unwrap_or("0");
        faults.invalid(at, shown, POSITIVE);
    }
}

/// Checks an amount of a resource.
pub(super) fn amount_of(name: &str, value: &Value, at: &At, faults: &mut Faults) {
    not_negative(value, at, faults);
    let counted = COUNTED.contains(&name) || is_extended(name);
    if counted && amount(value).is_some_and(|a| a % NANO != 0) {
        faults.invalid(at, value.clone(), "must be an integer");
    }
}

/// Checks the name of a resource; whether it is good.
pub(super) fn name(name: &str, at: &At, faults: &mut Faults) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        faults.invalid_for(at, name, wrong);
        return false;
    }
    let standard = OF_QUOTAS.contains(&name)
        || name == "storage"
        || is_huge_page(name)
        || name.strip_prefix(REQUESTS).is_some_and(is_huge_page);
    if !name.contains('/') && !standard {
        faults.invalid(at, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

/// Checks the name of a resource of containers.
pub(super) fn container_resource(resource: &str, at: &At, faults: &mut Faults) {
    name(resource, at, faults);
    if !resource.contains('/') {
        if !OF_CONTAINERS.contains(&resource) && !is_huge_page(resource) {
            faults.invalid(at, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        faults.invalid(at, resource, "doesn't follow extended resource name standard");
    }
}

/// Checks the name of a resource that a quota counts.
pub(super) fn quota_resource(resource: &str, at: &At, faults: &mut Faults) {
    name(resource, at, faults);
    let huge = is_huge_page(resource) || resource.strip_prefix(REQUESTS).is_some_and(is_huge_page);
    if !resource.contains('/') && !OF_QUOTAS.contains(&resource) && !huge {
        faults.invalid(at, resource, "must be a standard resource for quota");
    }
}

/// Checks what a container asks for and may use. `claims` are the names of the pod's resource claims.
pub(super) fn requirements(resources: &Value, claims: &[&str], at: &At, faults: &mut Faults) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    let (limits_at, requests_at) = (at.child("limits"), at.child("requests"));
    for (resource, value) in entries(limits) {
        let at = limits_at.key(resource);
        container_resource(resource, &at, faults);
        amount_of(resource, value, &at, faults);
        huge_pages(resource, value, &at, faults);
    }
    for (resource, value) in entries(requests) {
        let at = requests_at.key(resource);
        container_resource(resource, &at, faults);
        amount_of(resource, value, &at, faults);
        match (amount(value), limits.get(resource)) {
            (Some(asked), Some(limit)) => {
                let most = amount(limit).unwrap_or_default();
                let why = |relation: &str| format!("must be {relation} {resource} limit of {}", text(limit));
                if asked != most && !is_shared(resource) {
                    faults.invalid(&requests_at, value.clone(), &why("equal to"));
                } else if asked > most {
                    faults.invalid(&requests_at, value.clone(), &why("less than or equal to"));
                }
            }
            (_, None) if !is_shared(resource) => {
                faults.required(&limits_at, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
        huge_pages(resource, value, &at, faults);
    }
    let any = |of: fn(&str) -> bool| entries(limits).chain(entries(requests)).any(|(name, _)| of(name));
    if any(is_huge_page) && !any(|name| matches!(name, "cpu" | "memory")) {
        faults.forbidden(at, "HugePages require cpu or memory");
    }
    claimed(&resources["claims"], claims, &at.child("claims"), faults);
}

fn huge_pages(resource: &str, value: &Value, at: &At, faults: &mut Faults) {
    let Some(size) = resource.strip_prefix(HUGE_PAGES) else { return };
    let size = quantity::nanos(size).filter(|s| *s > 0 && s % NANO == 0);
    let fits = size.is_some_and(|size| amount(value).is_some_and(|amount| amount % size == 0));
    if !fits {
        let why = format!("{} is not positive integer multiple of {resource}", text(value));
        faults.invalid(at, value.clone(), &why);
    }
}

fn claimed(used: &Value, claims: &[&str], at: &At, faults: &mut Faults) {
    let mut seen: Vec<String> = Vec::new();
    for (i, claim) in items(used).enumerate() {
        let (at, name, request) = (at.index(i), text(&claim["name"]), text(&claim["request"]));
        if name.is_empty() {
            faults.required(&at, "");
            continue;
        }
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        let whole = |other: &String| other == name || *other == key;
        let part = |other: &String| request.is_empty() && other.starts_with(&format!("{name}/"));
        if seen.iter().any(|other| whole(other) || part(other)) {
            faults.duplicate(&at, if seen.contains(&key) { key.as_str() } else { name });
        }
        if !request.is_empty() {
            faults.invalid_for(&at.child("request"), request, names::dns_label(request));
        }
        seen.push(key);
        if !claims.contains(&name) {
            let mut known = claims.to_vec();
            known.sort_unstable();
            let tail =
                if known.is_empty() { " which is empty".into() } else { format!(": {}", known.join(", ")) };
            faults.not_found(
                &at,
                name,
                &format!("must be one of the names in pod.spec.resourceClaims{tail}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}), &[])]
    #[case(json!({"limits": {"cpu": "-1"}}), &[r#"r.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0"#])]
    #[case(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}), &[r#"r.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#])]
    #[case(json!({"limits": {"nvidia.com/gpu": "500m"}}), &[r#"r.limits[nvidia.com/gpu]: Invalid value: "500m": must be an integer"#])]
    #[case(json!({"requests": {"nvidia.com/gpu": "1"}}), &["r.limits: Required value: Limit must be set for non overcommitable resources"])]
    #[case(json!({"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "1"}}), &[r#"r.requests: Invalid value: "1": must be equal to nvidia.com/gpu limit of 2"#])]
    #[case(json!({"limits": {"nothing": "1"}}), &[
        r#"r.limits[nothing]: Invalid value: "nothing": must be a standard resource type or fully qualified"#,
        r#"r.limits[nothing]: Invalid value: "nothing": must be a standard resource for containers"#,
    ])]
    #[case(json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}), &[r#"r.limits[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi"#])]
    #[case(json!({"limits": {"hugepages-2Mi": "4Mi"}}), &["r: Forbidden: HugePages require cpu or memory"])]
    #[case(json!({"claims": [{"name": "x"}]}), &[r#"r.claims[0]: Not found: "x": must be one of the names in pod.spec.resourceClaims which is empty"#])]
    fn containers_ask_for_what_there_can_be(#[case] resources: Value, #[case] wanted: &[&str]) {
        let mut faults = Faults::default();
        requirements(&resources, &[], &At::root("r"), &mut faults);
        let said: Vec<String> =
            faults.into_causes().into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(said, wanted);
    }
}
