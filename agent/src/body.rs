//! Request bodies: what the data plane reads of them, and the two edits it makes, without touching other bytes.

mod scan;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;
use serde::de::IgnoredAny;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::route::BLOCK_BYTES;

pub use scan::Scan;

/// Which API a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/responses`.
    Responses,
    /// `/tokenize`.
    Tokenize,
}

impl Api {
    /// The API at a path.
    pub fn from_path(path: &str) -> Option<Self> {
        let all = [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses, Self::Tokenize];
        all.into_iter().find(|api| api.path() == path)
    }

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Tokenize => "/tokenize",
        }
    }

    /// The members that hold the prompt, in the order in which engines lay them out.
    fn prompt_members(self) -> &'static [&'static str] {
        match self {
            Self::Chat => &["tools", "messages"],
            Self::Completions => &["prompt"],
            Self::Embeddings => &["input"],
            Self::Responses => &["instructions", "tools", "input"],
            Self::Tokenize => &["messages", "prompt"],
        }
    }

    /// Whether streams of this API end with `data: [DONE]` and may carry `stream_options`.
    pub fn is_generation(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadBody {
    /// Not UTF-8.
    #[error("the body is not UTF-8: invalid byte at offset {offset}; send JSON encoded as UTF-8")]
    NotUtf8 {
        /// Offset of the first invalid byte.
        offset: usize,
    },
    /// Not JSON.
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// JSON, but not an object.
    #[error("the body must be a JSON object such as {{\"model\": \"…\"}}")]
    NotObject,
    /// A member occurs twice: which one counts would depend on the parser.
    #[error("the body has `{0}` twice; send it once")]
    Duplicate(&'static str),
    /// A member is missing.
    #[error("`{0}` is missing; set it to one of the names that GET /v1/models lists")]
    Missing(&'static str),
    /// A member has the wrong type.
    #[error("`{member}` must be {expected}")]
    Type {
        /// Member.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl BadBody {
    /// The member at fault, for `error.param`.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::NotUtf8 { .. } | Self::NotJson(_) | Self::NotObject => None,
            Self::Duplicate(m) | Self::Missing(m) | Self::Type { member: m, .. } => Some(m),
        }
    }
}

/// What was read from a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// `model`.
    pub model: String,
    /// `stream` is true.
    pub stream: bool,
    /// `stream_options.include_usage` is true.
    pub include_usage: bool,
    /// The longest answer asked for, tokens.
    pub max_output: Option<u32>,
    /// Chained hashes of the prompt's blocks.
    pub prefix: Vec<u64>,
    /// Bytes of prompt.
    pub prompt_bytes: usize,
    model_span: Range<usize>,
    options_span: Option<Range<usize>>,
    open: usize,
}

const READ: [&str; 6] =
    ["model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens"];

/// Reads a body. Linear in its length; allocates only for the block hashes and the model's name.
///
/// # Errors
/// [`BadBody`], naming the member and the remedy.
pub fn parse(api: Api, body: &[u8]) -> Result<Parsed, BadBody> {
    std::str::from_utf8(body).map_err(|e| BadBody::NotUtf8 { offset: e.valid_up_to() })?;
    serde_json::from_slice::<IgnoredAny>(body).map_err(|e| BadBody::NotJson(e.to_string()))?;
    let open = skip_space(body, 0);
    if body.get(open) != Some(&b'{') {
        return Err(BadBody::NotObject);
    }
    let mut spans: [Option<Range<usize>>; READ.len()] = std::array::from_fn(|_| None);
    let prompt_names = api.prompt_members();
    let mut prompt: [Option<Range<usize>>; 3] = std::array::from_fn(|_| None);
    let mut at = skip_space(body, open + 1);
    while body.get(at) == Some(&b'"') {
        let key_end = skip_value(body, at);
        let key = unescape(&body[at..key_end]);
        let colon = skip_space(body, key_end);
        let start = skip_space(body, colon + 1);
        let end = skip_value(body, start);
        if let Some(i) = READ.iter().position(|n| *n == key)
            && spans[i].replace(start..end).is_some()
        {
            return Err(BadBody::Duplicate(READ[i]));
        }
        if let Some(i) = prompt_names.iter().position(|n| *n == key)
            && prompt[i].replace(start..end).is_some()
        {
            return Err(BadBody::Duplicate(prompt_names[i]));
        }
        at = skip_space(body, end);
        if body.get(at) != Some(&b',') {
            break;
        }
        at = skip_space(body, at + 1);
    }

    let mut prefix = Vec::new();
    let mut prompt_bytes = 0;
    let mut chain = 0;
    for span in prompt.iter().flatten() {
        let bytes = &body[span.clone()];
        prompt_bytes += bytes.len();
        for block in bytes.chunks_exact(BLOCK_BYTES) {
            chain = xxh3_64_with_seed(block, chain);
            prefix.push(chain);
        }
    }
    let span = |i: usize| spans[i].clone();
    Parsed::of(|i| span(i).map(|r| &body[r]), span, prefix, prompt_bytes, open)
}

impl Parsed {
    /// From the texts and spans of the members [`READ`].
    fn of<'a>(
        text: impl Fn(usize) -> Option<&'a [u8]>,
        span: impl Fn(usize) -> Option<Range<usize>>,
        prefix: Vec<u64>,
        prompt_bytes: usize,
        open: usize,
    ) -> Result<Self, BadBody> {
        let (Some(model_text), Some(model_span)) = (text(0), span(0)) else {
            return Err(BadBody::Missing("model"));
        };
        let model: String = serde_json::from_slice(model_text)
            .map_err(|_| BadBody::Type { member: "model", expected: "a string" })?;
        if model.is_empty() {
            return Err(BadBody::Missing("model"));
        }
        let stream = match text(1) {
            None | Some(b"null" | b"false") => false,
            Some(b"true") => true,
            Some(_) => return Err(BadBody::Type { member: "stream", expected: "true or false" }),
        };
        let include_usage = match text(2) {
            None | Some(b"null") => false,
            Some(options) => match serde_json::from_slice::<Value>(options) {
                Ok(Value::Object(o)) => o.get("include_usage") == Some(&Value::Bool(true)),
                _ => return Err(BadBody::Type { member: "stream_options", expected: "an object" }),
            },
        };
        let max_output = (3..READ.len()).filter_map(|i| serde_json::from_slice::<u32>(text(i)?).ok()).min();

        Ok(Self {
            model,
            stream,
            include_usage,
            max_output,
            prefix,
            prompt_bytes,
            model_span,
            options_span: span(2),
            open,
        })
    }
}

