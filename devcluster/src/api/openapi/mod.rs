//! OpenAPI documents, v2 and v3: what `kubectl explain` reads and what tells clients that the server validates fields.

pub(super) mod proto;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::builtin::definitions::{
    API_VERSION_DESCRIPTION, DEFINITIONS, KIND_DESCRIPTION, OBJECT_META, REF_PREFIX, list_schema,
};
use crate::resources::{Resource, Served, api_version};

const METADATA_DESCRIPTION: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// Documents as they were last asked for: megabytes that change only when what is served changes.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<HashMap<String, (u64, Bytes)>>);

impl Cache {
    /// The document called `path` for what is served, made by `make` if it is not known yet.
    pub(super) fn get(
        &self,
        path: &str,
        served: &Served,
        make: impl FnOnce() -> Option<Bytes>,
    ) -> Option<Bytes> {
        if let Some((generation, document)) = self.0.lock().get(path)
            && *generation == served.generation
        {
            return Some(document.clone());
        }
        let document = make()?;
        self.0.lock().insert(path.to_owned(), (served.generation, document.clone()));
        Some(document)
    }
}

/// Name of a custom kind's definition: the group reversed, as a real server names it.
fn definition_name(r: &Resource) -> String {
    match &r.definition {
        Some(name) => name.clone(),
        None => {
            let reversed: Vec<&str> = r.group.rsplit('.').collect();
            format!("{}.{}.{}", reversed.join("."), r.version, r.kind)
        }
    }
}

fn kind_extension(r: &Resource, kind: &str) -> Value {
    json!([{"group": r.group, "kind": kind, "version": r.version}])
}

/// Gives schemas of whole objects within others the fields that every object has.
fn embed(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for field in ["items", "additionalProperties"] {
        map.get_mut(field).into_iter().for_each(embed);
    }
    for (_, property) in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        embed(property);
    }
    if map.get("x-kubernetes-embedded-resource").is_none_or(|embedded| *embedded != true) {
        return;
    }
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    properties["apiVersion"] = json!({"type": "string", "description": EMBEDDED_API_VERSION});
    properties["kind"] = json!({"type": "string", "description": EMBEDDED_KIND});
    properties["metadata"] = json!({
        "$ref": format!("{REF_PREFIX}{OBJECT_META}"), "description": METADATA_DESCRIPTION,
    });
    let mut required = map.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for field in ["kind", "apiVersion"] {
        if !required.iter().any(|name| name == field) {
            required.push(field.into());
        }
    }
    map.insert("required".into(), required.into());
}

/// A custom kind's schema with the fields that every object has.
fn custom_schema(r: &Resource, openapi: &Value) -> Value {
    let mut schema = openapi.clone();
    embed(&mut schema);
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"type": "string", "description": API_VERSION_DESCRIPTION});
    properties["kind"] = json!({"type": "string", "description": KIND_DESCRIPTION});
    properties["metadata"] = json!({
        "$ref": format!("{REF_PREFIX}{OBJECT_META}"),
        "description": METADATA_DESCRIPTION,
    });
    schema["x-kubernetes-group-version-kind"] = kind_extension(r, &r.kind);
    schema
}

/// What requests with a verb and their answers are made of; without a verb, what every group has.
const COMMON: &[(&str, &str)] = &[
    ("", "ObjectMeta"),
    ("", "APIResourceList"),
    ("delete", "DeleteOptions"),
    ("delete", "Status"),
    ("patch", "Patch"),
    ("watch", "WatchEvent"),
];
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// All schemas that some resources need, by definition name.
fn schemas<'a>(resources: impl Iterator<Item = &'a Resource>, all_built_in: bool) -> BTreeMap<String, Value> {
    let mut out: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: Vec<String> = Vec::new();
    for r in resources {
        let common = COMMON.iter().filter(|(verb, _)| verb.is_empty() || r.allows(verb));
        wanted.extend(common.map(|(_, name)| format!("{META}{name}")));
        let name = definition_name(r);
        if let Some(custom) = &r.custom {
            let schema = custom_schema(r, &custom.openapi);
            collect_refs(&schema, &mut wanted);
            out.insert(name.clone(), schema);
        } else {
            wanted.push(name.clone());
        }
        wanted.extend(r.subresources.iter().filter_map(|s| {
            let (group, version) = match s.version.is_empty() {
                true => (&r.group, &r.version),
                false => (&s.group, &s.version),
            };
            DEFINITIONS.of_kind(group, version, &s.kind).map(str::to_owned)
        }));
        if !r.allows("list") {
            continue;
        }
        let list_name = format!("{name}List");
        if r.custom.is_none() {
            wanted.push(list_name);
            continue;
        }
        let mut list = list_schema(&r.list_kind, &json!({"$ref": format!("{REF_PREFIX}{name}")}));
        list["x-kubernetes-group-version-kind"] = kind_extension(r, &r.list_kind);
        collect_refs(&list, &mut wanted);
        out.insert(list_name, list);
    }
    if all_built_in {
        wanted.extend(DEFINITIONS.schemas.keys().cloned());
    }
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) {
            continue;
        }
        if let Some(schema) = DEFINITIONS.get(&name) {
            collect_refs(schema, &mut wanted);
            out.insert(name, schema.clone());
        }
    }
    out
}

