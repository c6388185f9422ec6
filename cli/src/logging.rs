//! Where log lines go.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::failure::Failure;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to log, how and where.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// What to log, e.g. `info` or `warn,plimsoll_agent=debug`
    #[arg(
        long,
        global = true,
        env = "PLIMSOLL_LOG",
        default_value = "info,kube=warn,hyper=warn,h2=warn,tower=warn"
    )]
    pub log: String,
    /// Form of log lines
    #[arg(long, global = true, value_enum, env = "PLIMSOLL_LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
}

/// Starts logging: to `file` if given (a command that owns the screen), else to standard error.
///
/// # Errors
/// A [`Failure`] if the filter does not parse or the file cannot be opened.
pub fn start(args: &LogArgs, file: Option<&Path>) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&args.log).map_err(|e| {
        Failure::caused(format!("--log {:?} is not a log filter", args.log), e)
            .hint("use a level (error, warn, info, debug, trace) or target=level pairs")
    })?;
    let writer = match file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = open(path)?;
            BoxMakeWriter::new(std::sync::Arc::new(file))
        }
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let result = match args.log_format {
        // Colours are for people: neither files nor `kubectl logs` of a pod show them.
        Format::Text => builder.with_ansi(file.is_none() && std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().try_init(),
    };
    result.map_err(|e| Failure::caused("failed to start logging", e))
}

fn open(path: &Path) -> Result<std::fs::File, Failure> {
    let path: PathBuf = path.to_owned();
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| Failure::caused(format!("failed to open the log file {}", path.display()), e))
}
