//! Readers for the public trace formats.

use std::path::Path;

use serde::Deserialize;

use super::{TRACE_BLOCK_TOKENS, Trace, TraceRequest};

/// The formats that [`read`] knows; it tells them apart by the first character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// Azure LLM inference traces: CSV with `TIMESTAMP,ContextTokens,GeneratedTokens`.
    AzureCsv,
    /// Mooncake traces: one JSON object a line with `timestamp` (ms), `input_length`, `output_length`,
    /// `hash_ids`.
    MooncakeJsonl,
}

/// How to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// Drop a last line that was cut short instead of refusing the file.
    pub allow_truncated: bool,
}

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be opened or read.
    #[error(
        "{file}: {source}; check the path, or name a generated trace: azure-conv, azure-code, mooncake, constant, ramp, staircase, flash-crowd"
    )]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not text.
    #[error("{file}: line {line} is not UTF-8 text; if the file is compressed, unpack it first")]
    NotText {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
    },
    /// No request in it.
    #[error("{file}: has no requests; expected a header and lines (Azure CSV) or JSON lines (Mooncake)")]
    Empty {
        /// The file.
        file: String,
    },
    /// The CSV header is not Azure's.
    #[error(
        "{file}: line 1: no column {missing:?} in header {found:?}; expected \
         TIMESTAMP,ContextTokens,GeneratedTokens (Azure CSV) or JSON lines (Mooncake)"
    )]
    Header {
        /// The file.
        file: String,
        /// The column that is absent.
        missing: &'static str,
        /// The header as it stands, shortened.
        found: String,
    },
    /// A value cannot be used.
    #[error("{file}: line {line}, column {column}: {problem}; correct or remove that line")]
    Value {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column or field name.
        column: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The last line ends in the middle.
    #[error(
        "{file}: line {line} is cut short ({problem}); the file is incomplete: fetch it again, \
         or pass --allow-truncated to drop that line"
    )]
    Truncated {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What was wrong with it.
        problem: String,
    },
}

/// Reads a trace file in either format.
///
/// # Errors
/// [`TraceError`] naming file, line, column and remedy.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Trace, TraceError> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| TraceError::Io { file: file.clone(), source })?;
    let name = path.file_name().map_or_else(|| file.clone(), |n| n.to_string_lossy().into_owned());
    parse_as(&file, name, &bytes, options)
}

