//! The three patch formats that the API accepts besides server-side apply.

mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use crate::gvk::GroupKind;
pub use strategic::strategic;

/// Why a patch could not be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch document itself is malformed (HTTP 400).
    #[error("invalid patch: {0}")]
    Malformed(String),
    /// A list's item or directive that merging does not expect (HTTP 500: a real server's own code does not, either).
    #[error("{0}")]
    Unexpected(String),
    /// The patch is well formed but does not fit the object (HTTP 422), such as a failing `test` operation.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Rejected(String),
    /// Strategic merge is defined for built-in kinds only (HTTP 415).
    #[error(
        "the body of the request was in an unknown format - accepted media types include: \
         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    )]
    Unsupported,
}

/// JSON as Go's `%+v` prints it.
pub(crate) fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

/// JSON merge patch, RFC 7386: objects merge key by key, `null` deletes, anything else replaces.
pub fn merge(current: &Value, patch: &Value) -> Value {
    let mut out = current.clone();
    json_patch::merge(&mut out, patch);
    out
}

/// JSON patch, RFC 6902. The object is untouched unless every operation succeeds.
///
/// # Errors
/// [`PatchError::Malformed`] if `patch` is no list of operations, [`PatchError::Rejected`] if one does not apply.
pub fn json(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| PatchError::Malformed(e.to_string()))?;
    let mut out = current.clone();
    json_patch::patch(&mut out, &patch).map_err(|e| PatchError::Rejected(e.to_string()))?;
    Ok(out)
}
