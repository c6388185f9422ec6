//! 200 adapters on 8 replicas with 8 slots each over a day: what is loaded, what waits for it, and who starves, under the product's own placement
//! and routing and under other rules.
//!
//! `cargo bench -p plimsoll-simulator --bench adapter_fleet [-- HOURS]` (a day) prints the table; it reads no clock: every run prints the same.
//!
//! Requests: 20 a second (Poisson), 1 s each; adapters by Zipf's law (0.9), each adapter's weight halved to doubled over the day at an hour of its own;
//! six times a day one that hardly anybody wanted gets 30 % of all requests for 20 minutes. A load takes the bytes of all linear layers of
//! Qwen2.5-7B at the adapter's rank (5.05 MB a rank in bf16) over 3 GB/s, one at a time at an engine. That a slot may have to wait for the requests
//! that use it is left out, for all rules alike.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::LazyLock;

use plimsoll_agent::adapters::eviction::{Rule, Slots, belady};
use plimsoll_agent::route::{self, Memory, PoolView, ReplicaLoad};
use plimsoll_fleet::*;
use plimsoll_scheduler::adapters::{self as placing, Rates};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

const ADAPTERS: usize = 200;
const REPLICAS: usize = 8;
const SLOTS: usize = 8;
const RPS: f64 = 20.0;
const ZIPF: f64 = 0.9;
const DAY_S: f64 = 86_400.0;
const SERVICE_MS: f64 = 1_000.0;
/// Of the adapters, in turn.
const RANKS: [f64; 8] = [16.0, 8.0, 64.0, 16.0, 32.0, 16.0, 8.0, 128.0];
const MB_PER_RANK: f64 = 5.05;
const MB_PER_MS: f64 = 3.0;
const FLASH_S: f64 = 1_200.0;
const FLASH_SHARE: f64 = 0.3;
/// How often placement is looked at anew, and how often gateways report, seconds.
const PLAN_S: f64 = 60.0;
const REPORT_S: f64 = 5.0;
/// What is no longer placed is kept so long, ms.
const KEPT_MS: f64 = 10_000.0;
/// A request that waited longer was starved: gateways answer it 503, ms.
const STARVED_MS: f64 = 10_000.0;

#[derive(Clone, Copy)]
struct Asked {
    at_ms: f64,
    adapter: usize,
}

fn load_ms(adapter: usize) -> f64 {
    RANKS[adapter % RANKS.len()] * MB_PER_RANK / MB_PER_MS
}

fn name(adapter: usize) -> String {
    format!("adapter-{adapter:03}")
}

/// By adapter: each replica's place in its rendezvous order, 0 for its home.
static RENDEZVOUS: LazyLock<Vec<[usize; REPLICAS]>> = LazyLock::new(|| {
    let hash = |adapter: usize, replica: usize| xxh3_64(format!("{adapter}/{replica}").as_bytes());
    let place = |adapter: usize, replica: usize| {
        (0..REPLICAS).filter(|other| hash(adapter, *other) > hash(adapter, replica)).count()
    };
    (0..ADAPTERS).map(|adapter| std::array::from_fn(|replica| place(adapter, replica))).collect()
});

