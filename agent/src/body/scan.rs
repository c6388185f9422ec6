//! Reading a body part by part as it comes: what [`super::parse`] reads, in one pass that never looks back.
//!
//! Only the outermost object is understood; what is inside its members is stepped over and remains the engine's to judge.

use xxhash_rust::xxh3::Xxh3;

use super::*;

/// Longest member among those that are read, bytes: names and numbers, not prompts.
const LONGEST_READ: usize = 64 << 10;

/// Where the scan stands in the outermost object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the object.
    Start,
    /// Before a name; `true`: or the object's end.
    Name(bool),
    /// In a name.
    InName,
    /// Before the colon.
    Colon,
    /// Before a value.
    Value,
    /// In a number, `true`, `false` or `null`.
    Word,
    /// In a string, an object or a list.
    Nested,
    /// After a value.
    Comma,
    /// After the object.
    End,
}

/// A body that comes in parts.
#[derive(Debug)]
pub struct Scan {
    api: Api,
    parts: Vec<Bytes>,
    length: usize,
    at: At,
    open: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The name under way, or the value under way if that is read.
    text: Vec<u8>,
    /// Member under way: among those that are read, among those that hold the prompt.
    read: Option<usize>,
    prompt: Option<usize>,
    value_start: usize,
    values: [Option<(Range<usize>, Vec<u8>)>; READ.len()],
    prompts: [Option<Range<usize>>; 3],
    /// Bytes of a character that the last part began.
    begun: Vec<u8>,
}

impl Scan {
    /// Of a body that is sent to this API.
    pub fn new(api: Api) -> Self {
        Self {
            api,
            parts: Vec::new(),
            length: 0,
            at: At::Start,
            open: 0,
            depth: 0,
            in_string: false,
            escaped: false,
            text: Vec::new(),
            read: None,
            prompt: None,
            value_start: 0,
            values: std::array::from_fn(|_| None),
            prompts: std::array::from_fn(|_| None),
            begun: Vec::new(),
        }
    }

