//! Many shapes, one line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rows::{Fit, Load, Question, Row};
use crate::paint::{Paint, Tone, figure, left, millis, right, thousands};

/// Rows of each kind that are shown unless all are asked for.
const SHOWN: usize = 12;

/// What is asked, in a line or two.
pub fn title(question: &Question, paint: Paint) -> Vec<String> {
    let mut text = paint.bold(&question.pool.architecture.name);
    let classes = &question.classes;
    let (input, output) = (thousands(question.mean_input()), thousands(question.mean_output()));
    match classes.as_slice() {
        [_] => {
            let _ = write!(text, ": prompts of {input} tokens, answers of {output}");
        }
        many => {
            let _ = write!(
                text,
                ": {} classes of requests, prompts of {input} tokens on average, answers of {output}",
                many.len()
            );
        }
    }
    let cached = classes.iter().map(|c| c.cached_fraction).fold(0.0, f64::max);
    if cached > 0.0 {
        let _ = write!(text, ", {:.0} % of the prompt cached", 100.0 * cached);
    }
    match question.load {
        Load::Line => {}
        Load::Rps(rps) => {
            let _ = write!(text, ", {} rps", figure(rps));
        }
        Load::Concurrency(n) => {
            let _ = write!(text, ", {n} at a time");
        }
    }
    if question.arrival_scv > 1.0 {
        let _ = write!(text, ", arrivals with scv {}", figure(question.arrival_scv));
    }
    let slos: Vec<String> = question.pool.slo_classes.iter().map(|c| c.slo.to_string()).collect();
    let mut lines = vec![format!("{text}; {}", slos.join(" | "))];
    lines.extend(question.notes.iter().map(|n| paint.dim(&format!("note: {n}"))));
    lines
}

struct Column {
    head: String,
    /// Left-aligned.
    text: bool,
    cells: Vec<(String, Option<Tone>)>,
}

fn column(head: impl Into<String>, rows: &[(&Row, &Fit)], cell: impl Fn(&Row, &Fit) -> String) -> Column {
    let cells = rows.iter().map(|(r, f)| (cell(r, f), None)).collect();
    Column { head: head.into(), text: false, cells }
}

fn latency(
    head: String,
    rows: &[(&Row, &Fit)],
    limit: Option<f64>,
    of: impl Fn(&Fit) -> Option<f64>,
) -> Column {
    let cells = rows.iter().map(|(_, f)| {
        let ms = of(f);
        let tone = ms.zip(limit).map(|(ms, limit)| Tone::of(ms / limit));
        (ms.map_or_else(|| "–".to_owned(), millis), tone)
    });
    Column { head, text: false, cells: cells.collect() }
}