fn requests(hours: f64) -> Vec<Asked> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut order: Vec<usize> = (0..ADAPTERS).collect();
    (1..ADAPTERS).rev().for_each(|i| order.swap(i, rng.random_range(0..=i)));
    let hour: Vec<f64> = (0..ADAPTERS).map(|_| rng.random_range(0.0..1.0)).collect();
    let (mut asked, mut cumulated, mut drawn_for) = (Vec::new(), vec![0.0; ADAPTERS], -1.0);
    let mut at_s = 0.0;
    while at_s < hours * 3_600.0 {
        at_s += -(1.0 - rng.random_range(0.0..1.0f64)).ln() / RPS;
        let minute = (at_s / 60.0).floor();
        if minute != drawn_for {
            drawn_for = minute;
            let mut sum = 0.0;
            for (rank, &adapter) in order.iter().enumerate() {
                let tide = (std::f64::consts::TAU * (at_s / DAY_S + hour[adapter])).sin().exp2();
                sum += ((rank + 1) as f64).powf(-ZIPF) * tide;
                cumulated[rank] = sum;
            }
        }
        let flash = (at_s / (DAY_S / 6.0)).floor() as usize;
        let flashing = (at_s - flash as f64 * DAY_S / 6.0 - 3_600.0).abs() < FLASH_S / 2.0;
        let adapter = if flashing && rng.random_range(0.0..1.0) < FLASH_SHARE {
            order[ADAPTERS - 1 - flash % 50]
        } else {
            let drawn = rng.random_range(0.0..cumulated[ADAPTERS - 1]);
            order[cumulated.partition_point(|sum| *sum <= drawn).min(ADAPTERS - 1)]
        };
        asked.push(Asked { at_ms: at_s * 1e3, adapter });
    }
    asked
}

/// An engine's adapters, and its loads.
#[derive(Default)]
struct Engine {
    /// When each adapter that it holds is ready, ms.
    ready_ms: BTreeMap<usize, f64>,
    loader_free_ms: f64,
    running: BinaryHeap<Reverse<u64>>,
    served: usize,
}

impl Engine {
    /// Loads an adapter in place of another; when it is ready.
    fn load(&mut self, adapter: usize, out: Option<usize>, now_ms: f64) -> f64 {
        if let Some(out) = out {
            self.ready_ms.remove(&out);
        }
        self.loader_free_ms = now_ms.max(self.loader_free_ms) + load_ms(adapter);
        self.ready_ms.insert(adapter, self.loader_free_ms);
        self.loader_free_ms
    }

    /// Serves a request for an adapter that is held or on its way; how long it waits.
    fn serve(&mut self, adapter: usize, now_ms: f64) -> f64 {
        let begin = self.ready_ms.get(&adapter).copied().unwrap_or(now_ms).max(now_ms);
        self.running.push(Reverse((begin + SERVICE_MS) as u64));
        self.served += 1;
        begin - now_ms
    }

    fn running(&mut self, now_ms: f64) -> usize {
        while self.running.peek().is_some_and(|end| end.0 as f64 <= now_ms) {
            self.running.pop();
        }
        self.running.len()
    }
}

#[derive(Default)]
struct Tally {
    loads: usize,
    hits: usize,
    waits_ms: Vec<f32>,
    starved: BTreeSet<usize>,
    asked: BTreeSet<usize>,
}

impl Tally {
    fn count(&mut self, adapter: usize, hit: bool, wait_ms: f64) {
        self.hits += usize::from(hit);
        self.waits_ms.push(wait_ms as f32);
        self.asked.insert(adapter);
        if wait_ms > STARVED_MS {
            self.starved.insert(adapter);
        }
    }
}

trait Policy {
    fn serve(&mut self, asked: Asked, engines: &mut [Engine], tally: &mut Tally);
}

/// Slots filled on demand.
struct OnDemand {
    slots: Vec<Slots>,
    /// To its rendezvous home; else to any replica, in turn.
    home: bool,
    turn: usize,
}

impl Policy for OnDemand {
    fn serve(&mut self, Asked { at_ms, adapter }: Asked, engines: &mut [Engine], tally: &mut Tally) {
        self.turn += 1;
        let replica = if self.home { home(adapter) } else { self.turn % REPLICAS };
        let (slots, engine) = (&mut self.slots[replica], &mut engines[replica]);
        let hit = slots.request(adapter, load_ms(adapter), RANKS[adapter % RANKS.len()]);
        if !hit {
            let out = engine.ready_ms.keys().copied().find(|held| !slots.holds(*held));
            engine.load(adapter, out, at_ms);
            tally.loads += 1;
        }
        let wait = engine.serve(adapter, at_ms);
        tally.count(adapter, hit, wait);
    }
}

