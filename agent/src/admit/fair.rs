//! Fairness between tenants: each one's service so far, in weighted tokens.
//!
//! Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): a prompt token
//! counts once, an answer token twice, divided by the tenant's weight; who comes back from idling starts at the least
//! counter of those who wait, so that nobody saves service up. Where the paper always serves the least counter, here all
//! within [`WINDOW_TOKENS`] of it may be served, so that slack can decide among them.

use crate::hash::QuickMap;

/// How far a tenant may run ahead of the one furthest behind, weighted tokens.
pub const WINDOW_TOKENS: f64 = 32_768.0;
/// Weight of an answer token against a prompt token.
const OUTPUT_WEIGHT: f64 = 2.0;
/// Most tenants remembered beyond those that have requests here.
const MOST_IDLE: usize = 1_024;

#[derive(Debug, Clone, Copy, Default)]
struct Tenant {
    counter: f64,
    waiting: usize,
    running: usize,
}

/// Counters of tenants.
#[derive(Debug, Clone, Default)]
pub struct Fair {
    tenants: QuickMap<u64, Tenant>,
}

/// What a request counts, tokens.
pub fn cost(prompt_tokens: f64, output_tokens: f64) -> f64 {
    prompt_tokens + OUTPUT_WEIGHT * output_tokens
}

impl Fair {
    /// A request of a tenant has come.
    pub fn arrived(&mut self, tenant: u64) {
        let idle = self.tenants.get(&tenant).is_none_or(|t| t.waiting + t.running == 0);
        if idle {
            let floor =
                self.floor(self.tenants.iter().filter(|(_, t)| t.waiting + t.running > 0).map(|(k, _)| *k));
            if self.tenants.len() >= MOST_IDLE && !self.tenants.contains_key(&tenant) {
                self.tenants.retain(|_, t| t.waiting + t.running > 0);
            }
            let t = self.tenants.entry(tenant).or_default();
            if floor.is_finite() {
                t.counter = t.counter.max(floor);
            }
        }
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.waiting += 1;
        }
    }

    /// One that waited is served, or has gone.
    pub fn left_queue(&mut self, tenant: u64, served: bool) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.waiting = t.waiting.saturating_sub(1);
            t.running += usize::from(served);
        }
    }

    /// One that was served is over.
    pub fn ended(&mut self, tenant: u64) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.running = t.running.saturating_sub(1);
        }
    }

    /// Service given (or, where negative, given back), tokens by a tenant of this weight.
    pub fn charge(&mut self, tenant: u64, weight: f64, tokens: f64) {
        if let Some(t) = self.tenants.get_mut(&tenant) {
            t.counter += tokens / weight.max(1e-3);
        }
    }

    /// The least counter of these tenants; infinite if there are none.
    pub fn floor(&self, tenants: impl Iterator<Item = u64>) -> f64 {
        tenants.filter_map(|t| self.tenants.get(&t)).map(|t| t.counter).fold(f64::INFINITY, f64::min)
    }

    /// Whether a tenant may be served while another waits at this counter.
    pub fn may_go(&self, tenant: u64, floor: f64) -> bool {
        self.counter(tenant) <= floor + WINDOW_TOKENS
    }

    /// A tenant's counter.
    pub fn counter(&self, tenant: u64) -> f64 {
        self.tenants.get(&tenant).map_or(0.0, |t| t.counter)
    }

    /// Tenants remembered.
    pub fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_has_saved_nothing_up() {
        let mut f = Fair::default();
        f.arrived(1);
        f.charge(1, 1.0, 1e6);
        f.arrived(2);
        assert_eq!(f.counter(2), 1e6);
        f.left_queue(2, false);
        f.charge(1, 2.0, 1e6);
        assert_eq!(f.counter(1), 1.5e6, "twice the weight, half the charge");
        f.arrived(2);
        assert_eq!(f.counter(2), 1.5e6);
        assert!(f.may_go(1, f.floor([1, 2].into_iter())));
    }

    #[test]
    fn memory_is_bounded_by_those_who_are_here() {
        let mut f = Fair::default();
        for tenant in 0..10_000 {
            f.arrived(tenant);
            f.left_queue(tenant, true);
            f.ended(tenant);
        }
        assert!(f.len() <= MOST_IDLE);
    }
}
