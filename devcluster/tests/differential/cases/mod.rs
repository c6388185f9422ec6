//! What is asked of both servers.

mod apply;
mod control;
mod definitions;
mod deletion;
mod documents;
mod errors;
mod habits;
mod kinds;
mod kubectl;
mod media;
mod patches;
mod reads;
mod subresources;
mod watches;
mod writes;

use serde_json::Value;

use crate::script::Script;

/// Cases that look at what a fresh server serves.
pub fn first() -> Vec<Script> {
    vec![documents::discovery(), documents::openapi()]
}

/// All others.
pub fn others() -> Vec<Script> {
    vec![
        writes::objects(),
        writes::names(),
        kinds::minimal(),
        kinds::rich(),
        kinds::tables(),
        errors::workloads(),
        errors::others(),
        patches::patches(),
        apply::objects(),
        apply::lists(),
        apply::kubectl(),
        reads::lists(),
        reads::selectors(),
        watches::watches(),
        watches::initial(),
        deletion::objects(),
        deletion::owners(),
        deletion::pods(),
        definitions::objects(),
        definitions::schemas(),
        definitions::refused(),
        definitions::ours(),
        subresources::workloads(),
        subresources::pods(),
        subresources::reviews(),
        media::media(),
        control::control(),
        control::autoscalers(),
        control::requests(),
        habits::habits(),
        kubectl::verbs(),
        kubectl::generators(),
        kubectl::complaints(),
    ]
}

/// A value written as YAML.
fn y(yaml: &str) -> Value {
    // `y` and `n` are names here.
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    serde_saphyr::from_str_with_options(yaml, options).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// The path of a namespaced resource's collection in the case's namespace: `configmaps`, `apps/v1/deployments`.
fn at(resource: &str) -> String {
    match resource.rsplit_once('/') {
        None => format!("/api/v1/namespaces/{{ns}}/{resource}"),
        Some((version, plural)) => format!("/apis/{version}/namespaces/{{ns}}/{plural}"),
    }
}
