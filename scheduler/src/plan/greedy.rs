//! Fleets by greedy choice, and what given replicas can serve: the start of every solve, and the answer should the
//! solver fail. O(replicas × candidates × cells) a pool.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::RequestClass;

use super::covering::{self, Part};
use super::inventory::Eligibility;
use super::program::{Fleet, PartShare, PoolAnswer, PoolProblem, Problem};
use super::residual::Remaining;

/// Serves a pool's classes with given replicas: as many requests as can be; among equals, all classes in step.
pub fn fill(pool: &PoolProblem<'_>, counts: &BTreeMap<(usize, usize), u32>) -> PoolAnswer {
    if pool.has_parts() {
        return fill_parts(pool, counts);
    }
    let classes = &pool.set.classes;
    let mut rest: Vec<f64> = classes.iter().map(|c| if c.rps > 0.0 { 1.0 } else { 0.0 }).collect();
    let mut shares = vec![vec![0.0; pool.set.candidates.len()]; classes.len()];
    let mut totals = vec![0_u32; pool.set.candidates.len()];
    for ((k, _), n) in counts {
        totals[*k] += n;
    }
    // Shapes that serve fewest classes first: the others can take what these cannot.
    let mut order: Vec<usize> = (0..totals.len()).filter(|k| totals[*k] > 0).collect();
    order.sort_by_key(|k| pool.set.candidates[*k].rates.iter().filter(|r| **r > 0.0).count());
    for k in order {
        let rates = &pool.set.candidates[k].rates;
        let need: f64 = (0..rest.len())
            .filter(|c| rates[*c] > 0.0)
            .map(|c| rest[c] * classes[c].rps * pool.headroom / rates[c])
            .sum();
        if need <= 0.0 {
            continue;
        }
        let part = (f64::from(totals[k]) / need).min(1.0);
        for c in 0..rest.len() {
            if rates[c] > 0.0 {
                shares[c][k] = rest[c] * part;
                rest[c] -= shares[c][k];
            }
        }
    }
    let weight = |rest: &[f64]| -> f64 { rest.iter().zip(classes).map(|(r, c)| r * c.rps).sum() };
    if rest.iter().any(|r| *r > 1e-9)
        && let Some(flows) = most(pool, &totals)
    {
        let left = |(flow, c): (&Vec<f64>, &RequestClass)| {
            if c.rps > 0.0 { (1.0 - flow.iter().sum::<f64>()).max(0.0) } else { 0.0 }
        };
        let unserved: Vec<f64> = flows.iter().zip(classes).map(left).collect();
        if weight(&unserved) < weight(&rest) * (1.0 - 1e-6) {
            (shares, rest) = (flows, unserved);
        }
    }
    for c in 0..rest.len() {
        let served: f64 = shares[c].iter().sum();
        if let Some(more) = more_of(pool, c, served, rest[c]) {
            shares[c].iter_mut().for_each(|s| *s *= more);
            rest[c] = 1.0 - served * more;
        }
    }
    PoolAnswer {
        counts: counts.clone(),
        shares,
        apart: Vec::new(),
        unserved: rest.into_iter().map(|r| if r < 1e-7 { 0.0 } else { r }).collect(),
        short: pool.floor.saturating_sub(counts.values().sum()),
        zones_short: 0,
    }
}

/// How many times as much of a class can be served as with headroom, where some of it is left: what headroom reserved is first of all
/// for the demand there is.
fn more_of(pool: &PoolProblem<'_>, c: usize, served: f64, rest: f64) -> Option<f64> {
    let most = if pool.set.classes[c].rps > 0.0 { 1.0 } else { 0.0 };
    let target = (served * pool.headroom).min(most);
    (pool.headroom > 1.0 && served > 0.0 && rest > 1e-9).then(|| target / served)
}

