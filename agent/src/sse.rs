//! Server-sent events from engines: forwarded event by event without copying, read on the way.

mod chunk;

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use memchr::memmem::{Finder, find};
use serde::Deserialize;

use self::chunk::Chunk;
use crate::body::{members, with_members};

/// The longest event that is read; the rest of a longer one passes unread.
const MAX_EVENT_BYTES: usize = 512 * 1024;

/// Token counts of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Usage {
    /// Prompt tokens.
    #[serde(default, alias = "input_tokens")]
    pub prompt_tokens: u64,
    /// Answer tokens, reasoning included.
    #[serde(default, alias = "output_tokens")]
    pub completion_tokens: u64,
    /// Details of the prompt.
    #[serde(default, alias = "input_tokens_details")]
    pub prompt_tokens_details: Option<PromptDetails>,
}

/// Details of a prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct PromptDetails {
    /// Served from the prefix cache.
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens served from the prefix cache (0 if the engine does not say).
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0)
    }

    fn set_cached_tokens(&mut self, cached_tokens: Option<u64>) {
        let cached_tokens = cached_tokens.map(|c| c.min(self.prompt_tokens));
        self.prompt_tokens_details = cached_tokens.map(|c| PromptDetails { cached_tokens: Some(c) });
    }
}

/// What a stream has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Events that carried part of an answer.
    pub token_events: u64,
    /// Token counts, once the engine gave them.
    pub usage: Option<Usage>,
    /// `[DONE]` was seen.
    pub done: bool,
    /// A finish reason (or a completed response) was seen.
    pub finished: bool,
    /// The engine sent an error event.
    pub error: bool,
}

/// Reads one stream.
#[derive(Debug)]
pub struct SseScanner {
    strip_usage: bool,
    rename: Option<(Vec<u8>, Vec<u8>)>,
    /// Somebody else computed the prompt, and found so much of it cached, as far as is known.
    elsewhere: Option<Option<u64>>,
    tail: BytesMut,
    /// Bytes of `tail` in which no event ends.
    searched: usize,
    raw: bool,
    seen: Seen,
    id: Id,
}

/// The name that an answer has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Unread,
    Wanted,
    Found(String),
}

// Every event of every stream is searched for these.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\":"));
static FINISH_REASON: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\":"));
static COMPLETED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"response.completed\""));
static CONTENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"content\":"));
static NO_CHOICES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"choices\":[]"));
static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b".delta\""));

enum Keep {
    Same,
    Drop,
    Replace(Vec<u8>),
}

impl SseScanner {
    /// `strip_usage` drops the usage chunk that the client did not ask for; `rename` is `(engine's model name, name the
    /// client used)` where they differ.
    pub fn new(strip_usage: bool, rename: Option<(&str, &str)>) -> Self {
        let quoted = |name: &str| serde_json::Value::from(name).to_string().into_bytes();
        Self {
            strip_usage,
            rename: rename.map(|(from, to)| (quoted(from), quoted(to))),
            elsewhere: None,
            tail: BytesMut::new(),
            searched: 0,
            raw: false,
            seen: Seen::default(),
            id: Id::Unread,
        }
    }

    /// The answer's name is to be read.
    #[must_use]
    pub fn keeping_id(mut self) -> Self {
        self.id = Id::Wanted;
        self
    }

