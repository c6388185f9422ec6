//! Which adapter an engine should load or unload next, by what it says that it holds.
//!
//! Adapters are on an engine because the routes place them there, or as *visitors*: a request named one that is placed nowhere near, and
//! waits for it. A visitor stays until another needs its place; whatever requests use stays.

use std::collections::{BTreeMap, BTreeSet};

/// How long an adapter that is no longer placed is kept, model ms: routers hear of it within that, and send nothing more.
const KEPT_MS: f64 = 10_000.0;
/// After a first failure, model ms; doubles up to [`LONGEST_MS`].
const AGAIN_MS: f64 = 2_000.0;
const LONGEST_MS: f64 = 60_000.0;
/// After a failure that only somebody's hand mends.
const BROKEN_MS: f64 = 300_000.0;
/// Adapters that may be on an engine beside those that are placed there.
const VISITORS: usize = 1;

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

/// Why a step came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// For people.
    pub why: String,
    /// It would fail again until somebody changes something.
    pub lasting: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Failure {
    why: String,
    times: u32,
    again_at_ms: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Visit {
    /// Requests that wait for it.
    waiting: usize,
    /// Since when one of them does.
    since_ms: f64,
    last_ms: f64,
}

/// What is known of an adapter at an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that found it loaded.
    pub hits: u64,
    /// Those that did not.
    pub misses: u64,
    /// What its last load took, ms.
    pub load_ms: Option<u64>,
}

/// What a request for an adapter finds.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrival {
    /// It is there, and stays until [`Upkeep::left`] is called.
    There,
    /// It is to be loaded: ask again when something has changed, or call [`Upkeep::gave_up`].
    Wait,
    /// It could not be loaded a moment ago; whether it can is tried after so many ms.
    Failed {
        /// Until it is tried again, ms.
        again_in_ms: f64,
    },
}

/// The adapters of a pool as its routes have them, by name: where their files are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted<'a> {
    /// Those that are placed on the engine.
    pub placed: BTreeMap<&'a str, &'a str>,
    /// All others, which may visit.
    pub others: BTreeMap<&'a str, &'a str>,
}

impl Wanted<'_> {
    fn source(&self, name: &str) -> Option<&str> {
        self.placed.get(name).or_else(|| self.others.get(name)).copied()
    }
}

/// An engine's adapters. What it holds is what it says, never what was asked of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Upkeep {
    /// `None`: it has not said.
    held: Option<BTreeSet<String>>,
    unwanted_since_ms: BTreeMap<String, f64>,
    failures: BTreeMap<String, Failure>,
    /// Where what it was told to load came from.
    sources: BTreeMap<String, String>,
    /// Files on their way, by name: `Some` once they are there, as the engine is to be told.
    coming: BTreeMap<String, Option<String>>,
    /// Requests that use an adapter now.
    users: BTreeMap<String, usize>,
    visits: BTreeMap<String, Visit>,
    counts: BTreeMap<String, Counts>,
}

impl Upkeep {
    /// Takes note of what the engine says that it holds; whether that is news.
    pub fn found(&mut self, held: BTreeSet<String>) -> bool {
        let news = self.held.as_ref() != Some(&held);
        self.sources.retain(|name, _| held.contains(name));
        self.held = Some(held);
        news
    }

    /// What it holds, if it has said so.
    pub fn held(&self) -> Option<&BTreeSet<String>> {
        self.held.as_ref()
    }

    /// Where an adapter that it holds came from, as far as that is known.
    pub fn source(&self, name: &str) -> Option<&str> {
        self.sources.get(name).map(String::as_str)
    }

    /// Names of those whose files are on their way.
    pub fn coming(&self) -> impl Iterator<Item = &str> {
        self.coming.keys().map(String::as_str)
    }

    /// What it could not load, and why.
    pub fn failures(&self) -> Vec<(String, String)> {
        self.failures.iter().map(|(name, failure)| (name.clone(), failure.why.clone())).collect()
    }

