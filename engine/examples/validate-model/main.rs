//! How well the engine model predicts measurements: tables on standard output, plots as SVG.
//!
//! `cargo run -p plimsoll-engine --example validate-model -- [--out FOLDER] [--closed-form] FILE-OR-FOLDER…` reads
//! files in the format of `docs/engine-model.md`. `--closed-form` leaves simulations (of times to first token
//! under load) out.

mod catalogue;
mod plot;
mod report;
mod study;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plimsoll_engine::measurements::{self, Measurement, parse};
use plimsoll_fleet::presets;

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    all.retain(|p| p.extension().is_some_and(|e| e == "csv"));
    all.sort();
    Ok(all)
}

fn read(paths: &[PathBuf]) -> Result<Vec<Measurement>, String> {
    let mut rows = Vec::new();
    for path in paths {
        for file in files(path).map_err(|e| format!("cannot read {}: {e}", path.display()))? {
            let text =
                std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            let more = parse(&text, &catalogue::model, &presets::accelerator)
                .map_err(|e| format!("{}: {e}", file.display()))?;
            rows.extend(more);
        }
    }
    let rows = distinct(rows);
    if rows.is_empty() {
        Err("no measurements; name files in the format of docs/engine-model.md".to_owned())
    } else {
        Ok(rows)
    }
}

/// Runs that were published more than once, in full agreement, count once: whoever judges by what was not fitted to must
/// not find a copy of what was.
fn distinct(all: Vec<Measurement>) -> Vec<Measurement> {
    let mut seen = BTreeSet::new();
    let text = |m: &Measurement| measurements::write(&[Measurement { source: String::new(), ..m.clone() }]);
    all.into_iter().filter(|m| seen.insert(text(m))).collect()
}

fn write(folder: &Path, study: &study::Study, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut page = String::from(plot::PAGE_START);
    for (name, svg) in plot::all(study) {
        std::fs::write(folder.join(format!("{name}.svg")), &svg)?;
        page.push_str(&svg);
    }
    page.push_str(&format!("<pre>{}</pre></body></html>\n", text.replace('&', "&amp;").replace('<', "&lt;")));
    std::fs::write(folder.join("index.html"), page)?;
    std::fs::write(folder.join("predictions.csv"), report::predictions(study))?;
    std::fs::write(folder.join("report.md"), text)
}

fn main() -> ExitCode {
    let mut out: Option<PathBuf> = None;
    let mut paths = Vec::new();
    let mut simulate = true;
    let mut arguments = std::env::args().skip(1);
    while let Some(a) = arguments.next() {
        if a == "--out" {
            out = arguments.next().map(PathBuf::from);
        } else if a == "--closed-form" {
            simulate = false;
        } else {
            paths.push(PathBuf::from(a));
        }
    }
    if paths.is_empty() {
        eprintln!("usage: validate-model [--out FOLDER] [--closed-form] FILE-OR-FOLDER…");
        return ExitCode::from(2);
    }
    let rows = match read(&paths) {
        Ok(rows) => rows,
        Err(e) => {
            eprintln!("validate-model: {e}");
            return ExitCode::FAILURE;
        }
    };
    let study = study::Study::new(rows, simulate);
    let text = report::text(&study);
    print!("{text}");
    if let Some(folder) = out {
        if let Err(e) = write(&folder, &study, &text) {
            eprintln!("validate-model: cannot write {}: {e}", folder.display());
            return ExitCode::FAILURE;
        }
        eprintln!("plots: {}", folder.join("index.html").display());
    }
    ExitCode::SUCCESS
}
