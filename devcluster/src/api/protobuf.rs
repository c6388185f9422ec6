//! Decodes the protobuf bodies that `kubectl create` sends (since 1.32) for the kinds it makes from flags.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`: the type and the object's own message. Field numbers are those of
//! `k8s.io/api` and `k8s.io/apimachinery` (`generated.proto`). Kinds and fields that are not in the table are refused, never
//! dropped. Answers are always JSON, which such clients accept as well.

use base64::Engine as _;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
/// Messages nest no deeper than this in the kinds below.
const MAX_DEPTH: usize = 8;

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Type {
    Text,
    Texts,
    Bytes,
    Int,
    Bool,
    Time,
    /// Map of text to text.
    TextMap,
    /// Map of text to bytes.
    BytesMap,
    One(Message),
    Many(Message),
}

type Field = (u64, &'static str, Type);
type Message = &'static [Field];

const OWNER: Message = &[
    (1, "kind", Type::Text),
    (3, "name", Type::Text),
    (4, "uid", Type::Text),
    (5, "apiVersion", Type::Text),
    (6, "controller", Type::Bool),
    (7, "blockOwnerDeletion", Type::Bool),
];
const META: Message = &[
    (1, "name", Type::Text),
    (2, "generateName", Type::Text),
    (3, "namespace", Type::Text),
    (4, "selfLink", Type::Text),
    (5, "uid", Type::Text),
    (6, "resourceVersion", Type::Text),
    (7, "generation", Type::Int),
    (8, "creationTimestamp", Type::Time),
    (9, "deletionTimestamp", Type::Time),
    (10, "deletionGracePeriodSeconds", Type::Int),
    (11, "labels", Type::TextMap),
    (12, "annotations", Type::TextMap),
    (13, "ownerReferences", Type::Many(OWNER)),
    (14, "finalizers", Type::Texts),
];
const NAMESPACE: Message = &[
    (1, "metadata", Type::One(META)),
    (2, "spec", Type::One(&[(1, "finalizers", Type::Texts)])),
    (3, "status", Type::One(&[(1, "phase", Type::Text)])),
];
const CONFIG_MAP: Message = &[
    (1, "metadata", Type::One(META)),
    (2, "data", Type::TextMap),
    (3, "binaryData", Type::BytesMap),
    (4, "immutable", Type::Bool),
];
const SECRET: Message = &[
    (1, "metadata", Type::One(META)),
    (2, "data", Type::BytesMap),
    (3, "type", Type::Text),
    (4, "stringData", Type::TextMap),
    (5, "immutable", Type::Bool),
];
const SERVICE_ACCOUNT: Message = &[
    (1, "metadata", Type::One(META)),
    (3, "imagePullSecrets", Type::Many(&[(1, "name", Type::Text)])),
    (4, "automountServiceAccountToken", Type::Bool),
];
const ACCESS_REVIEW: Message = &[
    (1, "metadata", Type::One(META)),
    (
        2,
        "spec",
        Type::One(&[
            (
                1,
                "resourceAttributes",
                Type::One(&[
                    (1, "namespace", Type::Text),
                    (2, "verb", Type::Text),
                    (3, "group", Type::Text),
                    (4, "version", Type::Text),
                    (5, "resource", Type::Text),
                    (6, "subresource", Type::Text),
                    (7, "name", Type::Text),
                ]),
            ),
            (2, "nonResourceAttributes", Type::One(&[(1, "path", Type::Text), (2, "verb", Type::Text)])),
        ]),
    ),
    (
        3,
        "status",
        Type::One(&[
            (1, "allowed", Type::Bool),
            (2, "reason", Type::Text),
            (3, "evaluationError", Type::Text),
            (4, "denied", Type::Bool),
        ]),
    ),
];
const DELETE_OPTIONS: Message = &[
    (1, "gracePeriodSeconds", Type::Int),
    (2, "preconditions", Type::One(&[(1, "uid", Type::Text), (2, "resourceVersion", Type::Text)])),
    (3, "orphanDependents", Type::Bool),
    (4, "propagationPolicy", Type::Text),
    (5, "dryRun", Type::Texts),
];
const EVICTION: Message =
    &[(1, "metadata", Type::One(META)), (2, "deleteOptions", Type::One(DELETE_OPTIONS))];
/// `runtime.Unknown`.
const ENVELOPE: Message = &[
    (1, "type", Type::One(&[(1, "apiVersion", Type::Text), (2, "kind", Type::Text)])),
    (2, "raw", Type::Bytes),
    (3, "contentEncoding", Type::Text),
    (4, "contentType", Type::Text),
];

/// Decodes a body.
///
/// # Errors
/// What is wrong with it, or that its kind is not known in protobuf.
pub(super) fn decode(body: &[u8]) -> Result<Value, String> {
    let body = body.strip_prefix(MAGIC).ok_or("the body does not begin as Kubernetes' protobuf does")?;
    let envelope = message(body, ENVELOPE, 0)?;
    let (kind, version) = (&envelope["type"]["kind"], &envelope["type"]["apiVersion"]);
    let fields = match kind.as_str().unwrap_or_default() {
        "Namespace" => NAMESPACE,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "SelfSubjectAccessReview" => ACCESS_REVIEW,
        "SelfSubjectReview" => &[(1, "metadata", Type::One(META))],
        "Eviction" => EVICTION,
        "DeleteOptions" => DELETE_OPTIONS,
        other => {
            return Err(format!(
                "{other} is not known in protobuf here: send JSON, such as `kubectl create … --dry-run=client -o yaml | kubectl \
                 create -f -` does"
            ));
        }
    };
    let raw = envelope["raw"].as_str().unwrap_or_default();
    let raw = base64::engine::general_purpose::STANDARD.decode(raw).map_err(|e| e.to_string())?;
    let mut object = message(&raw, fields, 0)?;
    object["kind"] = kind.clone();
    object["apiVersion"] = version.clone();
    Ok(object)
}

fn message(mut bytes: &[u8], fields: Message, depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("the protobuf body is nested too deeply".into());
    }
    let mut out = Map::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let Some((_, name, kind)) = fields.iter().find(|(number, ..)| *number == tag >> 3) else {
            return Err(format!("protobuf field {} is not known here: send JSON", tag >> 3));
        };
        match (tag & 7, kind) {
            (0, Type::Int) => {
                // Negative numbers are the upper half.
                out.insert((*name).into(), varint(&mut bytes)?.cast_signed().into());
            }
            (0, Type::Bool) => {
                out.insert((*name).into(), (varint(&mut bytes)? != 0).into());
            }
            (2, _) => add(&mut out, name, *kind, chunk(&mut bytes)?, depth)?,
            _ => return Err(format!("the protobuf field {name} has a wrong type")),
        }
    }
    Ok(Value::Object(out))
}

