//! What a write must pass before it is looked at as a whole: its type, namespace, fields, identity and finalizers.

use serde_json::Value;

use super::super::Cluster;
use super::object::object_meta;
use super::{FieldValidation, WriteOptions};
use crate::builtin::decode;
use crate::gvk::GroupKind;
use crate::patch::go_text;
use crate::resources::{Custom, Resource};
use crate::server::status::{ApiError, Cause};
use crate::store::{GroupResource, ObjectKey, Stored};

impl Cluster {
    pub(super) fn check_unknown(
        &self,
        resource: &Resource,
        object: &mut Value,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let unknown = decode_known(resource, object).map_err(|why| undecodable(resource, &why))?;
        if unknown.is_empty() && options.repeated.is_empty() {
            return Ok(());
        }
        let said = complaints(&options.repeated, &unknown);
        match options.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => warnings.extend(said),
            FieldValidation::Strict => {
                let said = said.join(", ");
                return Err(undecodable(resource, &format!("strict decoding error: {said}")));
            }
        }
        Ok(())
    }

    pub(super) fn check_type(&self, resource: &Resource, object: &Value) -> Result<(), ApiError> {
        if !object.is_object() {
            return Err(ApiError::bad_request("the body is not an object"));
        }
        let (kind, version) = (&object["kind"], &object["apiVersion"]);
        let wrong_kind = !kind.is_null() && *kind != resource.kind.as_str();
        let wrong_version = !version.is_null() && *version != resource.api_version().as_str();
        if (wrong_kind || wrong_version) && resource.custom.is_none() {
            let why = self.unconvertible(resource, object);
            let given = kind.as_str().unwrap_or(&resource.kind);
            return Err(ApiError::bad_request(format!(
                "{given} in version {:?} cannot be handled as a {}: {why}",
                resource.version, resource.kind
            )));
        }
        if resource.custom.is_some() && kind.as_str().is_none_or(str::is_empty) {
            let body = object.to_string();
            let start: String = body.chars().take(30).collect();
            let start = if start.len() < body.len() { format!("{start} ...") } else { start };
            return Err(ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): Object 'Kind' is missing in '{body}' ({start})",
                resource.kind
            )));
        }
        if wrong_kind && !wrong_version {
            let given = kind.as_str().unwrap_or_default();
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let mut causes = vec![Cause::invalid("kind", kind, &format!("must be {}", resource.kind))];
            if let Some(custom) = &resource.custom {
                // What else is wrong is told as well.
                let mut object = object.clone();
                custom.schema.prune(&mut object);
                causes.extend(custom.schema.validate_after(&object, None, false).iter().map(Cause::from));
            }
            return Err(ApiError::invalid(&GroupKind::new(&resource.group, given), name, causes));
        }
        if wrong_version {
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

    /// Why an object of another type is not what a path takes.
    fn unconvertible(&self, resource: &Resource, object: &Value) -> String {
        let kind = object["kind"].as_str().unwrap_or(&resource.kind).to_owned();
        let given = object["apiVersion"].as_str().map_or_else(|| resource.api_version(), str::to_owned);
        let (group, version) = given.split_once('/').unwrap_or(("", &given));
        let known = self.registry.served().resources.iter().any(|other| {
            other.custom.is_none() && other.kind == kind && other.group == group && other.version == version
        });
        if known {
            let internal = match resource.group.split('.').next() {
                None | Some("") => "core",
                Some(first) => first,
            };
            format!("converting ({version}.{kind}) to ({internal}.{}): unknown conversion", resource.kind)
        } else {
            format!(
                "no kind {kind:?} is registered for version {given:?} in scheme \"pkg/runtime/scheme.go:111\""
            )
        }
    }

    pub(super) fn set_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        object["apiVersion"] = resource.api_version().into();
        object["kind"] = resource.kind.clone().into();
        self.keep_namespace(resource, namespace, object)
    }

    /// The object must be in the namespace that the path names; it says so if it says nothing.
    pub(super) fn keep_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        let meta = object_meta(object)?;
        if !resource.namespaced {
            meta.remove("namespace");
            return Ok(());
        }
        match meta.get("namespace").and_then(Value::as_str).filter(|n| !n.is_empty()) {
            Some(given) if given != namespace => Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            )),
            _ => {
                meta.insert("namespace".into(), namespace.into());
                Ok(())
            }
        }
    }

    pub(super) fn check_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
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
    pub(super) fn check_definition(&self, resource: &Resource) -> Result<(), ApiError> {
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
}

