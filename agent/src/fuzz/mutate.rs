//! Inputs made of other inputs.

/// Figures that look random and are the same in every run (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(number: u64) -> Self {
        Self(number.wrapping_mul(0xa076_1d64_78bd_642f))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` − 1; 0 where `n` is.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Longest input made by repetition and joining, bytes; single runs may be longer.
const LONGEST: usize = 64 << 10;
/// A run longer than any limit that a parser has for one item, bytes.
const HUGE_RUN: usize = 600 << 10;

/// Pieces that upset parsers of text, whatever they read.
const ODD: [&[u8]; 30] = [
    b"\0",
    b"\n",
    b"\n\n",
    b"\r\n\r\n",
    b"\r",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"+Inf",
    b"18446744073709551616",
    b"0.1e-400",
    b"\xff",
    b"\xf0\x9f\x98",
    "\u{feff}".as_bytes(),
    "\u{2028}".as_bytes(),
    "é😀".as_bytes(),
    b" ",
    b"\t",
];

/// The next input.
pub(super) fn input(seeds: &[Vec<u8>], words: &[&str], dice: &mut Dice) -> Vec<u8> {
    let mut out = if dice.one_in(30) { noise(dice) } else { seeds[dice.below(seeds.len())].clone() };
    for _ in 0..1 + dice.below(6) {
        change(&mut out, seeds, words, dice);
    }
    out
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    let alphabet: &[u8] = dice.of(&[&b"{}[]\":,\\ na1"[..], &b"data: \n\r{}\""[..], &b""[..]]);
    (0..dice.below(200))
        .map(|_| if alphabet.is_empty() { dice.next() as u8 } else { alphabet[dice.below(alphabet.len())] })
        .collect()
}

/// A stretch of an input: any, or one between two signs that parsers care for.
fn stretch(of: &[u8], dice: &mut Dice) -> std::ops::Range<usize> {
    let from = dice.below(of.len() + 1);
    let borders = b"\",:{}[]\n ;=";
    if dice.one_in(2) {
        let start = of[..from].iter().rposition(|b| borders.contains(b)).unwrap_or(0);
        let end = of[from..].iter().position(|b| borders.contains(b)).map_or(of.len(), |n| from + n + 1);
        return start..end.max(start);
    }
    from..(from + dice.below(40)).min(of.len())
}

fn change(out: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str], dice: &mut Dice) {
    match dice.below(14) {
        0 if !out.is_empty() => {
            let at = dice.below(out.len());
            out[at] ^= 1 << dice.below(8);
        }
        1 if !out.is_empty() => {
            let at = dice.below(out.len());
            out[at] = dice.next() as u8;
        }
        2 => drop(out.drain(stretch(out, dice))),
        3 => out.truncate(dice.below(out.len() + 1)),
        4 if out.len() < LONGEST => {
            let range = stretch(out, dice);
            let piece = out[range.clone()].to_vec();
            let times = dice.of(&[1, 1, 2, 5, 200]).min(LONGEST / piece.len().max(1));
            out.splice(range.end..range.end, piece.repeat(times));
        }
        5 => {
            let (range, other) = (stretch(out, dice), &seeds[dice.below(seeds.len())]);
            let piece = other[stretch(other, dice)].to_vec();
            out.splice(range, piece);
        }
        6 if out.len() < LONGEST => {
            let other = &seeds[dice.below(seeds.len())];
            out.truncate(dice.below(out.len() + 1));
            out.extend_from_slice(&other[dice.below(other.len() + 1)..]);
        }
        7 | 8 if !words.is_empty() => {
            let range = if dice.one_in(2) { stretch(out, dice) } else { point(out, dice) };
            out.splice(range, dice.of(words).bytes());
        }
        9 => {
            let (a, b) = (stretch(out, dice), stretch(out, dice));
            let (first, second) = if a.start <= b.start { (a, b) } else { (b, a) };
            if first.end <= second.start {
                let swapped =
                    [&out[second.clone()], &out[first.end..second.start], &out[first.clone()]].concat();
                out.splice(first.start..second.end, swapped);
            }
        }
        // A number becomes another.
        10 => {
            if let Some(from) = out.iter().position(u8::is_ascii_digit) {
                let from = from + dice.below(out.len() - from);
                let digits = out[from..].iter().take_while(|b| b.is_ascii_digit()).count();
                let other = dice.of(&[
                    "0",
                    "1",
                    "-1",
                    "4294967296",
                    "9223372036854775808",
                    "1.5",
                    "1e300",
                    "1e-9",
                    "007",
                ]);
                out.splice(from..from + digits, other.bytes());
            }
        }
        // Deep, or long: now and then, since they take their time.
        11 if dice.one_in(40) => {
            let at = point(out, dice);
            let times = dice.of(&[100, 200, 5_000]);
            out.splice(at, dice.of(&[&b"["[..], b"{\"a\":", b"\\", b"\n"]).repeat(times));
        }
        12 if dice.one_in(4_000) => {
            let at = point(out, dice);
            out.splice(at, vec![dice.of(b"x \n\"0"); HUGE_RUN]);
        }
        _ => {
            let at = point(out, dice);
            out.splice(at, dice.of(&ODD).iter().copied());
        }
    }
}

fn point(of: &[u8], dice: &mut Dice) -> std::ops::Range<usize> {
    let at = dice.below(of.len() + 1);
    at..at
}

/// A short input that fails as a longer one does: pieces are left out for as long as that goes well.
pub(super) fn smallest(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut tries = 2_000;
    let mut piece = best.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < best.len() && tries > 0 {
            let mut shorter = best.clone();
            shorter.drain(at..(at + piece).min(best.len()));
            tries -= 1;
            if fails(&shorter) { best = shorter } else { at += piece }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    best
}

#[test]
fn the_smallest_input_still_fails() {
    let input = b"what is long and has a needle in it, and more of the same".repeat(20);
    let needles = |text: &[u8]| text.windows(6).any(|w| w == b"needle");
    assert_eq!(smallest(&input, needles), b"needle");
    let inputs = |from: u64| input_of(from);
    assert_eq!(inputs(3), inputs(3), "a number stands for one input");
}

#[cfg(test)]
fn input_of(number: u64) -> Vec<u8> {
    input(&[b"{\"a\": [1, 2]}".to_vec()], &["model"], &mut Dice::new(number))
}
