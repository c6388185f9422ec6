//! What was done, and why, as written into resources. Pure but for [`write`].

mod adopted;
pub mod cluster;
pub mod pool;
pub mod queue;
pub mod rollout;
pub mod write;

/// Milliseconds as people read them in a table.
pub fn ms_text(ms: f64) -> String {
    if ms >= 10.0 { format!("{ms:.0}") } else { format!("{ms:.1}") }
}

/// The words of a cell without a value.
pub const NONE: &str = "–";
