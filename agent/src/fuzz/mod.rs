//! Every parser of the data plane against inputs that nobody wrote: `make fuzz` tries FUZZ_COUNT for each, the ordinary test
//! a few hundred.
//!
//! Inputs begin as those of `agent/corpus/TARGET`, which hold what engines, clients and Envoy really sent and whatever once
//! broke something, and are cut, joined, repeated and edited from there. Each comes from one number: a failure names it
//! beside the smallest input that fails likewise, and `PLIMSOLL_FUZZ_FROM=NUMBER PLIMSOLL_FUZZ_COUNT=1` tries that alone.

mod bodies;
mod errors;
mod events;
mod figures;
mod headers;
mod mutate;
mod routes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub(crate) use mutate::Dice;

/// Inputs of an ordinary test run, for each target.
const FEW: u64 = 400;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// The files of `agent/corpus/TARGET`, in order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Puts a target's corpus, and what comes of it, to `check`, which panics where a property does not hold. `words` are pieces
/// of text that this parser looks for; the dice decide whatever else a check needs, such as where to cut.
pub(crate) fn fuzz(target: &str, words: &[&str], check: impl Fn(&[u8], &mut Dice)) {
    let seeds = corpus(target);
    let holds = |input: &[u8], number: u64| {
        catch_unwind(AssertUnwindSafe(|| check(input, &mut Dice::new(!number)))).is_ok()
    };
    for (i, seed) in seeds.iter().enumerate() {
        assert!(holds(seed, i as u64), "{target}: file {i} of the corpus");
    }
    let from = setting("PLIMSOLL_FUZZ_FROM").unwrap_or(0);
    let count = setting("PLIMSOLL_FUZZ_COUNT").unwrap_or(FEW);
    for number in from..from + count {
        let input = mutate::input(&seeds, words, &mut Dice::new(number));
        if holds(&input, number) {
            continue;
        }
        let small = mutate::smallest(&input, |shorter| !holds(shorter, number));
        panic!(
            "{target}: PLIMSOLL_FUZZ_FROM={number} PLIMSOLL_FUZZ_COUNT=1 fails, and so does \"{}\"",
            small.escape_ascii()
        );
    }
}

/// An input in parts, cut wherever the dice say, often byte by byte.
pub(crate) fn parts(input: &[u8], dice: &mut Dice) -> Vec<bytes::Bytes> {
    first_parts(input, usize::MAX, dice)
}

/// The first of its parts, at most so many.
pub(crate) fn first_parts(input: &[u8], most: usize, dice: &mut Dice) -> Vec<bytes::Bytes> {
    let longest = dice.of(&[1, 3, 17, 200, input.len().max(1)]);
    let mut rest = bytes::Bytes::copy_from_slice(input);
    let mut out = Vec::new();
    while !rest.is_empty() && out.len() < most {
        let length = 1 + dice.below(longest.min(rest.len()));
        out.push(rest.split_to(length));
    }
    out
}