fn collect_refs(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REF_PREFIX))
            {
                out.push(name.to_owned());
            }
            map.values().for_each(|v| collect_refs(v, out));
        }
        Value::Array(items) => items.iter().for_each(|v| collect_refs(v, out)),
        _ => {}
    }
}

/// `/openapi/v2`.
pub fn v2(served: &Served) -> Value {
    let mut definitions = schemas(served.resources.iter().map(AsRef::as_ref), true);
    definitions.values_mut().for_each(forget_defaults);
    for r in served.resources.iter().filter(|r| r.custom.is_some()) {
        if let Some(schema) = definitions.get_mut(&definition_name(r)) {
            to_v2(schema);
            if schema.get("properties").is_none() {
                // The root stays an object.
                schema["type"] = "object".into();
            }
        }
    }
    let definitions: Map<String, Value> = definitions.into_iter().collect();
    let mut paths = Map::new();
    for r in &served.resources {
        for (path, operations) in operations(r, false) {
            paths.insert(path, operations);
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": super::VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

/// Version 2 says nothing of the defaults of built-in kinds.
fn forget_defaults(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("default");
    for field in ["items", "additionalProperties"] {
        map.get_mut(field).into_iter().for_each(forget_defaults);
    }
    for property in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        forget_defaults(property.1);
    }
}

/// `/openapi/v2` in protobuf.
pub fn v2_proto(served: &Served) -> Bytes {
    proto::encode(&v2(served)).into()
}

/// Drops from a custom schema what version 2 does not know or its clients cannot read, as `ToStructuralOpenAPIV2` in
/// `k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2` does.
fn to_v2(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for field in ["allOf", "oneOf", "anyOf", "not"] {
        map.remove(field);
    }
    let nullable = map.remove("nullable").is_some_and(|n| n == true);
    let open = map.get("x-kubernetes-preserve-unknown-fields").is_some_and(|p| *p == true);
    if nullable || open {
        map.remove("items");
        map.remove("properties");
    }
    let is = |map: &Map<String, Value>, kind: &str| map.get("type").is_some_and(|t| t == kind);
    if nullable || (is(map, "array") && !map.contains_key("items")) || (open && is(map, "object")) {
        map.remove("type");
    }
    // What may be null need not be there.
    let may_be_null: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, p)| p["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| !may_be_null.iter().any(|name| field == name));
    }
    for field in ["items", "additionalProperties"] {
        map.get_mut(field).into_iter().for_each(to_v2);
    }
    for property in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        to_v2(property.1);
    }
}