/// The body with another model name and, if asked, `stream_options.include_usage` set. The same bytes if nothing
/// changes.
pub fn rewrite(body: &Bytes, parsed: &Parsed, model: &str, include_usage: bool) -> Bytes {
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    if parsed.model != model {
        edits.push((parsed.model_span.clone(), Value::from(model).to_string()));
    }
    if include_usage && !parsed.include_usage {
        match &parsed.options_span {
            Some(span) => {
                let mut options = match serde_json::from_slice(&body[span.clone()]) {
                    Ok(Value::Object(o)) => o,
                    _ => serde_json::Map::new(),
                };
                options.insert("include_usage".into(), Value::Bool(true));
                edits.push((span.clone(), Value::Object(options).to_string()));
            }
            None => edits.push((
                parsed.open + 1..parsed.open + 1,
                "\"stream_options\":{\"include_usage\":true},".to_owned(),
            )),
        }
    }
    if edits.is_empty() {
        return body.clone();
    }
    edits.sort_by_key(|(span, _)| span.start);
    let mut out = Vec::with_capacity(body.len() + edits.iter().map(|(_, t)| t.len()).sum::<usize>());
    let mut from = 0;
    for (span, text) in edits {
        out.extend_from_slice(&body[from..span.start]);
        out.extend_from_slice(text.as_bytes());
        from = span.end;
    }
    out.extend_from_slice(&body[from..]);
    out.into()
}

