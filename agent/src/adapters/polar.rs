//! The router and the epochs' controller of one engine's adapter slots.

use std::collections::{BTreeSet, VecDeque};

use nalgebra::DVector;

use super::bandit::Arm;
use super::residents::{self, Demand};

/// An adapter that the engine may serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Its served name.
    pub name: String,
    /// How long loading it takes.
    pub load_ms: f64,
}

/// When residents are chosen anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epochs {
    /// Every so many requests (POLAR). √(slots · horizon) balances loads against staleness.
    Fixed {
        /// Requests of an epoch.
        requests: usize,
    },
    /// Each epoch twice as long as the one before, and begun by having those adapters answer of which too little is known (POLAR+).
    Doubling {
        /// Requests of the first epoch.
        first: usize,
        /// The longest an epoch gets, so that what changes is noticed.
        longest: usize,
        /// κ: of each of `n` adapters ⌈κ·d·√(t/n)⌉ answers are to be known for the `t` requests up to the epoch's end. What other
        /// requests have taught counts; half of the epoch at most goes to it.
        exploration: f64,
        /// How far what was seen before an epoch is still trusted in it, 0..=1.
        keep: f64,
    },
}

impl Epochs {
    fn length(self, number: u32) -> usize {
        match self {
            Self::Fixed { requests } => requests.max(1),
            Self::Doubling { first, longest, .. } => {
                first.max(1).saturating_mul(1 << number.min(30)).min(longest.max(first).max(1))
            }
        }
    }
}

/// How choices are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Adapters that the engine holds at once.
    pub slots: usize,
    /// Figures of a context.
    pub dimension: usize,
    /// λ of the regression: how many requests' worth of doubt there is at first.
    pub ridge: f64,
    /// β: how many standard deviations of what is not known an adapter gets in advance. 0.5–1 in practice.
    pub width: f64,
    /// η: the reward that a millisecond of loading is worth.
    pub price_per_ms: f64,
    /// When residents are chosen anew.
    pub epochs: Epochs,
    /// Requests that residents are chosen for: those seen last.
    pub window: usize,
}

/// What is served, and what that takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Index of the adapter.
    pub adapter: usize,
    /// Whether it is in a slot; else it is loaded first.
    pub ready: bool,
    /// Whether it was chosen to learn of it, whatever is expected of it.
    pub exploring: bool,
    /// Changes of residents that an epoch's end brought, to be made besides.
    pub moves: Moves,
}

/// Residents that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// Indices of adapters to load.
    pub load: Vec<usize>,
    /// Indices of adapters to unload first.
    pub unload: Vec<usize>,
}

/// What is served where somebody else fills the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Index of the adapter that answers.
    pub adapter: usize,
    /// The one that would, were all residents at hand that there should be: the one to ask for.
    pub wish: usize,
    /// Whether it answers to be learnt of.
    pub exploring: bool,
}

/// A request or setting that no choice can be made with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejected {
    /// A setting is out of its range.
    #[error("settings.{field}: {value} is not {wanted}")]
    Setting {
        /// Which one.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it must be.
        wanted: &'static str,
    },
    /// A context has another length than all others, or a figure that is none.
    #[error("context: {problem}; give {dimension} finite figures")]
    Context {
        /// What is wrong.
        problem: String,
        /// Figures that it must have.
        dimension: usize,
    },
    /// A reward that is no figure.
    #[error("reward: {0} is not a finite figure")]
    Reward(f64),
    /// An adapter that does not exist.
    #[error("adapter {index}: there are {count}; name one of them")]
    Unknown {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Nothing to choose from.
    #[error("among: no adapter is named; name at least one")]
    Nobody,
}

#[derive(Debug, Clone)]
struct Seen {
    /// `None`: the request named its adapter.
    context: Option<DVector<f64>>,
    among: Vec<usize>,
}

