//! Create, update, patch, delete: every write goes through one pipeline of decode, default, validate, commit.

mod admission;
mod checks;
mod object;
mod patch;

use jiff::Timestamp;
use serde_json::Value;

use super::Cluster;
use crate::apply;
use crate::builtin::{decode, defaults, validate, warnings as builtin_warnings};
use crate::gvk::GroupKind;
use crate::resources::Resource;
use crate::server::status::{ApiError, Cause};
use crate::store::{CommitError, Expected, ObjectKey, Stored, bump_generation, resource_version};
use checks::{check_finalizers, check_name, check_uid, needs_version, undecodable};
pub(crate) use object::new_uid;
pub use object::present;
use object::{
    confine, counts_metadata, crd_status, drops_status, ends, keep_system_fields, name_of, same_but_version,
    spec_of, stamp, to_storage, unnamed,
};
pub(super) use object::{counts_generations, crd_ending, object_meta};

/// Who writes what a real API server writes of itself.
const SERVER: &str = "kube-apiserver";

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
    /// Paths of fields that the body has twice.
    pub repeated: Vec<String>,
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
        let name = name_of(&mut object);
        self.check_namespace(resource, namespace, &name)?;
        self.check_definition(resource)?;
        let meta = object_meta(&mut object)?;
        meta.remove("resourceVersion");
        meta.remove("deletionTimestamp");
        meta.remove("deletionGracePeriodSeconds");
        meta.remove("selfLink");
        stamp(resource, meta, options.now);
        if drops_status(resource) {
            object.as_object_mut().map(|o| o.remove("status"));
        }
        let mut warnings = Vec::new();
        let admitted = self.admit(resource, object, None, None, options, &mut warnings);
        let object = admitted.map_err(|error| error.warned(&warnings))?;
        let object =
            apply::track_update(None, &object, &options.manager, None, options.now, &resource.typing);
        self.store_new(resource, namespace, &name, object, options, warnings)
    }

    fn store_new(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        mut object: Value,
        options: &WriteOptions,
        warnings: Vec<String>,
    ) -> Result<Written, ApiError> {
        self.complete(resource, namespace, &mut object)?;
        let key = ObjectKey::new(resource.storage.clone(), namespace, name);
        let mut object = to_storage(resource, object);
        refuse(resource, name, self.faults(resource, &object, None, None))?;
        self.allocate(resource, &mut object);
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
        if resource.kind == "CustomResourceDefinition" {
            self.establish(resource, &key, &stored, options.now)?;
        }
        Ok(Written { object: stored.value.clone(), created: true, warnings })
    }

    /// Accepts the names of a new definition, which a real server does in a write of its own.
    fn establish(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        new: &Stored,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let mut object = new.value.clone();
        crd_status(&mut object, now);
        let object =
            apply::track_update(Some(&new.value), &object, SERVER, Some("status"), now, &resource.typing);
        match self.store.commit(key, Expected::Revision(new.revision), Some(object)) {
            // Who wrote in between has accepted them.
            Ok(_) | Err(CommitError::Conflict(_)) => Ok(()),
            Err(e) => Err(commit_error(&e, resource, &key.name)),
        }
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
        check_name(&object, &key.name)?;
        let current =
            self.store.get(key).ok_or_else(|| ApiError::not_found(&resource.group_resource(), &key.name))?;
        if let Some(version) = object["metadata"]["resourceVersion"].as_str()
            && !version.is_empty()
            && version.parse::<u64>().is_err()
        {
            let why = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
            return Err(ApiError::unexpected(why));
        }
        match resource_version(&object) {
            Some(asked) if asked != 0 && asked != current.revision => {
                return Err(ApiError::modified(&resource.group_resource(), &key.name));
            }
            None | Some(0) if needs_version(resource) => {
                let none = if resource.custom.is_some() { "0" } else { "0x0" };
                let cause = Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {none}: must be specified for an update"),
                    field: "metadata.resourceVersion".into(),
                };
                // A real server names the resource of its own kinds' place here.
                let kind = match &resource.custom {
                    Some(_) => GroupKind::new(&resource.group, &resource.plural),
                    None => resource.group_kind(),
                };
                return Err(ApiError::invalid(&kind, &key.name, vec![cause]));
            }
            _ => {}
        }
        check_uid(resource, &object, &current, &key.name)?;
        self.write_over(resource, key, subresource, object, &current, options, Tracked::No)
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
            return Err(ApiError::rejected());
        }
        object_meta(&mut object)?;
        if before["kind"] != object["kind"] && !object["kind"].is_null() {
            return Err(ApiError::bad_request("an object's kind cannot change"));
        }
        let asked_labels = object["metadata"].get("labels").cloned();
        confine(resource, subresource, &before, &mut object);
        keep_system_fields(&before, &mut object);
        let mut warnings = Vec::new();
        let admitted = self.admit(resource, object, Some(&before), subresource, options, &mut warnings);
        let mut object = admitted.map_err(|error| error.warned(&warnings))?;
        if subresource != Some("status")
            && (spec_of(&object) != spec_of(&before) || counts_metadata(resource, &object, &before))
            && counts_generations(resource)
        {
            bump_generation(&mut object);
        }
        if matches!(tracked, Tracked::No) {
            let track = |object: &Value| {
                let (manager, now) = (&options.manager, options.now);
                apply::track_update(Some(&before), object, manager, subresource, now, &resource.typing)
            };
            // A real server puts labels on record that `/status` of a custom resource was asked to set, and does not set.
            match asked_labels.filter(|_| resource.custom.is_some() && subresource == Some("status")) {
                Some(labels) => {
                    let mut asked = object.clone();
                    asked["metadata"]["labels"] = labels;
                    let managed = track(&asked)["metadata"]["managedFields"].take();
                    object_meta(&mut object)?.insert("managedFields".into(), managed);
                }
                None => object = track(&object),
            }
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
            self.store
                .commit(key, Expected::Revision(current.revision), None)
                .map_err(|e| commit_error(&e, resource, &key.name))?;
            last["metadata"]["resourceVersion"] = current.revision.to_string().into();
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
                causes.extend(validate::custom_metadata(&object["metadata"], before.is_some()));
                let blocked = causes.iter().any(Cause::blocks_rules);
                let found = custom.schema.validate_after(&object, before, blocked);
                let mut faults: Vec<Cause> = found.iter().map(Cause::from).collect();
                if subresource == Some("status") {
                    // A real server checks the status by itself, and names what is in it from there.
                    let relative = |cause: &mut Cause| {
                        let (status, inside) = ("status.", cause.field.clone());
                        if let Some(rest) = inside.strip_prefix(status) {
                            let body = " in body ";
                            cause.message =
                                cause.message.replace(&format!("{inside}{body}"), &format!("{rest}{body}"));
                        }
                    };
                    faults.iter_mut().for_each(relative);
                }
                // That rules were not checked is said last.
                let unchecked = faults.iter().position(|cause| cause.field == "<nil>");
                let at = unchecked.unwrap_or(faults.len());
                faults.splice(at..at, checks::scale_faults(custom, &object));
                causes.append(&mut faults);
            }
            None => {
                if let Some(definition) = &resource.definition {
                    let decoded = decode::decode(definition, &mut object);
                    if let Some(mismatch) = decoded.mismatch {
                        return Err(undecodable(resource, &mismatch));
                    }
                }
                defaults::apply(&resource.kind, &mut object);
                if before.is_none() && resource.kind == "DaemonSet" {
                    defaults::count_template(&mut object, None);
                }
                if let Some(before) = before {
                    defaults::on_update(&resource.kind, &mut object, before);
                    let stored = |object: &Value| to_storage(resource, object.clone());
                    let (new, old) = (stored(&object), stored(before));
                    causes.extend(self.faults(resource, &new, Some(&old), subresource));
                }
            }
        }
        refuse(resource, &name, causes)?;
        if resource.custom.is_none() && subresource.is_none() {
            warnings.extend(builtin_warnings::of(&resource.kind, &object, before));
        }
        if resource.kind == "CustomResourceDefinition" && subresource.is_none() {
            self.registry
                .check(&object)
                .map_err(|causes| ApiError::invalid(&resource.group_kind(), &name, causes))?;
            match before {
                None => unnamed(&mut object),
                Some(_) => crd_status(&mut object, options.now),
            }
        }
        Ok(object)
    }

    /// What is wrong with an object of a built-in kind, as it would be stored.
    fn faults(
        &self,
        resource: &Resource,
        new: &Value,
        old: Option<&Value>,
        subresource: Option<&str>,
    ) -> Vec<Cause> {
        if resource.custom.is_some() {
            return Vec::new();
        }
        let api_version = resource.api_version();
        validate::check(&validate::Write {
            kind: &resource.kind,
            api_version: &api_version,
            new,
            old,
            subresource,
        })
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

/// 422 if anything is wrong.
fn refuse(resource: &Resource, name: &str, causes: Vec<Cause>) -> Result<(), ApiError> {
    match causes.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(&resource.group_kind(), name, causes)),
    }
}

/// Whether `managedFields` are up to date already.
enum Tracked {
    No,
    Already,
}

fn commit_error(error: &CommitError, resource: &Resource, name: &str) -> ApiError {
    match error {
        CommitError::Exists(_) => ApiError::already_exists(&resource.group_resource(), name),
        CommitError::Conflict(_) => ApiError::modified(&resource.group_resource(), name),
        CommitError::NotFound(_) => ApiError::not_found(&resource.group_resource(), name),
    }
}
