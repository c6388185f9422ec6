//! The choice of a replica: a pure function of the plan's routes, the request, the load and the router's memory.
//!
//! Among the replicas that the plan's flows allow, the least predicted completion wins: queue wait + prefill of what is
//! not cached + decode. The flows bind between *groups* of equal replicas (equal weight, equal step-time model: what
//! the plan calls a shape); inside a group load and cache decide. A prompt is hashed (rendezvous) past what many prompts
//! share, and its home is taken to hold most of what this router has not sent anywhere itself, so routers that do not
//! talk still agree. In big pools only the holders of the prefix, its hashed home and two random replicas of each group
//! are predicted (power of two choices).
//!
//! Where prefill and decode are apart, a decode replica is ranked with the prefill replica that makes the best pair with it.

mod balance;
mod history;
mod pair;
mod predict;
pub mod residency;

use plimsoll_fleet::{AdapterRoute, Endpoint, PoolRoute, ReplicaId, Role};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

pub use balance::Balance;
pub use history::PrefixHistory;
pub use pair::Partner;
pub use predict::{Availability, Prediction, ReplicaLoad, predict};
use residency::{News, Told};

use crate::hash::QuickMap;

/// Bytes of prompt in one hashed block.
pub const BLOCK_BYTES: usize = 256;

/// Pools with more replicas than this are sampled.
const PREDICT_ALL: usize = 32;

/// Predictions within this factor of the best count as equal, and the hashed home wins.
const EQUAL_WITHIN: f64 = 1.02;

/// Share of an unseen prompt, past what is shared, that its hashed home is taken to hold: by another router's doing.
const HOME_HOLDS: f64 = 0.9;

/// And no more than this, tokens: a long prompt that nobody has seen must not queue for its home's sake.
const HOME_HOLDS_MOST: f64 = 16_384.0;

/// Prompts in a row of which an engine had nothing cached though much was expected: then it has lost its cache.
const LOST_AFTER: u32 = 2;
/// What counts as much to expect cached, tokens.
pub const MUCH_EXPECTED: f64 = 512.0;

/// Most endpoints returned: the choice and what to try next.
const MAX_ORDER: usize = 4;

/// Most blocks remembered for one replica.
const MAX_BLOCKS: f64 = 16_384.0;

/// The routes of one pool, arranged for choosing.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// The routes.
    pub route: PoolRoute,
    /// Version of the table they came in.
    pub version: u64,
    /// Stable hash of each endpoint's replica name.
    pub keys: Vec<u64>,
    by_key: QuickMap<u64, usize>,
    /// `(point, endpoint)` in order of point: a hash ring for pools too big to hash every replica.
    ring: Vec<(u64, usize)>,
    /// By class name, then `""` for classes without weights of their own.
    plans: QuickMap<String, ClassPlan>,
    /// By adapter: the endpoints that hold it and are to, in order.
    holders: QuickMap<String, Vec<usize>>,
    /// By group of adapters: who belongs to it, by index.
    groups: QuickMap<String, Vec<usize>>,
}

#[derive(Debug, Clone)]
struct ClassPlan {
    /// Weight of each endpoint (0: not to be used).
    weights: Vec<f64>,
    /// Group of each endpoint.
    group_of: Vec<usize>,
    /// Endpoints of each group.
    members: Vec<Vec<usize>>,
    /// Endpoints that prefill for others, in order.
    prefill: Vec<usize>,
}

