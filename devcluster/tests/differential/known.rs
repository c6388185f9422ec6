//! Steps in which devcluster is known to fall short of a real API server.

/// Such a step's case and name, a line each: `CASE: STEP`.
const TEXT: &str = include_str!("known.txt");

/// Case and name of all of them.
pub fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    TEXT.lines().filter_map(|line| line.split_once(": "))
}