fn home(adapter: usize) -> usize {
    RENDEZVOUS[adapter].iter().position(|place| *place == 0).unwrap_or(0)
}

/// Clairvoyant slots (MIN): each replica's own, behind rendezvous hashing, or all slots of the fleet as one, as an oracle that routes would have them.
fn clairvoyant(asked: &[Asked], fleet: bool) -> Tally {
    let mut tally = Tally::default();
    let mut hits: Vec<VecDeque<bool>> = if fleet {
        let all: Vec<usize> = asked.iter().map(|a| a.adapter).collect();
        vec![belady(&all, REPLICAS * SLOTS).into()]
    } else {
        let of = |r: usize| asked.iter().map(|a| a.adapter).filter(|a| home(*a) == r).collect::<Vec<_>>();
        (0..REPLICAS).map(|r| belady(&of(r), SLOTS).into()).collect()
    };
    for one in asked {
        let hit = hits[if fleet { 0 } else { home(one.adapter) }].pop_front().unwrap();
        tally.loads += usize::from(!hit);
        tally.count(one.adapter, hit, if hit { 0.0 } else { load_ms(one.adapter) });
    }
    tally
}

/// Serves a request for what is placed nowhere in the slot that each engine has for that: where it is already, else at its rendezvous home, or with
/// `spread` at the first in rendezvous order that loads nothing, and where there is none, where loads end soonest.
fn visit(
    asked: Asked,
    spread: bool,
    visitors: &mut [Option<usize>],
    engines: &mut [Engine],
    tally: &mut Tally,
) -> usize {
    let Asked { at_ms, adapter } = asked;
    let free_ms = |r: usize| engines[r].loader_free_ms.max(at_ms);
    let there = (0..REPLICAS).find(|r| visitors[*r] == Some(adapter));
    let replica = there.unwrap_or_else(|| {
        let order = |r: &usize| (free_ms(*r) as u64, RENDEZVOUS[adapter][*r]);
        if spread { (0..REPLICAS).min_by_key(order).unwrap_or(0) } else { home(adapter) }
    });
    if there.is_none() {
        engines[replica].load(adapter, visitors[replica].replace(adapter), at_ms);
        tally.loads += 1;
    }
    let wait = engines[replica].serve(adapter, at_ms);
    tally.count(adapter, there.is_some(), wait);
    replica
}

/// What is placed from time to time, beside a visitor's slot.
struct Planned<P> {
    plan: P,
    /// Visitors go where nothing is being loaded.
    spread: bool,
    visitors: Vec<Option<usize>>,
    next_plan_ms: f64,
    next_report_ms: f64,
    counts: BTreeMap<usize, u64>,
    /// Loads under way: when they are ready.
    pending: BinaryHeap<Reverse<u64>>,
    leaving: Vec<(f64, usize, usize)>,
}

trait Plan {
    fn report(&mut self, counts: &BTreeMap<usize, u64>, now_s: f64);
    /// Where each adapter is to be; `engines` say what they hold.
    fn place(&mut self, engines: &[Engine], now_ms: f64) -> Vec<BTreeSet<usize>>;
    /// Engines have loaded something.
    fn loaded(&mut self, engines: &[Engine], now_ms: f64);
    /// The replica for a request, if one is to hold its adapter and does.
    fn choose(&mut self, adapter: usize, engines: &mut [Engine], now_ms: f64) -> Option<usize>;
}

impl<P: Plan> Planned<P> {
    fn new(plan: P, spread: bool) -> Self {
        Self {
            plan,
            spread,
            visitors: vec![None; REPLICAS],
            next_plan_ms: 0.0,
            next_report_ms: REPORT_S * 1e3,
            counts: BTreeMap::new(),
            pending: BinaryHeap::new(),
            leaving: Vec::new(),
        }
    }

