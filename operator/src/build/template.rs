//! What a replica is made from, so that a change of it can be told. Pure.
//!
//! A pod carries one digest for each *input* that people choose (image, arguments, …), not one of the pod that was
//! rendered from them. Two things follow. A new version of the operator, which renders the same inputs otherwise or brings
//! newer default images, restarts nothing: replicas get those when they are next replaced. And an input that a later version
//! adds is not held against pods that do not mention it, so that version restarts nothing either.
//! What does not reach the engine's container (labels, placement, scaling, objectives, cold start) is no input.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::EnvVar;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::{self as fleet, Shape};

use crate::names;
use crate::observe::Observed;

/// Digest of each input, by its name as people read it.
pub type Inputs = BTreeMap<&'static str, String>;

/// The inputs of a replica of this shape under the pool's present spec.
pub fn inputs(resource: &ModelPool, pool: &fleet::ModelPool, shape: &Shape) -> Inputs {
    let engine = &resource.spec.engine;
    // One variable a line, sorted: the order of a list that the API merges by name says nothing.
    let mut env: Vec<&EnvVar> = engine.env.iter().collect();
    env.sort_by(|a, b| a.name.cmp(&b.name));
    let amounts = |amounts: &BTreeMap<String, String>| {
        amounts.iter().map(|(name, amount)| format!("{name}={amount};")).collect::<String>()
    };
    let variant = pool.variant(&shape.variant);
    let source = variant.and_then(|v| v.source.as_deref()).or(pool.source.as_deref());
    let dtypes = variant.map(|v| format!("{:?}/{:?}", v.weights, v.kv));
    [
        ("engine", pool.engine.kind.as_str().to_owned()),
        ("image", engine.image.clone().unwrap_or_default()),
        ("args", engine.args.iter().map(|a| format!("{a:?} ")).collect()),
        ("env", env.iter().map(|v| format!("{}\n", serde_json::to_string(v).unwrap_or_default())).collect()),
        (
            "resources",
            format!("{}|{}", amounts(&engine.resources.requests), amounts(&engine.resources.limits)),
        ),
        ("source", source.unwrap_or_default().to_owned()),
        ("variant", dtypes.unwrap_or_default()),
        ("expert", pool.parallelism.expert.to_string()),
        ("cache", format!("{:?}", engine.cache)),
        ("context", pool.max_context_tokens.map(|t| t.to_string()).unwrap_or_default()),
    ]
    .map(|(name, value)| (name, names::digest(&value)))
    .into()
}

/// The inputs as a pod's annotation: `args=0123456789abcdef,engine=…`.
pub fn annotation(inputs: &Inputs) -> String {
    inputs.iter().map(|(name, digest)| format!("{name}={digest}")).collect::<Vec<_>>().join(",")
}

/// Names of the inputs that differ between a pod's annotation and the present ones. Only inputs that both know count.
pub fn changed(annotation: &str, inputs: &Inputs) -> Vec<&'static str> {
    let had: BTreeMap<&str, &str> = annotation.split(',').filter_map(|part| part.split_once('=')).collect();
    inputs
        .iter()
        .filter(|(name, digest)| had.get(*name).is_some_and(|had| had != digest))
        .map(|(name, _)| *name)
        .collect()
}

/// What a replica of a pool would be made from otherwise now: inputs that differ, and room for adapters that it lacks. More room than
/// is wanted costs no restart.
pub fn outdated(
    replica: &Observed,
    resource: &ModelPool,
    pool: &fleet::ModelPool,
    wanted: fleet::AdapterRoom,
) -> Vec<&'static str> {
    let shape = &replica.status.shape;
    let mut found = changed(&replica.template, &inputs(resource, pool, shape));
    // Adapters go to replicas that serve requests whole, and only to engines that load them while they run.
    let takes_adapters = pool.engine.kind.loads_adapters() && shape.role == fleet::Role::Mixed;
    if takes_adapters && replica.status.adapter_room.is_some_and(|room| !room.covers(&wanted)) {
        found.push("adapters");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn inputs_of(patch: impl FnOnce(&mut Value)) -> Inputs {
        let mut pool = json!({
            "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
            "metadata": {"name": "chat", "namespace": "default", "uid": "u", "generation": 1},
            "spec": {
                "model": {"name": "llama-3.1-70b", "preset": "llama-3.1-70b"},
                "slo": {"tpot": {"p95": "50ms"}},
                "engine": {"image": "vllm/vllm-openai:v0.11.0", "args": ["--seed", "1"],
                           "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            },
        });
        patch(&mut pool);
        let resource: ModelPool = serde_json::from_value(pool).unwrap();
        let shape = Shape {
            variant: "fp8".to_owned(),
            accelerator: "h100".to_owned(),
            tensor_parallel: 2,
            pipeline_parallel: 1,
            data_parallel: 1,
            expert_parallel: 1,
            role: fleet::Role::Mixed,
        };
        inputs(&resource, &resource.to_fleet().unwrap(), &shape)
    }

    fn differs(patch: impl FnOnce(&mut Value)) -> Vec<&'static str> {
        changed(&annotation(&inputs_of(|_| {})), &inputs_of(patch))
    }

    #[test]
    fn what_reaches_the_engine_counts_and_is_named() {
        assert_eq!(differs(|p| p["spec"]["engine"]["image"] = json!("other:1")), ["image"]);
        assert_eq!(differs(|p| p["spec"]["engine"]["args"] = json!(["--seed 1"])), ["args"]);
        assert_eq!(differs(|p| p["spec"]["engine"]["env"][0]["value"] = json!("2")), ["env"]);
        assert_eq!(differs(|p| p["spec"]["engine"]["kind"] = json!("sglang")), ["engine"]);
        assert_eq!(
            differs(|p| p["spec"]["engine"]["resources"] = json!({"limits": {"cpu": "8"}})),
            ["resources"]
        );
        assert_eq!(differs(|p| p["spec"]["maxContextTokens"] = json!(8192)), ["context"]);
    }

    #[test]
    fn what_does_not_reach_it_restarts_nothing() {
        assert_eq!(differs(|p| p["metadata"]["labels"] = json!({"team": "a"})), [""; 0]);
        assert_eq!(differs(|p| p["metadata"]["annotations"] = json!({"note": "b"})), [""; 0]);
        assert_eq!(differs(|p| p["spec"]["engine"]["coldStart"] = json!("300s")), [""; 0]);
        assert_eq!(differs(|p| p["spec"]["scaling"] = json!({"min": 2})), [""; 0]);
        assert_eq!(
            differs(|p| p["spec"]["engine"]["env"] =
                json!([{"name": "B", "value": "2"}, {"name": "A", "value": "1"}])),
            [""; 0]
        );
    }

    #[test]
    fn another_version_of_the_operator_restarts_nothing() {
        let now = inputs_of(|_| {});
        assert_eq!(
            changed("3e1f0c0d1e2f3a4b", &now),
            [""; 0],
            "a digest of the whole, as earlier versions wrote"
        );
        assert_eq!(changed("", &now), [""; 0]);
        let mut fewer = now.clone();
        fewer.remove("context");
        assert_eq!(
            changed(&annotation(&fewer), &now),
            [""; 0],
            "an input that the earlier version did not know"
        );
        let more = format!("{},future=0123456789abcdef", annotation(&now));
        assert_eq!(changed(&more, &now), [""; 0], "one that this version does not know, after going back");
    }
}
