//! What is said of each replica's prefix cache by the agent beside it: marks of the prompts that anybody has sent there.
//!
//! A block's hash stands for the prefix up to its end, so a few of a prompt's hashes tell how far a replica has it. Which are
//! taken ([`marks`]) hangs on the hashes themselves: two prompts have the same marks where they are the same, plus the
//! last block, where the next turn of a conversation goes on. The agent beside an engine keeps the newest marks in order
//! ([`Held`]); with the answer to each hop it tells the asking router what has come since that router's last one
//! ([`News`]), and the router puts it beside its own history ([`Told`]). Nobody polls, nothing goes through the scheduler, and a
//! mark goes to each router once.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use super::history::PrefixHistory;
use crate::hash::QuickMap;

/// One block in so many is a mark.
const SAMPLE: u64 = 8;
/// Most marks of one prompt: of longer ones fewer blocks are marks.
pub const MOST_MARKS: usize = 64;
/// Newest marks that an agent keeps for one engine.
const MOST_HELD: usize = 1_024;
/// Most marks in one piece of news; what a router was away for longer it does without.
const MOST_NEWS: usize = 128;
/// Most marks that a router keeps of one replica.
const MOST_TOLD: f64 = 2_048.0;
/// Bytes of a mark: of 64 bits 48 tell a few million blocks apart.
const MARK_BYTES: usize = 6;

/// The mark that a block's hash makes. The bits that decide whether it is one are not among those that are kept.
fn mark(hash: u64) -> u64 {
    hash >> (64 - 8 * MARK_BYTES)
}

/// The marks of a prompt, given the chained hashes of its blocks: at most [`MOST_MARKS`], in order.
pub fn marks(prefix: &[u64]) -> Vec<u64> {
    let Some((last, before)) = prefix.split_last() else { return Vec::new() };
    let mut sample = SAMPLE;
    // Each step takes half of those before, so that marks of a longer prompt are among those of a shorter one.
    while before.iter().filter(|hash| **hash % sample == 0).count() >= MOST_MARKS && sample < 1 << 15 {
        sample *= 2;
    }
    let sampled = before.iter().filter(|hash| **hash % sample == 0).take(MOST_MARKS - 1);
    sampled.chain([last]).map(|hash| mark(*hash)).collect()
}

/// Marks as text.
pub fn to_text(marks: &[u64]) -> String {
    let bytes: Vec<u8> =
        marks.iter().flat_map(|mark| mark.to_be_bytes().into_iter().skip(8 - MARK_BYTES)).collect();
    BASE64.encode(bytes)
}

/// Reads marks; at most `most`, none where the text is none of marks.
pub fn from_text(text: &str, most: usize) -> Vec<u64> {
    if text.len() > (most * MARK_BYTES).div_ceil(3) * 4 {
        return Vec::new();
    }
    let bytes = BASE64.decode(text).unwrap_or_default();
    let mark = |bytes: &[u8]| bytes.iter().fold(0, |mark, byte| (mark << 8) | u64::from(*byte));
    bytes.chunks_exact(MARK_BYTES).map(mark).collect()
}

/// How far somebody has followed an engine's marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Which life of the cache, as its agent counts them.
    pub life: u64,
    /// Marks since its beginning.
    pub marks: u64,
}

impl Place {
    /// As text.
    pub fn to_text(self) -> String {
        format!("{:x}.{}", self.life, self.marks)
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let (life, marks) = text.split_once('.')?;
        Some(Self { life: u64::from_str_radix(life, 16).ok()?, marks: marks.parse().ok()? })
    }
}

/// What a router had not heard of yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Where it stands once it knows.
    pub upto: Place,
    /// Marks of what the engine was sent by others, the newest last.
    pub marks: Vec<u64>,
}

impl News {
    /// As a header's value.
    pub fn to_text(&self) -> String {
        format!("{};{}", self.upto.to_text(), to_text(&self.marks))
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let (upto, marks) = text.split_once(';')?;
        Some(Self { upto: Place::parse(upto)?, marks: from_text(marks, MOST_NEWS) })
    }
}