    fn advance(&mut self, now_ms: f64, engines: &mut [Engine], tally: &mut Tally) {
        if now_ms >= self.next_report_ms {
            self.next_report_ms += REPORT_S * 1e3;
            self.plan.report(&std::mem::take(&mut self.counts), now_ms / 1e3);
        }
        let (gone, leaving) = self.leaving.drain(..).partition(|(at, ..)| *at <= now_ms);
        self.leaving = leaving;
        let gone: Vec<(f64, usize, usize)> = gone;
        for (_, replica, adapter) in gone {
            engines[replica].ready_ms.remove(&adapter);
        }
        if now_ms >= self.next_plan_ms {
            self.next_plan_ms += PLAN_S * 1e3;
            let placed = self.plan.place(engines, now_ms);
            for (replica, wanted) in placed.iter().enumerate() {
                self.leaving.retain(|(_, at, adapter)| *at != replica || !wanted.contains(adapter));
                if self.visitors[replica].is_some_and(|visitor| wanted.contains(&visitor)) {
                    self.visitors[replica] = None;
                }
                let held: Vec<usize> = engines[replica].ready_ms.keys().copied().collect();
                let stays = |a: &usize| wanted.contains(a) || self.visitors[replica] == Some(*a);
                for adapter in held.iter().filter(|a| !stays(a)) {
                    if !self.leaving.iter().any(|(_, at, a)| (at, a) == (&replica, adapter)) {
                        self.leaving.push((now_ms + KEPT_MS, replica, *adapter));
                    }
                }
                for &adapter in wanted.iter().filter(|a| !held.contains(a)) {
                    let ready = engines[replica].load(adapter, None, now_ms);
                    self.pending.push(Reverse(ready.ceil() as u64));
                    tally.loads += 1;
                }
            }
            self.plan.loaded(engines, now_ms);
        }
        let mut news = false;
        while self.pending.peek().is_some_and(|at| at.0 as f64 <= now_ms) {
            self.pending.pop();
            news = true;
        }
        if news {
            self.plan.loaded(engines, now_ms);
        }
    }
}

impl<P: Plan> Policy for Planned<P> {
    fn serve(&mut self, asked: Asked, engines: &mut [Engine], tally: &mut Tally) {
        let Asked { at_ms, adapter } = asked;
        self.advance(at_ms, engines, tally);
        *self.counts.entry(adapter).or_default() += 1;
        match self.plan.choose(adapter, engines, at_ms) {
            Some(replica) => {
                let wait = engines[replica].serve(adapter, at_ms);
                tally.count(adapter, wait == 0.0, wait);
            }
            None => {
                let at = visit(asked, self.spread, &mut self.visitors, engines, tally);
                self.leaving.retain(|(_, replica, leaves)| (*replica, *leaves) != (at, adapter));
            }
        }
    }
}

/// The product: the scheduler's rates and placement, the routers' choice.
struct Ours {
    snapshot: ClusterSnapshot,
    rates: Rates,
    table: RouteTable,
    view: PoolView,
    memory: RefCell<Memory>,
}

fn id(replica: usize) -> ReplicaId {
    ReplicaId::new(format!("r{replica}")).unwrap()
}

fn endpoint(replica: usize) -> Endpoint {
    Endpoint {
        replica: id(replica),
        node: NodeName::new(format!("n{replica}")).unwrap(),
        zone: "a".into(),
        role: Role::Mixed,
        agent_address: None,
        engine_address: "127.0.0.1:1".into(),
        engine_model: "base".into(),
        weights: Vec::new(),
        coefficients: StepCoefficients {
            base_ms: 10.0,
            per_request_ms: 0.1,
            per_context_token_ms: 1e-4,
            per_prefill_token_ms: 0.05,
            api_overhead_ms: 1.0,
            kv_tokens: 1e6,
            max_running: 256,
            max_batched_tokens: 8192,
        },
        draining: false,
        engine: EngineKind::Vllm,
        hand_over: None,
    }
}

