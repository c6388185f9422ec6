//! A Kubernetes API of a few verbs behind `kube::Client`: enough to run the operator against and to break on purpose.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// (collection, namespace, name)
type Key = (String, String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// (collection, type, object), the index being the version less one.
    history: Vec<(String, &'static str, Value)>,
    created: BTreeMap<String, usize>,
    requests_to_fail: usize,
    /// Collections that nobody may read or write.
    forbidden: Vec<String>,
}

pub struct FakeApi {
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
}

struct Target {
    collection: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let mut rest = parts.get(if parts[0] == "api" { 2 } else { 3 }..).unwrap_or_default();
    let mut namespace = String::new();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        namespace = rest[1].to_owned();
        rest = &rest[2..];
    }
    Target {
        // None where it is asked what a group and version serves: nothing is kept there.
        collection: rest.first().map(|s| (*s).to_owned()).unwrap_or_default(),
        namespace,
        name: rest.get(1).map(|s| (*s).to_owned()),
        subresource: rest.get(2).map(|s| (*s).to_owned()),
    }
}

fn answer(code: StatusCode, body: &Value) -> Answer {
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap());
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes).boxed_unsync())
        .unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                      "reason": reason, "code": code});
    answer(StatusCode::from_u16(code).unwrap(), &body)
}

fn merge(target: &mut Value, patch: &Value) {
    match (target.as_object_mut(), patch.as_object()) {
        (Some(t), Some(p)) => {
            for (key, value) in p {
                if value.is_null() {
                    t.remove(key);
                } else if value.is_object() {
                    merge(t.entry(key).or_insert_with(|| json!({})), value);
                } else {
                    t.insert(key.clone(), value.clone());
                }
            }
        }
        _ => *target = patch.clone(),
    }
}

