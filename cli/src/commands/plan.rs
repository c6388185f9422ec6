//! `plimsoll plan`: the plan of a running fleet or of manifests, and what changes against what runs, against an earlier plan, or in a
//! changed world.

use std::path::{Path, PathBuf};

use plimsoll_fleet::{BudgetUnit, Plan};
use plimsoll_proto::document;
use plimsoll_proto::v1::WhatIfRequest;
use plimsoll_scheduler::explain::{PoolDiff, Summary, diff};
use plimsoll_scheduler::plan::PlannerConfig;
use plimsoll_scheduler::planner::{EnginePlanner, plan_offline};
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::manifests;
use crate::nodespec::NodeGroups;
use crate::scheduler_client::{SchedulerArgs, refused};

/// Show the plan, from a running scheduler or from manifests alone (-f), and what a change would make of it: manifests, with --live
///
/// Exit status: 0 nothing changes, 2 something does, 3 planned demand is left unserved (whatever changes), 1 no plan could be made.
/// Without --what-if, --against and --live there is nothing to compare with: 0, or 3.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest file or folder; may be repeated. Plans offline, without any cluster, unless --live is given
    #[arg(short = 'f', long = "filename")]
    files: Vec<PathBuf>,
    /// Nodes for an offline plan, as COUNTxGPUSxCLASS,…
    #[arg(long, default_value = "4x8xh100,2x4xl40s,2x1xl4", requires = "files")]
    nodes: NodeGroups,
    /// As of `plimsoll scheduler`: what a request costs that misses its objectives because a forecast was wrong, in prices of serving it
    #[arg(long, default_value_t = 0.0, hide_default_value = true, requires = "files")]
    lost_request_price: f64,
    /// An earlier plan (`-o json` or `-o yaml`) that is taken for what runs: shows what the manifests change of it
    #[arg(long, value_name = "FILE", requires = "files")]
    against: Option<PathBuf>,
    /// Compare with what runs: what applying the manifests would change of the running fleet. What they do not name stays
    #[arg(long, requires = "files", conflicts_with_all = ["nodes", "lost_request_price", "against"])]
    live: bool,
    /// A change to plan as well, e.g. `gpu/h100+4`, `budget/team-a=60`, `budget/green.watts=5000`, `slo/default/chat.tpot=60ms`,
    /// `pool/chat.rps=2x`, `pool/chat.max=8`, `node/h100-0=gone`; may be repeated
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
    Yaml,
}

/// Exit status when something changes.
const CHANGES: u8 = 2;
/// Exit status when something asked for is not served in full.
const NOT_SERVED: u8 = 3;

/// What is shown.
struct Shown {
    plan: Plan,
    /// What it is compared with.
    base: Option<Plan>,
    /// What else applying manifests would do.
    remarks: Vec<String>,
}

impl Shown {
    fn of(plan: Plan, base: Option<Plan>) -> Self {
        Self { plan, base, remarks: Vec::new() }
    }
}

/// Runs it.
///
/// # Errors
/// If manifests cannot be read, the scheduler does not answer, or a change is not understood; with status 2 if something changes, and
/// with status 3 if the plan leaves demand unserved.
pub async fn run(args: &Args) -> Outcome {
    let shown = if args.files.is_empty() || args.live { remote(args).await? } else { offline(args)? };
    println!("{}", render(&shown, &args.what_if, args.output)?);
    verdict(&shown)
}

/// The exit status, as a failure where it is not 0.
fn verdict(shown: &Shown) -> Outcome {
    let unserved = shown.plan.pools.iter().filter(|p| p.unserved_rps > 1e-6);
    let short: Vec<String> = unserved.map(|p| p.pool.to_string()).collect();
    if !short.is_empty() {
        return Err(Failure::new(format!("demand is left unserved: {}", short.join(", "))).code(NOT_SERVED));
    }
    let changes = |base: &Plan| diff(base, &shown.plan).iter().any(PoolDiff::is_change);
    if shown.base.as_ref().is_some_and(changes) {
        return Err(Failure::quiet(CHANGES));
    }
    Ok(())
}

fn render(shown: &Shown, what_if: &[String], output: Output) -> Result<String, Failure> {
    if output == Output::Table {
        let mut lines = table(&shown.plan);
        if let Some(base) = &shown.base {
            lines.push(String::new());
            lines.extend(changes(base, &shown.plan, what_if));
            lines.extend(shown.remarks.iter().map(|remark| format!("note: {remark}")));
        }
        return Ok(lines.join("\n"));
    }
    let value = match &shown.base {
        Some(base) => {
            let diffs = diff(base, &shown.plan);
            let summary = Summary::of(&diffs, base, &shown.plan);
            let mut value = serde_json::json!({"base": base, "changed": shown.plan, "changes": diffs, "summary": summary});
            if !shown.remarks.is_empty() {
                value["remarks"] = serde_json::json!(shown.remarks);
            }
            value
        }
        None => serde_json::json!(shown.plan),
    };
    if output == Output::Json {
        return Ok(format!("{value:#}"));
    }
    let text = serde_saphyr::to_string(&value)
        .map_err(|e| Failure::caused("the plan cannot be written as YAML", e))?;
    Ok(text.trim_end().to_owned())
}

