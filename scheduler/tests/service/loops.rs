//! The slow and the fast loop against load that rises, falls and flickers, in simulated time: replicas follow, and do
//! not flap (the regressions 1–7 that other autoscalers' users report: scaling without load, oscillation, ratchets).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{ClusterSnapshot, Plan, PoolId, ReplicaId, ReplicaPhase};
use plimsoll_scheduler::clock::timestamp;
use plimsoll_scheduler::demand::{DemandConfig, DemandTracker, material_change};
use plimsoll_scheduler::fast::{self, FastConfig, FastInput, FastState, ReplicaLoad};
use plimsoll_scheduler::planner::{EnginePlanner, PlanRequest, Planner};
use plimsoll_scheduler::records::differs;

use super::support::{act, cluster, pool, traffic};

const START: f64 = 1.7e9;
const STEP: f64 = 5.0;
const COLD_START: f64 = 60.0;

struct Simulation {
    snapshot: ClusterSnapshot,
    tracker: DemandTracker,
    planner: EnginePlanner,
    plan: Option<Plan>,
    serial: u64,
    fast: FastState,
    now: f64,
    planned_at: f64,
    sequence: u64,
    random: u64,
    /// Replicas planned after each change, with the time.
    changes: Vec<(f64, usize)>,
    /// Whether the agent speaks.
    agent_speaks: bool,
    /// Requests beyond what ready replicas carry, and all requests.
    beyond: f64,
    all: f64,
}

impl Simulation {
    fn new(prior_rps: f64) -> Self {
        Self {
            snapshot: cluster(vec![pool("default/chat", prior_rps)]),
            tracker: DemandTracker::new(DemandConfig::default()),
            planner: EnginePlanner::default(),
            plan: None,
            serial: 1,
            fast: FastState::default(),
            now: START,
            planned_at: 0.0,
            sequence: 0,
            random: 0x9E37_79B9_7F4A_7C15,
            changes: Vec::new(),
            agent_speaks: true,
            beyond: 0.0,
            all: 0.0,
        }
    }

    fn id() -> PoolId {
        "default/chat".parse().unwrap()
    }

    fn uniform(&mut self) -> f64 {
        // xorshift64*: the same load in every run.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A Poisson count (normal approximation above 30).
    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            let (u, v) = (self.uniform().max(1e-12), self.uniform());
            let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
        }
        let limit = (-mean).exp();
        let (mut count, mut product) = (0, self.uniform());
        while product > limit {
            count += 1;
            product *= self.uniform();
        }
        count
    }

    fn replicas(&self) -> usize {
        self.plan.as_ref().map_or(0, |p| p.pools[0].replicas.len())
    }

    /// Rate that ready replicas of the plan carry.
    fn capacity(&self) -> f64 {
        let Some(plan) = &self.plan else { return 0.0 };
        let line = plan.pools[0].load_lines.first().map_or(0.0, |l| l.1);
        let ready = self.snapshot.replicas.iter().filter(|r| r.phase == ReplicaPhase::Ready).count();
        line * ready as f64
    }

    fn enforce(&mut self, plan: Plan, serial: u64) {
        let before = self.replicas();
        self.serial = serial;
        let now = timestamp(self.now);
        let kept: Vec<ReplicaId> = plan.pools[0].replicas.iter().map(|r| r.id.clone()).collect();
        self.snapshot.replicas.retain(|r| kept.contains(&r.id));
        let old = self.snapshot.replicas.clone();
        act(&mut self.snapshot, &plan, now, ReplicaPhase::Starting, &[]);
        for r in &mut self.snapshot.replicas {
            if let Some(o) = old.iter().find(|o| o.id == r.id) {
                *r = o.clone();
            }
        }
        self.plan = Some(plan);
        if self.replicas() != before {
            self.changes.push((self.now - START, self.replicas()));
        }
    }

    fn step(&mut self, rps: f64) {
        self.now += STEP;
        let now: Timestamp = timestamp(self.now);
        for r in &mut self.snapshot.replicas {
            let age = now.duration_since(r.created_at).as_secs_f64();
            if r.phase == ReplicaPhase::Starting && age >= COLD_START {
                (r.phase, r.ready_at) = (ReplicaPhase::Ready, Some(now));
            }
        }
        let arrived = self.poisson(rps * STEP);
        let capacity = self.capacity();
        self.all += arrived as f64;
        self.beyond += (arrived as f64 - capacity * STEP).max(0.0);
        self.tracker.sync_pools(&self.snapshot.pools);
        if self.agent_speaks {
            self.sequence += 1;
            let report = AgentReport {
                agent: "gateway".into(),
                node: None,
                address: String::new(),
                sequence: self.sequence,
                incarnation: 1,
                interval_seconds: STEP,
                traffic: if arrived > 0 { vec![traffic("default/chat", arrived)] } else { vec![] },
                engines: Vec::new(),
                replicas: Vec::new(),
                route_version: 0,
                adapters: Vec::new(),
            };
            self.tracker.observe(&report, STEP, self.now);
        }
        self.tracker.tick(self.now, |_| false);

        let rate = self.tracker.rate(&self.snapshot.pools[0], self.now).rps;
        let since = self.now - self.planned_at;
        let from = self.plan.as_ref().map_or(0.0, |p| p.pools[0].demand.total_rps());
        let trigger = material_change(&Self::id(), from, rate).filter(|_| rate > from);
        if since >= 60.0 || (trigger.is_some() && since >= 15.0) {
            self.planned_at = self.now;
            let number = self.plan.as_ref().map_or(0, |p| p.number) + 1;
            let request = PlanRequest {
                snapshot: Arc::new(self.snapshot.clone()),
                demands: [(Self::id(), self.tracker.estimate(&self.snapshot.pools[0], self.now))].into(),
                previous: self.plan.clone(),
                number,
                next_serial: self.serial,
                now,
                trigger: trigger.unwrap_or_default(),
                idle: [(Self::id(), self.tracker.idle_seconds(&Self::id()))].into(),
            };
            let planned = self.planner.plan(&request);
            if self.plan.as_ref().is_none_or(|p| differs(p, &planned.plan)) {
                self.enforce(planned.plan, planned.next_serial);
            }
        } else if self.agent_speaks {
            // Half full at the load line, and queueing beyond it.
            let use_of = if capacity > 0.0 { rps / capacity } else { 0.0 };
            let load = ReplicaLoad {
                outstanding_tokens: 1e5 * (0.5 * use_of).min(2.0),
                capacity_tokens: 1e5,
                waiting: Some(if use_of > 1.3 { 20.0 } else { 0.0 }),
            };
            let loads: BTreeMap<ReplicaId, ReplicaLoad> =
                self.snapshot.replicas.iter().map(|r| (r.id.clone(), load)).collect();
            let plan = self.plan.clone().unwrap();
            let change = fast::decide(
                &mut self.fast,
                &FastInput {
                    plan: &plan,
                    snapshot: &self.snapshot,
                    loads: &loads,
                    demand_rps: &[(Self::id(), rate)].into(),
                    next_serial: self.serial,
                    now: self.now,
                },
                &FastConfig::default(),
            );
            if let Some(change) = change {
                self.enforce(change.plan, change.next_serial);
            }
        }
    }

    fn run(&mut self, minutes: f64, rps: impl Fn(f64) -> f64) {
        let from = self.now;
        while self.now < from + 60.0 * minutes {
            let at = self.now - from;
            self.step(rps(at));
        }
    }

    /// Changes of direction.
    fn reversals(&self) -> usize {
        let counts: Vec<usize> = self.changes.iter().map(|c| c.1).collect();
        let moves: Vec<bool> = counts.windows(2).map(|w| w[1] > w[0]).collect();
        moves.windows(2).filter(|w| w[0] != w[1]).count()
    }
}

