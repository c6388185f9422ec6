//! Keeping to the plan's flows: each group of equal replicas gets its share of the requests.

/// Requests over which a deficit is remembered: an old imbalance fades by a factor e in so many.
const WINDOW: f64 = 512.0;

/// How far, in requests, a group may run ahead of its share before it has to wait for the others.
const SLACK: f64 = 4.0;

/// Credits of the groups of one (pool, class): what the plan owes them less what they were given, in requests.
///
/// Shares count only while a group is available, so one that comes back is not flooded with what it missed.
#[derive(Debug, Clone, Default)]
pub struct Balance {
    credits: Vec<f64>,
    version: u64,
}

impl Balance {
    /// Starts over when the groups are those of another route table.
    pub fn prepare(&mut self, version: u64, groups: usize) {
        if self.version != version || self.credits.len() != groups {
            self.version = version;
            self.credits.clear();
            self.credits.resize(groups, 0.0);
        }
    }

    /// Whether a group that is due `share` (0–1) of the next request may take it.
    pub fn allows(&self, group: usize, share: f64) -> bool {
        share > 0.0 && self.credits.get(group).is_none_or(|c| c + share >= 1.0 - SLACK)
    }

    /// Credit of a group, requests.
    pub fn credit(&self, group: usize) -> f64 {
        self.credits.get(group).copied().unwrap_or(0.0)
    }

    /// One request went to `group`, while the groups were due `shares` (which sum to 1 over what is available).
    pub fn record(&mut self, shares: &[f64], group: usize) {
        let keep = 1.0 - 1.0 / WINDOW;
        for (credit, share) in self.credits.iter_mut().zip(shares) {
            *credit = *credit * keep + share;
        }
        if let Some(credit) = self.credits.get_mut(group) {
            *credit -= 1.0;
        }
    }

    /// A request that was recorded for one group went to another.
    pub fn shift(&mut self, from: usize, to: usize) {
        if let Some(credit) = self.credits.get_mut(from) {
            *credit += 1.0;
        }
        if let Some(credit) = self.credits.get_mut(to) {
            *credit -= 1.0;
        }
    }
}