/// The marks of what one engine was sent, kept by the agent beside it.
#[derive(Debug)]
pub struct Held {
    life: u64,
    /// The newest, with the place of the first.
    ring: VecDeque<u64>,
    first: u64,
    /// Where each was noted last.
    at: QuickMap<u64, u64>,
}

impl Held {
    /// Of an engine of which nothing is known. `life` must differ from those of earlier agents.
    pub fn new(life: u64) -> Self {
        Self { life, ring: VecDeque::new(), first: 0, at: QuickMap::default() }
    }

    fn next(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Takes note of a prompt's marks. Those noted a moment ago are not news again.
    pub fn note(&mut self, marks: &[u64]) {
        for &mark in marks {
            let next = self.next();
            if self.at.get(&mark).is_some_and(|at| next - at < MOST_HELD as u64 / 2) {
                continue;
            }
            self.at.insert(mark, next);
            self.ring.push_back(mark);
            if self.ring.len() > MOST_HELD
                && let Some(old) = self.ring.pop_front()
            {
                if self.at.get(&old) == Some(&self.first) {
                    self.at.remove(&old);
                }
                self.first += 1;
            }
        }
    }

    /// Notes what a router sends, and tells it what others have sent since it stood at `seen`.
    pub fn exchange(&mut self, seen: Option<Place>, sent: &[u64]) -> News {
        let from = seen.filter(|s| s.life == self.life).map_or(0, |s| s.marks);
        let next = self.next();
        let from = from.max(self.first).max(next.saturating_sub(MOST_NEWS as u64)).min(next);
        let marks = self.ring.iter().skip((from - self.first) as usize).copied().collect();
        self.note(sent);
        News { upto: Place { life: self.life, marks: self.next() }, marks }
    }

    /// The engine has lost its cache.
    pub fn lost(&mut self) {
        *self = Self::new(self.life + 1);
    }
}

/// What a router was told of all replicas, least recently told forgotten first.
#[derive(Debug, Default)]
pub struct Told {
    marks: PrefixHistory,
    lives: QuickMap<u64, u64>,
}

impl Told {
    /// Takes news of a replica in. `blocks`: how many its cache has room for. A new life forgets the one before.
    pub fn fold(&mut self, replica: u64, news: &News, blocks: f64) {
        if self.lives.insert(replica, news.upto.life).is_some_and(|life| life != news.upto.life) {
            self.marks.forget(replica);
        }
        // A prompt has about as many last blocks and repeated marks as others.
        let most = (2.0 * blocks / SAMPLE as f64).clamp(1.0, MOST_TOLD) as usize;
        for mark in &news.marks {
            self.marks.insert(replica, &[*mark], most);
        }
    }

    /// Whether anything was told.
    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// The replicas that are said to hold most of the prefix, deepest first: `(replica, blocks)`, at most `most`. O(blocks).
    pub fn holders(&self, prefix: &[u64], most: usize) -> Vec<(u64, usize)> {
        let mut found: Vec<(u64, usize)> = Vec::new();
        if self.is_empty() {
            return found;
        }
        for (i, hash) in prefix.iter().enumerate().rev() {
            for replica in self.marks.with_block(mark(*hash)) {
                if found.len() < most && !found.iter().any(|(known, _)| *known == replica) {
                    found.push((replica, i + 1));
                }
            }
            if found.len() >= most {
                break;
            }
        }
        found
    }

    /// Forgets a replica.
    pub fn forget(&mut self, replica: u64) {
        self.lives.remove(&replica);
        self.marks.forget(replica);
    }

