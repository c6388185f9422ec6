//! ModelPools from YAML: what is accepted, what it becomes, and what each mistake is answered with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use plimsoll_crds::{InvalidField, ModelPool};
use plimsoll_fleet::pool::{EngineKind, Mode};
use plimsoll_fleet::{Dtype, Percentile};
use rstest::rstest;
use serde_json::json;

/// The manifest of the README and of the first ten minutes.
const CHAT: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: chat}
spec:
  model: {name: llama-3.1-70b, preset: llama-3.1-70b}
  slo: {ttft: {p95: 800ms}, tpot: {p95: 50ms}}
  demand: {rps: 4, input: {mean: 1200, p95: 4000}, output: {mean: 250, p95: 800}}
";

fn chat() -> ModelPool {
    serde_saphyr::from_str(CHAT).unwrap()
}

/// CHAT with a JSON merge patch over it.
fn patched(patch: serde_json::Value) -> ModelPool {
    fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
        match (target.as_object_mut(), patch.as_object()) {
            (Some(t), Some(p)) => {
                for (key, value) in p {
                    if value.is_null() {
                        t.remove(key);
                    } else {
                        merge(t.entry(key).or_insert(json!(null)), value);
                    }
                }
            }
            _ => *target = patch.clone(),
        }
    }
    let mut value = serde_json::to_value(chat()).unwrap();
    // A leaf that is replaced by an object becomes that object.
    fn prepare(target: &mut serde_json::Value, patch: &serde_json::Value) {
        if let Some(p) = patch.as_object() {
            if !target.is_object() {
                *target = json!({});
            }
            if let Some(t) = target.as_object_mut() {
                for (key, value) in p {
                    if value.is_object() {
                        prepare(t.entry(key).or_insert(json!({})), value);
                    }
                }
            }
        }
    }
    prepare(&mut value, &patch);
    merge(&mut value, &patch);
    serde_json::from_value(value).unwrap()
}

fn errors(patch: serde_json::Value) -> Vec<InvalidField> {
    patched(patch).to_fleet().expect_err("should be invalid")
}

#[test]
fn the_first_manifest_gets_sensible_defaults() {
    let pool = chat().to_fleet().unwrap();
    assert_eq!(pool.id.to_string(), "default/chat");
    assert_eq!(pool.served_name, "llama-3.1-70b");
    assert_eq!(pool.architecture.layers, 80);
    assert_eq!(pool.source.as_deref(), Some("hf://meta-llama/Llama-3.1-70B-Instruct"));
    let variants: Vec<_> =
        pool.variants.iter().map(|v| (v.name.as_str(), v.weights, v.kv, v.quality)).collect();
    assert_eq!(variants, [("bf16", Dtype::Bf16, Dtype::Bf16, 1.0), ("fp8", Dtype::Fp8, Dtype::Bf16, 0.99)]);
    let slo = pool.slo_classes[0].slo;
    assert_eq!((slo.ttft.unwrap().percentile, slo.ttft.unwrap().ms), (Percentile::P95, 800.0));
    assert_eq!(slo.tpot.unwrap().ms, 50.0);
    let demand = pool.demand.unwrap();
    assert_eq!((demand.rps, demand.input.mean_tokens, demand.output.p95_tokens), (4.0, 1200.0, 800.0));
    assert_eq!((pool.scaling.min_replicas, pool.scaling.max_replicas, pool.scaling.min_zones), (1, 64, 1));
    assert_eq!((pool.engine.kind, pool.engine.cold_start_seconds), (EngineKind::Vllm, 90.0));
    assert_eq!(pool.mode, Mode::Enforce);
    assert_eq!(pool.min_quality, 0.0);
}

#[test]
fn kubectl_scale_pins_the_pool() {
    let pool =
        patched(json!({"spec": {"replicas": 3, "scaling": {"min": 1, "max": 2, "scaleToZeroAfter": "15m"}}}));
    let scaling = pool.to_fleet().unwrap().scaling;
    assert_eq!(
        (scaling.min_replicas, scaling.max_replicas, scaling.scale_to_zero_after_seconds),
        (3, 3, None)
    );
    let off = patched(json!({"spec": {"replicas": 0}})).to_fleet().unwrap().scaling;
    assert_eq!((off.min_replicas, off.max_replicas), (0, 0));
}

