//! Which replica holds which LoRA adapters.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::{Adapter, AdapterFiles, AdapterRoute, ClusterSnapshot, ReplicaId, Role, RouteTable};

use crate::plan::adapter_slots;

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

/// Puts adapters on replicas with `slots` each.
///
/// `wanted` are names and rates (requests per second; what is not above zero counts as unknown); `pinned` go on every replica;
/// `before` is what each replica was to hold. Each adapter gets a copy, the most wanted first, and then further ones by its rate; what is placed stays
/// unless another is a quarter more wanted; copies go where the least of that rate is. Deterministic; O((n + k) log n) for `n` adapters and `k` slots in all,
/// times the replicas for each copy that moves.
pub fn place(
    wanted: &[(&str, f64)],
    pinned: &BTreeSet<&str>,
    before: &BTreeMap<ReplicaId, BTreeSet<String>>,
    slots: usize,
) -> BTreeMap<ReplicaId, BTreeSet<String>> {
    let mut replicas: Vec<Replica<'_>> =
        before.iter().map(|(id, held)| Replica { id, held, load: 0.0, names: BTreeSet::new() }).collect();
    let rate = |rps: f64| if rps.is_finite() && rps > 0.0 { rps } else { UNKNOWN_RPS };
    let mut rates: BTreeMap<&str, f64> = BTreeMap::new();
    for &(name, rps) in wanted {
        rates.insert(name, rate(rps));
    }
    let (pins, others): (Vec<_>, Vec<_>) = rates.into_iter().partition(|(name, _)| pinned.contains(name));
    for (name, rps) in most_wanted_first(pins) {
        let share = rps / replicas.len().max(1) as f64;
        replicas.iter_mut().filter(|r| r.names.len() < slots).for_each(|r| r.take(name, share));
    }
    let free: usize = replicas.iter().map(|r| slots - r.names.len()).sum();
    let others = most_wanted_first(others);
    let copies = copies(&others, &replicas, free);
    for kept in [true, false] {
        for &(name, rps) in &others {
            let count = copies.get(name).copied().unwrap_or(0);
            let share = rps / count.max(1) as f64;
            for _ in replicas.iter().filter(|r| r.names.contains(name)).count()..count {
                let fits = |r: &&mut Replica<'_>| {
                    r.names.len() < slots && !r.names.contains(name) && (!kept || r.held.contains(name))
                };
                let least = replicas.iter_mut().filter(fits).min_by(|a, b| a.load.total_cmp(&b.load));
                let Some(replica) = least else { break };
                replica.take(name, share);
            }
        }
    }
    replicas.into_iter().map(|r| (r.id.clone(), r.names.into_iter().map(str::to_owned).collect())).collect()
}

struct Replica<'a> {
    id: &'a ReplicaId,
    held: &'a BTreeSet<String>,
    /// Rate of its adapters, requests per second.
    load: f64,
    names: BTreeSet<&'a str>,
}

impl<'a> Replica<'a> {
    fn take(&mut self, name: &'a str, share: f64) {
        self.load += share;
        self.names.insert(name);
    }
}

fn most_wanted_first(mut adapters: Vec<(&str, f64)>) -> Vec<(&str, f64)> {
    adapters.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    adapters
}

