//! Replicas that wait for an autoscaler.

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::*;

use super::support::*;
use crate::plan::{PlanInput, plan};

fn after(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

/// A pool that an L4, which an autoscaler could add, serves best; and what else there is. Its replica waits since second 0.
fn waiting(nodes: Vec<NodeInfo>) -> World {
    let mut w = World::new(nodes);
    let mut l4 = presets::accelerator("l4").unwrap();
    l4.autoscalable_max = 2;
    w.snapshot.accelerators.retain(|a| a.name != "l4");
    w.snapshot.accelerators.push(l4);
    w.add(pool("chat", "llama-3.1-8b", 3000.0, 120.0), demand(vec![class("a", 0.5, 500.0, 100.0)]));
    let first = w.run();
    let r = &first.pools[0].replicas;
    assert!(!r.is_empty() && r.iter().all(|r| r.nodes.is_empty() && r.shape.accelerator == "l4"), "{r:?}");
    w
}

fn at(w: &World, seconds: i64) -> Plan {
    let plan = plan(&PlanInput { now: after(seconds), ..w.input() }).plan;
    w.check(&plan);
    plan
}

#[test]
fn a_replica_that_gets_no_node_in_time_is_given_up_and_the_next_best_takes_its_place() {
    let mut w = waiting(vec![node("h-0", "h100", 8, "a")]);
    let ids = |p: &Plan| p.pools[0].replicas.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    let first = w.previous.clone().unwrap();
    let patient = at(&w, 899);
    assert_eq!((ids(&patient), patient.unprovisioned.len()), (ids(&first), 0));
    let given_up = at(&w, 900);
    let entry = &given_up.unprovisioned[0];
    assert_eq!((entry.accelerator.as_str(), entry.until), ("l4", after(900 + 1800)));
    let served = &given_up.pools[0];
    assert_eq!(served.outcome, PoolOutcome::Served);
    assert!(served.replicas.iter().all(|r| r.shape.accelerator == "h100" && !r.nodes.is_empty()));
    let told = served.why.would_help.join(" ");
    assert!(told.contains("no node for L4 came within 15 min"), "{told}");
    assert!(told.contains("00:45 UTC"), "{told}");
    // Remembered while it lasts, though the pod that showed it is gone; asked for again after that.
    w.come_true(&given_up);
    w.previous = Some(given_up);
    assert_eq!(at(&w, 2000).unprovisioned.len(), 1);
    assert_eq!(at(&w, 2701).unprovisioned, []);
}

#[test]
fn where_nothing_else_is_there_the_reason_names_what_did_not_come() {
    let w = waiting(Vec::new());
    let plan = at(&w, 1000);
    let short = &plan.pools[0];
    assert_eq!((short.outcome, short.replicas.len()), (PoolOutcome::CapacityLimited, 0));
    assert!(short.why.summary.contains("no node for L4 came within 15 min"), "{}", short.why.summary);
}

#[test]
fn who_waits_in_time_or_is_held_back_by_others_goes_on_waiting() {
    let mut w = waiting(Vec::new());
    w.snapshot.replicas[0].gated = true;
    let queued = at(&w, 100_000);
    assert_eq!((queued.pools[0].replicas.len(), queued.unprovisioned.len()), (1, 0), "{:?}", queued.pools[0]);
    // Another pool's replica ran out of time: this one, asked for later, keeps its place in the line.
    w.snapshot.replicas[0].gated = false;
    w.snapshot.replicas[0].created_at = after(800);
    let mut previous = w.previous.clone().unwrap();
    previous.unprovisioned = vec![plan::Unprovisioned { accelerator: "l4".to_owned(), until: after(5000) }];
    w.previous = Some(previous);
    let kept = at(&w, 1000);
    assert_eq!(kept.pools[0].replicas.len(), 1);
    assert_eq!(kept.pools[0].replicas[0].id, w.snapshot.replicas[0].id);
}

#[test]
fn a_replica_whose_node_came_stays_there() {
    let mut w = waiting(Vec::new());
    w.snapshot.nodes.push(node("l4-new", "l4", 1, "a"));
    w.snapshot.replicas[0].nodes = vec!["l4-new".parse().unwrap()];
    let plan = at(&w, 2000);
    assert_eq!(plan.pools[0].replicas[0].id, w.snapshot.replicas[0].id);
    assert_eq!(plan.pools[0].replicas[0].nodes, w.snapshot.replicas[0].nodes);
    assert_eq!(plan.unprovisioned, []);
}
