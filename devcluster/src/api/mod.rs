//! The API server: routes a request to reads, writes, subresources and documents.

mod body;
mod components;
mod delete;
mod discovery;
mod media;
pub(crate) mod openapi;
mod protobuf;
mod read;
mod request;
mod review;
mod subresource;
mod write;

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use body::{Content, content_type, object, read_body};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::apply;
use crate::builtin::decode;
use crate::nodes::PodLogs;
use crate::resources::{Registry, Resource};
use crate::server::status::{self, ApiError};
use crate::store::{ObjectKey, Store};
use delete::Deletion;
use media::{Form, Media};
use openapi::proto::{MEDIA_TYPE, OLD_MEDIA_TYPE};
use read::{Selection, Showing};
use request::{Query, Target};
pub(crate) use write::new_uid;
use write::{FieldValidation, WriteOptions, Written, present};

/// The Kubernetes version this API speaks.
pub const VERSION: &str = "v1.35.4";

/// What clients of `v1` Endpoints are told.
const ENDPOINTS_DEPRECATED: &str =
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
const APPLY: &str = "application/apply-patch+yaml";

/// Subresources that need a real kubelet.
const NOT_HERE: &[&str] = &["exec", "attach", "portforward", "proxy"];
/// Subresources that can only be read without one.
const ONLY_READ_HERE: &[&str] = &["ephemeralcontainers", "resize"];

/// What handles requests: the objects, what is served, and where pod logs are.
pub struct Cluster {
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) logs: Arc<RwLock<PodLogs>>,
    pub(crate) clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    pub(crate) stop: CancellationToken,
    pub(crate) address: String,
    pub(crate) documents: openapi::Cache,
}

const JOB_KEEPS_PODS: &str = "child pods are preserved by default when jobs are deleted; set \
     propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