    /// Replicas that something was told of.
    pub fn replicas(&self) -> impl Iterator<Item = u64> + '_ {
        self.lives.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(seed: u64, blocks: usize) -> Vec<u64> {
        let mut chain = seed;
        let mut next = |_| {
            chain = chain.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (chain ^ (chain >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed ^ (mixed >> 29)
        };
        (0..blocks).map(&mut next).collect()
    }

    #[test]
    fn a_router_is_told_what_others_sent_and_nothing_twice() {
        let mut held = Held::new(7);
        let (a, b) = (prompt(1, 40), prompt(2, 40));
        let first = held.exchange(None, &marks(&a));
        assert!(first.marks.is_empty(), "what it sends itself is no news to it");
        let other = held.exchange(None, &marks(&b));
        assert_eq!(other.marks, marks(&a));
        let news = held.exchange(Some(first.upto), &marks(&a));
        assert_eq!(news.marks, marks(&b));
        assert!(held.exchange(Some(news.upto), &marks(&b)).marks.is_empty());

        let mut told = Told::default();
        told.fold(5, &news, 1_000.0);
        let mut longer = b.clone();
        longer.extend(prompt(3, 6));
        assert_eq!(told.holders(&longer, 8), [(5, 40)], "the next turn goes on at the last block");
        let shorter = told.holders(&b[..30], 8);
        assert!(shorter.iter().all(|(replica, depth)| *replica == 5 && *depth <= 30));
        assert_eq!(told.holders(&a, 8), []);

        held.lost();
        let lost = held.exchange(Some(news.upto), &[]);
        assert_eq!((lost.marks.len(), lost.upto), (0, Place { life: 8, marks: 0 }));
        told.fold(5, &lost, 1_000.0);
        assert_eq!(told.holders(&longer, 8), [], "its cache is gone");
        told.forget(5);
        assert!(told.is_empty());
    }

    #[test]
    fn memory_and_news_are_bounded_and_what_is_used_stays() {
        let mut held = Held::new(1);
        let mut told = Told::default();
        let mut seen = None;
        let kept = prompt(0, 9);
        for i in 0..2_000 {
            held.note(&marks(&prompt(i + 1, 30)));
            held.note(&marks(&kept));
            if i % 100 == 0 {
                let news = held.exchange(seen, &[]);
                assert!(news.marks.len() <= MOST_NEWS);
                seen = Some(news.upto);
                told.fold(1, &news, 1e6);
            }
        }
        assert!(held.ring.len() <= MOST_HELD && held.at.len() <= MOST_HELD);
        assert_eq!(held.exchange(None, &[]).marks.len(), MOST_NEWS);
        let held_by = |prompt: &[u64]| told.holders(prompt, 1).first().map_or(0, |(_, depth)| *depth);
        assert_eq!(held_by(&prompt(1_901, 30)), 30, "the newest of the last news");
        assert_eq!(held_by(&kept), 9, "old, but used again and again");
        assert_eq!(held_by(&prompt(2, 30)), 0, "long ago");
    }

    proptest! {
        #[test]
        fn long_prompts_have_few_marks_and_what_goes_on_shares_them(seed: u64, blocks in 0usize..3_000, more in 1usize..200) {
            let short = prompt(seed, blocks);
            let mut long = short.clone();
            long.extend(prompt(!seed, more));
            let (a, b) = (marks(&short), marks(&long));
            prop_assert!(a.len() <= MOST_MARKS && b.len() <= MOST_MARKS);
            prop_assert_eq!(a.is_empty(), short.is_empty());
            // However long it grows, one of the first marks or the last block tells how far a replica has it.
            let mut told = Told::default();
            told.fold(1, &News { upto: Place { life: 1, marks: 1 }, marks: a }, 1e6);
            let depth = told.holders(&long, 8).first().map_or(0, |(_, depth)| *depth);
            prop_assert_eq!(depth, short.len());
        }

        #[test]
        fn text_is_read_back_and_any_text_is_read(marks in prop::collection::vec(0u64..1 << 48, 0..MOST_NEWS), life: u64, at: u64, text in "[ -~]{0,60}") {
            let news = News { upto: Place { life, marks: at }, marks };
            prop_assert_eq!(News::parse(&news.to_text()), Some(news));
            let _ = News::parse(&text);
            prop_assert!(from_text(&text, 4).len() <= 4);
        }
    }
}
