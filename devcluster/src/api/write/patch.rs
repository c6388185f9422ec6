//! Patches of every kind, and server-side apply: each makes the wanted whole, which is then written over the present one.

use serde_json::Value;

use super::super::Cluster;
use super::checks::{check_name, check_patched, check_uid};
use super::object::{drops_status, object_meta, present, stamp};
use super::{PatchKind, Tracked, WriteOptions, Written};
use crate::apply::{self, ApplyError};
use crate::builtin::decode::json_type;
use crate::patch;
use crate::resources::Resource;
use crate::server::status::{ApiError, Cause};
use crate::store::{ObjectKey, Stored, resource_version};

/// Attempts at a patch whose object keeps being changed by others.
const PATCH_ATTEMPTS: usize = 16;

/// An applied object whose texts cannot be read is one that cannot be converted.
fn unconverted(resource: &Resource, config: &Value, namespace: &str, error: ApiError) -> ApiError {
    let why = error.message.split_once(&format!("cannot be handled as a {}: ", resource.kind));
    let why = match why.map(|(_, why)| why) {
        Some(why) if why.starts_with("quantities must") || why.starts_with("unable to parse quantity") => {
            why.to_owned()
        }
        Some(why) if why.starts_with("illegal base64") => format!("error decoding from json: {why}"),
        _ => return error,
    };
    let kind = format!("{}/{}, Kind={}", resource.group, resource.version, resource.kind);
    let name = config["metadata"]["name"].as_str().unwrap_or_default();
    ApiError::unexpected(format!(
        "failed to convert new object ({namespace}/{name}; {kind}) to proper version: unable to convert unstructured \
         object to {kind}: {why}"
    ))
}

impl Cluster {
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
            let exists = current.is_some();
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
                    if exists
                        && e.code == 409
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
        if !matches!(kind, PatchKind::Json) && !body.is_object() {
            let prefix = if matches!(kind, PatchKind::Merge) { "error decoding patch: " } else { "" };
            return Err(ApiError::bad_request(format!(
                "{prefix}json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                json_type(body)
            )));
        }
        let mut patched = match kind {
            PatchKind::Json => patch::json(&before, body).map_err(|e| match e {
                patch::PatchError::Rejected(_) => ApiError::rejected(),
                _ if body.is_array() => ApiError::rejected(),
                _ => ApiError::bad_request(format!(
                    "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                    json_type(body)
                )),
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
                    .map_err(|e| match e {
                        patch::PatchError::Unexpected(why) => ApiError::unexpected(why),
                        other => ApiError::bad_request(other.to_string()),
                    })?
            }
        };
        if !patched.is_object() {
            return Err(ApiError::rejected());
        }
        if let Some(asked) = resource_version(&patched)
            && asked != current.revision
        {
            return Err(ApiError::modified(&resource.group_resource(), &key.name));
        }
        if let Some(uid) = patched["metadata"]["uid"].as_str()
            && Some(uid) != current.meta("uid")
        {
            // A real server looks twice: at the metadata alone, and as part of the object.
            let cause = Cause::invalid("metadata.uid", &uid.into(), "field is immutable");
            return Err(ApiError::invalid(&resource.group_kind(), &key.name, vec![cause.clone(), cause]));
        }
        self.keep_namespace(resource, &key.namespace, &mut patched)?;
        check_name(&patched, &key.name)?;
        let strategic = matches!(kind, PatchKind::Strategic).then_some(body);
        let mut warnings = check_patched(resource, &mut patched, strategic, options)?;
        // What is there twice has been said.
        let options = WriteOptions { repeated: Vec::new(), ..options.clone() };
        let mut written =
            self.write_over(resource, key, subresource, patched, current, &options, Tracked::No)?;
        warnings.append(&mut written.warnings);
        Ok(Written { warnings, ..written })
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
        let sent = config;
        check_applied_type(resource, sent)?;
        let config = sent;
        let mut warnings = Vec::new();
        let live = current.map(|c| present(resource, &c.value));
        let request = apply::Request {
            manager: options.manager.clone(),
            force: options.force,
            subresource: subresource.map(str::to_owned),
            now: options.now,
            typing: resource.typing.clone(),
        };
        let applied = apply::apply_with_last(live.as_ref(), config, &request);
        let mut merged = applied.map_err(|e| match e {
            ApplyError::Conflict(conflict) => ApiError::apply_conflict(&conflict),
            ApplyError::Invalid(why) => ApiError::bad_request(why),
            ApplyError::Untypable(why) => ApiError::unexpected(why),
        })?;
        self.check_unknown(resource, &mut merged, options, &mut warnings)
            .map_err(|error| unconverted(resource, config, &key.namespace, error))?;
        match current {
            Some(current) => {
                if let Some(asked) = resource_version(config)
                    && asked != current.revision
                {
                    return Err(ApiError::modified(&resource.group_resource(), &key.name));
                }
                check_uid(resource, config, current, &key.name)?;
                self.keep_namespace(resource, &key.namespace, &mut merged)?;
                check_name(&merged, &key.name)?;
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
                self.keep_namespace(resource, &key.namespace, &mut object)?;
                check_name(&object, &key.name)?;
                let meta = object_meta(&mut object)?;
                stamp(resource, meta, options.now);
                if drops_status(resource) {
                    object.as_object_mut().map(|o| o.remove("status"));
                }
                let object = self.admit(resource, object, None, None, options, &mut warnings)?;
                self.store_new(resource, &key.namespace, &key.name, object, options, warnings)
            }
        }
    }
}

/// An applied configuration must say its type, and that of the path.
fn check_applied_type(resource: &Resource, config: &Value) -> Result<(), ApiError> {
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version == resource.api_version() && kind == resource.kind {
        return Ok(());
    }
    let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
    Err(ApiError::bad_request(format!("invalid object type: {version}, Kind={kind}")))
}