impl Cluster {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: http::Request<Body>) -> Response {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let deprecation = self.deprecation(&path);
        let yaml = path.starts_with("/api")
            && media::Wanted::read(request.headers(), true).is_ok_and(|wanted| wanted.media == Media::Yaml);
        let mut response = match self.route(request).await {
            Ok(response) => response,
            Err(error) => {
                if error.code >= 500 {
                    tracing::warn!(%method, path, %error, "request failed");
                }
                error_response(&error)
            }
        };
        if yaml {
            response = in_yaml(response).await;
        }
        if let Some(text) = deprecation {
            add_warning(&mut response, &text);
        }
        response
    }

    /// What clients are told of the version that a path names.
    fn deprecation(&self, path: &str) -> Option<String> {
        let target = request::target(path)?;
        if target.group.is_empty() && target.version == "v1" && target.plural == "endpoints" {
            return Some(ENDPOINTS_DEPRECATED.to_owned());
        }
        let served = self.registry.served();
        served.find(&target.group, &target.version, &target.plural)?.custom.as_ref()?.deprecation.clone()
    }

    async fn route(self: &Arc<Self>, request: http::Request<Body>) -> Result<Response, ApiError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        if matches!(parts.method, Method::GET | Method::HEAD)
            && let Some(response) = self.document(&path, &parts.headers)
        {
            return Ok(response);
        }
        let served = self.registry.served();
        let group = match path.trim_matches('/').split('/').collect::<Vec<_>>().as_slice() {
            ["api", ..] => Some(String::new()),
            ["apis", group, ..] => Some((*group).to_owned()),
            _ => None,
        };
        if !group.is_some_and(|group| served.resources.iter().any(|r| r.group == group)) {
            return Ok(not_found_page());
        }
        let target = request::target(&path).ok_or_else(ApiError::no_resource)?;
        let resource = served
            .find(&target.group, &target.version, &target.plural)
            .cloned()
            .ok_or_else(ApiError::no_resource)?;
        let in_namespace = !target.namespace.is_empty();
        if (resource.namespaced && !in_namespace && !target.name.is_empty())
            || (in_namespace && !resource.namespaced)
        {
            return Err(ApiError::no_resource());
        }
        let built_in = resource.custom.is_none();
        let now = (self.clock)();
        let dry_run = query.get("dryRun") == Some("All");
        let mut options = WriteOptions {
            manager: request::manager(&query, &parts.headers),
            dry_run,
            force: query.set("force"),
            field_validation: match query.get("fieldValidation") {
                Some("Strict") => FieldValidation::Strict,
                Some("Ignore") => FieldValidation::Ignore,
                _ => FieldValidation::Warn,
            },
            repeated: Vec::new(),
            now,
        };
        let watching = query.get("watch").is_some_and(|w| w == "1" || w == "true");
        let verb =
            request::verb(&parts.method, &target, watching).ok_or_else(ApiError::method_not_allowed)?;
        let wanted = media::Wanted::read(&parts.headers, resource.custom.is_none())?;
        if verb == "watch" && wanted.media == media::Media::Yaml {
            return Err(ApiError::not_acceptable(&[
                "application/json;stream=watch",
                "application/vnd.kubernetes.protobuf;stream=watch",
            ]));
        }
        if matches!(verb, "create" | "update" | "patch") {
            let apply = (verb == "patch").then(|| content_type(&parts.headers) == APPLY);
            request::check_write_options(&query, verb, apply)?;
        }
        let showing = Showing::new(wanted.form, &query, &resource, verb)?;
        if !target.subresource.is_empty() {
            let absent = || match resource.custom.is_some() {
                true => ApiError::not_found(&resource.group_resource(), &target.name),
                false => ApiError::no_resource(),
            };
            let known = resource.subresource(&target.subresource).ok_or_else(absent)?;
            if !known.verbs.iter().any(|v| v == verb) {
                return Err(ApiError::method_not_allowed());
            }
            let part = target.subresource.as_str();
            let needs_kubelet = NOT_HERE.contains(&part) || (ONLY_READ_HERE.contains(&part) && verb != "get");
            if resource.custom.is_none() && needs_kubelet {
                let key = ObjectKey::new(resource.storage.clone(), &target.namespace, &target.name);
                let absent = || ApiError::not_found(&resource.group_resource(), &target.name);
                self.store.get(&key).ok_or_else(absent)?;
                return Err(ApiError::not_implemented(format!(
                    "{} is not to be had here: pods are simulated, with no processes to enter; \
                     reach what they serve at their pod IP",
                    target.subresource
                )));
            }
            let content = match verb {
                "get" => Content::default(),
                _ => read_body(body, &parts.headers, verb, &known.kind, built_in).await?,
            };
            options.repeated = content.repeated;
            let body = content.value;
            return self.subresource(
                &resource,
                &target,
                verb,
                &parts.headers,
                &query,
                body,
                &options,
                showing,
                now,
            );
        }
        // Only lists and watches reach across namespaces.
        let across = resource.namespaced && !in_namespace && !matches!(verb, "list" | "watch");
        if !resource.allows(verb) || across {
            return Err(ApiError::method_not_allowed());
        }
        if resource.custom.is_none() && resource.kind == "ComponentStatus" {
            return self.components(&resource, &target.name, showing, &query, now);
        }
        let key = ObjectKey::new(resource.storage.clone(), target.namespace.clone(), target.name.clone());
        match verb {
            "get" => {
                let stored = self
                    .store
                    .get(&key)
                    .ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
                Ok(answer(200, showing.one(&resource, present(&resource, &stored.value), now), &[]))
            }
            "list" => {
                request::check_list_options(&query, false)?;
                let selection = Selection::new(&resource, &target.namespace, "", &query)?;
                Ok(answer(200, self.list(&resource, &selection, showing, &query, now)?, &[]))
            }
            "watch" => {
                request::check_list_options(&query, true)?;
                let selection = Selection::new(&resource, &target.namespace, &target.name, &query)?;
                let lines = self.watch(&resource, selection, showing, &query, self.stop.clone())?;
                let stream = ReceiverStream::new(lines).map(Ok::<_, std::convert::Infallible>);
                let mut response = Response::new(Body::from_stream(stream));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(response)
            }
            "create" => {
                let content = read_body(body, &parts.headers, verb, &resource.kind, built_in).await?;
                options.repeated = content.repeated;
                self.post(&resource, &target, content.value, &options, showing, now)
            }
            "update" => {
                let content = read_body(body, &parts.headers, verb, &resource.kind, built_in).await?;
                options.repeated = content.repeated;
                let written = self.replace(&resource, &key, None, content.value, &options)?;
                Ok(self.written(&resource, &written, showing, now))
            }
            "patch" => {
                let content = read_body(body, &parts.headers, verb, &resource.kind, built_in).await?;
                options.repeated = content.repeated;
                let kind = content.patch.ok_or_else(unsupported_patch)?;
                let written = self.patch(&resource, &key, None, &kind, &content.value, &options)?;
                Ok(self.written(&resource, &written, showing, now))
            }
            "delete" => {
                let body = read_body(body, &parts.headers, verb, &resource.kind, built_in).await?.value;
                let delete = delete_options(&body, &query)?;
                let dry_run = delete["dryRun"] == json!(["All"]);
                let silent = delete["propagationPolicy"].is_null() && delete["orphanDependents"].is_null();
                let warnings: &[String] = match resource.custom.is_none() && resource.kind == "Job" && silent
                {
                    true => &[JOB_KEEPS_PODS.to_owned()],
                    false => &[],
                };
                match self.delete(&resource, &key, &delete, dry_run, now)? {
                    // Some kinds answer with what was deleted, most with a `Status`.
                    Deletion::Gone(last) if returns_deleted(&resource) => {
                        Ok(answer(200, showing.one(&resource, present(&resource, &last), now), warnings))
                    }
                    Deletion::Gone(last) => {
                        let uid = last["metadata"]["uid"].as_str().unwrap_or_default();
                        let status = status::deleted(&resource.group_resource(), &key.name, uid);
                        Ok(answer(200, status, warnings))
                    }
                    Deletion::Marked(object) => {
                        Ok(answer(200, showing.one(&resource, present(&resource, &object), now), warnings))
                    }
                }
            }
            _ => {
                let body = read_body(body, &parts.headers, verb, &resource.kind, built_in).await?.value;
                let delete = delete_options(&body, &query)?;
                let selection = Selection::new(&resource, &target.namespace, "", &query)?;
                let whole = Showing::new(Form::Object, &query, &resource, verb)?;
                let list = self.list(&resource, &selection, whole, &query, now)?;
                for item in list["items"].as_array().into_iter().flatten() {
                    let meta = &item["metadata"];
                    let key = ObjectKey::new(
                        resource.storage.clone(),
                        meta["namespace"].as_str().unwrap_or_default(),
                        meta["name"].as_str().unwrap_or_default(),
                    );
                    match self.delete(&resource, &key, &delete, delete["dryRun"] == json!(["All"]), now) {
                        Err(e) if e.code != 404 => return Err(e),
                        _ => {}
                    }
                }
                Ok(answer(200, list, &[]))
            }
        }
    }

    /// The answer to a create, update or patch.
    fn written(&self, resource: &Resource, written: &Written, showing: Showing, now: Timestamp) -> Response {
        let code = if written.created { 201 } else { 200 };
        let object = present(resource, &written.object);
        answer(code, showing.one(resource, object, now), &written.warnings)
    }

    fn post(
        &self,
        resource: &Arc<Resource>,
        target: &Target,
        body: Value,
        options: &WriteOptions,
        showing: Showing,
        now: Timestamp,
    ) -> Result<Response, ApiError> {
        let body = object(resource, body)?;
        if resource.custom.is_none() && resource.kind == "Binding" {
            return self.bind_named(&target.namespace, &body, options);
        }
        if resource.custom.is_none() && resource.kind == "TokenReview" {
            return self.review_token(resource, body, &options.manager, now);
        }
        if let Some(status) = review::status(&resource.kind).filter(|_| resource.custom.is_none()) {
            review::check(&resource.kind, &body, &target.namespace)?;
            let mut review = body;
            review["kind"] = resource.kind.clone().into();
            review["apiVersion"] = resource.api_version().into();
            if resource.kind.ends_with("AccessReview") {
                if !review["metadata"].is_object() {
                    review["metadata"] = json!({});
                }
                if resource.namespaced {
                    review["metadata"]["namespace"] = target.namespace.as_str().into();
                }
                review = apply::track_update(None, &review, &options.manager, None, now, &resource.typing);
            }
            if resource.kind == "SelfSubjectReview" {
                review["metadata"] =
                    json!({"creationTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
            }
            review["status"] = status;
            return Ok(answer(201, review, &[]));
        }
        let namespace = if resource.namespaced { target.namespace.as_str() } else { "" };
        let written = self.create(resource, namespace, body, options)?;
        Ok(self.written(resource, &written, showing, now))
    }

    /// Documents that are no objects: health, version, discovery, OpenAPI.
    fn document(&self, path: &str, headers: &http::HeaderMap) -> Option<Response> {
        let served = self.registry.served();
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2");
        let trimmed = path.trim_end_matches('/');
        match trimmed {
            "/healthz" | "/livez" | "/readyz" => return Some(text("ok")),
            "/version" => {
                return Some(answer(
                    200,
                    json!({
                        "major": "1", "minor": "35", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
                        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
                    }),
                    &[],
                ));
            }
            "/api" | "/apis" if aggregated => {
                let document = discovery::aggregated(&served, trimmed == "/api");
                let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                return Some(answer_as(200, &document, kind));
            }
            "/api" => return Some(answer(200, discovery::core_versions(&self.address), &[])),
            "/apis" => return Some(answer(200, discovery::groups(&served), &[])),
            "/openapi/v2" => {
                let json = |accept: &str| accept.contains("application/json") || accept.contains("*/*");
                if [MEDIA_TYPE, OLD_MEDIA_TYPE].iter().any(|kind| accept.contains(kind)) {
                    let name = "/openapi/v2 protobuf";
                    let document = self.documents.get(name, &served, || Some(openapi::v2_proto(&served)))?;
                    return Some(document_bytes(document, MEDIA_TYPE));
                }
                if !accept.is_empty() && !json(accept) {
                    return Some(error_response(&ApiError::not_acceptable(&["application/json"])));
                }
                let make = || Some(openapi::v2(&served).to_string().into());
                return self.documents.get(trimmed, &served, make).map(json_bytes);
            }
            "/openapi/v3" => return Some(answer(200, openapi::v3_index(&served), &[])),
            _ => {}
        }
        let parts: Vec<&str> = trimmed.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api", "v1"] => discovery::resources(&served, "", "v1").map(|d| answer(200, d, &[])),
            ["apis", group] => discovery::one_group(&served, group).map(|d| answer(200, d, &[])),
            ["apis", group, version] => {
                discovery::resources(&served, group, version).map(|d| answer(200, d, &[]))
            }
            ["openapi", "v3", "api", version] => {
                let make = || Some(openapi::v3(&served, "", version)?.to_string().into());
                self.documents.get(trimmed, &served, make).map(json_bytes)
            }
            ["openapi", "v3", "apis", group, version] => {
                let make = || Some(openapi::v3(&served, group, version)?.to_string().into());
                self.documents.get(trimmed, &served, make).map(json_bytes)
            }
            _ => None,
        }
    }
}

