//! Validation errors, worded as `k8s.io/apimachinery/pkg/util/validation/field` words them.

use std::fmt;

use serde_json::Value;

/// Class of a validation error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// `FieldValueRequired`.
    Required,
    /// `FieldValueInvalid`.
    Invalid,
    /// `FieldValueTypeInvalid`.
    TypeInvalid,
    /// `FieldValueNotSupported`: not in an enum.
    NotSupported,
    /// `FieldValueTooLong`: a string.
    TooLong,
    /// `FieldValueTooMany`: list items or map entries.
    TooMany,
    /// `FieldValueDuplicate`.
    Duplicate,
    /// `FieldValueForbidden`.
    Forbidden,
}

impl ErrorKind {
    /// The `reason` of the `StatusCause` that reports this error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
        }
    }

    /// The words that open the message.
    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
        }
    }

    /// CEL rules are not run while an error of one of these kinds stands.
    pub(crate) const BLOCKING: [Self; 5] =
        [Self::NotSupported, Self::Required, Self::TooLong, Self::TooMany, Self::TypeInvalid];
}

/// One violation of a schema. `Display` is the API server's own wording, path included.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Path such as `spec.slo.tpot.p95` or `spec.variants[0].name`; empty for the root, which prints as `<nil>`.
    pub path: String,
    /// Class of the error.
    pub kind: ErrorKind,
    /// The offending value; `None` where the API server leaves it out. Never printed for required, forbidden and too
    /// long fields.
    pub value: Option<Value>,
    /// What is wrong; may be empty.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(
        path: impl Into<String>,
        kind: ErrorKind,
        value: Option<Value>,
        message: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), kind, value, message: message.into() }
    }

    /// The error without its path, as `StatusCause.message` carries it.
    pub fn body(&self) -> String {
        let title = self.kind.title();
        let silent = matches!(self.kind, ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong);
        let mut out = match &self.value {
            Some(value) if !silent => match value {
                Value::Null if self.path.is_empty() => format!("{title}: null"),
                Value::Null => format!("{title}: \"null\""),
                other => format!("{title}: {other}"),
            },
            _ => title.to_owned(),
        };
        if !self.message.is_empty() {
            out.push_str(": ");
            out.push_str(&self.message);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "<nil>" } else { &self.path };
        write!(f, "{path}: {}", self.body())
    }
}

impl std::error::Error for FieldError {}

/// Why a schema cannot be used; paths are relative to the schema, such as `properties[spec].type`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
pub struct SchemaError(pub Vec<FieldError>);