    /// What is known of an adapter.
    pub fn counts(&self, name: &str) -> Counts {
        self.counts.get(name).copied().unwrap_or_default()
    }

    /// Whether requests wait for an adapter.
    pub fn waiting(&self) -> usize {
        self.visits.values().map(|visit| visit.waiting).sum()
    }

    /// A request names an adapter; `again`: it has waited already.
    pub fn arrive(&mut self, name: &str, again: bool, now_ms: f64) -> Arrival {
        // What an engine that has not said anything holds is its own to say to the request.
        let there = self.held.as_ref().is_none_or(|held| held.contains(name));
        if !again {
            let counts = self.counts.entry(name.to_owned()).or_default();
            *(if there { &mut counts.hits } else { &mut counts.misses }) += 1;
        }
        if there {
            if again {
                self.gave_up(name);
            }
            if let Some(visit) = self.visits.get_mut(name) {
                visit.last_ms = now_ms;
            }
            *self.users.entry(name.to_owned()).or_default() += 1;
            return Arrival::There;
        }
        if let Some(failure) = self.failures.get(name).filter(|f| now_ms < f.again_at_ms) {
            let again_in_ms = failure.again_at_ms - now_ms;
            if again {
                self.gave_up(name);
            }
            return Arrival::Failed { again_in_ms };
        }
        let visit = self.visits.entry(name.to_owned()).or_default();
        if !again {
            visit.since_ms = if visit.waiting == 0 { now_ms } else { visit.since_ms };
            visit.waiting += 1;
        }
        visit.last_ms = now_ms;
        Arrival::Wait
    }

    /// A request waits for an adapter no longer.
    pub fn gave_up(&mut self, name: &str) {
        if let Some(visit) = self.visits.get_mut(name) {
            visit.waiting = visit.waiting.saturating_sub(1);
        }
    }

