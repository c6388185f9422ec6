//! The two ends of `make bench-router`: engines that cost next to nothing, and the load that goes to them through a
//! router.
//!
//! `router-load engines --ports 9001,9002` serves; `router-load load --url http://…` sends and prints one line of JSON.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod engine;
mod load;
mod prompt;

use std::collections::HashMap;

/// `--name value` pairs.
pub struct Args(HashMap<String, String>);

impl Args {
    fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).cloned().unwrap_or_else(|| default.to_owned())
    }

    fn number(&self, name: &str, default: f64) -> f64 {
        self.0.get(name).map_or(default, |v| v.parse().unwrap_or_else(|_| usage(&format!("--{name} {v}"))))
    }
}

fn usage(what: &str) -> ! {
    eprintln!(
        "router-load: {what:?} makes no sense; use `engines --ports P,…` or `load --url URL`, see scripts/bench-router"
    );
    std::process::exit(2)
}

fn main() {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let mut args = HashMap::new();
    while let Some(name) = words.next() {
        let Some(name) = name.strip_prefix("--") else { usage(&name) };
        let value = words.next().unwrap_or_else(|| usage(name));
        args.insert(name.to_owned(), value);
    }
    let args = Args(args);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match command.as_str() {
        "engines" => runtime.block_on(engine::serve(&args)),
        "load" => runtime.block_on(load::run(&args)),
        other => usage(other),
    }
}