impl Ours {
    /// `heed_loads`: whether placement is told how long loads take.
    fn new(heed_loads: bool) -> Self {
        let pool: PoolId = "default/chat".parse().unwrap();
        let adapter = |i: usize| Adapter {
            namespace: "default".into(),
            name: name(i),
            served_name: name(i),
            base_pool: pool.clone(),
            group: None,
            source: format!("hf://acme/{i}"),
            sha256: None,
            rank: RANKS[i % RANKS.len()] as u32,
            size_bytes: Some(if heed_loads { RANKS[i % RANKS.len()] } else { 16.0 } * MB_PER_RANK * 1e6),
            expected_rps: 0.0,
            observed_rps: None,
            pinned: false,
        };
        let snapshot =
            ClusterSnapshot { adapters: (0..ADAPTERS).map(adapter).collect(), ..Default::default() };
        let route = PoolRoute {
            pool,
            served_name: "base".into(),
            slo_classes: Vec::new(),
            priority: 0,
            max_context_tokens: 8192,
            endpoints: (0..REPLICAS).map(endpoint).collect(),
            wake_wait_ms: 0.0,
            usd_per_million_tokens: (0.0, 0.0),
            unavailable_reason: String::new(),
            objectives: Vec::new(),
            adapters: Vec::new(),
        };
        let view = PoolView::new(route.clone(), 0);
        let table = RouteTable { pools: vec![route], ..Default::default() };
        Self { snapshot, rates: Rates::default(), table, view, memory: RefCell::new(Memory::new(7)) }
    }

    fn placed(&self) -> Vec<BTreeSet<usize>> {
        let of = |r: usize| {
            let adapters = self.table.pools[0].adapters.iter().enumerate();
            adapters.filter(|(_, a)| a.placed.contains(&id(r))).map(|(i, _)| i).collect()
        };
        (0..REPLICAS).map(of).collect()
    }
}

impl Plan for Ours {
    fn report(&mut self, counts: &BTreeMap<usize, u64>, now_s: f64) {
        let asked: Vec<(String, u64)> = counts.iter().map(|(a, n)| (name(*a), *n)).collect();
        self.rates.observe(&asked, &self.snapshot, now_s);
    }

    fn place(&mut self, _: &[Engine], now_ms: f64) -> Vec<BTreeSet<usize>> {
        let rates = self.rates.rates(&self.snapshot, now_ms / 1e3);
        let before = self.table.clone();
        placing::route(&mut self.table, &self.snapshot, &rates, &BTreeMap::new(), Some(&before));
        self.placed()
    }

    fn loaded(&mut self, engines: &[Engine], now_ms: f64) {
        for (i, adapter) in self.table.pools[0].adapters.iter_mut().enumerate() {
            let ready = |r: &usize| engines[*r].ready_ms.get(&i).is_some_and(|at| *at <= now_ms + 1.0);
            adapter.held = (0..REPLICAS).filter(ready).map(id).collect();
        }
        self.table.version += 1;
        self.view = PoolView::new(self.table.pools[0].clone(), self.table.version);
    }

    fn choose(&mut self, adapter: usize, engines: &mut [Engine], now_ms: f64) -> Option<usize> {
        let running: Vec<f64> = engines.iter_mut().map(|e| e.running(now_ms) as f64).collect();
        let name = name(adapter);
        let request = route::Request {
            class: "default",
            prefix: &[],
            prompt_tokens: 500.0,
            tokens_per_block: 64.0,
            expected_output: 50.0,
            adapter: Some(&name),
            ttft_objective_ms: None,
        };
        let load = |i: usize| ReplicaLoad { running: running[i], ..ReplicaLoad::default() };
        let mut memory = self.memory.borrow_mut();
        let choice = route::choose(&self.view, &request, load, &mut memory);
        let first = choice.order.first()?;
        memory.record(&self.view, &request, first.endpoint);
        Some(first.endpoint)
    }
}

