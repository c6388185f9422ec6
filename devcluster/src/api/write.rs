//! Create, update, patch, delete: every write goes through one pipeline of decode, default, validate, commit.

use jiff::Timestamp;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::Cluster;
use crate::apply::{self, ApplyError};
use crate::builtin::{decode, defaults, events, validate};
use crate::patch;
use crate::resources::{CRD_FINALIZER, Resource};
use crate::server::status::{ApiError, Cause};
use crate::store::{
    CommitError, Expected, GroupResource, ObjectKey, Stored, bump_generation, resource_version,
};

/// How a write is to be done.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Who writes.
    pub manager: String,
    /// Check everything, store nothing.
    pub dry_run: bool,
    /// Take over fields of other managers (apply).
    pub force: bool,
    /// `Strict`, `Warn` or `Ignore` for unknown fields.
    pub field_validation: FieldValidation,
    /// Now.
    pub now: Timestamp,
}

/// What to do with fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop silently.
    Ignore,
    /// Drop, and warn.
    Warn,
    /// Refuse.
    Strict,
}

/// A write that was done (or, dry, would be).
#[derive(Debug, Clone)]
pub struct Written {
    /// The object as stored.
    pub object: Value,
    /// Whether it is new.
    pub created: bool,
    /// Warnings for the client.
    pub warnings: Vec<String>,
}

/// A patch, by its content type.
#[derive(Debug, Clone)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// Attempts at a patch whose object keeps being changed by others.
const PATCH_ATTEMPTS: usize = 16;

