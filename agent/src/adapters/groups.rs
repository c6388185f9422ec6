//! Choosing among the adapters of a group, and what answers taught: the state of one gateway.
//!
//! Slots are the plan's to fill. A choice therefore falls on an adapter that an engine holds, while what the rule would rather have chosen is
//! told to the scheduler as demand for that adapter: placement follows.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::polar::{Adapter, Epochs, Polar, Rejected, Settings};

/// Choices that are remembered until they are judged. One takes about 400 bytes.
pub const MOST_PENDING: usize = 16_384;
/// And for how long, model ms.
pub const PENDING_MS: f64 = 3_600_000.0;
/// Requests that residents are chosen for, times the members of a group: what the end of an epoch, on the way of one request, may look at.
const MOST_LOOKED_AT: usize = 10_000;

/// An adapter of a group, as the routes have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member<'a> {
    /// Its served name.
    pub name: &'a str,
    /// How long a load takes, ms.
    pub load_ms: f64,
    /// Some replica is to hold it.
    pub placed: bool,
    /// A replica that may be used holds it.
    pub ready: bool,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Names the choice.
    pub ticket: u64,
    /// The adapter that answers.
    pub adapter: Arc<str>,
    /// The one that would, were all at hand that the group should hold: demand is for this one.
    pub wish: Arc<str>,
    /// Why.
    pub why: Why,
}

/// Why an adapter was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Most is expected of it.
    Expected,
    /// To learn of it.
    Exploring,
    /// Most is expected of it among those at hand; another was wished for.
    AtHand,
    /// None is at hand: it is to be loaded.
    Loading,
}

impl Why {
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Exploring => "exploring",
            Self::AtHand => "at_hand",
            Self::Loading => "loading",
        }
    }
}

/// An answer that was judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The adapter that gave it.
    pub adapter: Arc<str>,
    /// Its group.
    pub group: Arc<str>,
}

/// Why an answer cannot be judged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unjudged {
    /// Nobody remembers it.
    #[error("id: no answer of this name is remembered")]
    Unknown,
    /// It was judged before.
    #[error("id: this answer was judged before; each is judged once")]
    Again,
    /// A reward that is none.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    polar: Polar,
    names: Vec<Arc<str>>,
    /// Somebody judges its answers: how they met their objectives teaches no more.
    judged: bool,
}

#[derive(Debug)]
struct Pending {
    group: Arc<str>,
    adapter: Arc<str>,
    context: Box<[f64]>,
    /// Hashes of the names that the answer goes by.
    ids: Vec<u64>,
    chosen_ms: f64,
    judged: bool,
}

/// All groups of a gateway.
#[derive(Debug, Default)]
pub struct Groups {
    groups: BTreeMap<String, Group>,
    tickets: u64,
    pending: HashMap<u64, Pending>,
    by_id: HashMap<u64, u64>,
    /// In order of choice; all of `pending`.
    order: VecDeque<u64>,
}

fn settings(dimension: usize, price_per_ms: f64, slots: usize, members: usize) -> Settings {
    // As measured by `make bench-lora`.
    Settings {
        slots,
        dimension,
        ridge: 1.0,
        width: 0.5,
        price_per_ms,
        epochs: Epochs::Doubling { first: 200, longest: 1_000, exploration: 0.1, keep: 1.0 },
        window: (MOST_LOOKED_AT / members.max(1)).clamp(50, 500),
    }
}

