//! The kinds that keep pods running: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController.

use serde_json::{Map, Value, json};

use super::field::{At, Faults, IMMUTABLE, entries, inner, is_empty, items, same, text};
use super::{meta, names, pod, selectors, storage};

/// Fields of a stateful set's spec that may change.
const STATEFUL_SET_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
const NO_MATCH: &str = "`selector` does not match template `labels`";

/// Checks the spec of a Deployment.
pub(super) fn deployment(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    faults.not_negative(&at.child("replicas"), &spec["replicas"]);
    selected_template(spec, &at, faults);
    deployment_strategy(&spec["strategy"], &at.child("strategy"), faults);
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        faults.not_negative(&at.child(field), &spec[field]);
    }
    let (deadline, ready) = (&spec["progressDeadlineSeconds"], spec["minReadySeconds"].as_i64().unwrap_or(0));
    if deadline.as_i64().is_some_and(|d| d <= ready) {
        let why = "must be greater than minReadySeconds";
        faults.invalid(&at.child("progressDeadlineSeconds"), deadline.clone(), why);
    }
    same_selector(spec, old, faults);
}

/// Checks the spec of a ReplicaSet.
pub(super) fn replica_set(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    for field in ["replicas", "minReadySeconds"] {
        faults.not_negative(&at.child(field), &spec[field]);
    }
    selected_template(spec, &at, faults);
    same_selector(spec, old, faults);
}

fn same_selector(spec: &Value, old: Option<&Value>, faults: &mut Faults) {
    if let Some(old) = old
        && !same(&spec["selector"], &old["spec"]["selector"])
    {
        let at = At::root("spec").child("selector");
        faults.invalid_as(&at, &selectors::shown(&spec["selector"]), IMMUTABLE);
    }
}

/// The selector and the template that it must select.
fn selected_template(spec: &Value, at: &At, faults: &mut Faults) {
    let (selector, own) = (&spec["selector"], at.child("selector"));
    required_selector(selector, &own, "deployment", faults);
    if !selectors::readable(selector) {
        return faults.invalid_as(&own, &selectors::shown(selector), "invalid label selector");
    }
    let (template, at) = (&spec["template"], at.child("template"));
    let labels = &template["metadata"]["labels"];
    // A selector that is absent selects nothing; one of no terms, everything.
    if (selector.is_null() || !selectors::selects_all(selector)) && !selectors::selects(selector, template) {
        faults.invalid(&at.child("metadata").child("labels"), labels.clone(), NO_MATCH);
    }
    pod::template(template, &at, faults);
    always_running(template, &at, "ReplicaSet", faults);
}

/// Checks a selector that must be there and select something. `of` is what a server says it is of.
fn required_selector(selector: &Value, at: &At, of: &str, faults: &mut Faults) {
    if selector.is_null() {
        return faults.required(at, "");
    }
    selectors::labels(selector, at, faults);
    if selectors::selects_all(selector) {
        let why = format!("empty selector is invalid for {of}");
        faults.invalid_as(at, &selectors::shown(selector), &why);
    }
}

/// Pods that are kept running have no end.
fn always_running(template: &Value, at: &At, kind: &str, faults: &mut Faults) {
    let (spec, at) = (&template["spec"], at.child("spec"));
    let policy = text(&spec["restartPolicy"]);
    if !matches!(policy, "" | "Always") {
        faults.not_supported(&at.child("restartPolicy"), policy, &["Always"]);
    }
    if !spec["activeDeadlineSeconds"].is_null() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        faults.forbidden(&at.child("activeDeadlineSeconds"), &why);
    }
}