impl Cluster {
    /// Creates an object.
    ///
    /// # Errors
    /// What a real API server answers: 400, 403, 404, 409, 422.
    pub fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        self.check_type(resource, &object)?;
        self.set_namespace(resource, namespace, &mut object)?;
        if resource_version(&object).is_some_and(|v| v != 0) {
            return Err(ApiError::version_on_create());
        }
        let name = name_of(&mut object)?;
        self.check_namespace(resource, namespace, &name)?;
        self.check_definition(resource)?;
        let meta = object_meta(&mut object)?;
        meta.remove("resourceVersion");
        meta.remove("deletionTimestamp");
        meta.remove("deletionGracePeriodSeconds");
        meta.remove("selfLink");
        meta.insert("uid".into(), new_uid().into());
        meta.insert(
            "creationTimestamp".into(),
            options.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
        );
        meta.insert("generation".into(), 1.into());
        if drops_status(resource) {
            object.as_object_mut().map(|o| o.remove("status"));
        }
        let mut warnings = Vec::new();
        let object = self.admit(resource, object, None, None, options, &mut warnings)?;
        let object =
            apply::track_update(None, &object, &options.manager, None, options.now, &resource.typing);
        self.store_new(resource, namespace, &name, object, options, warnings)
    }

    fn store_new(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: Value,
        options: &WriteOptions,
        warnings: Vec<String>,
    ) -> Result<Written, ApiError> {
        let key = ObjectKey::new(resource.storage.clone(), namespace, name);
        let object = to_storage(resource, object);
        if options.dry_run {
            if self.store.get(&key).is_some() {
                return Err(ApiError::already_exists(&resource.group_resource(), name));
            }
            return Ok(Written { object, created: true, warnings });
        }
        let stored = self
            .store
            .commit(&key, Expected::Absent, Some(object))
            .map_err(|e| commit_error(&e, resource, name))?;
        self.after_write(resource, &stored);
        Ok(Written { object: stored.value.clone(), created: true, warnings })
    }

    /// Replaces an object, or one of its subresources' parts.
    ///
    /// # Errors
    /// What a real API server answers: 400, 404, 409, 422.
    pub fn replace(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        self.check_type(resource, &object)?;
        self.set_namespace(resource, &key.namespace, &mut object)?;
        let given = object["metadata"]["name"].as_str().unwrap_or_default();
        if !given.is_empty() && given != key.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                key.name
            )));
        }
        let current =
            self.store.get(key).ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
        match resource_version(&object) {
            Some(asked) if asked != 0 && asked != current.revision => {
                return Err(ApiError::modified(&resource.group_resource(), &key.name));
            }
            None | Some(0) if needs_version(resource) => {
                let cause = Cause {
                    reason: "FieldValueInvalid".into(),
                    message: "Invalid value: 0x0: must be specified for an update".into(),
                    field: "metadata.resourceVersion".into(),
                };
                return Err(ApiError::invalid(&resource.group_kind(), &key.name, vec![cause]));
            }
            _ => {}
        }
        check_uid(resource, &object, &current, &key.name)?;
        self.write_over(resource, key, subresource, object, &current, options, Tracked::No)
    }

    /// Patches an object, or one of its subresources' parts. Applying an object that is not there creates it.
    ///
    /// # Errors
    /// What a real API server answers: 400, 404, 409, 415, 422.
    pub fn patch(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: &PatchKind,
        body: &Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        for _ in 0..PATCH_ATTEMPTS {
            let current = self.store.get(key);
            let result = match kind {
                PatchKind::Apply => self.apply(resource, key, subresource, body, current.as_deref(), options),
                _ => {
                    let current =
                        current.ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
                    self.patch_once(resource, key, subresource, kind, body, &current, options)
                }
            };
            match result {
                // Another writer was faster and the patch does not insist on a version: try on the newer object.
                Err(e)
                    if e.code == 409
                        && e.reason == "Conflict"
                        && e.causes.is_empty()
                        && body["metadata"]["resourceVersion"].is_null() => {}
                done => return done,
            }
        }
        Err(ApiError::modified(&resource.group_resource(), &key.name))
    }

    fn patch_once(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: &PatchKind,
        body: &Value,
        current: &Stored,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let before = present(resource, &current.value);
        let patched = match kind {
            PatchKind::Json => patch::json(&before, body).map_err(|e| match e {
                patch::PatchError::Rejected(why) => ApiError::unprocessable(why),
                other => ApiError::bad_request(other.to_string()),
            })?,
            PatchKind::Merge => patch::merge(&before, body),
            PatchKind::Strategic if resource.custom.is_some() => {
                return Err(ApiError::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/apply-patch+yaml",
                ]));
            }
            PatchKind::Strategic | PatchKind::Apply => {
                patch::strategic(&before, body, &resource.group_kind())
                    .map_err(|e| ApiError::bad_request(e.to_string()))?
            }
        };
        if let Some(asked) = resource_version(&patched)
            && asked != current.revision
        {
            return Err(ApiError::modified(&resource.group_resource(), &key.name));
        }
        check_uid(resource, &patched, current, &key.name)?;
        self.write_over(resource, key, subresource, patched, current, options, Tracked::No)
    }

    fn apply(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        config: &Value,
        current: Option<&Stored>,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let mut config = config.clone();
        if config["apiVersion"].is_null() || config["kind"].is_null() {
            return Err(ApiError::bad_request("apply needs apiVersion and kind in the body"));
        }
        self.check_type(resource, &config)?;
        self.set_namespace(resource, &key.namespace, &mut config)?;
        let meta = object_meta(&mut config)?;
        meta.entry("name").or_insert_with(|| key.name.clone().into());
        let mut warnings = Vec::new();
        self.check_unknown(resource, &mut config, options, &mut warnings)?;
        let live = current.map(|c| present(resource, &c.value));
        let request = apply::Request {
            manager: options.manager.clone(),
            force: options.force,
            subresource: subresource.map(str::to_owned),
            now: options.now,
            typing: resource.typing.clone(),
        };
        let merged = apply::apply(live.as_ref(), &config, &request).map_err(|e| match e {
            ApplyError::Conflict(conflict) => ApiError::apply_conflict(&conflict),
            ApplyError::Invalid(why) => ApiError::bad_request(why),
        })?;
        match current {
            Some(current) => {
                if let Some(asked) = resource_version(&config)
                    && asked != current.revision
                {
                    return Err(ApiError::modified(&resource.group_resource(), &key.name));
                }
                check_uid(resource, &config, current, &key.name)?;
                if live.as_ref() == Some(&merged) {
                    return Ok(Written { object: current.value.clone(), created: false, warnings });
                }
                let mut written =
                    self.write_over(resource, key, subresource, merged, current, options, Tracked::Already)?;
                written.warnings.splice(0..0, warnings);
                Ok(written)
            }
            None if subresource.is_some() => Err(ApiError::not_found(&resource.group_resource(), &key.name)),
            None => {
                if let Some(uid) = config["metadata"]["uid"].as_str().filter(|u| !u.is_empty()) {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(ApiError::conflict(&resource.group_resource(), &key.name, &why));
                }
                self.check_namespace(resource, &key.namespace, &key.name)?;
                self.check_definition(resource)?;
                let mut object = merged;
                let meta = object_meta(&mut object)?;
                meta.insert("uid".into(), new_uid().into());
                meta.insert(
                    "creationTimestamp".into(),
                    options.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
                );
                meta.insert("generation".into(), 1.into());
                if drops_status(resource) {
                    object.as_object_mut().map(|o| o.remove("status"));
                }
                let object = self.admit(resource, object, None, None, options, &mut warnings)?;
                self.store_new(resource, &key.namespace, &key.name, object, options, warnings)
            }
        }
    }

    /// The part of a write that update and every kind of patch share: `object` is the wanted whole.
    fn write_over(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: Option<&str>,
        mut object: Value,
        current: &Stored,
        options: &WriteOptions,
        tracked: Tracked,
    ) -> Result<Written, ApiError> {
        let before = present(resource, &current.value);
        if !object.is_object() {
            return Err(ApiError::unprocessable("the patch leaves no object"));
        }
        object_meta(&mut object)?;
        if before["kind"] != object["kind"] && !object["kind"].is_null() {
            return Err(ApiError::bad_request("an object's kind cannot change"));
        }
        confine(resource, subresource, &before, &mut object);
        keep_system_fields(&before, &mut object);
        let mut warnings = Vec::new();
        let mut object = self.admit(resource, object, Some(&before), subresource, options, &mut warnings)?;
        if subresource != Some("status")
            && spec_of(&object) != spec_of(&before)
            && counts_generations(resource)
        {
            bump_generation(&mut object);
        }
        if matches!(tracked, Tracked::No) {
            object = apply::track_update(
                Some(&before),
                &object,
                &options.manager,
                subresource,
                options.now,
                &resource.typing,
            );
        }
        check_finalizers(resource, &key.name, &before, &object)?;
        let object = to_storage(resource, object);
        if object == current.value || same_but_version(&object, &current.value) {
            return Ok(Written { object: current.value.clone(), created: false, warnings });
        }
        if options.dry_run {
            return Ok(Written { object, created: false, warnings });
        }
        if ends(resource, &object) {
            // The last finalizer is gone: this write is the object's end.
            let mut last = object;
            let stored = self
                .store
                .commit(key, Expected::Revision(current.revision), None)
                .map_err(|e| commit_error(&e, resource, &key.name))?;
            last["metadata"]["resourceVersion"] = stored.revision.to_string().into();
            if resource.kind == "CustomResourceDefinition" {
                self.registry.undefine(&key.name);
            }
            return Ok(Written { object: last, created: false, warnings });
        }
        let stored = self
            .store
            .commit(key, Expected::Revision(current.revision), Some(object))
            .map_err(|e| commit_error(&e, resource, &key.name))?;
        self.after_write(resource, &stored);
        Ok(Written { object: stored.value.clone(), created: false, warnings })
    }

    /// Unknown fields, defaults, checks.
    fn admit(
        &self,
        resource: &Resource,
        mut object: Value,
        before: Option<&Value>,
        subresource: Option<&str>,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        self.check_unknown(resource, &mut object, options, warnings)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut causes = Vec::new();
        match &resource.custom {
            Some(custom) => {
                custom.schema.default(&mut object);
                causes.extend(custom.schema.validate(&object, before).iter().map(Cause::from));
                if let Some(text) = &custom.deprecation {
                    warnings.push(text.clone());
                }
            }
            None => {
                if let Some(definition) = &resource.definition {
                    let decoded = decode::decode(definition, &mut object);
                    if let Some(mismatch) = decoded.mismatch {
                        return Err(ApiError::bad_request(mismatch));
                    }
                    causes.extend(decoded.required);
                }
                defaults::apply(&resource.kind, &mut object);
                if subresource.is_none() {
                    causes.extend(validate::check(&resource.kind, &object, before));
                }
            }
        }
        if before.is_none() {
            causes.extend(validate::metadata(&resource.kind, &object["metadata"]));
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid(&resource.group_kind(), &name, causes));
        }
        if resource.kind == "CustomResourceDefinition" && subresource.is_none() {
            self.registry
                .check(&object)
                .map_err(|causes| ApiError::invalid(&resource.group_kind(), &name, causes))?;
            if before.is_none() {
                let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
                if !finalizers.iter().any(|f| f == CRD_FINALIZER) {
                    object["metadata"]["finalizers"] =
                        finalizers.into_iter().chain([CRD_FINALIZER.into()]).collect();
                }
            }
            crd_status(&mut object, options.now);
        }
        if resource.kind == "Namespace" && before.is_none() {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        Ok(object)
    }

    fn check_unknown(
        &self,
        resource: &Resource,
        object: &mut Value,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let unknown = match (&resource.custom, &resource.definition) {
            (Some(custom), _) => {
                let unknown = custom.schema.unknown_fields(object);
                custom.schema.prune(object);
                unknown
            }
            (None, Some(definition)) => {
                let decoded = decode::decode(definition, object);
                if let Some(mismatch) = decoded.mismatch {
                    return Err(ApiError::bad_request(mismatch));
                }
                decoded.unknown
            }
            (None, None) => Vec::new(),
        };
        if unknown.is_empty() {
            return Ok(());
        }
        let said = unknown.iter().map(|f| format!("unknown field {f:?}"));
        match options.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => warnings.extend(said),
            FieldValidation::Strict => {
                return Err(ApiError::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                    resource.kind,
                    resource.version,
                    resource.kind,
                    said.collect::<Vec<_>>().join(", ")
                )));
            }
        }
        Ok(())
    }

    fn check_type(&self, resource: &Resource, object: &Value) -> Result<(), ApiError> {
        if !object.is_object() {
            return Err(ApiError::bad_request("the body is not an object"));
        }
        let (kind, version) = (&object["kind"], &object["apiVersion"]);
        let wrong_kind = !kind.is_null() && *kind != resource.kind.as_str();
        let wrong_version = !version.is_null() && *version != resource.api_version().as_str();
        if wrong_kind || wrong_version {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({}, {}) does not match the expected API version ({}, {})",
                version.as_str().unwrap_or_default(),
                kind.as_str().unwrap_or_default(),
                resource.api_version(),
                resource.kind
            )));
        }
        Ok(())
    }

    fn set_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        object["apiVersion"] = resource.api_version().into();
        object["kind"] = resource.kind.clone().into();
        let meta = object_meta(object)?;
        if !resource.namespaced {
            meta.remove("namespace");
            return Ok(());
        }
        match meta.get("namespace").and_then(Value::as_str).filter(|n| !n.is_empty()) {
            Some(given) if given != namespace => Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({given} != {namespace})"
            ))),
            _ => {
                meta.insert("namespace".into(), namespace.into());
                Ok(())
            }
        }
    }

    fn check_namespace(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
        if !resource.namespaced {
            return Ok(());
        }
        let namespaces = GroupResource::new("", "namespaces");
        let key = ObjectKey::new(namespaces.clone(), "", namespace);
        let found = self.store.get(&key).ok_or_else(|| ApiError::not_found(&namespaces, namespace))?;
        // Events may still be written: they tell what happens to the rest.
        if found.meta("deletionTimestamp").is_some() && resource.storage.resource != "events" {
            return Err(ApiError::namespace_terminating(&resource.group_resource(), name, namespace));
        }
        Ok(())
    }

    /// A definition that is being deleted takes no new objects.
    fn check_definition(&self, resource: &Resource) -> Result<(), ApiError> {
        if resource.custom.is_none() {
            return Ok(());
        }
        let definitions = GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions");
        let key = ObjectKey::new(definitions, "", resource.storage.to_string());
        match self.store.get(&key) {
            Some(crd) if crd.meta("deletionTimestamp").is_some() => Err(ApiError::definition_terminating()),
            _ => Ok(()),
        }
    }

    fn after_write(&self, resource: &Resource, stored: &Stored) {
        if resource.kind == "CustomResourceDefinition"
            && stored.meta("deletionTimestamp").is_none()
            && let Err(causes) = self.registry.define(&stored.value)
        {
            // It was checked before it was stored.
            tracing::error!(?causes, "a checked definition was refused");
        }
    }
}

