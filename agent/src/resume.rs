//! Continuing a streamed answer whose engine, or the agent before it, died in the middle.
//!
//! A [`Transcript`] reads along while an answer passes: its text, its tokens, who it says it is. When the stream breaks,
//! [`Transcript::decide`] says what to do: finish it (only its formal end is missing), ask another engine to go on, or
//! leave it broken because the request is of a kind that cannot be split. To go on, a chat gets the text so far as an open
//! assistant message (`continue_final_message`, understood by vLLM and SGLang), a completion gets it after its prompt; the
//! limits on new tokens shrink by what was delivered. The continuation is then rewritten, so that the client sees one
//! stream: one id, one role, one end, one sum of tokens.
//!
//! Tokens delivered are counted by events, one each, unless the stream carries running usage. Engines send fewer events than
//! tokens where a character has several tokens or where they guess ahead: so the engine that is to go on is asked how many the
//! text has ([`Transcript::uncounted`]), and its word counts if it is more.

mod chunk;
mod deferred;
mod fit;

use bytes::Bytes;
use serde_json::{Map, Value, json};

pub use self::chunk::is_whole;
use self::chunk::{Choice, Chunk, Name, cut, data_of, event_of, is_failure};
pub use self::deferred::Deferred;
use self::fit::{ends_within, unfit_member};
use crate::body::Api;
use crate::sse::{PromptDetails, Usage, event_end};

/// Most text of an answer that is kept; a longer one is not continued.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// How often one answer is continued at most.
pub const MOST_RESUMES: u32 = 2;

/// `max_tokens` of a completion that does not say (OpenAI, vLLM and SGLang).
const COMPLETION_TOKENS: u64 = 16;

/// Why an answer is not continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// The request has this member: what it asks for cannot be split in two.
    Member(&'static str),
    /// The stream showed more than the text of one answer: tool calls, reasoning, an event that cannot be read.
    Stream,
    /// The answer is longer than [`MAX_TEXT_BYTES`].
    TooLong,
    /// The text ends with the beginning of a stop string, which would be missed.
    StopString,
}

impl Unfit {
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member(_) => "unfit_request",
            Self::Stream => "unfit_stream",
            Self::TooLong => "too_long",
            Self::StopString => "stop_string",
        }
    }
}

/// What to do about a stream that broke.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Send these last events: the answer was complete but for them.
    Finish(Bytes),
    /// Ask for the rest, then call [`Transcript::go_on`].
    Ask(Ask),
    /// Nothing: tell the client.
    Leave(Unfit),
}

/// A request for the rest of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Its body, with the client's model name.
    pub body: Bytes,
    /// Blanks at the end of the text that were left out, as templates strip them: the continuation may repeat them.
    shown: String,
    /// Tokens of the answer that are not to be generated again.
    kept: u64,
    /// Of them, those that became part of the prompt.
    prefixed: u64,
}

/// What may be sent on of a chunk of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    /// Whole events for the client.
    pub out: Bytes,
    /// The engine said that it failed; the event is not in `out`.
    pub broke: Option<Broke>,
}

/// An engine's word that it cannot go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Broke {
    /// What it said.
    pub message: String,
    /// The event, for a client that must be told after all (`None`: nothing of it is fit to be sent).
    pub event: Option<Bytes>,
}

/// What a client has been sent of one answer.
#[derive(Debug, Clone)]
pub struct Transcript {
    api: Api,
    text: String,
    name: Option<Name>,
    /// Answer tokens delivered.
    tokens: u64,
    /// Of them, those at the end that are nothing but blanks.
    blank: u64,
    /// Of them, before the stream that is being read.
    before: u64,
    /// Of them, those that are in the prompt of the stream that is being read.
    prefixed: u64,
    /// Prompt tokens of the client's request, once known.
    prompt: Option<u64>,
    cached: Option<u64>,
    finished: bool,
    /// The stream's own usage says how many tokens came so far.
    counted: bool,
    /// The usage that ends a stream was sent.
    usage_sent: bool,
    unfit: Option<Unfit>,
    /// The stream that is being read continues another: its events are rewritten.
    splicing: bool,
    shown: String,
}

impl Transcript {
    /// Of an answer that has not begun.
    pub fn new(api: Api) -> Self {
        Self {
            api,
            text: String::new(),
            name: None,
            tokens: 0,
            blank: 0,
            before: 0,
            prefixed: 0,
            prompt: None,
            cached: None,
            finished: false,
            counted: false,
            usage_sent: false,
            unfit: None,
            splicing: false,
            shown: String::new(),
        }
    }