impl PoolView {
    /// Arranges a pool's routes.
    pub fn new(route: PoolRoute, version: u64) -> Self {
        let keys: Vec<u64> = route.endpoints.iter().map(|e| xxh3_64(e.replica.as_str().as_bytes())).collect();
        let by_key: QuickMap<u64, usize> = keys.iter().enumerate().map(|(i, k)| (*k, i)).collect();
        let mut ring: Vec<(u64, usize)> = if keys.len() > PREDICT_ALL {
            keys.iter().enumerate().flat_map(|(i, k)| (0..8u64).map(move |p| (mix(*k, p), i))).collect()
        } else {
            Vec::new()
        };
        ring.sort_unstable();
        let mut classes: Vec<&str> =
            route.endpoints.iter().flat_map(|e| e.weights.iter().map(|(c, _)| c.as_str())).collect();
        classes.push("");
        classes.sort_unstable();
        classes.dedup();
        let plans = classes.into_iter().map(|c| (c.to_owned(), ClassPlan::new(&route, c))).collect();
        let holding = |a: &AdapterRoute| {
            // What is placed nowhere is where it visits.
            let to_keep = if a.placed.is_empty() { &a.held } else { &a.placed };
            let both = to_keep.iter().filter(|replica| a.held.contains(replica));
            let index = |replica: &ReplicaId| by_key.get(&xxh3_64(replica.as_str().as_bytes())).copied();
            let mut endpoints: Vec<usize> = both.filter_map(index).collect();
            endpoints.sort_unstable();
            endpoints
        };
        let holders = route.adapters.iter().map(|a| (a.served_name.clone(), holding(a))).collect();
        let mut groups: QuickMap<String, Vec<usize>> = QuickMap::default();
        for (i, adapter) in route.adapters.iter().enumerate() {
            if let Some(group) = &adapter.group {
                groups.entry(group.clone()).or_default().push(i);
            }
        }
        Self { route, version, keys, by_key, ring, plans, holders, groups }
    }

    /// Whether a model name is that of one of its adapters.
    pub fn is_adapter(&self, name: &str) -> bool {
        self.holders.contains_key(name)
    }

    /// Whether a name is that of a group of its adapters.
    pub fn is_group(&self, name: &str) -> bool {
        self.groups.contains_key(name)
    }

    /// The adapters of a group, in order of served name as routes have them.
    pub fn group(&self, name: &str) -> impl Iterator<Item = &AdapterRoute> {
        self.groups.get(name).into_iter().flatten().map(|&i| &self.route.adapters[i])
    }

    /// The endpoints, by index, that hold an adapter and are to.
    pub fn holders_of(&self, adapter: &str) -> &[usize] {
        self.holders.get(adapter).map_or(&[], Vec::as_slice)
    }

    /// Endpoints at which an adapter that nobody holds may be loaded for a request, in order: where it is placed, then by a hash, so that
    /// all who ask agree without talking. Only agents beside engines load.
    pub fn hosts(&self, name: &str) -> Vec<usize> {
        let Some(adapter) = self.route.adapters.iter().find(|a| a.served_name == name) else {
            return Vec::new();
        };
        let key = xxh3_64(name.as_bytes());
        let loads =
            |e: &Endpoint| e.agent_address.is_some() && e.role == Role::Mixed && e.engine.loads_adapters();
        let mut hosts: Vec<usize> =
            (0..self.keys.len()).filter(|i| loads(&self.route.endpoints[*i])).collect();
        hosts.sort_by_cached_key(|i| {
            let placed = adapter.placed.contains(&self.route.endpoints[*i].replica);
            (!placed, std::cmp::Reverse(mix(self.keys[*i], key)))
        });
        hosts
    }

    fn plan(&self, class: &str) -> Option<&ClassPlan> {
        self.plans.get(class).or_else(|| self.plans.get(""))
    }

    /// The index of a replica.
    pub fn index_of(&self, replica: &str) -> Option<usize> {
        self.by_key.get(&xxh3_64(replica.as_bytes())).copied()
    }

    /// The hashed home of a prefix: rendezvous in small pools, a ring in big ones.
    fn home(&self, prefix_key: u64, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        if self.ring.is_empty() {
            return (0..self.keys.len())
                .filter(|i| eligible(*i))
                .max_by_key(|i| mix(self.keys[*i], prefix_key));
        }
        let start = self.ring.partition_point(|(p, _)| *p < prefix_key);
        (0..self.ring.len()).map(|i| self.ring[(start + i) % self.ring.len()].1).find(|i| eligible(*i))
    }
}

