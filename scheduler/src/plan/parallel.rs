//! The same question to many pools, on all cores.

/// Fewest items for which threads are worth their start.
const FEWEST: usize = 64;

/// `f(0), f(1), …`, in order, whatever thread answers. `f` must not depend on the order of calls.
pub(crate) fn map<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    if count < FEWEST || cores < 2 {
        return (0..count).map(f).collect();
    }
    // Small pieces in turn: some pools are much harder than others.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let piece = (count / (cores * 8)).max(1);
    let work = || {
        let mut found: Vec<(usize, Vec<T>)> = Vec::new();
        loop {
            let from = next.fetch_add(piece, std::sync::atomic::Ordering::Relaxed);
            if from >= count {
                return found;
            }
            found.push((from, (from..(from + piece).min(count)).map(&f).collect()));
        }
    };
    let mut pieces = std::thread::scope(|scope| {
        let others: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(found) => all.extend(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    pieces.sort_by_key(|(from, _)| *from);
    pieces.into_iter().flat_map(|(_, found)| found).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn answers_come_in_order() {
        for count in [0, 1, 63, 64, 1000, 1001] {
            assert_eq!(super::map(count, |i| i * i), (0..count).map(|i| i * i).collect::<Vec<_>>());
        }
    }
}
