//! `plimsoll explain`: why a pool, or the fleet, is as it is.

use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::{BudgetUnit, Plan, PoolId, PoolPlan};
use plimsoll_proto::document;
use plimsoll_proto::v1::{CanaryStanding, ExplainRequest, Observations, PoolObservation};

use crate::failure::{Failure, Outcome};
use crate::scheduler_client::{SchedulerArgs, refused};

/// Say why a pool (or the whole fleet) runs what it runs: what binds, what it costs, what came second, what would help
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pool, as NAME or NAMESPACE/NAME; left out: the fleet
    pool: Option<String>,
    #[command(flatten)]
    scheduler: SchedulerArgs,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// If the scheduler does not answer or knows no such pool.
pub async fn run(args: &Args) -> Outcome {
    let pool = match &args.pool {
        Some(text) => text
            .parse::<PoolId>()
            .map_err(|e| Failure::caused(format!("{text:?} names no pool"), e))?
            .to_string(),
        None => String::new(),
    };
    let mut client = args.scheduler.connect().await?;
    let response = client
        .explain(ExplainRequest { pool: pool.clone() })
        .await
        .map_err(|s| refused("cannot explain", &s))?
        .into_inner();
    let plan: Plan = document::decode("plan", response.plan.as_ref())
        .map_err(|e| Failure::caused("the scheduler's answer cannot be read", e))?;
    let history: Vec<ScalingRecord> = document::decode("history", response.history.as_ref())
        .map_err(|e| Failure::caused("the scheduler's answer cannot be read", e))?;
    if args.json {
        let value = serde_json::json!({"plan": plan, "history": history});
        println!("{value:#}");
        return Ok(());
    }
    let observations = response.observations.unwrap_or_default();
    for line in render(&plan, &history, &observations) {
        println!("{line}");
    }
    Ok(())
}

fn render(plan: &Plan, history: &[ScalingRecord], observations: &Observations) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.pools.len() != 1 {
        lines.push(format!(
            "plan {}: ${:.2}/h, {}, {} for {} pools; made because {}; gap to the proved optimum {:.2} %.",
            plan.number,
            plan.usd_per_hour,
            BudgetUnit::Watts.amount(plan.watts),
            BudgetUnit::GramsCo2ePerHour.amount(plan.grams_co2e_per_hour),
            plan.pools.len(),
            plan.trigger,
            100.0 * plan.quality.gap
        ));
        lines.push(String::new());
    }
    for pool in &plan.pools {
        let id = pool.pool.to_string();
        let observed = observations.pools.iter().find(|o| o.pool == id);
        lines.extend(pool_lines(plan, pool, observed));
        lines.push(String::new());
    }
    if !history.is_empty() {
        lines.push("recent decisions".to_owned());
        for record in history.iter().take(10) {
            lines.push(format!(
                "  {}  plan {:<4} {} → {}   {}",
                record.at.strftime("%H:%M:%S"),
                record.plan,
                record.from,
                record.to,
                record.reason
            ));
        }
    }
    lines
}

fn pool_lines(plan: &Plan, pool: &PoolPlan, observed: Option<&PoolObservation>) -> Vec<String> {
    let mut lines = Vec::new();
    let objective = observed.map(|o| {
        [("TTFT", o.ttft_objective_ms), ("TPOT", o.tpot_objective_ms)]
            .iter()
            .filter_map(|(n, v)| v.map(|v| format!("{n} ≤ {v:.0} ms")))
            .collect::<Vec<_>>()
            .join(", ")
    });
    lines.push(format!(
        "{} needs {:.1} rps ({}){}.",
        pool.pool,
        pool.demand.total_rps(),
        pool.demand.source,
        objective.filter(|o| !o.is_empty()).map(|o| format!(" at {o}")).unwrap_or_default()
    ));
    let load_lines: Vec<String> =
        pool.load_lines.iter().map(|(s, rps)| format!("{s} {rps:.1} rps")).collect();
    lines.push(format!(
        "  plan {:<5} {}: ${:.2}/h, {}, {}, {}{}",
        plan.number,
        pool.fleet_text(),
        pool.usd_per_hour,
        BudgetUnit::Watts.amount(pool.watts),
        BudgetUnit::GramsCo2ePerHour.amount(pool.grams_co2e_per_hour),
        pool.outcome,
        if load_lines.is_empty() {
            String::new()
        } else {
            format!(
                "; load line a replica: {}; running at {:.0} % of it",
                load_lines.join(", "),
                100.0 * pool.utilisation
            )
        }
    ));
    if pool.unserved_rps > 1e-6 {
        lines.push(format!("  unserved   {:.2} rps", pool.unserved_rps));
    }
    let figure = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.0} ms"));
    lines.push(format!(
        "  predicted  TTFT {}, TPOT {} (± {:.0} %)",
        figure(pool.prediction.ttft_ms),
        figure(pool.prediction.tpot_ms),
        100.0 * pool.prediction.relative_error
    ));
    if let Some(o) = observed {
        lines.push(format!(
            "  observed   TTFT {}, TPOT {}, {:.1} rps, attainment {}",
            figure(o.ttft_ms),
            figure(o.tpot_ms),
            o.rps,
            o.attainment.map_or_else(|| "–".to_owned(), |a| format!("{:.1} %", 100.0 * a))
        ));
    }
    if let Some(canary) = observed.and_then(|o| o.canary.as_ref()) {
        let standing = match canary.standing() {
            CanaryStanding::Unspecified | CanaryStanding::Watching => "watched",
            CanaryStanding::Passed => "passed",
            CanaryStanding::Held => "held",
            CanaryStanding::Regressed => "stopped",
        };
        lines.push(format!("  rollout    {standing}: {}", canary.text));
    }
    if let Some(today) = &pool.today {
        lines.push(format!(
            "  today      {}: ${:.2}/h, {} of {} serve, up to {:.1} rps within the objectives",
            today.fleet, today.usd_per_hour, today.ready, today.replicas, today.max_rps
        ));
        lines.extend(today.misses.iter().map(|miss| format!("  today's    {miss}")));
    }
    lines.extend(pool.comparison().map(|c| format!("  compared   {c}")));
    lines.push(format!("  why        {}", pool.why.summary));
    for binding in &pool.why.binding {
        lines.push(format!("  binding    {binding}"));
    }
    if let Some(second) = &pool.why.runner_up {
        lines.push(format!(
            "  runner-up  {}: {}${:.2}/h, {}",
            second.fleet,
            if second.extra_usd_per_hour < 0.0 { "−" } else { "+" },
            second.extra_usd_per_hour.abs(),
            second.because
        ));
    }
    for remark in &pool.why.remarks {
        lines.push(format!("  note       {remark}"));
    }
    for help in &pool.why.would_help {
        lines.push(format!("  would help {help}"));
    }
    for rejected in &pool.why.rejected {
        lines.push(format!("  rejected   {rejected}"));
    }
    lines
}
