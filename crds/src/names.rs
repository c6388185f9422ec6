//! Near names, for messages about unknown ones.

/// The edit distance (insert, delete, replace, each 1) between two short strings.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The up to three known names nearest to `name`, nearest first; all of them if none is near.
pub fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Vec<String> {
    let lower = name.to_lowercase();
    let mut ranked: Vec<(usize, String)> = known.into_iter().map(|k| (distance(&lower, &k), k)).collect();
    ranked.sort();
    let limit = (name.chars().count() / 2).max(3);
    let near: Vec<String> =
        ranked.iter().filter(|(d, _)| *d <= limit).take(3).map(|(_, k)| k.clone()).collect();
    if near.is_empty() { ranked.into_iter().map(|(_, k)| k).collect() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_come_first() {
        let known = || ["llama-3.1-8b", "llama-3.1-70b", "phi-4"].map(String::from);
        assert_eq!(nearest("lama3.1-70b", known())[0], "llama-3.1-70b");
        assert_eq!(nearest("something-else-entirely-x", known()).len(), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