/// Adapters by their rates of the last five minutes, each copies in proportion, put where a min-cost flow says: a unit of flow is a copy, a slot its
/// capacity, a replica costs as much as the adapter's rendezvous hash ranks it (0–7), and nothing where it is already.
struct Flow {
    recent: VecDeque<BTreeMap<usize, u64>>,
    placed: Vec<BTreeSet<usize>>,
}

impl Plan for Flow {
    fn report(&mut self, counts: &BTreeMap<usize, u64>, _: f64) {
        self.recent.push_back(counts.clone());
        if self.recent.len() as f64 > 300.0 / REPORT_S {
            self.recent.pop_front();
        }
    }

    fn place(&mut self, _: &[Engine], _: f64) -> Vec<BTreeSet<usize>> {
        let mut rates = vec![0u64; ADAPTERS];
        self.recent.iter().flatten().for_each(|(adapter, count)| rates[*adapter] += count);
        let total = rates.iter().sum::<u64>().max(1) as f64;
        let mut wanted: Vec<usize> = (0..ADAPTERS).filter(|a| rates[*a] > 0).collect();
        wanted.sort_by_key(|a| (Reverse(rates[*a]), *a));
        let room = REPLICAS * (SLOTS - 1);
        let copies = |a: usize| (rates[a] as f64 / total * REPLICAS as f64).ceil() as usize;
        let mut units: Vec<(usize, usize)> = Vec::new();
        let mut used = 0;
        for adapter in wanted {
            let count = copies(adapter).min(REPLICAS).min(room - used);
            used += count;
            if count > 0 {
                units.push((adapter, count));
            }
        }
        let cost = |a: usize, r: usize| {
            if self.placed[r].contains(&a) { 0 } else { REPLICAS as i64 + RENDEZVOUS[a][r] as i64 }
        };
        self.placed = min_cost(&units, cost);
        self.placed.clone()
    }

    fn loaded(&mut self, _: &[Engine], _: f64) {}

    fn choose(&mut self, adapter: usize, engines: &mut [Engine], now_ms: f64) -> Option<usize> {
        let held = (0..REPLICAS).filter(|r| self.placed[*r].contains(&adapter));
        let ready: Vec<usize> =
            held.filter(|r| engines[*r].ready_ms.get(&adapter).is_some_and(|at| *at <= now_ms)).collect();
        ready.into_iter().min_by_key(|r| (engines[*r].running(now_ms), *r))
    }
}

/// What a slot at a replica costs, and what is moved there from where to free the one before; `None`: it is the new copy's own.
type Reached = (i64, Option<(usize, usize)>);

/// Successive shortest paths over adapters (with their copies) and replicas (with their slots); an arc carries one copy.
fn min_cost(units: &[(usize, usize)], cost: impl Fn(usize, usize) -> i64) -> Vec<BTreeSet<usize>> {
    let mut placed: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); REPLICAS];
    for &(adapter, count) in units {
        for _ in 0..count {
            // Bellman-Ford over replicas: how to free a slot at each, by moving what is there on to another.
            let mut reach: Vec<Option<Reached>> = (0..REPLICAS)
                .map(|r| (!placed[r].contains(&adapter)).then(|| (cost(adapter, r), None)))
                .collect();
            let mut better = true;
            for _ in 0..REPLICAS {
                if !std::mem::take(&mut better) {
                    break;
                }
                for from in 0..REPLICAS {
                    let Some((so_far, _)) = reach[from] else { continue };
                    for &moved in &placed[from] {
                        for to in (0..REPLICAS).filter(|to| !placed[*to].contains(&moved)) {
                            let through = so_far - cost(moved, from) + cost(moved, to);
                            if reach[to].is_none_or(|(known, _)| through < known) {
                                reach[to] = Some((through, Some((from, moved))));
                                better = true;
                            }
                        }
                    }
                }
            }
            let free = (0..REPLICAS).filter(|r| placed[*r].len() < SLOTS - 1);
            let Some(mut at) = free.filter(|r| reach[*r].is_some()).min_by_key(|r| reach[*r].unwrap().0)
            else {
                break;
            };
            let mut steps = 0;
            while let Some((_, Some((from, moved)))) = reach[at] {
                placed[from].remove(&moved);
                placed[at].insert(moved);
                at = from;
                steps += 1;
                if steps > REPLICAS {
                    break;
                }
            }
            placed[at].insert(adapter);
        }
    }
    placed
}