/// Whether `managedFields` are up to date already.
enum Tracked {
    No,
    Already,
}

/// Whether a create starts without status: nodes alone register with theirs.
fn drops_status(resource: &Resource) -> bool {
    resource.has_status() && resource.kind != "Node"
}

/// Whether a replacement must name the version it replaces, as the strategies of these kinds demand.
fn needs_version(resource: &Resource) -> bool {
    resource.custom.is_some()
        || matches!(
            resource.kind.as_str(),
            "CustomResourceDefinition" | "Lease" | "PodDisruptionBudget" | "APIService" | "RuntimeClass"
        )
}

/// Whether a deleted object has nothing left to wait for. Namespaces wait for what is in them, pods for their kubelet.
fn ends(resource: &Resource, object: &Value) -> bool {
    let meta = &object["metadata"];
    let pod = resource.storage == GroupResource::new("", "pods");
    !meta["deletionTimestamp"].is_null()
        && meta["finalizers"].as_array().is_none_or(Vec::is_empty)
        && resource.kind != "Namespace"
        && !(pod && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0)
}

/// An object that is being deleted takes no new finalizers.
fn check_finalizers(resource: &Resource, name: &str, before: &Value, object: &Value) -> Result<(), ApiError> {
    if before["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let of = |o: &Value| o["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let old = of(before);
    let new: Vec<String> = of(object).iter().filter(|f| !old.contains(f)).map(ToString::to_string).collect();
    if new.is_empty() {
        return Ok(());
    }
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        new.join(", ")
    );
    let cause = Cause::forbidden("metadata.finalizers", &why);
    Err(ApiError::invalid(&resource.group_kind(), name, vec![cause]))
}

