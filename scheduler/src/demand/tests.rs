use super::*;
use crate::testing::{pool, report, traffic};
use plimsoll_fleet::{RequestClass, SloClass};

/// Two pools' worth of tracker, fed second by second.
struct World {
    tracker: DemandTracker,
    now: f64,
    sequence: u64,
}

impl World {
    fn new(pools: &[ModelPool]) -> Self {
        let mut tracker = DemandTracker::new(DemandConfig::default());
        tracker.sync_pools(pools);
        Self { tracker, now: 1e9, sequence: 0 }
    }

    /// `agents` each report `per_second` arrivals a second, for `seconds`.
    fn run(&mut self, agents: &[&str], pool: &str, per_second: u64, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1.0;
            self.sequence += 1;
            for agent in agents {
                let taken = self.tracker.observe(
                    &report(agent, self.sequence, vec![traffic(pool, per_second)]),
                    1.0,
                    self.now,
                );
                assert!(matches!(taken, Taken::New { .. }), "{taken:?}");
            }
            self.tracker.tick(self.now, |_| false);
        }
    }

    fn silence(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1.0;
            self.tracker.tick(self.now, |_| false);
        }
    }
}

#[test]
fn a_pool_without_reports_keeps_its_prior() {
    let pools = [pool("default/a", Some(4.0)), pool("default/b", None)];
    let mut w = World::new(&pools);
    w.run(&["n1"], "default/b", 3, 600);
    let a = w.tracker.estimate(&pools[0], w.now);
    assert!((a.total_rps() - 4.0).abs() < 1e-9, "{a:?}");
    assert_eq!(a.source, "prior from spec.demand");
    assert_eq!(a.observed_rps, None);
    let b = w.tracker.estimate(&pools[1], w.now);
    assert!((3.0..4.5).contains(&b.total_rps()), "{b:?}");
    assert!(b.observed_rps.is_some_and(|r| (r - 3.0).abs() < 0.1), "{b:?}");
}

#[test]
fn the_prior_gives_way_to_what_is_seen() {
    let p = pool("default/a", Some(10.0));
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1"], "default/a", 1, 30);
    let early = w.tracker.estimate(&p, w.now).total_rps();
    assert!((8.0..10.0).contains(&early), "one request a second for half a minute: {early}");
    w.run(&["n1"], "default/a", 1, 600);
    let late = w.tracker.estimate(&p, w.now).total_rps();
    assert!((0.99..2.0).contains(&late), "{late}");
    // More than expected is believed at once.
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1", "n2"], "default/a", 15, 40);
    assert!(w.tracker.estimate(&p, w.now).total_rps() >= 29.0);
}

#[test]
fn duplicates_and_repeats_after_a_reconnect_count_once() {
    let p = pool("default/a", None);
    let mut t = DemandTracker::new(DemandConfig::default());
    t.sync_pools(std::slice::from_ref(&p));
    let r = report("n1", 7, vec![traffic("default/a", 5)]);
    assert!(matches!(t.observe(&r, 1.0, 100.0), Taken::New { .. }));
    assert_eq!(t.observe(&r, 1.0, 101.0), Taken::Duplicate);
    let earlier = report("n1", 6, vec![traffic("default/a", 5)]);
    assert_eq!(t.observe(&earlier, 1.0, 102.0), Taken::Duplicate);
    let restarted = AgentReport { incarnation: 2, sequence: 1, ..r.clone() };
    assert!(matches!(t.observe(&restarted, 1.0, 103.0), Taken::New { .. }));
    assert_eq!(t.observe(&r, 1.0, 104.0), Taken::Duplicate, "late words of the life before");
    assert_eq!(t.totals(&p.id).0, 10);
}