    /// Answer tokens delivered so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The text whose tokens are known by events alone; `None`: there is none.
    pub fn uncounted(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| !text.is_empty() && !self.counted)
    }

    /// An engine counts so many tokens in [`Self::uncounted`].
    pub fn recount(&mut self, tokens: u64) {
        self.tokens = self.tokens.max(tokens);
    }

    /// Whether the answer's end was sent.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// The text delivered so far (empty once it is too long to be kept).
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads whole events on their way to the client. Those of a first stream pass as they are, those of a continuation
    /// are rewritten. An event that says that the engine failed is held back, and what follows it is dropped.
    pub fn pass(&mut self, events: Bytes) -> Passed {
        if events.is_empty() || (self.unfit.is_some() && !self.splicing) {
            return Passed { out: events, broke: None };
        }
        let mut rewritten: Option<Vec<u8>> = self.splicing.then(Vec::new);
        let mut at = 0;
        while at < events.len() {
            let end = event_end(&events, at).unwrap_or(events.len());
            let event = &events[at..end];
            let broke = match self.event(event) {
                Ok(None) => {
                    if let Some(out) = &mut rewritten {
                        out.extend_from_slice(event);
                        self.terminate(out);
                    }
                    None
                }
                Ok(Some(changed)) => {
                    if let Some(out) = &mut rewritten {
                        out.extend_from_slice(&changed);
                    }
                    None
                }
                Err(Some(message)) => Some(Broke { message, event: Some(events.slice(at..end)) }),
                Err(None) if self.splicing => {
                    Some(Broke { message: "went on in a way that does not fit".into(), event: None })
                }
                // Nothing to hold back: the client sees it, and no continuation will follow.
                Err(None) => return Passed { out: events, broke: None },
            };
            if broke.is_some() {
                return Passed { out: rewritten.map_or_else(|| events.slice(..at), Bytes::from), broke };
            }
            at = end;
        }
        Passed { out: rewritten.map_or(events, Bytes::from), broke: None }
    }

    fn terminate(&self, out: &mut Vec<u8>) {
        if !out.ends_with(b"\n\n") && !out.ends_with(b"\n\r\n") {
            out.extend_from_slice(if out.ends_with(b"\n") { b"\n" } else { b"\n\n" });
        }
    }

    /// Reads one event. `Ok(Some)`: send this instead (nothing, if empty). `Err(Some)`: the engine failed. `Err(None)`: it
    /// is nothing that can be continued.
    fn event(&mut self, event: &[u8]) -> Result<Option<Vec<u8>>, Option<String>> {
        let mut out: Option<Vec<u8>> = None;
        for data in data_of(event) {
            if data == b"[DONE]" {
                continue;
            }
            let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else {
                self.unfit = Some(Unfit::Stream);
                return Err(None);
            };
            if chunk.error.is_some() || chunk.object.as_deref() == Some("error") {
                let whole: Value = serde_json::from_slice(data).unwrap_or_default();
                let error = chunk.error.as_ref().filter(|e| e.is_object()).unwrap_or(&whole);
                if is_failure(error) {
                    let message = error["message"].as_str().unwrap_or("the engine failed");
                    return Err(Some(message.to_owned()));
                }
                self.unfit = Some(Unfit::Stream);
                return Err(None);
            }
            let choices = chunk.choices.as_deref().unwrap_or_default();
            if choices.len() > 1 || !choices.iter().all(Choice::plain) {
                self.unfit = Some(Unfit::Stream);
                return Err(None);
            }
            if choices.iter().any(|c| matches!(c.finish_reason.as_deref(), Some("abort" | "error"))) {
                // vLLM's word for an end that is not the model's.
                return Err(Some("it gave the answer up".into()));
            }
            if self.splicing {
                let repeated = self.repeated(choices.first().map_or("", Choice::shown));
                self.note(&chunk, repeated);
                out.get_or_insert_default().extend_from_slice(&self.rewrite(data, repeated));
            } else {
                if self.name.is_none() {
                    self.name = serde_json::from_slice(data).ok();
                }
                self.note(&chunk, 0);
            }
        }
        Ok(out)
    }

    /// Bytes at the beginning of this text that the client has seen already.
    fn repeated(&mut self, text: &str) -> usize {
        let same = text.bytes().zip(self.shown.bytes()).take_while(|(a, b)| a == b).count();
        // Blanks beyond ASCII have several bytes.
        let same = (0..=same).rev().find(|n| text.is_char_boundary(*n) && self.shown.is_char_boundary(*n));
        let same = same.unwrap_or(0);
        if same < text.len() {
            self.shown.clear();
        } else {
            self.shown.drain(..same);
        }
        same
    }

    fn note(&mut self, chunk: &Chunk, repeated: usize) {
        self.counted = chunk.usage.is_some();
        if let Some(choice) = chunk.choices.iter().flatten().next() {
            let text = choice.shown();
            let opens = choice.delta.as_ref().is_some_and(|d| d.role.is_some());
            if !text.is_empty() || (!opens && choice.finish_reason.is_none()) {
                self.tokens += 1;
                match text.trim().is_empty() {
                    true if !text.is_empty() => self.blank += 1,
                    true => {}
                    false => self.blank = 0,
                }
            }
            if self.text.len() + text.len() > MAX_TEXT_BYTES {
                self.unfit = Some(Unfit::TooLong);
                self.text = String::new();
            } else if self.unfit.is_none() {
                self.text.push_str(&text[repeated..]);
            }
            self.finished |= choice.finish_reason.is_some();
        }
        if let Some(usage) = chunk.usage {
            self.tokens = self.before + usage.completion_tokens;
            self.prompt.get_or_insert(usage.prompt_tokens.saturating_sub(self.prefixed));
            if let Some(details) = usage.prompt_tokens_details {
                self.cached = self.cached.or(details.cached_tokens);
            }
            self.usage_sent |= chunk.choices.as_ref().is_some_and(Vec::is_empty);
        }
    }

    /// A chunk of a continuation as a part of the answer that it continues; empty if it adds nothing.
    fn rewrite(&self, data: &[u8], repeated: usize) -> Vec<u8> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice::<Value>(data) else { return Vec::new() };
        let adds_usage = chunk.get("usage").is_some_and(|u| !u.is_null());
        let choice = chunk.get_mut("choices").and_then(|c| c.get_mut(0)).and_then(Value::as_object_mut);
        let adds = choice.is_none_or(|choice| {
            let ends = choice.get("finish_reason").is_some_and(|f| !f.is_null());
            if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                delta.remove("role");
                cut(delta.get_mut("content"), repeated) || ends
            } else {
                cut(choice.get_mut("text"), repeated) || ends
            }
        });
        if !adds && !adds_usage {
            return Vec::new();
        }
        self.sign(&mut chunk);
        if let Some(usage) = chunk.get_mut("usage").and_then(Value::as_object_mut)
            && let Ok(own) = serde_json::from_value::<Usage>(Value::Object(usage.clone()))
            && let Some(sum) = self.total(Some(own))
        {
            usage.insert("prompt_tokens".into(), sum.prompt_tokens.into());
            usage.insert("completion_tokens".into(), sum.completion_tokens.into());
            usage.insert("total_tokens".into(), (sum.prompt_tokens + sum.completion_tokens).into());
            if let Some(details) = usage.get_mut("prompt_tokens_details").and_then(Value::as_object_mut) {
                details.insert("cached_tokens".into(), sum.cached_tokens().into());
            }
        }
        event_of(&Value::Object(chunk)).into_bytes()
    }

    /// Puts the answer's own id, time and model on a chunk.
    fn sign(&self, chunk: &mut Map<String, Value>) {
        let Some(name) = &self.name else { return };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        for (key, value) in [
            ("id", text(&name.id)),
            ("created", name.created.clone()),
            ("model", text(&name.model)),
            ("object", text(&name.object)),
            ("system_fingerprint", text(&name.system_fingerprint)),
        ] {
            match value {
                Some(value) => {
                    chunk.insert(key.into(), value);
                }
                None => {
                    chunk.remove(key);
                }
            }
        }
    }

    /// The token counts of the whole answer, given those that the last stream told of itself. `None` if the prompt's are
    /// not known.
    pub fn total(&self, own: Option<Usage>) -> Option<Usage> {
        let Some(own) = own else {
            return self.prompt.map(|prompt_tokens| Usage {
                prompt_tokens,
                completion_tokens: self.tokens,
                prompt_tokens_details: self
                    .cached
                    .map(|c| PromptDetails { cached_tokens: Some(c.min(prompt_tokens)) }),
            });
        };
        let prompt_tokens = self.prompt.unwrap_or(own.prompt_tokens.saturating_sub(self.prefixed));
        let cached =
            |d: PromptDetails| PromptDetails { cached_tokens: d.cached_tokens.map(|c| c.min(prompt_tokens)) };
        Some(Usage {
            prompt_tokens,
            completion_tokens: self.before + own.completion_tokens,
            prompt_tokens_details: own.prompt_tokens_details.map(cached),
        })
    }

    /// Decides about a stream that broke off. `body` is the client's request, which is known to be a JSON object;
    /// `wants_usage` says whether the client expects token counts at the end.
    pub fn decide(&self, body: &[u8], wants_usage: bool) -> Decision {
        let Ok(Value::Object(mut request)) = serde_json::from_slice(body) else {
            return Decision::Leave(Unfit::Stream);
        };
        if request.get("n").is_some_and(|n| !n.is_null() && *n != 1) {
            return Decision::Leave(Unfit::Member("n"));
        }
        if self.finished {
            return Decision::Finish(self.ending(None, wants_usage));
        }
        if let Some(unfit) = self.unfit.or_else(|| unfit_member(&request)) {
            return Decision::Leave(unfit);
        }
        if ends_within(&self.text, request.get("stop")) {
            return Decision::Leave(Unfit::StopString);
        }
        let (text, kept) = match self.api {
            Api::Chat => (self.text.trim_end(), self.tokens.saturating_sub(self.blank)),
            _ => (self.text.as_str(), self.tokens),
        };
        if self.api == Api::Completions && request.get("max_tokens").is_none_or(Value::is_null) {
            // An answer that is longer already is one of an engine without this default.
            if self.tokens < COMPLETION_TOKENS {
                request.insert("max_tokens".into(), COMPLETION_TOKENS.into());
            }
        }
        for key in ["max_tokens", "max_completion_tokens"] {
            let Some(limit) = request.get(key).and_then(Value::as_u64) else { continue };
            if limit <= self.tokens {
                return Decision::Finish(self.ending(Some("length"), wants_usage));
            }
            request.insert(key.into(), (limit - kept).into());
        }
        if let Some(least) = request.get("min_tokens").and_then(Value::as_u64) {
            request.insert("min_tokens".into(), least.saturating_sub(kept).into());
        }
        if !text.is_empty()
            && let Err(unfit) = self.prefix(&mut request, text)
        {
            return Decision::Leave(unfit);
        }
        Decision::Ask(Ask {
            body: Value::Object(request).to_string().into(),
            shown: self.text[text.len()..].to_owned(),
            kept,
            prefixed: if text.is_empty() { 0 } else { kept },
        })
    }

    /// Makes the text so far a part of the prompt.
    fn prefix(&self, request: &mut Map<String, Value>, text: &str) -> Result<(), Unfit> {
        if self.api != Api::Chat {
            let prompt = match request.get_mut("prompt") {
                Some(Value::Array(prompts)) if prompts.len() == 1 => prompts.first_mut(),
                other => other,
            };
            let Some(Value::String(prompt)) = prompt else { return Err(Unfit::Member("prompt")) };
            prompt.push_str(text);
            return Ok(());
        }
        let goes_on = request.get("continue_final_message") == Some(&Value::Bool(true));
        if !goes_on && request.get("add_generation_prompt") == Some(&Value::Bool(false)) {
            return Err(Unfit::Member("add_generation_prompt"));
        }
        let messages = request.get_mut("messages").and_then(Value::as_array_mut);
        let messages = messages.ok_or(Unfit::Member("messages"))?;
        if goes_on {
            // The client itself had the answer begin somewhere.
            match messages.last_mut().and_then(|m| m.get_mut("content")) {
                Some(Value::String(begun)) => begun.push_str(text),
                _ => return Err(Unfit::Member("continue_final_message")),
            }
        } else {
            messages.push(json!({"role": "assistant", "content": text}));
        }
        request.insert("continue_final_message".into(), true.into());
        request.insert("add_generation_prompt".into(), false.into());
        Ok(())
    }

    /// The last events of a stream, as far as they were not sent: the end of the text, usage if it is known, `[DONE]`.
    fn ending(&self, reason: Option<&str>, wants_usage: bool) -> Bytes {
        let mut out = String::new();
        let mut add = |more: Value| {
            let mut chunk = Map::new();
            self.sign(&mut chunk);
            if let Value::Object(more) = more {
                chunk.extend(more);
            }
            out.push_str(&event_of(&Value::Object(chunk)));
        };
        if let Some(reason) = reason {
            let choice = match self.api {
                Api::Chat => json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason}),
                _ => json!({"index": 0, "text": "", "logprobs": null, "finish_reason": reason}),
            };
            add(json!({"choices": [choice]}));
        }
        if wants_usage
            && !self.usage_sent
            && let Some(usage) = self.total(None)
        {
            add(json!({"choices": [], "usage": {
                "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            }}));
        }
        out.push_str("data: [DONE]\n\n");
        out.into()
    }

    /// Another stream goes on with the answer, as asked.
    pub fn go_on(&mut self, ask: &Ask) {
        // Blanks that were left out come again, and are counted then.
        (self.tokens, self.before, self.blank) = (ask.kept, ask.kept, 0);
        self.prefixed = ask.prefixed;
        self.shown.clone_from(&ask.shown);
        // Until an event was sent there is nothing to fit to.
        self.splicing = self.name.is_some();
    }
}

#[cfg(test)]
mod tests;
