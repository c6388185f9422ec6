//! Get, list and watch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Cluster;
use super::media::{Form, MetaVersion};
use super::request::Query;
use super::write::present;
use crate::builtin::autoscalers;
use crate::builtin::defaults::TEMPLATE_GENERATION;
use crate::builtin::zero;
use crate::resources::Resource;
use crate::selector::{Fields, Labels};
use crate::server::status::ApiError;
use crate::store::{Change, ChangeKind, Expired, Stored};
use crate::table::{self, IncludeObject};

/// Which objects are wanted.
#[derive(Debug, Clone)]
pub struct Selection {
    namespace: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    /// From a path's namespace and name and a query.
    ///
    /// # Errors
    /// 400 for a selector that does not parse, or a field that is not selectable.
    pub fn new(resource: &Resource, namespace: &str, name: &str, query: &Query) -> Result<Self, ApiError> {
        let bad = |e: crate::selector::SelectorError| ApiError::bad_request(e.to_string());
        let labels = Labels::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let mut text = query.get("fieldSelector").unwrap_or_default().to_owned();
        if !name.is_empty() {
            text = if text.is_empty() {
                format!("metadata.name={name}")
            } else {
                format!("{text},metadata.name={name}")
            };
        }
        let fields = Fields::parse(&text).map_err(bad)?;
        if let Some(path) = fields.paths().find(|p| !resource.selectable(p)) {
            return Err(ApiError::bad_request(unselectable(resource, path)));
        }
        let namespace = (resource.namespaced && !namespace.is_empty()).then(|| namespace.to_owned());
        Ok(Self { namespace, labels, fields })
    }

    fn matches(&self, resource: &Resource, stored: &Stored) -> bool {
        if self.namespace.as_deref().is_some_and(|n| stored.meta("namespace") != Some(n)) {
            return false;
        }
        self.labels.matches(&stored.value)
            && (self.fields.is_empty() || {
                if resource.api_version() == resource.storage_api_version {
                    self.fields.matches(&stored.value)
                } else {
                    self.fields.matches(&stored.value)
                        || self.fields.matches(&present(resource, &stored.value))
                }
            })
    }
}

/// What a server says of a field that objects cannot be selected by: kinds with fields of their own say less.
fn unselectable(resource: &Resource, path: &str) -> String {
    let own = [
        "Pod",
        "Node",
        "ReplicationController",
        "Event",
        "Namespace",
        "Secret",
        "Service",
        "Job",
        "CertificateSigningRequest",
    ];
    match resource.custom.is_none() && !own.contains(&resource.kind.as_str()) {
        true => {
            format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        false => format!("field label not supported: {path}"),
    }
}

/// How objects are to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Showing {
    /// Form.
    pub form: Form,
    /// For tables: what rows carry.
    pub include: IncludeObject,
}

impl Showing {
    /// From `Accept` and `includeObject`.
    ///
    /// # Errors
    /// 400 for rows of an unknown make, 406 for one object in the form of many or the other way round.
    pub fn new(form: Form, query: &Query, resource: &Resource, verb: &str) -> Result<Self, ApiError> {
        one_or_many(resource, form, verb)?;
        let include = match query.get("includeObject") {
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            None | Some("Metadata") => IncludeObject::Metadata,
            Some(other) if matches!(form, Form::Table(_)) => {
                return Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                     'Object', 'None', or empty"
                )));
            }
            Some(_) => IncludeObject::Metadata,
        };
        Ok(Self { form, include })
    }

    fn table(&self, resource: &Resource, objects: &[Value], version: MetaVersion, now: Timestamp) -> Value {
        let shown: Vec<Value> = match self.include {
            IncludeObject::Object => objects.to_vec(),
            _ => objects.iter().map(|object| annotated(resource, object.clone())).collect(),
        };
        let mut table = table::render(&resource.columns, &shown, self.include, now);
        table["apiVersion"] = version.api_version().into();
        if self.include == IncludeObject::Metadata {
            for row in table["rows"].as_array_mut().into_iter().flatten() {
                row["object"]["apiVersion"] = version.api_version().into();
            }
        }
        table
    }

    /// One object in this form.
    pub fn one(&self, resource: &Resource, object: Value, now: Timestamp) -> Value {
        match self.form {
            Form::Object => object,
            Form::Metadata(version) | Form::MetadataList(version) => metadata_only(&object, version),
            Form::Table(meta_version) => {
                let version = object["metadata"]["resourceVersion"].clone();
                let mut table = self.table(resource, &[object], meta_version, now);
                table["metadata"] = json!({"resourceVersion": version});
                table
            }
        }
    }
}