    /// The answer's name, once, as soon as it is known.
    pub fn take_id(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.id, Id::Unread) {
            Id::Found(id) => Some(id),
            other => {
                self.id = other;
                None
            }
        }
    }

    /// The prompt was computed elsewhere, where so many of its tokens were cached (`None`: not known): from now on usage says
    /// so instead of what the engine says.
    pub fn prompt_came_from_elsewhere(&mut self, cached_tokens: Option<u64>) {
        self.elsewhere = Some(cached_tokens);
    }

    /// What was seen so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What came of an event that is not whole yet.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Takes a chunk and returns what may be sent on: whole events, as they came.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let data = if self.tail.is_empty() {
            chunk
        } else {
            self.tail.extend_from_slice(&chunk);
            // However small the parts that an event comes in, each of its bytes is looked at once.
            if !self.raw
                && self.tail.len() <= MAX_EVENT_BYTES
                && event_end(&self.tail, self.searched).is_none()
            {
                self.searched = self.tail.len().saturating_sub(2);
                return Bytes::new();
            }
            self.tail.split().freeze()
        };
        self.searched = 0;
        let mut at = 0;
        // Copied output, once an event was dropped or changed; until then a slice of `data` will do.
        let mut out: Option<BytesMut> = None;
        while let Some(end) = event_end(&data, at) {
            let keep = if self.raw { Keep::Same } else { self.event(&data[at..end]) };
            self.raw = false;
            match (&mut out, keep) {
                (None, Keep::Same) => {}
                (Some(buffer), Keep::Same) => buffer.extend_from_slice(&data[at..end]),
                (_, keep) => {
                    let buffer = out.get_or_insert_with(|| BytesMut::from(&data[..at]));
                    if let Keep::Replace(text) = keep {
                        buffer.extend_from_slice(&text);
                    }
                }
            }
            at = end;
        }
        let overlong = data.len() - at > MAX_EVENT_BYTES || self.raw;
        if overlong {
            // Keep a trailing newline back, so that the end of this event is still recognised.
            let cut = if data.ends_with(b"\n") { data.len() - 1 } else { data.len() };
            self.raw = true;
            let cut = cut.max(at);
            if let Some(buffer) = &mut out {
                buffer.extend_from_slice(&data[at..cut]);
            }
            self.tail.extend_from_slice(&data[cut..]);
            return out.map_or_else(|| data.slice(..cut), BytesMut::freeze);
        }
        self.tail.extend_from_slice(&data[at..]);
        out.map_or_else(|| data.slice(..at), BytesMut::freeze)
    }

    /// The stream is over: returns what was held back (an event without its final blank line).
    pub fn finish(&mut self) -> Bytes {
        let rest = self.tail.split().freeze();
        if rest.is_empty() || self.raw {
            return rest;
        }
        match self.event(&rest) {
            Keep::Same => rest,
            Keep::Drop => Bytes::new(),
            Keep::Replace(text) => text.into(),
        }
    }

    fn event(&mut self, event: &[u8]) -> Keep {
        let mut keep = Keep::Same;
        let mut from = 0;
        while from < event.len() {
            let start = from;
            from = memchr(b'\n', &event[start..]).map_or(event.len(), |n| start + n + 1);
            let line = &event[start..from];
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            match self.data(data.trim_ascii()) {
                Keep::Same => {}
                Keep::Drop => return Keep::Drop,
                Keep::Replace(text) => {
                    let mut changed = event[..start].to_vec();
                    changed.extend_from_slice(b"data: ");
                    changed.extend_from_slice(&text);
                    let ending = line.len() - line.trim_ascii_end().len();
                    changed.extend_from_slice(&line[line.len() - ending..]);
                    changed.extend_from_slice(&event[from..]);
                    keep = Keep::Replace(changed);
                }
            }
        }
        keep
    }

    fn data(&mut self, data: &[u8]) -> Keep {
        if data == b"[DONE]" {
            self.seen.done = true;
            return Keep::Same;
        }
        if self.id == Id::Wanted
            && let Some(id) = id_of(data)
        {
            self.id = Id::Found(id);
        }
        let mut drop = false;
        let mut corrected = None;
        // A string cannot hold an unescaped quote, so these bytes are a member's name.
        let usage = USAGE
            .find(data)
            .map(|at| data[at + USAGE.needle().len()..].trim_ascii_start())
            .filter(|value| !value.starts_with(b"null"));
        match usage {
            None if self.seen.token_events > 0 || has_text(data) => self.seen.token_events += 1,
            // The usual last word: nothing but the counts.
            Some(value) if self.elsewhere.is_none() && NO_CHOICES.find(data).is_some() => {
                let mut counts = serde_json::Deserializer::from_slice(value);
                if let Ok(counts) = Usage::deserialize(&mut counts) {
                    self.seen.usage = Some(counts);
                    drop = self.strip_usage;
                }
            }
            _ => {
                if let Ok(chunk) = serde_json::from_slice::<Chunk>(data) {
                    let choices = chunk.choices.unwrap_or_default();
                    if let Some(mut found) = chunk.usage.or(chunk.response.and_then(|r| r.usage)) {
                        if let Some(cached) = self.elsewhere {
                            corrected = with_cached_tokens(data, cached);
                            found.set_cached_tokens(cached);
                        }
                        self.seen.usage = Some(found);
                        drop = self.strip_usage && chunk.choices.is_some() && !choices.any;
                    }
                    if choices.token {
                        self.seen.token_events += 1;
                    }
                }
                if DELTA.find(data).is_some() {
                    self.seen.token_events += 1;
                }
            }
        }
        self.seen.finished |= finishes(data);
        if data.starts_with(b"{\"error\":")
            || data.starts_with(b"{\"error\" :")
            || data.starts_with(b"{\"object\":\"error\"")
        {
            self.seen.error = true;
        }
        if drop {
            return Keep::Drop;
        }
        let renamed = match &self.rename {
            Some((from, to)) => rename_model(corrected.as_deref().unwrap_or(data), from, to),
            None => None,
        };
        renamed.or(corrected).map_or(Keep::Same, Keep::Replace)
    }
}

