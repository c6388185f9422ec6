//! Tenants.

use serde::{Deserialize, Serialize};

/// Who sends requests, and with what standing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// Name.
    pub name: String,
    /// Tier label, e.g. `gold`.
    pub tier: Option<String>,
    /// Higher is admitted first.
    pub priority: i32,
    /// Share within a tier when capacity binds.
    pub weight: f64,
    /// Name of the Budget its spending counts against.
    pub budget: Option<String>,
    /// SHA-256 digests (lower-case hex) of its API keys; never the keys themselves.
    pub api_key_sha256: Vec<String>,
}