#[test]
fn silence_is_not_zero_load() {
    let p = pool("default/a", Some(1.0));
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1", "n2"], "default/a", 5, 600);
    let before = w.tracker.estimate(&p, w.now).total_rps();
    // One of two falls silent: its five a second are held, and said to be.
    w.run(&["n1"], "default/a", 5, 200);
    let one = w.tracker.estimate(&p, w.now);
    assert!(one.total_rps() >= 9.5, "{before} → {one:?}");
    assert!(one.source.contains("held"), "{}", one.source);
    // Both: nothing is learnt, nothing is idle, for however long.
    w.silence(3000);
    let none = w.tracker.estimate(&p, w.now);
    assert!(none.total_rps() >= 9.0, "{none:?}");
    assert!(none.source.contains("stale"), "{}", none.source);
    assert_eq!(w.tracker.idle_seconds(&p.id), 0.0);
}

#[test]
fn a_silent_agents_rate_fades_when_others_go_on_reporting() {
    let p = pool("default/a", None);
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1", "n2"], "default/a", 5, 300);
    w.run(&["n1"], "default/a", 5, 3000);
    let later = w.tracker.estimate(&p, w.now).total_rps();
    assert!(later < 7.0, "its clients have long gone to others: {later}");
}

#[test]
fn idle_time_needs_fresh_reports_and_no_request() {
    let p = pool("default/a", Some(1.0));
    let mut w = World::new(std::slice::from_ref(&p));
    w.silence(100);
    assert_eq!(w.tracker.idle_seconds(&p.id), 0.0, "nobody looked");
    w.run(&["n1"], "default/a", 0, 100);
    assert!(w.tracker.idle_seconds(&p.id) > 90.0);
    let estimate = w.tracker.estimate(&p, w.now);
    assert_eq!(estimate.source, "prior from spec.demand", "no traffic is not traffic seen");
    w.run(&["n1"], "default/a", 1, 1);
    assert_eq!(w.tracker.idle_seconds(&p.id), 0.0);
    w.now += 1.0;
    w.tracker.tick(w.now, |_| true);
    w.run(&["n1"], "default/a", 0, 5);
    w.tracker.tick(w.now, |_| true);
    assert_eq!(w.tracker.idle_seconds(&p.id), 0.0, "engines still hold work");
}

#[test]
fn nonsense_is_rejected_and_changes_no_rate() {
    let p = pool("default/a", None);
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1"], "default/a", 4, 300);
    let before = w.tracker.rate(&p, w.now);
    for interval in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        w.sequence += 1;
        let r = report("n1", w.sequence, vec![traffic("default/a", 4)]);
        let taken = w.tracker.observe(&r, interval, w.now);
        assert!(matches!(taken, Taken::Rejected(_)), "{interval}: {taken:?}");
    }
    w.sequence += 1;
    let mut t = traffic("default/a", 4);
    t.arrived = u64::MAX;
    let taken = w.tracker.observe(&report("n1", w.sequence, vec![t]), 1.0, w.now + 1.0);
    assert!(matches!(&taken, Taken::Rejected(why) if why.contains("not credible")), "{taken:?}");
    let mut t = traffic("default/a", 4);
    t.input_tokens.sum = f64::NAN;
    t.output_tokens.sum = f64::INFINITY;
    t.interarrival_moments = (f64::NAN, f64::NAN);
    w.sequence += 1;
    w.tracker.observe(&report("n1", w.sequence, vec![t]), 1.0, w.now + 1.0);
    let after = w.tracker.estimate(&p, w.now);
    assert_eq!(w.tracker.rate(&p, w.now).rps, before.rps);
    for c in &after.classes {
        assert!(c.input_tokens.is_finite() && c.output_tokens.is_finite() && c.rps.is_finite(), "{c:?}");
    }
}

#[test]
fn a_burst_of_late_reports_is_laid_out_in_time() {
    let p = pool("default/a", None);
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1"], "default/a", 4, 300);
    // Eight seconds without a word, then eight reports at once.
    w.silence(8);
    for _ in 0..8 {
        w.sequence += 1;
        w.tracker.observe(&report("n1", w.sequence, vec![traffic("default/a", 4)]), 1.0, w.now);
    }
    w.tracker.tick(w.now, |_| false);
    w.run(&["n1"], "default/a", 4, 60);
    let rate = w.tracker.rate(&p, w.now);
    assert!(rate.observed_rps.is_some_and(|r| (r - 4.0).abs() < 0.3), "{rate:?}");
    assert!(rate.rps < 5.5, "{rate:?}");
}