impl ClassPlan {
    fn new(route: &PoolRoute, class: &str) -> Self {
        // A weight for the class, else the sum of the endpoint's weights; where no endpoint has any, an even share.
        let any = route.endpoints.iter().any(|e| !e.weights.is_empty());
        let named = route.endpoints.iter().any(|e| e.weights.iter().any(|(c, w)| c == class && *w > 0.0));
        let weights: Vec<f64> = route
            .endpoints
            .iter()
            .map(|e| {
                if e.role == Role::Prefill {
                    0.0
                } else if !any {
                    1.0
                } else if named {
                    e.weights.iter().filter(|(c, _)| c == class).map(|(_, w)| w.max(0.0)).sum()
                } else {
                    e.weights.iter().map(|(_, w)| w.max(0.0)).sum()
                }
            })
            .collect();
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut group_of = Vec::with_capacity(weights.len());
        for (i, e) in route.endpoints.iter().enumerate() {
            let same = |m: &Vec<usize>| {
                let j = m[0];
                route.endpoints[j].coefficients == e.coefficients && (weights[j] - weights[i]).abs() <= 1e-9
            };
            let group = members.iter().position(same).unwrap_or_else(|| {
                members.push(Vec::new());
                members.len() - 1
            });
            members[group].push(i);
            group_of.push(group);
        }
        let prefill = pair::planned(&route.endpoints, class, named);
        Self { weights, group_of, members, prefill }
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What a router knows of a request before it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// SLO class.
    pub class: &'a str,
    /// Chained hashes of the prompt's blocks of [`BLOCK_BYTES`].
    pub prefix: &'a [u64],
    /// Prompt tokens, estimated.
    pub prompt_tokens: f64,
    /// Tokens that one block stands for.
    pub tokens_per_block: f64,
    /// Answer tokens, expected.
    pub expected_output: f64,
    /// LoRA adapter, if the request names one.
    pub adapter: Option<&'a str>,
    /// Time to first token of the class's objective, ms.
    pub ttft_objective_ms: Option<f64>,
}

/// Why an endpoint stands where it does in a [`Choice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Least predicted completion, with part of the prompt cached.
    Prefix,
    /// The prompt's hash points here, and no part of it past what many share is known to be elsewhere for less.
    Home,
    /// Least predicted completion.
    Completion,
    /// Beyond its share of the plan's flow: what the plan allows would miss its objective, or is exhausted.
    BeyondPlan,
    /// It failed a moment ago and nothing else is left.
    LastResort,
    /// A decode replica that prefills itself: no prefill replica makes a pair with it.
    Alone,
}

impl Reason {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 6] =
        [Self::Prefix, Self::Home, Self::Completion, Self::BeyondPlan, Self::LastResort, Self::Alone];

    /// For metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Home => "home",
            Self::Completion => "completion",
            Self::BeyondPlan => "beyond_plan",
            Self::LastResort => "last_resort",
            Self::Alone => "alone",
        }
    }
}

/// One endpoint of a choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Index in the pool's endpoints.
    pub endpoint: usize,
    /// Prediction, ms.
    pub prediction: Prediction,
    /// Prompt tokens believed to be cached there.
    pub cached_tokens: f64,
    /// Why it stands here.
    pub reason: Reason,
    /// Who computes the prompt for it, where it is a decode replica that does not itself; `cached_tokens` are there then.
    pub prefill: Option<Partner>,
}

/// Endpoints to try, in order; empty when none may be used.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Choice {
    /// In order.
    pub order: Vec<Ranked>,
    /// How many endpoints were passed over, by why: draining, unhealthy, stalled, not in the plan.
    pub excluded: Excluded,
}

/// Endpoints that could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Excluded {
    /// Draining.
    pub draining: usize,
    /// Unhealthy.
    pub unhealthy: usize,
    /// Stalled.
    pub stalled: usize,
    /// Without a share for this class.
    pub unplanned: usize,
    /// Decode replicas that no prefill replica makes a pair with, and that prefill nothing themselves.
    pub unpaired: usize,
    /// Without the adapter that is asked for.
    pub unloaded: usize,
}

/// What a router remembers of one pool.
#[derive(Debug)]
pub struct Memory {
    /// Prefixes sent.
    pub history: PrefixHistory,
    /// What the agents beside the replicas said that others have sent.
    told: Told,
    balances: QuickMap<String, Balance>,
    /// By replica: answers in a row for which nothing was found cached where much was expected.
    misses: QuickMap<u64, u32>,
    shares: Vec<f64>,
    rng: SmallRng,
}