/// How many replicas hold each adapter, `free` in all.
fn copies<'a>(
    adapters: &[(&'a str, f64)],
    replicas: &[Replica<'_>],
    free: usize,
) -> BTreeMap<&'a str, usize> {
    let total: f64 = adapters.iter().map(|(_, rps)| rps).sum();
    let most = MOST_OF_ONE * total / replicas.len().max(1) as f64;
    let held = |name: &str| replicas.iter().filter(|r| r.held.contains(name)).count();
    // What the copy after so many others is worth; first copies come first, so that none starves for another's comfort.
    let worth = |rps: f64, copy: usize, held: usize| {
        let needed = (rps - copy as f64 * most).max(0.0) + SPARE * rps / (copy as f64 + 1.0);
        if copy < held { needed * WORTH_A_CHANGE } else { needed }
    };
    let mut next: std::collections::BinaryHeap<Copy<'a>> = adapters
        .iter()
        .enumerate()
        .map(|(order, &(name, rps))| {
            let held = held(name);
            Copy { worth: worth(rps, 0, held), order, name, rps, held, copies: 0 }
        })
        .collect();
    let mut copies = BTreeMap::new();
    for _ in 0..free {
        let Some(top) = next.pop() else { break };
        let count = top.copies + 1;
        copies.insert(top.name, count);
        if count < replicas.len() {
            next.push(Copy { worth: worth(top.rps, count, top.held), copies: count, ..top });
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

/// What requests ask for, forgotten by half in [`HALF_SECONDS`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// By served name: requests, as far as they still count, and when that was, virtual seconds.
    asked: BTreeMap<String, (f64, f64)>,
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
}

fn kept(seconds: f64) -> f64 {
    0.5f64.powf(seconds.max(0.0) / HALF_SECONDS)
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
        let holders: BTreeMap<ReplicaId, BTreeSet<String>> = pool
            .endpoints
            .iter()
            .filter(|e| !e.draining && e.role == Role::Mixed && e.engine.loads_adapters())
            .map(|e| (e.replica.clone(), placed_before(&e.replica)))
            .collect();
        let wanted: Vec<(&str, f64)> = of_pool
            .iter()
            .map(|a| (a.served_name.as_str(), rates.get(&a.served_name).copied().unwrap_or(0.0)))
            .collect();
        let pinned = of_pool.iter().filter(|a| a.pinned).map(|a| a.served_name.as_str()).collect();
        let placed = place(&wanted, &pinned, &holders, adapter_slots(of_pool.len()));
        let among = |of: &BTreeMap<ReplicaId, BTreeSet<String>>, name: &str| -> Vec<ReplicaId> {
            of.iter().filter(|(_, names)| names.contains(name)).map(|(id, _)| id.clone()).collect()
        };
        let base = snapshot.pools.iter().find(|p| p.id == pool.pool).map(|p| &p.architecture);
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
                files: AdapterFiles {
                    rank: a.rank,
                    sha256: a.sha256.clone().unwrap_or_default(),
                    hidden: base.map_or(0, |base| base.hidden),
                    layers: base.map_or(0, |base| base.layers),
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

    fn put(wanted: &[(&str, f64)], before: &Placed, slots: usize) -> Placed {
        place(wanted, &BTreeSet::new(), before, slots)
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
    fn pinned_ones_are_everywhere_whoever_else_is_wanted() {
        let wanted = [("a", 9.0), ("b", 8.0), ("rare", 0.0)];
        let placed = place(&wanted, &BTreeSet::from(["rare"]), &empty(2), 2);
        assert_eq!((copies(&placed, "rare"), copies(&placed, "a"), copies(&placed, "b")), (2, 1, 1));
    }

    #[test]
    fn rates_are_as_expected_until_seen_and_forget() {
        let adapter = |name: &str| Adapter {
            namespace: "default".into(),
            name: name.into(),
            served_name: name.into(),
            base_pool: "default/chat".parse().unwrap(),
            source: "hf://acme/x".into(),
            sha256: None,
            rank: 8,
            size_bytes: None,
            expected_rps: 7.0,
            pinned: false,
        };
        let snapshot =
            ClusterSnapshot { adapters: vec![adapter("a"), adapter("b")], ..ClusterSnapshot::default() };
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
            slots in 0usize..6,
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
            prop_assert!(placed.values().all(|held| held.len() <= slots));
            let all: usize = placed.values().map(BTreeSet::len).sum();
            let distinct: BTreeSet<&String> = placed.values().flatten().collect();
            // Every adapter once before the slots run out; a last copy may find only replicas that have it already.
            prop_assert!(distinct.len() + replicas >= wanted.len().min(replicas * slots));
            prop_assert!(all + replicas * slots.min(1) * 5 >= (replicas * slots).min(wanted.len() * replicas));
            prop_assert_eq!(placed, put(&wanted, &before, slots));
        }
    }
}
