//! Which LoRA adapters are kept ready, and which one answers a request that names a group of them.
//!
//! Two time scales, after POLAR and POLAR+ (arXiv 2604.16583; its pseudocode is not published, so the rules here are this
//! crate's own, of the shape that its stated regret bounds suggest):
//!
//! - fast: [`Polar::choose`] weighs, for each request, how well each adapter is expected to answer, how little is known of it yet,
//!   and what it would cost to load it ([`bandit`]);
//! - slow: at the ends of epochs the set of residents is chosen anew for the requests seen last, and kept where a change would not
//!   pay for its loads ([`residents`]).
//!
//! One of the slots is never a resident's: an adapter that is wanted once is loaded there, for whoever asks next too. Requests that
//! name one adapter teach nothing about quality, but count when residents are chosen. [`eviction`] has the rules that others use.
//!
//! In the product the plan fills the slots: [`groups`] chooses among what engines hold and tells the scheduler what it would rather have, by
//! the figures of a request in [`context`].
//!
//! Which of them engines hold is kept as the routes place them, and as requests name them: [`upkeep`] says what to ask an engine next, by
//! what it says that it holds. Their files come from a cache of the node's, where there is one: [`store`].
//!
//! No decision here reads a clock or draws at random: the same requests and rewards give the same choices. A choice among `n` adapters of
//! contexts with `d` figures takes O(n·d²), a reward O(d²), an epoch's end O(n·(d³ + w·k)) for the `w` requests seen last and `k` slots.

pub mod bandit;
pub mod context;
pub mod eviction;
pub mod groups;
mod polar;
pub mod residents;
pub mod store;
pub(crate) mod tend;
pub mod upkeep;
pub(crate) mod visit;

pub use polar::{Adapter, Choice, Epochs, Moves, Placed, Polar, Rejected, Settings};
