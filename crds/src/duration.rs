//! Durations as people write them in manifests: `800ms`, `1.5s`, `15m`, `1h30m`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A duration in a manifest, not yet parsed. Its schema carries the pattern.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// Milliseconds; `None` if the text is not a duration.
    pub fn ms(&self) -> Option<f64> {
        parse_ms(&self.0)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl schemars::JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // The length bound keeps the estimated cost of CEL rules on durations within the API server's budget.
        schemars::json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 16})
    }
}

/// Pattern of a duration in the schema.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$";

/// Parses a duration into milliseconds: one or more numbers, each with a unit `ms`, `s`, `m` or `h`.
/// `None` if the text is not a duration.
pub fn parse_ms(text: &str) -> Option<f64> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (factor, length) = if unit.starts_with("ms") {
            (1.0, 2)
        } else if unit.starts_with('s') {
            (1e3, 1)
        } else if unit.starts_with('m') {
            (60e3, 1)
        } else if unit.starts_with('h') {
            (3_600e3, 1)
        } else {
            return None;
        };
        total += number * factor;
        rest = &unit[length..];
    }
    total.is_finite().then_some(total)
}

/// Writes milliseconds the shortest way that people read: `800ms`, `1.5s`, `15m`, `2h`.
pub fn format_ms(ms: f64) -> String {
    let (value, unit) = if ms < 1e3 {
        (ms, "ms")
    } else if ms < 60e3 {
        (ms / 1e3, "s")
    } else if ms < 3_600e3 {
        (ms / 60e3, "m")
    } else {
        (ms / 3_600e3, "h")
    };
    let rounded = (value * 100.0).round() / 100.0;
    format!("{rounded}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("800ms", Some(800.0))]
    #[case("1.5s", Some(1500.0))]
    #[case("1h30m", Some(5_400_000.0))]
    #[case("15m", Some(900_000.0))]
    #[case("0ms", Some(0.0))]
    #[case("", None)]
    #[case("800", None)]
    #[case("ms", None)]
    #[case("-1s", None)]
    #[case("1.2.3s", None)]
    #[case("1 s", None)]
    #[case("5d", None)]
    fn durations(#[case] text: &str, #[case] expected: Option<f64>) {
        assert_eq!(parse_ms(text), expected, "{text:?}");
    }

    #[rstest]
    #[case(800.0, "800ms")]
    #[case(1500.0, "1.5s")]
    #[case(900_000.0, "15m")]
    #[case(7_200_000.0, "2h")]
    fn formats(#[case] ms: f64, #[case] text: &str) {
        assert_eq!(format_ms(ms), text);
        assert_eq!(parse_ms(text), Some(ms));
    }
}