impl Memory {
    /// An empty memory; the same seed makes the same choices.
    pub fn new(seed: u64) -> Self {
        Self {
            history: PrefixHistory::default(),
            told: Told::default(),
            balances: QuickMap::default(),
            misses: QuickMap::default(),
            shares: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Forgets replicas that are no longer in the table.
    pub fn retain(&mut self, view: &PoolView) {
        let gone: Vec<u64> = self.history.replicas().filter(|r| !view.by_key.contains_key(r)).collect();
        for replica in gone {
            self.history.forget(replica);
        }
        let gone: Vec<u64> = self.told.replicas().filter(|r| !view.by_key.contains_key(r)).collect();
        gone.into_iter().for_each(|replica| self.told.forget(replica));
        self.balances.retain(|class, _| view.plans.contains_key(class));
        self.misses.retain(|replica, _| view.by_key.contains_key(replica));
    }

    /// Notes that the request goes to `endpoint`. Call it under the same lock as the [`choose`] before it.
    pub fn record(&mut self, view: &PoolView, request: &Request<'_>, endpoint: usize) {
        if let Some(plan) = view.plan(request.class) {
            let key = if view.plans.contains_key(request.class) { request.class } else { "" };
            if let Some(balance) = self.balances.get_mut(key) {
                balance.record(&self.shares, plan.group_of[endpoint]);
            }
        }
        self.remember(view, request, endpoint);
    }

    /// Takes note of what an engine says it had cached of a prompt of which much was expected there. An engine that
    /// had nothing [`LOST_AFTER`] times in a row has lost its cache (it was restarted, say): what was sent before is forgotten.
    pub fn found(&mut self, replica: u64, cached_tokens: u64) {
        if cached_tokens > 0 {
            self.misses.remove(&replica);
            return;
        }
        let misses = self.misses.entry(replica).or_default();
        *misses += 1;
        if *misses >= LOST_AFTER {
            self.misses.remove(&replica);
            self.history.forget(replica);
            self.told.forget(replica);
        }
    }

    /// Takes in what the agent beside an endpoint says that others have sent there.
    pub fn hear(&mut self, view: &PoolView, endpoint: usize, tokens_per_block: f64, news: &News) {
        self.told.fold(view.keys[endpoint], news, room(view, endpoint, tokens_per_block));
    }

    /// Notes that a request recorded for one endpoint went to another instead.
    pub fn shift(&mut self, view: &PoolView, request: &Request<'_>, from: usize, to: usize) {
        if let Some(plan) = view.plan(request.class) {
            let key = if view.plans.contains_key(request.class) { request.class } else { "" };
            if let Some(balance) = self.balances.get_mut(key) {
                balance.shift(plan.group_of[from], plan.group_of[to]);
            }
        }
        self.remember(view, request, to);
    }

    /// Notes that the prompt, or its cache, also comes to `endpoint`.
    pub fn remember(&mut self, view: &PoolView, request: &Request<'_>, endpoint: usize) {
        let capacity = room(view, endpoint, request.tokens_per_block) as usize;
        self.history.insert(view.keys[endpoint], request.prefix, capacity);
    }
}

/// Blocks that an endpoint's cache has room for, as far as a router remembers them.
fn room(view: &PoolView, endpoint: usize, tokens_per_block: f64) -> f64 {
    let kv = view.route.endpoints[endpoint].coefficients.kv_tokens;
    let capacity = if kv > 0.0 { kv / tokens_per_block.max(1.0) } else { MAX_BLOCKS };
    capacity.clamp(1.0, MAX_BLOCKS)
}

/// Who holds the prompt's beginning, by index, and how much: by what was sent there, or else by what agents say.
fn holders(view: &PoolView, history: &PrefixHistory, told: &Told, prefix: &[u64]) -> Vec<(usize, usize)> {
    let index = |(key, depth): (u64, usize)| view.by_key.get(&key).map(|i| (*i, depth));
    let mut held: Vec<(usize, usize)> = history.holders(prefix, 8).into_iter().filter_map(index).collect();
    for (i, depth) in told.holders(prefix, 8).into_iter().filter_map(index) {
        match held.iter_mut().find(|(known, _)| *known == i) {
            Some((_, own)) => *own = depth.max(*own),
            None => held.push((i, depth)),
        }
    }
    held
}

/// Chooses where to send a request. `load` gives an endpoint's load by index. O(replicas) with a tiny constant, plus a
/// prediction for each candidate.
pub fn choose(
    view: &PoolView,
    request: &Request<'_>,
    load: impl Fn(usize) -> ReplicaLoad,
    memory: &mut Memory,
) -> Choice {
    let mut choice = Choice::default();
    let Some(plan) = view.plan(request.class) else { return choice };
    let endpoints = &view.route.endpoints;
    let n = endpoints.len();

    let mut availability = Vec::with_capacity(n);
    let shares = &mut memory.shares;
    shares.clear();
    shares.resize(plan.members.len(), 0.0);
    let loaded = request.adapter.map(|name| view.holders_of(name));
    let mut suspects = false;
    for (i, endpoint) in endpoints.iter().enumerate() {
        let mut a = if endpoint.draining { Availability::Draining } else { load(i).availability };
        match a {
            Availability::Draining => choice.excluded.draining += 1,
            Availability::Unhealthy => choice.excluded.unhealthy += 1,
            Availability::Stalled => choice.excluded.stalled += 1,
            Availability::Ready | Availability::Suspect
                if loaded.is_some_and(|loaded| loaded.binary_search(&i).is_err()) =>
            {
                choice.excluded.unloaded += 1;
                a = Availability::Draining;
            }
            Availability::Ready | Availability::Suspect if plan.weights[i] <= 0.0 => {
                choice.excluded.unplanned += usize::from(endpoint.role != Role::Prefill);
                a = Availability::Draining;
            }
            Availability::Ready => shares[plan.group_of[i]] += plan.weights[i],
            Availability::Suspect => suspects = true,
        }
        availability.push(a);
    }
    let total: f64 = shares.iter().sum();
    if total > 0.0 {
        shares.iter_mut().for_each(|s| *s /= total);
    } else if !suspects {
        return choice;
    }
    let key = if view.plans.contains_key(request.class) { request.class } else { "" };
    if !memory.balances.contains_key(key) {
        memory.balances.insert(key.to_owned(), Balance::default());
    }
    let Some(balance) = memory.balances.get_mut(key) else { return choice };
    balance.prepare(view.version, plan.members.len());

    let usable = |i: usize| availability[i] == Availability::Ready;
    // What many prompts begin with says nothing about where this one's own part is: the hash is keyed past it.
    let key_at = memory.history.shared(request.prefix);
    let prefix_key = home_key(request.prefix, key_at);
    let home = prefix_key.and_then(|key| view.home(key, usable));
    let held = holders(view, &memory.history, &memory.told, request.prefix);

    let mut candidates: Vec<usize> = Vec::with_capacity(n.min(PREDICT_ALL) + 16);
    if n <= PREDICT_ALL {
        candidates.extend((0..n).filter(|i| usable(*i)));
    } else {
        candidates.extend(held.iter().map(|(i, _)| *i).filter(|i| usable(*i)));
        candidates.extend(home);
        for (group, members) in plan.members.iter().enumerate() {
            if shares[group] > 0.0 {
                for _ in 0..2 {
                    // A few draws find a usable member unless most of the group is down.
                    let drawn = (0..8)
                        .map(|_| members[memory.rng.random_range(0..members.len())])
                        .find(|i| usable(*i));
                    candidates.extend(drawn.or_else(|| members.iter().copied().find(|i| usable(*i))));
                }
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
    }
    if candidates.is_empty() {
        candidates.extend((0..n).filter(|i| availability[*i] == Availability::Suspect));
    }

    let prefills = pair::prefills(view, plan, request, prefix_key, &held, &load, &mut memory.rng);
    let depth_of = |i: usize| held.iter().find(|(h, _)| *h == i).map_or(0, |(_, d)| *d);
    let cached_at = |i: usize| (depth_of(i) as f64 * request.tokens_per_block).min(request.prompt_tokens);
    let rank = |i: usize| {
        let (depth, cached, l) = (depth_of(i), cached_at(i), load(i));
        if endpoints[i].role == Role::Decode {
            return pair::rank(endpoints, i, cached, &l, &prefills, request);
        }
        // What other routers were asked of this prompt's beginning they have sent to its home, too.
        let unseen = if home == Some(i) { request.prefix.len().saturating_sub(key_at.max(depth)) } else { 0 };
        let assumed = cached + (HOME_HOLDS * unseen as f64 * request.tokens_per_block).min(HOME_HOLDS_MOST);
        let assumed = assumed.min(request.prompt_tokens);
        let prediction =
            predict(&endpoints[i].coefficients, &l, request.prompt_tokens, assumed, request.expected_output);
        let reason = match depth {
            0 if unseen == 0 => Reason::Completion,
            _ if unseen > 0 && depth <= key_at => Reason::Home,
            _ => Reason::Prefix,
        };
        Some(Ranked { endpoint: i, prediction, cached_tokens: cached, reason, prefill: None })
    };
    let asked = candidates.len();
    let mut ranked: Vec<(bool, Ranked)> = candidates
        .into_iter()
        .filter_map(|i| Some((balance.allows(plan.group_of[i], shares[plan.group_of[i]]), rank(i)?)))
        .collect();

    choice.excluded.unpaired = asked - ranked.len();

    // The plan's flow is followed while it can meet the objective.
    let best_queue = |allowed: bool| {
        ranked
            .iter()
            .filter(|(a, _)| *a == allowed)
            .map(|(_, r)| r.prediction.queue_ms)
            .fold(f64::INFINITY, f64::min)
    };
    let (within, beyond) = (best_queue(true), best_queue(false));
    let escape = request.ttft_objective_ms.is_some_and(|ttft| within > ttft && beyond < within);
    for (allowed, r) in &mut ranked {
        if availability[r.endpoint] == Availability::Suspect {
            r.reason = Reason::LastResort;
        } else if !*allowed {
            if r.reason != Reason::Alone {
                r.reason = Reason::BeyondPlan;
            }
            if escape {
                *allowed = true;
            }
        }
    }
    // One that does two replicas' work only after those that do their own.
    let alone = |r: &Ranked| r.reason == Reason::Alone;
    ranked.sort_by(|(a, x), (b, y)| {
        b.cmp(a)
            .then(alone(x).cmp(&alone(y)))
            .then(x.prediction.e2e_ms().total_cmp(&y.prediction.e2e_ms()))
            .then_with(|| {
                // Equal in every figure: spread by hash, or by the random part of an empty prefix.
                mix(view.keys[y.endpoint], prefix_key.unwrap_or(0))
                    .cmp(&mix(view.keys[x.endpoint], prefix_key.unwrap_or(0)))
            })
    });
    if let (Some(home), Some((allowed, best))) = (home, ranked.first().copied())
        && best.endpoint != home
        && best.cached_tokens <= key_at as f64 * request.tokens_per_block
        && let Some(at) =
            ranked.iter().position(|(a, r)| *a == allowed && r.endpoint == home && alone(r) == alone(&best))
        && ranked[at].1.prediction.e2e_ms() <= best.prediction.e2e_ms() * EQUAL_WITHIN
    {
        let mut moved = ranked.remove(at);
        if moved.1.reason == Reason::Completion {
            moved.1.reason = Reason::Home;
        }
        ranked.insert(0, moved);
    } else if prefix_key.is_none()
        && let Some((allowed, best)) = ranked.first().copied()
    {
        // No prefix to go by: among equals, a random one.
        let equals = ranked
            .iter()
            .take_while(|(a, r)| {
                *a == allowed
                    && alone(r) == alone(&best)
                    && r.prediction.e2e_ms() <= best.prediction.e2e_ms() * (1.0 + 1e-9)
            })
            .count();
        if equals > 1 {
            let pick = memory.rng.random_range(0..equals);
            ranked.swap(0, pick);
        }
    }
    choice.order = ranked.into_iter().map(|(_, r)| r).collect();
    if choice.order.len() < MAX_ORDER {
        for i in (0..n).filter(|i| availability[*i] == Availability::Suspect) {
            if choice.order.len() < MAX_ORDER && !choice.order.iter().any(|r| r.endpoint == i) {
                choice.order.extend(rank(i).map(|r| Ranked { reason: Reason::LastResort, ..r }));
            }
        }
    }
    choice.order.truncate(MAX_ORDER);
    if let Some(first) = choice.order.first().copied()
        && let Some(partner) = first.prefill
    {
        // Should the prefill side fail: another one, and somebody who needs none.
        let (own, l) = (cached_at(first.endpoint), load(first.endpoint));
        let but = Some(partner.endpoint);
        let other = pair::prefills_for(endpoints, first.endpoint, own, &l, &prefills, request, but);
        let alone = pair::alone(endpoints, first.endpoint, own, &l, request)
            .filter(|_| choice.order.iter().all(|r| r.prefill.is_some()));
        let more = usize::from(other.is_some()) + usize::from(alone.is_some());
        choice.order.truncate(MAX_ORDER - more);
        choice.order.extend(other.into_iter().chain(alone));
    }
    choice
}

/// What an unseen prompt is hashed by: the first block past what is known to be shared; where nothing is, its second
/// block, past most of what all prompts share, else its first.
fn home_key(prefix: &[u64], shared: usize) -> Option<u64> {
    prefix.get(shared.max(1)).or_else(|| prefix.last()).copied()
}

#[cfg(test)]
mod tests;
