//! Whether replicas of a new engine configuration serve as well as those of the old one do beside them. Pure.
//!
//! What is compared are shares of requests: those that failed, and for every class those that missed its TTFT, TPOT or
//! end-to-end limit. Old and new replicas are compared over the same time, in blocks (10 s unless configured otherwise) in
//! which each side served at least [`LEAST_PER_BLOCK`] requests; a block that has fewer goes on until it has them. Each
//! block gives one number for each measure, `x = share(new) − share(old) − tolerance`, in (−2, 1]. However the load
//! moves, it moves on both sides; and requests within a block may depend on each other as they like, since a block counts once.
//!
//! Stopping: the hypothesis "the new one is at most `tolerance` worse" says that the mean of `x`, given all before, is
//! not above zero. Against it a stake is wagered, block after block: wealth is multiplied by `1 + bet · x`, where `bet` depends
//! on earlier blocks alone. Under the hypothesis wealth is a non-negative supermartingale that starts at 1, so that
//! it ever reaches `m / a` has probability at most `a / m` (Ville), at however many looks. With `m` measures and `a` =
//! [`FALSE_STOP`] shared between the canary's stage and the rest of the rollout, a rollout whose replicas are at most
//! `tolerance` worse is stopped with probability at most [`FALSE_STOP`].
//!
//! Passing is no proof of equality: enough requests and blocks, and no measure more than `tolerance` worse over all of
//! them. The test goes on, afresh, until the rollout is over.
//!
//! Cost: O(measures) memory and O(measures) time a look, whatever the traffic.

use serde::{Deserialize, Serialize};

use crate::telemetry::ReplicaTraffic;

/// Largest probability that a rollout is stopped although the new configuration is at most `tolerance` worse.
pub const FALSE_STOP: f64 = 0.01;
/// Fewest requests of each side in a block.
pub const LEAST_PER_BLOCK: u64 = 5;
/// Fewest blocks before a canary passes.
pub const LEAST_BLOCKS: u32 = 6;
/// Tolerance for failed requests, if the configured one is not smaller: nothing makes up for them.
pub const ERROR_TOLERANCE: f64 = 0.01;
/// Largest share of the wealth that a block can take away.
const LARGEST_STAKE: f64 = 0.9;
/// What the first bets rest on: this many blocks with this mean and this mean square.
const PRIOR: (f64, f64, f64) = (2.0, 0.1, 0.05);

/// How the first replicas of a new engine configuration are judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CanaryPolicy {
    /// Replicas of the new configuration until they are judged.
    pub replicas: u32,
    /// Fewest requests on each side before they pass.
    pub min_requests: u64,
    /// Length of a block, seconds.
    pub block_seconds: f64,
    /// Time from the first new replica's readiness that is not judged (caches are cold), seconds.
    pub warm_up_seconds: f64,
    /// How much larger the share of missed objectives may be, 0–1.
    pub tolerance: f64,
    /// Time from the first new replica's readiness after which too few requests are no reason to wait longer, seconds.
    pub deadline_seconds: f64,
    /// Whether the rollout then holds (else it goes on unjudged, and says so).
    pub hold_without_traffic: bool,
}

/// Which replicas served a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Those of the older configuration.
    Old,
    /// Those of the current one.
    New,
}

/// Where the judgement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is being made.
    #[default]
    Watching,
    /// The rollout goes on; it is still watched.
    Passed,
    /// The rollout goes no further for now; a later block may let it pass or stop it.
    Held,
    /// The new configuration is worse. Final.
    Regressed,
}

/// What share of requests is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    Errors,
    Ttft,
    Tpot,
    E2e,
}

/// Requests, and those of them that failed or missed the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Tally {
    requests: u64,
    missed: u64,
}

