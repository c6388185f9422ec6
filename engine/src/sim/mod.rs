//! Iteration-level simulation of one replica, under vLLM's scheduling rules: a pure state machine without a clock.
//!
//! [`Replica`] is the engine: requests go in, each [`Replica::step`] runs one iteration and says how long it takes
//! and which tokens it yields. A caller with a clock (the simulated engine server) waits that long; [`simulate`] and
//! [`simulate_closed`] just add it up.
//!
//! Rules: running requests first, in order of priority and arrival, decode and prefill chunks alike, within the
//! step's token budget ([`crate::Scheduling::PrefillFirst`]: prompts alone while there are any); then waiting ones
//! while blocks, places and budget last; when blocks run out, the last in that
//! order is preempted and later computed again; blocks of finished requests stay until evicted, least recently used
//! first, and full prompt blocks found again are not computed again. Layers with a window and recurrent states take
//! blocks of their own beside a request's sequence; a waiting request whose adapter finds no slot is passed over;
//! drafts take budget and room, and yield their expected number of tokens, evenly spread; a decode replica has all
//! but the last prompt token sent to it. Attention ranks have a queue, a batch and a cache each; a request goes to the
//! one with the least to do, and a step takes as long as on the slowest.

mod arrivals;
mod blocks;
mod rank;
mod replica;
mod request;
mod run;

pub use arrivals::{arrivals, requests, requests_within};
pub use replica::Replica;
pub use request::{SimPolicy, SimRequest, SimStats, StepOutcome, SubmitError, TokenEvent};
pub use run::{Arrival, RequestOutcome, simulate, simulate_closed};