/// Kinds whose deletion answers with the deleted object (`ReturnDeletedObject` in `k8s.io/kubernetes/pkg/registry`).
fn returns_deleted(resource: &Resource) -> bool {
    matches!(
        resource.kind.as_str(),
        "Pod"
            | "PodTemplate"
            | "ServiceAccount"
            | "Service"
            | "ResourceQuota"
            | "PersistentVolume"
            | "PersistentVolumeClaim"
            | "CSIDriver"
            | "CSINode"
            | "StorageClass"
            | "VolumeAttachment"
            | "VolumeAttributesClass"
            | "DeviceClass"
            | "ResourceClaim"
            | "ResourceClaimTemplate"
            | "ResourceSlice"
    ) && resource.custom.is_none()
}

fn unsupported_patch() -> ApiError {
    ApiError::unsupported_media_type(&[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ])
}

/// Delete options from the body, or from the query where there is no body.
fn delete_options(body: &Value, query: &Query) -> Result<Value, ApiError> {
    if body.is_object() {
        let (kind, version) = (body["kind"].as_str(), body["apiVersion"].as_str().unwrap_or_default());
        if let Some(kind) = kind.filter(|kind| !matches!(*kind, "" | "DeleteOptions")) {
            return Err(ApiError::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\""
            )));
        }
        let decoded = decode::decode(DELETE_OPTIONS, &mut body.clone());
        if let Some(mismatch) = decoded.mismatch {
            return Err(ApiError::bad_request(mismatch));
        }
        request::check_delete_options(body)?;
        return Ok(body.clone());
    }
    let mut options = json!({});
    if let Some(policy) = query.get("propagationPolicy") {
        options["propagationPolicy"] = policy.into();
    }
    if let Some(grace) = query.number("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = grace.into();
    }
    let dry_run = query.all("dryRun");
    if !dry_run.is_empty() {
        options["dryRun"] = dry_run.into();
    }
    request::check_delete_options(&options)?;
    Ok(options)
}