fn add(
    out: &mut Map<String, Value>,
    name: &str,
    kind: Type,
    data: &[u8],
    depth: usize,
) -> Result<(), String> {
    let text = |data: &[u8]| {
        std::str::from_utf8(data)
            .map(str::to_owned)
            .map_err(|_| format!("the protobuf field {name} is not UTF-8"))
    };
    let push = |out: &mut Map<String, Value>, item: Value| {
        if let Some(list) = out.entry(name).or_insert_with(|| json!([])).as_array_mut() {
            list.push(item);
        }
    };
    match kind {
        // Kubernetes writes empty text where Go has none.
        Type::Text if data.is_empty() => {}
        Type::Text => {
            out.insert(name.into(), text(data)?.into());
        }
        Type::Bytes => {
            out.insert(name.into(), base64::engine::general_purpose::STANDARD.encode(data).into());
        }
        Type::Texts => push(out, text(data)?.into()),
        Type::Many(fields) => push(out, message(data, fields, depth + 1)?),
        Type::One(fields) => {
            out.insert(name.into(), message(data, fields, depth + 1)?);
        }
        Type::Time => {
            let time = message(data, &[(1, "seconds", Type::Int), (2, "nanos", Type::Int)], depth + 1)?;
            if let Some(seconds) = time["seconds"].as_i64() {
                let at = jiff::Timestamp::from_second(seconds).map_err(|e| e.to_string())?;
                out.insert(name.into(), at.to_string().into());
            }
        }
        Type::TextMap | Type::BytesMap => {
            let value = if matches!(kind, Type::TextMap) { Type::Text } else { Type::Bytes };
            let mut key = String::new();
            let mut entry = Map::new();
            let mut rest = data;
            while !rest.is_empty() {
                match varint(&mut rest)? {
                    0x0a => key = text(chunk(&mut rest)?)?,
                    0x12 => add(&mut entry, "value", value, chunk(&mut rest)?, depth + 1)?,
                    _ => return Err(format!("the protobuf map {name} is malformed")),
                }
            }
            let value = entry.remove("value").unwrap_or_else(|| "".into());
            if let Some(map) = out.entry(name).or_insert_with(|| json!({})).as_object_mut() {
                map.insert(key, value);
            }
        }
        Type::Int | Type::Bool => return Err(format!("the protobuf field {name} has a wrong type")),
    }
    Ok(())
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

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let kind = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &kind), field(2, raw)].concat()
    }

    #[test]
    fn known_kinds_decode() {
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let meta = [field(1, b"s"), field(11, &entry)].concat();
        let raw = [field(1, &meta), field(2, &entry), field(3, b"Opaque"), vec![5 << 3, 1]].concat();
        assert_eq!(
            decode(&body("Secret", &raw)).unwrap(),
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s", "labels": {"k": "v"}}, "data": {"k": "dg=="},
                "type": "Opaque", "immutable": true})
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(decode(b"{}").is_err());
        assert!(decode(&body("Deployment", b"")).unwrap_err().contains("send JSON"));
        assert!(decode(&body("Namespace", &field(15, b"x"))).unwrap_err().contains("field 15"));
        let whole = body("Secret", &field(1, &field(1, b"s")));
        for end in 0..whole.len() {
            let _ = decode(&whole[..end]);
        }
    }
}