#[test]
fn presets_published_in_a_narrow_format_start_from_it() {
    let pool = patched(json!({"spec": {"model": {"preset": "deepseek-v3"}}})).to_fleet().unwrap();
    let names: Vec<_> = pool.variants.iter().map(|v| (v.name.as_str(), v.quality)).collect();
    assert_eq!(names, [("fp8", 1.0)]);
}

#[test]
fn an_architecture_of_ones_own_is_accepted() {
    let pool = patched(json!({"spec": {"model": {
        "preset": null, "source": "s3://models/mine", "name": "mine",
        "architecture": {"layers": 32, "hidden": 4096, "heads": 32, "kvHeads": 8, "vocab": 128256,
                         "parametersBillion": 8.03, "contextTokens": 131072}}}}))
    .to_fleet()
    .unwrap();
    let preset = plimsoll_fleet::presets::model("llama-3.1-8b").unwrap();
    assert_eq!(pool.architecture.head_dim, 128);
    assert_eq!(pool.architecture.active_parameters, preset.active_parameters);
}

/// A pool of an architecture that is written out: these fields over a model like Llama 3.1 8B.
fn of_architecture(more: serde_json::Value) -> ModelPool {
    let mut architecture = json!({"layers": 32, "hidden": 4096, "heads": 32, "kvHeads": 8, "vocab": 128256,
                                  "parametersBillion": 60.0, "contextTokens": 131072});
    for (field, value) in more.as_object().unwrap() {
        let all = architecture.as_object_mut().unwrap();
        if value.is_null() {
            all.remove(field)
        } else {
            all.insert(field.clone(), value.clone())
        };
    }
    patched(json!({"spec": {"model": {
        "preset": null, "source": "s3://models/mine", "name": "mine", "architecture": architecture}}}))
}

#[test]
fn layers_experts_and_latents_reach_the_engine_model() {
    let moe = json!({"experts": 64, "expertsPerToken": 4, "expertParametersBillion": 50.0});
    let pool = of_architecture(json!({
        "activeParametersBillion": 9.0, "moe": moe, "slidingWindow": {"layers": 8, "tokens": 1024},
        "recurrent": {"layers": 20, "stateBytes": 2.5e6}}))
    .to_fleet()
    .unwrap();
    let a = &pool.architecture;
    assert_eq!((a.full_layers(), a.sliding_layers(), a.recurrent_layers()), (4, 8, 20));
    assert_eq!(a.sliding.unwrap().window_tokens, 1024);
    assert_eq!(a.recurrent.unwrap().state_bytes, 2.5e6);
    let experts = a.moe.as_ref().unwrap();
    assert_eq!((experts.experts, experts.experts_per_token, experts.expert_parameters), (64, 4, 50e9));
    assert_eq!((a.total_parameters, a.active_parameters), (60e9, 9e9));
    let latent =
        of_architecture(json!({"kvHeads": null, "latent": {"rank": 512, "ropeDim": 64}})).to_fleet().unwrap();
    let expected = plimsoll_fleet::Attention::Latent { kv_rank: 512, rope_dim: 64 };
    assert_eq!(latent.architecture.attention, expected);
    // Expert parallelism is for models with experts, of one's own as of presets.
    let mut spread = of_architecture(json!({"activeParametersBillion": 9.0, "moe": moe}));
    spread.spec.parallelism.expert = true;
    assert!(spread.to_fleet().unwrap().parallelism.expert);
}

