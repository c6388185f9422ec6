//! The header by which one agent hands a routed request to the agent beside the chosen engine.

use plimsoll_fleet::ReplicaId;

use crate::route::residency::{MOST_MARKS, Place, from_text, to_text};

/// What the routing agent already knows, so that the other need not read the body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hop {
    pub(crate) replica: ReplicaId,
    pub(crate) prompt_tokens: f64,
    pub(crate) cached_tokens: f64,
    pub(crate) expected_output: f64,
    pub(crate) streaming: bool,
    /// Milliseconds (model time) until the request must produce its first token (`None`: no objective).
    pub(crate) first_token_in_ms: Option<f64>,
    /// Time per output token that it must keep, ms (`None`: no objective).
    pub(crate) tpot_ms: Option<f64>,
    /// Milliseconds (model time) until it must be over (`None`: no objective).
    pub(crate) finish_in_ms: Option<f64>,
    /// Milliseconds (model time) until its task's stage should be over (`None`: of no task, or one without a deadline).
    pub(crate) stage_in_ms: Option<f64>,
    /// Answer tokens that the client allows (`None`: no limit).
    pub(crate) most_output: Option<f64>,
    /// Its tier (`None`: that of the objective it names).
    pub(crate) priority: Option<i32>,
    /// The adapter that it names.
    pub(crate) adapter: Option<String>,
    /// Marks of its prompt.
    pub(crate) marks: Vec<u64>,
    /// How far the routing agent has followed the marks of what the engine was sent.
    pub(crate) seen: Option<Place>,
}

impl Hop {
    /// The same request so many milliseconds later.
    pub(crate) fn later(self, ms: f64) -> Self {
        let less = |left: Option<f64>| left.map(|left| left - ms);
        Self {
            first_token_in_ms: less(self.first_token_in_ms),
            finish_in_ms: less(self.finish_in_ms),
            stage_in_ms: less(self.stage_in_ms),
            ..self
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "replica={};prompt={:.0};cached={:.0};output={:.0};stream={}",
            self.replica,
            self.prompt_tokens,
            self.cached_tokens,
            self.expected_output,
            u8::from(self.streaming)
        );
        let figures = [
            ("first", self.first_token_in_ms),
            ("tpot", self.tpot_ms),
            ("finish", self.finish_in_ms),
            ("stage", self.stage_in_ms),
            ("most", self.most_output),
        ];
        for (name, value) in figures {
            if let Some(value) = value {
                text.push_str(&format!(";{name}={value:.0}"));
            }
        }
        if let Some(priority) = self.priority {
            text.push_str(&format!(";priority={priority}"));
        }
        if let Some(adapter) = &self.adapter {
            text.push_str(";adapter=");
            text.push_str(adapter);
        }
        if !self.marks.is_empty() {
            text.push_str(";marks=");
            text.push_str(&to_text(&self.marks));
        }
        if let Some(seen) = self.seen {
            text.push_str(";seen=");
            text.push_str(&seen.to_text());
        }
        text
    }

    /// Reads the header; `None` if it names no replica. Figures that make no sense count as unknown.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut replica = None;
        let mut hop = Self {
            // Any valid one: it is replaced below, or nothing comes of this.
            replica: ReplicaId::new("unknown").ok()?,
            prompt_tokens: 0.0,
            cached_tokens: 0.0,
            expected_output: 200.0,
            streaming: false,
            first_token_in_ms: None,
            tpot_ms: None,
            finish_in_ms: None,
            stage_in_ms: None,
            most_output: None,
            priority: None,
            adapter: None,
            marks: Vec::new(),
            seen: None,
        };
        for part in text.split(';') {
            let Some((key, value)) = part.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            let number = value.parse::<f64>().ok().filter(|v| v.is_finite() && v.abs() < 1e12);
            let positive = number.filter(|v| *v > 0.0);
            match key {
                "replica" => replica = ReplicaId::new(value).ok(),
                "prompt" => hop.prompt_tokens = number.unwrap_or(0.0).max(0.0),
                "cached" => hop.cached_tokens = number.unwrap_or(0.0).max(0.0),
                "output" => hop.expected_output = number.unwrap_or(200.0).max(1.0),
                "stream" => hop.streaming = value == "1",
                "first" => hop.first_token_in_ms = number,
                "tpot" => hop.tpot_ms = positive,
                "finish" => hop.finish_in_ms = number,
                "stage" => hop.stage_in_ms = number,
                "most" => hop.most_output = positive,
                "priority" => hop.priority = value.parse().ok(),
                "adapter" => hop.adapter = Some(value.to_owned()).filter(|name| !name.is_empty()),
                "marks" => hop.marks = from_text(value, MOST_MARKS),
                "seen" => hop.seen = Place::parse(value),
                _ => {}
            }
        }
        Some(Self { replica: replica?, ..hop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trips() {
        let hop = Hop {
            replica: ReplicaId::new("chat-1").unwrap(),
            prompt_tokens: 100.0,
            cached_tokens: 64.0,
            expected_output: 20.0,
            streaming: true,
            first_token_in_ms: Some(-30.0),
            tpot_ms: Some(50.0),
            finish_in_ms: None,
            stage_in_ms: Some(-4.0),
            most_output: Some(64.0),
            priority: Some(-2),
            adapter: Some("acme/law:v1".to_owned()),
            marks: vec![1, (1 << 48) - 1],
            seen: Some(Place { life: 0xfeed, marks: 12 }),
        };
        assert_eq!(Hop::parse(&hop.to_text()), Some(hop));
        assert_eq!(Hop::parse("replica=Not Valid"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~]{0,80}") { let _ = Hop::parse(&text); }
    }
}
