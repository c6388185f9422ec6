//! Quantities in the one form that the API server stores: `1.0` becomes `1`, `1024Mi` becomes `1Gi`, `0.5` becomes `500m`.

const MALFORMED: &str = "quantities must match the regular expression \
     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const BAD_SUFFIX: &str = "unable to parse quantity's suffix";
/// Billionths in one: no finer value is kept.
pub(super) const NANO: i128 = 1_000_000_000;
/// The largest value, in units; what is larger counts as this.
const MAX: i128 = i64::MAX as i128;
const DECIMAL: [(i32, &str); 10] =
    [(-9, "n"), (-6, "u"), (-3, "m"), (0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// In which family of suffixes a quantity was written: it is kept where that loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// The canonical form of a quantity, after `k8s.io/apimachinery/pkg/api/resource`; `None` if it is malformed.
pub fn canonical(text: &str) -> Option<String> {
    let (nanos, format) = parse(text.trim())?;
    if nanos == 0 {
        return Some("0".to_owned());
    }
    let whole = nanos % NANO == 0;
    // What a binary suffix cannot say exactly, or would say of less than 1024, is said in decimal.
    if format == Format::Binary && whole && nanos.abs() >= 1024 * NANO {
        let (mut value, mut power) = (nanos / NANO, 0);
        while value % 1024 == 0 && power + 1 < BINARY.len() {
            value /= 1024;
            power += 1;
        }
        return Some(format!("{value}{}", BINARY[power]));
    }
    let (mut value, mut exponent) = (nanos, -9);
    while value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    if format == Format::Exponent {
        return Some(if exponent == 0 { value.to_string() } else { format!("{value}e{exponent}") });
    }
    let suffix = DECIMAL.iter().find(|(e, _)| *e == exponent).map(|(_, s)| *s)?;
    Some(format!("{value}{suffix}"))
}

/// The canonical form of a quantity, rounded up to thousandths; `None` if it is malformed.
pub fn in_thousandths(text: &str) -> Option<String> {
    const MILLI: i128 = NANO / 1000;
    let nanos = nanos(text)?;
    match nanos % MILLI {
        0 => canonical(text),
        _ if nanos > 0 => canonical(&format!("{}m", rounded_up(nanos, MILLI))),
        _ => canonical(&format!("-{}m", rounded_up(-nanos, MILLI))),
    }
}

/// A quantity in billionths; `None` if it is malformed.
pub(super) fn nanos(text: &str) -> Option<i128> {
    parse(text.trim()).map(|(nanos, _)| nanos)
}

/// What a server says of a quantity that cannot be read.
pub fn complaint(text: &str) -> &'static str {
    let text = text.trim();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let suffix = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let power = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    let number = &unsigned[..unsigned.len() - suffix.len()];
    let shaped = power.bytes().all(|b| b.is_ascii_digit()) && number.bytes().any(|b| b.is_ascii_digit());
    if shaped && number.matches('.').count() <= 1 { BAD_SUFFIX } else { MALFORMED }
}

/// A quantity in billionths, rounded away from zero.
fn parse(text: &str) -> Option<(i128, Format)> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (format, base, power) = suffix_of(suffix)?;
    // Digits beyond these make no difference that is kept.
    let fraction: String = fraction.chars().take(20).collect();
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let mantissa: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let nanos = match power {
        _ if mantissa == 0 => 0,
        0.. => {
            let factor = i128::from(base).checked_pow(power.unsigned_abs());
            let most = MAX * NANO;
            let scaled = factor.and_then(|f| mantissa.checked_mul(f)?.checked_mul(NANO));
            scaled.map_or(most, |value| rounded_up(value, scale).min(most))
        }
        _ => match i128::from(base).checked_pow(power.unsigned_abs()) {
            Some(divisor) => rounded_up(mantissa.checked_mul(NANO)?, scale.checked_mul(divisor)?),
            None => 1,
        },
    };
    Some((if negative { -nanos } else { nanos }, format))
}

fn rounded_up(value: i128, divisor: i128) -> i128 {
    (value / divisor) + i128::from(value % divisor != 0)
}

/// The family of a suffix and what it multiplies by: a base to a power.
fn suffix_of(suffix: &str) -> Option<(Format, i64, i32)> {
    if let Some((exponent, _)) = DECIMAL.iter().find(|(_, s)| *s == suffix) {
        return Some((Format::Decimal, 10, *exponent));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Format::Binary, 1024, i32::try_from(power).ok()?));
    }
    let power = suffix.strip_prefix(['e', 'E'])?;
    Some((Format::Exponent, 10, power.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{BAD_SUFFIX, MALFORMED, canonical, complaint};

    #[test]
    fn one_value_has_one_form() {
        for (given, kept) in [
            ("1", "1"),
            ("1.0", "1"),
            ("0.5", "500m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("2500m", "2500m"),
            ("0.0005", "500u"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
            ("1073741824", "1073741824"),
            ("1000", "1k"),
            ("128974848000m", "128974848"),
            ("1e3", "1e3"),
            ("1e4", "10e3"),
            ("1E", "1E"),
            ("0.0000000001", "1n"),
            ("-1.50", "-1500m"),
            ("0Gi", "0"),
            ("0.1Ki", "102400m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("10Ei", "9223372036854775807"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(kept), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "lots", "1.2.3", "1 Gi", "1gi", "--1", ".", "Gi", "1e", "1ee3", "1e99999999999"] {
            assert_eq!(canonical(text), None, "{text}");
        }
        assert_eq!(
            [complaint("lots"), complaint("1.2.3"), complaint("1ee3")],
            [MALFORMED, MALFORMED, BAD_SUFFIX]
        );
    }
}