impl Groups {
    /// Chooses one of a group's members for a request. `price_per_ms` is what a millisecond of loading costs against rewards of 0..=1;
    /// it is heeded when the group is first seen. O(n·d²), and at the end of an epoch as [`Polar`] says.
    ///
    /// # Errors
    /// No member, a context of another length than before or with figures that are none.
    pub fn choose(
        &mut self,
        group: &str,
        members: &[Member<'_>],
        context: &[f64],
        price_per_ms: f64,
        now_ms: f64,
    ) -> Result<Chosen, Rejected> {
        self.expire(now_ms);
        let slots = members.iter().filter(|m| m.placed).count().max(1) + 1;
        let state = match self.groups.get_mut(group) {
            Some(state) => state,
            None => {
                let polar = Polar::new(
                    settings(context.len(), price_per_ms, slots, members.len()),
                    adapters(members),
                )?;
                let names = members.iter().map(|m| m.name.into()).collect();
                let new = Group { name: group.into(), polar, names, judged: false };
                self.groups.entry(group.to_owned()).or_insert(new)
            }
        };
        state.follow(members, slots)?;
        let among: Vec<usize> = (0..members.len()).collect();
        let choice =
            state.polar.choose_placed(context, &among, |i| members[i].ready, |i| members[i].placed)?;
        let why = match (members[choice.adapter].ready, choice.exploring) {
            (false, _) => Why::Loading,
            (true, true) => Why::Exploring,
            (true, false) if choice.adapter == choice.wish => Why::Expected,
            (true, false) => Why::AtHand,
        };
        let (adapter, wish) = (state.names[choice.adapter].clone(), state.names[choice.wish].clone());
        self.tickets += 1;
        let (ticket, group) = (self.tickets, state.name.clone());
        let pending = Pending {
            group,
            adapter: adapter.clone(),
            context: context.into(),
            ids: Vec::new(),
            chosen_ms: now_ms,
            judged: false,
        };
        self.pending.insert(ticket, pending);
        self.order.push_back(ticket);
        if self.order.len() > MOST_PENDING {
            self.forget_oldest();
        }
        Ok(Chosen { ticket, adapter, wish, why })
    }

    /// The answer to a choice also goes by this name. A name given twice is the later one's.
    pub fn named(&mut self, ticket: u64, id: &str) {
        let hash = xxh3_64(id.as_bytes());
        if let Some(pending) = self.pending.get_mut(&ticket)
            && !pending.ids.contains(&hash)
        {
            pending.ids.push(hash);
            self.by_id.insert(hash, ticket);
        }
    }

    /// An answer is over, and met its objectives so well (0..=1). It teaches that unless somebody judges the group's answers; whether it did.
    pub fn ended(&mut self, ticket: u64, attained: f64) -> bool {
        let Some(pending) = self.pending.get(&ticket) else { return false };
        let Some(group) = self.groups.get_mut(&*pending.group) else { return false };
        !group.judged && group.learn(&pending.adapter, &pending.context, attained).is_ok()
    }

    /// Somebody judges an answer. With a group's first judgement all is forgotten that its answers taught before: that was on another scale.
    ///
    /// # Errors
    /// As [`Unjudged`] has them; nothing is learnt then.
    pub fn judge(&mut self, id: &str, reward: f64, now_ms: f64) -> Result<Judged, Unjudged> {
        self.expire(now_ms);
        let ticket = self.by_id.get(&xxh3_64(id.as_bytes())).ok_or(Unjudged::Unknown)?;
        let pending = self.pending.get_mut(ticket).ok_or(Unjudged::Unknown)?;
        if pending.judged {
            return Err(Unjudged::Again);
        }
        if !reward.is_finite() {
            return Err(Rejected::Reward(reward).into());
        }
        let group = self.groups.get_mut(&*pending.group).ok_or(Unjudged::Unknown)?;
        if !std::mem::replace(&mut group.judged, true) {
            group.polar.forget()?;
        }
        // An adapter that has left its group since has nothing to learn.
        if group.names.contains(&pending.adapter) {
            group.learn(&pending.adapter, &pending.context, reward)?;
        }
        pending.judged = true;
        Ok(Judged { adapter: pending.adapter.clone(), group: pending.group.clone() })
    }

    /// What is expected of each member's answer to a context, by name; empty where the group is not known.
    pub fn expected(&self, group: &str, context: &[f64]) -> Vec<(&str, f64)> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        let all = group.names.iter().enumerate();
        all.filter_map(|(i, name)| Some((&**name, group.polar.expected(i, context)?))).collect()
    }

    /// Forgets groups that are gone.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.groups.retain(|name, _| known(name));
    }

    /// Choices that may still be judged.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn expire(&mut self, now_ms: f64) {
        let old = |ticket: &u64| self.pending.get(ticket).is_none_or(|p| now_ms - p.chosen_ms > PENDING_MS);
        let count = self.order.iter().take_while(|ticket| old(ticket)).count();
        (0..count).for_each(|_| self.forget_oldest());
    }

    fn forget_oldest(&mut self) {
        let Some(ticket) = self.order.pop_front() else { return };
        for id in self.pending.remove(&ticket).map(|p| p.ids).unwrap_or_default() {
            if self.by_id.get(&id) == Some(&ticket) {
                self.by_id.remove(&id);
            }
        }
    }
}

fn adapters(members: &[Member<'_>]) -> Vec<Adapter> {
    members.iter().map(|m| Adapter { name: m.name.to_owned(), load_ms: m.load_ms() }).collect()
}

impl Member<'_> {
    fn load_ms(&self) -> f64 {
        if self.load_ms.is_finite() { self.load_ms.max(0.0) } else { 0.0 }
    }
}

impl Group {
    /// Takes over who belongs to it now.
    fn follow(&mut self, members: &[Member<'_>], slots: usize) -> Result<(), Rejected> {
        let known = self.polar.adapters();
        let same = known.len() == members.len()
            && known.iter().zip(members).all(|(a, m)| a.name == m.name && a.load_ms == m.load_ms());
        if !same {
            self.polar.set_adapters(adapters(members))?;
            self.names = members.iter().map(|m| m.name.into()).collect();
        }
        self.polar.set_slots(slots);
        Ok(())
    }

    fn learn(&mut self, adapter: &str, context: &[f64], reward: f64) -> Result<(), Rejected> {
        let count = self.names.len();
        let index = self.names.iter().position(|name| **name == *adapter);
        let index = index.ok_or(Rejected::Unknown { index: count, count })?;
        self.polar.reward(index, context, reward)
    }
}

#[cfg(test)]
mod tests;
