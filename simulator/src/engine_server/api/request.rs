//! Bodies of generation requests, under OpenAI's and vLLM's names.

use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use crate::engine_server::handover::Told;
use crate::text::Tokens;

/// Fields that chat and plain completions share.
#[derive(Debug, Clone, Default, Deserialize)]
pub(in super::super) struct Sampling {
    pub(in super::super) model: Option<String>,
    pub(in super::super) max_tokens: Option<u32>,
    pub(in super::super) max_completion_tokens: Option<u32>,
    pub(in super::super) min_tokens: Option<u32>,
    #[serde(default)]
    pub(in super::super) ignore_eos: bool,
    #[serde(default)]
    pub(in super::super) stream: bool,
    pub(in super::super) stream_options: Option<StreamOptions>,
    pub(in super::super) n: Option<u32>,
    pub(in super::super) best_of: Option<u32>,
    pub(in super::super) stop: Option<OneOrMany>,
    pub(in super::super) seed: Option<i64>,
    pub(in super::super) temperature: Option<f64>,
    pub(in super::super) top_p: Option<f64>,
    pub(in super::super) priority: Option<i32>,
    pub(in super::super) cache_salt: Option<String>,
    #[serde(flatten)]
    pub(in super::super) told: Told,
}

/// `stream_options`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(in super::super) struct StreamOptions {
    #[serde(default)]
    pub(in super::super) include_usage: bool,
}

/// A string or a list of strings.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(in super::super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    pub(in super::super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Clone, Deserialize)]
pub(in super::super) struct ChatRequest {
    pub(in super::super) messages: Vec<ChatMessage>,
    /// Tool definitions: part of the prompt.
    pub(in super::super) tools: Option<Vec<Value>>,
    #[serde(default)]
    pub(in super::super) logprobs: bool,
    /// Whether the template opens an answer after the messages (`None`: it does).
    pub(in super::super) add_generation_prompt: Option<bool>,
    /// The last message is left open: the answer continues it.
    #[serde(default)]
    pub(in super::super) continue_final_message: bool,
    #[serde(flatten)]
    pub(in super::super) sampling: Sampling,
}

/// A chat prompt as the template renders it.
#[derive(Debug, Clone)]
pub(in super::super) struct ChatPrompt {
    /// All of it.
    pub(in super::super) tokens: Tokens,
    /// Where the answer has begun already.
    pub(in super::super) begun: Option<Begun>,
}

/// An answer that the prompt holds a part of.
#[derive(Debug, Clone)]
pub(in super::super) struct Begun {
    /// The prompt that it answers.
    pub(in super::super) to: Tokens,
    /// What there is of it.
    pub(in super::super) text: String,
}

/// One message.
#[derive(Debug, Clone, Deserialize)]
pub(in super::super) struct ChatMessage {
    pub(in super::super) role: String,
    #[serde(default)]
    pub(in super::super) content: Value,
    pub(in super::super) tool_calls: Option<Value>,
}

/// `POST /v1/completions`.
#[derive(Debug, Clone, Deserialize)]
pub(in super::super) struct CompletionRequest {
    pub(in super::super) prompt: Prompt,
    pub(in super::super) logprobs: Option<u32>,
    #[serde(default)]
    pub(in super::super) echo: bool,
    #[serde(flatten)]
    pub(in super::super) sampling: Sampling,
}