/// The body with another model name, which `parsed` names from now on.
pub fn with_model(body: &Bytes, parsed: &mut Parsed, model: &str) -> Bytes {
    let out = rewrite(body, parsed, model, false);
    let span = parsed.model_span.clone();
    let moved = |at: usize| if at >= span.end { (at + out.len()).saturating_sub(body.len()) } else { at };
    parsed.options_span = parsed.options_span.clone().map(|options| moved(options.start)..moved(options.end));
    parsed.model_span.end = moved(span.end);
    model.clone_into(&mut parsed.model);
    out
}

/// What a valid body says to a model before anything else: the content of a first message from `system` or `developer`, as JSON text, or the
/// instructions of a response.
pub fn system_prompt(api: Api, body: &[u8]) -> Option<&[u8]> {
    let member = |text: &[u8], wanted: &str| {
        members(text).find(|(name, ..)| name == wanted).map(|(_, _, value)| value)
    };
    match api {
        Api::Chat | Api::Tokenize => {
            let list = member(body, "messages")?;
            let first = skip_space(body, list.start + 1);
            if body.get(list.start) != Some(&b'[') || body.get(first) != Some(&b'{') {
                return None;
            }
            let message = &body[first..skip_value(body, first)];
            let role = member(message, "role")?;
            let system = matches!(&message[role], b"\"system\"" | b"\"developer\"");
            Some(&message[member(message, "content").filter(|_| system)?])
        }
        Api::Responses => Some(&body[member(body, "instructions")?]).filter(|text| *text != b"null"),
        Api::Completions | Api::Embeddings => None,
    }
}

/// The members of an object in text known to be valid JSON: name, span of name and value, span of the value.
pub(crate) fn members(body: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, Range<usize>, Range<usize>)> {
    let mut at = skip_space(body, skip_space(body, 0) + 1);
    std::iter::from_fn(move || {
        if body.get(at) != Some(&b'"') {
            return None;
        }
        let begin = at;
        let key_end = skip_value(body, begin);
        let start = skip_space(body, skip_space(body, key_end) + 1);
        let end = skip_value(body, start);
        at = skip_space(body, end);
        if body.get(at) == Some(&b',') {
            at = skip_space(body, at + 1);
        }
        Some((unescape(&body[begin..key_end]), begin..end, start..end))
    })
}

