//! The least API that nodes need, in memory: collections, watches, patches through the crate's own modules.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body as Reply;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use plimsoll_devcluster::gvk::GroupKind;
use plimsoll_devcluster::patch;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Key = (String, String, String);

struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
}

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<(String, u64, Value)>,
    /// While set, every request fails: the API is away.
    pub down: Arc<std::sync::atomic::AtomicBool>,
}

fn status(code: u16, reason: &str) -> Response<Reply> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": reason});
    respond(code, &body)
}

fn respond(code: u16, body: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn kind_of(plural: &str) -> (&'static str, &'static str, &'static str) {
    match plural {
        "pods" => ("", "v1", "Pod"),
        "nodes" => ("", "v1", "Node"),
        "events" => ("", "v1", "Event"),
        "namespaces" => ("", "v1", "Namespace"),
        "leases" => ("coordination.k8s.io", "v1", "Lease"),
        other => panic!("unexpected resource {other}"),
    }
}

impl Api {
    pub fn new() -> Self {
        let state = State { version: 1, objects: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)), changes: broadcast::channel(4096).0, down: Arc::default() }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower_service(move |request| {
            let api = api.clone();
            Box::pin(async move { Ok::<_, Infallible>(api.handle(request).await) })
        });
        kube::Client::new(service, "default")
    }

    fn put(&self, state: &mut State, key: Key, mut object: Value, change: &str) -> Value {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let (group, version, kind) = kind_of(&key.0);
        object["kind"] = json!(kind);
        object["apiVersion"] =
            json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") });
        let plural = key.0.clone();
        if change == "DELETED" {
            state.objects.remove(&key);
        } else {
            state.objects.insert(key, object.clone());
        }
        let _ = self.changes.send((plural, state.version, json!({"type": change, "object": object})));
        object
    }

    async fn handle(&self, request: Request<Body>) -> Response<Reply> {
        if self.down.load(std::sync::atomic::Ordering::SeqCst) {
            return status(503, "ServiceUnavailable");
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let mut path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        path.drain(..if path[0] == "api" { 2 } else { 3 });
        let namespace =
            if path.len() > 2 && path[0] == "namespaces" { path.drain(..2).nth(1).unwrap() } else { "" };
        let (plural, name) = (path[0].to_owned(), path.get(1).copied().unwrap_or_default());
        let subresource = path.get(2).copied().unwrap_or_default();
        let key = (plural.clone(), namespace.to_owned(), name.to_owned());
        let query = parts.uri.query().unwrap_or_default();
        match (&parts.method, name) {
            (&Method::GET, "") if query.contains("watch=") => self.watch(&plural, query),
            (&Method::GET, "") => {
                let state = self.state.lock();
                let items: Vec<&Value> =
                    state.objects.iter().filter(|(k, _)| k.0 == plural).map(|(_, v)| v).collect();
                let (_, version, kind) = kind_of(&plural);
                let list = json!({"kind": format!("{kind}List"), "apiVersion": version, "items": items,
                    "metadata": {"resourceVersion": state.version.to_string()}});
                respond(200, &list)
            }
            (&Method::GET, _) => match self.state.lock().objects.get(&key) {
                Some(object) => respond(200, object),
                None => status(404, "NotFound"),
            },
            (&Method::POST, _) if subresource == "binding" => {
                let mut state = self.state.lock();
                let Some(mut pod) = state.objects.get(&key).cloned() else { return status(404, "NotFound") };
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                self.put(&mut state, key, pod, "MODIFIED");
                respond(
                    201,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                )
            }
            (&Method::POST, _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let key = (plural, namespace.to_owned(), name);
                let mut state = self.state.lock();
                if state.objects.contains_key(&key) {
                    return status(409, "AlreadyExists");
                }
                respond(201, &self.create(&mut state, key, body))
            }
            (&Method::PATCH, _) => {
                let content =
                    parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
                let mut state = self.state.lock();
                let Some(old) = state.objects.get(&key).cloned() else {
                    if content.contains("apply") {
                        return respond(201, &self.create(&mut state, key, body));
                    }
                    return status(404, "NotFound");
                };
                if body["metadata"]["uid"].as_str().is_some_and(|uid| old["metadata"]["uid"] != uid) {
                    return status(409, "Conflict");
                }
                let (group, _, kind) = kind_of(&plural);
                let new = match content {
                    "application/strategic-merge-patch+json" => {
                        patch::strategic(&old, &body, &GroupKind::new(group, kind)).unwrap()
                    }
                    _ => patch::merge(&old, &body),
                };
                if new == old {
                    return respond(200, &old);
                }
                respond(200, &self.put(&mut state, key, new, "MODIFIED"))
            }
            (&Method::DELETE, _) => {
                let mut state = self.state.lock();
                let Some(mut old) = state.objects.get(&key).cloned() else { return status(404, "NotFound") };
                let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
                let grace = body["gracePeriodSeconds"].as_i64().unwrap_or(own);
                if plural == "pods" && grace > 0 && old["spec"]["nodeName"].is_string() {
                    old["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
                    old["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                    return respond(200, &self.put(&mut state, key, old, "MODIFIED"));
                }
                respond(200, &self.put(&mut state, key, old, "DELETED"))
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }

    fn create(&self, state: &mut State, key: Key, mut object: Value) -> Value {
        object["metadata"]["uid"] = json!(format!("uid-{}", state.version));
        object["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        self.put(state, key, object, "ADDED")
    }

    fn watch(&self, plural: &str, query: &str) -> Response<Reply> {
        // A listed version is always the newest here: nothing happens between a list and the watch that tests could miss,
        // because whatever is newer than the version asked for is sent first.
        let since: u64 = query
            .split('&')
            .find_map(|p| p.strip_prefix("resourceVersion="))
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let (receiver, missed) = {
            let state = self.state.lock();
            let missed: Vec<Value> = state
                .objects
                .iter()
                .filter(|(k, _)| k.0 == plural)
                .filter(|(_, v)| {
                    v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > since
                })
                .map(|(_, v)| json!({"type": "MODIFIED", "object": v}))
                .collect();
            (self.changes.subscribe(), missed)
        };
        let plural = plural.to_owned();
        let live = tokio_stream::wrappers::BroadcastStream::new(receiver).filter_map(move |change| {
            let plural = plural.clone();
            async move { change.ok().filter(|(p, _, _)| *p == plural).map(|(_, _, event)| event) }
        });
        let lines = futures::stream::iter(missed)
            .chain(live)
            .map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(Reply::new(StreamBody::new(lines)))
    }
}

/// A service from a function, without more dependencies.
fn tower_service<F>(f: F) -> FnService<F>
where
    F: Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Reply>, Infallible>> + Clone + Send + 'static,
{
    FnService(f)
}

#[derive(Clone)]
pub struct FnService<F>(F);

impl<F> tower::Service<Request<Body>> for FnService<F>
where
    F: Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Reply>, Infallible>> + Clone + Send + 'static,
{
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Reply>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        (self.0)(request)
    }
}
