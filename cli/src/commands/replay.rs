//! `plimsoll replay`: sends a trace's requests to an OpenAI-compatible endpoint and reports what a user would have felt.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use plimsoll_fleet::{Objective, Percentile, Plan, Slo};
use plimsoll_proto::document;
use plimsoll_proto::v1::{ExplainRequest, ExplainResponse};
use plimsoll_simulator::replay::{OutputLength, Replay, ReplayConfig, ReplayEndpoint};
use plimsoll_simulator::trace::{GeneratorConfig, Profile, ReadOptions, Trace, generate, read};
use tokio_util::sync::CancellationToken;

use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};
use crate::scheduler_client::SchedulerArgs;
use crate::signals;
use crate::terminal::progress_target;

/// Replay a trace against an OpenAI-compatible endpoint: latencies, attainment, errors, scaling and cost
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Trace file: Azure CSV or Mooncake JSONL
    #[arg(long, conflicts_with = "generate")]
    trace: Option<PathBuf>,
    /// Make a trace instead: azure-conv, azure-code, mooncake, constant, ramp, staircase, flash-crowd
    #[arg(long, default_value = "azure-conv")]
    generate: Profile,
    /// Mean rate of a generated trace, requests per second [default: the profile's own]
    #[arg(long, conflicts_with = "trace")]
    rps: Option<f64>,
    /// How much of the trace to send, in its own time, e.g. 10m [default: all of a file, 10m of a generated one]
    #[arg(long)]
    duration: Option<SignedDuration>,
    /// Where in the trace to begin, e.g. 5m
    #[arg(long, default_value = "0s")]
    start: SignedDuration,
    /// Send this many times as fast as the trace says
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Report latencies multiplied by this (for simulated engines that run faster than real ones)
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Drop a last line that was cut short
    #[arg(long)]
    allow_truncated: bool,
    /// Base URL of the endpoint [default: the one of `plimsoll up` in --dir]
    #[arg(long)]
    url: Option<String>,
    /// Model to ask for
    #[arg(long)]
    model: String,
    /// API key
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Extra header, `Name: value`; may be repeated
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// TTFT objective, milliseconds, e.g. p95=800 [default: the pool's own, where the scheduler can be asked]
    #[arg(long, value_parser = objective)]
    ttft: Option<Objective>,
    /// TPOT objective, milliseconds, e.g. p95=50
    #[arg(long, value_parser = objective)]
    tpot: Option<Objective>,
    /// End-to-end objective, milliseconds, e.g. p99=20000
    #[arg(long, value_parser = objective)]
    e2e: Option<Objective>,
    /// Most requests under way at once
    #[arg(long, default_value_t = 4096)]
    max_in_flight: usize,
    /// Patience for one answer, seconds
    #[arg(long, default_value_t = 300)]
    timeout_seconds: u64,
    /// Shorten prompts to this many tokens
    #[arg(long)]
    max_input_tokens: Option<u32>,
    /// Use /v1/completions instead of chat
    #[arg(long)]
    completions: bool,
    /// For endpoints that refuse ignore_eos: answers may be shorter than the trace's
    #[arg(long)]
    natural_length: bool,
    /// Seed of prompts and generated traces
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scheduler: SchedulerArgs,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not `Name: value`"))?;
    Ok((name.trim().to_lowercase(), value.trim().to_owned()))
}

fn objective(text: &str) -> Result<Objective, String> {
    let problem = || format!("{text:?} is not an objective such as p95=800 (milliseconds)");
    let (percentile, ms) = text.split_once('=').ok_or_else(problem)?;
    let percentile: f64 = percentile.strip_prefix('p').and_then(|p| p.parse().ok()).ok_or_else(problem)?;
    let ms: f64 = ms.trim_end_matches("ms").parse().map_err(|_| problem())?;
    if !(ms.is_finite() && ms > 0.0) {
        return Err(problem());
    }
    Ok(Objective { percentile: Percentile::new(percentile).map_err(|e| e.to_string())?, ms })
}

/// Runs it.
///
/// # Errors
/// If the trace cannot be read, or the endpoint does not answer or does not serve the model.
pub async fn run(args: &Args) -> Outcome {
    let trace = trace(args)?;
    for note in &trace.notes {
        eprintln!("note: {note}");
    }
    let url = match &args.url {
        Some(url) => url.clone(),
        None => Endpoints::read(&args.scheduler.dir).and_then(|e| e.openai).ok_or_else(|| {
            Failure::new("no --url, and no `plimsoll up` is running here")
                .hint("name the endpoint: --url http://HOST:PORT/v1")
        })?,
    };
    let before = explain(args).await;
    let mut slo = Slo { ttft: args.ttft, tpot: args.tpot, e2e: args.e2e };
    if slo.is_empty() {
        slo = before.as_ref().and_then(|e| pool_slo(e, &args.model)).unwrap_or_default();
    }
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let mut config = ReplayConfig::new(url, args.model.clone(), trace);
    config.api_key.clone_from(&args.api_key);
    config.speed = args.speed;
    config.time_scale = args.time_scale;
    config.max_in_flight = args.max_in_flight;
    config.timeout = Duration::from_secs(args.timeout_seconds);
    config.headers.clone_from(&args.headers);
    config.slo = slo;
    config.endpoint = if args.completions { ReplayEndpoint::Completions } else { ReplayEndpoint::Chat };
    config.output_length = if args.natural_length { OutputLength::AtMost } else { OutputLength::Exact };
    config.max_input_tokens = args.max_input_tokens;
    config.seed = args.seed;
    config.stop = stop;

    let bar = ProgressBar::with_draw_target(Some(config.trace.requests.len() as u64), progress_target());
    if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan/blue} {pos}/{len}   {msg}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    let report = Replay::run(config, |p| {
        bar.set_position(p.done as u64);
        let lag = if p.lag_ms > 250.0 { format!("   lag {:.0} ms", p.lag_ms) } else { String::new() };
        bar.set_message(format!(
            "rate {:.0} rps   in flight {}   errors {}{lag}",
            p.rate_rps, p.in_flight, p.errors
        ));
    })
    .await
    .map_err(|e| Failure::new(e.to_string()))?;
    bar.finish_and_clear();

    if args.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|e| Failure::caused("the report cannot be written as JSON", e))?;
        println!("{text}");
    } else {
        println!("{report}");
        if let (Some(before), Some(after)) = (before, explain(args).await)
            && let Some(line) = scaling(&before, &after, &args.model)
        {
            println!("{line}");
        }
    }
    Ok(())
}

