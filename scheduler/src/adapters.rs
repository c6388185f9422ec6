//! Which replica holds which LoRA adapters.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_engine::{LoraTargets, adapter_parameters};
use plimsoll_fleet::{
    Adapter, AdapterFiles, AdapterRoom, AdapterRoute, ClusterSnapshot, ModelArchitecture, PoolId, ReplicaId,
    Role, RouteTable,
};
use serde::{Deserialize, Serialize};

/// Share of what a replica gets of its pool's adapter requests that one adapter may make up before it gets a further copy: half,
/// so that no replica is one adapter's alone.
const MOST_OF_ONE: f64 = 0.5;
/// How much more wanted an adapter must be than one that is placed already to take its slot: a load has its price.
const WORTH_A_CHANGE: f64 = 1.25;
/// Rate of adapters of which none is known, requests per second.
const UNKNOWN_RPS: f64 = 1e-3;
/// What a copy beyond those needed is worth against one that is: slots do not stay empty, and a replica that goes takes no adapter
/// with it.
const SPARE: f64 = 1e-3;

/// Weight of a load's time against the rate when slots are short: rate × time^this. At 1 the mean wait for loads is least, at 0 loads are fewest.
const DEARNESS: f64 = 0.75;

/// An adapter to be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted<'a> {
    /// The model name in requests.
    pub name: &'a str,
    /// Requests per second; what is not above zero counts as unknown.
    pub rps: f64,
    /// How long a load takes, ms; what is not above zero counts as unknown.
    pub load_ms: f64,
    /// LoRA rank.
    pub rank: u32,
    /// It goes on every replica.
    pub pinned: bool,
}

/// A replica that adapters can be put on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holder {
    /// What it was to hold.
    pub before: BTreeSet<String>,
    /// What its engine has room for.
    pub room: AdapterRoom,
}

/// Puts adapters on replicas, as many on each as its engine has room for.
///
/// Pinned ones go on every replica. Each other adapter gets a copy, the most wanted first (rate × load time^0.75), and then further ones by its
/// rate; what is placed stays unless another is a quarter more wanted; copies go where the least of that rate is. Deterministic;
/// O((n + k) log n) for `n` adapters and `k` slots in all, times the replicas for each copy that moves.
pub fn place(
    wanted: &[Wanted<'_>],
    holders: &BTreeMap<ReplicaId, Holder>,
) -> BTreeMap<ReplicaId, BTreeSet<String>> {
    let mut replicas: Vec<Replica<'_>> = holders
        .iter()
        .map(|(id, holder)| Replica { id, holder, load: 0.0, names: BTreeSet::new() })
        .collect();
    let rate = |rps: f64| if rps.is_finite() && rps > 0.0 { rps } else { UNKNOWN_RPS };
    let known: BTreeMap<&str, Wanted<'_>> =
        wanted.iter().map(|w| (w.name, Wanted { rps: rate(w.rps), ..*w })).collect();
    let dear = dearness(wanted);
    let (pins, others): (Vec<_>, Vec<_>) = known.into_values().partition(|w| w.pinned);
    for pin in most_wanted_first(pins) {
        let share = pin.rps / replicas.len().max(1) as f64;
        replicas.iter_mut().filter(|r| r.may_take(&pin)).for_each(|r| r.take(pin.name, share));
    }
    let others = most_wanted_first(others);
    let copies = copies(&others, &dear, &replicas);
    for kept in [true, false] {
        for adapter in &others {
            let count = copies.get(adapter.name).copied().unwrap_or(0);
            let share = adapter.rps / count.max(1) as f64;
            for _ in replicas.iter().filter(|r| r.names.contains(adapter.name)).count()..count {
                let fits = |r: &&mut Replica<'_>| {
                    r.may_take(adapter) && (!kept || r.holder.before.contains(adapter.name))
                };
                let least = replicas.iter_mut().filter(fits).min_by(|a, b| a.load.total_cmp(&b.load));
                let Some(replica) = least else { break };
                replica.take(adapter.name, share);
            }
        }
    }
    replicas.into_iter().map(|r| (r.id.clone(), r.names.into_iter().map(str::to_owned).collect())).collect()
}

struct Replica<'a> {
    id: &'a ReplicaId,
    holder: &'a Holder,
    /// Rate of its adapters, requests per second.
    load: f64,
    names: BTreeSet<&'a str>,
}

