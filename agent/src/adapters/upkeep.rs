//! Which adapter an engine should load or unload next, by what it says that it holds.

use std::collections::{BTreeMap, BTreeSet};

/// How long an adapter that is no longer placed is kept, model ms: routers hear of it within that, and send nothing more.
const KEPT_MS: f64 = 10_000.0;
/// After a first failure, model ms; doubles up to [`LONGEST_MS`].
const AGAIN_MS: f64 = 2_000.0;
const LONGEST_MS: f64 = 60_000.0;

/// One thing to ask an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Load an adapter.
    Load {
        /// The name it is to have.
        name: String,
        /// Where its weights are.
        source: String,
    },
    /// Unload one.
    Unload {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Failure {
    why: String,
    times: u32,
    again_at_ms: f64,
}

/// An engine's adapters. What it holds is what it says, never what was asked of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Upkeep {
    /// `None`: it has not said.
    held: Option<BTreeSet<String>>,
    unwanted_since_ms: BTreeMap<String, f64>,
    failures: BTreeMap<String, Failure>,
}

impl Upkeep {
    /// Takes note of what the engine says that it holds; whether that is news.
    pub fn found(&mut self, held: BTreeSet<String>) -> bool {
        let news = self.held.as_ref() != Some(&held);
        self.held = Some(held);
        news
    }

    /// What it holds, if it has said so.
    pub fn held(&self) -> Option<&BTreeSet<String>> {
        self.held.as_ref()
    }

    /// What it could not load, and why.
    pub fn failures(&self) -> Vec<(String, String)> {
        self.failures.iter().map(|(name, failure)| (name.clone(), failure.why.clone())).collect()
    }

    /// What to ask next. `wanted` are names and sources. Unloads come first: they make room.
    pub fn next(&mut self, wanted: &BTreeMap<&str, &str>, now_ms: f64) -> Option<Step> {
        let held = self.held.as_ref()?;
        self.failures.retain(|name, _| wanted.contains_key(name.as_str()) && !held.contains(name));
        let unwanted = |name: &String| held.contains(name) && !wanted.contains_key(name.as_str());
        self.unwanted_since_ms.retain(|name, _| unwanted(name));
        for name in held.iter().filter(|name| unwanted(name)) {
            let since = *self.unwanted_since_ms.entry(name.clone()).or_insert(now_ms);
            if now_ms - since >= KEPT_MS {
                return Some(Step::Unload { name: name.clone() });
            }
        }
        let due = |name: &str| self.failures.get(name).is_none_or(|f| now_ms >= f.again_at_ms);
        wanted
            .iter()
            .find(|(name, _)| !held.contains(**name) && due(name))
            .map(|(name, source)| Step::Load { name: (*name).to_owned(), source: (*source).to_owned() })
    }

    /// Takes note of what came of a step.
    pub fn done(&mut self, step: &Step, result: Result<(), String>, now_ms: f64) {
        let Some(held) = &mut self.held else { return };
        match (step, result) {
            (Step::Load { name, .. }, Ok(())) => {
                held.insert(name.clone());
                self.failures.remove(name);
            }
            (Step::Unload { name }, Ok(())) => {
                held.remove(name);
            }
            // Tried anew after as long again.
            (Step::Unload { name }, Err(_)) => {
                self.unwanted_since_ms.insert(name.clone(), now_ms);
            }
            (Step::Load { name, .. }, Err(why)) => {
                let times = self.failures.get(name).map_or(0, |f| f.times) + 1;
                let wait_ms = (AGAIN_MS * f64::from(1u32 << (times - 1).min(16))).min(LONGEST_MS);
                self.failures.insert(name.clone(), Failure { why, times, again_at_ms: now_ms + wait_ms });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str) -> Option<Step> {
        Some(Step::Load { name: name.to_owned(), source: format!("hf://acme/{name}") })
    }

    const WANTED: [(&str, &str); 2] = [("law", "hf://acme/law"), ("sql", "hf://acme/sql")];

    #[test]
    fn nothing_is_asked_of_an_engine_that_has_not_said_what_it_holds() {
        assert_eq!(Upkeep::default().next(&WANTED.into(), 0.0), None);
    }

    #[test]
    fn what_is_wanted_is_loaded_and_loaded_again_after_a_restart() {
        let mut upkeep = Upkeep::default();
        assert!(upkeep.found(BTreeSet::new()));
        let step = upkeep.next(&WANTED.into(), 0.0);
        assert_eq!(step, load("law"));
        upkeep.done(&step.unwrap(), Ok(()), 1.0);
        let step = upkeep.next(&WANTED.into(), 1.0);
        assert_eq!(step, load("sql"));
        upkeep.done(&step.unwrap(), Ok(()), 2.0);
        assert_eq!(upkeep.next(&WANTED.into(), 2.0), None);
        assert!(!upkeep.found(["law", "sql"].map(str::to_owned).into()));
        assert!(upkeep.found(BTreeSet::new()), "it was restarted");
        assert_eq!(upkeep.next(&WANTED.into(), 3.0), load("law"));
    }

    #[test]
    fn what_is_no_longer_wanted_goes_once_routers_know() {
        let mut upkeep = Upkeep::default();
        upkeep.found(["law", "old"].map(str::to_owned).into());
        let wanted = BTreeMap::from([WANTED[0]]);
        assert_eq!(upkeep.next(&wanted, 0.0), None);
        assert_eq!(upkeep.next(&wanted, KEPT_MS - 1.0), None);
        // Wanted again in between: it stays, and the time begins anew.
        assert_eq!(upkeep.next(&BTreeMap::from([WANTED[0], ("old", "x")]), KEPT_MS - 1.0), None);
        assert_eq!(upkeep.next(&wanted, KEPT_MS), None);
        let step = upkeep.next(&wanted, 2.0 * KEPT_MS);
        assert_eq!(step, Some(Step::Unload { name: "old".to_owned() }));
        upkeep.done(&step.unwrap(), Err("busy".to_owned()), 2.0 * KEPT_MS);
        assert_eq!(upkeep.next(&wanted, 2.0 * KEPT_MS + 1.0), None);
    }

    #[test]
    fn a_failure_is_told_and_tried_again_after_longer_and_longer() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        let wanted = BTreeMap::from([WANTED[0]]);
        let mut at = 0.0;
        for wait in [2_000.0, 4_000.0, 8_000.0, 16_000.0, 32_000.0, 60_000.0, 60_000.0] {
            let step = upkeep.next(&wanted, at).unwrap();
            upkeep.done(&step, Err("no such adapter".to_owned()), at);
            assert_eq!(upkeep.next(&wanted, at + wait - 1.0), None);
            at += wait;
        }
        assert_eq!(upkeep.failures(), [("law".to_owned(), "no such adapter".to_owned())]);
        // It holds nobody else up, and is forgotten with the adapter.
        assert_eq!(upkeep.next(&WANTED.into(), at - 1.0), load("sql"));
        upkeep.next(&BTreeMap::new(), at);
        assert!(upkeep.failures().is_empty());
    }
}