/// What is said of fields that are there twice, or are not known.
fn complaints(repeated: &[String], unknown: &[String]) -> Vec<String> {
    let repeated = repeated.iter().map(|field| format!("duplicate field {field:?}"));
    repeated.chain(unknown.iter().map(|field| format!("unknown field {field:?}"))).collect()
}

/// What is wrong with the counts that a custom resource is scaled by.
pub(super) fn scale_faults(custom: &Custom, object: &Value) -> Vec<Cause> {
    let Some(scale) = &custom.scale else { return Vec::new() };
    let mut causes = Vec::new();
    for path in [&scale.spec, &scale.status] {
        let Some(count) = object.pointer(&path.replace('.', "/")).filter(|count| !count.is_null()) else {
            continue;
        };
        let fault = match count.as_i64() {
            Some(..=-1) => (count, "should be a non-negative integer".to_owned()),
            Some(n) if n > i64::from(i32::MAX) => {
                (count, format!("should be less than or equal to {}", i32::MAX))
            }
            Some(_) => continue,
            None => {
                let found = match count {
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "[]interface {}",
                    Value::Object(_) => "map[string]interface {}",
                    _ => "float64",
                };
                let shown = go_text(count);
                let shown = shown.strip_suffix(".0").unwrap_or(&shown);
                let why = format!("{path} accessor error: {shown} is of the type {found}, expected int64");
                (&Value::Null, why)
            }
        };
        let value = if fault.0.is_null() { Value::from(0) } else { fault.0.clone() };
        causes.push(Cause::invalid(path.as_str(), &value, &fault.1));
    }
    causes
}

/// 400 for a body that is no object of its kind.
pub(super) fn undecodable(resource: &Resource, why: &str) -> ApiError {
    let (kind, version) = (&resource.kind, &resource.version);
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// Drops the fields that the schema does not know, and names them.
///
/// # Errors
/// The first field of a wrong JSON type, in the words of Go's decoder.
pub(super) fn decode_known(resource: &Resource, object: &mut Value) -> Result<Vec<String>, String> {
    Ok(match (&resource.custom, &resource.definition) {
        (Some(custom), _) => {
            let unknown = custom.schema.unknown_fields(object);
            custom.schema.prune(object);
            unknown
        }
        (None, Some(definition)) => {
            let decoded = decode::decode(definition, object);
            if let Some(mismatch) = decoded.mismatch {
                return Err(mismatch);
            }
            decoded.unknown
        }
        (None, None) => Vec::new(),
    })
}

/// Drops the fields of a patched object that the schema does not know; what was patched had none, so they are the patch's.
/// Returns warnings.
///
/// # Errors
/// 422 as a real server words it: with the patch, where that is a strategic one, else with the object that it made.
pub(super) fn check_patched(
    resource: &Resource,
    patched: &mut Value,
    strategic: Option<&Value>,
    options: &WriteOptions,
) -> Result<Vec<String>, ApiError> {
    let whole = patched.to_string();
    let refuse = |why: &str| {
        let shown = strategic.map_or_else(|| whole.clone(), |patch| go_text(&merged_away(patch)));
        let cause = Cause::invalid("patch", &shown.into(), why);
        Err(ApiError::invalid(&GroupKind::new("", ""), "", vec![cause]))
    };
    if let (Some(kind), true) = (patched["kind"].as_str(), resource.custom.is_none())
        && kind != resource.kind
    {
        return refuse(&format!(
            "no kind {kind:?} is registered for version {:?} in scheme \"pkg/runtime/scheme.go:111\"",
            resource.api_version()
        ));
    }
    let unknown = match decode_known(resource, patched) {
        Ok(unknown) => unknown,
        Err(mismatch) if strategic.is_some() => return refuse(&unstructured(&mismatch)),
        Err(mismatch) => return refuse(&mismatch),
    };
    let said = complaints(&options.repeated, &unknown);
    match options.field_validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !said.is_empty() => {
            refuse(&format!("strict decoding error: {}", said.join(", ")))
        }
        FieldValidation::Warn | FieldValidation::Strict => Ok(said),
    }
}

