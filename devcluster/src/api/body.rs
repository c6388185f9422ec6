//! Reads request bodies: JSON, YAML and protobuf, and the kinds of patches.

mod json;

use axum::body::Body;
use bytes::Bytes;
use http::header;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::media::{JSON, PROTOBUF, YAML};
use super::write::PatchKind;
use super::{APPLY, protobuf, unsupported_patch};
use crate::builtin::decode;
use crate::resources::Resource;
use crate::server::status::ApiError;

/// Largest request body, as on a real API server.
const MAX_BODY_BYTES: usize = 3 << 20;
/// How much of a body that is too large is still read.
const MAX_DRAIN_BYTES: usize = 32 << 20;

/// Reads a body up to its limit. What is beyond is read and dropped within reason, so that the client gets its answer
/// rather than a closed connection.
async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_request(format!("the body could not be read: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen <= MAX_BODY_BYTES {
            bytes.extend_from_slice(data);
        } else if seen > MAX_DRAIN_BYTES {
            break;
        }
    }
    if seen > MAX_BODY_BYTES { Err(ApiError::too_large(MAX_BODY_BYTES)) } else { Ok(bytes.into()) }
}

/// The media type of a body, without its parameters.
pub(super) fn content_type(headers: &http::HeaderMap) -> &str {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim()
}

/// A body as it was read.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// What it says.
    pub value: Value,
    /// The kind of a patch.
    pub patch: Option<PatchKind>,
    /// Paths of fields that are there twice.
    pub repeated: Vec<String>,
}

/// Reads a bounded body as JSON or YAML; for a patch, also its kind.
pub(super) async fn read_body(
    body: Body,
    headers: &http::HeaderMap,
    verb: &str,
    kind: &str,
    built_in: bool,
) -> Result<Content, ApiError> {
    let bytes = collect(body).await?;
    let media = content_type(headers);
    let patch = match media {
        "application/json-patch+json" => Some(PatchKind::Json),
        "application/merge-patch+json" => Some(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Some(PatchKind::Strategic),
        APPLY => Some(PatchKind::Apply),
        "" | JSON | YAML | "*/*" | PROTOBUF => None,
        _ if verb == "patch" && built_in => return Err(ApiError::not_consumed()),
        _ => {
            return Err(ApiError::unsupported_media_type(&[JSON, YAML, PROTOBUF]));
        }
    };
    if verb == "patch" && patch.is_none() {
        return Err(if built_in { ApiError::not_consumed() } else { unsupported_patch() });
    }
    if bytes.is_empty() {
        return match verb {
            "delete" | "deletecollection" => Ok(Content::default()),
            _ => Err(unreadable(patch.as_ref(), kind, &bytes, "unexpected end of JSON input")),
        };
    }
    if media == PROTOBUF {
        let content = |value| Content { value, ..Content::default() };
        return protobuf::decode(&bytes).map(content).map_err(|why| {
            let mut error = ApiError::unsupported_media_type(&[JSON, YAML]);
            error.message = format!("{}: {why}", error.message);
            error
        });
    }
    match json::parse(&bytes) {
        Ok((value, _)) if matches!(patch, Some(PatchKind::Apply)) => {
            Ok(Content { value, patch, ..Content::default() })
        }
        Ok((value, repeated)) => Ok(Content { value, patch, repeated }),
        Err(error) => {
            let yaml = media == YAML || matches!(patch, Some(PatchKind::Apply));
            if !yaml {
                return Err(unreadable(patch.as_ref(), kind, &bytes, &misread(&bytes, &error)));
            }
            match serde_saphyr::from_slice::<Value>(&bytes) {
                Ok(value) => Ok(Content { value, patch, repeated: Vec::new() }),
                Err(error) => Err(unreadable_yaml(patch.is_some(), kind, &bytes, &error.to_string())),
            }
        }
    }
}

/// 400 for a body that is no JSON, which it shows the beginning of: as it is if it reads as an object, else in hexadecimal.
fn unreadable(patch: Option<&PatchKind>, kind: &str, bytes: &[u8], why: &str) -> ApiError {
    if patch.is_some() {
        return ApiError::bad_request(format!("error decoding patch: {why}"));
    }
    let shown = beginning(bytes);
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why} ({shown})"
    ))
}

/// 400 for a body that is no YAML. Where a bracket is left open, it is said as Go's parser says it.
fn unreadable_yaml(patch: bool, kind: &str, bytes: &[u8], why: &str) -> ApiError {
    let text = String::from_utf8_lossy(bytes);
    let open = |open: char, close: char| text.matches(open).count() > text.matches(close).count();
    let line = text.trim_end().lines().count().max(1);
    let why = match () {
        () if open('{', '}') => format!("yaml: line {line}: did not find expected ',' or '}}'"),
        () if open('[', ']') => format!("yaml: line {line}: did not find expected ',' or ']'"),
        () => format!("yaml: {}", why.lines().next().unwrap_or_default()),
    };
    ApiError::bad_request(match patch {
        true => format!("error decoding YAML: error converting YAML to JSON: {why}"),
        false => {
            format!(
                "the object provided is unrecognized (must be of type {kind}): {why} ({})",
                beginning(bytes)
            )
        }
    })
}

fn beginning(bytes: &[u8]) -> String {
    /// Bytes shown.
    const SHOWN: usize = 30;
    let first = &bytes[..bytes.len().min(SHOWN)];
    let more = if bytes.len() > SHOWN { " ..." } else { "" };
    match first {
        [] => "<empty>".to_owned(),
        [b'{', ..] => format!("{}{more}", String::from_utf8_lossy(first)),
        _ => format!("{}{more}", first.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// Why bytes are no JSON, in the words of Go's decoder where it has the same reason.
fn misread(bytes: &[u8], error: &serde_json::Error) -> String {
    let text = String::from_utf8_lossy(bytes);
    let start = text.trim_start().chars().next();
    match start {
        _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Some(first) if error.line() == 1 && error.column() == 1 => {
            format!("invalid character {first:?} looking for beginning of value")
        }
        _ => error.to_string(),
    }
}

/// A body as an object; `null` is one of which nothing is said.
pub(super) fn object(resource: &Resource, body: Value) -> Result<Value, ApiError> {
    const INTO: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; \
                        Kind string \"json:\\\"kind,omitempty\\\"\" }";
    match body {
        Value::Null => Ok(Value::Object(serde_json::Map::new())),
        Value::Object(_) => Ok(body),
        other => {
            let found = decode::json_type(&other);
            let bytes = serde_json::to_vec(&other).unwrap_or_default();
            let why = format!("json: cannot unmarshal {found} into Go value of type {INTO}");
            Err(unreadable(None, &resource.kind, &bytes, &why))
        }
    }
}