fn trace(args: &Args) -> Result<Trace, Failure> {
    let full = match &args.trace {
        Some(path) => read(path, &ReadOptions { allow_truncated: args.allow_truncated })
            .map_err(|e| Failure::new(e.to_string()))?,
        None => {
            let seconds = args.duration.unwrap_or(SignedDuration::from_mins(10)).as_secs_f64()
                + args.start.as_secs_f64();
            let mut config = GeneratorConfig::new(args.generate.clone(), seconds, args.seed);
            config.rps = args.rps;
            generate(&config)
        }
    };
    let start_ms = args.start.as_secs_f64() * 1000.0;
    let duration_ms = args.duration.map_or(f64::MAX, |d| d.as_secs_f64() * 1000.0);
    let trace = full.slice(start_ms, duration_ms);
    if trace.requests.is_empty() {
        return Err(Failure::new(format!(
            "{} has no request in the part that was asked for (it is {:.0} s long)",
            full.name,
            full.duration_ms() / 1000.0
        ))
        .hint("choose another --start and --duration"));
    }
    Ok(trace)
}

/// What the scheduler says of the fleet, if it can be asked: a replay against any other endpoint goes without.
async fn explain(args: &Args) -> Option<ExplainResponse> {
    let mut client = args.scheduler.connect().await.ok()?;
    Some(client.explain(ExplainRequest { pool: String::new() }).await.ok()?.into_inner())
}

fn pool_slo(explained: &ExplainResponse, model: &str) -> Option<Slo> {
    let pool = explained.observations.as_ref()?.pools.iter().find(|p| p.served_name == model)?;
    let limit = |ms: Option<f64>| ms.map(|ms| Objective { percentile: Percentile::P95, ms });
    Some(Slo { ttft: limit(pool.ttft_objective_ms), tpot: limit(pool.tpot_objective_ms), e2e: None })
}

/// `replicas 2 → 6 → 3, 7 changes, 0 reversals; cost $1.07`, from the scheduler's own records.
fn scaling(before: &ExplainResponse, after: &ExplainResponse, model: &str) -> Option<String> {
    let find =
        |e: &ExplainResponse| e.observations.as_ref()?.pools.iter().find(|p| p.served_name == model).cloned();
    let (from, to) = (find(before)?, find(after)?);
    let history: Vec<plimsoll_fleet::plan::ScalingRecord> =
        document::decode("history", after.history.as_ref()).ok()?;
    let plan: Plan = document::decode("plan", before.plan.as_ref()).ok()?;
    let records: Vec<_> = history
        .iter()
        .rev()
        .filter(|r| r.plan > plan.number && r.pool.as_ref().is_none_or(|p| p.to_string() == to.pool))
        .collect();
    let mut levels = vec![from.wanted_replicas];
    levels.extend(records.iter().map(|r| r.replicas.1));
    let peak = levels.iter().max().copied().unwrap_or(0);
    let steps: Vec<i64> =
        levels.windows(2).map(|w| i64::from(w[1]) - i64::from(w[0])).filter(|s| *s != 0).collect();
    // One rise and one fall are the load's own; every further change of direction is a reversal.
    let turns = steps.windows(2).filter(|w| w[0].signum() != w[1].signum()).count();
    Some(format!(
        "replicas {} → {peak} → {}, {} changes, {} reversals; cost ${:.2}",
        from.wanted_replicas,
        to.wanted_replicas,
        steps.len(),
        turns.saturating_sub(1),
        to.usd_total - from.usd_total
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_and_headers_read_as_people_write_them() {
        let o = objective("p95=800").unwrap();
        assert_eq!((o.percentile.value(), o.ms), (95.0, 800.0));
        assert_eq!(objective("p99.9=50ms").unwrap().ms, 50.0);
        for bad in ["800", "p95", "p100=5", "p95=-1", "p95=NaN"] {
            assert!(objective(bad).is_err(), "{bad}");
        }
        assert_eq!(
            header("X-Plimsoll-Slo-Class: gold").unwrap(),
            ("x-plimsoll-slo-class".into(), "gold".into())
        );
        assert!(header("no colon").is_err());
    }
}
