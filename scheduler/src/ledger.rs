//! Token leases: permission to spend a budget's tokens per minute, granted to agents for a short time.
//!
//! Escrow (reserve before use): in every minute, settled + outstanding ≤ cap. A lease never outlives its minute; what was
//! granted and not reported back counts as spent. Leases are granted from memory, within what the store has *reserved* for
//! the minute: a scheduler that goes on where another ended counts all of that as spent, and grants what is left. Where
//! nothing is known of what was reserved, it grants nothing until the next minute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Length of the window that `tokensPerMinute` counts in, seconds.
const WINDOW_SECONDS: f64 = 60.0;

/// Part of a cap that is reserved ahead of what was granted: what a successor may find spent that was not.
const RESERVED_AHEAD: f64 = 0.25;

/// Tokens that may have been granted, by budget and minute (counted from 1970, virtual time).
pub type Reserves = BTreeMap<String, BTreeMap<i64, f64>>;

/// A lease on tokens, times in virtual seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Grows with each grant of this budget.
    pub epoch: u64,
    /// Agent it was granted to.
    pub agent: String,
    /// Tokens.
    pub amount: f64,
    /// When it ends.
    pub expires_at: f64,
    reported: f64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Account {
    tokens_per_minute: f64,
    window: i64,
    settled: f64,
    leases: Vec<Lease>,
    epoch: u64,
    /// Recent spending by agent (tokens), for fair shares.
    recent: BTreeMap<String, f64>,
}

impl Account {
    fn outstanding(&self) -> f64 {
        self.leases.iter().map(|l| (l.amount - l.reported).max(0.0)).sum()
    }

    fn roll(&mut self, now: f64) {
        let window = window(now);
        if window > self.window {
            self.window = window;
            self.settled = 0.0;
            self.leases.clear();
            for spent in self.recent.values_mut() {
                *spent *= 0.5;
            }
            self.recent.retain(|_, spent| *spent > 0.5);
        }
    }
}

/// All budgets' leases. Pure: the time is an argument.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    accounts: BTreeMap<String, Account>,
    lease_seconds: f64,
    started_window: i64,
    reserves: Reserves,
}

impl Ledger {
    /// A ledger begun at `now` (virtual seconds), whose leases last `lease_seconds` (virtual). `before` is what was reserved
    /// in the life before (nothing, if there was none); where that is not known (`None`), it grants from the next minute on.
    pub fn new(now: f64, lease_seconds: f64, before: Option<Reserves>) -> Self {
        let window = window(now);
        Self {
            accounts: BTreeMap::new(),
            lease_seconds: lease_seconds.clamp(1e-3, WINDOW_SECONDS),
            started_window: if before.is_some() { i64::MIN } else { window },
            reserves: before.unwrap_or_default(),
        }
    }

    /// What is to be written down before more can be granted; `None` while there is enough. The next minute is reserved
    /// for ahead, so that grants need not wait when it begins.
    pub fn wants(&self, now: f64) -> Option<Reserves> {
        let current = window(now);
        let mut wanted = self.reserves.clone();
        wanted.retain(|_, minutes| {
            minutes.retain(|w, _| *w >= current);
            !minutes.is_empty()
        });
        let mut short = false;
        for (name, account) in &self.accounts {
            let cap = account.tokens_per_minute;
            let used = if account.window == current { account.settled + account.outstanding() } else { 0.0 };
            let ahead = RESERVED_AHEAD * cap;
            let minutes = wanted.entry(name.clone()).or_default();
            for (w, used) in [(current, used), (current + 1, 0.0)] {
                let reserved = minutes.entry(w).or_default();
                if *reserved < (used + 0.5 * ahead).min(cap) {
                    *reserved = (used + ahead).min(cap);
                    short = true;
                }
            }
        }
        short.then_some(wanted)
    }

    /// Takes note that this has been written down.
    pub fn reserved(&mut self, reserves: Reserves) {
        self.reserves = reserves;
    }

