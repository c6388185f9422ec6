//! Reads a request body as a built-in type, as the API server's typed decoder does: unknown fields are dropped and reported,
//! wrong JSON types are errors, missing required fields are reported.

use serde_json::Value;

use super::definitions::DEFINITIONS;
use super::quantity;
use crate::server::status::Cause;

const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
/// Fields that the schema requires but the API accepts without.
const LENIENT: &[(&str, &str)] = &[("io.k8s.api.discovery.v1.EndpointSlice", "endpoints")];

/// Definitions that hold any JSON: the schemas inside CustomResourceDefinitions, embedded objects.
const ANY_JSON: &[&str] = &[
    "JSON",
    "JSONSchemaPropsOrArray",
    "JSONSchemaPropsOrBool",
    "JSONSchemaPropsOrStringArray",
    "RawExtension",
    "FieldsV1",
];

/// What decoding found.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Paths of unknown fields, dropped.
    pub unknown: Vec<String>,
    /// Missing fields.
    pub required: Vec<Cause>,
    /// The first field of a wrong type, worded as Go's decoder words it.
    pub mismatch: Option<String>,
}

/// Decodes `object` in place as `definition`.
pub fn decode(definition: &str, object: &mut Value) -> Decoded {
    let mut out = Decoded::default();
    if let Some(schema) = DEFINITIONS.get(definition) {
        let at = At { path: String::new(), go_path: String::new(), in_status: false };
        walk(schema, Some(definition), definition, object, &at, &mut out);
    }
    out
}

struct At {
    path: String,
    /// The path as Go prints it: without list indexes.
    go_path: String,
    in_status: bool,
}

fn child(at: &At, field: &str) -> At {
    let join = |p: &str| if p.is_empty() { field.to_owned() } else { format!("{p}.{field}") };
    At {
        path: join(&at.path),
        go_path: join(&at.go_path),
        in_status: at.in_status || (at.path.is_empty() && field == "status"),
    }
}

fn walk(schema: &Value, name: Option<&str>, owner: &str, value: &mut Value, at: &At, out: &mut Decoded) {
    if name == Some(QUANTITY) {
        let text = match value {
            Value::Number(n) => n.to_string(),
            Value::String(text) => std::mem::take(text),
            other => return mismatch(out, owner, at, json_type(other), "resource.Quantity"),
        };
        match quantity::canonical(&text) {
            Some(canonical) => *value = canonical.into(),
            None => {
                out.mismatch.get_or_insert_with(|| quantity::complaint(&text).to_owned());
                *value = text.into();
            }
        }
        return;
    }
    if let (Some(TIME | MICRO_TIME), Value::String(text)) = (name, &*value)
        && !text.is_empty()
        && text.parse::<jiff::Timestamp>().is_err()
    {
        let fraction = if name == Some(MICRO_TIME) { ".000000" } else { "" };
        out.mismatch.get_or_insert_with(|| {
            let layout = format!("2006-01-02T15:04:05{fraction}Z07:00");
            format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
        });
        return;
    }
    if name == Some(INT_OR_STRING) {
        if !(value.is_number() || value.is_string()) {
            mismatch(out, owner, at, json_type(value), "intstr.IntOrString");
        }
        return;
    }
    if name.and_then(|n| n.rsplit('.').next()).is_some_and(|n| ANY_JSON.contains(&n)) {
        return;
    }
    let expected = schema.get("type").and_then(Value::as_str);
    match (expected, value) {
        (Some("object"), Value::Object(map)) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                map.retain(|_, v| !v.is_null());
                let unknown: Vec<String> =
                    map.keys().filter(|k| !properties.contains_key(*k)).cloned().collect();
                for field in unknown {
                    out.unknown.push(child(at, &field).path);
                    map.remove(&field);
                }
                for (field, item) in map.iter_mut() {
                    let (schema, name) = DEFINITIONS.resolve(&properties[field]);
                    walk(schema, name, name_or(name, owner), item, &child(at, field), out);
                }
                // A list or map of nothing is as good as none, where it may be absent.
                let needed = |field: &str| {
                    schema["required"].as_array().is_some_and(|all| all.iter().any(|f| f == field))
                };
                map.retain(|field, item| needed(field) || !holds_nothing(&properties[field], item));
                if !at.in_status {
                    for field in schema["required"].as_array().into_iter().flatten() {
                        let Some(field) = field.as_str().filter(|f| !map.contains_key(*f)) else { continue };
                        if !LENIENT.contains(&(owner, field)) {
                            out.required.push(Cause::required(child(at, field).path, ""));
                        }
                    }
                }
            } else if let Some(items) = schema.get("additionalProperties").filter(|s| s.is_object()) {
                let (schema, name) = DEFINITIONS.resolve(items);
                for (key, item) in map.iter_mut() {
                    if item.is_null() && schema["type"] == "string" {
                        *item = "".into();
                    }
                    let inner = At { path: format!("{}.{key}", at.path), ..child(at, key) };
                    let inner = At { go_path: at.go_path.clone(), ..inner };
                    walk(schema, name, name_or(name, owner), item, &inner, out);
                    // Amounts of resources are kept in thousandths at the finest.
                    if name == Some(QUANTITY)
                        && let Some(rounded) = item.as_str().and_then(quantity::in_thousandths)
                    {
                        *item = rounded.into();
                    }
                }
            }
        }
        (Some("array"), Value::Array(items)) => {
            let (schema, name) = DEFINITIONS.resolve(&schema["items"]);
            for (i, item) in items.iter_mut().enumerate() {
                let inner = At {
                    path: format!("{}[{i}]", at.path),
                    go_path: at.go_path.clone(),
                    in_status: at.in_status,
                };
                walk(schema, name, name_or(name, owner), item, &inner, out);
            }
        }
        (Some("string"), Value::String(text)) => {
            if schema["format"] == "byte"
                && let Some(at) =
                    text.bytes().position(|b| !(b.is_ascii_alphanumeric() || b"+/=\r\n".contains(&b)))
            {
                out.mismatch.get_or_insert_with(|| format!("illegal base64 data at input byte {at}"));
            }
        }
        (None, _) if name.is_some_and(|n| n.ends_with(".ByteString")) => {}
        (Some("boolean"), Value::Bool(_)) | (Some("number"), Value::Number(_)) | (None, _) => {}
        (Some("integer"), Value::Number(n)) => {
            if !n.is_i64() && n.as_f64().is_none_or(|f| f.fract() != 0.0) {
                mismatch(out, owner, at, &format!("number {n}"), &go_type(schema, name));
            }
        }
        (Some(_), Value::Null) => {}
        (Some(_), other) => {
            let go = go_type(schema, name);
            mismatch(out, owner, at, json_type(other), &go);
        }
    }
}