/// A strategic patch as merging leaves it: lists that it orders are gone from it.
fn merged_away(patch: &Value) -> Value {
    const ORDER: &str = "$setElementOrder/";
    let Value::Object(fields) = patch else { return patch.clone() };
    let ordered: Vec<&str> = fields.keys().filter_map(|field| field.strip_prefix(ORDER)).collect();
    let left = |field: &String| !field.starts_with(ORDER) && !ordered.contains(&field.as_str());
    fields
        .iter()
        .filter(|(field, _)| left(field))
        .map(|(field, value)| (field.clone(), merged_away(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What Go's converter of untyped objects says of a value of a wrong type, from what its decoder says.
fn unstructured(mismatch: &str) -> String {
    let parts = mismatch
        .strip_prefix("json: cannot unmarshal ")
        .and_then(|rest| rest.split_once(" into Go struct field "))
        .and_then(|(found, rest)| Some((found, rest.split_once(" of type ")?.1)));
    let Some((found, wanted)) = parts else { return mismatch.to_owned() };
    let kind = match found.split(' ').next() {
        Some("array") => "slice",
        Some("object") => "map",
        Some("number") => {
            if found.contains('.') {
                "float64"
            } else {
                "int64"
            }
        }
        Some(other) => other,
        None => "invalid",
    };
    match wanted {
        wanted if wanted.starts_with("[]") => format!("cannot restore slice from {kind}"),
        wanted if wanted.starts_with("map[") => format!("cannot restore map from {kind}"),
        wanted if wanted.contains('.') => format!("cannot restore struct from: {kind}"),
        wanted => format!("unrecognized type: {wanted}"),
    }
}

/// Whether a replacement must name the version it replaces, as the strategies of these kinds demand.
pub(super) fn needs_version(resource: &Resource) -> bool {
    resource.custom.is_some()
        || matches!(
            resource.kind.as_str(),
            "CustomResourceDefinition" | "Lease" | "PodDisruptionBudget" | "APIService" | "RuntimeClass"
        )
}

/// An object that is being deleted takes no new finalizers.
pub(super) fn check_finalizers(
    resource: &Resource,
    name: &str,
    before: &Value,
    object: &Value,
) -> Result<(), ApiError> {
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
    // A real server looks twice at built-in kinds: at the metadata alone, and as part of the object.
    let causes = match resource.custom {
        None => vec![cause.clone(), cause],
        Some(_) => vec![cause],
    };
    Err(ApiError::invalid(&resource.group_kind(), name, causes))
}

/// The object must be the one that the path names.
pub(super) fn check_name(object: &Value, name: &str) -> Result<(), ApiError> {
    match object["metadata"]["name"].as_str().unwrap_or_default() {
        given if given == name => Ok(()),
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given => Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
    }
}

pub(super) fn check_uid(
    resource: &Resource,
    object: &Value,
    current: &Stored,
    name: &str,
) -> Result<(), ApiError> {
    match object["metadata"]["uid"].as_str() {
        Some(uid) if !uid.is_empty() && Some(uid) != current.meta("uid") => Err(ApiError::conflict(
            &resource.group_resource(),
            name,
            &format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{}{name}, ResourceVersion: 0, \
                 AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                match &resource.custom {
                    Some(_) => format!("{}/{}", resource.group, resource.plural),
                    None => resource.plural.clone(),
                },
                current.meta("namespace").map_or_else(String::new, |namespace| format!("{namespace}/")),
                current.meta("uid").unwrap_or_default()
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{go_text, merged_away, unstructured};

    #[test]
    fn a_merged_patch_has_lost_its_ordered_lists() {
        let patch = json!({"metadata": {"a": 1}, "spec": {"$setElementOrder/containers": [], "containers": [{}], "b": 2}});
        assert_eq!(merged_away(&patch), json!({"metadata": {"a": 1}, "spec": {"b": 2}}));
    }

    #[test]
    fn wrong_types_are_told_as_the_converter_tells_them() {
        let told = |found: &str, wanted: &str| {
            unstructured(&format!("json: cannot unmarshal {found} into Go struct field A.b of type {wanted}"))
        };
        assert_eq!(told("string", "int32"), "unrecognized type: int32");
        assert_eq!(told("string", "[]v1.Container"), "cannot restore slice from string");
        assert_eq!(told("array", "map[string]string"), "cannot restore map from slice");
        assert_eq!(told("number 5", "v1.PodSpec"), "cannot restore struct from: int64");
        assert_eq!(unstructured("quantities must match"), "quantities must match");
    }

    #[test]
    fn json_reads_as_go_prints_it() {
        let patch = json!({"spec": {"b": null, "a": [1, "x", {}]}, "m": true});
        assert_eq!(go_text(&patch), "map[m:true spec:map[a:[1 x map[]] b:<nil>]]");
    }
}
