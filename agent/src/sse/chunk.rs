//! The part of an event that says whether it carries tokens, read without keeping any of it.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::Usage;

/// An event's data.
#[derive(Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Option<Choices>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(super) response: Option<Response>,
}

#[derive(Deserialize)]
pub(super) struct Response {
    #[serde(default)]
    pub(super) usage: Option<Usage>,
}

/// A chunk's choices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) any: bool,
    /// Whether one has part of an answer.
    pub(super) token: bool,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<Content>,
}

/// Whether it has part of an answer: anything but a role and what is empty.
struct Delta(bool);

/// Kinds of values.
enum Content {
    /// `null`, an empty text or an empty list.
    Empty,
    Text,
    Other,
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfList;
        impl<'de> Visitor<'de> for OfList {
            type Value = Choices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices, A::Error> {
                let mut choices = Choices::default();
                while let Some(Choice { delta, text }) = list.next_element()? {
                    choices.any = true;
                    choices.token |=
                        delta.is_some_and(|d| d.0) || text.is_some_and(|t| matches!(t, Content::Text));
                }
                Ok(choices)
            }
        }
        from.deserialize_seq(OfList)
    }
}

impl<'de> Deserialize<'de> for Delta {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfMembers;
        impl<'de> Visitor<'de> for OfMembers {
            type Value = Delta;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Delta, A::Error> {
                let mut token = false;
                while let Some(IsRole(is_role)) = members.next_key()? {
                    token |= match members.next_value()? {
                        Content::Empty => false,
                        Content::Text => !is_role,
                        Content::Other => true,
                    };
                }
                Ok(Delta(token))
            }
        }
        from.deserialize_map(OfMembers)
    }
}

/// Whether a member's name is `role`.
struct IsRole(bool);

impl<'de> Deserialize<'de> for IsRole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfName;
        impl Visitor<'_> for OfName {
            type Value = IsRole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<IsRole, E> {
                Ok(IsRole(name == "role"))
            }
        }
        from.deserialize_str(OfName)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfAny;
        impl<'de> Visitor<'de> for OfAny {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
                Ok(Content::Empty)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(if text.is_empty() { Content::Empty } else { Content::Text })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut kind = Content::Empty;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    kind = Content::Other;
                }
                Ok(kind)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Content, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Content::Other)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Content, E> {
                Ok(Content::Other)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Content, E> {
                Ok(Content::Other)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Content, E> {
                Ok(Content::Other)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Content, E> {
                Ok(Content::Other)
            }
        }
        from.deserialize_any(OfAny)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Some((true, false)))]
    #[case(r#"{"choices":[{"delta":{"role":"assistant","content":"a\n"}}]}"#, Some((true, true)))]
    #[case(r#"{"choices":[{"delta":{"content":null,"tool_calls":[]}}]}"#, Some((true, false)))]
    #[case(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, Some((true, true)))]
    #[case(r#"{"choices":[{"delta":{"n":1e3}},{"text":""}]}"#, Some((true, true)))]
    #[case(r#"{"choices":[{"delta":null,"text":"a"}]}"#, Some((true, true)))]
    #[case(r#"{"choices":[]}"#, Some((false, false)))]
    #[case(r#"{"choices":null}"#, None)]
    #[case(r#"{"type":"response.output_text.delta","delta":"a"}"#, None)]
    fn tokens_are_told_from_what_is_empty(#[case] data: &str, #[case] said: Option<(bool, bool)>) {
        let chunk: Chunk = serde_json::from_str(data).unwrap();
        assert_eq!(chunk.choices.map(|c| (c.any, c.token)), said);
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for data in [r#"{"choices":[3]}"#, r#"{"choices":[{"delta":"a"}]}"#, r#"{"choices":[{"delta":{"#] {
            assert!(serde_json::from_str::<Chunk>(data).is_err(), "{data}");
        }
    }
}
