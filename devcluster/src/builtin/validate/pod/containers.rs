//! The containers of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::field::{At, Faults, items, text};
use super::super::{names, resources};
use super::volumes::Volumes;
use super::{environment, handlers, security, volumes};

/// What containers are checked against.
pub(super) struct Around<'a> {
    /// The pod's spec.
    pub spec: &'a Value,
    /// Its good volumes.
    pub volumes: &'a Volumes<'a>,
    /// The names of its resource claims.
    pub claims: &'a [&'a str],
}

/// Checks the containers that run together.
pub(super) fn regular(around: &Around<'_>, at: &At, faults: &mut Faults) {
    let list = &around.spec["containers"];
    if items(list).next().is_none() {
        return faults.required(at, "");
    }
    let mut seen = BTreeSet::new();
    for (i, container) in items(list).enumerate() {
        let at = at.index(i);
        common(container, around, &at, faults);
        let name = text(&container["name"]);
        if !seen.insert(name) {
            faults.duplicate(&at.child("name"), name);
        }
        handlers::all(container, around.spec, &at, faults);
        restarts(container, &at, faults);
    }
    one_host_port_each(items(list), at, faults);
}

/// Checks the containers that run before the others.
pub(super) fn first(around: &Around<'_>, at: &At, faults: &mut Faults) {
    let mut seen: BTreeSet<&str> = items(&around.spec["containers"]).map(|c| text(&c["name"])).collect();
    for (i, container) in items(&around.spec["initContainers"]).enumerate() {
        let own = at.index(i);
        common(container, around, &own, faults);
        let always = container["restartPolicy"] == "Always";
        if always {
            let rules = &container["restartPolicyRules"];
            if items(rules).next().is_some() {
                let why = "restartPolicyRules are not allowed for init containers with restart policy Always";
                faults.forbidden(&own.child("restartPolicyRules"), why);
            }
        } else {
            restarts(container, &own, faults);
        }
        let name = text(&container["name"]);
        if seen.contains(name) {
            faults.duplicate(&own.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        one_host_port_each(std::iter::once(container), at, faults);
        if always {
            handlers::all(container, around.spec, &own, faults);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container[field].is_object() {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    faults.forbidden(&own.child(field), why);
                }
            }
        }
    }
}

fn common(container: &Value, around: &Around<'_>, at: &At, faults: &mut Faults) {
    let name = text(&container["name"]);
    if name.is_empty() {
        faults.required(&at.child("name"), "");
    } else {
        faults.invalid_for(&at.child("name"), name, names::dns_label(name));
    }
    faults.some_text(&at.child("image"), &container["image"]);
    let messages = ["File", "FallbackToLogsOnError"];
    faults.one_of(&at.child("terminationMessagePolicy"), &container["terminationMessagePolicy"], &messages);
    ports(&container["ports"], &at.child("ports"), faults);
    environment::variables(&container["env"], &at.child("env"), faults);
    environment::sources(&container["envFrom"], &at.child("envFrom"), faults);
    volumes::mounts(container, around.volumes, at, faults);
    volumes::devices(container, around.volumes, &at.child("volumeDevices"), faults);
    let pulls = ["Always", "IfNotPresent", "Never"];
    faults.one_of(&at.child("imagePullPolicy"), &container["imagePullPolicy"], &pulls);
    resources::requirements(&container["resources"], around.claims, &at.child("resources"), faults);
    resizes(container, around.spec, &at.child("resizePolicy"), faults);
    security::of_container(container, around.spec, &at.child("securityContext"), faults);
}

fn ports(ports: &Value, at: &At, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, port) in items(ports).enumerate() {
        let at = at.index(i);
        let name = text(&port["name"]);
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                faults.duplicate(&at.child("name"), name);
            }
            faults.invalid_for(&at.child("name"), name, wrong);
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            faults.required(&at.child("containerPort"), "");
        } else {
            faults.in_range(&at.child("containerPort"), &port["containerPort"], 1, 65_535);
        }
        if port["hostPort"] != 0 {
            faults.in_range(&at.child("hostPort"), &port["hostPort"], 1, 65_535);
        }
        faults.one_of(&at.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers take the same port of the host.
fn one_host_port_each<'a>(containers: impl Iterator<Item = &'a Value>, at: &At, faults: &mut Faults) {
    let mut taken = BTreeSet::new();
    for (i, container) in containers.enumerate() {
        for (p, port) in items(&container["ports"]).enumerate() {
            let Some(number) = port["hostPort"].as_i64().filter(|n| *n != 0) else { continue };
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let whole = format!("{protocol}/{}/{number}", text(&port["hostIP"]));
            if !taken.insert(whole.clone()) {
                faults.duplicate(&at.index(i).child("ports").index(p).child("hostPort"), whole);
            }
        }
    }
}

fn restarts(container: &Value, at: &At, faults: &mut Faults) {
    let (policy, rules) = (&container["restartPolicy"], &container["restartPolicyRules"]);
    let policy_at = at.child("restartPolicy");
    if policy.is_null() && items(rules).next().is_some() {
        faults.required(&policy_at, "must specify restartPolicy when restart rules are used");
    } else if let Some(given) = policy.as_str()
        && !["Always", "Never", "OnFailure"].contains(&given)
    {
        faults.not_supported(&policy_at, given, &["Always", "Never", "OnFailure"]);
    }
    for (i, rule) in items(rules).enumerate() {
        let at = at.child("restartPolicyRules").index(i);
        let action = text(&rule["action"]);
        if action != "Restart" {
            faults.not_supported(&at.child("action"), action, &["Restart"]);
        }
        let codes = &rule["exitCodes"];
        if codes.is_null() {
            faults.required(&at.child("exitCodes"), "must be specified");
        } else if !["In", "NotIn"].contains(&text(&codes["operator"])) {
            let at = at.child("exitCodes").child("operator");
            faults.not_supported(&at, text(&codes["operator"]), &["In", "NotIn"]);
        }
    }
}

fn resizes(container: &Value, spec: &Value, at: &At, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, policy) in items(&container["resizePolicy"]).enumerate() {
        let (resource, restart) = (text(&policy["resourceName"]), text(&policy["restartPolicy"]));
        if !seen.insert(resource) {
            faults.duplicate(&at.index(i), resource);
        }
        match resource {
            "cpu" | "memory" => {}
            "" => faults.required(at, ""),
            other => faults.not_supported(at, other, &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => faults.required(at, ""),
            other => faults.not_supported(at, other, &["NotRequired", "RestartContainer"]),
        }
        if spec["restartPolicy"] == "Never" && restart != "NotRequired" {
            faults.invalid(at, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

/// What pods may change of their containers: images.
pub(super) fn updated(new: &Value, old: &Value, at: &At, faults: &mut Faults) -> bool {
    if items(new).count() != items(old).count() {
        faults.forbidden(at, "pod updates may not add or remove containers");
        return false;
    }
    for (i, container) in items(new).enumerate() {
        let at = at.index(i).child("image");
        let image = text(&container["image"]);
        faults.some_text(&at, &container["image"]);
        if image.trim() != image {
            faults.invalid(&at, image, "must not have leading or trailing whitespace");
        }
    }
    true
}