/// The state of one engine's adapter slots.
#[derive(Debug, Clone)]
pub struct Polar {
    settings: Settings,
    adapters: Vec<Adapter>,
    arms: Vec<Arm>,
    residents: BTreeSet<usize>,
    /// In the slot that is no resident's.
    visitor: Option<usize>,
    epoch: u32,
    /// Requests of all epochs before this one.
    before: f64,
    /// Requests of this epoch so far.
    served: usize,
    /// Adapter, and how many requests it has still to answer for learning's sake.
    exploring: VecDeque<(usize, usize)>,
    recent: VecDeque<Seen>,
}

impl Polar {
    /// Empty slots, and nothing known.
    ///
    /// # Errors
    /// A setting out of its range; a load time that is negative or no figure.
    pub fn new(settings: Settings, adapters: Vec<Adapter>) -> Result<Self, Rejected> {
        let mut polar = Self {
            settings: checked(settings)?,
            adapters: Vec::new(),
            arms: Vec::new(),
            residents: BTreeSet::new(),
            visitor: None,
            epoch: 0,
            before: 0.0,
            served: 0,
            exploring: VecDeque::new(),
            recent: VecDeque::new(),
        };
        polar.set_adapters(adapters)?;
        polar.begin_exploring();
        Ok(polar)
    }

    /// Takes another list of adapters: what is known of names that stay is kept, indices are those of the new list.
    ///
    /// # Errors
    /// As [`new`](Self::new); nothing is changed then.
    pub fn set_adapters(&mut self, adapters: Vec<Adapter>) -> Result<(), Rejected> {
        for one in &adapters {
            setting("load_ms", one.load_ms, one.load_ms >= 0.0, "zero or more")?;
        }
        let mut arms = Vec::with_capacity(adapters.len());
        let before: Vec<Option<usize>> =
            adapters.iter().map(|a| self.adapters.iter().position(|b| b.name == a.name)).collect();
        for known in &before {
            arms.push(match known {
                Some(index) => self.arms[*index].clone(),
                None => self.arm()?,
            });
        }
        let now = |old: usize| before.iter().position(|known| *known == Some(old));
        self.residents = self.residents.iter().filter_map(|&i| now(i)).collect();
        self.visitor = self.visitor.and_then(now);
        self.exploring = self.exploring.iter().filter_map(|&(i, left)| Some((now(i)?, left))).collect();
        for seen in &mut self.recent {
            seen.among = seen.among.iter().filter_map(|&i| now(i)).collect();
        }
        self.recent.retain(|seen| !seen.among.is_empty());
        if let Epochs::Doubling { .. } = self.settings.epochs {
            // Nothing is known of those that are new: they are tried at once.
            let owed = self.owed(0.0, adapters.len());
            let new = before.iter().enumerate().filter(|(_, known)| known.is_none()).map(|(i, _)| (i, owed));
            if owed > 0 && !self.adapters.is_empty() {
                self.exploring.extend(new);
            }
        }
        (self.adapters, self.arms) = (adapters, arms);
        Ok(())
    }

    /// The adapters, by index.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Those that are kept.
    pub fn residents(&self) -> &BTreeSet<usize> {
        &self.residents
    }

    /// Whether an adapter is in a slot.
    pub fn is_ready(&self, adapter: usize) -> bool {
        self.residents.contains(&adapter) || self.visitor == Some(adapter)
    }

    /// What is expected of an adapter's answer to a context, without the price of loading it.
    pub fn expected(&self, adapter: usize, context: &[f64]) -> Option<f64> {
        let context = self.context(context).ok()?;
        self.arms.get(adapter).map(|arm| arm.mean(&context))
    }