/// Whether a value is an empty list or an empty map of a schema's.
fn holds_nothing(schema: &Value, value: &Value) -> bool {
    let (schema, name) = DEFINITIONS.resolve(schema);
    match value {
        Value::Array(items) => items.is_empty() && name.is_none() && schema["type"] == "array",
        Value::Object(map) => {
            map.is_empty()
                && name.is_none()
                && schema.get("additionalProperties").is_some_and(Value::is_object)
        }
        _ => false,
    }
}

fn name_or<'a>(name: Option<&'a str>, owner: &'a str) -> &'a str {
    name.unwrap_or(owner)
}

fn mismatch(out: &mut Decoded, owner: &str, at: &At, found: &str, go: &str) {
    if out.mismatch.is_none() {
        let owner = owner.rsplit('.').next().unwrap_or(owner);
        out.mismatch = Some(format!(
            "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {go}",
            at.go_path
        ));
    }
}

/// The type of a value as Go names it.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(schema: &Value, name: Option<&str>) -> String {
    if let Some(name) = name {
        let mut parts = name.rsplit('.');
        let (kind, version) = (parts.next().unwrap_or(name), parts.next().unwrap_or(""));
        return format!("{version}.{kind}");
    }
    match schema["type"].as_str() {
        Some("integer") => schema["format"].as_str().unwrap_or("int64").to_owned(),
        Some("boolean") => "bool".into(),
        Some("number") => "float64".into(),
        Some("array") => {
            let (inner, name) = DEFINITIONS.resolve(&schema["items"]);
            format!("[]{}", go_type(inner, name))
        }
        Some("object") => {
            let (inner, name) = DEFINITIONS.resolve(&schema["additionalProperties"]);
            format!("map[string]{}", go_type(inner, name))
        }
        _ => "string".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

    #[test]
    fn unknown_fields_are_dropped_and_reported() {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "creationTimestamp": null},
            "spec": {"replica": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "a", "imag": "b", "resources": {"limits": {"cpu": 2}}}]}}}});
        let found = decode(DEPLOYMENT, &mut object);
        assert_eq!(found.unknown, ["spec.replica", "spec.template.spec.containers[0].imag"]);
        assert!(found.required.is_empty() && found.mismatch.is_none(), "{found:?}");
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(*container, json!({"name": "a", "resources": {"limits": {"cpu": "2"}}}));
        assert_eq!(object["metadata"], json!({"name": "x"}));
    }

    #[test]
    fn what_holds_nothing_is_dropped_where_it_may_be_absent() {
        let mut object = json!({"metadata": {"labels": {}, "finalizers": [], "annotations": {"a": ""}},
            "spec": {"template": {"spec": {"nodeSelector": {}, "containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}}}});
        decode(DEPLOYMENT, &mut object);
        assert_eq!(object["metadata"], json!({"annotations": {"a": ""}}));
        assert_eq!(
            object["spec"]["template"]["spec"],
            json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]})
        );
    }

    #[test]
    fn wrong_types_read_as_go_says_them() {
        let mut object = json!({"spec": {"replicas": "three"}});
        let found = decode(DEPLOYMENT, &mut object);
        assert_eq!(
            found.mismatch.unwrap(),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        let fields: Vec<_> = found.required.into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["spec.selector", "spec.template"]);
    }
}