impl<'a> Replica<'a> {
    fn free(&self) -> usize {
        (self.holder.room.slots as usize).saturating_sub(self.names.len())
    }

    fn may_take(&self, adapter: &Wanted<'_>) -> bool {
        self.free() > 0 && self.holder.room.fits(adapter.rank) && !self.names.contains(adapter.name)
    }

    fn take(&mut self, name: &'a str, share: f64) {
        self.load += share;
        self.names.insert(name);
    }
}

fn most_wanted_first(mut adapters: Vec<Wanted<'_>>) -> Vec<Wanted<'_>> {
    adapters.sort_by(|a, b| b.rps.total_cmp(&a.rps).then(a.name.cmp(b.name)));
    adapters
}

/// How much dearer than the mean of those that are known it is to load each adapter, to the power [`DEARNESS`]. Of one that is not known no
/// more is said than of the others' mean.
fn dearness<'a>(wanted: &[Wanted<'a>]) -> BTreeMap<&'a str, f64> {
    let known = |one: &&Wanted<'_>| one.load_ms.is_finite() && one.load_ms > 0.0;
    let (sum, count) = wanted.iter().filter(known).fold((0.0, 0.0), |(s, n), one| (s + one.load_ms, n + 1.0));
    let mean_ms = sum / f64::max(count, 1.0);
    let dear = |one: &Wanted<'a>| if known(&one) { (one.load_ms / mean_ms).powf(DEARNESS) } else { 1.0 };
    wanted.iter().map(|one| (one.name, dear(one))).collect()
}

/// How many replicas hold each adapter: as many in all as there are free slots.
fn copies<'a>(
    adapters: &[Wanted<'a>],
    dear: &BTreeMap<&str, f64>,
    replicas: &[Replica<'_>],
) -> BTreeMap<&'a str, usize> {
    let free = replicas.iter().map(Replica::free).sum();
    let total: f64 = adapters.iter().map(|a| a.rps).sum();
    let most = MOST_OF_ONE * total / replicas.len().max(1) as f64;
    let mut ranks: Vec<u32> =
        replicas.iter().filter(|r| r.free() > 0).map(|r| r.holder.room.max_rank).collect();
    ranks.sort_unstable();
    let with_room_for = |rank: u32| ranks.len() - ranks.partition_point(|r| *r < rank);
    let held = |name: &str| replicas.iter().filter(|r| r.holder.before.contains(name)).count();
    // What the copy after so many others is worth; first copies come first, so that none starves for another's comfort.
    let worth = |rps: f64, dear: f64, copy: usize, held: usize| {
        let needed = (rps - copy as f64 * most).max(0.0) + SPARE * rps / (copy as f64 + 1.0);
        // Where it has a copy it needs no load: how long that takes speaks for the first alone.
        let needed = if copy == 0 { needed * dear } else { needed };
        if copy < held { needed * WORTH_A_CHANGE } else { needed }
    };
    let mut next: std::collections::BinaryHeap<Copy<'a>> = adapters
        .iter()
        .enumerate()
        .map(|(order, adapter)| (order, adapter, with_room_for(adapter.rank)))
        .filter(|(_, _, most_copies)| *most_copies > 0)
        .map(|(order, &Wanted { name, rps, .. }, most_copies)| {
            let (held, dear) = (held(name), dear.get(name).copied().unwrap_or(1.0));
            Copy { worth: worth(rps, dear, 0, held), order, name, rps, held, copies: 0, most_copies }
        })
        .collect();
    let mut copies = BTreeMap::new();
    for _ in 0..free {
        let Some(top) = next.pop() else { break };
        let count = top.copies + 1;
        copies.insert(top.name, count);
        if count < top.most_copies {
            next.push(Copy { worth: worth(top.rps, 1.0, count, top.held), copies: count, ..top });
        }
    }
    copies
}

#[derive(Clone, Copy)]
struct Copy<'a> {
    worth: f64,
    order: usize,
    name: &'a str,
    rps: f64,
    held: usize,
    copies: usize,
    /// Replicas with room for one of its rank.
    most_copies: usize,
}