/// Whether an event certainly has text of an answer.
fn has_text(data: &[u8]) -> bool {
    let content = CONTENT.find(data).map(|at| data[at + CONTENT.needle().len()..].trim_ascii_start());
    content.and_then(|value| value.strip_prefix(b"\"")).is_some_and(|text| !text.starts_with(b"\""))
}

/// Whether an event has a finish reason, or says that a response is complete.
fn finishes(data: &[u8]) -> bool {
    let mut rest = data;
    let mut reasons = false;
    while let Some(at) = FINISH_REASON.find(rest) {
        rest = &rest[at + FINISH_REASON.needle().len()..];
        if rest.starts_with(b"\"") || rest.starts_with(b" \"") {
            return true;
        }
        reasons = true;
    }
    // What has reasons is no event of a response.
    !reasons && COMPLETED.find(data).is_some()
}

/// The `id` of an answer or of a part of one, or of the response that an event is about.
pub(crate) fn id_of(data: &[u8]) -> Option<String> {
    let named: Named = serde_json::from_slice(data).ok()?;
    named.id.or_else(|| named.response?.id).filter(|id| !id.is_empty())
}

#[derive(Deserialize)]
struct Named {
    id: Option<String>,
    response: Option<NamedResponse>,
}

#[derive(Deserialize)]
struct NamedResponse {
    id: Option<String>,
}

/// An answer, or a part of one, whose usage says that so many prompt tokens were cached (`None`: it says nothing of it). The text
/// must be valid JSON. `None`: it needs no change.
pub(crate) fn with_cached_tokens(data: &[u8], cached_tokens: Option<u64>) -> Option<Vec<u8>> {
    let member = |text: &[u8], wanted: &str| {
        let mut all = members(text);
        all.find(|(name, ..)| name == wanted)
            .map(|(_, _, value)| value)
            .filter(|v| text[v.clone()].starts_with(b"{"))
    };
    let at = member(data, "usage")?;
    let usage = &data[at.clone()];
    let prompt = serde_json::from_slice::<Usage>(usage).ok()?.prompt_tokens;
    let details = member(usage, "prompt_tokens_details");
    let details = match (details, cached_tokens) {
        (None, None) => return None,
        (Some(_), None) => "null".to_owned(),
        (details, Some(cached)) => {
            let text = details.map_or(&b"{}"[..], |at| &usage[at]);
            let set = with_members(text, &[("cached_tokens", Some(cached.min(prompt).to_string()))]);
            String::from_utf8(set.to_vec()).ok()?
        }
    };
    let usage = with_members(usage, &[("prompt_tokens_details", Some(details))]);
    Some([&data[..at.start], &usage, &data[at.end..]].concat())
}

