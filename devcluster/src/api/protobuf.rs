//! Decodes protobuf bodies, which typed Go clients send: among them `kubectl create` with flags, since 1.32.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`: the type and the object's own message. Messages carry numbers where
//! JSON has names; which is which is in `data/protobuf.txt`, and what a field holds in its OpenAPI schema. Kinds and fields
//! that are not known are refused, never dropped. Answers are always JSON, which such clients accept as well.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::builtin::definitions::DEFINITIONS;

const MAGIC: &[u8] = b"k8s\0";
/// Messages nest no deeper than this in the built-in kinds.
const MAX_DEPTH: usize = 32;
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// What stands at a field number.
#[derive(Debug)]
enum Field {
    /// A field of this name; `keep` if its empty value says something.
    Named { name: &'static str, keep: bool },
    /// A message whose fields are the object's own.
    Inline { definition: String },
}

/// Definition → number → field.
type Table = HashMap<&'static str, HashMap<u64, Field>>;

static TABLE: LazyLock<Table> = LazyLock::new(|| parse(include_str!("../data/protobuf.txt")));

fn parse(text: &'static str) -> Table {
    let field = |package: &str, word: &'static str| {
        let (number, name) = word.split_once('=')?;
        let field = match name.strip_prefix('~') {
            Some(kind) => Field::Inline { definition: format!("{package}.{kind}") },
            None => Field::Named { name: name.trim_end_matches('!'), keep: name.ends_with('!') },
        };
        Some((number.parse().ok()?, field))
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            let definition = words.next()?;
            let package = definition.rsplit_once('.')?.0;
            Some((definition, words.filter_map(|word| field(package, word)).collect()))
        })
        .collect()
}

/// Decodes a body.
///
/// # Errors
/// What is wrong with it, or that its kind is not known in protobuf.
pub(super) fn decode(body: &[u8]) -> Result<Value, String> {
    let mut rest = body.strip_prefix(MAGIC).ok_or("the body does not begin as Kubernetes' protobuf does")?;
    // `runtime.Unknown`: 1 type, 2 raw, 3 and 4 encoding and type of the content, which are empty.
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), [].as_slice());
    while !rest.is_empty() {
        match varint(&mut rest)? {
            0x0a => {
                let mut meta = chunk(&mut rest)?;
                while !meta.is_empty() {
                    match varint(&mut meta)? {
                        0x0a => api_version = text(chunk(&mut meta)?, "apiVersion")?,
                        0x12 => kind = text(chunk(&mut meta)?, "kind")?,
                        _ => return Err("the type of the protobuf body is malformed".into()),
                    }
                }
            }
            0x12 => raw = chunk(&mut rest)?,
            0x1a | 0x22 => {
                chunk(&mut rest)?;
            }
            _ => return Err("the envelope of the protobuf body is malformed".into()),
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    // Every group has its own DeleteOptions, all the same.
    let definition = match kind.as_str() {
        "DeleteOptions" => Some(DELETE_OPTIONS),
        kind => DEFINITIONS.of_kind(group, version, kind),
    };
    let definition = definition
        .filter(|d| TABLE.contains_key(d))
        .ok_or_else(|| format!("{kind} of {api_version} is not known in protobuf here: send JSON"))?;
    let mut object = Map::new();
    message(raw, definition, definition, &mut object, 0)?;
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), api_version.into());
    Ok(Value::Object(object))
}

/// Reads a message of `numbers`' fields into an object of `definition`; they differ where one is inlined in the other.
fn message(
    mut bytes: &[u8],
    numbers: &str,
    definition: &str,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("the protobuf body is nested too deeply".into());
    }
    let short = definition.rsplit('.').next().unwrap_or(definition);
    let fields =
        TABLE.get(numbers).ok_or_else(|| format!("{short} is not known in protobuf here: send JSON"))?;
    let properties = DEFINITIONS.get(definition).map_or(&Value::Null, |schema| &schema["properties"]);
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let unknown = || format!("protobuf field {} of {short} is not known here: send JSON", tag >> 3);
        match fields.get(&(tag >> 3)).ok_or_else(unknown)? {
            Field::Inline { definition: inner } => {
                if tag & 7 != 2 {
                    return Err(unknown());
                }
                message(chunk(&mut bytes)?, inner, definition, out, depth + 1)?;
            }
            Field::Named { name, keep } => {
                let schema = properties.get(*name).ok_or_else(unknown)?;
                let wire = Wire::read(tag & 7, &mut bytes)?;
                add(out, name, schema, wire, *keep, depth)?;
            }
        }
    }
    Ok(())
}

