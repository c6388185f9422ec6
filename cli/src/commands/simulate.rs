//! `plimsoll simulate`: traffic through a fleet in virtual time, under Plimsoll and under what others do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::{ClusterSnapshot, DemandPrior, LengthDistribution, PoolId, PoolPlan, Role, Shape};
use plimsoll_scheduler::plan::PlannerConfig;
use plimsoll_scheduler::planner::{EnginePlanner, plan_offline};
use plimsoll_simulator::fleet::policy::Rules;
use plimsoll_simulator::fleet::policy::rules::{Apa, Hpa, Keda, Kpa, Metric, Rule, Static};
use plimsoll_simulator::fleet::{
    Outcome as Played, Plimsoll, Policy, PoolOutcome, Scenario, Settings, Traffic, simulate,
};
use plimsoll_simulator::trace::{self, GeneratorConfig, Profile, ReadOptions, Trace};

use crate::failure::{Failure, Outcome};
use crate::manifests;
use crate::nodespec::NodeGroups;
use crate::terminal::progress_target;

/// Play traffic through a fleet in virtual time: how well it would have been served, and what it would have cost, under which policy
///
/// Engines are simulated step by step; forecast, plan, fast loop, routing and admission are the code that runs in production. Other
/// policies scale replicas of the shape that Plimsoll plans for the busiest minute, behind the same routing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest file or folder; may be repeated
    #[arg(short = 'f', long = "filename", required = true)]
    files: Vec<PathBuf>,
    /// Nodes, as COUNTxGPUSxCLASS,…
    #[arg(long, default_value = "4x8xh100,2x4xl40s,2x1xl4")]
    nodes: NodeGroups,
    /// Requests for a pool, as POOL=TRACE: a file (Azure CSV, Mooncake JSONL) or azure-conv, azure-code, mooncake, constant, ramp,
    /// staircase, flash-crowd; may be repeated. Without POOL=: for the only pool, or the first
    #[arg(long = "traffic", value_name = "[POOL=]TRACE", default_value = "azure-conv")]
    traffic: Vec<String>,
    /// How much of each trace to play, in its own time, e.g. 2h [default: all of a file, 30m of a generated one]
    #[arg(long)]
    duration: Option<SignedDuration>,
    /// Mean rate of generated traces, requests per second [default: the profile's own]
    #[arg(long)]
    rps: Option<f64>,
    /// Let requests come this many times as fast as the trace says
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Policies to compare: plimsoll, peak (as many replicas as the busiest minute needs), static:N, hpa, keda, apa, kpa; the last four
    /// scale on requests in flight a replica, of which they take as target what Plimsoll plans, or the number given (hpa:32); comma-separated
    #[arg(long, value_delimiter = ',', default_value = "plimsoll,peak,hpa")]
    policy: Vec<Wanted>,
    /// Time from the start before which nothing is counted, e.g. 5m
    #[arg(long, default_value = "0s")]
    warm_up: SignedDuration,
    /// Engines take this many times as long as the engine model says
    #[arg(long, default_value_t = 1.0)]
    slowdown: f64,
    /// Clients say how long their answers will be, as `plimsoll replay` does
    #[arg(long)]
    lengths_known: bool,
    /// Seed of generated traces and of the router
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to print; json has the timeline and the reason of each change
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A policy as a person asks for it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wanted {
    Plimsoll,
    Peak,
    Static(u32),
    Hpa(Option<f64>),
    Keda(Option<f64>),
    Apa(Option<f64>),
    Kpa(Option<f64>),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, figure) = match text.split_once(':') {
            Some((name, figure)) => (name, Some(figure)),
            None => (text, None),
        };
        let target = || {
            let parsed = figure.map(|f| f.parse::<f64>().ok().filter(|t| t.is_finite() && *t > 0.0));
            match parsed {
                Some(None) => Err(format!("{text:?}: the target is not a positive number, as in {name}:32")),
                Some(target) => Ok(target),
                None => Ok(None),
            }
        };
        match (name, figure) {
            ("plimsoll", None) => Ok(Self::Plimsoll),
            ("peak", None) => Ok(Self::Peak),
            ("static", Some(n)) => n
                .parse()
                .map(Self::Static)
                .map_err(|_| format!("{text:?}: give a number of replicas, as in static:4")),
            ("hpa", _) => Ok(Self::Hpa(target()?)),
            ("keda", _) => Ok(Self::Keda(target()?)),
            ("apa", _) => Ok(Self::Apa(target()?)),
            ("kpa", _) => Ok(Self::Kpa(target()?)),
            _ => {
                Err(format!("{text:?} is no policy; there are plimsoll, peak, static:N, hpa, keda, apa, kpa"))
            }
        }
    }
}

