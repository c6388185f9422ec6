//! `plimsoll plan`: the plan of a running fleet or of manifests, and what it would be in a changed world.

use std::path::PathBuf;

use plimsoll_fleet::{BudgetUnit, Plan};
use plimsoll_proto::document;
use plimsoll_proto::v1::WhatIfRequest;
use plimsoll_scheduler::explain::{PoolDiff, diff};
use plimsoll_scheduler::planner::{EnginePlanner, plan_offline};

use crate::failure::{Failure, Outcome};
use crate::manifests;
use crate::nodespec::NodeGroups;
use crate::scheduler_client::{SchedulerArgs, refused};

/// Show the plan, from a running scheduler or from manifests alone (-f), and what a change would make of it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest file or folder; may be repeated. Plans offline, without any cluster
    #[arg(short = 'f', long = "filename")]
    files: Vec<PathBuf>,
    /// Nodes for an offline plan, as COUNTxGPUSxCLASS,…
    #[arg(long, default_value = "4x8xh100,2x4xl40s,2x1xl4", requires = "files")]
    nodes: NodeGroups,
    /// A change to plan as well, e.g. `gpu/h100+4`, `budget/team-a=60`, `budget/green.watts=5000`, `slo/default/chat.tpot=60ms`, `demand/chat*2`
    #[arg(long = "what-if", value_name = "CHANGE")]
    what_if: Vec<String>,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    scheduler: SchedulerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Exit status when something asked for is not served in full.
const NOT_SERVED: u8 = 2;

/// Runs it.
///
/// # Errors
/// If manifests cannot be read, the scheduler does not answer, or a change is not understood; with status 2 if the plan leaves
/// demand unserved.
pub async fn run(args: &Args) -> Outcome {
    let (base, changed) = if args.files.is_empty() { remote(args).await? } else { offline(args)? };
    let shown = changed.as_ref().unwrap_or(&base);
    match args.output {
        Output::Json => {
            let value = match &changed {
                Some(changed) => serde_json::json!({"base": base, "changed": changed}),
                None => serde_json::json!(base),
            };
            println!("{value:#}");
        }
        Output::Table => {
            for line in table(shown) {
                println!("{line}");
            }
            if let Some(changed) = &changed {
                println!();
                println!("changes ({})", args.what_if.join(", "));
                let changes = diff(&base, changed);
                if changes.iter().any(PoolDiff::is_change) {
                    for change in changes.iter().filter(|c| c.is_change()) {
                        println!("{change}");
                    }
                } else {
                    println!("  none: the plan stays as it is");
                }
                println!("  ${:.2}/h → ${:.2}/h", base.usd_per_hour, changed.usd_per_hour);
            }
        }
    }
    let short: Vec<String> =
        shown.pools.iter().filter(|p| p.unserved_rps > 1e-6).map(|p| p.pool.to_string()).collect();
    if short.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("demand is left unserved: {}", short.join(", "))).code(NOT_SERVED))
    }
}

fn offline(args: &Args) -> Result<(Plan, Option<Plan>), Failure> {
    let mut loaded = manifests::load(&args.files)?;
    for problem in &loaded.problems {
        eprintln!("skipped {problem}");
    }
    manifests::add_nodes(&mut loaded.snapshot, &args.nodes)?;
    plan_offline(&EnginePlanner::default(), loaded.snapshot, &args.what_if, jiff::Timestamp::now())
        .map_err(Failure::new)
}

async fn remote(args: &Args) -> Result<(Plan, Option<Plan>), Failure> {
    let mut client = args.scheduler.connect().await?;
    let response = client
        .what_if(WhatIfRequest { changes: args.what_if.clone(), snapshot: None })
        .await
        .map_err(|s| refused("cannot plan", &s))?
        .into_inner();
    let read = |d| {
        document::decode::<Plan>("plan", d)
            .map_err(|e| Failure::caused("the scheduler's answer cannot be read", e))
    };
    let base = read(response.base.as_ref())?;
    let changed = match args.what_if.is_empty() {
        true => None,
        false => Some(read(response.changed.as_ref())?),
    };
    Ok((base, changed))
}

fn table(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<22} {:<34} {:>8} {:>9} {:>9} {:>8}  {}",
        "POOL", "FLEET", "$/H", "DEMAND", "UNSERVED", "LOAD", "WHY"
    )];
    for pool in &plan.pools {
        lines.push(format!(
            "{:<22} {:<34} {:>8.2} {:>9.2} {:>9.2} {:>7.0}%  {}",
            pool.pool.to_string(),
            pool.fleet_text(),
            pool.usd_per_hour,
            pool.demand.total_rps(),
            pool.unserved_rps,
            100.0 * pool.utilisation,
            pool.why.summary
        ));
    }
    lines.push(format!(
        "total ${:.2}/h, {}, {}; proved to be within {:.2} % of the optimum",
        plan.usd_per_hour,
        BudgetUnit::Watts.amount(plan.watts),
        BudgetUnit::GramsCo2ePerHour.amount(plan.grams_co2e_per_hour),
        100.0 * plan.quality.gap
    ));
    for b in &plan.binding {
        lines.push(format!("binding: {b}"));
    }
    for used in plan.budgets.iter().filter(|b| b.excess().is_some()) {
        lines.push(format!("exceeded: {used}"));
    }
    lines
}
