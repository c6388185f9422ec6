//! What fleets lose when delays or demand turn out otherwise than forecast: `cargo bench -p plimsoll-scheduler --bench stress [-- pools=N try=MARGIN,PRICE,ERROR]`.
//!
//! Each fleet is made for the forecast and then judged in other worlds: all delays 1.5 times as long, demand 1.5 times as large,
//! and many worlds in which the engine model's error and the forecast's are drawn at random (log-normal, the planner's own spreads).
//! Requests are routed as well as they can be; those above the load line are lost, and all of a shape that misses an objective.

mod support;

use plimsoll_fleet::plan::Prediction;
use plimsoll_fleet::*;
use plimsoll_scheduler::baselines::{
    Candidates, Verdict, adaptive_greedy, judge, of_plan, translate, with_problem,
};
use plimsoll_scheduler::plan::performance::{Evaluation, Misfit, Performance, Query};
use plimsoll_scheduler::plan::program::Fleet;
use plimsoll_scheduler::plan::{EngineModel, PlannerConfig, plan};
use support::fleet::World;
use support::{Failure, Noise};

/// The engine model where everything takes so many times as long.
struct Slower(f64, EngineModel);

impl Slower {
    fn ask<'a>(&self, q: &Query<'a>) -> Query<'a> {
        Query { margin: ((1.0 + q.margin) * self.0 - 1.0).max(0.0), ..*q }
    }
}

impl Performance for Slower {
    fn evaluate(&self, q: &Query<'_>) -> Result<Evaluation, Misfit> {
        self.1.evaluate(&self.ask(q))
    }

    fn predict(&self, q: &Query<'_>, rps: f64) -> Option<Prediction> {
        self.1.predict(q, rps)
    }

    fn coefficients(&self, q: &Query<'_>) -> Option<StepCoefficients> {
        self.1.coefficients(q)
    }
}

/// Settings that know no margin at all.
fn without_margins() -> PlannerConfig {
    PlannerConfig {
        margin_factor: 0.0,
        scale_down_headroom: 0.0,
        lost_request_price: 0.0,
        ..PlannerConfig::default()
    }
}

/// How another world judges a fleet that was made for `world`'s forecast: delays and each pool's demand by factors.
fn judged(
    world: &World,
    fleet: &dyn Fn(&plimsoll_scheduler::plan::program::Problem<'_>) -> Fleet,
    delays: f64,
    demand: &dyn Fn(usize) -> f64,
) -> Verdict {
    let mut demands = world.demands.clone();
    for (i, estimate) in demands.values_mut().enumerate() {
        estimate.classes.iter_mut().for_each(|c| c.rps *= demand(i));
    }
    let config = without_margins();
    let cache = plimsoll_scheduler::plan::ShapeCache::default();
    let base = world.input(&world.snapshot);
    let input =
        plimsoll_scheduler::plan::PlanInput { demands: &demands, config: &config, cache: &cache, ..base };
    with_problem(&input, &Slower(delays, EngineModel), Candidates::All, |truth| judge(truth, &fleet(truth)))
}

/// A standard normal figure.
fn normal(noise: &mut Noise) -> f64 {
    (0..12).map(|_| noise.next()).sum::<f64>() - 6.0
}

fn row(
    name: &str,
    world: &World,
    fleet: &dyn Fn(&plimsoll_scheduler::plan::program::Problem<'_>) -> Fleet,
    least: &mut f64,
) {
    let lost = |v: &Verdict| 100.0 * (1.0 - v.attainment());
    let calm = judged(world, fleet, 1.0, &|_| 1.0);
    if least.is_nan() {
        *least = calm.usd_per_hour;
    }
    let (slow, more) = (judged(world, fleet, 1.5, &|_| 1.0), judged(world, fleet, 1.0, &|_| 1.5));
    // Worlds as uncertain as the planner takes them to be: 15 % (p90) on all delays, a quarter (p90) on each pool's demand.
    let (mut noise, mut sum, draws) = (Noise(11), 0.0, 12);
    for _ in 0..draws {
        let delays = (1.15_f64.ln() / 1.2816 * normal(&mut noise)).exp();
        let by: Vec<f64> =
            (0..world.demands.len()).map(|_| (1.25_f64.ln() / 1.2816 * normal(&mut noise)).exp()).collect();
        // Delays in steps of 5 %: the load lines of each are found once.
        sum += lost(&judged(world, fleet, (delays * 20.0).round() / 20.0, &|i| by[i]));
    }
    println!(
        "{name:40} {:9.2} {:6.1} {:9.2} {:12.2} {:12.2} {:12.2}",
        calm.usd_per_hour,
        100.0 * (calm.usd_per_hour / *least - 1.0),
        lost(&calm),
        lost(&slow),
        lost(&more),
        sum / f64::from(draws)
    );
}

fn main() -> Result<(), Failure> {
    let pools = std::env::args().find_map(|a| a.strip_prefix("pools=")?.parse().ok()).unwrap_or(40);
    let seed = std::env::args().find_map(|a| a.strip_prefix("seed=")?.parse().ok()).unwrap_or(7);
    println!(
        "{:40} {:>9} {:>6} {:>9} {:>12} {:>12} {:>12}",
        "requests lost, %", "$/h", "+%", "forecast", "delays 1.5×", "demand 1.5×", "drawn"
    );
    let mut world = World::new(pools, 6.0, 3.0, seed)?;
    let mut least = f64::NAN;
    let with = |margin_factor, lost_request_price, demand_error| PlannerConfig {
        margin_factor,
        lost_request_price,
        demand_error,
        ..without_margins()
    };
    let mut settings = vec![
        ("margin-free optimum".to_owned(), without_margins()),
        ("planner, the model's margin alone".to_owned(), with(1.0, 0.0, 0.0)),
        ("planner, a lost request at 10×".to_owned(), with(1.0, 10.0, 0.0)),
    ];
    let triple = |text: &str| -> Option<[f64; 3]> {
        text.split(',').map(|x| x.parse().ok()).collect::<Option<Vec<f64>>>()?.try_into().ok()
    };
    for [margin, price, error] in std::env::args().filter_map(|a| triple(a.strip_prefix("try=")?)) {
        settings.push((format!("margin {margin}, price {price}, error {error}"), with(margin, price, error)));
    }
    for (name, config) in settings {
        world.config = config;
        let plan = plan(&world.input(&world.snapshot)).plan;
        row(&name, &world, &|truth| of_plan(&plan, truth), &mut least);
    }
    world.config = without_margins();
    let input = world.input(&world.snapshot);
    with_problem(&input, &EngineModel, Candidates::Kept, |problem| {
        let fleet = adaptive_greedy(problem);
        row("adaptive greedy, no margins", &world, &|truth| translate(problem, &fleet, truth), &mut least);
    });
    Ok(())
}