/// The diff as people read it: `+` what comes, `~` what changes, `-` what goes.
fn changes(base: &Plan, plan: &Plan, what_if: &[String]) -> Vec<String> {
    let diffs = diff(base, plan);
    let mut lines = vec![match what_if.is_empty() {
        true => "changes".to_owned(),
        false => format!("changes ({})", what_if.join(", ")),
    }];
    lines.extend(diffs.iter().filter(|d| d.is_change()).map(ToString::to_string));
    lines.push(format!("plan: {}", Summary::of(&diffs, base, plan)));
    lines
}

fn offline(args: &Args) -> Result<Shown, Failure> {
    let mut loaded = manifests::load(&args.files)?;
    tell_skipped(&loaded);
    manifests::add_nodes(&mut loaded.snapshot, &args.nodes)?;
    let against = args.against.as_deref().map(read_plan).transpose()?;
    let config = PlannerConfig { lost_request_price: args.lost_request_price, ..PlannerConfig::default() };
    let (base, changed) = plan_offline(
        &EnginePlanner::new(config),
        loaded.snapshot,
        against.as_ref(),
        &args.what_if,
        jiff::Timestamp::now(),
    )
    .map_err(Failure::new)?;
    Ok(match (against, changed) {
        (Some(against), changed) => Shown::of(changed.unwrap_or(base), Some(against)),
        (None, Some(changed)) => Shown::of(changed, Some(base)),
        (None, None) => Shown::of(base, None),
    })
}

fn tell_skipped(loaded: &manifests::Loaded) {
    for problem in &loaded.problems {
        eprintln!("skipped {problem}");
    }
}

/// A plan that `-o json` or `-o yaml` wrote; of a comparison, the later one.
fn read_plan(path: &Path) -> Result<Plan, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::caused(format!("failed to read {}", path.display()), e))?;
    // JSON is YAML too, but is read as what it is, for the better messages.
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str(&text)
            .map_err(|e| Failure::caused(format!("{} is neither JSON nor YAML", path.display()), e))?,
    };
    let plan = value.get("changed").unwrap_or(&value);
    serde_json::from_value(plan.clone()).map_err(|e| {
        Failure::caused(format!("{} holds no plan", path.display()), e)
            .hint("write one with `plimsoll plan -f DIR -o json > plan.json`")
    })
}

