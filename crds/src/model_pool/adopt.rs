//! `spec.adopt`: engines of others that a pool reads and compares with what Plimsoll would run.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{EngineKind, Mode, ModelPoolSpec};
use crate::invalid::Check;

/// Engines that others run: pods of a Deployment, LeaderWorkerSet, StormService or anything else, in the pool's namespace.
/// They are read and never changed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Adopt {
    /// Which pods, as in a Deployment's `selector`.
    pub selector: LabelSelector,
    /// Labels whose values tie the pods of one engine together where it spans several. Left out: those of
    /// LeaderWorkerSet, of AIBrix's PodSet and of KubeRay; without them each pod is an engine of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 317)))]
    pub group_labels: Vec<String>,
}

/// Records what is wrong with `spec.adopt`.
pub(super) fn check(check: &mut Check, spec: &ModelPoolSpec) {
    let Some(adopt) = &spec.adopt else { return };
    if spec.mode == Mode::Enforce {
        check.invalid(
            "spec.mode",
            "Enforce",
            "goes not with spec.adopt, which only reads",
            "set mode: Advise; to hand the model over, remove spec.adopt, set mode: Enforce, and remove the old workload once the pool serves",
        );
    }
    if spec.engine.kind == EngineKind::External {
        check.invalid(
            "spec.engine.kind",
            "external",
            "goes not with spec.adopt: there is nothing to advise on endpoints outside",
            "name the engine that should serve, or remove spec.adopt",
        );
    }
    let selector = &adopt.selector;
    if selector.match_labels.as_ref().is_none_or(|l| l.is_empty())
        && selector.match_expressions.as_ref().is_none_or(|e| e.is_empty())
    {
        check.invalid(
            "spec.adopt.selector",
            "",
            "is empty and would take every pod of the namespace",
            "copy the selector of the Deployment (or the like) that runs the engines, e.g. {matchLabels: {app: chat}}",
        );
    }
    if let Err(e) = Selector::try_from(selector.clone()) {
        check.invalid(
            "spec.adopt.selector",
            "",
            format!("is not a label selector: {e}"),
            "use the operators In, NotIn, Exists and DoesNotExist, with values for the first two",
        );
    }
}
