//! What somebody who mistyped a name may have meant.

/// The name nearest to `typed`, by letters changed, added, left out or swapped with a neighbour, case aside; `None` if none is near
/// (more than a third of the letters differ) or several are as near.
pub(super) fn closest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let mut found: Vec<(usize, &str)> =
        names.into_iter().map(|name| (distance(&typed, &name.to_lowercase()), name)).collect();
    found.sort_unstable();
    found.dedup();
    let (distance, name) = *found.first()?;
    let near = 3 * distance <= typed.chars().count().max(3);
    let alone = found.get(1).is_none_or(|(d, _)| *d > distance);
    (near && alone).then_some(name)
}

/// Optimal string alignment distance: the edits above, none of a letter already swapped.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("h10", Some("h100"))]
    #[case("L4S0", Some("l40s"))]
    #[case("taem-a", Some("team-a"))]
    #[case("gb300", None)]
    #[case("l", Some("l4"))]
    #[case("", None)]
    fn a_slip_of_the_hand_is_seen_through(#[case] typed: &str, #[case] meant: Option<&str>) {
        assert_eq!(closest(typed, ["h100", "h200", "l4", "l40s", "team-a", "team-bee"]), meant);
    }
}
