//! Choosing among a group of adapters on one engine, in a setting like POLAR's (arXiv 2604.16583): regret against the best fixed set of
//! residents with every quality known (of each part, where popularity changes).
//!
//! `cargo bench -p plimsoll-agent --bench lora [-- FILE.svg]` prints the table, and draws the curves where a file is named. 15 adapters of
//! Qwen2.5-7B on 4 slots; a request's context is one of 15 tasks, by Zipf's law, and noise; each adapter is best at one task, all
//! others by how alike tasks are. The paper's paging latencies are not published: loads here are the bytes of all linear layers at the
//! adapter's rank (5.05 MB a rank in bf16) over 3 GB/s. It reads no clock: every run prints the same.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use plimsoll_agent::adapters::eviction::{Rule, Slots};
use plimsoll_agent::adapters::residents::{self, Demand};
use plimsoll_agent::adapters::{Adapter, Epochs, Polar, Settings};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ADAPTERS: usize = 15;
const DIMENSION: usize = 8;
const SLOTS: usize = 4;
const REQUESTS: usize = 40_000;
const SEEDS: u64 = 10;
/// Standard deviation of a reward.
const NOISE: f64 = 0.1;
const MB_PER_RANK: f64 = 5.05;
const MB_PER_MS: f64 = 3.0;
/// What a millisecond of loading is worth, in quality, which goes from about 0 to 1: an adapter of rank 16 takes 27 ms.
const PRICES_PER_MS: [f64; 2] = [0.002, 0.01];
const RANKS: [f64; ADAPTERS] =
    [16.0, 8.0, 64.0, 16.0, 32.0, 16.0, 128.0, 8.0, 64.0, 32.0, 16.0, 64.0, 8.0, 32.0, 16.0];
/// Points of a curve.
const POINTS: usize = 40;

type Figures = [f64; DIMENSION];

fn normal(rng: &mut SmallRng) -> f64 {
    let (radius, angle): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random_range(0.0..1.0));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

fn direction(rng: &mut SmallRng) -> Figures {
    let drawn: Figures = std::array::from_fn(|_| normal(rng));
    let length = dot(&drawn, &drawn).sqrt();
    drawn.map(|figure| figure / length)
}

fn dot(a: &Figures, b: &Figures) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What there is to learn, and the requests that come.
struct World {
    quality: [Figures; ADAPTERS],
    load_ms: [f64; ADAPTERS],
    price_per_ms: f64,
    shifts: usize,
    contexts: Vec<Figures>,
    noise: Vec<f64>,
}

impl World {
    /// `shifts`: how many times, evenly spaced, the tasks change their popularity.
    fn new(seed: u64, shifts: usize, price_per_ms: f64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let tasks: Vec<Figures> = (0..ADAPTERS).map(|_| direction(&mut rng)).collect();
        let quality = std::array::from_fn(|i| {
            let slant = direction(&mut rng);
            std::array::from_fn(|f| 0.8 * tasks[i][f] + 0.2 * slant[f])
        });
        let mut order: Vec<usize> = (0..ADAPTERS).collect();
        let weights: Vec<f64> = (1..=ADAPTERS).map(|rank| 1.0 / rank as f64).collect();
        let all: f64 = weights.iter().sum();
        let contexts = (0..REQUESTS)
            .map(|at| {
                if at.is_multiple_of(REQUESTS / (shifts + 1)) {
                    (1..ADAPTERS).rev().for_each(|i| order.swap(i, rng.random_range(0..=i)));
                }
                let mut drawn = rng.random_range(0.0..all);
                let rank = weights
                    .iter()
                    .position(|weight| {
                        drawn -= weight;
                        drawn < 0.0
                    })
                    .unwrap_or(0);
                let task = tasks[order[rank]];
                let noisy: Figures = std::array::from_fn(|f| task[f] + 0.15 * normal(&mut rng));
                let length = dot(&noisy, &noisy).sqrt();
                noisy.map(|figure| figure / length)
            })
            .collect();
        let noise = (0..REQUESTS).map(|_| NOISE * normal(&mut rng)).collect();
        Self {
            quality,
            load_ms: RANKS.map(|rank| rank * MB_PER_RANK / MB_PER_MS),
            price_per_ms,
            shifts,
            contexts,
            noise,
        }
    }

    fn load_price(&self, adapter: usize) -> f64 {
        self.price_per_ms * self.load_ms[adapter]
    }

