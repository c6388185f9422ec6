//! How long it takes to place adapters: afresh, and again after every rate moved by up to a fifth.
//!
//! `cargo bench -p plimsoll-scheduler --bench adapters`

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;

use plimsoll_fleet::{AdapterRoom, ReplicaId};
use plimsoll_scheduler::adapters::{Holder, Wanted, place};
use tokio::time::Instant;

/// By Zipf's law, the exponent 0.9, 100 requests a second in all; `moved` draws the fifth.
fn rates(count: usize, moved: bool) -> Vec<(String, f64)> {
    let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-0.9)).collect();
    let all: f64 = weights.iter().sum();
    let draw = |i: usize| if moved { 0.8 + 0.4 * ((i * 7_919) % 1_000) as f64 / 1_000.0 } else { 1.0 };
    weights.iter().enumerate().map(|(i, w)| (format!("adapter-{i:04}"), 100.0 * w / all * draw(i))).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    println!(
        "{:>9}{:>10}{:>7}{:>12}{:>12}{:>10}",
        "adapters", "replicas", "slots", "afresh, ms", "again, ms", "loads"
    );
    for (count, replicas, slots) in [(200, 8, 8), (2_000, 100, 8), (2_000, 400, 8)] {
        let room = AdapterRoom { slots, max_rank: 16 };
        let empty: BTreeMap<ReplicaId, Holder> = (0..replicas)
            .map(|i| (ReplicaId::new(format!("r{i:03}")).unwrap(), Holder { room, ..Holder::default() }))
            .collect();
        let timed = |rates: &[(String, f64)], before: &BTreeMap<ReplicaId, Holder>| {
            let wanted: Vec<Wanted<'_>> = rates
                .iter()
                .map(|(name, rps)| Wanted { name, rps: *rps, load_ms: 27.0, rank: 16, pinned: false })
                .collect();
            let mut placed = BTreeMap::new();
            let times = (0..9)
                .map(|_| {
                    let begun = Instant::now();
                    placed = black_box(place(&wanted, before));
                    begun.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            (placed, median(times))
        };
        let (first, afresh) = timed(&rates(count, false), &empty);
        let holders =
            first.iter().map(|(id, names)| (id.clone(), Holder { before: names.clone(), room })).collect();
        let (second, again) = timed(&rates(count, true), &holders);
        let loads: usize = second.iter().map(|(id, names)| names.difference(&first[id]).count()).sum();
        println!("{count:>9}{replicas:>10}{slots:>7}{afresh:>12.1}{again:>12.1}{loads:>10}");
    }
}