/// What others scale, taken from Plimsoll's plan for a pool's busiest minute.
#[derive(Debug, Clone, PartialEq)]
struct Sized {
    shape: Shape,
    /// Replicas for the busiest minute.
    peak: u32,
    /// Requests in flight in one replica at its planned load.
    in_flight: f64,
}

/// Runs it.
///
/// # Errors
/// If manifests or traces cannot be read, or there is nothing to play.
pub fn run(args: &Args) -> Outcome {
    let mut loaded = manifests::load(&args.files)?;
    for problem in &loaded.problems {
        eprintln!("skipped {problem}");
    }
    manifests::add_nodes(&mut loaded.snapshot, &args.nodes)?;
    let scenario = scenario(args, loaded.snapshot)?;
    scenario.check().map_err(|e| Failure::new(e.to_string()))?;
    let sized =
        if args.policy.iter().all(|p| *p == Wanted::Plimsoll) { BTreeMap::new() } else { sized(&scenario)? };
    let mut played = Vec::new();
    for wanted in &args.policy {
        let mut policy = policy(*wanted, &scenario, &sized)?;
        let bar = bar(&policy.name());
        let outcome = simulate(&scenario, policy.as_mut(), |progress| {
            bar.set_length(progress.of_seconds as u64);
            bar.set_position(progress.seconds.min(progress.of_seconds) as u64);
        })
        .map_err(|e| Failure::new(e.to_string()))?;
        bar.finish_and_clear();
        played.push(outcome);
    }
    match args.output {
        Output::Table => println!("{}", table(&played).join("\n")),
        Output::Json => {
            let text = serde_json::to_string_pretty(&played)
                .map_err(|e| Failure::caused("the outcome cannot be written as JSON", e))?;
            println!("{text}");
        }
    }
    Ok(())
}

fn bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), progress_target()).with_message(name.to_owned());
    let style = ProgressStyle::with_template("{msg:<24} {bar:40} {pos:>6}/{len} s  {elapsed}");
    style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

fn scenario(args: &Args, cluster: ClusterSnapshot) -> Result<Scenario, Failure> {
    let mut traffic = Vec::new();
    for (i, spec) in args.traffic.iter().enumerate() {
        let named = spec.split_once('=').map(|(pool, trace)| (Some(pool), trace));
        let (pool, of) = named.unwrap_or((None, spec.as_str()));
        let trace = read(args, of, args.seed.wrapping_add(i as u64))?;
        for note in &trace.notes {
            eprintln!("note: {note}");
        }
        let pool = find(&cluster, pool)?;
        traffic.push(Traffic { pool, slo_class: String::new(), trace });
    }
    let settings = Settings {
        warm_up_seconds: args.warm_up.as_secs_f64(),
        slowdown: args.slowdown,
        lengths_known: args.lengths_known,
        seed: args.seed,
        ..Settings::default()
    };
    Ok(Scenario { cluster, traffic, settings })
}

fn read(args: &Args, spec: &str, seed: u64) -> Result<Trace, Failure> {
    let seconds = args.duration.unwrap_or(SignedDuration::from_mins(30)).as_secs_f64();
    let mut generated = GeneratorConfig::new(Profile::AzureConv, seconds * args.speed.max(1e-9), seed);
    generated.rps = args.rps;
    let full = trace::open(spec, &ReadOptions::default(), &generated)
        .map_err(|e| Failure::new(e.to_string()))?
        .scale_rate(args.speed);
    let duration_ms = args.duration.map_or(f64::MAX, |d| d.as_secs_f64() * 1000.0);
    Ok(full.slice(0.0, duration_ms))
}

/// The pool of this name, with or without its namespace; the first where none is given.
fn find(cluster: &ClusterSnapshot, name: Option<&str>) -> Result<PoolId, Failure> {
    let known = || cluster.pools.iter().map(|p| p.id.to_string()).collect::<Vec<_>>().join(", ");
    let found = cluster
        .pools
        .iter()
        .find(|p| name.is_none_or(|name| p.id.to_string() == name || p.id.name() == name));
    found.map(|p| p.id.clone()).ok_or_else(|| match name {
        Some(name) => Failure::new(format!("no pool {name:?} in the manifests; there are: {}", known())),
        None => Failure::new("no ModelPool in the manifests").hint("name files with pools: -f examples/"),
    })
}