fn run(asked: &[Asked], policy: &mut dyn Policy) -> (Tally, f64) {
    let mut engines: Vec<Engine> = (0..REPLICAS).map(|_| Engine::default()).collect();
    let mut tally = Tally::default();
    for &one in asked {
        policy.serve(one, &mut engines, &mut tally);
    }
    let most = engines.iter().map(|e| e.served).max().unwrap_or(0);
    (tally, most as f64 / asked.len() as f64)
}

fn print(name: &str, tally: Tally, busiest: Option<f64>) {
    let Tally { loads, hits, mut waits_ms, starved, asked } = tally;
    waits_ms.sort_by(f32::total_cmp);
    let count = waits_ms.len();
    let at = |q: f64| waits_ms[((count - 1) as f64 * q) as usize];
    let mean = waits_ms.iter().map(|w| f64::from(*w)).sum::<f64>() / count as f64;
    let busiest = busiest.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share));
    println!(
        "{name:<32}{:>8.0}{:>8.1}{:>11.1}{:>11.0}{:>11.0}{:>11.0}{:>12}{:>9}",
        loads as f64 * 1e3 / count as f64,
        1e2 * hits as f64 / count as f64,
        mean,
        at(0.5),
        at(0.99),
        at(0.999),
        format!("{} of {}", starved.len(), asked.len()),
        busiest
    );
}

fn main() {
    let hours = std::env::args().skip(1).find_map(|arg| arg.parse::<f64>().ok()).unwrap_or(24.0);
    let asked = requests(hours);
    println!(
        "{} requests in {hours} h, {ADAPTERS} adapters, {REPLICAS} replicas with {SLOTS} slots",
        asked.len()
    );
    println!(
        "{:<32}{:>8}{:>8}{:>11}{:>11}{:>11}{:>11}{:>12}{:>9}",
        "", "loads", "hits", "added", "p50", "p99", "p99.9", "starved", "busiest"
    );
    println!(
        "{:<32}{:>8}{:>8}{:>11}{:>11}{:>11}{:>11}{:>12}{:>9}",
        "", "a 1,000", "%", "ms", "ms", "ms", "ms", "", ""
    );
    for (name, rule, home) in [
        ("LRU, any replica", Rule::Lru, false),
        ("LRU, rendezvous", Rule::Lru, true),
        ("LFU, rendezvous", Rule::Lfu, true),
        ("GDSF, rendezvous", Rule::Gdsf, true),
    ] {
        let slots = (0..REPLICAS).map(|_| Slots::new(rule, SLOTS)).collect();
        let (tally, busiest) = run(&asked, &mut OnDemand { slots, home, turn: 0 });
        print(name, tally, Some(busiest));
    }
    let flow = Flow { recent: VecDeque::new(), placed: vec![BTreeSet::new(); REPLICAS] };
    let (tally, busiest) = run(&asked, &mut Planned::new(flow, false));
    print("rendezvous and min-cost flow", tally, Some(busiest));
    for (name, heed_loads, spread) in [
        ("Plimsoll", true, false),
        ("all loads taken for equal", false, false),
        ("visitors where nobody loads", true, true),
        ("both", false, true),
    ] {
        let (tally, busiest) = run(&asked, &mut Planned::new(Ours::new(heed_loads), spread));
        print(name, tally, Some(busiest));
    }
    print("Belady, rendezvous", clairvoyant(&asked, false), None);
    print("Belady, an oracle routes", clairvoyant(&asked, true), None);
}