/// The same for a pool some of whose replicas only prefill or decode.
fn fill_parts(pool: &PoolProblem<'_>, counts: &BTreeMap<(usize, usize), u32>) -> PoolAnswer {
    let classes = &pool.set.classes;
    let wanted: Vec<usize> = (0..classes.len()).filter(|c| classes[*c].rps > 0.0).collect();
    // Replicas of a candidate that can reach the same others are of one kind.
    let mut kinds: Vec<(usize, Part, Option<usize>)> = Vec::new();
    let mut totals: Vec<u32> = Vec::new();
    for ((k, c), n) in counts {
        let Some(part) = pool.part(*k, *c) else { continue };
        match kinds.iter().position(|(j, p, _)| (j, p) == (k, &part)) {
            Some(i) => totals[i] += n,
            None => {
                let reach = if part == Part::Whole { None } else { pool.reach[*c] };
                kinds.push((*k, part, reach));
                totals.push(*n);
            }
        }
    }
    let loads: Vec<(Part, Vec<f64>)> =
        covering::dense(kinds.iter().map(|(k, part, _)| (*part, pool.load(*k, &wanted))).collect());
    let weights: Vec<f64> = wanted.iter().map(|c| classes[*c].rps / pool.total_rps()).collect();
    let flows = covering::flow(&loads, &totals, &weights).unwrap_or_default();
    let mut shares = vec![vec![0.0; pool.set.candidates.len()]; classes.len()];
    let mut unserved: Vec<f64> = classes.iter().map(|c| if c.rps > 0.0 { 1.0 } else { 0.0 }).collect();
    let mut apart = Vec::new();
    for (class, flow) in wanted.iter().copied().zip(flows) {
        let first = flow.iter().zip(&kinds).filter(|(_, (_, part, _))| !matches!(part, Part::Decode(_)));
        let served: f64 = first.map(|(share, _)| share).sum();
        let more = more_of(pool, class, served, 1.0 - served).unwrap_or(1.0);
        unserved[class] = (1.0 - served * more).max(0.0);
        for (share, (k, _, reach)) in flow.iter().zip(&kinds) {
            let share = share * more;
            shares[class][*k] += share;
            apart.extend(reach.map(|reach| PartShare { class, candidate: *k, reach, share }));
        }
    }
    PoolAnswer {
        counts: counts.clone(),
        shares,
        apart,
        unserved: unserved.into_iter().map(|r| if r < 1e-7 { 0.0 } else { r }).collect(),
        short: pool.floor.saturating_sub(counts.values().sum()),
        zones_short: 0,
    }
}

/// The flow that serves most requests.
fn most(pool: &PoolProblem<'_>, totals: &[u32]) -> Option<Vec<Vec<f64>>> {
    let classes = &pool.set.classes;
    let wanted: Vec<usize> = (0..classes.len()).filter(|c| classes[*c].rps > 0.0).collect();
    let load: Vec<(Part, Vec<f64>)> =
        (0..totals.len()).map(|k| (Part::Whole, pool.load(k, &wanted))).collect();
    let weights: Vec<f64> = wanted.iter().map(|c| classes[*c].rps / pool.total_rps()).collect();
    let flows = covering::flow(&load, totals, &weights)?;
    let mut shares = vec![vec![0.0; totals.len()]; classes.len()];
    wanted.into_iter().zip(flows).for_each(|(c, flow)| shares[c] = flow);
    Some(shares)
}

/// What given replicas of one pool of a problem can do: [`fill`], and the zones they span.
pub fn answer_of(problem: &Problem<'_>, p: usize, counts: &BTreeMap<(usize, usize), u32>) -> PoolAnswer {
    let pool = &problem.pools[p];
    let zones: BTreeSet<&str> = counts
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|((_, c), _)| problem.cells[*c].zone.as_str())
        .filter(|z| !z.is_empty())
        .collect();
    let zones_short = if pool.min_zones > 1 { pool.min_zones.saturating_sub(zones.len() as u32) } else { 0 };
    PoolAnswer { zones_short, ..fill(pool, counts) }
}

