//! Schedules of cron jobs.

/// The fields of a schedule: name, least, most, and names of values.
const FIELDS: &[(&str, u32, u32, &[&str])] = &[
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day-of-month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day-of-week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];
/// Names of whole schedules.
const NAMED: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Reads a schedule.
///
/// # Errors
/// What a server says of what is none.
pub(super) fn parse(schedule: &str) -> Result<(), String> {
    let plain = match schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
        Some(zoned) => zoned.split_once(' ').map_or("", |(_, rest)| rest).trim(),
        None => schedule,
    };
    if plain.starts_with('@') {
        return descriptor(plain);
    }
    let parts: Vec<&str> = plain.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly {} fields, found {}: [{}]",
            FIELDS.len(),
            parts.len(),
            parts.join(" ")
        ));
    }
    for (part, (_, least, most, names)) in parts.iter().zip(FIELDS) {
        part.split(',').try_for_each(|one| range(one, *least, *most, names))?;
    }
    Ok(())
}

fn descriptor(text: &str) -> Result<(), String> {
    if NAMED.contains(&text) {
        return Ok(());
    }
    if let Some(every) = text.strip_prefix("@every ") {
        let units = |c: char| "nuµmsh".contains(c);
        let good = every.starts_with(|c: char| c.is_ascii_digit())
            && every.ends_with(units)
            && every.chars().all(|c| c.is_ascii_digit() || c == '.' || units(c));
        return if good {
            Ok(())
        } else {
            Err(format!("failed to parse duration {text}: time: invalid duration {every:?}"))
        };
    }
    Err(format!("unrecognized descriptor: {text}"))
}

/// Reads `*`, `1`, `1-5`, `*/2`, `1-5/2`.
fn range(text: &str, least: u32, most: u32, names: &[&str]) -> Result<(), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let bounds: Vec<&str> = parts[0].split('-').collect();
    let (start, end) = match bounds.as_slice() {
        ["*" | "?"] => (least, most),
        [one] => {
            let one = value(one, names)?;
            // A step from one value on goes to the last.
            (one, if parts.len() > 1 { most } else { one })
        }
        [from, to] => (value(from, names)?, value(to, names)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => number(step)?,
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {text}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn value(text: &str, names: &[&str]) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match names.iter().position(|name| *name == lower) {
        // Months are counted from one, days of the week from zero.
        Some(at) => Ok(u32::try_from(at).unwrap_or(0) + u32::from(names.len() == 12)),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
        Err(_) => {
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::parse;

    #[rstest]
    #[case("* * * * *", "")]
    #[case("*/5 0-6 1,15 jan-mar MON", "")]
    #[case("@daily", "")]
    #[case("@every 1h30m", "")]
    #[case("often", "expected exactly 5 fields, found 1: [often]")]
    #[case("60 * * * *", "end of range (60) above maximum (59): 60")]
    #[case("* * 0 * *", "beginning of range (0) below minimum (1): 0")]
    #[case("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1")]
    #[case("*/0 * * * *", "step of range should be a positive number: */0")]
    #[case("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax")]
    #[case("@sometimes", "unrecognized descriptor: @sometimes")]
    fn schedules_are_read(#[case] schedule: &str, #[case] why: &str) {
        assert_eq!(parse(schedule).err().unwrap_or_default(), why);
    }
}