/// What Plimsoll plans for each pool's busiest minute.
fn sized(scenario: &Scenario) -> Result<BTreeMap<PoolId, Sized>, Failure> {
    let mut cluster = scenario.cluster.clone();
    for pool in &mut cluster.pools {
        let requests = || {
            let own = scenario.traffic.iter().filter(|t| t.pool == pool.id);
            own.flat_map(|t| &t.trace.requests)
        };
        let lengths = |of: fn(&trace::TraceRequest) -> u32| {
            let mut all: Vec<f64> = requests().map(|r| f64::from(of(r))).collect();
            all.sort_by(f64::total_cmp);
            let mean_tokens = all.iter().sum::<f64>() / (all.len() as f64).max(1.0);
            let p95_tokens = all.get(all.len().saturating_sub(1) * 95 / 100).copied().unwrap_or(0.0);
            LengthDistribution { mean_tokens, p95_tokens: p95_tokens.max(mean_tokens) }
        };
        let mut minutes: BTreeMap<u64, u32> = BTreeMap::new();
        requests().for_each(|r| *minutes.entry((r.at_ms / 60_000.0) as u64).or_default() += 1);
        let rps = minutes.values().max().map_or(0.0, |n| f64::from(*n) / 60.0);
        if rps > 0.0 {
            let (input, output) = (lengths(|r| r.input_tokens), lengths(|r| r.output_tokens));
            pool.demand = Some(DemandPrior { rps, input, output });
        }
    }
    let planner = EnginePlanner::new(PlannerConfig::default());
    let (plan, _) =
        plan_offline(&planner, cluster, None, &[], Timestamp::UNIX_EPOCH).map_err(Failure::new)?;
    let mut sized = BTreeMap::new();
    for pool in &plan.pools {
        let Some(found) = size(pool) else {
            // One that nobody asks for may well be at zero.
            if scenario.traffic.iter().all(|t| t.pool != pool.pool) {
                continue;
            }
            let what = format!("no other policy can be played: no shape serves {} in one piece", pool.pool);
            let hint = "play --policy plimsoll alone, or give the pool other nodes or objectives";
            return Err(Failure::new(what).hint(hint));
        };
        sized.insert(pool.pool.clone(), found);
    }
    Ok(sized)
}

fn size(pool: &PoolPlan) -> Option<Sized> {
    let shapes = pool.by_shape();
    let (shape, _) = shapes.iter().filter(|(s, _)| s.role == Role::Mixed).max_by_key(|(_, n)| **n)?;
    let (_, line) = pool.load_lines.iter().find(|(s, _)| s == shape).filter(|(_, line)| *line > 0.0)?;
    let total = pool.demand.total_rps().max(1e-9);
    let output = pool.demand.classes.iter().map(|c| c.rps * c.output_tokens).sum::<f64>() / total;
    let (ttft, tpot) = (pool.prediction.ttft_ms.unwrap_or(0.0), pool.prediction.tpot_ms.unwrap_or(0.0));
    // Little's law at the load line.
    let in_flight = (line * (ttft + tpot * output) / 1000.0).max(1.0);
    Some(Sized { shape: shape.clone(), peak: (total / line).ceil().max(1.0) as u32, in_flight })
}