    /// Chooses an adapter for a request among those it allows.
    ///
    /// The one of the largest x·θ + β·√(xᵀA⁻¹x) − η·load where it is not in a slot; ties go to the lower index.
    ///
    /// # Errors
    /// A context that is none, an unknown adapter, an empty list; nothing is counted then.
    pub fn choose(&mut self, context: &[f64], among: &[usize]) -> Result<Choice, Rejected> {
        let (context, moves) = self.begin(context, among)?;
        let explored = self.exploring.iter().position(|(adapter, _)| among.contains(adapter));
        let adapter = match explored {
            Some(at) => self.exploring[at].0,
            None => self.most_promising(&context, among),
        };
        let seen = Seen { context: Some(context), among: among.to_vec() };
        Ok(self.settle(seen, adapter, explored, moves))
    }

    /// Chooses as [`choose`](Self::choose) does where slots are somebody else's to fill, who says which adapters are `ready` and which are
    /// about to be (`coming`). The answer comes from one that is ready, where none is from one that is coming, and else from any. The wish is
    /// what the choice would be with all [`residents`](Self::residents) at hand, exploring included: who fills the slots should heed it.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn choose_placed(
        &mut self,
        context: &[f64],
        among: &[usize],
        ready: impl Fn(usize) -> bool,
        coming: impl Fn(usize) -> bool,
    ) -> Result<Placed, Rejected> {
        let (context, moves) = self.begin(context, among)?;
        let of = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> {
            among.iter().copied().filter(|&i| wanted(i)).collect()
        };
        let at_hand = [of(&ready), of(&coming)].into_iter().find(|some| !some.is_empty());
        let at_hand = at_hand.unwrap_or_else(|| among.to_vec());
        let next = |few: &[usize]| self.exploring.iter().position(|(adapter, _)| few.contains(adapter));
        let explored = next(&at_hand);
        let asked = explored.or_else(|| next(among));
        let adapter = match explored {
            Some(at) => self.exploring[at].0,
            None => self.most_promising_of(&context, &at_hand, |i| !ready(i)),
        };
        let wish = match asked {
            Some(at) => self.exploring[at].0,
            None => self.most_promising(&context, among),
        };
        let seen = Seen { context: Some(context), among: among.to_vec() };
        // It is the wish that would take a slot.
        self.settle(seen, wish, asked, moves);
        Ok(Placed { adapter, wish, exploring: explored.is_some() })
    }

    /// A choice begins: its context, if it and the adapters it allows are good, and what an epoch that ends here moves.
    fn begin(&mut self, context: &[f64], among: &[usize]) -> Result<(DVector<f64>, Moves), Rejected> {
        let context = self.context(context)?;
        if among.is_empty() {
            return Err(Rejected::Nobody);
        }
        for &adapter in among {
            self.known(adapter)?;
        }
        Ok((context, self.end_epoch()))
    }

    /// A choice ends: `adapter` takes a slot; if it was the exploration at `explored`, that is counted.
    fn settle(&mut self, seen: Seen, adapter: usize, explored: Option<usize>, moves: Moves) -> Choice {
        self.saw(seen);
        let choice = self.serve(adapter, explored.is_some(), moves);
        if let Some(at) = explored {
            self.exploring[at].1 -= 1;
            self.exploring.retain(|(_, left)| *left > 0);
        }
        self.end_exploring(choice, explored.is_some())
    }

    /// Slots are another number from now on; residents beyond it go when they are next chosen.
    pub fn set_slots(&mut self, slots: usize) {
        self.settings.slots = slots.max(1);
    }

    /// Forgets all rewards.
    ///
    /// # Errors
    /// None that [`new`](Self::new) has not found.
    pub fn forget(&mut self) -> Result<(), Rejected> {
        let fresh = self.arm()?;
        self.arms.iter_mut().for_each(|arm| arm.clone_from(&fresh));
        (self.epoch, self.before, self.served) = (0, 0.0, 0);
        self.begin_exploring();
        Ok(())
    }

    /// Counts a request that names its adapter.
    ///
    /// # Errors
    /// An unknown adapter.
    pub fn named(&mut self, adapter: usize) -> Result<Choice, Rejected> {
        self.known(adapter)?;
        let moves = self.end_epoch();
        self.saw(Seen { context: None, among: vec![adapter] });
        let choice = self.serve(adapter, false, moves);
        Ok(self.end_exploring(choice, false))
    }

    /// Learns how good an answer was, without what loading cost.
    ///
    /// # Errors
    /// As [`choose`](Self::choose), and a reward that is no figure; nothing is learnt then.
    pub fn reward(&mut self, adapter: usize, context: &[f64], reward: f64) -> Result<(), Rejected> {
        self.known(adapter)?;
        let context = self.context(context)?;
        if !reward.is_finite() {
            return Err(Rejected::Reward(reward));
        }
        self.arms[adapter].learn(&context, reward);
        Ok(())
    }

    fn arm(&self) -> Result<Arm, Rejected> {
        let Settings { dimension, ridge, .. } = self.settings;
        Arm::new(dimension, ridge).ok_or(Rejected::Setting {
            field: "ridge",
            value: ridge,
            wanted: "above zero",
        })
    }

    fn known(&self, index: usize) -> Result<(), Rejected> {
        let count = self.adapters.len();
        if index < count { Ok(()) } else { Err(Rejected::Unknown { index, count }) }
    }

    fn context(&self, figures: &[f64]) -> Result<DVector<f64>, Rejected> {
        let dimension = self.settings.dimension;
        let problem = if figures.len() != dimension {
            format!("{} figures", figures.len())
        } else if let Some(at) = figures.iter().position(|f| !f.is_finite()) {
            format!("figure {at} is {}", figures[at])
        } else {
            return Ok(DVector::from_column_slice(figures));
        };
        Err(Rejected::Context { problem, dimension })
    }

    fn load_price(&self, adapter: usize) -> f64 {
        self.settings.price_per_ms * self.adapters[adapter].load_ms
    }

    fn most_promising(&self, context: &DVector<f64>, among: &[usize]) -> usize {
        self.most_promising_of(context, among, |adapter| !self.is_ready(adapter))
    }

    fn most_promising_of(
        &self,
        context: &DVector<f64>,
        among: &[usize],
        needs_load: impl Fn(usize) -> bool,
    ) -> usize {
        let mut best = (f64::NEG_INFINITY, usize::MAX);
        for &adapter in among {
            let arm = &self.arms[adapter];
            let load = if needs_load(adapter) { self.load_price(adapter) } else { 0.0 };
            let worth = arm.mean(context) + self.settings.width * arm.deviation(context) - load;
            if worth > best.0 || (worth == best.0 && adapter < best.1) {
                best = (worth, adapter);
            }
        }
        best.1
    }

    fn saw(&mut self, seen: Seen) {
        self.recent.push_back(seen);
        if self.recent.len() > self.settings.window {
            self.recent.pop_front();
        }
        self.served += 1;
    }

    fn kept_slots(&self) -> usize {
        self.settings.slots.saturating_sub(1)
    }

    fn serve(&mut self, adapter: usize, exploring: bool, moves: Moves) -> Choice {
        let ready = self.is_ready(adapter);
        if !ready {
            // What would stand empty is as well kept.
            if self.residents.len() < self.kept_slots() {
                self.residents.insert(adapter);
            } else {
                self.visitor = Some(adapter);
            }
        }
        Choice { adapter, ready, exploring, moves }
    }

    fn end_epoch(&mut self) -> Moves {
        if self.served < self.settings.epochs.length(self.epoch) {
            return Moves::default();
        }
        self.epoch = self.epoch.saturating_add(1);
        self.before += self.served as f64;
        self.served = 0;
        if let Epochs::Doubling { keep, .. } = self.settings.epochs {
            self.arms.iter_mut().for_each(|arm| arm.fade(keep));
        }
        self.begin_exploring();
        if self.exploring.is_empty() { self.reside() } else { Moves::default() }
    }

    /// How many more answers an adapter of which `seen` are known owes in this epoch.
    fn owed(&self, seen: f64, adapters: usize) -> usize {
        let Epochs::Doubling { exploration, .. } = self.settings.epochs else { return 0 };
        let length = self.settings.epochs.length(self.epoch) as f64;
        let (each, adapters) = (length / adapters.max(1) as f64, adapters.max(1) as f64);
        let wanted =
            exploration * self.settings.dimension as f64 * ((self.before + length) / adapters).sqrt();
        (wanted - seen).ceil().clamp(0.0, (each / 2.0).floor()) as usize
    }

    /// Residents first, which need no load.
    fn begin_exploring(&mut self) {
        let count = self.adapters.len();
        let others = (0..count).filter(|i| !self.is_ready(*i));
        let ready = (0..count).filter(|i| self.is_ready(*i));
        self.exploring = ready
            .chain(others)
            .map(|adapter| (adapter, self.owed(self.arms[adapter].seen(), count)))
            .filter(|(_, owed)| *owed > 0)
            .collect();
    }

    /// With the last request answered for learning's sake, and in the middle of the epoch at the latest (adapters whose turn it is may not
    /// be asked for), residents are chosen by what was learnt.
    fn end_exploring(&mut self, mut choice: Choice, was: bool) -> Choice {
        let late = self.served >= self.settings.epochs.length(self.epoch) / 2;
        if (was && self.exploring.is_empty()) || (late && !self.exploring.is_empty()) {
            self.exploring.clear();
            choice.moves = self.reside();
        }
        choice
    }

    /// Chooses residents for the requests seen last, as often as they will come in this epoch.
    fn reside(&mut self) -> Moves {
        let length = self.settings.epochs.length(self.epoch) as f64;
        let weight = length / self.recent.len().max(1) as f64;
        let demand: Vec<Demand> = self
            .recent
            .iter()
            .map(|seen| {
                let worth = |&i: &usize| (i, seen.context.as_ref().map_or(0.0, |x| self.arms[i].mean(x)));
                Demand { weight, choices: seen.among.iter().map(worth).collect() }
            })
            .collect();
        let load_price: Vec<f64> = (0..self.adapters.len()).map(|i| self.load_price(i)).collect();
        let slots = self.kept_slots();
        // A visitor is loaded already: as a resident it costs nothing.
        let loaded: BTreeSet<usize> = self.residents.iter().copied().chain(self.visitor).collect();
        let chosen = residents::best(&demand, &load_price, slots, &loaded);
        let load = chosen.difference(&loaded).copied().collect();
        let unload = self.residents.difference(&chosen).copied().collect();
        self.visitor = self.visitor.filter(|visitor| !chosen.contains(visitor));
        self.residents = chosen;
        Moves { load, unload }
    }
}

fn setting(field: &'static str, value: f64, holds: bool, wanted: &'static str) -> Result<(), Rejected> {
    if value.is_finite() && holds { Ok(()) } else { Err(Rejected::Setting { field, value, wanted }) }
}

fn checked(settings: Settings) -> Result<Settings, Rejected> {
    setting("slots", settings.slots as f64, settings.slots > 0, "one or more")?;
    setting("dimension", settings.dimension as f64, settings.dimension > 0, "one or more")?;
    setting("window", settings.window as f64, settings.window > 0, "one or more")?;
    setting("ridge", settings.ridge, settings.ridge > 0.0, "above zero")?;
    setting("width", settings.width, settings.width >= 0.0, "zero or more")?;
    setting("price_per_ms", settings.price_per_ms, settings.price_per_ms >= 0.0, "zero or more")?;
    if let Epochs::Doubling { exploration, keep, .. } = settings.epochs {
        setting("exploration", exploration, exploration >= 0.0, "zero or more")?;
        setting("keep", keep, (0.0..=1.0).contains(&keep), "between 0 and 1")?;
    }
    Ok(settings)
}

#[cfg(test)]
mod tests;
