//! Spending budget leases: permission is granted in advance and used up locally.

use std::collections::HashMap;

/// A lease as the agent holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    epoch: u64,
    left: f64,
    expires_at_ms: i64,
}

/// A budget whose lease does not cover a request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "budget {budget:?} has {left:.0} tokens left on its lease, the request may need {needed:.0}; try again when the lease is renewed, or raise the budget"
)]
pub struct Exhausted {
    /// Budget.
    pub budget: String,
    /// Tokens left (0 when the lease has expired).
    pub left: f64,
    /// Tokens the request may need at worst.
    pub needed: f64,
}

/// Tokens set aside for one request: return what it did not use with [`SpendLedger::settle`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reservation {
    held: Vec<(String, u64, f64)>,
}

/// The leases of one agent. Budgets without a lease are not limited here.
#[derive(Debug, Default)]
pub struct SpendLedger {
    leases: HashMap<String, Held>,
}

impl SpendLedger {
    /// Takes in a lease of `amount` tokens. An older epoch than the one held is ignored; the same epoch sent again
    /// (after a reconnect) changes nothing but the expiry.
    pub fn grant(&mut self, budget: &str, epoch: u64, amount: f64, expires_at_ms: i64) {
        match self.leases.get_mut(budget) {
            Some(held) if held.epoch > epoch => {}
            Some(held) if held.epoch == epoch => held.expires_at_ms = held.expires_at_ms.max(expires_at_ms),
            _ => {
                let left = if amount.is_finite() { amount.max(0.0) } else { 0.0 };
                self.leases.insert(budget.to_owned(), Held { epoch, left, expires_at_ms });
            }
        }
    }

    /// Whether nothing is limited here.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether a lease is known for a budget, expired or not.
    pub fn knows(&self, budget: &str) -> bool {
        self.leases.contains_key(budget)
    }

    /// Sets `tokens` aside on every named budget that has a lease: the worst case, before the request is sent.
    ///
    /// # Errors
    /// [`Exhausted`] for the first budget that cannot cover it; then nothing is set aside.
    pub fn reserve(&mut self, budgets: &[&str], tokens: f64, now_ms: i64) -> Result<Reservation, Exhausted> {
        for budget in budgets {
            if let Some(held) = self.leases.get(*budget) {
                let left = if held.expires_at_ms <= now_ms { 0.0 } else { held.left };
                if left < tokens {
                    return Err(Exhausted { budget: (*budget).to_owned(), left, needed: tokens });
                }
            }
        }
        let mut reservation = Reservation::default();
        for budget in budgets {
            if let Some(held) = self.leases.get_mut(*budget) {
                held.left -= tokens;
                reservation.held.push(((*budget).to_owned(), held.epoch, tokens));
            }
        }
        Ok(reservation)
    }

    /// A request is over and used `tokens`. What it did not use returns to the lease, if that is still the same one.
    pub fn settle(&mut self, reservation: Reservation, tokens: f64) {
        for (budget, epoch, reserved) in reservation.held {
            if let Some(held) = self.leases.get_mut(&budget)
                && held.epoch == epoch
            {
                held.left += reserved - tokens;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_budgets_flow_and_known_ones_run_out() {
        let mut l = SpendLedger::default();
        assert!(l.reserve(&["team-a"], 1e9, 0).is_ok());
        l.grant("team-a", 1, 100.0, 1000);
        let r = l.reserve(&["team-a", "other"], 80.0, 0).unwrap();
        let e = l.reserve(&["team-a"], 30.0, 0).unwrap_err();
        assert_eq!((e.left, e.needed), (20.0, 30.0));
        l.settle(r, 10.0);
        assert!(l.reserve(&["team-a"], 90.0, 999).is_ok());
        assert!(l.reserve(&["team-a"], 0.5, 999).is_err());
        l.grant("team-a", 2, 50.0, 1000);
        assert!(l.reserve(&["team-a"], 1.0, 1000).is_err(), "expired");
        l.grant("team-a", 1, 1e9, 9999);
        assert!(l.reserve(&["team-a"], 60.0, 10).is_err(), "an old epoch is ignored");
    }

    proptest! {
        #[test]
        fn never_more_than_the_grant_is_out(amount in 0.0..1000.0f64, asks in prop::collection::vec((0.0..200.0f64, 0.0..1.0f64), 0..50)) {
            let mut l = SpendLedger::default();
            l.grant("b", 1, amount, 100);
            let mut used = 0.0;
            for (ask, share) in asks {
                if let Ok(r) = l.reserve(&["b"], ask, 0) {
                    used += ask * share;
                    l.settle(r, ask * share);
                }
            }
            prop_assert!(used <= amount + 1e-6);
        }
    }
}