impl FakeApi {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Arc::default(), version: watch::channel(0).0 })
    }

    /// Takes away every grant for a collection.
    pub fn forbid(&self, collection: &str) {
        self.state.lock().forbidden.push(collection.to_owned());
    }

    pub fn client(self: &Arc<Self>) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    fn commit(&self, state: &mut State, key: &Key, kind: &'static str, mut object: Value) -> Value {
        let version = state.history.len() as u64 + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind == "DELETED" {
            state.objects.remove(key);
        } else {
            state.objects.insert(key.clone(), object.clone());
        }
        state.history.push((key.0.clone(), kind, object.clone()));
        self.version.send_replace(version);
        object
    }

    fn create(&self, state: &mut State, key: &Key, mut object: Value) -> Value {
        *state.created.entry(key.0.clone()).or_default() += 1;
        let meta = &mut object["metadata"];
        meta["uid"] = json!(format!("uid-{}", state.history.len() + 1));
        meta["generation"] = json!(1);
        meta["creationTimestamp"] = json!(Timestamp::now().to_string());
        if !key.1.is_empty() {
            meta["namespace"] = json!(key.1);
        }
        self.commit(state, key, "ADDED", object)
    }

    fn update(&self, state: &mut State, key: &Key, mut object: Value) -> Value {
        let old = state.objects[key].clone();
        if object == old {
            return object;
        }
        if object["spec"] != old["spec"] {
            object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        }
        let deleting = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if deleting && !held { self.remove(state, key) } else { self.commit(state, key, "MODIFIED", object) }
    }

    fn remove(&self, state: &mut State, key: &Key) -> Value {
        let object = state.objects[key].clone();
        let gone = self.commit(state, key, "DELETED", object);
        let owned: Vec<Key> = state
            .objects
            .iter()
            .filter(|(_, o)| {
                o["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|refs| refs.iter().any(|r| r["uid"] == gone["metadata"]["uid"]))
            })
            .map(|(k, _)| k.clone())
            .collect();
        for key in owned {
            self.remove(state, &key);
        }
        gone
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let Target { collection, namespace, name, subresource } = target(parts.uri.path());
        if self.state.lock().forbidden.contains(&collection) {
            return failure(403, "Forbidden", &format!("{collection} is forbidden"));
        }
        if query.contains("watch=true") {
            return self.watch(&collection, &query);
        }
        let mut state = self.state.lock();
        if state.requests_to_fail > 0 {
            state.requests_to_fail -= 1;
            return failure(422, "Broken", "broken on purpose");
        }
        let Some(name) = name else {
            return match parts.method {
                Method::GET => list(&state, &collection, &namespace, &query),
                _ => {
                    let object: Value = serde_json::from_slice(&body).unwrap();
                    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                    let key = (collection, namespace, name);
                    if state.objects.contains_key(&key) {
                        return failure(409, "AlreadyExists", &format!("{} already exists", key.2));
                    }
                    answer(StatusCode::CREATED, &self.create(&mut state, &key, object))
                }
            };
        };
        let key = (collection, namespace, name);
        let Some(old) = state.objects.get(&key).cloned() else {
            let apply =
                parts.headers.get("content-type").is_some_and(|t| t == "application/apply-patch+yaml");
            if parts.method == Method::PATCH && apply && subresource.is_none() {
                let object: Value = serde_json::from_slice(&body).unwrap();
                return answer(StatusCode::CREATED, &self.create(&mut state, &key, object));
            }
            return failure(404, "NotFound", &format!("{} {:?} not found", key.0, key.2));
        };
        match parts.method {
            Method::GET => answer(StatusCode::OK, &old),
            Method::DELETE => {
                let options: Value = serde_json::from_slice(&body).unwrap_or_default();
                let wanted = &options["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != old["metadata"]["uid"] {
                    return failure(409, "Conflict", "the UID differs");
                }
                if old["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
                    let mut object = old;
                    object["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
                    return answer(StatusCode::OK, &self.update(&mut state, &key, object));
                }
                answer(StatusCode::OK, &self.remove(&mut state, &key))
            }
            method => {
                let sent: Value = serde_json::from_slice(&body).unwrap();
                for field in ["resourceVersion", "uid"] {
                    let wanted = &sent["metadata"][field];
                    if !wanted.is_null() && *wanted != old["metadata"][field] {
                        return failure(409, "Conflict", &format!("{field} differs"));
                    }
                }
                let mut object = old.clone();
                if method == Method::PUT {
                    object = sent;
                } else if subresource.as_deref() == Some("status") {
                    // One manager owns all of the status: what it no longer sends is gone.
                    object["status"] = sent["status"].clone();
                } else {
                    merge(&mut object, &sent);
                    object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                    // Server-side apply's own: kept out of comparisons.
                    object["status"] = old["status"].clone();
                    if object["status"].is_null() {
                        object.as_object_mut().unwrap().remove("status");
                    }
                }
                answer(StatusCode::OK, &self.update(&mut state, &key, object))
            }
        }
    }

    fn watch(&self, collection: &str, query: &str) -> Answer {
        let from = query
            .split('&')
            .find_map(|p| p.strip_prefix("resourceVersion="))
            .and_then(|v| v.parse().ok())
            .unwrap_or(0_usize);
        let (collection, query) = (collection.to_owned(), query.to_owned());
        // Replays what came after `from`, then waits for more; the whole history is kept.
        let follower = (self.state.clone(), self.version.subscribe(), from);
        let changes = stream::unfold(follower, |(state, mut version, next)| async move {
            loop {
                version.mark_unchanged();
                let change = state.lock().history.get(next).cloned();
                if let Some(change) = change {
                    return Some((change, (state, version, next + 1)));
                }
                version.changed().await.ok()?;
            }
        });
        let frames = changes.filter_map(move |(of, kind, object)| {
            let fits = of == collection && selected(&object, &query);
            let line = fits.then(|| {
                let mut text = serde_json::to_vec(&json!({"type": kind, "object": object})).unwrap();
                text.push(b'\n');
                Ok(http_body::Frame::data(Bytes::from(text)))
            });
            async move { line }
        });
        Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
    }

    /// Creates or replaces an object the way a person would.
    pub fn put(&self, collection: &str, namespace: &str, object: Value) {
        let key = (
            collection.to_owned(),
            namespace.to_owned(),
            object["metadata"]["name"].as_str().unwrap().to_owned(),
        );
        let mut state = self.state.lock();
        match state.objects.get(&key).cloned() {
            None => self.create(&mut state, &key, object),
            Some(mut old) => {
                merge(&mut old, &object);
                self.update(&mut state, &key, old)
            }
        };
    }

    /// Deletes an object the way a person would.
    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let key = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.state.lock();
        let mut object = state.objects[&key].clone();
        object["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
        self.update(&mut state, &key, object);
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().objects.get(&key).cloned()
    }

    pub fn list(&self, collection: &str) -> Vec<Value> {
        self.state.lock().objects.iter().filter(|(k, _)| k.0 == collection).map(|(_, o)| o.clone()).collect()
    }

    /// Objects ever created in a collection.
    pub fn created(&self, collection: &str) -> usize {
        self.state.lock().created.get(collection).copied().unwrap_or(0)
    }

    pub fn fail_next(&self, requests: usize) {
        self.state.lock().requests_to_fail = requests;
    }

    pub fn failures_left(&self) -> usize {
        self.state.lock().requests_to_fail
    }
}

/// Whether an object has the labels asked for: one of `key`, `!key`, `key=value`.
fn selected(object: &Value, query: &str) -> bool {
    let selector = query.split('&').find_map(|p| p.strip_prefix("labelSelector=")).unwrap_or_default();
    let selector = selector.replace("%21", "!").replace("%2F", "/").replace("%3D", "=");
    let label = |key: &str| object["metadata"]["labels"].get(key);
    match (selector.strip_prefix('!'), selector.split_once('=')) {
        _ if selector.is_empty() => true,
        (Some(key), _) => label(key).is_none(),
        (None, Some((key, value))) => label(key).is_some_and(|v| v == value),
        (None, None) => label(&selector).is_some(),
    }
}

fn list(state: &State, collection: &str, namespace: &str, query: &str) -> Answer {
    let items: Vec<&Value> = state
        .objects
        .iter()
        .filter(|(k, o)| {
            k.0 == collection && (namespace.is_empty() || k.1 == namespace) && selected(o, query)
        })
        .map(|(_, o)| o)
        .collect();
    let body = json!({"kind": "List", "apiVersion": "v1",
                      "metadata": {"resourceVersion": state.history.len().to_string()}, "items": items});
    answer(StatusCode::OK, &body)
}
