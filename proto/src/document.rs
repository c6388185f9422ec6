//! Domain documents inside protobuf envelopes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::v1::Document;

/// The schema number written, and the only one read.
pub const SCHEMA: u32 = 1;

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It was not sent.
    #[error("the message carries no {what}; send one")]
    Missing {
        /// What was expected, e.g. `snapshot`.
        what: &'static str,
    },
    /// It has a schema this build does not know.
    #[error("the {what} has schema {schema}, this build reads {SCHEMA}; run the same version on both sides")]
    Schema {
        /// What it was.
        what: &'static str,
        /// Its schema number.
        schema: u32,
    },
    /// It is not the JSON it should be.
    #[error("failed to read or write the {what}")]
    Json {
        /// What it was.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

impl From<DocumentError> for tonic::Status {
    fn from(error: DocumentError) -> Self {
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        Self::invalid_argument(format!("{error}{source}"))
    }
}

/// Wraps a domain value.
///
/// # Errors
/// [`DocumentError::Json`] if the value has no JSON form (a map with keys that are not text).
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Document, DocumentError> {
    let json = serde_json::to_vec(value).map_err(|source| DocumentError::Json { what, source })?;
    Ok(Document { schema: SCHEMA, json })
}

/// Unwraps a domain value.
///
/// # Errors
/// [`DocumentError`] if it is missing, of another schema, or not the expected JSON.
pub fn decode<T: DeserializeOwned>(
    what: &'static str,
    document: Option<&Document>,
) -> Result<T, DocumentError> {
    let document = document.ok_or(DocumentError::Missing { what })?;
    if document.schema != SCHEMA {
        return Err(DocumentError::Schema { what, schema: document.schema });
    }
    serde_json::from_slice(&document.json).map_err(|source| DocumentError::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_fleet::ClusterSnapshot;

    #[test]
    fn a_snapshot_round_trips() {
        let snapshot = ClusterSnapshot {
            accelerators: plimsoll_fleet::presets::accelerators(),
            ..ClusterSnapshot::default()
        };
        let document = encode("snapshot", &snapshot).unwrap();
        assert_eq!(decode::<ClusterSnapshot>("snapshot", Some(&document)).unwrap(), snapshot);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let missing = decode::<ClusterSnapshot>("snapshot", None).unwrap_err();
        assert!(missing.to_string().contains("no snapshot"));
        let future = Document { schema: 9, json: vec![] };
        assert!(
            decode::<ClusterSnapshot>("plan", Some(&future)).unwrap_err().to_string().contains("schema 9")
        );
        let cut = Document { schema: SCHEMA, json: b"{\"pools\": [".to_vec() };
        let status = tonic::Status::from(decode::<ClusterSnapshot>("snapshot", Some(&cut)).unwrap_err());
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("EOF"), "{}", status.message());
    }
}