impl Showing {
    /// A list in this form, with its metadata.
    pub fn many(&self, resource: &Resource, items: Vec<Value>, meta: Value, now: Timestamp) -> Value {
        match self.form {
            Form::Object => json!({
                "kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": meta,
                "items": items.into_iter().map(|item| untyped(resource, item)).collect::<Vec<_>>(),
            }),
            Form::Metadata(version) | Form::MetadataList(version) => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": meta,
                "items": items.iter().map(|item| metadata_only(item, version)).collect::<Vec<_>>(),
            }),
            Form::Table(version) => {
                let mut table = self.table(resource, &items, version, now);
                table["metadata"] = meta;
                table
            }
        }
    }
}

/// What a client is told that wants one object's metadata of a list, or the other way round.
fn one_or_many(resource: &Resource, form: Form, verb: &str) -> Result<(), ApiError> {
    let internal = |kind: &str| match (&resource.custom, resource.group.split('.').next()) {
        (Some(_), _) if verb == "list" => "*unstructured.UnstructuredList".to_owned(),
        (Some(_), _) => "*unstructured.Unstructured".to_owned(),
        (None, None | Some("")) => format!("*core.{kind}"),
        (None, Some(group)) => format!("*{group}.{kind}"),
    };
    match form {
        Form::Metadata(_) if verb == "list" => Err(ApiError::not_this_form(format!(
            "you requested PartialObjectMetadata, but the requested object is a list ({})",
            internal(&resource.list_kind)
        ))),
        Form::MetadataList(_) if !matches!(verb, "list" | "watch" | "deletecollection") => {
            Err(ApiError::not_this_form(format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
                internal(&resource.kind)
            )))
        }
        _ => Ok(()),
    }
}

/// An object as its metadata is shown alone: what was counted before generations were is no annotation there.
fn annotated(resource: &Resource, mut object: Value) -> Value {
    if resource.custom.is_none() && resource.api_version() == "autoscaling/v1" {
        return autoscalers::to_v2(&object);
    }
    if resource.custom.is_none() && resource.kind == "DaemonSet" {
        let meta = object["metadata"].as_object_mut();
        if let Some(annotations) = meta.and_then(|meta| meta.get_mut("annotations")?.as_object_mut()) {
            annotations.remove(TEMPLATE_GENERATION);
            if annotations.is_empty() {
                object["metadata"].as_object_mut().map(|meta| meta.remove("annotations"));
            }
        }
    }
    object
}

/// An item of a list: those of Kubernetes' own kinds do not repeat the type that the list says.
fn untyped(resource: &Resource, mut item: Value) -> Value {
    if let (None, Some(fields)) = (&resource.custom, item.as_object_mut()) {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    item
}

fn metadata_only(object: &Value, version: MetaVersion) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"]})
}