/// A fleet by greedy choice, highest tier first: the running replicas that fit, then the cheapest coverage. The start
/// of every solve, and the answer should the solver fail.
pub fn greedy(problem: &Problem<'_>) -> Fleet {
    let mut fleet = vec![BTreeMap::new(); problem.pools.len()];
    let mut order: Vec<usize> = (0..problem.pools.len()).collect();
    order.sort_by_key(|p| std::cmp::Reverse(problem.pools[*p].pool.priority));
    let mut left = Remaining::new(problem);
    for p in order {
        let pool = &problem.pools[p];
        let counts: &mut BTreeMap<(usize, usize), u32> = &mut fleet[p];
        let mut total = 0;
        for ((k, c), n) in &pool.running {
            for _ in 0..*n {
                if total < pool.ceiling && left.fits(p, *k, *c) {
                    left.take(p, *k, *c);
                    *counts.entry((*k, *c)).or_default() += 1;
                    total += 1;
                }
            }
        }
        // Add the cheapest coverage of what is still unserved.
        while total < pool.ceiling {
            let now = fill(pool, counts);
            let unserved = now.unserved.iter().any(|u| *u > 1e-9);
            if !unserved && total >= pool.floor {
                break;
            }
            if unserved && pool.has_parts() {
                let Some(more) = cheapest_parts(problem, p, counts, &now, &left) else { break };
                for (k, c) in more {
                    left.take(p, k, c);
                    *counts.entry((k, c)).or_default() += 1;
                    total += 1;
                }
                continue;
            }
            let mut best: Option<(f64, usize, usize)> = None;
            for (k, candidate) in pool.set.candidates.iter().enumerate() {
                let need: f64 = pool
                    .set
                    .classes
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| candidate.rates[*i] > 0.0)
                    .map(|(i, c)| now.unserved[i] * c.rps * pool.headroom / candidate.rates[i])
                    .sum();
                let gain: f64 = pool
                    .set
                    .classes
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| candidate.rates[*i] > 0.0)
                    .map(|(i, c)| now.unserved[i] * c.rps)
                    .sum::<f64>()
                    * if need > 1.0 { 1.0 / need } else { 1.0 };
                if unserved && gain <= 0.0 {
                    continue;
                }
                for (c, cell) in problem.cells.iter().enumerate() {
                    if cell.accelerator != candidate.shape.accelerator
                        || cell.eligible[p] != Eligibility::Open
                        || problem.allowed.as_ref().is_some_and(|a| !a.contains(&(k, c)))
                        || !left.fits(p, k, c)
                    {
                        continue;
                    }
                    let usd = pool.cost(k, cell);
                    let score = if unserved { usd / gain } else { usd };
                    if best.is_none_or(|(s, _, _)| score < s - 1e-12) {
                        best = Some((score, k, c));
                    }
                }
            }
            let Some((_, k, c)) = best else { break };
            left.take(p, k, c);
            *counts.entry((k, c)).or_default() += 1;
            total += 1;
        }
        // Let go of what is not needed, dearest first.
        let mut members: Vec<(usize, usize)> = counts.keys().copied().collect();
        members.sort_by(|a, b| {
            let usd = |m: &(usize, usize)| pool.cost(m.0, &problem.cells[m.1]);
            usd(b).total_cmp(&usd(a)).then(a.cmp(b))
        });
        let unserved =
            |counts: &BTreeMap<(usize, usize), u32>| -> f64 { fill(pool, counts).unserved.iter().sum() };
        let base = unserved(counts);
        for m in members {
            while counts.get(&m).copied().unwrap_or(0) > 0 && counts.values().sum::<u32>() > pool.floor {
                let mut fewer = counts.clone();
                if let Some(n) = fewer.get_mut(&m) {
                    *n -= 1;
                }
                if unserved(&fewer) > base + 1e-9 {
                    break;
                }
                left.release(p, m.0, m.1);
                *counts = fewer;
            }
        }
        counts.retain(|_, n| *n > 0);
    }
    fleet
}

/// The replica, or the prefill and decode replica that can reach each other, that serve most more for their price; `None` if none
/// does. Asks for the flow with each.
fn cheapest_parts(
    problem: &Problem<'_>,
    p: usize,
    counts: &BTreeMap<(usize, usize), u32>,
    now: &PoolAnswer,
    left: &Remaining<'_, '_>,
) -> Option<Vec<(usize, usize)>> {
    let pool = &problem.pools[p];
    let mut places: Vec<(usize, usize, Part)> = Vec::new();
    for (k, candidate) in pool.set.candidates.iter().enumerate() {
        for (c, cell) in problem.cells.iter().enumerate() {
            let open = cell.accelerator == candidate.shape.accelerator
                && cell.eligible[p] == Eligibility::Open
                && problem.allowed.as_ref().is_none_or(|a| a.contains(&(k, c)));
            if let Some(part) = pool.part(k, c).filter(|_| open && left.fits(p, k, c)) {
                places.push((k, c, part));
            }
        }
    }
    let mut tries: Vec<Vec<(usize, usize)>> = places.iter().map(|(k, c, _)| vec![(*k, *c)]).collect();
    for (k, c, part) in &places {
        let Part::Prefill(link) = part else { continue };
        for (j, d, _) in places.iter().filter(|(_, _, other)| *other == Part::Decode(*link)) {
            let both: BTreeMap<(usize, usize), u32> = [((*k, *c), 1), ((*j, *d), 1)].into();
            if left.fits_all(p, &both) {
                tries.push(vec![(*k, *c), (*j, *d)]);
            }
        }
    }
    let mut best: Option<(f64, Vec<(usize, usize)>)> = None;
    for more in tries {
        if counts.values().sum::<u32>() + more.len() as u32 > pool.ceiling {
            continue;
        }
        let mut with = counts.clone();
        more.iter().for_each(|at| *with.entry(*at).or_default() += 1);
        let gain = pool.undone(now) - pool.undone(&fill(pool, &with));
        let usd: f64 = more.iter().map(|(k, c)| pool.cost(*k, &problem.cells[*c])).sum();
        let score = usd / gain;
        if gain > 1e-9 && best.as_ref().is_none_or(|(s, _)| score < s - 1e-12) {
            best = Some((score, more));
        }
    }
    best.map(|(_, more)| more)
}