impl Tally {
    fn share(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.missed as f64 / self.requests as f64 }
    }

    fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.missed = self.missed.saturating_add(other.missed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Pair {
    old: Tally,
    new: Tally,
}

impl Pair {
    fn least(self) -> u64 {
        self.old.requests.min(self.new.requests)
    }

    fn excess(self) -> f64 {
        self.new.share() - self.old.share()
    }
}

/// The wager against "not worse".
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Wager {
    blocks: u32,
    sum: f64,
    sum_of_squares: f64,
    log_wealth: f64,
}

impl Wager {
    /// One block. The bet is the one that would have made wealth grow most so far: mean over mean square.
    fn take(&mut self, x: f64, tolerance: f64) {
        let (prior, mean, square) = PRIOR;
        let blocks = f64::from(self.blocks) + prior;
        let mean = (self.sum + prior * mean) / blocks;
        let square = (self.sum_of_squares + prior * square) / blocks;
        let bet = (mean / square).clamp(0.0, LARGEST_STAKE / (1.0 + tolerance));
        self.log_wealth += (bet * x).ln_1p();
        self.blocks = self.blocks.saturating_add(1);
        self.sum += x;
        self.sum_of_squares += x * x;
    }
}

/// One measure's counts and test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Series {
    measure: Measure,
    class: String,
    /// The block under way.
    open: Pair,
    /// Since when, seconds.
    open_since: f64,
    /// All closed blocks together.
    closed: Pair,
    wager: Wager,
}

impl Series {
    fn tolerance(&self, policy: &CanaryPolicy) -> f64 {
        match self.measure {
            Measure::Errors => policy.tolerance.min(ERROR_TOLERANCE),
            Measure::Ttft | Measure::Tpot | Measure::E2e => policy.tolerance,
        }
    }

    /// `TPOT of class default met by 71.2 % of 412 requests, by 97.9 % of 1630 under the older configuration`.
    fn text(&self) -> String {
        let Pair { old, new } = self.closed;
        let met = |t: Tally| 100.0 * (1.0 - t.share());
        let name = match self.measure {
            Measure::Errors => {
                return format!(
                    "{:.1} % of {} requests failed, {:.1} % of {} under the older configuration",
                    100.0 * new.share(),
                    new.requests,
                    100.0 * old.share(),
                    old.requests
                );
            }
            Measure::Ttft => "TTFT",
            Measure::Tpot => "TPOT",
            Measure::E2e => "end-to-end limit",
        };
        format!(
            "{name} of class {} met by {:.1} % of {} requests, by {:.1} % of {} under the older configuration",
            self.class,
            met(new),
            new.requests,
            met(old),
            old.requests
        )
    }
}

/// The judgement of one pool's new configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Canary {
    /// The revision that is judged.
    pub revision: String,
    /// Where it stands.
    pub standing: Standing,
    /// Why, for people.
    pub text: String,
    serving_since: Option<f64>,
    series: Vec<Series>,
}

impl Canary {
    /// A judgement that begins.
    pub fn new(revision: impl Into<String>) -> Self {
        let text = "waits for its first replica to serve".to_owned();
        Self { revision: revision.into(), text, ..Self::default() }
    }

    /// A replica of the new configuration serves at this time, seconds; only the first time counts.
    pub fn serves(&mut self, now: f64) {
        self.serving_since.get_or_insert(now);
    }

    /// Takes in what one replica served since it was last heard of. Whatever comes while caches are still cold counts for
    /// neither side.
    pub fn observe(&mut self, side: Side, counts: &ReplicaTraffic, policy: &CanaryPolicy, now: f64) {
        if self.serving_since.is_none_or(|since| now < since + policy.warm_up_seconds) {
            return;
        }
        let tried = counts.finished.saturating_add(counts.failed);
        self.add(Measure::Errors, "", side, tried, counts.failed, now);
        if counts.finished > 0 {
            for (measure, missed) in [
                (Measure::Ttft, counts.missed_ttft),
                (Measure::Tpot, counts.missed_tpot),
                (Measure::E2e, counts.missed_e2e),
            ] {
                self.add(measure, &counts.slo_class, side, counts.finished, missed, now);
            }
        }
    }

