//! Colour, bars and figures for a terminal.

/// Colours text where they are wanted: on a terminal, and not where `NO_COLOR` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

/// What a latency is to its objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Well within.
    Good,
    /// Close.
    Near,
    /// Missed.
    Bad,
}

impl Tone {
    /// By the share of the objective that is used up.
    pub fn of(share: f64) -> Self {
        if share > 1.0 {
            Self::Bad
        } else if share > 0.85 {
            Self::Near
        } else {
            Self::Good
        }
    }
}

impl Paint {
    /// As standard output deserves.
    pub fn stdout() -> Self {
        Self { on: console::colors_enabled() }
    }

    /// Without colour.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { on: false }
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    /// A part of a bar.
    pub fn accent(self, text: &str) -> String {
        self.code("36", text)
    }

    /// A judgement.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        self.code(
            match tone {
                Tone::Good => "32",
                Tone::Near => "33",
                Tone::Bad => "31",
            },
            text,
        )
    }
}

/// A bar of `width` columns, filled to `share` in eighths of a column.
pub fn bar(share: f64, width: usize) -> String {
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = ((share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize).min(width * 8);
    let mut text = "█".repeat(eighths / 8);
    if let Some(part) = PARTS.get(eighths % 8).filter(|p| **p != ' ') {
        text.push(*part);
    }
    let filled = text.chars().count();
    text.push_str(&"·".repeat(width - filled));
    text
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    if value < 0.0 && digits != "0" { format!("−{text}") } else { text }
}

/// Three significant figures, as rates and small times want them: `0.42`, `9.61`, `48.3`, `1,234`.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".to_owned(),
        v if v < 9.995 => format!("{value:.2}"),
        v if v < 99.95 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

/// Milliseconds: `7.3`, `48`, `1,234`; `–` where there is no such time.
pub fn millis(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".to_owned(),
        v if v < 19.95 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

/// Pads to a width on the left, counting characters, not bytes.
pub fn right(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(text.chars().count())))
}

/// Pads to a width on the right.
pub fn left(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.chars().count())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(thousands(1_234_567.2), "1,234,567");
        assert_eq!((thousands(999.4), thousands(0.0)), ("999".to_owned(), "0".to_owned()));
        assert_eq!(thousands(-1234.0), "−1,234");
        assert_eq!(figure(9.996), "10.0");
        assert_eq!(
            (figure(0.42), figure(48.26), figure(f64::INFINITY)),
            ("0.42".into(), "48.3".into(), "–".into())
        );
        assert_eq!(
            (millis(7.31), millis(48.2), millis(12_345.0)),
            ("7.3".into(), "48".into(), "12,345".into())
        );
    }

    #[test]
    fn bars_are_as_wide_as_asked() {
        assert_eq!(bar(0.5, 4), "██··");
        assert_eq!(bar(0.28, 4), "█▏··");
        assert_eq!((bar(7.0, 3), bar(-1.0, 3)), ("███".to_owned(), "···".to_owned()));
    }

    #[test]
    fn nothing_is_coloured_unasked() {
        assert_eq!(Paint::plain().tone(Tone::of(2.0), "x"), "x");
        assert_eq!(Paint { on: true }.tone(Tone::of(0.9), "x"), "\x1b[33mx\x1b[0m");
    }
}
