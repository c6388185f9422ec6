//! What runs today of engines that a pool adopts, judged by the model that plans. Pure.

use std::collections::BTreeMap;

use plimsoll_fleet::plan::TodaysFleet;
use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{AdoptedReplica, ClusterSnapshot, ModelPool, NodeName, Shape};

use super::PlanInput;
use super::candidates::load_line;
use super::inventory::price;
use super::performance::Performance;
use super::prepare::Draft;
use crate::explain;

/// Accelerators that adopted engines hold, by node: advice may plan with them, for it is about replacing those engines.
pub(crate) fn held(snapshot: &ClusterSnapshot) -> BTreeMap<NodeName, u32> {
    let mut held = BTreeMap::new();
    let advised =
        |a: &&AdoptedReplica| snapshot.pools.iter().any(|p| p.id == a.pool && p.mode == Mode::Advise);
    for (node, gpus) in snapshot.adopted.iter().filter(advised).flat_map(|a| &a.gpus) {
        let sum: &mut u32 = held.entry(node.clone()).or_default();
        *sum = sum.saturating_add(*gpus);
    }
    held
}

/// A pool's fleet of today; `None` for a pool that adopts nothing. O(engines × nodes).
pub(crate) fn today(
    input: &PlanInput<'_>,
    draft: &Draft<'_>,
    model: &dyn Performance,
) -> Option<TodaysFleet> {
    let snapshot = input.snapshot;
    let own: Vec<&AdoptedReplica> = snapshot.adopted.iter().filter(|a| a.pool == draft.pool.id).collect();
    if own.is_empty() {
        return None;
    }
    let mut today = TodaysFleet::default();
    let mut counts: BTreeMap<&Shape, u32> = BTreeMap::new();
    let mut lines: BTreeMap<&Shape, f64> = BTreeMap::new();
    for a in own {
        today.usd_per_hour += a.gpus.iter().map(|(node, n)| usd(snapshot, node, *n)).sum::<f64>();
        let copies = a.copies.max(1);
        today.replicas += copies;
        today.ready += if a.ready { copies } else { 0 };
        let Some(shape) = &a.shape else {
            today.unknown += copies;
            continue;
        };
        *counts.entry(shape).or_default() += copies;
        if a.ready {
            let line = *lines.entry(shape).or_insert_with(|| {
                line(input, draft, model, shape).unwrap_or_else(|miss| {
                    today.misses.push(miss);
                    0.0
                })
            });
            today.max_rps += line * f64::from(copies);
        }
    }
    let mut parts: Vec<String> = counts.iter().map(|(shape, n)| format!("{n}× {shape}")).collect();
    if today.unknown > 0 {
        parts.push(format!("{} not understood", today.unknown));
    }
    today.fleet = parts.join(" + ");
    Some(today)
}

fn usd(snapshot: &ClusterSnapshot, node: &NodeName, gpus: u32) -> f64 {
    let node = snapshot.nodes.iter().find(|n| &n.name == node);
    node.and_then(|n| price(snapshot, &n.accelerator, n.spot)).unwrap_or(0.0) * f64::from(gpus)
}

/// Load line of one engine of a shape under the pool's demand, requests per second; else why there is none.
fn line(
    input: &PlanInput<'_>,
    draft: &Draft<'_>,
    model: &dyn Performance,
    shape: &Shape,
) -> Result<f64, String> {
    let pool: &ModelPool = draft.pool;
    let scv = if draft.demand.arrival_scv > 0.0 { draft.demand.arrival_scv } else { 1.0 };
    load_line(input.snapshot, pool, shape, (&draft.demand.classes, scv), input.config, model, input.cache)
        .map_err(|why| explain::line(Some(shape), &why))
}