/// `/openapi/v3`: where each group version's document is.
pub fn v3_index(served: &Served) -> Value {
    let mut paths = Map::new();
    for (group, versions) in served.groups() {
        for version in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let url = format!("/openapi/v3/{path}?hash={}", served.generation);
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`.
pub fn v3(served: &Served, group: &str, version: &str) -> Option<Value> {
    let of: Vec<&Resource> = served
        .resources
        .iter()
        .map(AsRef::as_ref)
        .filter(|r| r.group == group && r.version == version)
        .collect();
    if of.is_empty() {
        return None;
    }
    let mut components: Map<String, Value> = schemas(of.iter().copied(), false).into_iter().collect();
    for (name, schema) in &mut components {
        to_v3(schema);
        // Both may be written as numbers, which version 2 cannot say.
        let kinds = match name.rsplit('.').next() {
            Some("IntOrString") => ["integer", "string"],
            Some("Quantity") => ["string", "number"],
            _ => continue,
        };
        if let Some(map) = schema.as_object_mut() {
            map.remove("type");
            map.insert("oneOf".into(), kinds.map(|kind| json!({"type": kind})).to_vec().into());
        }
    }
    let mut paths = Map::new();
    for r in &of {
        paths.extend(operations(r, true));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": super::VERSION},
        "paths": paths,
        "components": {"schemas": components},
    }))
}

/// References point into `components` in version 3, and one with siblings stands in `allOf`.
fn to_v3(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REF_PREFIX))
            {
                let reference = json!({"$ref": format!("#/components/schemas/{name}")});
                if map.len() == 1 {
                    *schema = reference;
                } else {
                    map.remove("$ref");
                    map.insert("allOf".into(), json!([reference]));
                }
                return;
            }
            map.values_mut().for_each(to_v3);
        }
        Value::Array(items) => items.iter_mut().for_each(to_v3),
        _ => {}
    }
}

/// Paths of a resource with the operations that clients look for.
fn operations(r: &Resource, v3: bool) -> Vec<(String, Value)> {
    let base = if r.group.is_empty() {
        format!("/api/{}", r.version)
    } else {
        format!("/apis/{}", api_version(&r.group, &r.version))
    };
    let base = if r.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", r.plural)
    } else {
        format!("{base}/{}", r.plural)
    };
    let gvk = json!({"group": r.group, "kind": r.kind, "version": r.version});
    let parameter = |name: &str| match v3 {
        true => json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}),
        false => json!({"name": name, "in": "query", "type": "string", "uniqueItems": true}),
    };
    let operation = |verb: &str, action: &str, write: bool| {
        let mut parameters = Vec::new();
        if write {
            parameters.extend(["dryRun", "fieldManager", "fieldValidation"].map(parameter));
        }
        if verb == "patch" {
            parameters.push(parameter("force"));
        }
        let mut op = json!({
            "operationId": format!("{verb}{}{}", r.kind, r.version),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
        });
        if verb == "patch" {
            let mut types = vec![
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ];
            if r.custom.is_none() {
                // kubectl chooses its patch by this: custom resources know no strategic merge.
                types.push("application/strategic-merge-patch+json");
            }
            match v3 {
                true => {
                    op["requestBody"] = json!({"content": types.iter().map(|t| ((*t).to_owned(), json!({"schema": {"type": "object"}}))).collect::<Map<_, _>>()})
                }
                false => op["consumes"] = json!(types),
            }
        }
        op
    };
    let mut collection = Map::new();
    let mut item = Map::new();
    for (verb, method, action, on_item, write) in [
        ("list", "get", "list", false, false),
        ("create", "post", "post", false, true),
        ("deletecollection", "delete", "deletecollection", false, false),
        ("get", "get", "get", true, false),
        ("update", "put", "put", true, true),
        ("patch", "patch", "patch", true, true),
        ("delete", "delete", "delete", true, false),
    ] {
        if r.allows(verb) {
            let target = if on_item { &mut item } else { &mut collection };
            target.insert(method.into(), operation(verb, action, write));
        }
    }
    vec![(format!("{base}/{{name}}"), Value::Object(item)), (base, Value::Object(collection))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_says_only_what_its_clients_read() {
        let mut schema = json!({
            "type": "object", "required": ["a", "b"],
            "properties": {
                "a": {"type": "string", "nullable": true, "pattern": "x"},
                "b": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"d": {"type": "string"}}},
                "e": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {"type": "string"}},
                "f": {"type": "array", "items": {"type": "object", "oneOf": []}},
            },
        });
        to_v2(&mut schema);
        assert_eq!(
            schema,
            json!({
                "type": "object", "required": ["b"],
                "properties": {
                    "a": {"pattern": "x"},
                    "b": {"x-kubernetes-int-or-string": true},
                    "c": {"x-kubernetes-preserve-unknown-fields": true},
                    "e": {"x-kubernetes-preserve-unknown-fields": true},
                    "f": {"type": "array", "items": {"type": "object"}},
                },
            })
        );
    }
}