/// A prompt in any of its four forms.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(in super::super) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl ChatRequest {
    /// The prompt that the template makes. With `continue_final_message` the last message is rendered as an answer that
    /// has begun, so that its prompt and it make the prefix that they made when it was generated.
    pub(in super::super) fn prompt(&self) -> Result<ChatPrompt, ApiError> {
        let Some((last, before)) = self.messages.split_last() else {
            return Err(ApiError::bad(Some("messages"), "messages: is empty; give at least one message."));
        };
        if !self.continue_final_message {
            let mut tokens = self.render(&self.messages)?;
            if self.add_generation_prompt.unwrap_or(true) {
                tokens.push_reply_start();
            }
            return Ok(ChatPrompt { tokens, begun: None });
        }
        if self.add_generation_prompt.unwrap_or(true) {
            return Err(ApiError::bad(
                Some("continue_final_message"),
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            ));
        }
        let text = match &last.content {
            Value::String(text) if !text.is_empty() => text.clone(),
            _ => {
                return Err(ApiError::bad(
                    Some("messages"),
                    "continue_final_message is set but the final message has no text to continue.",
                ));
            }
        };
        if last.role != "assistant" {
            return Ok(ChatPrompt { tokens: self.render(&self.messages)?, begun: None });
        }
        let mut to = self.render(before)?;
        to.push_reply_start();
        let mut tokens = to.clone();
        tokens.push_text(&text);
        Ok(ChatPrompt { tokens, begun: Some(Begun { to, text }) })
    }

    fn render(&self, messages: &[ChatMessage]) -> Result<Tokens, ApiError> {
        let mut tokens = Tokens::default();
        if let Some(tools) = self.tools.as_ref().filter(|t| !t.is_empty()) {
            tokens.push_message_start("tools");
            tokens.push_text(&Value::from(tools.clone()).to_string());
        }
        for (i, message) in messages.iter().enumerate() {
            tokens.push_message_start(&message.role);
            match &message.content {
                Value::Null => {}
                Value::String(text) => tokens.push_text(text),
                Value::Array(parts) => {
                    for part in parts {
                        let text = part.get("text").and_then(Value::as_str).ok_or_else(|| {
                            let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
                            ApiError::bad(
                                Some("messages"),
                                format!("messages[{i}].content: part of type {kind:?}; only \"text\" parts are taken."),
                            )
                        })?;
                        tokens.push_text(text);
                    }
                }
                _ => {
                    return Err(ApiError::bad(
                        Some("messages"),
                        format!("messages[{i}].content: must be a string or a list of parts."),
                    ));
                }
            }
            if let Some(calls) = &message.tool_calls {
                tokens.push_text(&calls.to_string());
            }
        }
        Ok(tokens)
    }
}

impl Prompt {
    /// The one prompt's tokens.
    pub(in super::super) fn tokens(&self) -> Result<Tokens, ApiError> {
        let mut tokens = Tokens::default();
        match self {
            Self::Text(text) => tokens.push_text(text),
            Self::Texts(texts) if texts.len() == 1 => tokens.push_text(&texts[0]),
            Self::Ids(ids) => ids.iter().for_each(|id| tokens.push_id(*id)),
            Self::IdLists(lists) if lists.len() == 1 => lists[0].iter().for_each(|id| tokens.push_id(*id)),
            Self::Texts(_) | Self::IdLists(_) => {
                return Err(ApiError::bad(
                    Some("prompt"),
                    "prompt: this engine takes one prompt a request; send the others in requests of their own.",
                ));
            }
        }
        if tokens.is_empty() {
            return Err(ApiError::bad(Some("prompt"), "prompt: The decoder prompt cannot be empty"));
        }
        Ok(tokens)
    }
}

impl Sampling {
    /// Checks what an answer cannot be given for.
    pub(in super::super) fn check(&self, logprobs: bool) -> Result<(), ApiError> {
        if self.n.unwrap_or(1) != 1 || self.best_of.unwrap_or(1) != 1 {
            return Err(ApiError::bad(
                Some("n"),
                "n: this engine gives one answer a request; send n = 1, and the request again for more.",
            ));
        }
        if logprobs {
            return Err(ApiError::bad(
                Some("logprobs"),
                "logprobs: this engine is simulated and has no probabilities; leave logprobs out.",
            ));
        }
        if let Some(t) = self.temperature.filter(|t| !t.is_finite() || *t < 0.0) {
            return Err(ApiError::bad(
                Some("temperature"),
                format!("temperature must be non-negative, got {t}."),
            ));
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(ApiError::bad(Some("top_p"), format!("top_p must be in (0, 1], got {p}.")));
        }
        if self.stream_options.is_some() && !self.stream {
            return Err(ApiError::bad(
                Some("stream_options"),
                "Stream options can only be defined when `stream=True`.",
            ));
        }
        Ok(())
    }