pub(super) fn counts_generations(resource: &Resource) -> bool {
    resource.custom.is_some()
        || !matches!(resource.kind.as_str(), "Event" | "Lease" | "ConfigMap" | "Secret" | "Node")
}

/// What the generation counts: everything but metadata and status.
fn spec_of(object: &Value) -> Map<String, Value> {
    let mut out = object.as_object().cloned().unwrap_or_default();
    out.remove("metadata");
    out.remove("status");
    out
}

/// Keeps a write to its part: the main resource leaves status alone, `status` leaves all else alone.
fn confine(resource: &Resource, subresource: Option<&str>, before: &Value, object: &mut Value) {
    match subresource {
        Some("status") => {
            let mut confined = before.clone();
            if let Some(out) = confined.as_object_mut() {
                match object.get("status") {
                    Some(status) => out.insert("status".into(), status.clone()),
                    None => out.remove("status"),
                };
            }
            for field in ["managedFields", "labels", "annotations"] {
                // A real server lets `/status` change labels and annotations of built-in kinds only.
                if field == "managedFields" || resource.custom.is_none() {
                    copy_meta(object, &mut confined, field);
                }
            }
            if resource.kind == "Node" || resource.kind == "Pod" {
                copy_meta(object, &mut confined, "finalizers");
            }
            *object = confined;
        }
        _ if resource.has_status() => {
            let status = before.get("status").cloned();
            if let Some(out) = object.as_object_mut() {
                match status {
                    Some(status) => out.insert("status".into(), status),
                    None => out.remove("status"),
                };
            }
        }
        _ => {}
    }
}

