//! The simulated tokenizer, and text of a wanted length.
//!
//! **One token is four bytes.** Byte-pair vocabularies average about four bytes a token on English text, so
//! lengths come out right without loading a vocabulary. A message, a prompt or a template piece whose length is
//! not a multiple of four is padded with zero bytes to whole tokens; a token's id is its four bytes read as a
//! little-endian number, which makes [`detokenize`] exact. A chat prompt is each message's
//! [`MESSAGE_OVERHEAD_TOKENS`] and text, in order, and [`REPLY_OVERHEAD_TOKENS`] for the opening of the answer.
//!
//! Generated text consists of words that, with the blank after them, fill whole tokens: mostly three letters,
//! which real vocabularies also hold as one token, so that prompts built here have about the wanted length on
//! real engines too.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes in a token.
pub const BYTES_PER_TOKEN: usize = 4;
/// Tokens that the chat template spends on a message.
pub const MESSAGE_OVERHEAD_TOKENS: u32 = 4;
/// Tokens that the chat template spends on opening the answer.
pub const REPLY_OVERHEAD_TOKENS: u32 = 3;

/// A tokenized prompt: whole tokens, as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    bytes: Vec<u8>,
}

impl Tokens {
    /// Appends text, padded to whole tokens.
    pub fn push_text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(BYTES_PER_TOKEN), 0);
    }

    /// Appends the template's opening of a message.
    pub fn push_message_start(&mut self, role: &str) {
        let mut marker = [b' '; MESSAGE_OVERHEAD_TOKENS as usize * BYTES_PER_TOKEN];
        marker[..2].copy_from_slice(b"<|");
        let role = role.as_bytes();
        let shown = role.len().min(marker.len() - 4);
        marker[2..2 + shown].copy_from_slice(&role[..shown]);
        let end = marker.len();
        marker[end - 2..].copy_from_slice(b"|>");
        self.bytes.extend_from_slice(&marker);
    }

    /// Appends the template's opening of the answer.
    pub fn push_reply_start(&mut self) {
        self.bytes.extend_from_slice(b"<|answer|>\n\n");
    }

    /// Appends a token by its id.
    pub fn push_id(&mut self, id: u32) {
        self.bytes.extend_from_slice(&id.to_le_bytes());
    }

    /// Number of tokens, saturating.
    pub fn len(&self) -> u32 {
        u32::try_from(self.bytes.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The tokens' ids.
    pub fn ids(&self) -> Vec<u32> {
        self.bytes
            .chunks_exact(BYTES_PER_TOKEN)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// Identities of the full blocks of `block_tokens` tokens: each depends on all before it and on `salt`, so
    /// that equal identities mean equal prefixes.
    pub fn block_hashes(&self, block_tokens: u32, salt: u64) -> Vec<u64> {
        let mut previous = salt;
        self.bytes
            .chunks_exact(block_tokens.max(1) as usize * BYTES_PER_TOKEN)
            .map(|block| {
                previous = xxh3_64_with_seed(block, previous);
                previous
            })
            .collect()
    }

    /// A number that depends on every token and on `seed`.
    pub fn fingerprint(&self, seed: u64) -> u64 {
        xxh3_64_with_seed(&self.bytes, seed)
    }
}

/// The text of token ids: the inverse of [`Tokens::ids`], without the padding.
pub fn detokenize(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).filter(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Words of three letters: one token each with the blank after them.
const SHORT: [&str; 64] = [
    "the ", "and ", "for ", "are ", "but ", "not ", "you ", "all ", "any ", "can ", "had ", "her ", "was ",
    "one ", "our ", "out ", "day ", "get ", "has ", "him ", "his ", "how ", "man ", "new ", "now ", "old ",
    "see ", "two ", "way ", "who ", "did ", "its ", "let ", "put ", "say ", "she ", "too ", "use ", "sea ",
    "air ", "sky ", "sun ", "ice ", "map ", "bay ", "oil ", "tar ", "log ", "net ", "oar ", "row ", "run ",
    "set ", "top ", "low ", "far ", "off ", "own ", "big ", "few ", "yet ", "may ", "end ", "add ",
];
/// Words of seven letters: two tokens each with the blank after them.
const LONG: [&str; 16] = [
    "balance ", "captain ", "current ", "measure ", "morning ", "nothing ", "passage ", "present ",
    "quarter ", "through ", "thunder ", "tonnage ", "weather ", "western ", "without ", "whisper ",
];
/// Ends of sentences, four tokens each.
const ENDS: [&str; 4] = ["at the harbour. ", "by the lantern. ", "in the current. ", "on quiet water. "];

/// An endless text, a token at a time; the same seed gives the same text.
#[derive(Debug, Clone)]
pub struct Pieces {
    state: u64,
    word: &'static str,
    words_left: u32,
}

impl Pieces {
    /// The text of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed | 1, word: "", words_left: 9 }
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Iterator for Pieces {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        if self.word.is_empty() {
            let random = self.random();
            let pick = (random >> 8) as usize;
            self.word = if self.words_left == 0 {
                self.words_left = 6 + (random & 7) as u32;
                ENDS[pick % ENDS.len()]
            } else if random & 7 == 0 {
                LONG[pick % LONG.len()]
            } else {
                SHORT[pick % SHORT.len()]
            };
            self.words_left = self.words_left.saturating_sub(1);
        }
        let (piece, rest) = self.word.split_at(BYTES_PER_TOKEN.min(self.word.len()));
        self.word = rest;
        Some(piece)
    }
}

/// Text of so many tokens.
pub fn text_of(seed: u64, tokens: u32) -> String {
    Pieces::new(seed).take(tokens as usize).collect()
}

/// A seed from a name or any other text.
pub fn seed_of(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_word_fills_whole_tokens() {
        for word in SHORT.iter().chain(&LONG).chain(&ENDS) {
            assert_eq!(word.len() % BYTES_PER_TOKEN, 0, "{word:?}");
        }
    }

    #[test]
    fn an_answer_counts_the_same_as_a_prompt() {
        for n in [0, 1, 2, 3, 17, 1000] {
            let mut tokens = Tokens::default();
            tokens.push_text(&text_of(5, n));
            assert_eq!(tokens.len(), n);
        }
        assert_eq!(text_of(5, 50), text_of(5, 50));
        assert_ne!(text_of(5, 50), text_of(8, 50));
    }

    #[test]
    fn blocks_tell_prefixes() {
        let make = |text: &str| {
            let mut t = Tokens::default();
            t.push_message_start("user");
            t.push_text(text);
            t.block_hashes(4, 0)
        };
        let (a, b) = (make("0123456789abcdef and so on and on"), make("0123456789abcdef but not so and on"));
        assert_eq!(a[..2], b[..2]);
        assert_ne!(a[2], b[2]);
        assert_eq!(a.len(), 3, "the partial last block has no identity");
    }

    #[test]
    fn template_pieces_have_their_documented_length() {
        let mut t = Tokens::default();
        t.push_message_start("a-role-with-a-very-long-name");
        assert_eq!(t.len(), MESSAGE_OVERHEAD_TOKENS);
        t.push_reply_start();
        assert_eq!(t.len(), MESSAGE_OVERHEAD_TOKENS + REPLY_OVERHEAD_TOKENS);
    }

    proptest! {
        #[test]
        fn tokens_turn_back_into_text(text in "[^\0]{0,200}") {
            let mut tokens = Tokens::default();
            tokens.push_text(&text);
            prop_assert_eq!(tokens.len() as usize, text.len().div_ceil(4));
            prop_assert_eq!(detokenize(&tokens.ids()), text);
        }
    }
}
