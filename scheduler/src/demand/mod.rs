//! Demand: what agents report, merged, and what to plan for.
//!
//! [`DemandTracker`] is a pure state machine: reports and the time go in, [`DemandEstimate`]s come out. Silence is never
//! zero load: a stale agent's last rate is held, time that nobody measured teaches nothing, and a pool is idle only
//! while fresh telemetry says so.

mod burstiness;
mod config;
mod lengths;
mod series;
mod trigger;
mod window;

use std::collections::{BTreeMap, VecDeque};

use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{DemandEstimate, ModelPool, PoolId};
use serde::{Deserialize, Serialize};

pub use burstiness::Burstiness;
pub use config::DemandConfig;
pub use lengths::{Mix, request_classes};
pub use series::{PeakForecast, Series};
pub use trigger::{material_change, misses_objectives};
pub use window::{Seen, Window};

/// Incarnations of one agent remembered for recognising duplicates.
const INCARNATIONS: usize = 4;
/// Longest interval believed, seconds.
const MAX_INTERVAL_SECONDS: f64 = 3600.0;
/// Highest rate believed of one agent and pool, requests per second.
const MAX_RPS: f64 = 1e6;
/// Time constant of an agent's own rate, which is held when it falls silent, seconds.
const HELD_RATE_SECONDS: f64 = 30.0;
/// Furthest an agent's reports may lag behind their arrival and still be laid end to end, seconds.
const CATCH_UP_SECONDS: f64 = 60.0;

/// What became of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken {
    /// It was new. The pools named have arrivals or held requests.
    New {
        /// Pools with work.
        active: Vec<PoolId>,
    },
    /// It was taken in before.
    Duplicate,
    /// It makes no sense; its traffic was left out.
    Rejected(String),
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct AgentTrack {
    incarnations: VecDeque<(u64, u64)>,
    last_report: f64,
    covered_until: f64,
    rates: BTreeMap<PoolId, f64>,
    holding: BTreeMap<PoolId, u64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct PoolTrack {
    uid: String,
    series: Series,
    mixes: BTreeMap<String, Mix>,
    window: Window,
    first_request: Option<f64>,
    idle_seconds: f64,
    ticked: Option<f64>,
    /// Whether a request came since the last tick.
    asked: bool,
}

/// Demand of the whole fleet. Serialisable: a restarted scheduler goes on from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DemandTracker {
    config: DemandConfig,
    agents: BTreeMap<String, AgentTrack>,
    pools: BTreeMap<PoolId, PoolTrack>,
}