fn policy(
    wanted: Wanted,
    scenario: &Scenario,
    sized: &BTreeMap<PoolId, Sized>,
) -> Result<Box<dyn Policy>, Failure> {
    let rules = |name: String, rule: &dyn Fn(&Sized, bool) -> Box<dyn Rule>| -> Box<dyn Policy> {
        let of = |pool: &plimsoll_fleet::ModelPool| {
            let sized = sized.get(&pool.id)?;
            let may_sleep = pool.scaling.min_replicas == 0;
            Some((pool.id.clone(), sized.shape.clone(), rule(sized, may_sleep)))
        };
        Box::new(Rules::new(name, scenario.cluster.pools.iter().filter_map(of)))
    };
    let metric = Metric::InFlight;
    let named = |name: &str, target: Option<f64>| match target {
        Some(target) => format!("{name} at {target}"),
        None => name.to_owned(),
    };
    Ok(match wanted {
        Wanted::Plimsoll => {
            let planner = PlannerConfig::default();
            Box::new(Plimsoll::new(planner, Timestamp::UNIX_EPOCH).map_err(|e| Failure::new(e.to_string()))?)
        }
        Wanted::Peak => rules("static peak".to_owned(), &|s, _| Box::new(Static(s.peak))),
        Wanted::Static(n) => rules(format!("static {n}"), &move |_, _| Box::new(Static(n))),
        Wanted::Hpa(t) => {
            rules(named("HPA", t), &move |s, _| Box::new(Hpa::new(metric, t.unwrap_or(s.in_flight))))
        }
        Wanted::Keda(t) => rules(named("KEDA", t), &move |s, may_sleep| {
            Box::new(Keda::new(metric, t.unwrap_or(s.in_flight), may_sleep))
        }),
        Wanted::Apa(t) => {
            rules(named("AIBrix APA", t), &move |s, _| Box::new(Apa::new(metric, t.unwrap_or(s.in_flight))))
        }
        Wanted::Kpa(t) => {
            rules(named("AIBrix KPA", t), &move |s, _| Box::new(Kpa::new(metric, t.unwrap_or(s.in_flight))))
        }
    })
}

fn table(played: &[Played]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<20} {:<20} {:>9} {:>11} {:>9} {:>13} {:>9} {:>10} {:>10}",
        "POLICY", "POOL", "REQUESTS", "ATTAINMENT", "$", "REPLICAS", "REVERSALS", "TTFT p99", "TPOT p99"
    )];
    for outcome in played {
        for (i, pool) in outcome.pools.iter().filter(|p| p.requests > 0 || p.usd > 0.0).enumerate() {
            lines.push(format!(
                "{:<20} {:<20} {:>9} {:>11} {:>9.2} {:>6.1} (≤ {:>2}) {:>9} {:>7.0} ms {:>7.0} ms",
                if i == 0 { outcome.policy.as_str() } else { "" },
                pool.pool.to_string(),
                pool.requests,
                attainment(pool),
                pool.usd,
                pool.mean_replicas,
                pool.peak_replicas,
                pool.reversals,
                pool.ttft_ms.p99,
                pool.tpot_ms.p99,
            ));
        }
    }
    if let Some(first) = played.first() {
        lines.push(format!(
            "{:.0} s of traffic; $ is the price of the accelerators held in that time",
            first.seconds
        ));
    }
    lines
}

/// Share of requests within their objectives; a dash where nobody asked.
fn attainment(pool: &PoolOutcome) -> String {
    match pool.requests {
        0 => "–".to_owned(),
        n => format!("{:.1} %", 100.0 * pool.attained as f64 / n as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(extra: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        <Cli as clap::Parser>::parse_from(
            ["simulate", "-f", examples].into_iter().chain(extra.iter().copied()),
        )
        .args
    }

    #[test]
    fn policies_read_as_people_write_them() {
        assert_eq!("hpa:32".parse(), Ok(Wanted::Hpa(Some(32.0))));
        assert_eq!("static:4".parse(), Ok(Wanted::Static(4)));
        for bad in ["hpa:-1", "static", "static:x", "plimsoll:1", "vpa", "keda:NaN"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pool_is_found_with_or_without_its_namespace() {
        let args = args(&["--traffic", "chat=constant", "--rps", "2", "--duration", "1m"]);
        let loaded = manifests::load(&args.files).unwrap();
        let scenario = scenario(&args, loaded.snapshot.clone()).unwrap();
        assert_eq!(scenario.traffic[0].pool.to_string(), "default/chat");
        let e = find(&loaded.snapshot, Some("chta")).unwrap_err().to_string();
        assert!(e.contains("no pool \"chta\"") && e.contains("default/chat"), "{e}");
    }

    #[test]
    fn others_scale_what_plimsoll_plans() {
        let args = args(&["--traffic", "chat=constant", "--rps", "20", "--duration", "2m"]);
        let mut loaded = manifests::load(&args.files).unwrap();
        manifests::add_nodes(&mut loaded.snapshot, &args.nodes).unwrap();
        let scenario = scenario(&args, loaded.snapshot).unwrap();
        let sized = sized(&scenario).unwrap();
        let chat = &sized[&"default/chat".parse().unwrap()];
        assert!(chat.peak >= 1 && chat.in_flight >= 1.0, "{chat:?}");
    }
}