/// What a field holds before it is known what it means.
enum Wire<'a> {
    Number(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn read(kind: u64, bytes: &mut &'a [u8]) -> Result<Self, String> {
        match kind {
            0 => varint(bytes).map(Wire::Number),
            1 => {
                let (first, rest) = bytes.split_first_chunk::<8>().ok_or("the protobuf body ends early")?;
                *bytes = rest;
                Ok(Wire::Double(f64::from_le_bytes(*first)))
            }
            2 => chunk(bytes).map(Wire::Bytes),
            _ => Err("the protobuf body is malformed".into()),
        }
    }
}

/// Puts a field's value in its place: repeated fields and map entries come one by one.
fn add(
    out: &mut Map<String, Value>,
    name: &str,
    schema: &Value,
    wire: Wire<'_>,
    keep: bool,
    depth: usize,
) -> Result<(), String> {
    let entries = schema.get("additionalProperties").filter(|s| s.is_object());
    if schema["type"] == "array" {
        let item = value(name, &schema["items"], wire, depth)?.unwrap_or(Value::Null);
        if let Some(list) = out.entry(name).or_insert_with(|| json!([])).as_array_mut() {
            list.push(item);
        }
    } else if let Some(values) = entries {
        let Wire::Bytes(entry) = wire else { return Err(wrong(name)) };
        let (key, item) = map_entry(name, values, entry, depth)?;
        if let Some(map) = out.entry(name).or_insert_with(|| json!({})).as_object_mut() {
            map.insert(key, item);
        }
    } else if let Some(value) = value(name, schema, wire, depth)? {
        let empty = value == 0 || value == false || value == "";
        if keep || !empty {
            out.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

fn map_entry(name: &str, values: &Value, mut entry: &[u8], depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut item) = (String::new(), None);
    while !entry.is_empty() {
        match varint(&mut entry)? {
            0x0a => key = text(chunk(&mut entry)?, name)?,
            0x12 if values["type"] == "array" => {
                // A list in a map is a message whose only field repeats.
                let (mut list, mut items) = (chunk(&mut entry)?, Vec::new());
                while !list.is_empty() {
                    let tag = varint(&mut list)?;
                    let wire = Wire::read(tag & 7, &mut list)?;
                    items.extend(value(name, &values["items"], wire, depth)?);
                }
                item = Some(items.into());
            }
            0x12 => item = value(name, values, Wire::Bytes(chunk(&mut entry)?), depth)?,
            _ => return Err(wrong(name)),
        }
    }
    Ok((key, item.unwrap_or_else(|| "".into())))
}

/// One value; `None` for a time that is not set.
fn value(name: &str, schema: &Value, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    let (schema, definition) = DEFINITIONS.resolve(schema);
    let definition = definition.unwrap_or_default();
    let format = schema["format"].as_str().unwrap_or_default();
    Ok(Some(match (schema["type"].as_str().unwrap_or_default(), wire) {
        ("integer", Wire::Number(number)) => number.cast_signed().into(),
        ("boolean", Wire::Number(number)) => (number != 0).into(),
        ("number", Wire::Double(number)) => number.into(),
        (kind, Wire::Bytes(bytes)) => match (definition.rsplit('.').next().unwrap_or_default(), kind, format)
        {
            ("Quantity", ..) => numbered(name, bytes)?.remove(&1).unwrap_or_else(|| "".into()),
            ("IntOrString", ..) => {
                let mut parts = numbered(name, bytes)?;
                let is_text = parts.get(&1).is_some_and(|kind| *kind == 1);
                match is_text {
                    true => parts.remove(&3).unwrap_or_else(|| "".into()),
                    false => parts.remove(&2).unwrap_or_else(|| 0.into()),
                }
            }
            ("RawExtension" | "FieldsV1" | "JSON", ..) => {
                let raw = numbered(name, bytes)?.remove(&1).unwrap_or(Value::Null);
                let raw = raw.as_str().unwrap_or_default();
                if raw.is_empty() {
                    return Ok(None);
                }
                serde_json::from_str(raw).map_err(|e| format!("the protobuf field {name}: {e}"))?
            }
            (_, "string", "date-time") => {
                let parts = numbered(name, bytes)?;
                let Some(seconds) = parts.get(&1).and_then(Value::as_i64) else { return Ok(None) };
                let nanos = parts.get(&2).and_then(Value::as_i64).unwrap_or(0);
                let nanos = i32::try_from(nanos).map_err(|_| wrong(name))?;
                let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| format!("{name}: {e}"))?;
                at.to_string().into()
            }
            (_, "string", "byte") => STANDARD.encode(bytes).into(),
            (_, "string", _) => text(bytes, name)?.into(),
            _ if !definition.is_empty() => {
                let mut object = Map::new();
                message(bytes, definition, definition, &mut object, depth + 1)?;
                object.into()
            }
            _ => return Err(wrong(name)),
        },
        _ => return Err(wrong(name)),
    }))
}

/// The fields of a small message by number.
fn numbered(name: &str, mut bytes: &[u8]) -> Result<HashMap<u64, Value>, String> {
    let mut out = HashMap::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match Wire::read(tag & 7, &mut bytes)? {
            Wire::Number(number) => number.cast_signed().into(),
            Wire::Double(number) => number.into(),
            Wire::Bytes(data) => text(data, name)?.into(),
        };
        out.insert(tag >> 3, value);
    }
    Ok(out)
}

