//! Rules that others scale by, each as its documentation or code states it: how many replicas, from what replicas report.
//!
//! A rule sees one pool. Its metric is chosen by whoever uses it ([`Metric`]); all of them scale on a mean over replicas
//! or a sum, so that one figure a look suffices.

use std::collections::VecDeque;

/// What a rule sees at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Virtual seconds.
    pub now: f64,
    /// Replicas that there are to be.
    pub replicas: u32,
    /// Replicas that serve.
    pub ready: u32,
    /// Requests in engines' batches.
    pub running: f64,
    /// Requests that wait, for admission or for a replica.
    pub waiting: f64,
    /// Share of KV cache in use, mean over replicas that serve.
    pub kv_usage: f64,
    /// Requests that came in the last second.
    pub arrived: u64,
}

/// What a rule scales on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests in an engine, running or waiting: the sum over replicas, so that a target is for one replica.
    InFlight,
    /// Requests waiting, the sum over replicas.
    Waiting,
    /// Share of KV cache in use, 0–1, the sum over replicas.
    KvUsage,
}

impl Metric {
    /// Its sum over replicas.
    pub fn total(self, seen: &Seen) -> f64 {
        match self {
            Self::InFlight => seen.running + seen.waiting,
            Self::Waiting => seen.waiting,
            Self::KvUsage => seen.kv_usage * f64::from(seen.ready),
        }
    }

    /// Its mean over the replicas that serve; 0 of none.
    pub fn mean(self, seen: &Seen) -> f64 {
        self.total(seen) / f64::from(seen.ready.max(1))
    }
}

/// Decides on a number of replicas, once a virtual second.
pub trait Rule: Send {
    /// What tables call it.
    fn name(&self) -> String;

    /// How many replicas there should be; bounds are the caller's business.
    fn desired(&mut self, seen: &Seen) -> u32;
}

/// Always as many.
#[derive(Debug, Clone, Copy)]
pub struct Static(
    /// Replicas.
    pub u32,
);

impl Rule for Static {
    fn name(&self) -> String {
        format!("static {}", self.0)
    }

    fn desired(&mut self, _: &Seen) -> u32 {
        self.0
    }
}

/// Kubernetes' HorizontalPodAutoscaler with its default behaviour: every 15 s `ceil(n · mean/target)`, nothing within a
/// tenth of the target; up at once by at most the greater of as many again and four; down to the highest that was
/// recommended in the last 300 s. A replica that does not serve yet counts as 0 on the way up, as the documentation has it.
#[derive(Debug, Clone)]
pub struct Hpa {
    metric: Metric,
    target: f64,
    looked: f64,
    recommended: VecDeque<(f64, u32)>,
}

const HPA_PERIOD_SECONDS: f64 = 15.0;
const HPA_TOLERANCE: f64 = 0.1;
const HPA_DOWN_WINDOW_SECONDS: f64 = 300.0;
const HPA_UP_PODS: u32 = 4;

impl Hpa {
    /// Scales on a metric's mean.
    pub fn new(metric: Metric, target: f64) -> Self {
        Self { metric, target, looked: f64::NEG_INFINITY, recommended: VecDeque::new() }
    }

    /// What a usage ratio over `counted` replicas recommends.
    fn recommend(seen: &Seen, total: f64, target: f64) -> u32 {
        let n = seen.replicas;
        let ratio = total / f64::from(seen.ready.max(1)) / target;
        if (ratio - 1.0).abs() <= HPA_TOLERANCE {
            return n;
        }
        if ratio < 1.0 {
            return (f64::from(seen.ready) * ratio).ceil() as u32;
        }
        // On the way up those that do not serve yet count with 0: they are about to.
        let with_unready = total / f64::from(n.max(1)) / target;
        if with_unready <= 1.0 + HPA_TOLERANCE { n } else { (f64::from(n) * with_unready).ceil() as u32 }
    }

