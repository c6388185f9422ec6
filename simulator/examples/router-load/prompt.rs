//! Prompts of each kind of traffic, the same for the same seed.

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::usage;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a block of the engines' prefix caches.
pub const BLOCK_BYTES: usize = 64;
/// Adapters that requests ask for.
pub const ADAPTERS: usize = 16;
/// Longest prompt taken from a trace, tokens.
const LONGEST_TRACED: usize = 16_384;
/// Tokens of one hash in Mooncake's traces.
const MOONCAKE_BLOCK_TOKENS: usize = 512;
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

/// Role and content of each message of a request.
type Messages = Vec<(&'static str, String)>;

/// What is sent, in order.
pub struct Prompts {
    /// The messages of each request.
    pub messages: Vec<Messages>,
    /// The adapter that each request asks for, by number (empty: none does).
    pub adapters: Vec<usize>,
    /// Times between requests against their mean (empty: at random, by Poisson's law).
    pub gaps: Vec<f64>,
    /// Share of blocks that one cache without a limit would hold when each request comes.
    pub oracle: f64,
}

/// The prompts of a kind of traffic: `chat`, `long`, `sessions`, `bursts`, `lora`, or by the trace in `trace` `mooncake` or
/// `azure`.
pub fn prompts(kind: &str, count: usize, seed: u64, trace: &str) -> Option<Prompts> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut adapters, mut gaps) = (Vec::new(), Vec::new());
    let messages: Vec<Messages> = match kind {
        "chat" => (0..count.min(4_096)).map(|_| vec![("user", words(&mut rng, 200))]).collect(),
        "bursts" => (0..count.min(4_096)).map(|_| vec![("user", words(&mut rng, 4_000))]).collect(),
        // 100,000 tokens each; a few that are sent in turn, for memory's sake.
        "long" => {
            (0..count.min(24)).map(|_| vec![("user", words(&mut rng, 100_000 * TOKEN_BYTES))]).collect()
        }
        "sessions" => sessions(&mut rng, count),
        "lora" => {
            let popularity: Vec<f64> = (1..=ADAPTERS).map(|rank| (rank as f64).powf(-0.9)).collect();
            let drawn = WeightedIndex::new(&popularity).ok()?;
            adapters = (0..count.min(4_096)).map(|_| drawn.sample(&mut rng)).collect();
            adapters.iter().map(|_| vec![("user", words(&mut rng, 200))]).collect()
        }
        "mooncake" => mooncake(trace, count),
        "azure" => {
            let (arrivals, lengths): (Vec<f64>, Vec<usize>) = azure(trace).into_iter().take(count).unzip();
            let mean = (arrivals.last()? - arrivals.first()?) / (arrivals.len() - 1).max(1) as f64;
            gaps = std::iter::once(0.0)
                .chain(arrivals.windows(2).map(|pair| (pair[1] - pair[0]).max(0.0) / mean))
                .collect();
            lengths.iter().map(|tokens| vec![("user", words(&mut rng, tokens * TOKEN_BYTES))]).collect()
        }
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
    Some(Prompts { messages, adapters, gaps, oracle: hit as f64 / all.max(1) as f64 })
}

/// Conversations of up to 8 turns that share one of four system prompts of 2,000 tokens; about 48 go on at a time.
fn sessions(rng: &mut SmallRng, count: usize) -> Vec<Messages> {
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

fn traced(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|e| usage(&format!("--trace {file} ({e})")))
}

/// Requests of one of Mooncake's traces (JSON lines): blocks of one hash are one text.
fn mooncake(file: &str, count: usize) -> Vec<Messages> {
    let requests = traced(file);
    let requests = requests.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    requests
        .filter_map(|r| {
            let tokens = r["input_length"].as_u64()? as usize;
            let mut text = String::with_capacity(tokens * TOKEN_BYTES);
            for hash in r["hash_ids"].as_array()? {
                let mut of_hash = SmallRng::seed_from_u64(hash.as_u64()?);
                text.push_str(&words(&mut of_hash, MOONCAKE_BLOCK_TOKENS * TOKEN_BYTES));
            }
            text.truncate(tokens * TOKEN_BYTES);
            (tokens <= LONGEST_TRACED).then(|| vec![("user", text)])
        })
        .take(count)
        .collect()
}

/// When requests of one of Azure's traces (CSV) came, seconds of the day, and their prompts' tokens.
fn azure(file: &str) -> Vec<(f64, usize)> {
    let row = |line: &str| {
        let mut fields = line.split(',');
        let clock = fields.next()?.split(' ').nth(1)?;
        let seconds =
            clock.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
        Some((seconds, fields.next()?.parse().ok().filter(|tokens| *tokens <= LONGEST_TRACED)?))
    };
    traced(file).lines().filter_map(row).collect()
}