fn wrong(name: &str) -> String {
    format!("the protobuf field {name} has a wrong type")
}

fn text(bytes: &[u8], name: &str) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("the protobuf field {name} is not UTF-8"))?;
    Ok(text.to_owned())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or("the protobuf body ends early")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a protobuf number is too long".into())
}

fn chunk<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = usize::try_from(varint(bytes)?).map_err(|e| e.to_string())?;
    let (data, rest) = bytes.split_at_checked(length).ok_or("the protobuf body ends early")?;
    *bytes = rest;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, data: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(data.len()).unwrap()], data].concat()
    }

    fn body_of(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let kind = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &kind), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        body_of("v1", kind, raw)
    }

    #[test]
    fn known_kinds_decode() {
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let meta = [field(1, b"s"), field(3, b""), field(8, b""), field(11, &entry)].concat();
        let raw = [field(1, &meta), field(2, &entry), field(3, b"Opaque"), vec![5 << 3, 1]].concat();
        assert_eq!(
            decode(&body("Secret", &raw)).unwrap(),
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s", "labels": {"k": "v"}}, "data": {"k": "dg=="},
                "type": "Opaque", "immutable": true})
        );
    }

    #[test]
    fn nested_kinds_decode_with_what_is_inlined_in_them() {
        let port = [vec![2 << 3, 0], vec![3 << 3, 80], field(4, b"TCP")].concat();
        let limit = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let target = [vec![1 << 3, 1], field(3, b"http")].concat();
        let get = [field(1, b"/"), field(2, &target)].concat();
        // Probe { ProbeHandler { httpGet } initialDelaySeconds: 0 }
        let probe = [field(1, &field(2, &get)), vec![2 << 3, 0]].concat();
        let container =
            [field(1, b"c"), field(2, b""), field(6, &port), field(8, &field(1, &limit)), field(10, &probe)]
                .concat();
        // Volume { name, VolumeSource { secret } }
        let volume = [field(1, b"v"), field(2, &field(6, &field(1, b"s")))].concat();
        let pod = [field(1, &volume), field(2, &container), vec![11 << 3, 0]].concat();
        let template = [field(1, b""), field(2, &pod)].concat();
        let spec = [vec![1 << 3, 0], field(3, &template), field(4, b""), vec![5 << 3, 0]].concat();
        let raw = [field(1, &field(1, b"d")), field(2, &spec), field(3, b"")].concat();
        assert_eq!(
            decode(&body_of("apps/v1", "Deployment", &raw)).unwrap(),
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "status": {},
                "spec": {"replicas": 0, "strategy": {}, "template": {"metadata": {}, "spec": {
                    "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                    "containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "resources": {"limits": {"cpu": "100m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}}}],
                }}},
            })
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(decode(b"{}").is_err());
        assert!(decode(&body("Nonsense", b"")).unwrap_err().contains("send JSON"));
        assert!(decode(&body("Namespace", &field(15, b"x"))).unwrap_err().contains("field 15"));
        assert!(decode(&body("Namespace", &[1 << 3, 3])).unwrap_err().contains("wrong type"));
        let whole = body("Secret", &field(1, &field(1, b"s")));
        for end in 0..whole.len() {
            let _ = decode(&whole[..end]);
        }
    }

    #[test]
    fn the_table_agrees_with_the_schemas() {
        let mut inlined = std::collections::BTreeSet::new();
        for fields in TABLE.values() {
            for field in fields.values() {
                if let Field::Inline { definition } = field {
                    assert!(TABLE.contains_key(definition.as_str()), "{definition}");
                    inlined.insert(definition.as_str());
                }
            }
        }
        for (definition, fields) in TABLE.iter().filter(|(d, _)| !inlined.contains(*d)) {
            let schema = DEFINITIONS.get(definition).unwrap_or_else(|| panic!("{definition}"));
            for field in fields.values() {
                if let Field::Named { name, .. } = field {
                    assert!(schema["properties"].get(*name).is_some(), "{definition} {name}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn bytes_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("policy/v1", "PodDisruptionBudget")] {
                let _ = decode(&body_of(version, kind, &data));
            }
        }
    }
}
