//! Subresources: status, scale, binding, eviction, log, finalize.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::read::Showing;
use super::request::{Query, Target};
use super::write::{PatchKind, WriteOptions, present};
use super::{Cluster, answer, review, unsupported_patch};
use crate::apply::{self, Typing};
use crate::builtin::decode::json_type;
use crate::builtin::in_order;
use crate::gvk::GroupKind;
use crate::patch;
use crate::resources::{Resource, ScalePaths};
use crate::selector::Labels;
use crate::server::status::{ApiError, Cause};
use crate::store::{GroupResource, ObjectKey};

/// The fields of a Scale in the order in which a server writes them.
const SCALE_ORDER: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "spec",
    "status",
    "replicas",
    "selector",
];

const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";

impl Cluster {
    /// Answers a request to a subresource that the resource has, with a verb it allows.
    ///
    /// # Errors
    /// What a real API server answers.
    pub(super) fn subresource(
        &self,
        resource: &Arc<Resource>,
        target: &Target,
        verb: &str,
        headers: &HeaderMap,
        query: &Query,
        body: Value,
        options: &WriteOptions,
        showing: Showing,
        now: Timestamp,
    ) -> Result<Response, ApiError> {
        let namespace = if resource.namespaced { target.namespace.as_str() } else { "" };
        let key = ObjectKey::new(resource.storage.clone(), namespace, target.name.clone());
        let current =
            self.store.get(&key).ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
        match (target.subresource.as_str(), verb) {
            ("log", _) => {
                let log = self.log(&current.value, query)?;
                let mut response = Response::new(axum::body::Body::from(log));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                Ok(response)
            }
            ("token", _) => {
                let audiences = body["spec"]["audiences"].clone();
                let made = review::token(&current.value, body, now)?;
                let Some(typing) = Typing::of_definition(TOKEN_REQUEST) else {
                    return Ok(answer(201, made, &[]));
                };
                let mut written = made.clone();
                written.as_object_mut().map(|request| request.remove("status"));
                written["spec"]["audiences"] = audiences;
                let tracked =
                    apply::track_update(None, &written, &options.manager, Some("token"), now, &typing);
                let mut made = made;
                made["metadata"]["managedFields"] = tracked["metadata"]["managedFields"].clone();
                Ok(answer(201, made, &[]))
            }
            ("binding", _) => self.bind(resource, &key, &body, options),
            ("eviction", _) => {
                let delete = body.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
                let named = body["metadata"]["name"].as_str().unwrap_or_default();
                if !named.is_empty() && named != key.name {
                    return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
                }
                self.check_budgets(&current.value)?;
                let dry_run = options.dry_run || delete["dryRun"] == json!(["All"]);
                self.delete(resource, &key, &delete, dry_run, now)?;
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                Ok(answer(201, status, &[]))
            }
            ("finalize", _) => {
                if options.dry_run {
                    return Ok(answer(200, current.value.clone(), &[]));
                }
                let stored = self
                    .store
                    .update(&key, |object| {
                        object["spec"]["finalizers"] = body["spec"]["finalizers"].clone();
                        true
                    })
                    .map_err(|_| ApiError::not_found(&resource.group_resource(), &key.name))?;
                Ok(answer(200, stored.value.clone(), &[]))
            }
            ("scale", "get") => Ok(answer(200, scale_of(resource, &current.value)?, &[])),
            ("scale", _) => {
                let scale = scale_of(resource, &current.value)?;
                let wanted = match patch_kind(headers) {
                    Some(PatchKind::Json) => patch::json(&scale, &body).map_err(|e| match e {
                        patch::PatchError::Rejected(_) => ApiError::rejected(),
                        other => ApiError::bad_request(other.to_string()),
                    })?,
                    Some(_) => patch::merge(&scale, &body),
                    None if verb == "patch" => return Err(unsupported_patch()),
                    None => body,
                };
                check_scale(&wanted, verb == "patch")?;
                let asked = wanted["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
                if asked.is_some_and(|v| v != current.revision.to_string()) {
                    return Err(ApiError::modified(&resource.group_resource(), &key.name));
                }
                let replicas = match &wanted["spec"]["replicas"] {
                    Value::Null => 0,
                    value => value.as_i64().unwrap_or_default(),
                };
                // A custom resource's own schema says what is wrong with it.
                if replicas < 0 && resource.custom.is_none() {
                    let why = "must be greater than or equal to 0";
                    let cause = Cause::invalid("spec.replicas", &replicas.into(), why);
                    let kind = GroupKind::new("autoscaling", "Scale");
                    return Err(ApiError::invalid(&kind, &key.name, vec![cause]));
                }
                let paths = scale_paths(resource)?;
                let mut change = nested(&paths.spec, replicas.into());
                if asked.is_some() && verb == "update" {
                    change["metadata"] = json!({"resourceVersion": asked});
                }
                let kind = match patch_kind(headers) {
                    Some(PatchKind::Apply) => {
                        change["apiVersion"] = resource.api_version().into();
                        change["kind"] = resource.kind.clone().into();
                        change["metadata"]["name"] = key.name.clone().into();
                        PatchKind::Apply
                    }
                    _ => PatchKind::Merge,
                };
                let written = self.patch(resource, &key, Some("scale"), &kind, &change, options)?;
                Ok(answer(200, scale_of(resource, &written.object)?, &written.warnings))
            }
            (_, "get") => Ok(answer(200, showing.one(resource, present(resource, &current.value), now), &[])),
            (name, "update") => {
                let written = self.replace(resource, &key, Some(name), body, options)?;
                Ok(answer(
                    200,
                    showing.one(resource, present(resource, &written.object), now),
                    &written.warnings,
                ))
            }
            (name, _) => {
                let kind = patch_kind(headers).ok_or_else(unsupported_patch)?;
                let written = self.patch(resource, &key, Some(name), &kind, &body, options)?;
                Ok(answer(
                    200,
                    showing.one(resource, present(resource, &written.object), now),
                    &written.warnings,
                ))
            }
        }
    }

    /// A pod's log, as much as asked for. `follow` ends where the log ends now.
    fn log(&self, pod: &Value, query: &Query) -> Result<String, ApiError> {
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (namespace, name) = (namespace.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
        let containers: Vec<&str> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
            .filter_map(|c| c["name"].as_str())
            .collect();
        if query.get("container").is_none() && containers.len() > 1 {
            let (main, first): (Vec<&str>, Vec<&str>) = containers.iter().partition(|name| {
                pod["spec"]["containers"].as_array().into_iter().flatten().any(|c| c["name"] == **name)
            });
            let or = match first.as_slice() {
                [] => String::new(),
                first => format!(" or one of the init containers: [{}]", first.join(" ")),
            };
            return Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]{or}",
                main.join(" ")
            )));
        }
        let container = query.get("container").or_else(|| containers.first().copied()).unwrap_or_default();
        if !containers.contains(&container) {
            return Err(ApiError::bad_request(format!("container {container} is not valid for pod {name}")));
        }
        let (tail, limit) = log_limits(query, name)?;
        let Some(log) = self.logs.read().read(namespace, name) else {
            let statuses = || pod["status"]["containerStatuses"].as_array().into_iter().flatten();
            let state = statuses().find(|s| s["name"] == container).map_or(&Value::Null, |s| &s["state"]);
            if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
                return Ok(String::new());
            }
            if state["running"].is_object() || state["terminated"].is_object() {
                return Ok(String::new());
            }
            let reason = state["waiting"]["reason"].as_str().unwrap_or("ContainerCreating");
            return Err(ApiError::bad_request(format!(
                "container {container:?} in pod {name:?} is waiting to start: {reason}"
            )));
        };
        let mut out = match tail {
            Some(lines) => {
                let all: Vec<&str> = log.split_inclusive('\n').collect();
                all[all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX))..].concat()
            }
            None => log,
        };
        if let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()).filter(|l| *l < out.len()) {
            let end = (0..=limit).rev().find(|i| out.is_char_boundary(*i)).unwrap_or(0);
            out.truncate(end);
        }
        Ok(out)
    }

    /// Whether the disruption budgets that cover a pod let it go. Pods that serve nothing may always go.
    fn check_budgets(&self, pod: &Value) -> Result<(), ApiError> {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let serves = |pod: &Value| {
            pod["metadata"]["deletionTimestamp"].is_null()
                && pod["status"]["conditions"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        };
        if !serves(pod) {
            return Ok(());
        }
        let (budgets, _) =
            self.store.list(&GroupResource::new("policy", "poddisruptionbudgets"), Some(namespace));
        let covering: Vec<_> = budgets
            .iter()
            .filter_map(|b| Some((b, Labels::from_label_selector(&b.value["spec"]["selector"]).ok()?)))
            .filter(|(_, labels)| labels.matches(pod))
            .collect();
        if covering.len() > 1 {
            return Err(ApiError::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let Some((budget, labels)) = covering.first() else { return Ok(()) };
        let (pods, _) = self.store.list(&GroupResource::new("", "pods"), Some(namespace));
        let covered: Vec<_> = pods.iter().filter(|p| labels.matches(&p.value)).collect();
        let healthy = covered.iter().filter(|p| serves(&p.value)).count() as i64;
        let expected = covered.len() as i64;
        let spec = &budget.value["spec"];
        let wanted =
            match (scaled(&spec["minAvailable"], expected), scaled(&spec["maxUnavailable"], expected)) {
                (Some(least), _) => least,
                (None, Some(most)) => (expected - most).max(0),
                (None, None) => return Ok(()),
            };
        if healthy > wanted {
            return Ok(());
        }
        let cause = Cause {
            reason: "DisruptionBudget".into(),
            message: format!(
                "The disruption budget {} needs {wanted} healthy pods and has {healthy} currently",
                budget.meta("name").unwrap_or_default()
            ),
            field: String::new(),
        };
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        Err(ApiError::too_many_requests(message, cause))
    }

    /// Binds the pod that a Binding names, as `pods/binding` does.
    pub(super) fn bind_named(
        &self,
        namespace: &str,
        body: &Value,
        options: &WriteOptions,
    ) -> Result<Response, ApiError> {
        let served = self.registry.served();
        let pods = served.find("", "v1", "pods").ok_or_else(ApiError::no_resource)?;
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        self.bind(pods, &ObjectKey::new(pods.storage.clone(), namespace, name), body, options)
    }

    fn bind(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        body: &Value,
        options: &WriteOptions,
    ) -> Result<Response, ApiError> {
        let node = body["target"]["name"]
            .as_str()
            .filter(|n| !n.is_empty())
            .ok_or_else(|| ApiError::unexpected("target.name: Required value"))?;
        let at = options.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut bound_to = None;
        let current =
            self.store.get(key).ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
        if current.meta("deletionTimestamp").is_some() {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", key.name);
            return Err(ApiError::conflict(&GroupResource::new("", "pods/binding"), &key.name, &why));
        }
        if options.dry_run {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            return Ok(answer(201, status, &[]));
        }
        self.store
            .update_uncounted(key, |pod| {
                if let Some(already) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    bound_to = Some(already.to_owned());
                    return false;
                }
                pod["spec"]["nodeName"] = node.into();
                let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": at});
                if !pod["status"].is_object() {
                    pod["status"] = json!({"phase": "Pending"});
                }
                let mut conditions: Vec<Value> =
                    pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
                conditions.retain(|c| c["type"] != "PodScheduled");
                conditions.push(condition.clone());
                pod["status"]["conditions"] = conditions.into();
                true
            })
            .map_err(|_| ApiError::not_found(&resource.group_resource(), &key.name))?;
        match bound_to {
            Some(already) => Err(ApiError::conflict(
                &GroupResource::new("", "pods/binding"),
                &key.name,
                &format!("pod {} is already assigned to node {already:?}", key.name),
            )),
            None => Ok(answer(
                201,
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
                &[],
            )),
        }
    }
}

/// How much of a log is asked for: lines, bytes.
fn log_limits(query: &Query, pod: &str) -> Result<(Option<u64>, Option<u64>), ApiError> {
    let mut causes = Vec::new();
    let mut limit = |field: &str, least: i64, why: &str| -> Result<Option<u64>, ApiError> {
        let Some(text) = query.get(field) else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(number) if number >= least => Ok(u64::try_from(number).ok()),
            Ok(number) => {
                causes.push(Cause::invalid(field, &number.into(), why));
                Ok(None)
            }
            Err(_) => query.number(field),
        }
    };
    let tail = limit("tailLines", 0, "must be greater than or equal to 0")?;
    let bytes = limit("limitBytes", 1, "must be greater than 0")?;
    match causes.is_empty() {
        true => Ok((tail, bytes)),
        false => Err(ApiError::invalid(&GroupKind::new("", "PodLogOptions"), pod, causes)),
    }
}

