//! What was wrong with an object, field by field.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One invalid field: where it is, what it holds, what is wrong with that, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct InvalidField {
    /// Path within the object, e.g. `spec.slo.tpot.p95`.
    pub path: String,
    /// The offending value as text (empty when the field is missing).
    pub value: String,
    /// What is wrong, e.g. `is out of range`.
    pub problem: String,
    /// What to do, e.g. `use a duration between 1ms and 10s`.
    pub remedy: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, value, problem, remedy } = self;
        if value.is_empty() {
            write!(f, "{path}: {problem}; {remedy}")
        } else {
            write!(f, "{path}: {value:?} {problem}; {remedy}")
        }
    }
}

/// Joins several into one message, most telling first (the order in which they were found).
pub fn describe(fields: &[InvalidField]) -> String {
    fields.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// Collects every invalid field of one object while it is converted.
#[derive(Debug, Default)]
pub(crate) struct Check {
    errors: Vec<InvalidField>,
}

impl Check {
    /// Records an invalid field.
    pub(crate) fn invalid(
        &mut self,
        path: impl Into<String>,
        value: impl fmt::Display,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.errors.push(InvalidField {
            path: path.into(),
            value: value.to_string(),
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    /// Records that a number is not within `[low, high]` (or is not finite).
    pub(crate) fn range(&mut self, path: &str, value: f64, low: f64, high: f64) {
        if !(value >= low && value <= high) {
            self.invalid(path, value, "is out of range", format!("use a number from {low} to {high}"));
        }
    }

    /// Records that a number is not above zero (or is not finite).
    pub(crate) fn positive(&mut self, path: &str, value: f64) {
        if !(value > 0.0 && value.is_finite()) {
            self.invalid(path, value, "is not positive", "use a number above 0");
        }
    }

    /// A count that must be within `[low, high]`; `low` stands in for a wrong one.
    pub(crate) fn count(&mut self, path: &str, value: i64, low: u32, high: u32) -> u32 {
        match u32::try_from(value) {
            Ok(v) if (low..=high).contains(&v) => v,
            _ => {
                self.invalid(
                    path,
                    value,
                    "is out of range",
                    format!("use a whole number from {low} to {high}"),
                );
                low
            }
        }
    }

    /// The value if nothing was invalid.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<InvalidField>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(self.errors),
        }
    }
}