fn deployment_strategy(strategy: &Value, at: &At, faults: &mut Faults) {
    let (update, own) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
    match text(&strategy["type"]) {
        "Recreate" => {
            if !update.is_null() {
                faults.forbidden(&own, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "" | "RollingUpdate" => {
            let (gone, more) = (&update["maxUnavailable"], &update["maxSurge"]);
            share(gone, &own.child("maxUnavailable"), faults);
            share(more, &own.child("maxSurge"), faults);
            if !update.is_null() && share_value(gone) == 0 && share_value(more) == 0 {
                let why = "may not be 0 when `maxSurge` is 0";
                faults.invalid(&own.child("maxUnavailable"), gone.clone(), why);
            }
            not_above_all(gone, &own.child("maxUnavailable"), faults);
        }
        _ => faults.not_supported_as(
            at,
            &inner(strategy, &["type", "rollingUpdate"]),
            &["Recreate", "RollingUpdate"],
        ),
    }
}

/// Checks a number of pods or a share of them.
pub(super) fn share(value: &Value, at: &At, faults: &mut Faults) {
    match value.as_str() {
        Some(percent) => faults.invalid_for(at, percent, names::percent(percent)),
        None => faults.not_negative(at, value),
    }
}

/// Checks that a share is at most all.
pub(super) fn not_above_all(value: &Value, at: &At, faults: &mut Faults) {
    let percent = value.as_str().filter(|p| names::percent(p).is_empty());
    if percent.is_some_and(|p| p.trim_end_matches('%').parse().unwrap_or(i64::MAX) > 100) {
        faults.invalid(at, value.clone(), "must not be greater than 100%");
    }
}

/// The number in a number or a share.
fn share_value(value: &Value) -> i64 {
    match value.as_str() {
        Some(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        None => value.as_i64().unwrap_or(0),
    }
}

/// Checks the spec of a StatefulSet.
pub(super) fn stateful_set(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    let policy = text(&spec["podManagementPolicy"]);
    if !matches!(policy, "" | "OrderedReady" | "Parallel") {
        let why = "must be 'OrderedReady' or 'Parallel'";
        faults.invalid(&at.child("podManagementPolicy"), policy, why);
    }
    stateful_strategy(&spec["updateStrategy"], &at.child("updateStrategy"), faults);
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    for field in ["whenDeleted", "whenScaled"] {
        let at = at.child("persistentVolumeClaimRetentionPolicy").child(field);
        faults.one_of(&at, &retention[field], &["Retain", "Delete"]);
    }
    if old.is_none() {
        for (i, claim) in items(&spec["volumeClaimTemplates"]).enumerate() {
            let at = at.child("volumeClaimTemplates").index(i).child("spec");
            storage::claim_spec(&claim["spec"], &at, faults);
        }
    }
    for field in ["replicas", "minReadySeconds"] {
        faults.not_negative(&at.child(field), &spec[field]);
    }
    faults.not_negative(&at.child("ordinals.start"), &spec["ordinals"]["start"]);
    let service = text(&spec["serviceName"]);
    if old.is_none() && !service.is_empty() {
        faults.invalid_for(&at.child("serviceName"), service, names::dns_label(service));
    }
    let (selector, own) = (&spec["selector"], at.child("selector"));
    required_selector(selector, &own, "statefulset", faults);
    let template_at = at.child("template");
    if selectors::readable(selector) {
        let template = with_claims(spec);
        let labels = &template["metadata"]["labels"];
        if (selector.is_null() || !selectors::selects_all(selector))
            && !selectors::selects(selector, &template)
        {
            faults.invalid(&template_at.child("metadata").child("labels"), labels.clone(), NO_MATCH);
        }
        pod::template(&template, &template_at, faults);
        meta::labels(labels, &template_at.child("labels"), faults);
        let annotations = &template["metadata"]["annotations"];
        meta::annotations(annotations, &template_at.child("annotations"), faults);
    } else {
        faults.invalid_as(&own, &selectors::shown(selector), "");
    }
    always_running(&spec["template"], &template_at, "StatefulSet", faults);
    if let Some(old) = old {
        let fixed = |spec: &Value| -> Map<String, Value> {
            entries(spec)
                .filter(|(field, _)| !STATEFUL_SET_MUTABLE.contains(&field.as_str()))
                .map(|(field, value)| (field.clone(), value.clone()))
                .collect()
        };
        if !same(&fixed(spec).into(), &fixed(&old["spec"]).into()) {
            faults.forbidden(
                &at,
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
    }
}

/// A stateful set's template as its controller uses it: claims are volumes, the names of pods are the controller's.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims: Vec<Value> = items(&spec["volumeClaimTemplates"])
        .map(|claim| {
            let name = text(&claim["metadata"]["name"]);
            json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
        })
        .collect();
    if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
        pod.remove("hostname");
        pod.remove("subdomain");
        if !claims.is_empty() {
            let named = |volume: &&Value| claims.iter().any(|claim| claim["name"] == volume["name"]);
            let own: Vec<Value> =
                items(&spec["template"]["spec"]["volumes"]).filter(|v| !named(v)).cloned().collect();
            pod.insert("volumes".into(), claims.iter().cloned().chain(own).collect());
        }
    }
    template
}

fn stateful_strategy(strategy: &Value, at: &At, faults: &mut Faults) {
    let (update, own) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
    match text(&strategy["type"]) {
        "OnDelete" => {
            if !update.is_null() {
                let shown = inner(update, &["partition", "maxUnavailable"]);
                faults.invalid_as(&own, &shown, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "" | "RollingUpdate" => {
            faults.not_negative(&own.child("partition"), &update["partition"]);
            let gone = &update["maxUnavailable"];
            if !gone.is_null() {
                let at = own.child("maxUnavailable");
                share(gone, &at, faults);
                if share_value(gone) == 0 {
                    faults.invalid(&at, gone.clone(), "cannot be 0");
                }
                not_above_all(gone, &at, faults);
            }
        }
        _ => {
            let shown = inner(strategy, &["type", "rollingUpdate"]);
            faults.invalid_as(at, &shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
}

/// Checks the spec of a DaemonSet.
pub(super) fn daemon_set(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    same_selector(spec, old, faults);
    let (selector, template) = (&spec["selector"], &spec["template"]);
    let (own, template_at) = (at.child("selector"), at.child("template"));
    selectors::labels(selector, &own, faults);
    let all = selector.is_object() && selectors::selects_all(selector);
    if selectors::readable(selector) && !all && !selectors::selects(selector, template) {
        let labels = template["metadata"]["labels"].clone();
        faults.invalid(&template_at.child("metadata").child("labels"), labels, NO_MATCH);
    }
    if all {
        let why = "empty selector is invalid for daemonset";
        faults.invalid_as(&own, &selectors::shown(selector), why);
    }
    pod::template(template, &template_at, faults);
    always_running(template, &template_at, "DaemonSet", faults);
    faults.not_negative(&at.child("minReadySeconds"), &spec["minReadySeconds"]);
    daemon_strategy(&spec["updateStrategy"], &at.child("updateStrategy"), faults);
    faults.not_negative(&at.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"]);
}

fn daemon_strategy(strategy: &Value, at: &At, faults: &mut Faults) {
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "" | "RollingUpdate" => {
            let (update, at) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
            if update.is_null() {
                return;
            }
            let (gone, more) = (&update["maxUnavailable"], &update["maxSurge"]);
            share(gone, &at.child("maxUnavailable"), faults);
            share(more, &at.child("maxSurge"), faults);
            not_above_all(gone, &at.child("maxUnavailable"), faults);
            not_above_all(more, &at.child("maxSurge"), faults);
            match (share_value(gone) != 0, share_value(more) != 0) {
                (true, true) => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    faults.invalid(&at.child("maxSurge"), more.clone(), why);
                }
                (false, false) => {
                    faults.required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
                }
                _ => {}
            }
        }
        _ => faults.not_supported_as(
            at,
            &inner(strategy, &["type", "rollingUpdate"]),
            &["RollingUpdate", "OnDelete"],
        ),
    }
}

/// Checks the spec of a ReplicationController.
pub(super) fn replication_controller(new: &Value, faults: &mut Faults) {
    let (spec, at) = (&new["spec"], At::root("spec"));
    faults.not_negative(&at.child("minReadySeconds"), &spec["minReadySeconds"]);
    let selector = &spec["selector"];
    if is_empty(selector) {
        faults.required(&at.child("selector"), "");
    }
    faults.not_negative(&at.child("replicas"), &spec["replicas"]);
    let (template, at) = (&spec["template"], at.child("template"));
    if template.is_null() {
        return faults.required(&at, "");
    }
    let labels = &template["metadata"]["labels"];
    if entries(selector).any(|(key, value)| labels.get(key) != Some(value)) {
        faults.invalid(&at.child("metadata").child("labels"), labels.clone(), NO_MATCH);
    }
    pod::template(template, &at, faults);
    always_running(template, &at, "ReplicationController", faults);
}

/// Checks the status of a kind that counts its pods.
pub(super) fn status(kind: &str, new: &Value, faults: &mut Faults) {
    let (status, at) = (&new["status"], At::root("status"));
    let counts: &[&str] = match kind {
        "Deployment" => &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
        "StatefulSet" => &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
        "DaemonSet" => &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
        _ => &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
    };
    for field in counts {
        faults.not_negative(&at.child(field), &status[*field]);
    }
    let parts: &[&str] = match kind {
        "DaemonSet" => return,
        "Deployment" => &["updatedReplicas", "readyReplicas", "availableReplicas"],
        "StatefulSet" => &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        _ => &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    };
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    for field in parts.iter().filter(|field| count(field) > count("replicas")) {
        faults.invalid(&at.child(field), count(field), "cannot be greater than status.replicas");
    }
    if count("availableReplicas") > count("readyReplicas") {
        let whole = if kind == "StatefulSet" { "status.readyReplicas" } else { "readyReplicas" };
        let why = format!("cannot be greater than {whole}");
        faults.invalid(&at.child("availableReplicas"), count("availableReplicas"), &why);
    }
}