#[rstest]
#[case::experts_per_token(json!({"activeParametersBillion": 9.0, "moe": {"experts": 8, "expertsPerToken": 9, "expertParametersBillion": 50.0}}), "moe.expertsPerToken", "from 1 to 8")]
#[case::experts_above_all(json!({"activeParametersBillion": 9.0, "moe": {"experts": 8, "expertsPerToken": 2, "expertParametersBillion": 61.0}}), "moe.expertParametersBillion", "all routed experts")]
#[case::experts_negative(json!({"activeParametersBillion": 9.0, "moe": {"experts": 8, "expertsPerToken": 2, "expertParametersBillion": -1.0}}), "moe.expertParametersBillion", "above 0")]
#[case::active_left_out(json!({"moe": {"experts": 8, "expertsPerToken": 2, "expertParametersBillion": 50.0}}), "activeParametersBillion", "one token uses")]
#[case::active_above_all(json!({"activeParametersBillion": 61.0}), "activeParametersBillion", "at most 60")]
#[case::window_of_nothing(json!({"slidingWindow": {"layers": 8, "tokens": 0}}), "slidingWindow.tokens", "from 1")]
#[case::windows_above_layers(json!({"slidingWindow": {"layers": 33, "tokens": 128}}), "slidingWindow.layers", "from 1 to 32")]
#[case::layers_twice(json!({"slidingWindow": {"layers": 20, "tokens": 128}, "recurrent": {"layers": 20, "stateBytes": 1e6}}), "recurrent.layers", "each layer once")]
#[case::state_of_nothing(json!({"recurrent": {"layers": 20, "stateBytes": 0.0}}), "recurrent.stateBytes", "from 1")]
#[case::no_attention(json!({"recurrent": {"layers": 32, "stateBytes": 1e6}}), "recurrent.layers", "from 1 to 31")]
#[case::no_attention_in_one_layer(json!({"layers": 1, "recurrent": {"layers": 1, "stateBytes": 1e6}}), "recurrent.layers", "use fewer")]
#[case::latent_of_nothing(json!({"kvHeads": null, "latent": {"rank": 0, "ropeDim": 64}}), "latent.rank", "from 1")]
#[case::heads_that_do_not_divide(json!({"kvHeads": 5}), "kvHeads", "num_key_value_heads")]
#[case::tables_above_all(json!({"parametersBillion": 0.5}), "parametersBillion", "tiedEmbeddings")]
fn each_mistake_in_an_architecture_names_its_field(
    #[case] more: serde_json::Value,
    #[case] field: &str,
    #[case] remedy: &str,
) {
    let errors = of_architecture(more).to_fleet().expect_err("should be invalid");
    let path = format!("spec.model.architecture.{field}");
    let found = errors.iter().find(|e| e.path == path).unwrap_or_else(|| panic!("{path} not in {errors:?}"));
    assert!(found.to_string().contains(remedy), "{found}");
}

#[test]
fn classes_share_the_traffic() {
    let pool = patched(json!({"spec": {"slo": {"classes": [
        {"name": "batch", "e2e": {"p90": "10m"}, "share": 0.25, "match": {"headers": {"X-Job": "nightly"}}}]}}}))
    .to_fleet()
    .unwrap();
    let shares: Vec<_> = pool.slo_classes.iter().map(|c| (c.name.as_str(), c.expected_share)).collect();
    assert_eq!(shares, [("default", 0.75), ("batch", 0.25)]);
    assert_eq!(pool.slo_classes[1].match_headers["x-job"], "nightly");
}