/// Reads a trace from memory; `name` stands for the file in messages.
///
/// # Errors
/// As [`read`].
pub fn parse(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Trace, TraceError> {
    parse_as(name, name.to_owned(), bytes, options)
}

fn parse_as(file: &str, name: String, bytes: &[u8], options: &ReadOptions) -> Result<Trace, TraceError> {
    let text = decode(file, bytes, options)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let format = match text.trim_start().chars().next() {
        None => return Err(TraceError::Empty { file: file.to_owned() }),
        Some('{') => TraceFormat::MooncakeJsonl,
        Some(_) => TraceFormat::AzureCsv,
    };
    let mut trace = Trace { name, ..Trace::default() };
    let mut clamped = 0usize;
    let mut blocks_differ = 0usize;
    let parser = match format {
        TraceFormat::AzureCsv => Some(AzureColumns::from_header(file, text)?),
        TraceFormat::MooncakeJsonl => None,
    };
    for line in Lines::new(text, usize::from(parser.is_some())) {
        let parsed = match &parser {
            Some(columns) => columns.request(line.text),
            None => mooncake_request(line.text),
        };
        match parsed {
            Ok(mut request) => {
                clamped += usize::from(request.input_tokens == 0 || request.output_tokens == 0);
                request.input_tokens = request.input_tokens.max(1);
                request.output_tokens = request.output_tokens.max(1);
                if !request.blocks.is_empty() {
                    let wanted = request.input_tokens.div_ceil(TRACE_BLOCK_TOKENS) as usize;
                    blocks_differ += usize::from(request.blocks.len() != wanted);
                }
                if line.unterminated && format == TraceFormat::AzureCsv {
                    trace.notes.push(format!(
                        "line {}: no line end after the last number (Azure's own files have none); if the file was cut short, that number may be too",
                        line.number
                    ));
                }
                trace.requests.push(request);
            }
            Err(bad) if line.unterminated => {
                let problem = format!("column {}: {}", bad.column, bad.problem);
                if !options.allow_truncated {
                    return Err(TraceError::Truncated { file: file.to_owned(), line: line.number, problem });
                }
                trace.notes.push(format!("line {}: cut short, dropped", line.number));
            }
            Err(bad) => {
                return Err(TraceError::Value {
                    file: file.to_owned(),
                    line: line.number,
                    column: bad.column,
                    problem: bad.problem,
                });
            }
        }
    }
    if trace.requests.is_empty() {
        return Err(TraceError::Empty { file: file.to_owned() });
    }
    if clamped > 0 {
        trace.notes.push(format!("{clamped} lengths of zero tokens: taken as 1"));
    }
    if blocks_differ > 0 {
        trace.notes.push(format!(
            "{blocks_differ} requests whose hash_ids do not cover their input_length in blocks of {TRACE_BLOCK_TOKENS} tokens: \
             lengths were kept"
        ));
    }
    order(&mut trace);
    Ok(trace)
}

/// Sorts by time where needed and starts the clock at the first arrival.
fn order(trace: &mut Trace) {
    let out_of_order = trace.requests.windows(2).filter(|w| w[1].at_ms < w[0].at_ms).count();
    if out_of_order > 0 {
        trace.requests.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        trace.notes.push(format!("{out_of_order} timestamps were out of order: sorted"));
    }
    let start = trace.requests.first().map_or(0.0, |r| r.at_ms);
    for r in &mut trace.requests {
        r.at_ms -= start;
    }
}

/// UTF-8, forgiving a character that the end of the file cuts in two when the options do.
fn decode<'a>(file: &str, bytes: &'a [u8], options: &ReadOptions) -> Result<&'a str, TraceError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) => {
            let valid = &bytes[..e.valid_up_to()];
            let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
            match std::str::from_utf8(valid) {
                Ok(text) if e.error_len().is_none() && options.allow_truncated => Ok(text),
                _ => Err(TraceError::NotText { file: file.to_owned(), line }),
            }
        }
    }
}

struct Line<'a> {
    number: usize,
    text: &'a str,
    /// Whether the file ends in this line without a line end.
    unterminated: bool,
}

/// Non-blank lines with their numbers.
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, skip: usize) -> Self {
        let mut lines = Self { rest: text, number: 0 };
        for _ in 0..skip {
            lines.next();
        }
        lines
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        while !self.rest.is_empty() {
            self.number += 1;
            let (text, rest, unterminated) = match self.rest.split_once('\n') {
                Some((text, rest)) => (text, rest, false),
                None => (self.rest, "", true),
            };
            self.rest = rest;
            let text = text.trim();
            if !text.is_empty() {
                return Some(Line { number: self.number, text, unterminated });
            }
        }
        None
    }
}

/// A value that cannot be used: column and problem, before file and line are known.
struct BadValue {
    column: String,
    problem: String,
}

fn bad(column: &str, problem: String) -> BadValue {
    BadValue { column: column.to_owned(), problem }
}

/// Shortened for messages.
fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Where Azure's three columns are; others are allowed and ignored.
struct AzureColumns {
    timestamp: usize,
    context: usize,
    generated: usize,
}