fn copy_meta(from: &Value, to: &mut Value, field: &str) {
    if let Some(meta) = to["metadata"].as_object_mut() {
        match from["metadata"].get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
}

/// Metadata that only the server writes stays as it is.
fn keep_system_fields(before: &Value, object: &mut Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "namespace",
        "name",
        "generateName",
    ] {
        copy_meta(before, object, field);
    }
}

fn same_but_version(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(meta) = v["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            // Times of managers move with every write; they alone are no change.
            meta.remove("managedFields");
        }
        v
    };
    let managers = |v: &Value| {
        let entries = v["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        entries
            .into_iter()
            .map(|mut e| {
                e.as_object_mut().map(|o| o.remove("time"));
                e
            })
            .collect::<Vec<_>>()
    };
    strip(a) == strip(b) && managers(a) == managers(b)
}

pub(super) fn object_meta(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

fn name_of(object: &mut Value) -> Result<String, ApiError> {
    if let Some(name) = object["metadata"]["name"].as_str().filter(|n| !n.is_empty()) {
        return Ok(name.to_owned());
    }
    let Some(prefix) = object["metadata"]["generateName"].as_str().filter(|n| !n.is_empty()) else {
        return Err(ApiError::bad_request("name or generateName is required"));
    };
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    let suffix: String = (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    let prefix: String = prefix.chars().take(58).collect();
    let name = format!("{prefix}{suffix}");
    object["metadata"]["name"] = name.clone().into();
    Ok(name)
}

pub(crate) fn new_uid() -> String {
    let bits: u128 = rand::rng().random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn check_uid(resource: &Resource, object: &Value, current: &Stored, name: &str) -> Result<(), ApiError> {
    match object["metadata"]["uid"].as_str() {
        Some(uid) if !uid.is_empty() && Some(uid) != current.meta("uid") => Err(ApiError::conflict(
            &resource.group_resource(),
            name,
            &format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                current.meta("uid").unwrap_or_default()
            ),
        )),
        _ => Ok(()),
    }
}

fn commit_error(error: &CommitError, resource: &Resource, name: &str) -> ApiError {
    match error {
        CommitError::Exists(_) => ApiError::already_exists(&resource.group_resource(), name),
        CommitError::Conflict(_) => ApiError::modified(&resource.group_resource(), name),
        CommitError::NotFound(_) => ApiError::not_found(&resource.group_resource(), name),
    }
}

/// A stored object in the version of `resource`.
pub fn present(resource: &Resource, stored: &Value) -> Value {
    let api_version = resource.api_version();
    if stored["apiVersion"] == api_version.as_str() {
        return stored.clone();
    }
    if resource.plural == "events" {
        return events::to_events_v1(stored);
    }
    let mut out = stored.clone();
    out["apiVersion"] = api_version.into();
    out
}

/// An object of `resource`'s version in the version that is stored.
fn to_storage(resource: &Resource, object: Value) -> Value {
    if resource.storage_api_version == resource.api_version() {
        return object;
    }
    if resource.plural == "events" {
        return events::to_core_v1(&object);
    }
    let mut out = object;
    out["apiVersion"] = resource.storage_api_version.clone().into();
    out
}

fn crd_status(object: &mut Value, now: Timestamp) {
    let names = object["spec"]["names"].clone();
    let version: Vec<Value> = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|v| v["storage"] == true)
        .map(|v| v["name"].clone())
        .collect();
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let kept = |kind: &str| {
        let old = object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?;
        (old["status"] == "True").then(|| old["lastTransitionTime"].clone())
    };
    let conditions = json!([
        {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found",
         "lastTransitionTime": kept("NamesAccepted").unwrap_or_else(|| at.clone().into())},
        {"type": "Established", "status": "True", "reason": "InitialNamesAccepted",
         "message": "the initial names have been accepted",
         "lastTransitionTime": kept("Established").unwrap_or_else(|| at.into())},
    ]);
    object["status"] = json!({"acceptedNames": names, "storedVersions": version, "conditions": conditions});
}