    fn add(&mut self, measure: Measure, class: &str, side: Side, requests: u64, missed: u64, now: f64) {
        if requests == 0 {
            return;
        }
        let tally = Tally { requests, missed: missed.min(requests) };
        let at = match self.series.iter().position(|s| s.measure == measure && s.class == class) {
            Some(at) => at,
            None => {
                self.series.push(Series {
                    measure,
                    class: class.to_owned(),
                    open: Pair::default(),
                    open_since: now,
                    closed: Pair::default(),
                    wager: Wager::default(),
                });
                self.series.len() - 1
            }
        };
        let open = &mut self.series[at].open;
        match side {
            Side::Old => open.old.add(tally),
            Side::New => open.new.add(tally),
        }
    }

    /// Closes the blocks that are due and says where the judgement stands. `classes` is the pool's number of SLO
    /// classes.
    pub fn judge(&mut self, policy: &CanaryPolicy, classes: usize, now: f64) -> Standing {
        if self.standing == Standing::Regressed {
            return self.standing;
        }
        let measures = (1 + 3 * classes.max(1)) as f64;
        // Half of what may go wrong is for the canary, half for the rest of the rollout.
        let enough = (measures / (FALSE_STOP / 2.0)).ln();
        for series in &mut self.series {
            if now - series.open_since < policy.block_seconds || series.open.least() < LEAST_PER_BLOCK {
                continue;
            }
            let tolerance = series.tolerance(policy);
            series.wager.take(series.open.excess() - tolerance, tolerance);
            series.closed.old.add(series.open.old);
            series.closed.new.add(series.open.new);
            series.open = Pair::default();
            series.open_since = now;
            if series.wager.log_wealth >= enough {
                self.standing = Standing::Regressed;
                self.text = series.text();
                return self.standing;
            }
        }
        if self.standing != Standing::Passed {
            self.decide(policy, now);
        }
        self.standing
    }

    /// Whether the canary passes, waits or is held.
    fn decide(&mut self, policy: &CanaryPolicy, now: f64) {
        let all = self.series.iter().find(|s| s.measure == Measure::Errors);
        let (closed, blocks) = all.map(|s| (s.closed, s.wager.blocks)).unwrap_or_default();
        let worse_of = |least: u64| {
            self.series
                .iter()
                .filter(|s| s.closed.least() >= least.max(1))
                .find(|s| s.closed.excess() > s.tolerance(policy))
        };
        let counted = format!(
            "{} of {} requests judged beside {} of the older configuration",
            closed.new.requests, policy.min_requests, closed.old.requests
        );
        let judged = closed.least() >= policy.min_requests && blocks >= LEAST_BLOCKS;
        let due = self.serving_since.is_some_and(|since| now >= since + policy.deadline_seconds);
        let (standing, text) = if judged && worse_of(policy.min_requests).is_none() {
            (Standing::Passed, format!("passed: {counted}"))
        } else if !due {
            (
                Standing::Watching,
                if self.serving_since.is_some() { counted } else { std::mem::take(&mut self.text) },
            )
        } else if let Some(worse) = worse_of(LEAST_PER_BLOCK) {
            (
                Standing::Held,
                format!(
                    "looks worse, but not beyond chance after {:.0} s: {}",
                    policy.deadline_seconds,
                    worse.text()
                ),
            )
        } else if closed.new.requests == 0 && self.unserved(policy) {
            (
                Standing::Held,
                "gets no requests while the older configuration does; look at its replicas and the agents' logs"
                    .to_owned(),
            )
        } else if policy.hold_without_traffic || judged {
            (Standing::Held, format!("too few requests after {:.0} s: {counted}", policy.deadline_seconds))
        } else {
            (
                Standing::Passed,
                format!(
                    "went on unjudged, too few requests after {:.0} s: {counted}",
                    policy.deadline_seconds
                ),
            )
        };
        self.standing = standing;
        self.text = text;
        if standing == Standing::Passed {
            for series in &mut self.series {
                series.wager = Wager::default();
                series.closed = Pair::default();
            }
        }
    }

    /// Whether the older replicas serve many requests and the new ones none.
    fn unserved(&self, policy: &CanaryPolicy) -> bool {
        let errors = self.series.iter().find(|s| s.measure == Measure::Errors);
        errors.is_some_and(|s| s.open.new.requests == 0 && s.open.old.requests >= policy.min_requests)
    }
}

#[cfg(test)]
#[path = "canary_tests.rs"]
mod tests;