impl AzureColumns {
    fn from_header(file: &str, text: &str) -> Result<Self, TraceError> {
        let header = Lines::new(text, 0).next().map_or("", |l| l.text);
        let names: Vec<&str> = header.split(',').map(|c| c.trim().trim_matches('"')).collect();
        let find = |missing: &'static str| {
            names.iter().position(|c| c.eq_ignore_ascii_case(missing)).ok_or_else(|| TraceError::Header {
                file: file.to_owned(),
                missing,
                found: excerpt(header),
            })
        };
        Ok(Self {
            timestamp: find("TIMESTAMP")?,
            context: find("ContextTokens")?,
            generated: find("GeneratedTokens")?,
        })
    }

    fn request(&self, line: &str) -> Result<TraceRequest, BadValue> {
        let fields: Vec<&str> = line.split(',').map(|f| f.trim().trim_matches('"')).collect();
        let field = |index: usize, column: &str| {
            fields.get(index).copied().ok_or_else(|| {
                bad(column, format!("the line has {} columns, this is number {}", fields.len(), index + 1))
            })
        };
        Ok(TraceRequest {
            at_ms: timestamp_ms(field(self.timestamp, "TIMESTAMP")?)?,
            input_tokens: tokens("ContextTokens", field(self.context, "ContextTokens")?)?,
            output_tokens: tokens("GeneratedTokens", field(self.generated, "GeneratedTokens")?)?,
            blocks: Vec::new(),
        })
    }
}

/// Milliseconds since the Unix epoch of `2023-11-16 18:17:03.9799600`, with or without an offset.
fn timestamp_ms(text: &str) -> Result<f64, BadValue> {
    let timestamp = text.parse::<jiff::Timestamp>().or_else(|_| {
        text.parse::<jiff::civil::DateTime>()
            .and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::UTC))
            .map(|zoned| zoned.timestamp())
    });
    match timestamp {
        // A whole second's length guards against `2023-11-16`, which is what a cut time can look like.
        Ok(t) if text.len() >= "2023-11-16 18:17:03".len() => Ok(t.as_nanosecond() as f64 / 1e6),
        _ => Err(bad(
            "TIMESTAMP",
            format!("{:?} is not a time like 2023-11-16 18:17:03.9799600", excerpt(text)),
        )),
    }
}

fn tokens(column: &str, text: &str) -> Result<u32, BadValue> {
    text.parse::<u32>().map_err(|_| {
        bad(column, format!("{:?} is not a whole number of tokens from 0 to {}", excerpt(text), u32::MAX))
    })
}

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