impl Cluster {
    /// A list, whole or a page.
    ///
    /// # Errors
    /// 400 for a bad continue token, 410 for one that is too old, 504 for a version of the future.
    pub fn list(
        &self,
        resource: &Resource,
        selection: &Selection,
        showing: Showing,
        query: &Query,
        now: Timestamp,
    ) -> Result<Value, ApiError> {
        let limit = query.number("limit")?.unwrap_or(0) as usize;
        // The present state as it is at hand comes whole.
        let limit = if query.get("resourceVersion") == Some("0") { 0 } else { limit };
        let (objects, revision, after) = match query.get("continue") {
            Some(_) if query.get("resourceVersion").is_some_and(|version| version != "0") => {
                let why = "specifying resource version is not allowed when using continue";
                return Err(ApiError::bad_request(why));
            }
            Some(token) => {
                let (revision, after) = read_token(token)?;
                let objects = self
                    .store
                    .list_at(&resource.storage, selection.namespace.as_deref(), revision)
                    .map_err(|_| ApiError::expired_continue())?;
                (objects, revision, Some(after))
            }
            None => {
                let asked = query
                    .version()
                    .map_err(|why| ApiError::bad_request(format!("invalid resource version: {why}")))?;
                let current = self.store.revision();
                if asked > current {
                    return Err(ApiError::version_too_large(asked, current));
                }
                if asked > 0 && query.get("resourceVersionMatch") == Some("Exact") {
                    let objects = self
                        .store
                        .list_at(&resource.storage, selection.namespace.as_deref(), asked)
                        .map_err(ApiError::expired)?;
                    (objects, asked, None)
                } else {
                    let (objects, revision) =
                        self.store.list(&resource.storage, selection.namespace.as_deref());
                    (objects, revision, None)
                }
            }
        };
        let key = |s: &Stored| {
            (
                s.meta("namespace").unwrap_or_default().to_owned(),
                s.meta("name").unwrap_or_default().to_owned(),
            )
        };
        let mut matching: Vec<Arc<Stored>> = objects
            .into_iter()
            .filter(|s| after.as_ref().is_none_or(|a| key(s) > *a) && selection.matches(resource, s))
            .collect();
        let mut meta = json!({"resourceVersion": revision.to_string()});
        // A real server's lists of custom resources always have it.
        if resource.custom.is_some() && showing.form == Form::Object {
            meta["continue"] = "".into();
        }
        if limit > 0 && matching.len() > limit {
            let left = matching.len() - limit;
            matching.truncate(limit);
            if let Some(last) = matching.last() {
                meta["continue"] = write_token(revision, &key(last)).into();
            }
            if query.get("labelSelector").is_none() && query.get("fieldSelector").is_none() {
                meta["remainingItemCount"] = left.into();
            }
        }
        let items: Vec<Value> = matching.iter().map(|s| present(resource, &s.value)).collect();
        Ok(showing.many(resource, items, meta, now))
    }