impl Ord for Copy<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let first = |copy: &Self| copy.copies == 0;
        first(self)
            .cmp(&first(other))
            .then(self.worth.total_cmp(&other.worth))
            .then_with(|| other.order.cmp(&self.order))
    }
}

impl PartialOrd for Copy<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Copy<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Copy<'_> {}

/// Rate from which on an adapter is worth a slot that is kept for it, requests per second: one a minute.
pub const HOT_RPS: f64 = 1.0 / 60.0;
/// Share of [`HOT_RPS`] below which a rate counts as none.
const LEAST_SHARE: f64 = 0.25;

/// What a pool's adapters ask of its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needed {
    /// Adapters of which every replica holds a copy.
    pub pinned: u32,
    /// Others that are asked for at least once a minute: each has a slot on one replica at least.
    pub hot: u32,
    /// Slots of one replica.
    pub slots: u32,
    /// Fewest replicas that serve requests whole. `None`: the pinned ones leave no slot to the others, however many there are.
    pub replicas: Option<u32>,
}

/// The replicas that a pool's adapters need, each with room for `slots`: ⌈hot / (slots − pinned)⌉, so that what is pinned is everywhere and what
/// is hot somewhere. Adapters that are seldom asked for share what room is left, and visit in one slot of each replica, kept for that, where there is none.
pub fn needed<'a>(adapters: impl IntoIterator<Item = &'a Adapter>, room: AdapterRoom) -> Needed {
    let (mut pinned, mut hot, mut all) = (0_u32, 0_u32, 0_u32);
    for adapter in adapters.into_iter().filter(|a| room.fits(a.rank)) {
        all += 1;
        if adapter.pinned {
            pinned += 1;
        } else if is_hot(adapter) {
            hot += 1;
        }
    }
    let free = room.slots.saturating_sub(pinned);
    let replicas = match (hot, free) {
        (0, _) => Some(pinned.min(1)),
        (_, 0) => None,
        (hot, free) => {
            let replicas = hot.div_ceil(free);
            // Where not all have a place, one slot of each replica is left for visitors.
            let visited = all > room.slots.saturating_mul(replicas) && free > 1;
            Some(if visited { hot.div_ceil(free - 1) } else { replicas })
        }
    };
    Needed { pinned, hot, slots: room.slots, replicas }
}

fn is_hot(adapter: &Adapter) -> bool {
    adapter.planned_rps() >= HOT_RPS
}

/// A pool whose adapters want other room than before, as a reason for a new plan.
pub fn material_change(old: &ClusterSnapshot, new: &ClusterSnapshot) -> Option<String> {
    let hot = |s: &ClusterSnapshot| -> BTreeSet<(PoolId, String)> {
        let hot = s.adapters.iter().filter(|a| is_hot(a));
        hot.map(|a| (a.base_pool.clone(), a.served_name.clone())).collect()
    };
    let (old, new) = (hot(old), hot(new));
    let (pool, name) = old.symmetric_difference(&new).next()?;
    let how = if new.contains(&(pool.clone(), name.clone())) {
        "is asked for"
    } else {
        "is hardly asked for any more"
    };
    Some(format!("{pool}: its adapter {name} {how}"))
}

/// What requests ask for, forgotten by half in [`HALF_SECONDS`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// By served name: requests, as far as they still count, and when that was, virtual seconds.
    asked: BTreeMap<String, (f64, f64)>,
    /// By served name: what plans are told, requests per second.
    told: BTreeMap<String, f64>,
}

/// Long enough that a minute's silence moves nothing, short enough that an hour's rush is followed.
const HALF_SECONDS: f64 = 300.0;

impl Rates {
    /// Takes in how many requests asked for which adapter by now. Those that the cluster does not know are left out.
    pub fn observe(&mut self, asked: &[(String, u64)], snapshot: &ClusterSnapshot, now: f64) {
        if asked.is_empty() {
            return;
        }
        let known: BTreeSet<&str> = snapshot.adapters.iter().map(|a| a.served_name.as_str()).collect();
        self.asked.retain(|name, _| known.contains(name.as_str()));
        self.told.retain(|name, _| known.contains(name.as_str()));
        for (name, count) in asked.iter().filter(|(name, _)| known.contains(name.as_str())) {
            let entry = self.asked.entry(name.clone()).or_insert((0.0, now));
            *entry = (entry.0 * kept(now - entry.1) + *count as f64, now);
        }
    }

