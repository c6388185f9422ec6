//! A transcript that is read when it is needed: of most answers it never is.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;

use super::{Passed, Transcript};
use crate::body::Api;
use crate::sse::Usage;

/// Most bytes of events that wait to be read.
const MOST_UNREAD: usize = 16 << 10;

/// What every event contains that says that the engine failed.
static FAILURES: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| [Finder::new(b"\"error\""), Finder::new(b"\"abort\"")]);

/// A [`Transcript`], and events that have passed but were not read yet.
#[derive(Debug, Clone)]
pub struct Deferred {
    transcript: Transcript,
    unread: Vec<u8>,
}

impl Deferred {
    /// Of an answer that has not begun.
    pub fn new(api: Api) -> Self {
        Self { transcript: Transcript::new(api), unread: Vec::new() }
    }

    /// As [`Transcript::pass`].
    pub fn pass(&mut self, events: Bytes) -> Passed {
        let heed = self.transcript.splicing
            || events.len() > MOST_UNREAD
            || FAILURES.iter().any(|said| said.find(&events).is_some());
        if heed {
            return self.read().pass(events);
        }
        if self.transcript.unfit.is_none() {
            if self.unread.len() + events.len() > MOST_UNREAD {
                self.read();
            }
            self.unread.extend_from_slice(&events);
        }
        Passed { out: events, broke: None }
    }

    /// The transcript of all that has passed.
    pub fn read(&mut self) -> &mut Transcript {
        if !self.unread.is_empty() {
            // They pass unchanged: nothing in them breaks the stream, and nothing is spliced.
            let _ = self.transcript.pass(std::mem::take(&mut self.unread).into());
        }
        &mut self.transcript
    }

    /// As [`Transcript::total`], given what the last stream told of itself if it did: then no event says more.
    pub fn total(&self, own: Option<Usage>) -> Option<Usage> {
        self.transcript.total(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn event(kind: usize, at: usize) -> String {
        let choice = |delta, finish| json!({"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        let data = match kind {
            0 => json!({"error": {"message": "out of memory", "code": 500}}),
            1 => choice(json!({}), json!("abort")),
            2 => choice(json!({"tool_calls": [{"index": 0}]}), json!(null)),
            3 => choice(json!({}), json!("stop")),
            4 => choice(json!({"content": "word ".repeat(at * 40)}), json!(null)),
            5 => json!({"id": "a", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": at}}),
            _ => choice(json!({"content": format!("t{at} ")}), json!(null)),
        };
        format!("data: {data}\n\n")
    }

    proptest! {
        #[test]
        fn it_says_what_a_transcript_says(kinds in prop::collection::vec(0usize..40, 0..60)) {
            let (mut eager, mut deferred) = (Transcript::new(Api::Chat), Deferred::new(Api::Chat));
            for (at, kind) in kinds.iter().enumerate() {
                let events = Bytes::from(event(*kind, at));
                let passed = eager.pass(events.clone());
                let broke = passed.broke.is_some();
                prop_assert_eq!(deferred.pass(events), passed);
                prop_assert!(deferred.unread.len() <= MOST_UNREAD);
                if broke {
                    break;
                }
            }
            let body = br#"{"messages":[]}"#;
            let read = deferred.read();
            prop_assert_eq!((read.text(), read.tokens(), read.finished()), (eager.text(), eager.tokens(), eager.finished()));
            prop_assert_eq!(read.decide(body, true), eager.decide(body, true));
            prop_assert_eq!(deferred.total(None), eager.total(None));
        }
    }
}
