//! Answers: their length, their text, and their two shapes on the wire.

use std::borrow::Cow;

use plimsoll_fleet::LengthDistribution;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, LogNormal};
use serde_json::{Value, json};

use super::request::Sampling;
use crate::engine_server::metrics::Finished;
use crate::text::{BYTES_PER_TOKEN, Pieces};

/// What the engine will answer, known before it starts: the simulated model's choice depends on the prompt
/// alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Answer {
    /// Tokens to generate.
    pub(in super::super) tokens: u32,
    /// Whether the model ends it or the limit does.
    pub(in super::super) ends: Finished,
    /// Seed of its text.
    pub(in super::super) seed: u64,
    /// Tokens of the text that the prompt holds already.
    pub(in super::super) present: u32,
    /// The rest of the last of those, where the prompt cut it.
    pub(in super::super) rest: String,
    /// The stop string that ends it, and where its text ends (bytes), if one does.
    pub(in super::super) stop: Option<(String, usize)>,
}

impl Answer {
    /// Decides length and text. With `ignore_eos` the answer is as long as the limit says; else its length is
    /// drawn from `lengths`, at least `min_tokens`, and cut at the limit. What of the answer has `begun` counts as drawn:
    /// this one goes on where that ends, with the first token whole again if it was cut (a tokenizer merges likewise).
    pub(in super::super) fn decide(
        sampling: &Sampling,
        limit: u32,
        lengths: &LengthDistribution,
        seed: u64,
        begun: &str,
    ) -> Self {
        let seed = seed ^ sampling.seed.unwrap_or(0).cast_unsigned();
        let min = sampling.min_tokens.unwrap_or(0).max(1);
        let own = if sampling.ignore_eos {
            u32::MAX
        } else {
            let (mu, sigma) = lengths.log_normal();
            let mut rng = SmallRng::seed_from_u64(seed);
            // The cast saturates.
            LogNormal::new(mu, sigma).map_or(lengths.mean_tokens, |d| d.sample(&mut rng)).round() as u32
        };
        let present = u32::try_from(begun.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX);
        let own = own.saturating_sub(present).max(min);
        let (tokens, ends) = if own <= limit { (own, Finished::Stop) } else { (limit, Finished::Length) };
        let mut answer = Self { tokens: tokens.max(1), ends, seed, present, rest: String::new(), stop: None };
        if !begun.len().is_multiple_of(BYTES_PER_TOKEN) {
            let whole: String = Pieces::new(seed).take(present as usize).collect();
            answer.rest = whole.strip_prefix(begun).unwrap_or_default().to_owned();
        }
        if let Some(stops) = &sampling.stop {
            answer.end_at(stops.as_slice(), min);
        }
        answer
    }

    /// Ends the answer where one of these strings first appears at or after `min` tokens.
    fn end_at(&mut self, stops: &[String], min: u32) {
        if stops.iter().all(String::is_empty) {
            return;
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let mut text = String::new();
        for (i, piece) in (1..=self.tokens).zip(self.endless()) {
            // Look again only where a match can end in the new piece.
            let from = text.len().saturating_sub(longest);
            text.push_str(&piece);
            if i < min {
                continue;
            }
            let tail = &text[from..];
            let first = stops
                .iter()
                .filter(|s| !s.is_empty())
                .filter_map(|s| tail.find(s.as_str()).map(|at| (from + at, s)))
                .min_by_key(|(at, _)| *at);
            if let Some((at, stop)) = first {
                self.tokens = i;
                self.ends = Finished::Stop;
                self.stop = Some((stop.clone(), at));
                return;
            }
        }
    }

    /// `finish_reason`.
    pub(in super::super) fn finish_reason(&self) -> &'static str {
        match self.ends {
            Finished::Length => "length",
            Finished::Stop | Finished::Abort => "stop",
        }
    }

    /// What the model would say from here on for ever.
    fn endless(&self) -> impl Iterator<Item = Cow<'static, str>> + Send + use<> {
        let mut rest = self.rest.clone();
        Pieces::new(self.seed).skip(self.present as usize).map(move |piece| {
            if rest.is_empty() { Cow::Borrowed(piece) } else { Cow::Owned(std::mem::take(&mut rest) + piece) }
        })
    }

    /// Its text, a token at a time; a stop string and what follows it are left out.
    pub(in super::super) fn pieces(&self) -> impl Iterator<Item = Cow<'static, str>> + Send + use<> {
        let mut room = self.stop.as_ref().map_or(usize::MAX, |(_, end)| *end);
        self.endless().take(self.tokens as usize).map(move |piece| {
            if piece.len() <= room {
                room -= piece.len();
                return piece;
            }
            let shown = piece.get(..room).unwrap_or_default().to_owned();
            room = 0;
            Cow::Owned(shown)
        })
    }

    /// `stop_reason`: the string that ended it.
    pub(in super::super) fn stop_reason(&self) -> Value {
        self.stop.as_ref().map_or(Value::Null, |(stop, _)| json!(stop))
    }
}

/// Which endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Chat,
    Completion,
}

/// What every part of one answer carries.
#[derive(Debug, Clone)]
pub(in super::super) struct Envelope {
    pub(in super::super) kind: Kind,
    /// `chatcmpl-…` or `cmpl-…`.
    pub(in super::super) id: String,
    /// Seconds since 1970.
    pub(in super::super) created: i64,
    pub(in super::super) model: String,
    pub(in super::super) prompt_tokens: u32,
}