async fn remote(args: &Args) -> Result<Shown, Failure> {
    let objects = match args.live {
        true => {
            let loaded = manifests::objects(&args.files)?;
            tell_skipped(&loaded);
            let encoded = document::encode("objects", &loaded.snapshot)
                .map_err(|e| Failure::caused("the manifests cannot be sent to the scheduler", e))?;
            Some(encoded)
        }
        false => None,
    };
    let applies = objects.is_some();
    let mut client = args.scheduler.connect().await?;
    let response = client
        .what_if(WhatIfRequest { changes: args.what_if.clone(), objects, ..WhatIfRequest::default() })
        .await
        .map_err(|s| refused("cannot plan", &s))?
        .into_inner();
    let read = |d| {
        document::decode::<Plan>("plan", d)
            .map_err(|e| Failure::caused("the scheduler's answer cannot be read", e))
    };
    if applies && !response.applied {
        return Err(Failure::new(
            "the scheduler is older than this command and plans no manifests over what runs",
        )
        .hint("upgrade it, or plan offline: plimsoll plan -f DIR --against FILE"));
    }
    let base = read(response.base.as_ref())?;
    Ok(match applies || !args.what_if.is_empty() {
        false => Shown::of(base, None),
        true => Shown { plan: read(response.changed.as_ref())?, base: Some(base), remarks: response.remarks },
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use plimsoll_proto::v1::{PushSnapshotRequest, WatchFleetRequest};
    use plimsoll_scheduler::service::{Scheduler, SchedulerConfig};
    use tokio_util::sync::CancellationToken;

    fn args(extra: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let given = ["plan", "-f", examples].into_iter().chain(extra.iter().copied());
        <Cli as clap::Parser>::parse_from(given).args
    }

    fn shown(extra: &[&str]) -> Shown {
        offline(&args(extra)).unwrap()
    }

    fn code(shown: &Shown) -> u8 {
        verdict(shown).err().map_or(0, |f| f.exit_code())
    }

    #[test]
    fn the_exit_status_says_whether_anything_changes_and_whether_all_is_served() {
        assert_eq!(code(&shown(&[])), 0);
        assert_eq!(
            code(&shown(&["--what-if", "gpu/h100+8"])),
            0,
            "more of what is not short changes nothing"
        );
        assert_eq!(code(&shown(&["--what-if", "pool/chat.rps=3x"])), 2);
        assert_eq!(code(&shown(&["--nodes", "2x4xl40s"])), 3);
        assert_eq!(code(&shown(&["--what-if", "gpu/h100-32"])), 3);
    }

    #[test]
    fn changes_read_as_those_of_other_planners_do() {
        let shown = shown(&["--what-if", "pool/chat.rps=3x", "--what-if", "pool/code.rps=1x"]);
        let text = render(&shown, &["pool/chat.rps=3x".to_owned()], Output::Table).unwrap();
        assert!(text.contains("\nchanges (pool/chat.rps=3x)\n~ default/chat   "), "{text}");
        assert!(!text.contains("~ default/code"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("plan: 0 to add, 1 to change, 0 to remove; ") && last.contains(" (+$"),
            "{last}"
        );
    }

    #[test]
    fn an_earlier_plan_is_what_runs() {
        let dir = tempfile::tempdir().unwrap();
        let first = shown(&[]);
        for (output, name) in [(Output::Json, "plan.json"), (Output::Yaml, "plan.yaml")] {
            let file = dir.path().join(name);
            std::fs::write(&file, render(&first, &[], output).unwrap()).unwrap();
            let file = file.to_str().unwrap();
            let again = shown(&["--against", file]);
            assert_eq!(code(&again), 0, "{name}: {:?}", diff(again.base.as_ref().unwrap(), &again.plan));
            let more = shown(&["--against", file, "--what-if", "pool/chat.rps=3x"]);
            assert_eq!(code(&more), 2, "{name}");
            let value: Value = serde_json::from_str(&render(&more, &[], Output::Json).unwrap()).unwrap();
            assert_eq!(value["summary"]["change"], 1, "{name}");
            let chat =
                value["changes"].as_array().unwrap().iter().find(|c| c["pool"] == "default/chat").unwrap();
            assert_eq!(chat["action"], "change", "{name}");
        }
        let file = dir.path().join("none.json");
        std::fs::write(&file, "{}").unwrap();
        let failure = offline(&args(&["--against", file.to_str().unwrap()])).err().unwrap();
        assert!(failure.to_string().contains("none.json holds no plan"), "{failure}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn manifests_are_compared_with_what_runs() {
        let mut config = SchedulerConfig::new(Arc::new(EnginePlanner::default()));
        config.debounce = std::time::Duration::from_millis(20);
        let stop = CancellationToken::new();
        let handle = Scheduler::start(config, stop.clone()).await.unwrap();
        let url = format!("http://{}", handle.addr());
        // What runs: the examples but for one pool, as an operator would hand them over.
        let mut running = args(&[]);
        running.scheduler.scheduler = Some(url.clone());
        let mut cluster = manifests::load(&running.files).unwrap().snapshot;
        manifests::add_nodes(&mut cluster, &running.nodes).unwrap();
        cluster.pools.retain(|p| p.id.name() != "code");
        let request = PushSnapshotRequest {
            snapshot: Some(document::encode("snapshot", &cluster).unwrap()),
            operator: "test".to_owned(),
            sequence: 1,
        };
        let mut client = running.scheduler.connect().await.unwrap();
        let watch = WatchFleetRequest { plans_only: true };
        let mut plans = client.watch_fleet(watch).await.unwrap().into_inner();
        client.push_snapshot(request).await.unwrap();
        let first = tokio::time::timeout(std::time::Duration::from_secs(60), plans.message());
        assert!(first.await.unwrap().unwrap().is_some(), "a plan is in force");

        let live = |files: &[&str]| {
            let mut args = args(&["--live", "--scheduler", &url]);
            if !files.is_empty() {
                args.files = files.iter().map(PathBuf::from).collect();
            }
            args
        };
        let all = remote(&live(&[])).await.unwrap();
        let text = render(&all, &[], Output::Table).unwrap();
        assert!(text.contains("\n+ default/code   "), "{text}");
        assert!(text.contains("plan: 1 to add, 0 to change, 0 to remove; "), "{text}");
        assert_eq!(code(&all), 2);
        // One object alone: the others stay as they run.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("budget.yaml");
        let budget = "apiVersion: plimsoll.dev/v1alpha1\nkind: Budget\nmetadata: {name: wide}\nspec: {scope: {namespaces: [default]}, usdPerHour: 1000}\n";
        std::fs::write(&file, budget).unwrap();
        let wide = remote(&live(&[file.to_str().unwrap()])).await.unwrap();
        assert_eq!(code(&wide), 0, "{}", render(&wide, &[], Output::Table).unwrap());
        stop.cancel();
        handle.join().await.unwrap();
    }

    #[test]
    fn a_mistyped_change_is_an_error_that_says_what_was_meant() {
        let failure = offline(&args(&["--what-if", "gpu/h10+4"])).err().unwrap();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("did you mean h100?"), "{failure}");
    }
}
