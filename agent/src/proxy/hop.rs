//! The header by which one agent hands a routed request to the agent beside the chosen engine.

use plimsoll_fleet::ReplicaId;

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
}

impl Hop {
    /// The same request so many milliseconds later.
    pub(crate) fn later(self, ms: f64) -> Self {
        Self { first_token_in_ms: self.first_token_in_ms.map(|left| left - ms), ..self }
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
        if let Some(ms) = self.first_token_in_ms {
            text.push_str(&format!(";first={ms:.0}"));
        }
        text
    }

    /// Reads the header; `None` if it names no replica. Figures that make no sense count as unknown.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut replica = None;
        let mut hop = (0.0, 0.0, 200.0, false, None);
        for part in text.split(';') {
            let Some((key, value)) = part.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            let number = value.parse::<f64>().ok().filter(|v| v.is_finite() && *v < 1e12);
            match key {
                "replica" => replica = ReplicaId::new(value).ok(),
                "prompt" => hop.0 = number.unwrap_or(0.0).max(0.0),
                "cached" => hop.1 = number.unwrap_or(0.0).max(0.0),
                "output" => hop.2 = number.unwrap_or(200.0).max(1.0),
                "stream" => hop.3 = value == "1",
                "first" => hop.4 = number,
                _ => {}
            }
        }
        Some(Self {
            replica: replica?,
            prompt_tokens: hop.0,
            cached_tokens: hop.1,
            expected_output: hop.2,
            streaming: hop.3,
            first_token_in_ms: hop.4,
        })
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
        };
        assert_eq!(Hop::parse(&hop.to_text()), Some(hop));
        assert_eq!(Hop::parse("replica=Not Valid"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~]{0,80}") { let _ = Hop::parse(&text); }
    }
}
