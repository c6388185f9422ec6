//! Server-sent events, as the HTML standard (§9.2.6) parses them, from chunks cut anywhere.

/// Longest line or event taken, bytes.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// An event larger than 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is larger than {MAX_EVENT_BYTES} bytes; this is no token stream")]
pub struct EventTooLarge;

/// An incremental parser. It keeps the `data` of events; their types, ids and retry times are dropped, as
/// OpenAI's streams use none.
#[derive(Debug, Clone, Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return, so that a line feed belongs to it.
    after_cr: bool,
    started: bool,
}

impl SseParser {
    /// Takes the next bytes, and gives each event's data that they complete. Invalid UTF-8 is replaced, not
    /// refused.
    ///
    /// # Errors
    /// [`EventTooLarge`]; the parser is not to be used after it.
    pub fn feed(&mut self, bytes: &[u8], mut on_data: impl FnMut(&str)) -> Result<(), EventTooLarge> {
        let mut rest = bytes;
        if self.after_cr && rest.first() == Some(&b'\n') {
            rest = &rest[1..];
        }
        if !bytes.is_empty() {
            self.after_cr = false;
        }
        while let Some(end) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let ended_by_cr = rest[end] == b'\r';
            if self.line.is_empty() {
                self.take_line(&rest[..end], &mut on_data);
            } else {
                self.line.extend_from_slice(&rest[..end]);
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, &mut on_data);
                self.line = line;
                self.line.clear();
            }
            rest = &rest[end + 1..];
            if ended_by_cr {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.data.len() > MAX_EVENT_BYTES {
                return Err(EventTooLarge);
            }
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > MAX_EVENT_BYTES { Err(EventTooLarge) } else { Ok(()) }
    }

    fn take_line(&mut self, line: &[u8], on_data: &mut impl FnMut(&str)) {
        let line = if self.started { line } else { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) };
        self.started = true;
        if line.is_empty() {
            if self.has_data {
                on_data(&String::from_utf8_lossy(&self.data));
                self.data.clear();
                self.has_data = false;
            }
            return;
        }
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        if &line[..colon] != b"data" {
            return;
        }
        let value = line.get(colon + 1..).unwrap_or_default();
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        self.has_data = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, |data| events.push(data.to_owned())).unwrap();
        }
        events
    }

    #[rstest]
    #[case("data: a\n\ndata: b\n\n", &["a", "b"])]
    #[case("data: a\r\n\r\ndata: b\r\rdata:c\n\n", &["a", "b", "c"])]
    #[case(": keep-alive\n\ndata: a\n: in between\ndata: b\n\n", &["a\nb"])]
    #[case("event: x\nid: 1\nretry: 5\ndata:  two blanks\n\n", &[" two blanks"])]
    #[case("\u{feff}data: a\n\n", &["a"])]
    #[case("data\n\ndata:\n\n", &["", ""])]
    #[case("data: cut off\n", &[])]
    #[case("\n\n\r\n", &[])]
    #[case("dataset: no\n\n", &[])]
    fn events(#[case] stream: &str, #[case] expected: &[&str]) {
        assert_eq!(parse([stream.as_bytes()]), expected);
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(parse(bytes), expected, "a byte at a time");
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; 1 << 20];
        assert!((0..20).any(|_| parser.feed(&chunk, |_| ()).is_err()));
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            stream in proptest::collection::vec(
                proptest::sample::select(vec![
                    "data: x", "data:", ": c", "\n", "\r", "\r\n", "\n\n", "é", "data: {\"a\":1}\n\n",
                ]),
                0..60,
            ),
            cuts in proptest::collection::vec(0usize..400, 0..20),
        ) {
            let bytes = stream.concat().into_bytes();
            let end = bytes.len();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % (end + 1)).chain([0, end]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(parse([&bytes[..]]), parse(pieces));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400) {
            let at = at.min(bytes.len());
            parse([&bytes[..at], &bytes[at..]]);
        }
    }
}