    /// A request that used an adapter is over.
    pub fn left(&mut self, name: &str) {
        if let Some(users) = self.users.get_mut(name) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.users.remove(name);
            }
        }
    }

    /// What to ask next. Unloads come first: they make room.
    pub fn next(&mut self, wanted: &Wanted<'_>, now_ms: f64) -> Option<Step> {
        let held = self.held.as_ref()?;
        self.failures.retain(|name, _| wanted.source(name).is_some() && !held.contains(name));
        self.visits.retain(|name, visit| {
            visit.waiting > 0 || (held.contains(name) && wanted.others.contains_key(name.as_str()))
        });
        let visits = &self.visits;
        let asked = |name: &str| visits.get(name).is_some_and(|visit| visit.waiting > 0);
        self.coming.retain(|name, path| {
            path.is_none()
                || (!held.contains(name) && (wanted.placed.contains_key(name.as_str()) || asked(name)))
        });
        self.counts.retain(|name, _| wanted.source(name).is_some());
        let visits_here = |name: &str| wanted.others.contains_key(name) && visits.contains_key(name);
        let idle = |name: &str| !self.users.contains_key(name) && !asked(name);
        let other_files = |name: &str| {
            let loaded = self.sources.get(name);
            loaded.is_some_and(|loaded| wanted.source(name).is_some_and(|source| source != loaded))
        };
        let unwanted = |name: &String| {
            let stays = wanted.placed.contains_key(name.as_str()) || visits_here(name);
            held.contains(name) && (!stays || other_files(name))
        };
        self.unwanted_since_ms.retain(|name, _| unwanted(name));
        for name in held.iter().filter(|name| unwanted(name)) {
            let since = *self.unwanted_since_ms.entry(name.clone()).or_insert(now_ms);
            if now_ms - since >= KEPT_MS && !self.users.contains_key(name) {
                return Some(Step::Unload { name: name.clone() });
            }
        }
        let due = |name: &str| {
            !held.contains(name)
                && !matches!(self.coming.get(name), Some(None))
                && self.failures.get(name).is_none_or(|f| now_ms >= f.again_at_ms)
        };
        let load = |(name, source): (&&str, &&str)| Step::Load {
            name: (*name).to_owned(),
            source: (*source).to_owned(),
        };
        let all = wanted.others.iter();
        // Those who visit or are on their way; the one to load next is not counted against itself.
        let visiting = |but: &str| {
            let here = |name: &&&str| {
                **name != but
                    && visits_here(name)
                    && (held.contains(**name) || self.coming.contains_key(**name))
            };
            wanted.others.keys().filter(here).count()
        };
        // Who has waited longest, so that none waits for ever.
        let since = |name: &str| visits.get(name).map_or(0.0, |visit| visit.since_ms);
        let longest = all
            .clone()
            .filter(|(name, _)| asked(name) && due(name))
            .min_by(|(a, _), (b, _)| since(a).total_cmp(&since(b)));
        if let Some((name, source)) = longest {
            if visiting(name) < VISITORS {
                return Some(load((name, source)));
            }
            let last = |name: &str| visits.get(name).map_or(0.0, |visit| visit.last_ms);
            let goes = all
                .map(|(name, _)| *name)
                .filter(|name| held.contains(*name) && visits_here(name) && idle(name))
                .min_by(|a, b| last(a).total_cmp(&last(b)));
            if let Some(name) = goes {
                return Some(Step::Unload { name: name.to_owned() });
            }
        }
        let placed = || wanted.placed.iter().filter(|(name, _)| due(name));
        placed().find(|(name, _)| asked(name)).or_else(|| placed().next()).map(load)
    }

    /// The files of an adapter are being fetched for the engine.
    pub fn fetching(&mut self, name: &str) {
        self.coming.insert(name.to_owned(), None);
    }

    /// They are there.
    pub fn fetched(&mut self, name: &str, path: String) {
        self.coming.insert(name.to_owned(), Some(path));
    }

    /// What the engine is to be told to load, where its files were fetched.
    pub fn path(&self, name: &str) -> Option<&str> {
        self.coming.get(name)?.as_deref()
    }

    /// Takes note of what came of a step, or of the fetch for it, which took `took_ms`.
    pub fn done(&mut self, step: &Step, result: Result<(), Failed>, took_ms: f64, now_ms: f64) {
        let Some(held) = &mut self.held else { return };
        match (step, result) {
            (Step::Load { name, source }, Ok(())) => {
                held.insert(name.clone());
                self.failures.remove(name);
                self.coming.remove(name);
                self.sources.insert(name.clone(), source.clone());
                let counts = self.counts.entry(name.clone()).or_default();
                counts.load_ms = Some(took_ms.max(0.0).round() as u64);
            }
            (Step::Unload { name }, Ok(())) => {
                held.remove(name);
                self.sources.remove(name);
            }
            // Tried anew after as long again.
            (Step::Unload { name }, Err(_)) => {
                self.unwanted_since_ms.insert(name.clone(), now_ms);
            }
            (Step::Load { name, .. }, Err(Failed { why, lasting })) => {
                self.coming.remove(name);
                let times = self.failures.get(name).map_or(0, |f| f.times) + 1;
                let wait_ms = (AGAIN_MS * f64::from(1u32 << (times - 1).min(16))).min(LONGEST_MS);
                let wait_ms = if lasting && times > 1 { BROKEN_MS } else { wait_ms };
                self.failures.insert(name.clone(), Failure { why, times, again_at_ms: now_ms + wait_ms });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(name: &str) -> Option<Step> {
        Some(Step::Load { name: name.to_owned(), source: format!("hf://acme/{name}") })
    }

    fn unload(name: &str) -> Option<Step> {
        Some(Step::Unload { name: name.to_owned() })
    }

    fn failed(why: &str) -> Result<(), Failed> {
        Err(Failed { why: why.to_owned(), lasting: false })
    }

    fn of(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    const ALL: [(&str, &str); 4] = [
        ("law", "hf://acme/law"),
        ("ode", "hf://acme/ode"),
        ("pun", "hf://acme/pun"),
        ("sql", "hf://acme/sql"),
    ];

    /// These are placed, and those may visit.
    fn wanted(placed: &[&str], others: &[&str]) -> Wanted<'static> {
        let pick = |names: &[&str]| ALL.into_iter().filter(|(name, _)| names.contains(name)).collect();
        Wanted { placed: pick(placed), others: pick(others) }
    }

    #[test]
    fn nothing_is_asked_of_an_engine_that_has_not_said_what_it_holds() {
        assert_eq!(Upkeep::default().next(&wanted(&["law"], &[]), 0.0), None);
        // And requests go to it, as they did before anybody asked.
        assert_eq!(Upkeep::default().arrive("law", false, 0.0), Arrival::There);
    }

    #[test]
    fn what_is_wanted_is_loaded_and_loaded_again_after_a_restart() {
        let mut upkeep = Upkeep::default();
        assert!(upkeep.found(BTreeSet::new()));
        let both = wanted(&["law", "sql"], &[]);
        let step = upkeep.next(&both, 0.0);
        assert_eq!(step, load("law"));
        upkeep.done(&step.unwrap(), Ok(()), 7.0, 1.0);
        assert_eq!((upkeep.counts("law").load_ms, upkeep.source("law")), (Some(7), Some("hf://acme/law")));
        let step = upkeep.next(&both, 1.0);
        assert_eq!(step, load("sql"));
        upkeep.done(&step.unwrap(), Ok(()), 1.0, 2.0);
        assert_eq!(upkeep.next(&both, 2.0), None);
        assert!(!upkeep.found(of(&["law", "sql"])));
        assert!(upkeep.found(BTreeSet::new()), "it was restarted");
        assert_eq!(upkeep.next(&both, 3.0), load("law"));
    }

    #[test]
    fn what_is_no_longer_wanted_goes_once_routers_know() {
        let mut upkeep = Upkeep::default();
        upkeep.found(of(&["law", "old"]));
        let law = wanted(&["law"], &[]);
        assert_eq!(upkeep.next(&law, 0.0), None);
        assert_eq!(upkeep.next(&law, KEPT_MS - 1.0), None);
        // Wanted again in between: it stays, and the time begins anew.
        let again = Wanted { placed: BTreeMap::from([ALL[0], ("old", "x")]), ..Wanted::default() };
        assert_eq!(upkeep.next(&again, KEPT_MS - 1.0), None);
        assert_eq!(upkeep.next(&law, KEPT_MS), None);
        // Nor while a request uses it.
        assert_eq!(upkeep.arrive("old", false, KEPT_MS), Arrival::There);
        assert_eq!(upkeep.next(&law, 2.0 * KEPT_MS), None);
        upkeep.left("old");
        let step = upkeep.next(&law, 2.0 * KEPT_MS);
        assert_eq!(step, unload("old"));
        upkeep.done(&step.unwrap(), failed("busy"), 0.0, 2.0 * KEPT_MS);
        assert_eq!(upkeep.next(&law, 2.0 * KEPT_MS + 1.0), None);
    }

    #[test]
    fn a_failure_is_told_and_tried_again_after_longer_and_longer() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        let law = wanted(&["law"], &[]);
        let mut at = 0.0;
        for wait in [2_000.0, 4_000.0, 8_000.0, 16_000.0, 32_000.0, 60_000.0, 60_000.0] {
            let step = upkeep.next(&law, at).unwrap();
            upkeep.done(&step, failed("no such adapter"), 0.0, at);
            assert_eq!(upkeep.next(&law, at + wait - 1.0), None);
            assert_eq!(upkeep.arrive("law", false, at + 1.0), Arrival::Failed { again_in_ms: wait - 1.0 });
            at += wait;
        }
        assert_eq!(upkeep.failures(), [("law".to_owned(), "no such adapter".to_owned())]);
        // It holds nobody else up, and is forgotten with the adapter.
        assert_eq!(upkeep.next(&wanted(&["law", "sql"], &[]), at - 1.0), load("sql"));
        upkeep.next(&Wanted::default(), at);
        assert!(upkeep.failures().is_empty());
    }

    #[test]
    fn what_only_a_hand_mends_is_tried_seldom() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        let (law, step) = (wanted(&["law"], &[]), load("law").unwrap());
        let broken = || Err(Failed { why: "its rank is 64".to_owned(), lasting: true });
        upkeep.done(&step, broken(), 0.0, 0.0);
        assert_eq!(upkeep.next(&law, AGAIN_MS), load("law"));
        upkeep.done(&step, broken(), 0.0, AGAIN_MS);
        assert_eq!(upkeep.next(&law, AGAIN_MS + LONGEST_MS), None);
        assert_eq!(upkeep.next(&law, AGAIN_MS + BROKEN_MS), load("law"));
    }

    #[test]
    fn files_that_are_fetched_hold_nobody_else_up() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        let both = wanted(&["law", "sql"], &[]);
        upkeep.fetching("law");
        assert_eq!(upkeep.next(&both, 0.0), load("sql"));
        upkeep.fetching("sql");
        assert_eq!(upkeep.next(&both, 0.0), None);
        upkeep.fetched("law", "/cache/law".into());
        assert_eq!((upkeep.next(&both, 0.0), upkeep.path("law")), (load("law"), Some("/cache/law")));
        // No longer wanted by the time it is there.
        upkeep.fetched("sql", "/cache/sql".into());
        upkeep.next(&wanted(&["law"], &[]), 0.0);
        assert_eq!((upkeep.path("sql"), upkeep.path("law")), (None, Some("/cache/law")));
    }

    #[test]
    fn other_files_under_a_name_that_is_held_replace_it() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        upkeep.done(&load("law").unwrap(), Ok(()), 0.0, 0.0);
        let moved = Wanted { placed: BTreeMap::from([("law", "hf://acme/law@v2")]), ..Wanted::default() };
        assert_eq!(upkeep.next(&moved, 0.0), None);
        let step = upkeep.next(&moved, KEPT_MS);
        assert_eq!(step, unload("law"));
        upkeep.done(&step.unwrap(), Ok(()), 0.0, KEPT_MS);
        assert!(
            matches!(upkeep.next(&moved, KEPT_MS), Some(Step::Load { source, .. }) if source.ends_with("@v2"))
        );
    }

    #[test]
    fn a_visitor_is_loaded_for_who_waits_and_stays_until_another_comes() {
        let mut upkeep = Upkeep::default();
        upkeep.found(of(&["law"]));
        let all = wanted(&["law"], &["ode", "pun", "sql"]);
        assert_eq!(upkeep.next(&all, 0.0), None);
        assert_eq!(upkeep.arrive("sql", false, 0.0), Arrival::Wait);
        let step = upkeep.next(&all, 0.0);
        assert_eq!(step, load("sql"));
        upkeep.done(&step.unwrap(), Ok(()), 5.0, 5.0);
        assert_eq!(upkeep.arrive("sql", true, 5.0), Arrival::There);
        // It is used: another waits.
        assert_eq!(upkeep.arrive("pun", false, 6.0), Arrival::Wait);
        assert_eq!(upkeep.next(&all, 7.0), None);
        upkeep.left("sql");
        let step = upkeep.next(&all, 8.0);
        assert_eq!(step, unload("sql"));
        upkeep.done(&step.unwrap(), Ok(()), 0.0, 8.0);
        let step = upkeep.next(&all, 8.0);
        assert_eq!(step, load("pun"));
        upkeep.done(&step.unwrap(), Ok(()), 0.0, 9.0);
        assert_eq!(upkeep.arrive("pun", true, 9.0), Arrival::There);
        upkeep.left("pun");
        // Nobody else comes: it stays, however long.
        assert_eq!(upkeep.next(&all, 1e9), None);
        assert_eq!(upkeep.arrive("pun", false, 1e9), Arrival::There);
        assert_eq!(upkeep.counts("pun"), Counts { hits: 1, misses: 1, load_ms: Some(0) });
        // One that is removed goes as any other.
        upkeep.left("pun");
        assert_eq!(upkeep.next(&wanted(&["law"], &["ode"]), 1e9), None);
        assert_eq!(upkeep.next(&wanted(&["law"], &["ode"]), 1e9 + KEPT_MS), unload("pun"));
    }

    #[test]
    fn of_those_who_wait_the_one_that_has_waited_longest_comes_next() {
        let mut upkeep = Upkeep::default();
        upkeep.found(of(&["law"]));
        let all = wanted(&["law"], &["ode", "pun", "sql"]);
        for (name, at) in [("sql", 0.0), ("ode", 1.0), ("sql", 2.0)] {
            assert_eq!(upkeep.arrive(name, false, at), Arrival::Wait);
        }
        assert_eq!(upkeep.next(&all, 3.0), load("sql"));
        upkeep.gave_up("sql");
        assert_eq!(upkeep.next(&all, 3.0), load("sql"));
        upkeep.gave_up("sql");
        assert_eq!(upkeep.next(&all, 3.0), load("ode"));
    }

    #[test]
    fn who_waits_for_a_placed_one_has_it_loaded_first_and_who_gives_up_is_forgotten() {
        let mut upkeep = Upkeep::default();
        upkeep.found(BTreeSet::new());
        let both = wanted(&["law", "sql"], &["pun"]);
        assert_eq!(upkeep.arrive("sql", false, 0.0), Arrival::Wait);
        assert_eq!(upkeep.next(&both, 0.0), load("sql"));
        upkeep.gave_up("sql");
        assert_eq!(upkeep.next(&both, 0.0), load("law"));
        assert_eq!(upkeep.arrive("pun", false, 0.0), Arrival::Wait);
        assert_eq!(upkeep.waiting(), 1);
        upkeep.gave_up("pun");
        assert_eq!((upkeep.next(&both, 0.0), upkeep.waiting()), (load("law"), 0));
    }

    proptest! {
        /// Whatever comes: nothing in use is unloaded, and beside what is placed there is one visitor at most.
        #[test]
        fn what_is_used_stays(moves in prop::collection::vec((0usize..4, 0u8..5), 1..80)) {
            let mut upkeep = Upkeep::default();
            upkeep.found(BTreeSet::new());
            let all = wanted(&["law"], &["ode", "pun", "sql"]);
            let (mut users, mut waits) = (BTreeMap::<&str, usize>::new(), BTreeMap::<&str, usize>::new());
            for (at, (which, what)) in moves.into_iter().enumerate() {
                let (name, now) = (ALL[which].0, at as f64 * 3_000.0);
                match what {
                    0 => match upkeep.arrive(name, false, now) {
                        Arrival::There => *users.entry(name).or_default() += 1,
                        Arrival::Wait => *waits.entry(name).or_default() += 1,
                        Arrival::Failed { .. } => {}
                    },
                    1 if waits.get(name).is_some_and(|n| *n > 0) => {
                        *waits.entry(name).or_default() -= 1;
                        match upkeep.arrive(name, true, now) {
                            Arrival::There => *users.entry(name).or_default() += 1,
                            Arrival::Wait => *waits.entry(name).or_default() += 1,
                            Arrival::Failed { .. } => {}
                        }
                    }
                    2 if users.get(name).is_some_and(|n| *n > 0) => {
                        *users.entry(name).or_default() -= 1;
                        upkeep.left(name);
                    }
                    _ => if let Some(step) = upkeep.next(&all, now) {
                        if let Step::Unload { name } = &step {
                            prop_assert_eq!(users.get(name.as_str()).copied().unwrap_or(0), 0);
                        }
                        let result = if what == 4 { failed("no") } else { Ok(()) };
                        upkeep.done(&step, result, 1.0, now);
                    },
                }
                let held = upkeep.held().unwrap();
                prop_assert!(held.iter().filter(|name| *name != "law").count() <= VISITORS);
            }
        }
    }
}