#[test]
fn replicas_follow_a_staircase_up_and_down() {
    let mut s = Simulation::new(5.0);
    let mut peak = 0;
    for rps in [5.0, 20.0, 45.0, 80.0] {
        s.run(8.0, |_| rps);
        assert!(s.capacity() >= rps, "at {rps} rps: {} replicas carry {:.1}", s.replicas(), s.capacity());
        peak = peak.max(s.replicas());
    }
    for rps in [45.0, 20.0, 5.0] {
        s.run(8.0, |_| rps);
        assert!(s.capacity() >= rps, "at {rps} rps: {} replicas carry {:.1}", s.replicas(), s.capacity());
    }
    s.run(25.0, |_| 5.0);
    assert!(peak >= 3, "the load needs several: {:?}", s.changes);
    assert!(s.replicas() < peak && s.replicas() <= 2, "and few in the end: {:?}", s.changes);
    assert!(s.reversals() <= 3, "{:?}", s.changes);
    assert!(s.beyond / s.all < 0.1, "{:.3} of requests came while replicas were too few", s.beyond / s.all);
}

#[test]
fn noise_and_flicker_do_not_flap() {
    let mut s = Simulation::new(30.0);
    s.run(20.0, |_| 30.0);
    let settled = s.changes.len();
    s.run(60.0, |_| 30.0);
    assert!(s.changes.len() <= settled + 2, "steady: {:?}", s.changes);
    let before = s.changes.len();
    // Half a minute at 40, half a minute at 20, for an hour.
    s.run(60.0, |t| if ((t / 30.0) as u64).is_multiple_of(2) { 40.0 } else { 20.0 });
    assert!(s.changes.len() <= before + 4, "flicker: {:?}", s.changes);
    assert!(s.capacity() >= 30.0);
}

#[test]
fn no_load_never_scales_up_and_silence_never_scales_down() {
    let mut s = Simulation::new(1.0);
    s.run(60.0, |_| 0.0);
    assert!(s.changes.len() <= 1, "no load: {:?}", s.changes);
    let mut s = Simulation::new(5.0);
    s.run(15.0, |_| 60.0);
    let busy = s.replicas();
    assert!(busy >= 2, "{:?}", s.changes);
    s.agent_speaks = false;
    s.run(60.0, |_| 60.0);
    assert!(s.replicas() >= busy, "silence is not idleness: {:?}", s.changes);
    s.agent_speaks = true;
    s.run(40.0, |_| 2.0);
    assert!(s.replicas() < busy, "no ratchet once it is heard again: {:?}", s.changes);
}