impl Envelope {
    /// `usage`.
    pub(in super::super) fn usage(&self, tokens: u32, cached_tokens: u32) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        })
    }

    /// The whole answer.
    pub(in super::super) fn whole(&self, answer: &Answer, cached_tokens: u32) -> Value {
        let text: String = answer.pieces().collect();
        let (object, mut choice) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                json!({
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": null, "tool_calls": []},
                }),
            ),
            Kind::Completion => ("text_completion", json!({"index": 0, "text": text})),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(answer.finish_reason());
        choice["stop_reason"] = answer.stop_reason();
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": [choice],
            "usage": self.usage(answer.tokens, cached_tokens),
        })
    }

    fn object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        }
    }

    fn head(&self) -> String {
        format!(
            "data: {{\"id\":{},\"object\":\"{}\",\"created\":{},\"model\":{},\"choices\":[",
            Value::from(self.id.as_str()),
            self.object(),
            self.created,
            Value::from(self.model.as_str())
        )
    }
}

/// Server-sent events of one streamed answer. The parts that all events share are written once.
#[derive(Debug, Clone)]
pub(in super::super) struct Events {
    head: String,
    kind: Kind,
}

impl Events {
    pub(in super::super) fn new(envelope: &Envelope) -> Self {
        Self { head: envelope.head(), kind: envelope.kind }
    }

    /// The event that opens a chat answer.
    pub(in super::super) fn role(&self, out: &mut String) {
        if self.kind == Kind::Chat {
            out.push_str(&self.head);
            out.push_str(
                "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
            );
        }
    }

    /// The event of one token; `finish` is `finish_reason` and `stop_reason` with the last.
    pub(in super::super) fn token(&self, out: &mut String, piece: &str, finish: Option<(&str, &Value)>) {
        out.push_str(&self.head);
        out.push_str("{\"index\":0,");
        // Pieces are plain letters, blanks and full stops: nothing to escape.
        match self.kind {
            Kind::Chat => {
                out.push_str("\"delta\":{\"content\":\"");
                out.push_str(piece);
                out.push_str("\"}");
            }
            Kind::Completion => {
                out.push_str("\"text\":\"");
                out.push_str(piece);
                out.push('"');
            }
        }
        match finish {
            None => out.push_str(",\"logprobs\":null,\"finish_reason\":null}]}\n\n"),
            Some((reason, stop)) => {
                out.push_str(&format!(
                    ",\"logprobs\":null,\"finish_reason\":\"{reason}\",\"stop_reason\":{stop}}}]}}\n\n"
                ));
            }
        }
    }

    /// The event with the usage.
    pub(in super::super) fn usage(&self, out: &mut String, usage: &Value) {
        out.push_str(&self.head);
        out.push_str(&format!("],\"usage\":{usage}}}\n\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::OneOrMany;
    use super::*;

    const LENGTHS: LengthDistribution = LengthDistribution { mean_tokens: 200.0, p95_tokens: 600.0 };

    #[test]
    fn lengths_follow_the_distribution_and_the_limits() {
        let mean = (0..4000u64)
            .map(|s| f64::from(Answer::decide(&Sampling::default(), 100_000, &LENGTHS, s * 7919, "").tokens))
            .sum::<f64>()
            / 4000.0;
        assert!((mean / 200.0 - 1.0).abs() < 0.1, "{mean}");
        let exact = Sampling { ignore_eos: true, ..Sampling::default() };
        let a = Answer::decide(&exact, 77, &LENGTHS, 1, "");
        assert_eq!((a.tokens, a.finish_reason()), (77, "length"));
        let min = Sampling { min_tokens: Some(5000), ..Sampling::default() };
        let a = Answer::decide(&min, 10_000, &LENGTHS, 1, "");
        assert_eq!((a.tokens, a.finish_reason()), (5000, "stop"));
    }

    #[test]
    fn an_answer_that_has_begun_goes_on_where_it_ends() {
        let sampling = Sampling::default();
        for seed in [3, 5, 8, 13] {
            let whole = Answer::decide(&sampling, 5000, &LENGTHS, seed, "");
            let text: String = whole.pieces().collect();
            for cut in [0, 4, 6, 7, 40, text.len() - 4] {
                let rest = Answer::decide(&sampling, 5000, &LENGTHS, seed, &text[..cut]);
                assert_eq!(rest.pieces().collect::<String>(), text[cut..], "{cut}");
                assert_eq!(rest.tokens + (cut as u32).div_ceil(4), whole.tokens);
                assert_eq!(rest.ends, whole.ends);
            }
            assert_eq!(Answer::decide(&sampling, 5000, &LENGTHS, seed, &text).tokens, 1, "at least one");
            let other = Answer::decide(&sampling, 5000, &LENGTHS, seed, "no such text");
            assert_eq!(other.tokens + 3, whole.tokens);
        }
    }

    #[test]
    fn stop_strings_end_the_text_before_them() {
        let sampling = Sampling { ignore_eos: true, ..Sampling::default() };
        let whole: String = Answer::decide(&sampling, 200, &LENGTHS, 3, "").pieces().collect();
        let stop = ". ".to_owned();
        let end = whole.find(&stop).unwrap();
        let sampling = Sampling { stop: Some(OneOrMany::Many(vec![stop, "zzz".into()])), ..sampling };
        let answer = Answer::decide(&sampling, 200, &LENGTHS, 3, "");
        assert_eq!(answer.pieces().collect::<String>(), whole[..end]);
        assert_eq!((answer.finish_reason(), answer.stop_reason()), ("stop", json!(". ")));
        assert!(answer.tokens < 200);
    }
}
