//! `plimsoll crds`: the custom resource definitions as YAML.

use std::io::Write as _;

use crate::failure::{Failure, Outcome};

/// Print the custom resource definitions (for `kubectl apply -f -`)
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
///
/// # Errors
/// If the schemas cannot be written out.
pub fn run(_: &Args) -> Outcome {
    let yaml = plimsoll_crds::all_yaml().map_err(|e| Failure::caused("failed to write the schemas", e))?;
    // A reader that stops early (`| head`) is no failure.
    let _ = std::io::stdout().write_all(yaml.as_bytes());
    Ok(())
}