#[rstest]
#[case::tpot_too_short(json!({"slo": {"tpot": {"p95": "0ms"}}}), "spec.slo.tpot.p95", "between 1ms and 10s")]
#[case::tpot_too_long(json!({"slo": {"tpot": {"p95": "11s"}}}), "spec.slo.tpot.p95", "between 1ms and 10s")]
#[case::ttft_no_unit(json!({"slo": {"ttft": {"p95": "800"}}}), "spec.slo.ttft.p95", "800ms or 1.5s")]
#[case::two_percentiles(json!({"slo": {"ttft": {"p50": "1s"}}}), "spec.slo.ttft", "exactly one of")]
#[case::no_percentile(json!({"slo": {"ttft": {"p95": null}}}), "spec.slo.ttft", "exactly one of")]
#[case::no_objective(json!({"slo": {"ttft": null, "tpot": null}}), "spec.slo", "at least one of")]
#[case::e2e_below_ttft(json!({"slo": {"e2e": {"p95": "500ms"}}}), "spec.slo.e2e", "at least ttft")]
#[case::class_named_default(json!({"slo": {"classes": [{"name": "default", "e2e": {"p95": "1s"}}]}}), "spec.slo.classes[0].name", "another name")]
#[case::shares_above_one(json!({"slo": {"classes": [{"name": "a", "e2e": {"p95": "9s"}, "share": 0.7}, {"name": "b", "e2e": {"p95": "9s"}, "share": 0.7}]}}), "spec.slo.classes", "at most 1")]
#[case::unknown_preset(json!({"model": {"preset": "lama-3.1-70b"}}), "spec.model.preset", "llama-3.1-70b")]
#[case::preset_and_architecture(json!({"model": {"architecture": {"layers": 1, "hidden": 1, "heads": 1, "vocab": 1, "kvHeads": 1, "parametersBillion": 1, "contextTokens": 16}}}), "spec.model", "exactly one")]
#[case::neither(json!({"model": {"preset": null}}), "spec.model", "exactly one")]
#[case::served_name(json!({"model": {"name": "my model"}}), "spec.model.name", "letters, digits")]
#[case::source(json!({"model": {"source": "meta-llama/Llama"}}), "spec.model.source", "hf://org/repo")]
#[case::max_below_min(json!({"scaling": {"min": 4, "max": 2}}), "spec.scaling.max", "at least 4")]
#[case::zones_above_max(json!({"scaling": {"max": 2, "minZones": 3}}), "spec.scaling.minZones", "at most 2")]
#[case::to_zero(json!({"scaling": {"scaleToZeroAfter": "soon"}}), "spec.scaling.scaleToZeroAfter", "15m")]
#[case::tp_does_not_divide(json!({"parallelism": {"tensor": [3]}}), "spec.parallelism.tensor", "1, 2, 4, 8")]
#[case::tp_twice(json!({"parallelism": {"tensor": [2, 2]}}), "spec.parallelism.tensor[1]", "once")]
#[case::tp_zero(json!({"parallelism": {"tensor": [0]}}), "spec.parallelism.tensor[0]", "from 1 to 64")]
#[case::pp_too_deep(json!({"parallelism": {"pipeline": [64]}, "model": {"preset": "phi-4"}}), "spec.parallelism.pipeline", "at most 40")]
#[case::no_experts(json!({"parallelism": {"expert": true}}), "spec.parallelism.expert", "mixture-of-experts")]
#[case::experts_of_llamacpp(json!({"parallelism": {"expert": true}, "model": {"preset": "mixtral-8x7b"}, "engine": {"kind": "llamacpp"}}), "spec.parallelism.expert", "vllm or sglang")]
#[case::parts_of_llamacpp(json!({"parallelism": {"disaggregation": "Always"}, "engine": {"kind": "llamacpp"}}), "spec.parallelism.disaggregation", "vllm or sglang")]
#[case::quality(json!({"variants": [{"name": "a", "weights": "bf16", "quality": 1.5}]}), "spec.variants[0].quality", "from 0 to 1")]
#[case::variant_twice(json!({"variants": [{"name": "a", "weights": "bf16"}, {"name": "a", "weights": "fp8"}]}), "spec.variants[1].name", "its own name")]
#[case::int4_without_source(json!({"variants": [{"name": "q4", "weights": "int4"}]}), "spec.variants[0].source", "quantised to int4")]
#[case::min_quality(json!({"minQuality": 0.9, "variants": [{"name": "a", "weights": "fp8", "quality": 0.8}]}), "spec.minQuality", "lower it to 0.8")]
#[case::p95_below_mean(json!({"demand": {"input": {"p95": 100}}}), "spec.demand.input.p95", "at least 1200")]
#[case::negative_rate(json!({"demand": {"rps": -1}}), "spec.demand.rps", "from 0")]
#[case::gpu_by_hand(json!({"engine": {"resources": {"requests": {"nvidia.com/gpu": "2"}}}}), "spec.engine.resources.requests.nvidia.com/gpu", "remove it")]
#[case::external_without_endpoint(json!({"engine": {"kind": "external"}}), "spec.engine.endpoints", "host:port")]
#[case::bad_endpoint(json!({"engine": {"kind": "external", "endpoints": ["http://a"]}}), "spec.engine.endpoints[0]", "10.0.0.7:8000")]
#[case::cold_start(json!({"engine": {"coldStart": "fast"}}), "spec.engine.coldStart", "90s")]
#[case::toleration(json!({"placement": {"tolerations": [{"key": "a", "operator": "Is"}]}}), "spec.placement.tolerations[0].operator", "Exists or Equal")]
#[case::queue(json!({"placement": {"queueName": "My Queue"}}), "spec.placement.queueName", "kubectl get localqueues")]
#[case::two_caches(json!({"engine": {"cache": {"claim": "a", "hostPath": "/b"}}}), "spec.engine.cache", "at most one of")]
#[case::cache_without_size(json!({"engine": {"cache": {"storageClassName": "nvme"}}}), "spec.engine.cache.size", "200Gi")]
#[case::size_of_a_claim(json!({"engine": {"cache": {"claim": "a", "size": "1Gi"}}}), "spec.engine.cache.size", "remove it")]
#[case::size_of_nothing(json!({"engine": {"cache": {"size": "0"}}}), "spec.engine.cache.size", "200Gi")]
#[case::host_path_upwards(json!({"engine": {"cache": {"hostPath": "/var/../etc"}}}), "spec.engine.cache.hostPath", "absolute path")]
#[case::claim_name(json!({"engine": {"cache": {"claim": "A b"}}}), "spec.engine.cache.claim", "lower-case")]
#[case::llamacpp_shares_downloads(json!({"engine": {"kind": "llamacpp", "cache": {"claim": "a"}}}), "spec.engine.cache", "storageClassName")]
#[case::llamacpp_from_s3(json!({"engine": {"kind": "llamacpp"}, "model": {"source": "s3://b/m.gguf"}}), "spec.model.source", "pvc://")]
#[case::adopt_enforce(json!({"adopt": {"selector": {"matchLabels": {"app": "a"}}}}), "spec.mode", "set mode: Advise")]
#[case::adopt_external(json!({"mode": "Advise", "adopt": {"selector": {"matchLabels": {"app": "a"}}}, "engine": {"kind": "external", "endpoints": ["a:1"]}}), "spec.engine.kind", "remove spec.adopt")]
#[case::adopt_all(json!({"mode": "Advise", "adopt": {"selector": {}}}), "spec.adopt.selector", "matchLabels: {app: chat}")]
#[case::adopt_operator(json!({"mode": "Advise", "adopt": {"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}}), "spec.adopt.selector", "DoesNotExist")]
#[case::context(json!({"maxContextTokens": 999999}), "spec.maxContextTokens", "131072")]
fn each_mistake_names_its_field_and_remedy(
    #[case] spec: serde_json::Value,
    #[case] path: &str,
    #[case] remedy: &str,
) {
    let errors = errors(json!({"spec": spec}));
    let found = errors.iter().find(|e| e.path == path).unwrap_or_else(|| panic!("{path} not in {errors:?}"));
    assert!(found.remedy.contains(remedy), "{found}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let errors = errors(json!({"spec": {
        "model": {"preset": "nope"}, "slo": {"tpot": {"p95": "0ms"}}, "scaling": {"min": 3, "max": 1}}}));
    let paths: Vec<_> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["spec.model.preset", "spec.slo.tpot.p95", "spec.scaling.max"]);
    assert_eq!(
        errors[1].to_string(),
        "spec.slo.tpot.p95: \"0ms\" is out of range; use a duration between 1ms and 10s"
    );
}