/// A number of pods, or a share of `of`, rounded up.
fn scaled(value: &Value, of: i64) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let percent: i64 = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    Some((percent.clamp(0, 100) * of + 99) / 100)
}

fn patch_kind(headers: &HeaderMap) -> Option<PatchKind> {
    let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
    Some(match media {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        "application/apply-patch+yaml" => PatchKind::Apply,
        _ => return None,
    })
}

fn scale_paths(resource: &Resource) -> Result<ScalePaths, ApiError> {
    match &resource.custom {
        Some(custom) => custom.scale.clone().ok_or_else(ApiError::no_resource),
        None => Ok(ScalePaths {
            spec: ".spec.replicas".into(),
            status: ".status.replicas".into(),
            selector: None,
        }),
    }
}

fn lookup<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.trim_start_matches('.').split('.').fold(object, |value, field| &value[field])
}

/// `{a: {b: value}}` for `.a.b`.
fn nested(path: &str, value: Value) -> Value {
    path.trim_start_matches('.').rsplit('.').fold(value, |inner, field| {
        let mut map = serde_json::Map::new();
        map.insert(field.to_owned(), inner);
        Value::Object(map)
    })
}

/// A label selector as the text that lists take, by key.
fn selector_text(selector: &Value) -> Option<String> {
    let labels = selector["matchLabels"].as_object();
    let mut terms: Vec<(String, String)> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default().to_owned();
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let text = match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.clone(),
        };
        terms.push((key, text));
    }
    terms.sort();
    selector.is_object().then(|| terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(","))
}