/// An object with some of its members set (to JSON text) or, with `None`, left out; the others keep their bytes and order. The
/// body must be a valid JSON object, as [`parse`] makes sure of.
pub(crate) fn with_members(body: &[u8], changes: &[(&str, Option<String>)]) -> Bytes {
    let added: usize =
        changes.iter().map(|(name, text)| name.len() + text.as_ref().map_or(0, String::len) + 8).sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let begin = |out: &mut Vec<u8>| out.push(if out.is_empty() { b'{' } else { b',' });
    for (name, text) in changes {
        if let Some(text) = text {
            begin(&mut out);
            out.extend_from_slice(Value::from(*name).to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(text.as_bytes());
        }
    }
    for (name, span, _) in members(body) {
        if !changes.iter().any(|(changed, _)| *changed == name) {
            begin(&mut out);
            out.extend_from_slice(&body[span]);
        }
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    out.into()
}

fn unescape(quoted: &[u8]) -> Cow<'_, str> {
    if quoted.contains(&b'\\') {
        return Cow::Owned(serde_json::from_slice(quoted).unwrap_or_default());
    }
    Cow::Borrowed(std::str::from_utf8(quoted).unwrap_or_default().trim_matches('"'))
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The end of the value that starts at `at`, in text known to be valid JSON.
fn skip_value(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    loop {
        match text.get(at) {
            None => return text.len(),
            Some(b'"') => {
                at += 1;
                while let Some(n) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
                    at += n;
                    if text[at] == b'"' {
                        break;
                    }
                    at += 2;
                }
                at = if at < text.len() && text[at] == b'"' { at + 1 } else { text.len() };
            }
            Some(b'{' | b'[') => {
                depth += 1;
                at += 1;
                continue;
            }
            Some(b'}' | b']') => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            Some(b',' | b':' | b' ' | b'\t' | b'\n' | b'\r') => {
                at += 1;
                continue;
            }
            Some(_) => {
                while !matches!(
                    text.get(at),
                    None | Some(b',' | b':' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')
                ) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return at.min(text.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[test]
    fn reads_what_it_needs_and_rewrites_only_that() {
        let body = Bytes::from_static(
            br#" {"temperature": 0.5, "messages":[{"role":"user","content":"say \"model\": {x"}], "model" : "pool" ,"stream":true,"max_tokens":7}"#,
        );
        let p = parse(Api::Chat, &body).unwrap();
        assert_eq!(
            (p.model.as_str(), p.stream, p.include_usage, p.max_output),
            ("pool", true, false, Some(7))
        );
        let out = rewrite(&body, &p, "eng\"ine", true);
        let v: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(v["model"], "eng\"ine");
        assert_eq!(v["stream_options"]["include_usage"], true);
        assert_eq!(v["messages"][0]["content"], "say \"model\": {x");
        assert_eq!(rewrite(&body, &p, "pool", false), body);
    }

    #[rstest]
    #[case(
        Api::Chat,
        r#"{"messages": [ {"content":"Be \"brief\".", "role":"system"}]}"#,
        Some(r#""Be \"brief\".""#)
    )]
    #[case(Api::Chat, r#"{"messages":[{"role":"developer","content":[{"a":1}]},{}]}"#, Some(r#"[{"a":1}]"#))]
    #[case(
        Api::Chat,
        r#"{"messages":[{"role":"user","content":"x"},{"role":"system","content":"y"}]}"#,
        None
    )]
    #[case(Api::Chat, r#"{"messages":[]}"#, None)]
    #[case(Api::Chat, r#"{"messages":[3]}"#, None)]
    #[case(Api::Chat, r#"{"messages":{"role":"system"}}"#, None)]
    #[case(Api::Chat, r#"{"messages":[{"role":"system"}]}"#, None)]
    #[case(Api::Chat, "{}", None)]
    #[case(Api::Responses, r#"{"instructions":"Be brief."}"#, Some("\"Be brief.\""))]
    #[case(Api::Responses, r#"{"instructions":null}"#, None)]
    #[case(Api::Completions, r#"{"prompt":"x"}"#, None)]
    fn the_system_prompt_is_found(#[case] api: Api, #[case] body: &str, #[case] found: Option<&str>) {
        assert_eq!(system_prompt(api, body.as_bytes()), found.map(str::as_bytes));
    }

    proptest! {
        #[test]
        fn another_model_leaves_all_else_as_it_was(model in "[a-z\"\\\\é]{1,12}", other in "[a-z\"\\\\é]{1,12}", at in 0..3usize) {
            let model = serde_json::json!(model).to_string();
            let mut members =
                vec![r#""stream_options": {"x": 1}"#.to_owned(), r#""messages":[{"role":"user","content":"hi"}]"#.to_owned()];
            members.insert(at.min(2), format!(" \"model\" : {model} "));
            let body = Bytes::from(format!("{{{}}}", members.join(",")));
            let mut parsed = parse(Api::Chat, &body).unwrap();
            let out = with_model(&body, &mut parsed, &other);
            prop_assert_eq!(parsed, parse(Api::Chat, &out).unwrap());
        }
    }

    #[test]
    fn existing_options_are_kept() {
        let body =
            Bytes::from_static(br#"{"stream_options":{"x":1},"model":"m","prompt":"p","stream":true}"#);
        let p = parse(Api::Completions, &body).unwrap();
        let v: Value = serde_json::from_slice(&rewrite(&body, &p, "m", true)).unwrap();
        assert_eq!(v["stream_options"], serde_json::json!({"x": 1, "include_usage": true}));
    }

    #[rstest]
    #[case("{\"model\": ", "not valid JSON: EOF while parsing a value at line 1 column 10")]
    #[case("[]", "must be a JSON object")]
    #[case("{}", "`model` is missing")]
    #[case("{\"model\": 3}", "`model` must be a string")]
    #[case("{\"model\":\"a\",\"mod\\u0065l\":\"b\"}", "`model` twice")]
    #[case("{\"model\":\"a\",\"stream\":\"yes\"}", "`stream` must be true or false")]
    #[case("{\"model\":\"a\",\"stream_options\":3}", "`stream_options` must be an object")]
    fn errors_name_the_member(#[case] body: &str, #[case] message: &str) {
        let error = parse(Api::Chat, body.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn invalid_utf8_names_the_offset() {
        let error = parse(Api::Chat, b"{\"model\":\"\xff\"}").unwrap_err();
        assert_eq!(error, BadBody::NotUtf8 { offset: 10 });
    }

    #[test]
    fn conversations_share_the_hashes_of_what_they_share() {
        let turn = |extra: &str| {
            let long = "hello ".repeat(200);
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{long}"}}{extra}]}}"#)
        };
        let a = parse(Api::Chat, turn("").as_bytes()).unwrap().prefix;
        let b = parse(
            Api::Chat,
            turn(&format!(r#",{{"role":"user","content":"{}"}}"#, "x".repeat(600))).as_bytes(),
        )
        .unwrap()
        .prefix;
        assert!(a.len() >= 4 && b.len() > a.len());
        assert_eq!(a[..], b[..a.len()]);
    }

    #[test]
    fn members_are_set_and_left_out() {
        let body = br#" {"a" : [1, {"b":2}], "stream":true ,"max\u005ftokens":7, "z":"}"} "#;
        let changes =
            [("stream", Some("false".to_owned())), ("max_tokens", None), ("new", Some("{}".to_owned()))];
        let v: Value = serde_json::from_slice(&with_members(body, &changes)).unwrap();
        assert_eq!(v, serde_json::json!({"a": [1, {"b": 2}], "stream": false, "z": "}", "new": {}}));
        assert_eq!(&with_members(b"{}", &[("x", None)])[..], b"{}");
        assert_eq!(&with_members(br#"{"x":1}"#, &[("x", None)])[..], b"{}");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~é]{0,12}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-z\"\\\\]{1,6}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Api::Chat, &bytes);
        }

        #[test]
        fn rewriting_changes_nothing_else(
            members in prop::collection::btree_map("[a-z_\\\\\"]{1,8}", json(), 0..6), model in "[ -~]{1,10}", new in "[ -~]{1,10}", pretty: bool,
        ) {
            let mut object: serde_json::Map<String, Value> = members.into_iter().collect();
            for key in READ { object.remove(key); }
            object.insert("model".into(), model.clone().into());
            object.insert("stream".into(), true.into());
            let v = Value::Object(object.clone());
            let text = Bytes::from(if pretty { serde_json::to_string_pretty(&v).unwrap() } else { v.to_string() });
            let p = parse(Api::Chat, &text).unwrap();
            prop_assert_eq!(&p.model, &model);
            let out: Value = serde_json::from_slice(&rewrite(&text, &p, &new, true)).unwrap();
            object.insert("model".into(), new.into());
            object.insert("stream_options".into(), serde_json::json!({"include_usage": true}));
            prop_assert_eq!(out, Value::Object(object));
        }
    }
}