fn columns(question: &Question, rows: &[(&Row, &Fit)], served: bool) -> Vec<Column> {
    let p = question.percentiles();
    let slo = question.default_slo();
    let of = |l: Option<plimsoll_fleet::Objective>| l.map(|o| o.ms);
    let mut columns = vec![Column { text: true, ..column("SHAPE", rows, |r, _| r.name.clone()) }];
    columns.push(column("CONTEXT", rows, |_, f| {
        format!(
            "{}{}",
            thousands(f64::from(f.max_context_tokens)),
            if f.context_shortened { "*" } else { "" }
        )
    }));
    columns.push(column("KV TOKENS", rows, |_, f| thousands(f.memory.kv_tokens)));
    columns.push(column("AT ONCE", rows, |_, f| thousands(f64::from(f.requests_at_once))));
    columns.push(column("ALONE", rows, |_, f| {
        format!("{}/{} ms", millis(f.alone.ttft_ms), millis(f.alone.tpot_ms))
    }));
    if served {
        columns.push(column("LINE", rows, |_, f| format!("{} rps", figure(f.load_line_rps))));
        match question.load {
            Load::Line => {}
            Load::Rps(_) => columns.push(column("REPLICAS", rows, |_, f| f.replicas.to_string())),
            Load::Concurrency(_) => {
                columns.push(column("RATE", rows, |_, f| {
                    f.at.map_or_else(|| "–".to_owned(), |a| format!("{} rps", figure(a.rps)))
                }));
            }
        }
        let at =
            |of: fn(&plimsoll_engine::outlook::OperatingPoint) -> f64| move |f: &Fit| f.at.as_ref().map(of);
        columns.push(latency(format!("TTFT {}", p.ttft), rows, of(slo.ttft), at(|a| a.ttft_ms)));
        columns.push(latency(format!("TPOT {}", p.tpot), rows, of(slo.tpot), at(|a| a.tpot_ms)));
        if slo.e2e.is_some() {
            columns.push(latency(format!("E2E {}", p.e2e), rows, of(slo.e2e), at(|a| a.e2e_ms)));
        }
        columns.push(column("±", rows, |_, f| format!("{:.0} %", 100.0 * f.relative_error)));
        if question.check && !matches!(question.load, Load::Concurrency(_)) {
            columns.push(column("SIMULATED", rows, |_, f| {
                f.simulated.map_or_else(
                    || "–".to_owned(),
                    |s| {
                        format!(
                            "{}/{} ms {:.1} %",
                            millis(s.ttft_ms),
                            millis(s.tpot_ms),
                            100.0 * s.attainment
                        )
                    },
                )
            }));
        }
        columns.push(column("$/H", rows, |_, f| figure(f.usd_per_hour)));
        columns.push(column("$/M OUT", rows, |_, f| {
            f.usd_per_million_output_tokens.map_or_else(|| "–".to_owned(), figure)
        }));
        columns.push(Column { text: true, ..column("LIMITED BY", rows, |_, f| f.limited_by.clone()) });
    } else {
        columns.push(column("$/H", rows, |r, _| figure(r.replica_usd_per_hour)));
        let why = |_: &Row, f: &Fit| f.infeasible.clone().unwrap_or_default();
        columns.push(Column { text: true, ..column("MISSES", rows, why) });
    }
    columns
}