    /// Sets the budgets that cap tokens: `(name, tokens per minute)`. A cap that shrank binds from the next grant on.
    pub fn set_budgets<'a>(&mut self, budgets: impl IntoIterator<Item = (&'a str, f64)>, now: f64) {
        let caps: BTreeMap<&str, f64> =
            budgets.into_iter().map(|(n, c)| (n, if c.is_finite() { c.max(0.0) } else { 0.0 })).collect();
        self.accounts.retain(|name, _| caps.contains_key(name.as_str()));
        let reserved = |name: &str| self.reserves.get(name)?.get(&window(now)).copied();
        for (name, cap) in caps {
            let account = self.accounts.entry(name.to_owned()).or_insert_with(|| Account {
                // Epochs grow over restarts too, because time does.
                epoch: (now.max(0.0) * 1000.0) as u64,
                window: window(now),
                // Whatever was reserved for a ledger before this one counts as spent.
                settled: reserved(name).unwrap_or(0.0),
                ..Account::default()
            });
            account.tokens_per_minute = cap;
        }
    }

    /// Books `tokens` that an agent reports as spent on a budget, oldest lease first. What goes beyond its leases is
    /// settled all the same: the next grants shrink by it.
    pub fn spend(&mut self, budget: &str, agent: &str, tokens: f64, now: f64) {
        if !tokens.is_finite() || tokens <= 0.0 {
            return;
        }
        let Some(account) = self.accounts.get_mut(budget) else { return };
        account.roll(now);
        account.settled += tokens;
        *account.recent.entry(agent.to_owned()).or_default() += tokens;
        let mut left = tokens;
        for lease in account.leases.iter_mut().filter(|l| l.agent == agent) {
            let take = left.min((lease.amount - lease.reported).max(0.0));
            lease.reported += take;
            left -= take;
        }
    }

    /// Releases what an agent left unspent of leases that had ended by `reported_until`, once it reported for that time.
    pub fn reported(&mut self, agent: &str, reported_until: f64) {
        for account in self.accounts.values_mut() {
            account.leases.retain(|l| l.agent != agent || l.expires_at > reported_until);
        }
    }

    /// Grants `agent` a lease on every budget where it has none with half its life left. `agents` is how many share.
    pub fn grant(&mut self, agent: &str, agents: usize, now: f64) -> Vec<(String, Lease)> {
        let mut granted = Vec::new();
        for (name, account) in &mut self.accounts {
            account.roll(now);
            if account.window <= self.started_window {
                continue;
            }
            let half = self.lease_seconds / 2.0;
            let window_end = (account.window + 1) as f64 * WINDOW_SECONDS;
            let renew_at = (now + half).min(window_end - 1e-6);
            if account.leases.iter().any(|l| l.agent == agent && l.expires_at > renew_at) {
                continue;
            }
            let agents = agents.max(1) as f64;
            let spent: f64 = account.recent.values().sum();
            let own = account.recent.get(agent).copied().unwrap_or(0.0);
            // Half the share is even, half follows what each spent: a busy agent gets more, an idle one can start.
            let share = if spent > 0.0 { 0.5 / agents + 0.5 * own / spent } else { 1.0 / agents };
            let reserved =
                self.reserves.get(name).and_then(|m| m.get(&account.window)).copied().unwrap_or(0.0);
            let free = account.tokens_per_minute.min(reserved) - account.settled - account.outstanding();
            let amount =
                (account.tokens_per_minute * share * (self.lease_seconds / WINDOW_SECONDS)).min(free);
            if amount < 1.0 {
                continue;
            }
            account.epoch = (account.epoch + 1).max((now.max(0.0) * 1000.0) as u64);
            let lease = Lease {
                epoch: account.epoch,
                agent: agent.to_owned(),
                amount: amount.floor(),
                expires_at: (now + self.lease_seconds).min(window_end),
                reported: 0.0,
            };
            account.leases.push(lease.clone());
            granted.push((name.clone(), lease));
        }
        granted
    }

    /// Settled and outstanding tokens of a budget in the current minute.
    pub fn position(&self, budget: &str) -> Option<(f64, f64)> {
        self.accounts.get(budget).map(|a| (a.settled, a.outstanding()))
    }
}

