//! Maps on the path of a request.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map that is quick with short keys.
pub(crate) type QuickMap<K, V> = HashMap<K, V, Keyed>;

/// A hasher for short keys: one multiplication for eight bytes, keyed so that clients cannot aim at one bucket.
#[derive(Debug, Clone)]
pub(crate) struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            // Its length is part of it: a shorter key is no prefix of a longer one.
            let tail = rest.iter().fold(rest.len() as u64, |tail, byte| tail << 8 | u64::from(*byte));
            self.write_u64(tail);
        }
    }

    fn write_u64(&mut self, key: u64) {
        let wide = u128::from(key ^ self.0) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_anywhere_are_told_apart() {
        let keyed = Keyed::default();
        let mut seen = std::collections::HashSet::new();
        for length in 0..40 {
            for at in 0..=length {
                let mut text = vec![b'a'; length];
                text[at..].fill(b'b');
                assert!(seen.insert(keyed.hash_one(String::from_utf8(text).unwrap())), "{length} {at}");
            }
        }
        assert_ne!(keyed.hash_one(("a", "bc")), keyed.hash_one(("ab", "c")));
        assert_ne!(keyed.hash_one(7u64), Keyed::default().hash_one(7u64), "keyed anew for each map");
    }
}