fn draw(columns: &[Column], rows: usize, paint: Paint) -> Vec<String> {
    let widths: Vec<usize> = columns
        .iter()
        .map(|c| {
            c.cells.iter().map(|(t, _)| t.chars().count()).chain([c.head.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<(&str, Option<Tone>)>| {
        let mut text = String::new();
        for (i, ((cell, tone), column)) in cells.into_iter().zip(columns).enumerate() {
            let width = widths.get(i).copied().unwrap_or(0);
            let last = i + 1 == columns.len();
            let padded = match column.text {
                true if last => cell.to_owned(),
                true => left(cell, width),
                false => right(cell, width),
            };
            if i > 0 {
                text.push_str("  ");
            }
            text.push_str(&tone.map_or(padded.clone(), |t| paint.tone(t, &padded)));
        }
        text
    };
    let mut lines = vec![paint.bold(&line(columns.iter().map(|c| (c.head.as_str(), None)).collect()))];
    lines.extend((0..rows).map(|i| {
        line(
            columns
                .iter()
                .map(|c| c.cells.get(i).map_or(("", None), |(t, tone)| (t.as_str(), *tone)))
                .collect(),
        )
    }));
    lines
}

/// The whole table: shapes that serve, shapes that miss an objective, and what does not fit.
pub fn table(question: &Question, rows: &[Row], all: bool, paint: Paint) -> Vec<String> {
    let mut lines = title(question, paint);
    let fits = |serves: bool| -> Vec<(&Row, &Fit)> {
        rows.iter().filter(|r| r.serves() == serves).filter_map(|r| Some((r, r.fit.as_deref()?))).collect()
    };
    let section = |lines: &mut Vec<String>, rows: &[(&Row, &Fit)], served: bool| {
        let shown = if all { rows.len() } else { rows.len().min(SHOWN) };
        let (now, later) = rows.split_at(shown);
        lines.push(String::new());
        lines.extend(draw(&columns(question, now, served), now.len(), paint));
        if !later.is_empty() {
            lines.push(paint.dim(&format!("… and {} more (--all shows them)", later.len())));
        }
    };
    let (serving, missing) = (fits(true), fits(false));
    if !serving.is_empty() {
        section(&mut lines, &serving, true);
        let shown = if all { serving.len() } else { serving.len().min(SHOWN) };
        lines.extend(legend(question, &serving[..shown]).iter().map(|l| paint.dim(l)));
    }
    if !missing.is_empty() {
        section(&mut lines, &missing, false);
    }
    let unfit = unfit(rows, all);
    if !unfit.is_empty() {
        lines.push(String::new());
        lines.push(paint.bold("DOES NOT FIT"));
        lines.extend(unfit);
    }
    lines
}

fn legend(question: &Question, rows: &[(&Row, &Fit)]) -> Vec<String> {
    let mut lines = Vec::new();
    let at = match question.load {
        Load::Line => "latencies (ms) are those at the line",
        Load::Rps(_) => "latencies (ms) and costs are those of all replicas at the rate asked for",
        Load::Concurrency(_) => "latencies (ms) are simulated",
    };
    let margin = match question.margin {
        Some(m) => format!("{:.0} %", 100.0 * m),
        None => "±".to_owned(),
    };
    lines.push(format!(
        "LINE: the highest rate of one replica that holds every objective with {margin} to spare; {at}"
    ));
    if rows.iter().any(|(_, f)| f.context_shortened) {
        lines.push(
            "*: no memory for the model's longest request; this is the longest there is room for".to_owned(),
        );
    }
    lines
}

/// Reasons, one for each format on each class of which no degree fits (all of them: one for each shape).
fn unfit(rows: &[Row], all: bool) -> Vec<String> {
    if all {
        return rows.iter().filter_map(|r| r.does_not_fit.clone()).collect();
    }
    let mut groups: BTreeMap<(String, String), Option<&Row>> = BTreeMap::new();
    for row in rows {
        let entry =
            groups.entry((row.shape.accelerator.clone(), row.shape.variant.clone())).or_insert(Some(row));
        match entry {
            _ if row.fit.is_some() => *entry = None,
            // The largest tells most.
            Some(best) if row.gpus >= best.gpus => *entry = Some(row),
            _ => {}
        }
    }
    let reasons: Vec<String> =
        groups.into_values().flatten().filter_map(|r| r.does_not_fit.clone()).collect();
    let more = reasons.len().saturating_sub(SHOWN);
    let mut lines: Vec<String> = reasons.into_iter().take(SHOWN).collect();
    if more > 0 {
        lines.push(format!("… and {more} more (--all shows them)"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prediction::ask::Asked;
    use crate::prediction::ask::tests::asked;
    use crate::prediction::rows::rows;

    fn answer(line: &str) -> (Question, Vec<Row>) {
        let Asked { question, classes, variants } = asked(line);
        let rows = rows(&question, &classes, &variants);
        (question, rows)
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let (question, rows) = answer("llama-3.1-70b --gpu h100,l40s --check --weights fp8");
        let lines = table(&question, &rows, true, Paint::plain());
        let head = lines.iter().find(|l| l.starts_with("SHAPE")).unwrap();
        let end = |line: &str, word: &str| line.find(word).map(|at| line[..at + word.len()].chars().count());
        let cost = end(head, "$/M OUT").unwrap();
        let row = lines.iter().find(|l| l.starts_with("fp8 TP4 H100")).unwrap();
        let before: String = row.chars().take(cost).collect();
        assert!(before.ends_with(|c: char| c.is_ascii_digit()), "{before:?}");
        assert!(row.chars().nth(cost) == Some(' '), "{row:?}");
    }

    #[test]
    fn what_does_not_fit_is_told_once_a_class_and_format() {
        let (_, rows) = answer("llama-3.1-70b --gpu l4,l40s");
        let few = unfit(&rows, false);
        assert_eq!(few.len(), 2, "{few:?}");
        assert!(few.iter().all(|l| l.contains("L4 needs")), "{few:?}");
        assert!(unfit(&rows, true).len() > few.len(), "--all tells of the smaller L40S too");
    }

    #[test]
    fn rows_are_sorted_by_what_they_cost() {
        let (_, rows) = answer("llama-3.1-8b --rps 30");
        let usd: Vec<f64> = rows
            .iter()
            .filter(|r| r.serves())
            .filter_map(|r| r.fit.as_ref())
            .map(|f| f.usd_per_hour)
            .collect();
        assert!(usd.len() > 5 && usd.is_sorted(), "{usd:?}");
        let last = rows.iter().rposition(Row::serves).unwrap();
        assert!(rows.iter().take(last).all(Row::serves), "those that serve come first");
    }
}