fn window(now: f64) -> i64 {
    (now / WINDOW_SECONDS).floor() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes down what is to be, as the service does between grants.
    fn reserve(ledger: &mut Ledger, now: f64) {
        if let Some(wanted) = ledger.wants(now) {
            ledger.reserved(wanted);
        }
    }

    fn new(now: f64, lease_seconds: f64, cap: f64) -> Ledger {
        let mut ledger = Ledger::new(now, lease_seconds, Some(Reserves::new()));
        ledger.set_budgets([("b", cap)], now);
        ledger
    }

    /// Everything that can be granted now.
    fn all(ledger: &mut Ledger, agents: usize, now: f64) -> f64 {
        let mut sum = 0.0;
        for n in 0..1000 {
            reserve(ledger, now);
            sum += ledger.grant(&format!("x{n}"), agents, now).iter().map(|(_, l)| l.amount).sum::<f64>();
        }
        sum
    }

    proptest! {
        /// Agents that spend no more than they were granted never exceed the cap in a minute, whatever is reported or lost,
        /// and whenever one ledger takes another's place with nothing but what was written down.
        #[test]
        fn granted_never_exceeds_the_cap(
            cap in 10.0..10_000.0f64,
            steps in prop::collection::vec((0usize..4, 0.0..1.0f64, any::<bool>(), 0.0..4.0f64, 0u8..20), 1..200),
        ) {
            let mut ledger = new(0.0, 10.0, cap);
            let mut written = Reserves::new();
            let mut now = 0.0;
            let mut held: BTreeMap<usize, f64> = BTreeMap::new();
            let mut spent_in_window = 0.0;
            let mut window = 0;
            let mut last_epoch = 0;
            let mut succeeded = false;
            for (who, share, report, dt, event) in steps {
                now += dt;
                if event == 0 {
                    ledger = Ledger::new(now, 10.0, Some(written.clone()));
                    ledger.set_budgets([("b", cap)], now);
                    // In one instant, which they never share, numbers of two ledgers could be equal.
                    last_epoch = 0;
                    succeeded = true;
                }
                // Not every write comes in time.
                if event > 5 && let Some(wanted) = ledger.wants(now) {
                    written.clone_from(&wanted);
                    ledger.reserved(wanted);
                }
                let w = (now / 60.0).floor() as i64;
                if w > window {
                    window = w;
                    spent_in_window = 0.0;
                    held.clear();
                    succeeded = false;
                }
                let agent = format!("a{who}");
                for (_, lease) in ledger.grant(&agent, 4, now) {
                    prop_assert!(lease.epoch > last_epoch);
                    last_epoch = lease.epoch;
                    prop_assert!(lease.expires_at <= (window + 1) as f64 * 60.0);
                    *held.entry(who).or_default() += lease.amount;
                }
                let purse = held.entry(who).or_default();
                let tokens = (*purse * share).floor();
                *purse -= tokens;
                spent_in_window += tokens;
                if report {
                    ledger.spend("b", &agent, tokens, now);
                }
                prop_assert!(spent_in_window <= cap + 1e-6, "{spent_in_window} of {cap}");
                let (settled, outstanding) = ledger.position("b").unwrap();
                // To a successor, what was reserved counts as spent, and once more when it is reported.
                prop_assert!(succeeded || settled + outstanding <= cap + 1e-6);
            }
        }
    }

    #[test]
    fn an_unreported_lease_counts_as_spent_until_its_minute_ends() {
        let mut ledger = new(0.0, 60.0, 600.0);
        assert_eq!(all(&mut ledger, 1, 0.0), 600.0);
        assert_eq!(all(&mut ledger, 2, 59.0), 0.0, "all of it may have been spent");
        assert_eq!(all(&mut ledger, 1, 60.0), 600.0);
    }

    #[test]
    fn what_an_agent_reports_unspent_is_granted_again() {
        let mut ledger = new(0.0, 20.0, 300.0);
        reserve(&mut ledger, 0.0);
        assert_eq!(ledger.grant("a", 2, 0.0)[0].1.amount, 50.0);
        ledger.spend("b", "a", 30.0, 10.0);
        ledger.reported("a", 21.0);
        assert_eq!(ledger.position("b"), Some((30.0, 0.0)));
    }

    #[test]
    fn nothing_is_granted_beyond_what_was_written_down() {
        let mut ledger = new(0.0, 60.0, 400.0);
        assert!(ledger.grant("a", 1, 0.0).is_empty());
        let wanted = ledger.wants(0.0).unwrap();
        assert_eq!(wanted["b"], BTreeMap::from([(0, 100.0), (1, 100.0)]));
        ledger.reserved(wanted);
        assert_eq!(ledger.wants(0.0), None, "there is enough");
        assert_eq!(ledger.grant("a", 1, 0.0)[0].1.amount, 100.0);
        assert_eq!(ledger.wants(1.0).unwrap()["b"][&0], 200.0);
        // The next minute has its own.
        assert_eq!(ledger.grant("b", 1, 60.0)[0].1.amount, 100.0);
        assert_eq!(ledger.wants(61.0).unwrap()["b"], BTreeMap::from([(1, 200.0), (2, 100.0)]));
    }

    #[test]
    fn a_successor_grants_what_was_not_reserved_and_one_that_knows_nothing_waits() {
        let mut first = new(61.0, 10.0, 400.0);
        let mut written = Reserves::new();
        for n in 0..3 {
            written = first.wants(61.0).unwrap_or(written);
            first.reserved(written.clone());
            first.grant(&format!("a{n}"), 1, 61.0);
        }
        let (settled, outstanding) = first.position("b").unwrap();
        let reserved = written["b"][&1];
        assert!(settled + outstanding <= reserved && reserved < 400.0, "{reserved}");
        let mut next = Ledger::new(70.0, 10.0, Some(written));
        next.set_budgets([("b", 400.0)], 70.0);
        assert_eq!(all(&mut next, 1, 70.0).round(), (400.0 - reserved).floor());
        let mut unknown = Ledger::new(61.0, 10.0, None);
        unknown.set_budgets([("b", 300.0)], 61.0);
        assert_eq!(all(&mut unknown, 1, 100.0), 0.0);
        assert!(all(&mut unknown, 1, 120.0) > 0.0);
    }
}