    /// The best of a request with `residents` at hand.
    fn best(&self, context: &Figures, residents: &BTreeSet<usize>) -> f64 {
        (0..ADAPTERS)
            .map(|i| {
                let load = if residents.contains(&i) { 0.0 } else { self.load_price(i) };
                dot(context, &self.quality[i]) - load
            })
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// The best fixed residents for some of what comes.
    fn oracle(&self, contexts: &[Figures]) -> BTreeSet<usize> {
        let demand: Vec<Demand> = contexts
            .iter()
            .step_by(20)
            .map(|x| Demand {
                weight: 20.0,
                choices: self.quality.iter().map(|q| dot(x, q)).enumerate().collect(),
            })
            .collect();
        let load_price: Vec<f64> = (0..ADAPTERS).map(|i| self.load_price(i)).collect();
        residents::best(&demand, &load_price, SLOTS, &BTreeSet::new())
    }
}

/// Adapter and what is paid for loads before it answers.
trait Policy {
    fn serve(&mut self, world: &World, context: &Figures) -> (usize, f64);
    fn reward(&mut self, adapter: usize, context: &Figures, reward: f64);
}

fn polar(epochs: Epochs, world: &World, price_per_ms: f64) -> Polar {
    let settings = Settings {
        slots: SLOTS,
        dimension: DIMENSION,
        ridge: 1.0,
        width: 0.5,
        price_per_ms,
        epochs,
        window: 2_000,
    };
    let adapters = world.load_ms.iter().enumerate();
    Polar::new(settings, adapters.map(|(i, &load_ms)| Adapter { name: i.to_string(), load_ms }).collect())
        .unwrap()
}

impl Policy for Polar {
    fn serve(&mut self, world: &World, context: &Figures) -> (usize, f64) {
        let all: Vec<usize> = (0..ADAPTERS).collect();
        let choice = self.choose(context, &all).unwrap();
        let moved: f64 = choice.moves.load.iter().map(|&i| world.load_price(i)).sum();
        let missed = if choice.ready { 0.0 } else { world.load_price(choice.adapter) };
        (choice.adapter, moved + missed)
    }

    fn reward(&mut self, adapter: usize, context: &Figures, reward: f64) {
        Self::reward(self, adapter, context, reward).unwrap();
    }
}

/// LinUCB that knows nothing of slots, over slots filled on demand.
struct Demanded {
    linucb: Polar,
    slots: Slots,
}

impl Policy for Demanded {
    fn serve(&mut self, world: &World, context: &Figures) -> (usize, f64) {
        let all: Vec<usize> = (0..ADAPTERS).collect();
        let adapter = self.linucb.choose(context, &all).unwrap().adapter;
        let hit = self.slots.request(adapter, world.load_ms[adapter], RANKS[adapter]);
        (adapter, if hit { 0.0 } else { world.load_price(adapter) })
    }