    /// Each adapter's rate, requests per second: as expected until it was asked for.
    pub fn rates(&self, snapshot: &ClusterSnapshot, now: f64) -> BTreeMap<String, f64> {
        let rate = |adapter: &Adapter| match self.asked.get(&adapter.served_name) {
            Some((count, at)) => count * kept(now - at) * std::f64::consts::LN_2 / HALF_SECONDS,
            None => adapter.expected_rps,
        };
        snapshot.adapters.iter().map(|a| (a.served_name.clone(), rate(a))).collect()
    }

    /// Brings what plans are told up to date: powers of two of [`HOT_RPS`], and another one only where a rate has doubled or halved, so that noise
    /// moves no plan. Whether anything changed.
    pub fn settle(&mut self, now: f64) -> bool {
        let mut changed = false;
        for (name, (count, at)) in &self.asked {
            let rps = count * kept(now - at) * std::f64::consts::LN_2 / HALF_SECONDS;
            let told = self.told.get(name).copied();
            let stands = |told: f64| {
                if told > 0.0 { rps >= told / 2.0 && rps < told * 2.0 } else { rps < LEAST_SHARE * HOT_RPS }
            };
            if !told.is_some_and(stands) {
                let step =
                    if rps >= LEAST_SHARE * HOT_RPS { (rps / HOT_RPS).log2().floor().exp2() } else { 0.0 };
                changed |= told != Some(step * HOT_RPS);
                self.told.insert(name.clone(), step * HOT_RPS);
            }
        }
        changed
    }

    /// Puts what plans are told beside what was expected.
    pub fn apply(&self, snapshot: &mut ClusterSnapshot) {
        for adapter in &mut snapshot.adapters {
            adapter.observed_rps = self.told.get(&adapter.served_name).copied();
        }
    }
}

fn kept(seconds: f64) -> f64 {
    0.5f64.powf(seconds.max(0.0) / HALF_SECONDS)
}

/// Where not all of so many adapters have a place, one slot of each engine is left for those that have none: engines load them there while
/// somebody asks.
fn leave_room_for_visitors(holders: &mut BTreeMap<ReplicaId, Holder>, adapters: usize) {
    let slots: usize = holders.values().map(|h| h.room.slots as usize).sum();
    if adapters > slots {
        for holder in holders.values_mut().filter(|h| h.room.slots > 1) {
            holder.room.slots -= 1;
        }
    }
}

/// How fast weights come from a node's disk into an engine, bytes per millisecond (3 GB/s, one NVMe drive's reads).
const LOAD_BYTES_PER_MS: f64 = 3e6;

/// How long an engine takes to load an adapter, estimated: its bytes, as stated or else those of all linear layers at its rank in 16 bits.
fn load_ms(adapter: &Adapter, architecture: Option<&ModelArchitecture>) -> f64 {
    let parameters =
        |a: &ModelArchitecture| adapter_parameters(a, f64::from(adapter.rank), LoraTargets::default());
    let estimated = || architecture.map(|a| 2.0 * parameters(a));
    let bytes = adapter.size_bytes.or_else(estimated).filter(|b| b.is_finite() && *b > 0.0);
    bytes.unwrap_or(0.0) / LOAD_BYTES_PER_MS
}