    fn look(&mut self, seen: &Seen, recommended: u32) -> u32 {
        let n = seen.replicas;
        self.recommended.push_back((seen.now, recommended));
        while self.recommended.front().is_some_and(|(at, _)| *at < seen.now - HPA_DOWN_WINDOW_SECONDS) {
            self.recommended.pop_front();
        }
        if recommended > n {
            return recommended.min((2 * n).max(n + HPA_UP_PODS));
        }
        let highest = self.recommended.iter().map(|(_, r)| *r).max().unwrap_or(n);
        highest.min(n)
    }
}

impl Rule for Hpa {
    fn name(&self) -> String {
        format!("HPA {:?} {}", self.metric, self.target)
    }

    fn desired(&mut self, seen: &Seen) -> u32 {
        if seen.now - self.looked < HPA_PERIOD_SECONDS {
            return seen.replicas;
        }
        self.looked = seen.now;
        let recommended = Self::recommend(seen, self.metric.total(seen), self.target);
        self.look(seen, recommended)
    }
}

/// KEDA: an HPA on a sum (`ceil(total/threshold)`), that goes from 0 to 1 at a 30 s poll when the sum is above 0 and from 1 to 0
/// after 300 s of nothing.
#[derive(Debug, Clone)]
pub struct Keda {
    hpa: Hpa,
    threshold: f64,
    may_sleep: bool,
    polled: f64,
    active_at: f64,
}

const KEDA_POLL_SECONDS: f64 = 30.0;
const KEDA_COOL_DOWN_SECONDS: f64 = 300.0;

impl Keda {
    /// Scales on a metric's sum; to zero if it `may_sleep`.
    pub fn new(metric: Metric, threshold: f64, may_sleep: bool) -> Self {
        let hpa = Hpa::new(metric, threshold);
        Self { hpa, threshold, may_sleep, polled: f64::NEG_INFINITY, active_at: f64::NEG_INFINITY }
    }
}

impl Rule for Keda {
    fn name(&self) -> String {
        format!("KEDA {:?} {}", self.hpa.metric, self.threshold)
    }

    fn desired(&mut self, seen: &Seen) -> u32 {
        let total = self.hpa.metric.total(seen);
        if seen.now - self.polled >= KEDA_POLL_SECONDS {
            self.polled = seen.now;
            if total > 0.0 {
                self.active_at = seen.now;
            }
        }
        let active = seen.now - self.active_at < KEDA_COOL_DOWN_SECONDS;
        if self.may_sleep && !active {
            return 0;
        }
        if seen.replicas == 0 {
            return u32::from(active);
        }
        if seen.now - self.hpa.looked < HPA_PERIOD_SECONDS {
            return seen.replicas;
        }
        self.hpa.looked = seen.now;
        let n = f64::from(seen.replicas);
        let ratio = total / n / self.threshold;
        let wanted = if (ratio - 1.0).abs() <= HPA_TOLERANCE {
            seen.replicas
        } else {
            ((total / self.threshold).ceil() as u32).max(1)
        };
        self.hpa.look(seen, wanted)
    }
}

/// Samples of a mean over replicas, by window.
#[derive(Debug, Clone, Default)]
struct Samples(VecDeque<(f64, f64)>);

impl Samples {
    fn add(&mut self, now: f64, value: f64, longest: f64) {
        self.0.push_back((now, value));
        while self.0.front().is_some_and(|(at, _)| *at <= now - longest) {
            self.0.pop_front();
        }
    }

    fn mean(&self, now: f64, window: f64) -> f64 {
        let within = self.0.iter().filter(|(at, _)| *at > now - window);
        let (sum, n) = within.fold((0.0, 0.0), |(s, n), (_, v)| (s + v, n + 1.0));
        sum / f64::max(n, 1.0)
    }
}

const AIBRIX_PERIOD_SECONDS: f64 = 10.0;
const AIBRIX_STABLE_SECONDS: f64 = 180.0;
const AIBRIX_PANIC_SECONDS: f64 = 60.0;
const AIBRIX_PANIC_THRESHOLD: f64 = 2.0;
const AIBRIX_RATE: f64 = 2.0;
const AIBRIX_TOLERANCE: f64 = 0.1;
const AIBRIX_DOWN_COOL_SECONDS: f64 = 300.0;