impl DemandTracker {
    /// An empty state.
    pub fn new(config: DemandConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Replaces the constants (after a restart under another configuration).
    pub fn set_config(&mut self, config: DemandConfig) {
        self.config = config;
    }

    /// The constants in use.
    pub fn config(&self) -> &DemandConfig {
        &self.config
    }

    /// Aligns the state with the pools that exist: forgets those that are gone, starts anew those whose UID changed.
    pub fn sync_pools(&mut self, pools: &[ModelPool]) {
        self.pools.retain(|id, _| pools.iter().any(|p| &p.id == id));
        for pool in pools {
            let track = self.pools.entry(pool.id.clone()).or_default();
            if track.uid != pool.uid {
                let keep = track.uid.is_empty();
                if !keep {
                    *track = PoolTrack::default();
                }
                track.uid.clone_from(&pool.uid);
            }
            track.series.set_horizon(horizon_seconds(pool), &self.config);
        }
        for agent in self.agents.values_mut() {
            agent.rates.retain(|id, _| pools.iter().any(|p| &p.id == id));
            agent.holding.retain(|id, _| pools.iter().any(|p| &p.id == id));
        }
    }

    /// Takes in one report that arrived at `now` (virtual seconds) and covers `interval_seconds` (virtual) before it.
    /// Reports already taken in, by (agent, incarnation, sequence), change nothing.
    pub fn observe(&mut self, report: &AgentReport, interval_seconds: f64, now: f64) -> Taken {
        let config = self.config;
        let agent = self.agents.entry(report.agent.clone()).or_default();
        let known = agent.incarnations.iter_mut().find(|(i, _)| *i == report.incarnation);
        let continued = match known {
            Some((_, last)) if report.sequence <= *last => return Taken::Duplicate,
            Some((_, last)) => {
                let next = report.sequence == *last + 1;
                *last = report.sequence;
                next
            }
            None => {
                agent.incarnations.push_back((report.incarnation, report.sequence));
                while agent.incarnations.len() > INCARNATIONS {
                    agent.incarnations.pop_front();
                }
                false
            }
        };
        if !interval_seconds.is_finite() || interval_seconds <= 0.0 {
            // Not measured: neither a rate nor a sign that the figures are fresh.
            return Taken::Rejected(format!(
                "interval of {interval_seconds} s in report {} of agent {}; it must be above zero",
                report.sequence, report.agent
            ));
        }
        let interval = interval_seconds.min(MAX_INTERVAL_SECONDS);
        agent.last_report = agent.last_report.max(now);
        let (start, end) = if continued && agent.covered_until >= now - interval - CATCH_UP_SECONDS {
            // Consecutive reports lie end to end even when they arrive in a burst; a tenth of any lag is made up.
            let start = agent.covered_until.min(now - 1e-3);
            let end = (start + interval).min(now);
            (start, end + 0.1 * (now - end))
        } else {
            (now - interval, now)
        };
        agent.covered_until = end;

        let mut active = Vec::new();
        let mut rejected = None;
        let mut arrivals: BTreeMap<&PoolId, f64> = BTreeMap::new();
        agent.holding.clear();
        for t in &report.traffic {
            if t.arrived as f64 > MAX_RPS * interval {
                rejected = Some(format!(
                    "{} arrivals at {} in {interval:.1} s in report {} of agent {} are not credible",
                    t.arrived, t.pool, report.sequence, report.agent
                ));
                continue;
            }
            let track = self.pools.entry(t.pool.clone()).or_default();
            if t.arrived > 0 {
                track.first_request.get_or_insert(start);
            }
            if track.first_request.is_some() {
                track.series.add(start, end, t.arrived as f64, &config);
            }
            track.mixes.entry(t.slo_class.clone()).or_default().observe(t, now, &config);
            track.window.observe(&t.slo_class, t, now, config.window_seconds);
            *arrivals.entry(&t.pool).or_default() += t.arrived as f64;
            *agent.holding.entry(t.pool.clone()).or_default() += t.holding;
            if t.arrived > 0 || t.holding > 0 {
                track.idle_seconds = 0.0;
                track.asked = true;
                active.push(t.pool.clone());
            }
        }
        let weight = 1.0 - (-interval / HELD_RATE_SECONDS).exp();
        for (pool, rate) in &mut agent.rates {
            let seen = arrivals.remove(pool).unwrap_or(0.0) / interval;
            *rate += weight * (seen - *rate);
        }
        for (pool, count) in arrivals {
            agent.rates.insert(pool.clone(), count / interval);
        }
        active.sort();
        active.dedup();
        match rejected {
            Some(why) => Taken::Rejected(why),
            None => Taken::New { active },
        }
    }

    /// Forgets agents whose node is gone for good: their rates are no longer held.
    pub fn forget_agent(&mut self, agent: &str) {
        self.agents.remove(agent);
    }

    /// Whether an agent's telemetry is fresh.
    pub fn is_fresh(&self, agent: &str, now: f64) -> bool {
        self.agents.get(agent).is_some_and(|a| now - a.last_report <= self.config.stale_after_seconds)
    }

    fn held(&self, agent: &AgentTrack, pool: &PoolId, at: f64) -> f64 {
        let silent = (at - agent.last_report).max(0.0);
        let late = (silent - self.config.hold_seconds).max(0.0);
        agent.rates.get(pool).copied().unwrap_or(0.0) * (-late / self.config.hold_seconds).exp2()
    }

    /// Lets time pass: closes steps of the series and counts idle time. `busy(pool)` says whether engines hold work for it.
    pub fn tick(&mut self, now: f64, busy: impl Fn(&PoolId) -> bool) {
        let config = self.config;
        let forgotten = now - 12.0 * config.hold_seconds;
        self.agents.retain(|_, a| a.last_report >= forgotten);
        let fresh = |a: &AgentTrack| now - a.last_report <= config.stale_after_seconds;
        let covered = self.agents.values().filter(|a| fresh(a)).map(|a| a.covered_until).reduce(f64::min);
        let measured = covered.is_some();
        let until = covered.unwrap_or(now - config.stale_after_seconds);
        let mut pools = std::mem::take(&mut self.pools);
        for (id, track) in &mut pools {
            let stale: Vec<&AgentTrack> =
                self.agents.values().filter(|a| !fresh(a) && a.rates.contains_key(id)).collect();
            track.series.close(
                until,
                measured,
                |start, end| {
                    stale
                        .iter()
                        .map(|a| {
                            let silent = (end - a.covered_until.max(start)).clamp(0.0, end - start);
                            self.held(a, id, end) * silent
                        })
                        .sum()
                },
                &config,
            );
            let elapsed = track.ticked.map_or(0.0, |t| (now - t).max(0.0));
            track.ticked = Some(now);
            let asked = std::mem::take(&mut track.asked);
            let holding = self.agents.values().any(|a| a.holding.get(id).is_some_and(|h| *h > 0));
            // A silent agent may be sending requests: only full, fresh telemetry shows idleness.
            let quiet = stale.iter().all(|a| self.held(a, id, now) < 1e-3);
            if asked || holding || busy(id) {
                track.idle_seconds = 0.0;
            } else if measured && quiet {
                // A leap of the clock longer than telemetry stays fresh was not watched.
                track.idle_seconds += elapsed.min(config.stale_after_seconds);
            }
        }
        self.pools = pools;
    }

    /// Time for which fresh telemetry has shown no request for a pool, seconds.
    pub fn idle_seconds(&self, pool: &PoolId) -> f64 {
        self.pools.get(pool).map_or(0.0, |t| t.idle_seconds)
    }

    /// Requests waiting for a pool to wake.
    pub fn holding(&self, pool: &PoolId) -> u64 {
        self.agents.values().filter_map(|a| a.holding.get(pool)).sum()
    }

    /// Whether any request for the pool was ever seen.
    pub fn has_traffic(&self, pool: &PoolId) -> bool {
        self.pools.get(pool).is_some_and(|t| t.first_request.is_some())
    }

    /// Latencies and attainment of a pool over the last `window_seconds` (at most the configured window).
    pub fn seen(&self, pool: &ModelPool, window_seconds: f64, now: f64) -> Seen {
        self.pools
            .get(&pool.id)
            .map(|t| t.window.seen(pool.slo_classes.first(), now, window_seconds))
            .unwrap_or_default()
    }

    /// Requests of a pool (finished, refused, failed) since the state began.
    pub fn totals(&self, pool: &PoolId) -> (u64, u64, u64) {
        self.pools.get(pool).map_or((0, 0, 0), |t| (t.window.finished, t.window.refused, t.window.failed))
    }

    /// Rate over the last half minute, requests per second: measured by agents that report, held for those that do not.
    /// `None` until traffic was seen.
    pub fn observed_rps(&self, pool: &PoolId) -> Option<f64> {
        self.pools.get(pool)?.series.observed_rps()
    }

    /// The rate to plan for at `now`.
    ///
    /// It is the forecast quantile of the peak over the next cold start (see [`Series`]). For `blend_seconds` after the
    /// first request the prior may only raise it: `max(forecast, w·forecast + (1−w)·prior)` with `w` growing from 0 to 1.
    /// Until then the prior alone counts. Where a share of the load is held rather than measured, the margin widens
    /// by that share. While requests wait for a pool of which less than one a step was expected, what has come since the last
    /// closed step counts at once: they cannot wait until it has been measured.
    pub fn rate(&self, pool: &ModelPool, now: f64) -> Rate {
        let mut rate = self.measured_rate(pool, now);
        if rate.rps < 1.0 / self.config.step_seconds
            && self.holding(&pool.id) > 0
            && let Some(track) = self.pools.get(&pool.id)
        {
            let open = track.series.open_rps(now, &self.config);
            if open > rate.rps {
                rate.rps = open;
                rate.source = "requests that wait for the pool to wake".to_owned();
            }
        }
        rate
    }

    fn measured_rate(&self, pool: &ModelPool, now: f64) -> Rate {
        let config = &self.config;
        let prior = pool.demand.map(|d| if d.rps.is_finite() { d.rps.max(0.0) } else { 0.0 });
        let track = self.pools.get(&pool.id);
        let Some((track, forecast)) = track.and_then(|t| t.series.forecast(config).map(|f| (t, f))) else {
            let source = match prior {
                Some(_) => "prior from spec.demand",
                None => "no traffic seen and no spec.demand",
            };
            return Rate { rps: prior.unwrap_or(0.0), observed_rps: None, source: source.to_owned() };
        };
        let stale: f64 = self
            .agents
            .values()
            .filter(|a| now - a.last_report > config.stale_after_seconds)
            .map(|a| self.held(a, &pool.id, now))
            .sum();
        let held_share = (stale / forecast.expected_rps.max(1e-9)).clamp(0.0, 1.0);
        let planned = forecast.expected_rps + forecast.margin_rps * (1.0 + held_share);
        let age = track.first_request.map_or(0.0, |t| (now - t).max(0.0));
        let w = (age / config.blend_seconds.max(1e-9)).clamp(0.0, 1.0);
        let blended = planned.max(w * planned + (1.0 - w) * prior.unwrap_or(0.0));
        let mut source =
            format!("p{:.0} forecast of the next {:.0} s", config.quantile * 100.0, horizon_seconds(pool));
        if blended > planned {
            source = format!("{source}, with {:.0} % of spec.demand", (1.0 - w) * 100.0);
        }
        if stale > 0.05 {
            source = format!("{source}; {stale:.1} rps held for agents that are silent");
        }
        if self.agents.values().all(|a| now - a.last_report > config.stale_after_seconds) {
            source = format!("{source}; telemetry is stale, the last load is held");
        }
        Rate { rps: blended, observed_rps: track.series.observed_rps(), source }
    }

    /// What to plan for at `now`: the [`rate`](Self::rate), by request class.
    pub fn estimate(&self, pool: &ModelPool, now: f64) -> DemandEstimate {
        let rate = self.rate(pool, now);
        let empty = BTreeMap::new();
        let mixes = self.pools.get(&pool.id).map_or(&empty, |t| &t.mixes);
        let folded;
        // A class that the pool no longer has counts as its default class.
        let mixes = if mixes.keys().any(|k| !pool.slo_classes.iter().any(|c| &c.name == k)) {
            folded = fold_unknown_classes(pool, mixes);
            &folded
        } else {
            mixes
        };
        DemandEstimate {
            classes: request_classes(pool, mixes, rate.rps, &self.config),
            observed_rps: rate.observed_rps,
            arrival_scv: Burstiness::scv(
                mixes.values().map(|m| &m.burstiness),
                now,
                self.config.mix_half_life_seconds,
            ),
            source: rate.source,
        }
    }
}

/// How far ahead a pool's peak is forecast: its cold start, within 30 s – 30 min.
fn horizon_seconds(pool: &ModelPool) -> f64 {
    let cold = pool.engine.expected_cold_start_seconds();
    if cold.is_finite() { cold.clamp(30.0, 1800.0) } else { 60.0 }
}

/// A rate to plan for.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    /// Requests per second.
    pub rps: f64,
    /// Rate just now, requests per second (`None` until traffic was seen).
    pub observed_rps: Option<f64>,
    /// Where it comes from, one line.
    pub source: String,
}

fn fold_unknown_classes(pool: &ModelPool, mixes: &BTreeMap<String, Mix>) -> BTreeMap<String, Mix> {
    let mut out: BTreeMap<String, Mix> = BTreeMap::new();
    for (name, mix) in mixes {
        let name = pool.slo_class(name).map_or(name.as_str(), |c| c.name.as_str());
        out.entry(name.to_owned()).and_modify(|m| m.absorb(mix)).or_insert_with(|| mix.clone());
    }
    out
}

#[cfg(test)]
mod tests;
