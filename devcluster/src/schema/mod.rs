//! Structural schemas of custom resources: pruning, defaulting, validation.

mod cel;
mod compile;
mod error;
mod formats;
mod shape;
#[cfg(test)]
mod tests;
mod types;
mod validate;

use serde_json::Value;

pub use error::{ErrorKind, FieldError, SchemaError};

/// A custom resource's `openAPIV3Schema`, checked and compiled once. `Send + Sync`; share it in an `Arc`.
#[derive(Debug)]
pub struct CompiledSchema {
    root: compile::Node,
}

impl CompiledSchema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// [`SchemaError`] with every reason why it is not a usable structural schema.
    pub fn compile(openapi_v3_schema: &Value) -> Result<Self, SchemaError> {
        Ok(Self { root: compile::compile(openapi_v3_schema)? })
    }

    /// Drops fields that the schema does not know. `apiVersion`, `kind` and `metadata` stay at the root and in embedded
    /// resources.
    pub fn prune(&self, object: &mut Value) {
        shape::prune(&self.root, object);
    }

    /// Fills in defaults, and drops `null`s of fields that are not nullable.
    pub fn default(&self, object: &mut Value) {
        shape::default(&self.root, object);
    }

    /// Every violation in `new`. Transition rules compare with `old`; what an update leaves unchanged is not held
    /// against it (ratcheting).
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        self.validate_after(new, old, false)
    }

    /// [`validate`](Self::validate), where what was found before may keep rules from being checked.
    pub(crate) fn validate_after(&self, new: &Value, old: Option<&Value>, blocked: bool) -> Vec<FieldError> {
        let mut errors = validate::validate(&self.root, new, old);
        if blocked || errors.iter().any(|e| ErrorKind::BLOCKING.contains(&e.kind)) {
            if self.root.has_rules {
                errors.push(FieldError::new(
                    "",
                    ErrorKind::Invalid,
                    Some(Value::Null),
                    "some validation rules were not checked because the object was invalid; correct the existing \
                     errors to complete validation",
                ));
            }
        } else {
            errors.extend(cel::validate(&self.root, new, old));
        }
        errors
    }

    /// Paths (such as `spec.foo` or `spec.list[0].bar`) of the fields that [`prune`](Self::prune) would drop.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        shape::unknown(&self.root, object)
    }
}
