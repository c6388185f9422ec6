//! Prompts of each kind of traffic, the same for the same seed.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a block of the engines' prefix caches.
pub const BLOCK_BYTES: usize = 64;
/// Bytes that count as one token.
pub const TOKEN_BYTES: usize = 4;

/// Chained hashes of a prompt's full blocks.
pub fn blocks(prompt: &[u8]) -> Vec<u64> {
    let mut chain = 0;
    prompt
        .chunks_exact(BLOCK_BYTES)
        .map(|block| {
            chain = xxh3_64_with_seed(block, chain);
            chain
        })
        .collect()
}

fn words(rng: &mut SmallRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        for _ in 0..rng.random_range(2..8) {
            text.push(char::from(rng.random_range(b'a'..=b'z')));
        }
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

/// What is sent, in order: the messages of each request.
pub struct Prompts {
    /// Role and content of each message.
    pub messages: Vec<Vec<(&'static str, String)>>,
    /// Share of blocks that one cache without a limit would hold when each request comes.
    pub oracle: f64,
}

/// The prompts of a kind of traffic: `chat`, `long`, `sessions` or `bursts`.
pub fn prompts(kind: &str, count: usize, seed: u64) -> Option<Prompts> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let messages: Vec<Vec<(&'static str, String)>> = match kind {
        "chat" => (0..count.min(4_096)).map(|_| vec![("user", words(&mut rng, 200))]).collect(),
        "bursts" => (0..count.min(4_096)).map(|_| vec![("user", words(&mut rng, 4_000))]).collect(),
        // 100,000 tokens each; a few that are sent in turn, for memory's sake.
        "long" => {
            (0..count.min(24)).map(|_| vec![("user", words(&mut rng, 100_000 * TOKEN_BYTES))]).collect()
        }
        "sessions" => sessions(&mut rng, count),
        _ => return None,
    };
    let mut seen = std::collections::HashSet::new();
    let (mut all, mut hit) = (0, 0);
    for request in &messages {
        let prompt: String = request.iter().map(|(_, text)| text.as_str()).collect();
        let prefix = blocks(prompt.as_bytes());
        all += prefix.len();
        hit += prefix.iter().take_while(|b| seen.contains(*b)).count();
        seen.extend(prefix);
    }
    Some(Prompts { messages, oracle: hit as f64 / all.max(1) as f64 })
}

/// Conversations of up to 8 turns that share one of four system prompts of 2,000 tokens; about 48 go on at a time.
fn sessions(rng: &mut SmallRng, count: usize) -> Vec<Vec<(&'static str, String)>> {
    let systems: Vec<String> = (0..4).map(|_| words(rng, 8_000)).collect();
    let fresh = |rng: &mut SmallRng| vec![("system", systems[rng.random_range(0..systems.len())].clone())];
    let mut open: Vec<Vec<(&'static str, String)>> = (0..48).map(|_| fresh(rng)).collect();
    (0..count)
        .map(|_| {
            let i = rng.random_range(0..open.len());
            if open[i].len() > 16 {
                open[i] = fresh(rng);
            }
            let question = rng.random_range(200..3_000);
            let asked = ("user", words(rng, question));
            open[i].push(asked);
            let request = open[i].clone();
            let answered = ("assistant", words(rng, 800));
            open[i].push(answered);
            request
        })
        .collect()
}