/// What a server answers where nothing is.
fn not_found_page() -> Response {
    let mut response = text("404 page not found\n");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn text(content: &'static str) -> Response {
    let mut response = Response::new(Body::from(content));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json_bytes(document: Bytes) -> Response {
    document_bytes(document, "application/json")
}

fn document_bytes(document: Bytes, kind: &'static str) -> Response {
    let mut response = Response::new(Body::from(document));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn answer_as(code: u16, value: &Value, kind: &'static str) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn answer(code: u16, value: Value, warnings: &[String]) -> Response {
    let mut response = answer_as(code, &value, "application/json");
    warnings.iter().for_each(|warning| add_warning(&mut response, warning));
    response
}

/// An answer in JSON as one in YAML.
async fn in_yaml(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if parts.headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
        return Response::from_parts(parts, body);
    }
    let value = match body.collect().await {
        Ok(whole) => serde_json::from_slice::<Value>(&whole.to_bytes()).map_err(ApiError::internal),
        Err(error) => Err(ApiError::internal(error)),
    };
    match value.and_then(|value| media::to_yaml(&value)) {
        Ok(text) => {
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media::YAML));
            Response::from_parts(parts, Body::from(text))
        }
        Err(error) => error_response(&error),
    }
}

fn add_warning(response: &mut Response, warning: &str) {
    let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
    if let Ok(header) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
        response.headers_mut().append(header::WARNING, header);
    }
}

fn error_response(error: &ApiError) -> Response {
    let mut response = answer_as(error.code, &error.to_json(), "application/json");
    error.warnings.iter().for_each(|warning| add_warning(&mut response, warning));
    if error.retry_after_s > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(error.retry_after_s));
    }
    response
}