    /// The most tokens to answer with, given the room that the prompt leaves: what was asked, else `default`.
    ///
    /// The messages are vLLM's.
    pub(in super::super) fn limit(
        &self,
        prompt_tokens: u32,
        max_model_len: u32,
        default: Option<u32>,
    ) -> Result<u32, ApiError> {
        if prompt_tokens >= max_model_len {
            return Err(ApiError::bad(
                Some("input_tokens"),
                format!(
                    "This model's maximum context length is {max_model_len} tokens. However, your request has \
                     {prompt_tokens} input tokens. Please reduce the length of the input messages."
                ),
            ));
        }
        let room = max_model_len - prompt_tokens;
        let asked = self.max_completion_tokens.or(self.max_tokens);
        if let Some(asked) = asked {
            if asked == 0 {
                return Err(ApiError::bad(Some("max_tokens"), "max_tokens must be at least 1, got 0."));
            }
            if asked > room {
                return Err(ApiError::bad(
                    Some("max_tokens"),
                    format!(
                        "'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context \
                         length is {max_model_len} tokens and your request has {prompt_tokens} input tokens \
                         ({asked} > {max_model_len} - {prompt_tokens})."
                    ),
                ));
            }
        }
        let limit = asked.or(default).unwrap_or(room).min(room);
        if let Some(min) = self.min_tokens.filter(|min| *min > limit) {
            return Err(ApiError::bad(
                Some("min_tokens"),
                format!("min_tokens must be less than or equal to max_tokens={limit}, got {min}."),
            ));
        }
        Ok(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_prompts_count_template_and_text() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"12345678"},
            {"role":"user","content":[{"type":"text","text":"1234"},{"type":"text","text":"12"}]}]}"#;
        let request: ChatRequest = serde_json::from_str(body).unwrap();
        assert_eq!(request.prompt().unwrap().tokens.len(), 4 + 2 + 4 + 1 + 1 + 3);
        assert_eq!(request.sampling.model.as_deref(), Some("m"));
    }

    #[test]
    fn images_are_refused_by_name() {
        let body = r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#;
        let request: ChatRequest = serde_json::from_str(body).unwrap();
        assert!(request.prompt().unwrap_err().message.contains("image_url"));
    }

    #[test]
    fn a_continued_message_follows_the_opening_of_its_answer() {
        let request = |more: Value| -> ChatRequest {
            let mut body = serde_json::json!({"messages": [
                {"role": "user", "content": "12345678"}, {"role": "assistant", "content": "abcdef"},
            ]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(body).unwrap()
        };
        let on = serde_json::json!({"continue_final_message": true, "add_generation_prompt": false});
        let prompt = request(on).prompt().unwrap();
        let begun = prompt.begun.unwrap();
        assert_eq!((prompt.tokens.len(), begun.to.len(), begun.text.as_str()), (4 + 2 + 3 + 2, 9, "abcdef"));
        let both = request(serde_json::json!({"continue_final_message": true})).prompt().unwrap_err();
        assert!(both.message.starts_with("Cannot set both"), "{}", both.message);
        let neither = request(serde_json::json!({"add_generation_prompt": false})).prompt().unwrap();
        assert_eq!((neither.tokens.len(), neither.begun.is_none()), (4 + 2 + 4 + 2, true));
    }

    #[test]
    fn limits_are_vllms() {
        let sampling = |max: Option<u32>| Sampling { max_tokens: max, ..Sampling::default() };
        assert_eq!(sampling(None).limit(10, 100, None).unwrap(), 90);
        assert_eq!(sampling(None).limit(10, 100, Some(16)).unwrap(), 16);
        assert_eq!(sampling(Some(7)).limit(10, 100, Some(16)).unwrap(), 7);
        let e = sampling(Some(91)).limit(10, 100, None).unwrap_err();
        assert!(e.message.contains("(91 > 100 - 10)"), "{}", e.message);
        let e = sampling(None).limit(100, 100, None).unwrap_err();
        assert!(e.message.starts_with("This model's maximum context length is 100 tokens."), "{}", e.message);
        assert!(sampling(Some(0)).limit(1, 100, None).is_err());
    }

    #[test]
    fn prompts_have_four_forms() {
        let tokens = |json: &str| serde_json::from_str::<Prompt>(json).unwrap().tokens().map(|t| t.len());
        assert_eq!(tokens(r#""12345""#), Ok(2));
        assert_eq!(tokens(r#"["12345"]"#), Ok(2));
        assert_eq!(tokens("[1,2,3]"), Ok(3));
        assert_eq!(tokens("[[1,2,3]]"), Ok(3));
        assert!(tokens(r#"["a","b"]"#).is_err());
        assert!(tokens(r#""""#).is_err());
    }
}