    /// A watch as a stream of JSON lines. Ends at `timeoutSeconds`, when the watcher lags too far, or when the store closes.
    ///
    /// # Errors
    /// 410 if the history does not reach back to the version asked for (as kube's clients expect, also as the first event).
    pub fn watch(
        &self,
        resource: &Arc<Resource>,
        selection: Selection,
        showing: Showing,
        query: &Query,
        stop: tokio_util::sync::CancellationToken,
    ) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        let send_initial = query.flag("sendInitialEvents") && query.get("sendInitialEvents").is_some();
        let bookmarks = query.flag("allowWatchBookmarks") && query.get("allowWatchBookmarks").is_some();
        let since = match query.get("resourceVersion") {
            _ if send_initial => None,
            // Asked not to be shown the present state: from now on.
            None | Some("0") if query.get("sendInitialEvents").is_some() => Some(self.store.revision()),
            None | Some("0") => None,
            Some(_) => Some(query.version().map_err(ApiError::unexpected)?),
        };
        let timeout = query.number("timeoutSeconds")?.map(Duration::from_secs);
        let (tx, rx) = mpsc::channel(64);
        let current = self.store.revision();
        let opened = match since {
            // A version of the future is one of an earlier life of this API, whose history is gone.
            Some(asked) if asked > current => Err(Expired { asked, oldest: current }),
            _ => self.store.watch(&resource.storage, since),
        };
        let watch = match opened {
            Ok(watch) => watch,
            Err(expired) => {
                let error = ApiError::expired(expired).to_json();
                let line = event_line("ERROR", error);
                tokio::spawn(async move { tx.send(line).await });
                return Ok(rx);
            }
        };
        let resource = Arc::clone(resource);
        let clock = Arc::clone(&self.clock);
        let registry = Arc::clone(&self.registry);
        tokio::spawn(async move {
            let deadline = timeout.and_then(|t| tokio::time::Instant::now().checked_add(t));
            let mut watch = watch;
            let mut first = true;
            let mut show = |kind: &str, value: &Value| {
                let mut shown = showing.one(&resource, present(&resource, value), clock());
                if matches!(showing.form, Form::Table(_)) && !std::mem::take(&mut first) {
                    // A watch names its columns once.
                    shown["columnDefinitions"] = Value::Null;
                }
                event_line(kind, shown)
            };
            let mut last = watch.revision;
            if let Some(initial) = watch.initial.take() {
                for stored in initial.iter().filter(|s| selection.matches(&resource, s)) {
                    if tx.send(show("ADDED", &stored.value)).await.is_err() {
                        return;
                    }
                }
                // A table has no row that could say it.
                let told = bookmarks && !matches!(showing.form, Form::Table(_));
                if send_initial
                    && told
                    && tx.send(bookmark(&resource, showing.form, last, true)).await.is_err()
                {
                    return;
                }
            }
            for change in std::mem::take(&mut watch.backlog) {
                last = change.revision;
                if let Some(line) = translate(&resource, &selection, &change, &mut show)
                    && tx.send(line).await.is_err()
                {
                    return;
                }
            }
            let mut changed = registry.changes();
            let mut tick = tokio::time::interval(Duration::from_secs(30));
            tick.tick().await;
            loop {
                let timed_out = async {
                    match deadline {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    change = watch.changes.recv() => match change {
                        Some(change) => {
                            last = change.revision;
                            if let Some(line) = translate(&resource, &selection, &change, &mut show)
                                && tx.send(line).await.is_err()
                            {
                                return;
                            }
                        }
                        None if stop.is_cancelled() => return,
                        None => {
                            // The store cut a watcher off that was too slow.
                            let _ = tx.send(event_line("ERROR", ApiError::lagging().to_json())).await;
                            return;
                        }
                    },
                    () = timed_out => {
                        if bookmarks {
                            let _ = tx.send(bookmark(&resource, showing.form, last, false)).await;
                        }
                        return;
                    }
                    () = stop.cancelled() => return,
                    Ok(()) = changed.changed() => {
                        // As on a real server, a changed definition ends the watches of its objects.
                        let still = registry.served().find(&resource.group, &resource.version, &resource.plural).is_some_and(|now| Arc::ptr_eq(now, &resource));
                        if !still {
                            return;
                        }
                    }
                    () = tx.closed() => return,
                    _ = tick.tick() => {
                        if bookmarks && tx.send(bookmark(&resource, showing.form, last, false)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(rx)
    }
}

/// A change as this watcher sees it: an object that comes to match is added, one that ceases to is deleted.
fn translate(
    resource: &Resource,
    selection: &Selection,
    change: &Change,
    show: &mut impl FnMut(&str, &Value) -> Bytes,
) -> Option<Bytes> {
    let was = change.previous.as_ref().is_some_and(|p| selection.matches(resource, p));
    let is = selection.matches(resource, &change.object);
    let value = &change.object.value;
    match (change.kind, was, is) {
        (ChangeKind::Deleted, false, false) | (_, false, false) => None,
        (ChangeKind::Deleted, _, _) => Some(show("DELETED", value)),
        (_, false, true) => Some(show("ADDED", value)),
        (_, true, true) => Some(show("MODIFIED", value)),
        (_, true, false) => {
            // The watcher is shown the object as it last matched, at the version that ended the match.
            let mut last = change.previous.as_ref().map_or_else(|| value.clone(), |p| p.value.clone());
            last["metadata"]["resourceVersion"] = change.revision.to_string().into();
            Some(show("DELETED", &last))
        }
    }
}

fn event_line(kind: &str, object: Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    Bytes::from(line)
}

fn bookmark(resource: &Resource, form: Form, revision: u64, initial_end: bool) -> Bytes {
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if initial_end {
        meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = match form {
        Form::Object => {
            let mut object = match resource.custom {
                Some(_) => json!({}),
                None => zero::object(&resource.kind),
            };
            object["kind"] = resource.kind.clone().into();
            object["apiVersion"] = resource.api_version().into();
            object["metadata"] = meta;
            object
        }
        Form::Metadata(version) | Form::MetadataList(version) => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": meta})
        }
        Form::Table(version) => json!({
            "kind": "Table", "apiVersion": version.api_version(), "metadata": meta, "columnDefinitions": null, "rows": [],
        }),
    };
    event_line("BOOKMARK", object)
}

fn write_token(revision: u64, key: &(String, String)) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json!([revision, key.0, key.1]).to_string())
}

fn read_token(token: &str) -> Result<(u64, (String, String)), ApiError> {
    use base64::Engine as _;
    let invalid = |why: String| {
        ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ => token.len(),
        };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    let (revision, namespace, name) =
        serde_json::from_slice::<(u64, String, String)>(&bytes).map_err(|_| match bytes.first() {
            None => invalid("unexpected end of JSON input".into()),
            Some(b'[') => invalid("it is not one of this server's".into()),
            Some(first) => {
                let shown = match char::from(*first) {
                    c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
                    c => c.to_string(),
                };
                invalid(format!("invalid character '{shown}' looking for beginning of value"))
            }
        })?;
    Ok((revision, (namespace, name)))
}