    fn reward(&mut self, adapter: usize, context: &Figures, reward: f64) {
        self.linucb.reward(adapter, context, reward).unwrap();
    }
}

/// One policy's totals after each of [`POINTS`] equal parts.
#[derive(Default, Clone)]
struct Curve {
    regret: Vec<f64>,
    loads_per_1000: f64,
}

fn run(world: &World, policy: &mut dyn Policy) -> Curve {
    let part = REQUESTS / (world.shifts + 1);
    let oracles: Vec<BTreeSet<usize>> = world.contexts.chunks(part).map(|part| world.oracle(part)).collect();
    let (mut regret, mut loads) = (0.0, 0.0);
    let mut curve = Curve::default();
    for (at, (context, noise)) in world.contexts.iter().zip(&world.noise).enumerate() {
        let (adapter, paid) = policy.serve(world, context);
        let quality = dot(context, &world.quality[adapter]);
        policy.reward(adapter, context, quality + noise);
        regret += world.best(context, &oracles[at / part]) - (quality - paid);
        loads += f64::from(u8::from(paid > 0.0));
        if (at + 1).is_multiple_of(REQUESTS / POINTS) {
            curve.regret.push(regret);
        }
    }
    curve.loads_per_1000 = loads * 1_000.0 / REQUESTS as f64;
    curve
}

fn policy(name: &str, world: &World) -> Box<dyn Policy> {
    let fixed = ((SLOTS * REQUESTS) as f64).sqrt().ceil() as usize;
    let doubling = |longest, keep| Epochs::Doubling { first: 200, longest, exploration: 0.1, keep };
    let linucb = || polar(Epochs::Fixed { requests: usize::MAX }, world, 0.0);
    let demanded = |rule| Box::new(Demanded { linucb: linucb(), slots: Slots::new(rule, SLOTS) });
    match name {
        "POLAR" => Box::new(polar(Epochs::Fixed { requests: fixed }, world, world.price_per_ms)),
        "POLAR+" => Box::new(polar(doubling(usize::MAX, 1.0), world, world.price_per_ms)),
        "POLAR+, epochs of 1,000 at most" => Box::new(polar(doubling(1_000, 1.0), world, world.price_per_ms)),
        "LRU and LinUCB" => demanded(Rule::Lru),
        "LFU and LinUCB" => demanded(Rule::Lfu),
        _ => demanded(Rule::Gdsf),
    }
}

const POLICIES: [&str; 6] = [
    "POLAR",
    "POLAR+",
    "POLAR+, epochs of 1,000 at most",
    "LRU and LinUCB",
    "LFU and LinUCB",
    "GDSF and LinUCB",
];

fn mean(curves: &[Curve]) -> Curve {
    let count = curves.len() as f64;
    let regret = (0..POINTS).map(|p| curves.iter().map(|c| c.regret[p]).sum::<f64>() / count).collect();
    Curve { regret, loads_per_1000: curves.iter().map(|c| c.loads_per_1000).sum::<f64>() / count }
}

/// p of regret ~ requests^p over the second half: below 1 is sublinear.
fn exponent(curve: &Curve) -> f64 {
    (curve.regret[POINTS - 1] / curve.regret[POINTS / 2 - 1]).log2()
}

fn main() {
    let file = std::env::args().skip(1).find(|arg| arg.ends_with(".svg"));
    println!("{ADAPTERS} adapters, {SLOTS} slots, {REQUESTS} requests, {SEEDS} seeds");
    let settings = PRICES_PER_MS.into_iter().flat_map(|price| [(price, 0), (price, 3)]);
    for (price, shifts) in settings {
        let popularity = if shifts == 0 { "as it is" } else { "changes three times" };
        println!("\npopularity {popularity}, a second of loading worth {:.0}", price * 1e3);
        println!(
            "{:<34}{:>12}{:>12}{:>12}{:>10}{:>18}",
            "", "regret, 1/4", "1/2", "all", "exponent", "loads per 1,000"
        );
        let curves: Vec<(&str, Curve)> = POLICIES
            .iter()
            .map(|&name| {
                let seeds: Vec<Curve> = (0..SEEDS)
                    .map(|seed| {
                        let world = World::new(seed, shifts, price);
                        run(&world, policy(name, &world).as_mut())
                    })
                    .collect();
                (name, mean(&seeds))
            })
            .collect();
        for (name, curve) in &curves {
            println!(
                "{name:<34}{:>12.0}{:>12.0}{:>12.0}{:>10.2}{:>18.1}",
                curve.regret[POINTS / 4 - 1],
                curve.regret[POINTS / 2 - 1],
                curve.regret[POINTS - 1],
                exponent(curve),
                curve.loads_per_1000
            );
        }
        if let Some(file) = file.as_ref().filter(|_| (price, shifts) == (PRICES_PER_MS[0], 0)) {
            std::fs::write(file, drawing(&curves)).unwrap();
            println!("drawn: {file}");
        }
    }
}

fn drawing(curves: &[(&str, Curve)]) -> String {
    /// Colours that colour-blind people tell apart (Okabe and Ito).
    const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7"];
    let (width, height, left, bottom) = (560.0, 300.0, 60.0, 40.0);
    let most = curves.iter().flat_map(|(_, c)| c.regret.iter().copied()).fold(1.0, f64::max);
    let x = |point: usize| left + (width - left - 20.0) * (point + 1) as f64 / POINTS as f64;
    let y = |regret: f64| height - bottom - (height - bottom - 20.0) * regret / most;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\
         <title>Regret of choosing among adapters</title><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for part in 0..=4 {
        let regret = most * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{regret:.0}</text>",
            width - 20.0,
            left - 6.0,
            y(regret) + 4.0,
            y = y(regret)
        );
        let requests = REQUESTS * part as usize / 4;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{requests}</text>",
            left + (width - left - 20.0) * f64::from(part) / 4.0,
            height - bottom + 16.0
        );
    }
    let _ = writeln!(out, "<text x=\"{left}\" y=\"12\">regret</text>");
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">requests</text>",
        width - 20.0,
        height - 8.0
    );
    for (index, ((name, curve), colour)) in curves.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> =
            curve.regret.iter().enumerate().map(|(p, r)| format!("{:.1},{:.1}", x(p), y(*r))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            left + 10.0,
            34.0 + 14.0 * index as f64
        );
    }
    out.push_str("</svg>\n");
    out
}
