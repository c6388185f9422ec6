//! Which waiting requests can still make it: the largest set, by Moore and Hodgson's rule.
//!
//! J. M. Moore, "An n job, one machine sequencing algorithm for minimizing the number of late jobs", Management Science
//! 15 (1968): take jobs by due date; whenever one would be late, drop the longest taken so far. What is left is the most
//! that can be on time. JITServe (arXiv 2504.20068; GMAX in its authors' published code) packs by reward over remaining
//! work. With a reward of one for a request that meets all its objectives and none for one that does not, which is
//! goodput as Plimsoll counts it, the least density is the longest job, and dropping that one is exact for one
//! bottleneck (an inference of ours).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A waiting request as the plan sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// The latest start that still makes it, ms.
    pub start_by_ms: f64,
    /// How long it keeps the engine's entrance busy, ms.
    pub work_ms: f64,
}

#[derive(PartialEq)]
struct Longest(f64, usize);

impl Eq for Longest {}

impl Ord for Longest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Longest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether each job can start in time if none of those that cannot are served first: as many as possible can. The
/// entrance is free from `now_ms` on. Returns also when it is free of those that make it.
pub fn on_time(now_ms: f64, jobs: &[Job]) -> (Vec<bool>, f64) {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    let due = |i: usize| jobs[i].start_by_ms + jobs[i].work_ms;
    order.sort_by(|a, b| due(*a).total_cmp(&due(*b)).then(a.cmp(b)));
    let mut keep = vec![true; jobs.len()];
    let mut taken: BinaryHeap<Longest> = BinaryHeap::with_capacity(jobs.len());
    let mut free_ms = now_ms;
    for i in order {
        free_ms += jobs[i].work_ms;
        taken.push(Longest(jobs[i].work_ms, i));
        // Rounding must not make the one that fits exactly late.
        if free_ms > due(i) + 1e-6
            && let Some(Longest(work_ms, longest)) = taken.pop()
        {
            keep[longest] = false;
            free_ms -= work_ms;
        }
    }
    (keep, free_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The most jobs of any order that start in time, by trying all subsets in order of due date.
    fn best(now_ms: f64, jobs: &[Job]) -> usize {
        let mut sorted = jobs.to_vec();
        sorted.sort_by(|a, b| (a.start_by_ms + a.work_ms).total_cmp(&(b.start_by_ms + b.work_ms)));
        (0u32..1 << sorted.len())
            .filter(|set| {
                let mut free = now_ms;
                sorted.iter().enumerate().filter(|(i, _)| set & (1 << i) != 0).all(|(_, j)| {
                    free += j.work_ms;
                    free <= j.start_by_ms + j.work_ms + 1e-6
                })
            })
            .map(u32::count_ones)
            .max()
            .unwrap_or(0) as usize
    }

    #[test]
    fn the_long_one_is_put_off_for_two_short_ones() {
        let job = |start_by_ms, work_ms| Job { start_by_ms, work_ms };
        let (keep, free) = on_time(0.0, &[job(0.0, 100.0), job(20.0, 10.0), job(30.0, 10.0)]);
        assert_eq!((keep, free), (vec![false, true, true], 20.0));
        assert_eq!(on_time(50.0, &[job(20.0, 10.0)]).0, [false], "too late already");
        assert_eq!(on_time(0.0, &[]), (vec![], 0.0));
    }

    proptest! {
        #[test]
        fn as_many_as_possible_are_on_time(
            jobs in prop::collection::vec((0.0..100.0f64, 1.0..50.0f64), 0..9), now in 0.0..50.0f64,
        ) {
            let jobs: Vec<Job> = jobs.into_iter().map(|(start_by_ms, work_ms)| Job { start_by_ms, work_ms }).collect();
            let (keep, free) = on_time(now, &jobs);
            let kept = keep.iter().filter(|k| **k).count();
            prop_assert_eq!(kept, best(now, &jobs));
            let work: f64 = jobs.iter().zip(&keep).filter(|(_, k)| **k).map(|(j, _)| j.work_ms).sum();
            prop_assert!((free - now - work).abs() < 1e-6);
        }
    }
}