/// Adds the adapters of each pool to a table: where they are to be, which stays as in `before` where nothing speaks against it, and where
/// engines say that they are.
pub fn route(
    table: &mut RouteTable,
    snapshot: &ClusterSnapshot,
    rates: &BTreeMap<String, f64>,
    held: &BTreeMap<ReplicaId, BTreeSet<String>>,
    before: Option<&RouteTable>,
) {
    for pool in &mut table.pools {
        let of_pool: Vec<&Adapter> = snapshot.adapters.iter().filter(|a| a.base_pool == pool.pool).collect();
        if of_pool.is_empty() {
            continue;
        }
        let last = before.and_then(|t| t.pools.iter().find(|p| p.pool == pool.pool));
        let placed_before = |id: &ReplicaId| -> BTreeSet<String> {
            let adapters = last.into_iter().flat_map(|p| &p.adapters);
            adapters.filter(|a| a.placed.contains(id)).map(|a| a.served_name.clone()).collect()
        };
        // What an engine was started with is what it can hold; those that do not say are taken to have what they would be given now.
        let said: BTreeMap<&ReplicaId, AdapterRoom> = snapshot
            .replicas
            .iter()
            .filter(|r| r.pool == pool.pool)
            .filter_map(|r| Some((&r.id, r.adapter_room?)))
            .collect();
        let mut holders: BTreeMap<ReplicaId, Holder> = pool
            .endpoints
            .iter()
            .filter(|e| !e.draining && e.role == Role::Mixed && e.engine.loads_adapters())
            .map(|e| {
                let usual = || AdapterRoom::wanted(e.engine, of_pool.iter().copied());
                let room = said.get(&e.replica).copied().unwrap_or_else(usual);
                (e.replica.clone(), Holder { before: placed_before(&e.replica), room })
            })
            .collect();
        leave_room_for_visitors(&mut holders, of_pool.len());
        let architecture = snapshot.pools.iter().find(|p| p.id == pool.pool).map(|p| &p.architecture);
        let wanted: Vec<Wanted<'_>> = of_pool
            .iter()
            .map(|a| Wanted {
                name: a.served_name.as_str(),
                rps: rates.get(&a.served_name).copied().unwrap_or(0.0),
                load_ms: load_ms(a, architecture),
                rank: a.rank,
                pinned: a.pinned,
            })
            .collect();
        let placed = place(&wanted, &holders);
        let among = |of: &BTreeMap<ReplicaId, BTreeSet<String>>, name: &str| -> Vec<ReplicaId> {
            of.iter().filter(|(_, names)| names.contains(name)).map(|(id, _)| id.clone()).collect()
        };
        pool.adapters = of_pool
            .iter()
            .map(|a| AdapterRoute {
                served_name: a.served_name.clone(),
                source: a.source.clone(),
                placed: among(&placed, &a.served_name),
                held: among(held, &a.served_name)
                    .into_iter()
                    .filter(|id| pool.endpoints.iter().any(|e| e.replica == *id))
                    .collect(),
                group: a.group.clone(),
                load_ms: load_ms(a, architecture),
                files: AdapterFiles {
                    rank: a.rank,
                    sha256: a.sha256.clone().unwrap_or_default(),
                    hidden: architecture.map_or(0, |base| base.hidden),
                    layers: architecture.map_or(0, |base| base.layers),
                },
            })
            .collect();
        pool.adapters.sort_by(|a, b| a.served_name.cmp(&b.served_name));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Placed = BTreeMap<ReplicaId, BTreeSet<String>>;

    fn id(number: usize) -> ReplicaId {
        ReplicaId::new(format!("r{number:03}")).unwrap()
    }

    fn empty(replicas: usize) -> Placed {
        (0..replicas).map(|i| (id(i), BTreeSet::new())).collect()
    }

    fn room(slots: u32, max_rank: u32) -> AdapterRoom {
        AdapterRoom { slots, max_rank }
    }

    fn all_wanted<'a>(wanted: &[(&'a str, f64)], pinned: &[&str]) -> Vec<Wanted<'a>> {
        let one = |&(name, rps): &(&'a str, f64)| Wanted {
            name,
            rps,
            load_ms: 27.0,
            rank: 8,
            pinned: pinned.contains(&name),
        };
        wanted.iter().map(one).collect()
    }

    fn holding(before: &Placed, room: AdapterRoom) -> BTreeMap<ReplicaId, Holder> {
        before.iter().map(|(id, names)| (id.clone(), Holder { before: names.clone(), room })).collect()
    }

    fn put(wanted: &[(&str, f64)], before: &Placed, slots: u32) -> Placed {
        place(&all_wanted(wanted, &[]), &holding(before, room(slots, 8)))
    }

    fn adapter(name: &str, rank: u32, expected_rps: f64, pinned: bool) -> Adapter {
        Adapter {
            namespace: "default".into(),
            name: name.into(),
            served_name: name.into(),
            base_pool: "default/chat".parse().unwrap(),
            group: None,
            source: "hf://acme/x".into(),
            sha256: None,
            rank,
            size_bytes: None,
            expected_rps,
            observed_rps: None,
            pinned,
        }
    }

    fn copies(placed: &Placed, name: &str) -> usize {
        placed.values().filter(|names| names.contains(name)).count()
    }

    #[test]
    fn where_there_is_room_for_all_all_are_everywhere() {
        let placed = put(&[("a", 1.0), ("b", 0.0)], &empty(3), 2);
        assert!(placed.values().all(|names| names.len() == 2));
    }

    #[test]
    fn the_most_wanted_get_more_copies_and_the_others_one() {
        // Six slots; "a" is half of all requests.
        let wanted = [("a", 10.0), ("b", 3.0), ("c", 3.0), ("d", 2.0), ("e", 2.0)];
        let placed = put(&wanted, &empty(3), 2);
        assert_eq!(copies(&placed, "a"), 2);
        assert!(["b", "c", "d", "e"].iter().all(|name| copies(&placed, name) == 1));
    }

    #[test]
    fn where_slots_are_short_the_least_wanted_go_without() {
        let wanted = [("a", 1.0), ("b", 5.0), ("c", 3.0)];
        let placed = put(&wanted, &empty(1), 2);
        assert_eq!(placed[&id(0)], BTreeSet::from(["b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn what_is_placed_stays_unless_another_is_a_quarter_more_wanted() {
        let before = put(&[("a", 3.0), ("b", 2.0)], &empty(1), 1);
        assert_eq!(put(&[("a", 3.0), ("b", 3.5)], &before, 1), before);
        assert_eq!(copies(&put(&[("a", 3.0), ("b", 4.0)], &before, 1), "b"), 1);
        // Another order of the same, or one replica more, moves nothing that is.
        let wanted: Vec<(String, f64)> = (0..12).map(|i| (format!("a{i:02}"), 1.0 + f64::from(i))).collect();
        let named: Vec<(&str, f64)> = wanted.iter().map(|(n, r)| (n.as_str(), *r)).collect();
        let before = put(&named, &empty(4), 3);
        let mut grown = before.clone();
        grown.insert(id(9), BTreeSet::new());
        let after = put(&named, &grown, 3);
        let moved: usize = before.iter().map(|(r, names)| names.difference(&after[r]).count()).sum();
        assert_eq!(moved, 0);
        assert_eq!(after[&id(9)].len(), 3);
    }

    #[test]
    fn what_takes_long_to_load_keeps_its_place_against_what_is_asked_for_somewhat_more() {
        let of = |name, rps, load_ms| Wanted { name, rps, load_ms, rank: 8, pinned: false };
        let put = |wanted: &[Wanted<'_>]| place(wanted, &holding(&empty(1), room(1, 8)))[&id(0)].clone();
        assert_eq!(
            put(&[of("large", 3.0, 200.0), of("small", 4.0, 20.0)]),
            BTreeSet::from(["large".to_owned()])
        );
        assert_eq!(
            put(&[of("large", 3.0, 200.0), of("small", 30.0, 20.0)]),
            BTreeSet::from(["small".to_owned()])
        );
        // What is not known counts as the mean of the others.
        assert_eq!(
            put(&[of("large", 3.0, 200.0), of("new", 4.0, f64::NAN)]),
            BTreeSet::from(["new".to_owned()])
        );
    }

    #[test]
    fn pinned_ones_are_everywhere_whoever_else_is_wanted() {
        let wanted = [("a", 9.0), ("b", 8.0), ("rare", 0.0)];
        let placed = place(&all_wanted(&wanted, &["rare"]), &holding(&empty(2), room(2, 8)));
        assert_eq!((copies(&placed, "rare"), copies(&placed, "a"), copies(&placed, "b")), (2, 1, 1));
    }

    #[test]
    fn where_not_all_have_a_place_one_slot_is_left_for_those_without() {
        let slots = |adapters, slots| {
            let mut holders = holding(&empty(2), room(slots, 8));
            leave_room_for_visitors(&mut holders, adapters);
            holders.values().map(|h| h.room.slots).collect::<Vec<_>>()
        };
        assert_eq!(slots(16, 8), [8, 8]);
        assert_eq!(slots(17, 8), [7, 7]);
        assert_eq!(slots(3, 1), [1, 1], "a last slot is no visitor's");
    }

    #[test]
    fn a_load_takes_as_long_as_its_bytes_or_those_of_its_rank() {
        let one = adapter("a", 8, 7.0, false);
        let of_size = Adapter { size_bytes: Some(81e6), ..one.clone() };
        assert!((load_ms(&of_size, None) - 27.0).abs() < 1e-9);
        assert_eq!(load_ms(&one, None), 0.0);
        // 2.52 million parameters a rank in all linear layers, in 16 bits: 5.05 MB.
        let model = plimsoll_fleet::presets::model("qwen2.5-7b").unwrap();
        let estimated = load_ms(&one, Some(&model));
        assert!((13.0..14.0).contains(&estimated), "{estimated}");
    }

    #[test]
    fn rates_are_as_expected_until_seen_and_forget() {
        let snapshot = ClusterSnapshot {
            adapters: vec![adapter("a", 8, 7.0, false), adapter("b", 8, 7.0, false)],
            ..ClusterSnapshot::default()
        };
        let mut rates = Rates::default();
        // Two a second for an hour; somebody asks for what does not exist.
        for second in 0..3600 {
            rates.observe(&[("a".into(), 2), ("none".into(), 9)], &snapshot, f64::from(second));
        }
        let now = rates.rates(&snapshot, 3600.0);
        assert!((now["a"] - 2.0).abs() < 0.02 && now["b"] == 7.0 && now.len() == 2, "{now:?}");
        let later = rates.rates(&snapshot, 3600.0 + HALF_SECONDS);
        assert!((later["a"] - now["a"] / 2.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn no_replica_holds_more_than_it_can_and_no_slot_is_wasted(
            rates in prop::collection::vec(-1.0f64..20.0, 0..30),
            replicas in 0usize..6,
            slots in 0u32..6,
            held in prop::collection::vec(0usize..30, 0..12),
        ) {
            let names: Vec<String> = (0..rates.len()).map(|i| format!("a{i:02}")).collect();
            let wanted: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(rates).collect();
            let mut before = empty(replicas);
            for (i, adapter) in held.into_iter().enumerate() {
                if let Some(names) = before.get_mut(&id(i % replicas.max(1))) {
                    names.insert(format!("a{adapter:02}"));
                }
            }
            let placed = put(&wanted, &before, slots);
            prop_assert_eq!(placed.len(), replicas);
            let slots = slots as usize;
            prop_assert!(placed.values().all(|held| held.len() <= slots));
            let all: usize = placed.values().map(BTreeSet::len).sum();
            let distinct: BTreeSet<&String> = placed.values().flatten().collect();
            // Every adapter once before the slots run out; a last copy may find only replicas that have it already.
            prop_assert!(distinct.len() + replicas >= wanted.len().min(replicas * slots));
            prop_assert!(all + replicas * slots.min(1) * 5 >= (replicas * slots).min(wanted.len() * replicas));
            prop_assert_eq!(placed, put(&wanted, &before, slots as u32));
        }

        #[test]
        fn engines_that_differ_hold_what_they_have_room_for_and_all_adapters_that_fit_somewhere(
            ranks in prop::collection::vec((1u32..65, any::<bool>()), 0..12),
            rooms in prop::collection::vec((0u32..5, prop::sample::select(vec![8u32, 16, 64])), 0..6),
        ) {
            let names: Vec<String> = (0..ranks.len()).map(|i| format!("a{i:02}")).collect();
            let wanted: Vec<Wanted<'_>> = names
                .iter()
                .zip(&ranks)
                .map(|(name, (rank, pinned))| Wanted { name, rps: f64::from(*rank), load_ms: 0.0, rank: *rank, pinned: *pinned })
                .collect();
            let rooms: Vec<AdapterRoom> = rooms.into_iter().map(|(slots, rank)| room(slots, rank)).collect();
            let holder = |room: &AdapterRoom| Holder { room: *room, ..Holder::default() };
            let holders = rooms.iter().enumerate().map(|(i, room)| (id(i), holder(room))).collect();
            let placed = place(&wanted, &holders);
            for (held, room) in placed.values().zip(&rooms) {
                prop_assert!(held.len() <= room.slots as usize);
                let of = |name: &String| wanted.iter().find(|w| w.name == name).unwrap();
                prop_assert!(held.iter().all(|name| room.fits(of(name).rank)));
                // A slot is left only where nothing more goes into it.
                if held.len() < room.slots as usize {
                    let pins = wanted.iter().filter(|w| w.pinned && room.fits(w.rank));
                    prop_assert!(pins.clone().all(|w| held.contains(w.name)), "{held:?}");
                }
            }
        }
    }

    #[test]
    fn replicas_are_as_many_as_the_adapters_that_are_asked_for_need() {
        let of = |hot: usize, pinned: usize, cold: usize, slots: u32| {
            let hot = (0..hot).map(|i| adapter(&format!("h{i}"), 8, 0.5, false));
            let pinned = (0..pinned).map(|i| adapter(&format!("p{i}"), 8, 0.0, true));
            let cold = (0..cold).map(|i| adapter(&format!("c{i}"), 8, 0.001, false));
            let all: Vec<Adapter> = hot.chain(pinned).chain(cold).collect();
            needed(&all, room(slots, 8)).replicas
        };
        assert_eq!(of(0, 0, 50, 8), Some(0), "nobody asks for them");
        assert_eq!((of(8, 0, 0, 8), of(9, 0, 0, 8), of(20, 0, 0, 8)), (Some(1), Some(2), Some(3)));
        assert_eq!(of(8, 0, 50, 8), Some(2), "the others visit in a slot that is kept for them");
        assert_eq!(of(20, 4, 0, 8), Some(5), "every replica holds the four");
        assert_eq!((of(0, 3, 0, 8), of(0, 9, 0, 8)), (Some(1), Some(1)));
        assert_eq!(of(1, 8, 0, 8), None, "no number of replicas makes room for it");
        let too_large = [adapter("a", 9, 1.0, false)];
        assert_eq!(needed(&too_large, room(8, 8)).replicas, Some(0), "no engine could hold it");
    }

    #[test]
    fn plans_are_told_of_rates_that_doubled_or_halved() {
        let mut snapshot =
            ClusterSnapshot { adapters: vec![adapter("a", 8, 0.0, false)], ..ClusterSnapshot::default() };
        let mut rates = Rates::default();
        let mut told = |rates: &mut Rates, now: f64| {
            let changed = rates.settle(now);
            let before = snapshot.clone();
            rates.apply(&mut snapshot);
            (changed, snapshot.adapters[0].observed_rps, material_change(&before, &snapshot))
        };
        assert_eq!(told(&mut rates, 0.0), (false, None, None));
        let known =
            ClusterSnapshot { adapters: vec![adapter("a", 8, 0.0, false)], ..ClusterSnapshot::default() };
        // One every twenty seconds, for an hour.
        for i in 0..180 {
            rates.observe(&[("a".into(), 1)], &known, 20.0 * f64::from(i));
        }
        let (changed, rps, why) = told(&mut rates, 3_600.0);
        assert_eq!((changed, rps), (true, Some(2.0 * HOT_RPS)));
        assert_eq!(why.as_deref(), Some("default/chat: its adapter a is asked for"));
        assert_eq!(told(&mut rates, 3_700.0), (false, rps, None), "a little less");
        let (changed, rps, why) = told(&mut rates, 3_600.0 + 2.1 * HALF_SECONDS);
        assert_eq!((changed, rps), (true, Some(HOT_RPS / 2.0)));
        assert_eq!(why.as_deref(), Some("default/chat: its adapter a is hardly asked for any more"));
        assert_eq!(told(&mut rates, 3_600.0 + 9.0 * HALF_SECONDS).1, Some(0.0));
        let text = serde_json::to_string(&rates).unwrap();
        assert_eq!(serde_json::from_str::<Rates>(&text).unwrap(), rates, "survives a restart");
    }

    #[test]
    fn an_adapter_goes_only_where_the_engine_has_room_for_its_rank() {
        let wanted = [
            Wanted { name: "large", rps: 5.0, load_ms: 0.0, rank: 64, pinned: false },
            Wanted { name: "small", rps: 1.0, load_ms: 0.0, rank: 8, pinned: false },
        ];
        let rooms = [room(0, 0), room(1, 8), room(1, 64)];
        let holders =
            rooms.iter().enumerate().map(|(i, room)| (id(i), Holder { room: *room, ..Holder::default() }));
        let placed = place(&wanted, &holders.collect());
        let names = |i: usize| placed[&id(i)].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((names(0), names(1), names(2)), (vec![], vec!["small"], vec!["large"]));
    }
}