/// AIBrix's APA: every 10 s, with `r` the mean of the last 180 s over the target, `min(ceil(n·r), 2n)` above 1.1,
/// `max(ceil(n·r), floor(n/2))` below 0.9; down not within 300 s of the last change.
#[derive(Debug, Clone)]
pub struct Apa {
    metric: Metric,
    target: f64,
    looked: f64,
    changed: f64,
    samples: Samples,
}

impl Apa {
    /// Scales on a metric's mean.
    pub fn new(metric: Metric, target: f64) -> Self {
        let never = f64::NEG_INFINITY;
        Self { metric, target, looked: never, changed: never, samples: Samples::default() }
    }
}

/// Nothing down within the cool-down of the last change.
fn cooled(seen: &Seen, wanted: u32, changed: &mut f64) -> u32 {
    if wanted < seen.replicas && seen.now - *changed < AIBRIX_DOWN_COOL_SECONDS {
        return seen.replicas;
    }
    if wanted != seen.replicas {
        *changed = seen.now;
    }
    wanted
}

impl Rule for Apa {
    fn name(&self) -> String {
        format!("AIBrix APA {:?} {}", self.metric, self.target)
    }

    fn desired(&mut self, seen: &Seen) -> u32 {
        if seen.now - self.looked < AIBRIX_PERIOD_SECONDS {
            return seen.replicas;
        }
        self.looked = seen.now;
        self.samples.add(seen.now, self.metric.mean(seen), AIBRIX_STABLE_SECONDS);
        let n = f64::from(seen.replicas);
        let r = self.samples.mean(seen.now, AIBRIX_STABLE_SECONDS) / self.target;
        let wanted = if r > 1.0 + AIBRIX_TOLERANCE {
            (n * r).ceil().min((AIBRIX_RATE * n).ceil()) as u32
        } else if r < 1.0 - AIBRIX_TOLERANCE {
            (n * r).ceil().max((n / AIBRIX_RATE).floor()) as u32
        } else {
            seen.replicas
        };
        cooled(seen, wanted, &mut self.changed)
    }
}

/// AIBrix's KPA: every 10 s from the means of the last 180 s and 60 s, each `ceil(value/target)` outside the tolerance, within
/// half and twice what there is; the greater of both when the short mean is more than twice the long one (panic). As
/// published, the value is a mean over replicas and is not multiplied by their number, and the latch against scaling down in a
/// panic has no effect.
#[derive(Debug, Clone)]
pub struct Kpa {
    metric: Metric,
    target: f64,
    looked: f64,
    changed: f64,
    samples: Samples,
}

impl Kpa {
    /// Scales on a metric's mean.
    pub fn new(metric: Metric, target: f64) -> Self {
        let never = f64::NEG_INFINITY;
        Self { metric, target, looked: never, changed: never, samples: Samples::default() }
    }
}

impl Rule for Kpa {
    fn name(&self) -> String {
        format!("AIBrix KPA {:?} {}", self.metric, self.target)
    }