    /// Bytes so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The parts, as they came.
    pub fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }

    /// Reads the next part.
    ///
    /// # Errors
    /// [`BadBody`]; nothing more can be read then.
    pub fn push(&mut self, part: Bytes) -> Result<(), BadBody> {
        self.check_text(&part)?;
        let mut i = 0;
        while i < part.len() {
            i = match self.at {
                At::InName | At::Nested => self.nested(&part, i)?,
                At::Word => self.word(&part, i)?,
                _ => self.between(part[i], i)?,
            };
        }
        self.length += part.len();
        self.parts.push(part);
        Ok(())
    }

    /// A byte outside names and values; returns where to go on.
    fn between(&mut self, byte: u8, i: usize) -> Result<usize, BadBody> {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return Ok(i + 1);
        }
        let here = self.length + i;
        self.at = match (self.at, byte) {
            (At::Start, b'{') => {
                self.open = here;
                At::Name(true)
            }
            (At::Start, b'"' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                return Err(BadBody::NotObject);
            }
            (At::Name(_), b'"') => {
                self.text.clear();
                (self.read, self.prompt) = (None, None);
                self.value_start = here;
                At::InName
            }
            (At::Name(true) | At::Comma, b'}') => At::End,
            (At::Colon, b':') => At::Value,
            (At::Comma, b',') => At::Name(false),
            (At::Value, b'"' | b'{' | b'[') => {
                self.value_start = here;
                At::Nested
            }
            (At::Value, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.value_start = here;
                At::Word
            }
            _ => {
                let byte = char::from(byte);
                return Err(BadBody::NotJson(format!("unexpected {byte:?} at offset {here}")));
            }
        };
        // What begins a name or a value is part of it.
        Ok(if matches!(self.at, At::InName | At::Nested | At::Word) { i } else { i + 1 })
    }

    /// Through a string, an object or a list, to its end or the part's; returns where to go on.
    fn nested(&mut self, part: &[u8], from: usize) -> Result<usize, BadBody> {
        let mut i = from;
        while i < part.len() {
            if self.escaped {
                self.escaped = false;
                i += 1;
                continue;
            }
            if self.in_string {
                match part[i..].iter().position(|b| matches!(b, b'"' | b'\\')) {
                    None => {
                        i = part.len();
                        continue;
                    }
                    Some(n) => {
                        i += n + 1;
                        self.escaped = part[i - 1] == b'\\';
                        self.in_string = self.escaped;
                    }
                }
            } else {
                match part[i] {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                i += 1;
            }
            if !self.in_string && self.depth == 0 {
                self.keep(&part[from..i])?;
                self.ended(self.length + i)?;
                return Ok(i);
            }
        }
        self.keep(&part[from..])?;
        Ok(i)
    }

    /// Through a number, `true`, `false` or `null`.
    fn word(&mut self, part: &[u8], from: usize) -> Result<usize, BadBody> {
        let ends = |b: &u8| matches!(b, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
        let n = part[from..].iter().position(ends);
        let to = n.map_or(part.len(), |n| from + n);
        self.keep(&part[from..to])?;
        if n.is_some() {
            self.ended(self.length + to)?;
        }
        Ok(to)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), BadBody> {
        if self.at == At::InName || self.read.is_some() {
            if self.text.len() + bytes.len() > LONGEST_READ {
                let member = self.read.map_or("the name of a member", |i| READ[i]);
                return Err(BadBody::Type { member, expected: "shorter" });
            }
            self.text.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// A name or a value has ended before `to`.
    fn ended(&mut self, to: usize) -> Result<(), BadBody> {
        let text = std::mem::take(&mut self.text);
        if self.at == At::InName {
            let name = unescape(&text);
            self.read = READ.iter().position(|n| *n == name);
            self.prompt = self.api.prompt_members().iter().position(|n| *n == name);
            self.at = At::Colon;
            return Ok(());
        }
        let span = self.value_start..to;
        if let Some(i) = self.read.take()
            && self.values[i].replace((span.clone(), text)).is_some()
        {
            return Err(BadBody::Duplicate(READ[i]));
        }
        if let Some(i) = self.prompt.take()
            && self.prompts[i].replace(span).is_some()
        {
            return Err(BadBody::Duplicate(self.api.prompt_members()[i]));
        }
        self.at = At::Comma;
        Ok(())
    }

    /// Text must be UTF-8, wherever parts are cut.
    fn check_text(&mut self, part: &[u8]) -> Result<(), BadBody> {
        let mut rest = part;
        let mut base = self.length;
        while !self.begun.is_empty() {
            let Some((first, more)) = rest.split_first() else { return Ok(()) };
            self.begun.push(*first);
            (rest, base) = (more, base + 1);
            match std::str::from_utf8(&self.begun) {
                Ok(_) => self.begun.clear(),
                Err(e) if e.error_len().is_none() => {}
                Err(_) => return Err(BadBody::NotUtf8 { offset: base - self.begun.len() }),
            }
        }
        match std::str::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(e) if e.error_len().is_none() => {
                self.begun = rest[e.valid_up_to()..].to_vec();
                Ok(())
            }
            Err(e) => Err(BadBody::NotUtf8 { offset: base + e.valid_up_to() }),
        }
    }

    /// What was read, once all parts have come.
    ///
    /// # Errors
    /// [`BadBody`], naming the member and the remedy.
    pub fn finish(&self) -> Result<Parsed, BadBody> {
        if !self.begun.is_empty() {
            return Err(BadBody::NotUtf8 { offset: self.length - self.begun.len() });
        }
        if self.at != At::End {
            return Err(BadBody::NotJson(format!("it ends at offset {}, within the object", self.length)));
        }
        let (prefix, prompt_bytes) = self.hashes();
        Parsed::of(
            |i| self.values[i].as_ref().map(|(_, text)| text.as_slice()),
            |i| self.values[i].as_ref().map(|(span, _)| span.clone()),
            prefix,
            prompt_bytes,
            self.open,
        )
    }

    /// Chained hashes of the prompt's blocks over the parts, in the order of the engine's template.
    fn hashes(&self) -> (Vec<u64>, usize) {
        let (mut prefix, mut prompt_bytes, mut chain) = (Vec::new(), 0, 0);
        for span in self.prompts.iter().flatten() {
            prompt_bytes += span.len();
            let mut hasher = Xxh3::with_seed(chain);
            let mut filled = 0;
            for mut bytes in self.slices(span) {
                while !bytes.is_empty() {
                    let n = bytes.len().min(BLOCK_BYTES - filled);
                    if filled == 0 && n == BLOCK_BYTES {
                        chain = xxh3_64_with_seed(&bytes[..n], chain);
                    } else {
                        hasher.update(&bytes[..n]);
                        filled += n;
                        if filled < BLOCK_BYTES {
                            break;
                        }
                        chain = hasher.digest();
                        filled = 0;
                    }
                    prefix.push(chain);
                    hasher = Xxh3::with_seed(chain);
                    bytes = &bytes[n..];
                }
            }
        }
        (prefix, prompt_bytes)
    }

    /// The bytes of a span, part by part.
    fn slices(&self, span: &Range<usize>) -> impl Iterator<Item = &[u8]> {
        let span = span.clone();
        let mut start = 0;
        self.parts.iter().filter_map(move |part| {
            let from = span.start.saturating_sub(start).min(part.len());
            let to = span.end.saturating_sub(start).min(part.len());
            start += part.len();
            (from < to).then(|| &part[from..to])
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn scan(api: Api, parts: impl IntoIterator<Item = Bytes>) -> Result<Parsed, BadBody> {
        let mut scan = Scan::new(api);
        for part in parts {
            scan.push(part)?;
        }
        scan.finish()
    }

    fn cut(body: &[u8], lengths: &[usize]) -> Vec<Bytes> {
        let mut rest = Bytes::copy_from_slice(body);
        let mut parts: Vec<Bytes> = lengths.iter().map(|n| rest.split_to((*n).min(rest.len()))).collect();
        parts.push(rest);
        parts
    }

    #[rstest]
    #[case("{\"model\": ", "not valid JSON: it ends at offset 10")]
    #[case("[]", "must be a JSON object")]
    #[case("{}", "`model` is missing")]
    #[case("{\"model\": 3}", "`model` must be a string")]
    #[case("{\"model\":\"a\",\"mod\\u0065l\":\"b\"}", "`model` twice")]
    #[case("{\"model\":\"a\",\"stream\":\"yes\"}", "`stream` must be true or false")]
    #[case("{\"model\":\"a\",\"stream_options\":3}", "`stream_options` must be an object")]
    #[case("{\"model\":\"a\",}", "unexpected '}'")]
    #[case("{\"model\":\"a\"} x", "unexpected 'x'")]
    fn errors_name_the_member(#[case] body: &str, #[case] message: &str) {
        for step in [1, 2, 1000] {
            let parts = cut(body.as_bytes(), &vec![step; body.len()]);
            let error = scan(Api::Chat, parts).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn characters_may_be_cut_and_broken_ones_are_found() {
        let body = "{\"model\":\"é😀\",\"messages\":\"ß\"}".as_bytes();
        for at in 0..body.len() {
            assert_eq!(scan(Api::Chat, cut(body, &[at])).unwrap().model, "é😀");
        }
        for at in 0..12 {
            let parts = cut(b"{\"model\":\"\xff\"}", &[at]);
            assert_eq!(scan(Api::Chat, parts).unwrap_err(), BadBody::NotUtf8 { offset: 10 }, "{at}");
        }
        let parts = cut(b"{\"model\":\"\xf0\x9f\x98\"}", &[12]);
        assert_eq!(scan(Api::Chat, parts).unwrap_err(), BadBody::NotUtf8 { offset: 10 });
    }

    #[test]
    fn a_prompt_may_be_long_and_a_name_may_not() {
        let long = "word ".repeat(100_000);
        let body = json!({"messages": [{"role": "user", "content": long}], "model": "m"}).to_string();
        let parts = cut(body.as_bytes(), &[1000, 9, 70_000]);
        assert_eq!(scan(Api::Chat, parts).unwrap(), parse(Api::Chat, body.as_bytes()).unwrap());
        let body = json!({"model": long}).to_string();
        assert!(scan(Api::Chat, cut(body.as_bytes(), &[70_000])).is_err());
    }

    proptest! {
        #[test]
        fn it_reads_what_the_whole_body_says(
            messages in prop::collection::vec("[ -~é\\\\\"]{0,700}", 0..4), tools in prop::option::of("[a-z]{0,900}"),
            tools_last: bool, max in prop::option::of(0..5000u32), stream: bool, usage: bool, pretty: bool,
            cuts in prop::collection::vec(0..400usize, 0..30),
        ) {
            let mut members = vec![("messages".to_owned(), json!(messages)), ("model".to_owned(), json!("a\"b"))];
            if let Some(tools) = tools {
                members.insert(if tools_last { 2 } else { 0 }, ("tools".to_owned(), json!([tools, {"x": [1, {}]}])));
            }
            members.extend(max.map(|m| ("max_tokens".to_owned(), json!(m))));
            members.push(("stream".to_owned(), json!(stream)));
            members.push(("stream_options".to_owned(), json!({"include_usage": usage})));
            // By hand, so that members keep their order.
            let space = if pretty { "\n  " } else { "" };
            let text: Vec<String> = members.iter().map(|(k, v)| format!("{space}\"{k}\":{space}{v}{space}")).collect();
            let body = format!("{space}{{{}}}{space}", text.join(","));
            let whole = parse(Api::Chat, body.as_bytes()).unwrap();
            prop_assert_eq!(scan(Api::Chat, cut(body.as_bytes(), &cuts)).unwrap(), whole);
        }

        #[test]
        fn any_bytes_are_answered_and_never_better_than_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..100), text in "[{}\\[\\]\":,a-z0-9\\\\ ]{0,80}", cuts in prop::collection::vec(0..20usize, 0..6),
        ) {
            let _ = scan(Api::Chat, cut(&bytes, &cuts));
            if let Ok(parsed) = parse(Api::Chat, text.as_bytes()) {
                prop_assert_eq!(scan(Api::Chat, cut(text.as_bytes(), &cuts)).unwrap(), parsed);
            }
        }
    }
}
