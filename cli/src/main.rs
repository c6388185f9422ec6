//! The `plimsoll` binary: every part of Plimsoll, and the tools around it.

mod advice;
mod commands;
mod endpoints;
mod failure;
mod health;
mod local;
mod logging;
mod manifests;
mod nodespec;
mod paint;
mod prediction;
mod profiling;
mod scheduler_client;
mod screen;
mod signals;
mod terminal;
mod tls;
mod view;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{
    agent, crds, devcluster, engine_sim, explain, operator, plan, predict, profile, release, replay,
    scheduler, simulate, top, up,
};
use crate::failure::{Failure, Outcome};
use crate::logging::LogArgs;

/// The control plane that decides which LLM runs where, in which shape, and which replica answers each request.
#[derive(Debug, Parser)]
#[command(name = "plimsoll", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Predict(predict::Args),
    Profile(profile::Args),
    Plan(plan::Args),
    Explain(explain::Args),
    Top(top::Args),
    Replay(replay::Args),
    Simulate(simulate::Args),
    EngineSim(engine_sim::Args),
    Crds(crds::Args),
    Operator(operator::Args),
    Release(release::Args),
    Scheduler(scheduler::Args),
    Agent(agent::Args),
    Devcluster(devcluster::Args),
}

/// Ends quietly when whoever reads our output (`| head`) has had enough: printing would panic.
fn end_when_nobody_reads() {
    /// What a shell reports of a program that SIGPIPE ended.
    const NOBODY_READS: i32 = 141;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(NOBODY_READS);
        }
        usual(panic);
    }));
}

fn main() -> ExitCode {
    end_when_nobody_reads();
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::caused("failed to start the async runtime", e))
        .and_then(|runtime| {
            let result = runtime.block_on(run(cli));
            // Tasks that still wait (idle connections, watches) must not hold up the exit.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                eprintln!("{failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Outcome {
    if !matches!(cli.command, Command::Up(_)) {
        logging::start(&cli.log, None)?;
    }
    match &cli.command {
        Command::Up(args) => up::run(args, &cli.log).await,
        Command::Predict(args) => predict::run(args),
        Command::Profile(args) => profile::run(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Top(args) => top::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Simulate(args) => simulate::run(args),
        Command::EngineSim(args) => engine_sim::run(args).await,
        Command::Crds(args) => crds::run(args),
        Command::Operator(args) => operator::run(args).await,
        Command::Release(args) => release::run(args).await,
        Command::Scheduler(args) => scheduler::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Devcluster(args) => devcluster::run(args).await,
    }
}