/// The text with its first `"model": FROM` changed to `TO` (both quoted), or `None` if there is none.
pub fn rename_model(data: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut rest = data;
    // "model" may also be a value.
    let rest = loop {
        rest = &rest[find(rest, b"\"model\"")? + 7..];
        if let Some(value) = rest.trim_ascii_start().strip_prefix(b":") {
            break value.trim_ascii_start();
        }
    };
    let after = rest.strip_prefix(from)?;
    let start = data.len() - rest.len();
    let mut out = Vec::with_capacity(data.len() + to.len());
    out.extend_from_slice(&data[..start]);
    out.extend_from_slice(to);
    out.extend_from_slice(after);
    Some(out)
}

/// The end (after the blank line) of the event that begins at `from`.
pub(crate) fn event_end(data: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let newline = at + memchr(b'\n', &data[at..])?;
        match data.get(newline + 1) {
            Some(b'\n') => return Some(newline + 2),
            Some(b'\r') if data.get(newline + 2) == Some(&b'\n') => return Some(newline + 3),
            _ => at = newline + 1,
        }
    }
}

/// Token counts of a whole (not streamed) answer.
pub fn usage_of(body: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<Usage>,
    }
    serde_json::from_slice::<Answer>(body).ok()?.usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        ": ping\n\n",
        "data: {\"model\":\"e\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"model\":\"e\",\"choices\":[{\"delta\":{\"content\":\"a \\\"usage\\\": \\\"model\\\":\\\"e\\\" x\"}}]}\n\n",
        "data: {\"model\": \"e\",\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\r\n\r\n",
        "data: {\"model\":\"e\",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn run(scanner: &mut SseScanner, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut from = 0;
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(text.len());
        for cut in cuts {
            out.extend_from_slice(&scanner.push(Bytes::copy_from_slice(&text[from..cut])));
            from = cut;
        }
        out.extend_from_slice(&scanner.finish());
        out
    }

    #[test]
    fn the_answers_name_is_read_wherever_it_is() {
        for (said, id) in [
            (&br#"{"id":"chatcmpl-1","choices":[]}"#[..], Some("chatcmpl-1")),
            (br#"{"type":"response.created","response":{"id":"resp_1"}}"#, Some("resp_1")),
            (br#"{"id":7}"#, None),
            (br#"{"id":""}"#, None),
            (b"{}", None),
            (b"[DONE]", None),
        ] {
            assert_eq!(id_of(said).as_deref(), id);
        }
        let mut scanner = SseScanner::new(false, None).keeping_id();
        scanner.push(Bytes::from_static(
            b": hello\n\ndata: {\"x\":1}\n\ndata: {\"id\":\"a\"}\n\ndata: {\"id\":\"b\"}\n\n",
        ));
        assert_eq!((scanner.take_id().as_deref(), scanner.take_id()), (Some("a"), None));
        let mut scanner = SseScanner::new(false, None);
        scanner.push(Bytes::from_static(b"data: {\"id\":\"a\"}\n\n"));
        assert_eq!(scanner.take_id(), None);
    }

    #[test]
    fn whole_events_are_slices_of_the_chunk() {
        let chunk = Bytes::from_static(STREAM.as_bytes());
        let out = SseScanner::new(false, None).push(chunk.clone());
        assert_eq!(out.as_ptr(), chunk.as_ptr());
        assert_eq!(out, chunk);
    }

    #[test]
    fn an_overlong_event_passes_and_the_next_is_read() {
        let mut scanner = SseScanner::new(true, None);
        let long = format!("data: {}\n\n", "x".repeat(2 * MAX_EVENT_BYTES));
        let text = format!("{long}{STREAM}");
        let cuts: Vec<usize> = (0..text.len()).step_by(60_000).collect();
        let out = run(&mut scanner, text.as_bytes(), &cuts);
        assert!(out.starts_with(long.as_bytes()));
        assert!(scanner.seen().done);
        assert!(scanner.tail.is_empty());
    }

    #[test]
    fn usage_says_what_was_cached_where_the_prompt_was_computed() {
        let scan = |cached, text: &str, cuts: &[usize]| {
            let mut scanner = SseScanner::new(false, Some(("e", "pool")));
            scanner.prompt_came_from_elsewhere(cached);
            let out = String::from_utf8(run(&mut scanner, text.as_bytes(), cuts)).unwrap();
            (out, scanner.seen().usage.unwrap().cached_tokens())
        };
        for cuts in [&[][..], &[40, 300, 460, 520]] {
            let (known, seen) = scan(Some(3), STREAM, cuts);
            assert!(
                known.contains("\"cached_tokens\":3") && !known.contains("\"cached_tokens\":8"),
                "{known}"
            );
            assert_eq!(seen, 3);
            assert_eq!(known.matches("data:").count(), STREAM.matches("data:").count());
            assert!(!known.contains("\"model\":\"e\","), "renamed all the same");
        }
        let (unknown, seen) = scan(None, STREAM, &[]);
        assert!(unknown.contains("\"prompt_tokens_details\":null") && seen == 0, "{unknown}");
        let (most, _) = scan(Some(1_000), STREAM, &[]);
        assert!(most.contains("\"cached_tokens\":11"), "never more than there are: {most}");

        let changed = |text: &str, cached| {
            let text = with_cached_tokens(text.as_bytes(), cached)?;
            Some(serde_json::from_slice::<serde_json::Value>(&text).unwrap())
        };
        let details = r#"{"a":1,"usage":{"prompt_tokens":9,"prompt_tokens_details":{"audio_tokens":2,"cached_tokens":9}},"b":"usage"}"#;
        assert_eq!(
            changed(details, Some(4)).unwrap(),
            serde_json::json!({"a": 1, "b": "usage", "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"audio_tokens": 2, "cached_tokens": 4}}})
        );
        let silent = r#"{"usage":{"prompt_tokens":9}}"#;
        assert_eq!(changed(silent, Some(4)).unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
        assert_eq!(changed(silent, None), None, "it says nothing that is false");
        assert_eq!(changed(r#"{"usage":null}"#, Some(4)), None);
        assert_eq!(changed(r#"{"choices":[]}"#, Some(4)), None);
    }

    #[test]
    fn responses_api_usage_is_read() {
        let mut s = SseScanner::new(false, None);
        run(&mut s, b"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n", &[]);
        assert_eq!(s.seen().usage.unwrap().completion_tokens, 4);
        assert!(s.seen().finished && s.seen().token_events >= 1);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_reading_is_the_same(cuts in prop::collection::vec(0usize..2000, 0..20)) {
            let mut scanner = SseScanner::new(true, Some(("e", "pool")));
            let out = String::from_utf8(run(&mut scanner, STREAM.as_bytes(), &cuts)).unwrap();
            let seen = *scanner.seen();
            prop_assert_eq!(seen.token_events, 2);
            prop_assert!(seen.done && seen.finished && !seen.error);
            let usage = seen.usage.unwrap();
            prop_assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()), (11, 2, 8));
            prop_assert!(!out.contains("prompt_tokens"));
            prop_assert!(!out.contains("\"model\":\"e\",") && out.contains("\"model\":\"pool\""), "{}", out);
            prop_assert!(out.contains("\\\"model\\\":\\\"e\\\""), "content is left alone");
            prop_assert!(out.ends_with("data: [DONE]\n\n"));
        }

        #[test]
        fn any_bytes_pass_unchanged(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'd'), Just(b':'), any::<u8>()], 0..300), cuts in prop::collection::vec(0usize..300, 0..10)) {
            let mut scanner = SseScanner::new(false, None);
            prop_assert_eq!(run(&mut scanner, &bytes, &cuts), bytes);
        }
    }
}
