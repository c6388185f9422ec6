//! Routing, admission and budget spending; then the OpenAI proxy, telemetry and engine drivers around them.
//!
//! Pure decisions: [`route`] (which replica), [`admit`] (what runs, waits or is refused at an engine), [`spend`]
//! (budget leases), [`resume`] (streams whose engine died), [`liveness`], and the readers [`body`], [`sse`] and [`scrape`]. Around them an [`Agent`] serves
//! OpenAI-compatible HTTP, probes the engines of its node and talks to the scheduler.
//!
//! One agent runs on each GPU node; the same code without a node is a gateway. Whoever takes a request from a client
//! chooses the replica and forwards the request to the agent beside it, which alone admits or refuses; a refusal goes to
//! the next choice. Nothing on the request path waits for the scheduler.
//!
//! Whoever took the request also keeps its answer whole: when an engine, or the agent in between, dies in the middle of a
//! stream, it has another engine go on where the client's text ends; an answer that does not stream is asked for again.
//! An engine whose agent is gone is asked at its own address.
//!
//! Times in decisions and reports are *model time*: real time multiplied by [`AgentConfig::time_scale`]; only the length
//! of a report's interval is real time.

pub mod adapters;
pub mod admit;
mod agent;
pub mod body;
mod clock;
mod config;
pub mod driver;
mod engines;
#[cfg(test)]
mod fuzz;
pub mod liveness;
mod local;
pub mod metrics;
pub mod openai;
pub mod persist;
mod picker;
mod proxy;
mod replica;
pub mod resume;
pub mod route;
pub mod scrape;
mod session;
mod shared;
pub mod spend;
pub mod sse;
pub mod telemetry;
mod trial;

pub use agent::{Agent, AgentHandle, StartError};
pub use config::{AgentConfig, AgentTls, Clients, ProxyLimits};
pub use metrics::AgentMetrics;
pub use shared::PoolStats;
