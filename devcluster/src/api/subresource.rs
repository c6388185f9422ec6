//! Subresources: status, scale, binding, eviction, log, finalize.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::read::Showing;
use super::request::Target;
use super::write::{PatchKind, WriteOptions, present};
use super::{Cluster, answer, unsupported_patch};
use crate::patch;
use crate::resources::{Resource, ScalePaths};
use crate::server::status::ApiError;
use crate::store::ObjectKey;

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
                let log = self.logs.read().read(namespace, &key.name).unwrap_or_default();
                let mut response = Response::new(axum::body::Body::from(log));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                Ok(response)
            }
            ("binding", _) => self.bind(resource, &key, &body, options),
            ("eviction", _) => {
                let delete = body.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
                self.delete(resource, &key, &delete, options.dry_run, now)?;
                Ok(answer(201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}), &[]))
            }
            ("finalize", _) => {
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
                    Some(PatchKind::Json) => {
                        patch::json(&scale, &body).map_err(|e| ApiError::unprocessable(e.to_string()))?
                    }
                    Some(_) => patch::merge(&scale, &body),
                    None if verb == "patch" => return Err(unsupported_patch()),
                    None => body,
                };
                let replicas = match &wanted["spec"]["replicas"] {
                    Value::Null => 0,
                    value => value
                        .as_i64()
                        .filter(|r| *r >= 0)
                        .ok_or_else(|| ApiError::bad_request("spec.replicas must be 0 or more"))?,
                };
                let paths = scale_paths(resource)?;
                let change = nested(&paths.spec, replicas.into());
                let written = self.patch(resource, &key, None, &PatchKind::Merge, &change, options)?;
                Ok(answer(200, scale_of(resource, &written.object)?, &written.warnings))
            }
            (_, "get") => Ok(answer(200, showing.one(resource, present(resource, &current.value), now), &[])),
            (name, "update") => {
                let written = self.replace(resource, &key, Some(name), body, options)?;
                Ok(answer(200, showing.one(resource, present(resource, &written.object), now), &written.warnings))
            }
            (name, _) => {
                let kind = patch_kind(headers).ok_or_else(unsupported_patch)?;
                let written = self.patch(resource, &key, Some(name), &kind, &body, options)?;
                Ok(answer(200, showing.one(resource, present(resource, &written.object), now), &written.warnings))
            }
        }
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
            .ok_or_else(|| ApiError::bad_request("binding needs target.name"))?;
        let at = options.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut bound_to = None;
        self.store
            .update(key, |pod| {
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
                &resource.group_resource(),
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
        None => Ok(ScalePaths { spec: ".spec.replicas".into(), status: ".status.replicas".into(), selector: None }),
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

fn scale_of(resource: &Resource, object: &Value) -> Result<Value, ApiError> {
    let paths = scale_paths(resource)?;
    let meta = &object["metadata"];
    let mut status = json!({"replicas": lookup(object, &paths.status).as_i64().unwrap_or(0)});
    let selector = match &paths.selector {
        Some(path) => lookup(object, path).as_str().map(str::to_owned),
        None => object["spec"]["selector"]["matchLabels"].as_object().map(|labels| {
            labels
                .iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        }),
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
        "spec": {"replicas": lookup(object, &paths.spec).as_i64().unwrap_or(0)},
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