#[test]
fn classes_are_few_keep_the_tokens_and_follow_shares() {
    let mut p = pool("default/a", Some(10.0));
    let batch = SloClass { name: "batch".into(), expected_share: 0.25, ..p.slo_classes[0].clone() };
    p.slo_classes[0].expected_share = 0.75;
    p.slo_classes.push(batch);
    let mut w = World::new(std::slice::from_ref(&p));
    let prior = w.tracker.estimate(&p, w.now);
    assert!(prior.classes.len() <= 6 && prior.classes.len() >= 2, "{prior:?}");
    let mean = |e: &DemandEstimate, f: fn(&RequestClass) -> f64| {
        e.classes.iter().map(|c| c.rps * f(c)).sum::<f64>() / e.total_rps()
    };
    assert!((mean(&prior, |c| c.input_tokens) - 1000.0).abs() < 1.0, "{prior:?}");
    assert!((mean(&prior, |c| c.output_tokens) - 200.0).abs() < 1.0);
    let share = |e: &DemandEstimate, name: &str| {
        e.classes.iter().filter(|c| c.slo_class == name).map(|c| c.rps).sum::<f64>() / e.total_rps()
    };
    assert!((share(&prior, "batch") - 0.25).abs() < 1e-9);
    w.run(&["n1"], "default/a", 10, 600);
    let seen = w.tracker.estimate(&p, w.now);
    assert!(share(&seen, "batch") < 0.02, "none was seen: {seen:?}");
    assert!((mean(&seen, |c| c.input_tokens) / 1200.0 - 1.0).abs() < 0.05, "{seen:?}");
    assert!((mean(&seen, |c| c.output_tokens) / 150.0 - 1.0).abs() < 0.05);
    let names: std::collections::BTreeSet<&str> = seen.classes.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), seen.classes.len());
    // A class that is gone from the spec counts as the default one.
    p.slo_classes.truncate(1);
    let one = w.tracker.estimate(&p, w.now);
    assert!(one.classes.iter().all(|c| c.slo_class == "default"), "{one:?}");
}

#[test]
fn a_pool_made_anew_under_the_same_name_starts_from_its_prior() {
    let mut p = pool("default/a", Some(2.0));
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1"], "default/a", 20, 400);
    p.uid = "another".into();
    w.tracker.sync_pools(std::slice::from_ref(&p));
    assert_eq!(w.tracker.estimate(&p, w.now).total_rps(), 2.0);
}

#[test]
fn the_state_survives_being_written_down() {
    let p = pool("default/a", Some(2.0));
    let mut w = World::new(std::slice::from_ref(&p));
    w.run(&["n1"], "default/a", 7, 400);
    let text = serde_json::to_vec(&w.tracker).unwrap();
    let back: DemandTracker = serde_json::from_slice(&text).unwrap();
    let (a, b) = (w.tracker.estimate(&p, w.now), back.estimate(&p, w.now));
    assert!((a.total_rps() - b.total_rps()).abs() < 1e-9 && a.source == b.source);
}

#[test]
fn material_changes_are_larger_than_noise() {
    let id: PoolId = "default/a".parse().unwrap();
    assert_eq!(material_change(&id, 10.0, 11.5), None);
    assert!(material_change(&id, 10.0, 14.0).is_some_and(|w| w.contains("rose from 10.0 to 14.0")));
    assert!(material_change(&id, 10.0, 5.0).is_some_and(|w| w.contains("fell")));
    assert!(material_change(&id, 0.0, 1.0).is_some());
    assert_eq!(material_change(&id, 0.0, 0.0), None);
}
