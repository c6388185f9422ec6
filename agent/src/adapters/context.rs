//! What a request is told by when an adapter is chosen for it: a few figures, cheap to have, of bounded size.

use xxhash_rust::xxh3::xxh3_64;

/// Figures that a request may bring itself.
pub const GIVEN: usize = 8;
/// Figures of a context: one that is always 1, the prompt's length, and [`GIVEN`] of the task.
pub const DIMENSION: usize = GIVEN + 2;
/// Prompts of so many tokens or more count as equally long: 2^17.
const LONGEST_LOG2: f64 = 17.0;

/// The context of a request: 1; log₂ of the prompt's tokens over 17, 0..=1; then what the request says of itself (each −1..=1,
/// what is missing 0) or else, where it has a system prompt, a direction of length 1 drawn by its hash (feature hashing by signs,
/// Weinberger et al., 2009), so that requests of one application are alike and others nearly at right angles.
pub fn features(prompt_tokens: f64, system: Option<&[u8]>, given: Option<&[f64]>) -> [f64; DIMENSION] {
    let mut figures = [0.0; DIMENSION];
    figures[0] = 1.0;
    figures[1] = (prompt_tokens.max(1.0).log2() / LONGEST_LOG2).clamp(0.0, 1.0);
    let task = &mut figures[2..];
    match (given, system) {
        (Some(given), _) => {
            task.iter_mut().zip(given).for_each(|(figure, &said)| *figure = said.clamp(-1.0, 1.0))
        }
        (None, Some(system)) => {
            let hash = xxh3_64(system);
            let length = 1.0 / (GIVEN as f64).sqrt();
            for (bit, figure) in task.iter_mut().enumerate() {
                *figure = if hash >> bit & 1 == 1 { length } else { -length };
            }
        }
        (None, None) => {}
    }
    figures
}

/// Reads the figures that a request brings: a JSON list of at most [`GIVEN`] numbers, each −1..=1.
///
/// # Errors
/// What is wrong, in words.
pub fn read(text: &str) -> Result<Vec<f64>, String> {
    let figures: Vec<f64> =
        serde_json::from_str(text).map_err(|e| format!("it is not a JSON list of numbers: {e}"))?;
    if figures.len() > GIVEN {
        return Err(format!("it has {} numbers; {GIVEN} at most are read", figures.len()));
    }
    match figures.iter().position(|f| !(-1.0..=1.0).contains(f)) {
        Some(at) => Err(format!("number {at} is {}, which is not between -1 and 1", figures[at])),
        None => Ok(figures),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_application_is_one_direction_and_what_is_said_comes_first() {
        let (a, again, b) = (
            features(100.0, Some(b"You write SQL."), None),
            features(100.0, Some(b"You write SQL."), None),
            features(100.0, Some(b"You are a lawyer."), None),
        );
        assert_eq!(a, again);
        assert_ne!(a, b);
        let length: f64 = a[2..].iter().map(|f| f * f).sum();
        assert!((length - 1.0).abs() < 1e-12);
        let said = features(f64::INFINITY, Some(b"You write SQL."), Some(&[0.5, -2.0]));
        assert_eq!(said[..4], [1.0, 1.0, 0.5, -1.0]);
        assert!(said[4..].iter().all(|f| *f == 0.0));
        assert_eq!(features(0.0, None, None)[1..], [0.0; DIMENSION - 1]);
        assert!(features(f64::NAN, None, None).iter().all(|f| f.is_finite()));
    }

    #[test]
    fn what_is_no_list_of_small_numbers_is_told_so() {
        assert_eq!(read("[0.5, -1, 1]").unwrap(), [0.5, -1.0, 1.0]);
        assert!(read("[]").unwrap().is_empty());
        for (text, word) in [
            ("", "not a JSON list"),
            ("{\"a\":1}", "not a JSON list"),
            ("[\"x\"]", "not a JSON list"),
            ("[1e999]", "not a JSON list"),
            ("[0,0,0,0,0,0,0,0,0]", "9 numbers"),
            ("[0, 1.5]", "number 1 is 1.5"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
