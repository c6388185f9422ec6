//! `plimsoll predict`: does a model fit, how fast, how much and for what money, shape by shape.

use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::paint::Paint;
use crate::prediction::ask::{Asked, Flags, ask};
use crate::prediction::rows::{Question, Row, rows};
use crate::prediction::{detail, table};

/// Predict a model on GPUs: does it fit, TTFT and TPOT, the rate it takes within objectives, the cost, and what binds
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Show every shape, not the best ones
    #[arg(long)]
    all: bool,
    /// How to print
    #[arg(short = 'o', long = "format", value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Exit status when no shape serves.
const NOT_SERVED: u8 = 2;

/// Runs it.
///
/// # Errors
/// If the model, a file or a class is not known; with status 2 if no shape fits and holds the objectives.
pub fn run(args: &Args) -> Outcome {
    let mut answers = Vec::new();
    for asked in ask(&args.flags)? {
        let Asked { question, classes, variants } = asked;
        let rows = rows(&question, &classes, &variants);
        answers.push((question, rows));
    }
    match args.format {
        Format::Json => {
            let values: Vec<serde_json::Value> = answers.iter().map(|(q, r)| as_json(q, r)).collect();
            println!(
                "{:#}",
                if values.len() == 1 { values.into_iter().next().unwrap_or_default() } else { json!(values) }
            );
        }
        Format::Table => {
            for (i, (question, rows)) in answers.iter().enumerate() {
                if i > 0 {
                    println!();
                }
                for line in shown(question, rows, args.all) {
                    println!("{line}");
                }
            }
        }
    }
    let without: Vec<&str> = answers
        .iter()
        .filter(|(_, rows)| !rows.iter().any(Row::serves))
        .map(|(q, _)| q.pool.architecture.name.as_str())
        .collect();
    if without.is_empty() {
        return Ok(());
    }
    let what = if answers.iter().any(|(_, rows)| rows.iter().any(|r| r.fit.is_some())) {
        "no shape holds the objectives"
    } else {
        "no shape fits"
    };
    Err(Failure::new(format!("{what}: {}", without.join(", "))).code(NOT_SERVED))
}

fn shown(question: &Question, rows: &[Row], all: bool) -> Vec<String> {
    let paint = Paint::stdout();
    match rows {
        [row] if let Some(fit) = &row.fit => detail::detail(question, row, fit, paint),
        rows => table::table(question, rows, all, paint),
    }
}

fn as_json(question: &Question, rows: &[Row]) -> serde_json::Value {
    json!({
        "model": question.pool.architecture,
        "classes": question.classes,
        "slo": question.pool.slo_classes.iter().map(|c| (c.name.clone(), c.slo)).collect::<std::collections::BTreeMap<_, _>>(),
        "percentiles": question.percentiles(),
        "notes": question.notes,
        "shapes": rows,
    })
}