/// Whether what was sent, or what a patch made, is a Scale.
fn check_scale(wanted: &Value, patched: bool) -> Result<(), ApiError> {
    let replicas = &wanted["spec"]["replicas"];
    if !replicas.is_null() && !replicas.is_i64() {
        let why = format!(
            "json: cannot unmarshal {} into Go struct field ScaleSpec.spec.replicas of type int32",
            json_type(replicas)
        );
        if patched {
            let shown = in_order(wanted, SCALE_ORDER);
            let cause = Cause::invalid("patch", &shown.into(), &why);
            return Err(ApiError::invalid(&GroupKind::new("", ""), "", vec![cause]));
        }
        let whole = format!("Scale in version \"v1\" cannot be handled as a Scale: {why}");
        return Err(ApiError::bad_request(whole));
    }
    let (version, kind) = (&wanted["apiVersion"], &wanted["kind"]);
    if (!kind.is_null() && kind != "Scale") || (!version.is_null() && version != "autoscaling/v1") {
        let version = version.as_str().unwrap_or_default();
        let version = version.split_once('/').map_or(version, |(_, version)| version);
        let kind = kind.as_str().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a Scale: converting ({version}.{kind}) to (autoscaling.Scale): unknown conversion"
        )));
    }
    Ok(())
}

fn scale_of(resource: &Resource, object: &Value) -> Result<Value, ApiError> {
    let paths = scale_paths(resource)?;
    let meta = &object["metadata"];
    let replicas = lookup(object, &paths.spec);
    if replicas.is_null() && resource.custom.is_some() {
        return Err(ApiError::internal(format!("the spec replicas field {:?} does not exist", paths.spec)));
    }
    let replicas = replicas.as_i64().unwrap_or(0);
    let mut status = json!({"replicas": lookup(object, &paths.status).as_i64().unwrap_or(0)});
    let selector = match &paths.selector {
        Some(path) => lookup(object, path).as_str().map(str::to_owned),
        None => selector_text(&object["spec"]["selector"]),
    };
    if let Some(selector) = selector {
        status["selector"] = selector.into();
    }
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
        },
        "spec": {"replicas": replicas},
        "status": status,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_paths_read_and_write() {
        assert_eq!(nested(".spec.replicas", 3.into()), json!({"spec": {"replicas": 3}}));
        assert_eq!(lookup(&json!({"a": {"b": 2}}), ".a.b"), 2);
    }
}