    fn desired(&mut self, seen: &Seen) -> u32 {
        if seen.now - self.looked < AIBRIX_PERIOD_SECONDS {
            return seen.replicas;
        }
        self.looked = seen.now;
        self.samples.add(seen.now, self.metric.mean(seen), AIBRIX_STABLE_SECONDS);
        let n = seen.replicas;
        let of = |value: f64| {
            let within = (value / self.target - 1.0).abs() <= AIBRIX_TOLERANCE;
            let wanted = if within { n } else { (value / self.target).ceil() as u32 };
            wanted.clamp(n / 2, (2 * n).max(1))
        };
        let (stable, panic) = (
            self.samples.mean(seen.now, AIBRIX_STABLE_SECONDS),
            self.samples.mean(seen.now, AIBRIX_PANIC_SECONDS),
        );
        let panics = stable <= 0.0 || panic / stable > AIBRIX_PANIC_THRESHOLD;
        let wanted = if panics { of(stable).max(of(panic)) } else { of(stable) };
        cooled(seen, wanted, &mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(now: f64, replicas: u32, ready: u32, running: f64, waiting: f64) -> Seen {
        Seen { now, replicas, ready, running, waiting, kv_usage: 0.5, arrived: 0 }
    }

    #[test]
    fn hpa_follows_the_ratio_within_its_limits() {
        let mut hpa = Hpa::new(Metric::InFlight, 10.0);
        assert_eq!(hpa.desired(&seen(0.0, 2, 2, 60.0, 0.0)), 6, "30 a replica are three times the target");
        assert_eq!(hpa.desired(&seen(5.0, 6, 2, 200.0, 0.0)), 6, "it looks every 15 s");
        assert_eq!(hpa.desired(&seen(15.0, 6, 2, 60.0, 0.0)), 6, "four are about to serve");
        let mut hpa = Hpa::new(Metric::InFlight, 10.0);
        assert_eq!(hpa.desired(&seen(0.0, 2, 2, 1000.0, 0.0)), 6, "four more at most");
        assert_eq!(hpa.desired(&seen(15.0, 6, 6, 1000.0, 0.0)), 12, "or as many again");
        assert_eq!(hpa.desired(&seen(30.0, 12, 12, 125.0, 0.0)), 12, "within a tenth");
    }

    #[test]
    fn hpa_comes_down_to_the_highest_of_five_minutes() {
        let mut hpa = Hpa::new(Metric::InFlight, 10.0);
        assert_eq!(hpa.desired(&seen(0.0, 4, 4, 40.0, 0.0)), 4);
        assert_eq!(hpa.desired(&seen(15.0, 4, 4, 5.0, 0.0)), 4);
        assert_eq!(hpa.desired(&seen(290.0, 4, 4, 5.0, 0.0)), 4);
        assert_eq!(hpa.desired(&seen(320.0, 4, 4, 5.0, 0.0)), 1);
    }

    #[test]
    fn keda_sleeps_and_wakes() {
        let mut keda = Keda::new(Metric::Waiting, 5.0, true);
        assert_eq!(keda.desired(&seen(0.0, 0, 0, 0.0, 3.0)), 1);
        assert_eq!(keda.desired(&seen(15.0, 1, 1, 0.0, 23.0)), 5);
        for i in 1..20 {
            keda.desired(&seen(15.0 + f64::from(i) * 15.0, 1, 1, 1.0, 0.0));
        }
        assert_eq!(keda.desired(&seen(345.0, 1, 1, 0.0, 0.0)), 0);
        let mut awake = Keda::new(Metric::Waiting, 5.0, false);
        assert_eq!(awake.desired(&seen(1000.0, 1, 1, 0.0, 0.0)), 1);
    }

    #[test]
    fn apa_multiplies_and_is_held_to_twice_and_half() {
        let mut apa = Apa::new(Metric::InFlight, 10.0);
        assert_eq!(apa.desired(&seen(0.0, 3, 3, 45.0, 0.0)), 5, "3 · 1.5, rounded up");
        let mut apa = Apa::new(Metric::InFlight, 10.0);
        assert_eq!(apa.desired(&seen(0.0, 3, 3, 900.0, 0.0)), 6);
        let mut apa = Apa::new(Metric::InFlight, 10.0);
        assert_eq!(apa.desired(&seen(0.0, 5, 5, 1.0, 0.0)), 2, "no less than half");
        assert_eq!(apa.desired(&seen(10.0, 2, 2, 0.0, 0.0)), 2, "and no further for 300 s");
    }

    #[test]
    fn kpa_does_not_multiply_as_published() {
        let mut kpa = Kpa::new(Metric::InFlight, 10.0);
        assert_eq!(kpa.desired(&seen(0.0, 2, 2, 60.0, 0.0)), 3, "30/10, not 2 · 30/10");
        let mut kpa = Kpa::new(Metric::InFlight, 10.0);
        assert_eq!(kpa.desired(&seen(0.0, 8, 8, 80.0, 0.0)), 8, "on target");
    }
}
