//! Kubernetes quantities (`80Gi`, `85G`, `4`, `500m`) as numbers.

/// Pattern of a quantity of bytes in the schema.
pub const PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

/// Parses a quantity. `None` if the text is not one.
pub fn parse(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let factor = match &text[digits..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        _ => return None,
    };
    Some(number * factor)
}

/// Writes bytes as a decimal quantity that parses back to the same number of whole bytes.
pub fn format_bytes(bytes: f64) -> String {
    for (factor, suffix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        let scaled = (bytes / factor * 1e3).round() / 1e3;
        if scaled >= 1.0 && (scaled * factor - bytes).abs() < 0.5 {
            return format!("{scaled}{suffix}");
        }
    }
    format!("{}", bytes.round())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("85G", Some(85e9))]
    #[case("80Gi", Some(85_899_345_920.0))]
    #[case("42.5G", Some(42.5e9))]
    #[case("500m", Some(0.5))]
    #[case("7", Some(7.0))]
    #[case("", None)]
    #[case("G", None)]
    #[case("1X", None)]
    fn quantities(#[case] text: &str, #[case] expected: Option<f64>) {
        assert_eq!(parse(text), expected, "{text:?}");
    }

    #[rstest]
    #[case(85e9, "85G")]
    #[case(42.5e9, "42.5G")]
    #[case(123.0, "123")]
    fn bytes_round_trip(#[case] bytes: f64, #[case] text: &str) {
        assert_eq!(format_bytes(bytes), text);
        assert_eq!(parse(text), Some(bytes));
    }
}
