//! A fleet in virtual time: the same functions that run in production, driven by simulated clusters, engines and traffic.
//!
//! What is simulated is the world: nodes and cold starts ([`cluster`]), engines iteration by iteration
//! ([`plimsoll_engine::sim`]), clients that send a [`Trace`]. What decides is the product's own code: routing and admission of
//! `plimsoll-agent`, and of a [`Policy`] whatever it consists of; [`Plimsoll`] is the scheduler's control with its
//! planner. There is no second implementation of any decision.
//!
//! Time is discrete-event: agents report, the policy ticks and the operator acts once a virtual second; requests and engine
//! steps happen when they happen. The same scenario and policy give the same outcome, to the last figure.
//!
//! Not simulated: networks between the parts (a call takes no time, none is lost), and provisioning of nodes.

mod cluster;
mod engine;
mod events;
mod gateway;
mod outcome;
pub mod policy;
mod run;
#[cfg(test)]
mod tests;

use plimsoll_fleet::{ClusterSnapshot, PoolId};

pub use outcome::{Outcome, PoolOutcome, Quantiles, Sample};
pub use policy::{Orders, Plimsoll, Policy};
pub use run::{Progress, simulate};

use crate::trace::Trace;

/// What happens, whatever the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Nodes, pools, accelerators, budgets, adapters at the start. Its replicas are not looked at.
    pub cluster: ClusterSnapshot,
    /// Who asks for what.
    pub traffic: Vec<Traffic>,
    /// How it is played.
    pub settings: Settings,
}

/// Requests for one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// The pool.
    pub pool: PoolId,
    /// The SLO class that they name; a name that the pool does not know means its default class.
    pub slo_class: String,
    /// When they come, and their lengths.
    pub trace: Trace,
}

/// How a scenario is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Virtual seconds from the start before which requests and cost are not counted.
    pub warm_up_seconds: f64,
    /// Virtual seconds after the last arrival for which open requests may still finish; what has not then counts as failed.
    pub grace_seconds: f64,
    /// Engine steps take this many times as long as the engine model says, which the policy does not know.
    pub slowdown: f64,
    /// Whether clients say how long their answers will be (`max_tokens` exactly met), as `plimsoll replay` does.
    pub lengths_known: bool,
    /// Virtual seconds between two samples of the timeline.
    pub sample_seconds: f64,
    /// Seed of the router's draws.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            warm_up_seconds: 0.0,
            grace_seconds: 600.0,
            slowdown: 1.0,
            lengths_known: false,
            sample_seconds: 10.0,
            seed: 1,
        }
    }
}

/// Why a scenario cannot be played.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// Nobody asks for anything.
    #[error("traffic: no request at all; give a trace with requests")]
    NoRequests,
    /// Requests for a pool that is not there.
    #[error("traffic[{index}].pool: no pool {pool} in the cluster; there are: {known}")]
    UnknownPool {
        /// Position in [`Scenario::traffic`].
        index: usize,
        /// The pool asked for.
        pool: PoolId,
        /// The pools there are.
        known: String,
    },
    /// A setting that makes no sense.
    #[error("settings.{field}: {value} is not {wanted}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        wanted: &'static str,
    },
}

impl Scenario {
    /// Checks that it can be played.
    ///
    /// # Errors
    /// [`ScenarioError`], the first found.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let s = &self.settings;
        let not_negative = [("warm_up_seconds", s.warm_up_seconds), ("grace_seconds", s.grace_seconds)];
        for (field, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ScenarioError::Setting {
                    field,
                    value,
                    wanted: "a number of seconds, 0 or more",
                });
            }
        }
        for (field, value) in [("slowdown", s.slowdown), ("sample_seconds", s.sample_seconds)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ScenarioError::Setting { field, value, wanted: "a positive number" });
            }
        }
        for (index, traffic) in self.traffic.iter().enumerate() {
            if !self.cluster.pools.iter().any(|p| p.id == traffic.pool) {
                let known: Vec<String> = self.cluster.pools.iter().map(|p| p.id.to_string()).collect();
                return Err(ScenarioError::UnknownPool {
                    index,
                    pool: traffic.pool.clone(),
                    known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
                });
            }
        }
        if self.traffic.iter().all(|t| t.trace.requests.is_empty()) {
            return Err(ScenarioError::NoRequests);
        }
        Ok(())
    }
}
