//! Zones of one price are different cells to the program, and it does not care which it takes. Availability does: a
//! pool's replicas are evened out over them wherever that costs nothing, neither dollars nor a change more.

use std::collections::BTreeMap;

use super::inventory::{Cell, Eligibility};
use super::program::{Answer, Problem};
use super::residual::Remaining;

/// A replica of candidate `k` that could be in another cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    k: usize,
    from: usize,
    to: usize,
}

/// Evens out each pool's replicas over zones of the same accelerator class, capacity type and price. What is served, the
/// dollars, and the numbers of starts and stops stay as they are or become fewer. Each move lessens the sum of squares of
/// the replicas by zone, so that it ends: O(replicas × candidates × cells²) a pool.
pub(crate) fn over_zones(problem: &Problem<'_>, answer: &mut Answer) {
    let mut left = Remaining::new(problem);
    for (p, pool) in answer.pools.iter().enumerate() {
        left.take_each(p, &pool.counts);
    }
    let twins: Vec<Vec<usize>> = (0..problem.cells.len()).map(|c| twins(problem, c)).collect();
    for (p, pool) in answer.pools.iter_mut().enumerate() {
        while let Some(next) = best(problem, &twins, &left, p, &pool.counts) {
            left.release(p, next.k, next.from);
            left.take(p, next.k, next.to);
            *pool.counts.entry((next.k, next.to)).or_default() += 1;
            if let Some(n) = pool.counts.get_mut(&(next.k, next.from)) {
                *n -= 1;
            }
            pool.counts.retain(|_, n| *n > 0);
        }
    }
}

/// Cells of the same accelerator class, capacity type and price in other zones.
fn twins(problem: &Problem<'_>, cell: usize) -> Vec<usize> {
    let a = &problem.cells[cell];
    let alike = |b: &Cell| {
        a.accelerator == b.accelerator
            && a.spot == b.spot
            && a.is_autoscaled() == b.is_autoscaled()
            && a.usd_per_hour.total_cmp(&b.usd_per_hour).is_eq()
            && !b.zone.is_empty()
            && a.zone != b.zone
    };
    if a.zone.is_empty() {
        return Vec::new();
    }
    (0..problem.cells.len()).filter(|c| alike(&problem.cells[*c])).collect()
}

/// The move that evens out most.
fn best(
    problem: &Problem<'_>,
    twins: &[Vec<usize>],
    left: &Remaining<'_, '_>,
    p: usize,
    counts: &BTreeMap<(usize, usize), u32>,
) -> Option<Move> {
    let pool = &problem.pools[p];
    let zone = |c: usize| problem.cells[c].zone.as_str();
    let mut by_zone: BTreeMap<&str, u32> = BTreeMap::new();
    for ((_, c), n) in counts {
        *by_zone.entry(zone(*c)).or_default() += n;
    }
    let in_zone = |c: usize| by_zone.get(zone(c)).copied().unwrap_or(0);
    let mut found: Option<(u32, Move)> = None;
    for ((k, from), n) in counts {
        // Prefill and decode replicas stay within each other's reach.
        if pool.set.candidates[*k].pairing.is_some() {
            continue;
        }
        for to in twins[*from].iter().copied() {
            let gain = in_zone(*from).saturating_sub(in_zone(to));
            if gain < 2 {
                continue;
            }
            let b = &problem.cells[to];
            let running = |c: usize| pool.running.get(&(*k, c)).copied().unwrap_or(0);
            let there = counts.get(&(*k, to)).copied().unwrap_or(0);
            // A replica less starts here or one more stops; one less stops there or one more starts.
            let (starts_here, stopped_there) = (*n > running(*from), there < running(to));
            let allowed = stopped_there || b.eligible[p] == Eligibility::Open;
            let free = starts_here || stopped_there;
            if allowed && free && left.has_slots(p, *k, to) && left.may_move(p, *k, *from, to) {
                let next = Move { k: *k, from: *from, to };
                if found.is_none_or(|(g, m)| gain > g || (gain == g && next < m)) {
                    found = Some((gain, next));
                }
            }
        }
    }
    found.map(|(_, next)| next)
}