fn mooncake_request(line: &str) -> Result<TraceRequest, BadValue> {
    let parsed: MooncakeLine = serde_json::from_str(line).map_err(|e| {
        // serde_json says where: in the line, its column is the character.
        let message = e.to_string();
        let problem = message.split(" at line ").next().unwrap_or(&message).to_owned();
        bad(&e.column().to_string(), format!("{problem} in {:?}", excerpt(line)))
    })?;
    if !parsed.timestamp.is_finite() || parsed.timestamp < 0.0 {
        return Err(bad("timestamp", format!("{} is not a time in milliseconds ≥ 0", parsed.timestamp)));
    }
    Ok(TraceRequest {
        at_ms: parsed.timestamp,
        input_tokens: parsed.input_length,
        output_tokens: parsed.output_length,
        blocks: parsed.hash_ids,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2023-11-16 18:17:03.9799600,4808,10\n\
        2023-11-16 18:17:04.0319600,3180,8\n";
    const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 600, "output_length": 50, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 1100, "output_length": 4, "hash_ids": [0, 1, 2]}
"#;
    const STRICT: ReadOptions = ReadOptions { allow_truncated: false };
    const LAX: ReadOptions = ReadOptions { allow_truncated: true };

    #[test]
    fn azure_keeps_100_ns_and_starts_at_zero() {
        let t = parse("a.csv", AZURE.as_bytes(), &STRICT).unwrap();
        assert_eq!(t.requests.len(), 2);
        assert_eq!(t.requests[0].at_ms, 0.0);
        assert!((t.requests[1].at_ms - 52.0).abs() < 1e-3, "{}", t.requests[1].at_ms);
        assert_eq!((t.requests[0].input_tokens, t.requests[0].output_tokens), (4808, 10));
        assert!(t.notes.is_empty());
    }

    #[test]
    fn azure_of_2024_has_offsets_and_windows_line_ends() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00.009930+00:00,2162,5\r\n\
                    2024-05-10 00:00:01+00:00,2399,6\r\n";
        let t = parse("a.csv", text.as_bytes(), &STRICT).unwrap();
        assert!((t.requests[1].at_ms - 990.07).abs() < 1e-3);
    }

    #[test]
    fn mooncake_keeps_blocks() {
        let t = parse("m.jsonl", MOONCAKE.as_bytes(), &STRICT).unwrap();
        assert_eq!(t.requests[1].blocks, [0, 1, 2]);
        assert_eq!(t.requests[1].at_ms, 3000.0);
        assert!((t.stats().shareable_blocks - 0.4).abs() < 1e-9);
    }

    /// Every cut that loses part of the last record is either refused with the line's number, or (Azure, inside
    /// the last number) noted; with `allow_truncated` the whole records before it are always read.
    #[rstest]
    #[case(AZURE, 3)]
    #[case(MOONCAKE, 2)]
    fn every_cut_of_the_last_line_is_noticed(#[case] text: &str, #[case] last_line: usize) {
        let start = text.trim_end().rfind('\n').unwrap() + 1;
        for end in start + 1..text.trim_end().len() {
            let cut = &text.as_bytes()[..end];
            match parse("f", cut, &STRICT) {
                Err(e @ TraceError::Truncated { line, .. }) => {
                    assert_eq!(line, last_line);
                    assert!(e.to_string().contains("--allow-truncated"), "{e}");
                    assert_eq!(parse("f", cut, &LAX).unwrap().requests.len(), 1);
                }
                Ok(t) => assert!(t.notes.iter().any(|n| n.contains("cut short")), "cut at {end}"),
                Err(e) => panic!("cut at {end}: {e}"),
            }
        }
    }

    #[rstest]
    #[case("", "has no requests")]
    #[case("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no requests")]
    #[case("time,in,out\n1,2,3\n", "no column \"TIMESTAMP\" in header \"time,in,out\"")]
    #[case("TIMESTAMP,ContextTokens\n", "no column \"GeneratedTokens\"")]
    #[case(
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n",
        "line 2, column TIMESTAMP: \"yesterday\""
    )]
    #[case(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-4,2\n",
        "line 2, column ContextTokens: \"-4\""
    )]
    #[case("{\"timestamp\": 0, \"input_length\": 6}\n", "line 1, column 35: missing field `output_length`")]
    #[case(
        "{\"timestamp\": -1, \"input_length\": 6, \"output_length\": 1}\n",
        "line 1, column timestamp: -1 is not"
    )]
    fn bad_files_are_named_to_the_column(#[case] text: &str, #[case] expected: &str) {
        let e = parse("bad.csv", text.as_bytes(), &STRICT).unwrap_err().to_string();
        assert!(e.starts_with("bad.csv:") && e.contains(expected), "{e}");
    }

    #[test]
    fn a_bad_line_in_the_middle_is_not_truncation() {
        let text = AZURE.replace("3180", "x") + "2023-11-16 18:17:05,1,1\n";
        assert!(matches!(parse("f", text.as_bytes(), &LAX), Err(TraceError::Value { line: 3, .. })));
    }

    #[test]
    fn binary_is_refused() {
        let e = parse("f.gz", b"\x1f\x8b\x08\x00", &STRICT).unwrap_err();
        assert!(e.to_string().contains("unpack"), "{e}");
    }

    #[test]
    fn unsorted_times_are_sorted_with_a_note() {
        let text =
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:05,1,1\n2023-11-16 18:17:03,2,0\n";
        let t = parse("f", text.as_bytes(), &STRICT).unwrap();
        assert_eq!(t.requests[0].input_tokens, 2);
        assert_eq!(t.requests[0].output_tokens, 1);
        assert_eq!(t.notes.len(), 2, "{:?}", t.notes);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(
            head in proptest::sample::select(vec!["", "{", "TIMESTAMP,ContextTokens,GeneratedTokens\n"]),
            tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            lax: bool,
        ) {
            let mut bytes = head.as_bytes().to_vec();
            bytes.extend(tail);
            let _ = parse("f", &bytes, &ReadOptions { allow_truncated: lax });
        }
    }

    #[test]
    fn a_missing_file_says_what_else_to_do() {
        let e = read(Path::new("no-such-trace.csv"), &STRICT).unwrap_err().to_string();
        assert!(e.contains("no-such-trace.csv") && e.contains("flash-crowd"), "{e}");
    }
}
