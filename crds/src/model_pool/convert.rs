//! From a ModelPool to the domain, validating everything again.

use std::collections::BTreeSet;

use plimsoll_fleet as fleet;
use plimsoll_fleet::canary::CanaryPolicy;
use plimsoll_fleet::rollout::RolloutPolicy;
use plimsoll_fleet::{pool, presets, shape};

use super::spec::*;
use super::storage;
use crate::duration::DurationText;
use crate::invalid::{Check, InvalidField};
use crate::names::nearest;
use crate::tolerations::tolerations;
use crate::{presets as checkpoints, quantity};

/// Quality assumed of weights that are quantised to fp8 when they are loaded.
const FP8_QUALITY: f64 = 0.99;
/// 95th percentile of lengths over their mean where only the mean was given.
const P95_OVER_MEAN: f64 = 3.0;

impl super::ModelPool {
    /// The pool as the domain knows it.
    ///
    /// # Errors
    /// Every invalid field, in the order of the spec.
    pub fn to_fleet(&self) -> Result<fleet::ModelPool, Vec<InvalidField>> {
        let mut check = Check::default();
        let spec = &self.spec;
        let namespace = self.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = self.metadata.name.clone().unwrap_or_default();
        let id = match fleet::PoolId::new(namespace, name.clone()) {
            Ok(id) => Some(id),
            Err(e) => {
                check.invalid(
                    "metadata.name",
                    &name,
                    e.problem,
                    "use lower-case letters, digits, '-' and '.'",
                );
                None
            }
        };

        served_name(&mut check, &spec.model.name);
        let engine = engine(&mut check, &spec.engine);
        let architecture = architecture(&mut check, &spec.model);
        let needs_weights = !matches!(spec.engine.kind, EngineKind::Simulated | EngineKind::External);
        let source = source(&mut check, &spec.model, needs_weights);
        let variants = variants(&mut check, spec, needs_weights);
        let own = source.iter().map(|s| ("spec.model.source".to_owned(), s.as_str()));
        let given = spec.variants.iter().enumerate().filter_map(|(i, v)| Some((i, v.source.as_deref()?)));
        let given = given.map(|(i, source)| (format!("spec.variants[{i}].source"), source));
        storage::check(&mut check, &spec.engine, own.chain(given));
        let slo_classes = slo_classes(&mut check, &spec.slo);
        let demand = spec.demand.as_ref().map(|d| demand(&mut check, d));
        let scaling = scaling(&mut check, &spec.scaling, spec.replicas);
        let parallelism = parallelism(&mut check, &spec.parallelism, spec.engine.kind, architecture.as_ref());
        let placement = placement(&mut check, &spec.placement);
        let rollout = rollout(&mut check, &spec.rollout);
        super::adopt::check(&mut check, spec);
        check.range("spec.minQuality", spec.min_quality, 0.0, 1.0);
        if !variants.is_empty() && variants.iter().all(|v| v.quality < spec.min_quality) {
            let best = variants.iter().map(|v| v.quality).fold(0.0, f64::max);
            check.invalid(
                "spec.minQuality",
                spec.min_quality,
                "is above the quality of every variant",
                format!("lower it to {best} or less, or add a better variant"),
            );
        }
        let max_context_tokens = spec.max_context_tokens.map(|tokens| {
            let limit = architecture.as_ref().map_or(100_000_000, |a| a.max_context_tokens.max(16));
            check.count("spec.maxContextTokens", i64::from(tokens), 16, limit)
        });

        let value = id.zip(architecture).map(|(id, architecture)| fleet::ModelPool {
            id,
            uid: self.metadata.uid.clone().unwrap_or_default(),
            generation: self.metadata.generation.unwrap_or(0),
            served_name: spec.model.name.clone(),
            source,
            architecture,
            variants,
            slo_classes,
            demand,
            scaling,
            parallelism,
            placement,
            engine,
            priority: spec.priority,
            min_quality: spec.min_quality,
            mode: match spec.mode {
                Mode::Enforce => pool::Mode::Enforce,
                Mode::Advise => pool::Mode::Advise,
            },
            max_context_tokens,
            rollout,
            // Whoever keeps revisions fills it in.
            revision: String::new(),
            observed: Vec::new(),
        });
        check.finish(value)
    }
}

fn served_name(check: &mut Check, name: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-');
    if name.is_empty()
        || name.len() > 253
        || !name.chars().all(allowed)
        || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        check.invalid(
            "spec.model.name",
            name,
            "is not a model name",
            "use 1 to 253 letters, digits and . _ : / -, starting with a letter or digit",
        );
    }
}

fn architecture(check: &mut Check, model: &Model) -> Option<fleet::ModelArchitecture> {
    match (&model.preset, &model.architecture) {
        (Some(preset), None) => {
            let found = presets::model(preset);
            if found.is_none() {
                let near = nearest(preset, presets::models().into_iter().map(|m| m.name)).join(", ");
                check.invalid(
                    "spec.model.preset",
                    preset,
                    "is not a known model",
                    format!("use one of {near}, or give model.architecture"),
                );
            }
            found
        }
        (None, Some(given)) => custom_architecture(check, &model.name, given),
        (preset, _) => {
            check.invalid(
                "spec.model",
                "",
                if preset.is_some() {
                    "names both preset and architecture"
                } else {
                    "names neither preset nor architecture"
                },
                "name exactly one of them",
            );
            None
        }
    }
}

fn custom_architecture(check: &mut Check, name: &str, a: &Architecture) -> Option<fleet::ModelArchitecture> {
    const AT: &str = "spec.model.architecture";
    let dimension = |check: &mut Check, field: &str, value: i32, high: u32| {
        check.count(&format!("{AT}.{field}"), i64::from(value), 1, high)
    };
    let layers = dimension(check, "layers", a.layers, 10_000);
    let hidden = dimension(check, "hidden", a.hidden, 1_000_000);
    let heads = dimension(check, "heads", a.heads, 10_000);
    let vocab = dimension(check, "vocab", a.vocab, 100_000_000);
    let context = check.count(&format!("{AT}.contextTokens"), i64::from(a.context_tokens), 16, 100_000_000);
    let head_dim = match a.head_dim {
        Some(d) => dimension(check, "headDim", d, 10_000),
        None => (hidden / heads).max(1),
    };
    let attention = match (&a.kv_heads, &a.latent) {
        (Some(kv), None) => {
            let kv_heads = dimension(check, "kvHeads", *kv, 10_000);
            if heads % kv_heads != 0 {
                check.invalid(
                    format!("{AT}.kvHeads"),
                    kv,
                    format!("does not divide the {heads} query heads"),
                    "copy num_key_value_heads and num_attention_heads from the model's config.json",
                );
            }
            Some(fleet::Attention::Grouped { kv_heads })
        }
        (None, Some(latent)) => Some(fleet::Attention::Latent {
            kv_rank: dimension(check, "latent.rank", latent.rank, 100_000),
            rope_dim: check.count(&format!("{AT}.latent.ropeDim"), i64::from(latent.rope_dim), 0, 100_000),
        }),
        _ => {
            check.invalid(
                AT,
                "",
                "does not say how attention stores keys and values",
                "give exactly one of kvHeads and latent",
            );
            None
        }
    };
    check.positive(&format!("{AT}.parametersBillion"), a.parameters_billion);
    let total = a.parameters_billion * 1e9;
    let tables = if a.tied_embeddings { 1.0 } else { 2.0 } * f64::from(vocab) * f64::from(hidden);
    let moe = a.moe.as_ref().map(|m| {
        let experts = dimension(check, "moe.experts", m.experts, 100_000);
        let experts_per_token = dimension(check, "moe.expertsPerToken", m.experts_per_token, experts);
        check.positive(&format!("{AT}.moe.expertParametersBillion"), m.expert_parameters_billion);
        if m.expert_parameters_billion > a.parameters_billion {
            check.invalid(
                format!("{AT}.moe.expertParametersBillion"),
                m.expert_parameters_billion,
                "is more than the whole model",
                "give the parameters of all routed experts in all layers, in billions",
            );
        }
        fleet::Moe { experts, experts_per_token, expert_parameters: m.expert_parameters_billion * 1e9 }
    });
    let (sliding, recurrent) = special_layers(check, a, layers);
    let active = match a.active_parameters_billion {
        Some(active) => {
            check.positive(&format!("{AT}.activeParametersBillion"), active);
            if active > a.parameters_billion {
                check.invalid(
                    format!("{AT}.activeParametersBillion"),
                    active,
                    "is more than all parameters",
                    format!("use at most {}", a.parameters_billion),
                );
            }
            active * 1e9
        }
        None => {
            if moe.is_some() {
                check.invalid(
                    format!("{AT}.activeParametersBillion"),
                    "",
                    "is missing for a mixture of experts",
                    "give the parameters that one token uses, in billions",
                );
            }
            if total > 0.0 && total <= tables {
                check.invalid(
                    format!("{AT}.parametersBillion"),
                    a.parameters_billion,
                    format!("is less than the embedding tables alone ({:.2} billion)", tables / 1e9),
                    "give all parameters in billions, and tiedEmbeddings: true if the tables are shared",
                );
            }
            total - tables
        }
    };
    attention.map(|attention| fleet::ModelArchitecture {
        name: name.to_owned(),
        layers,
        hidden,
        heads,
        head_dim,
        attention,
        vocab,
        total_parameters: total,
        active_parameters: active,
        tied_embeddings: a.tied_embeddings,
        max_context_tokens: context,
        moe,
        sliding,
        recurrent,
    })
}

/// Layers that keep less than every token.
fn special_layers(
    check: &mut Check,
    a: &Architecture,
    layers: u32,
) -> (Option<fleet::SlidingWindow>, Option<fleet::RecurrentState>) {
    const AT: &str = "spec.model.architecture";
    let sliding = a.sliding_window.as_ref().map(|s| fleet::SlidingWindow {
        layers: check.count(&format!("{AT}.slidingWindow.layers"), i64::from(s.layers), 1, layers),
        window_tokens: check.count(
            &format!("{AT}.slidingWindow.tokens"),
            i64::from(s.tokens),
            1,
            100_000_000,
        ),
    });
    let recurrent = a.recurrent.as_ref().map(|r| {
        let most = layers.saturating_sub(1).max(1);
        check.range(&format!("{AT}.recurrent.stateBytes"), r.state_bytes, 1.0, 1e12);
        fleet::RecurrentState {
            layers: check.count(&format!("{AT}.recurrent.layers"), i64::from(r.layers), 1, most),
            state_bytes: r.state_bytes,
        }
    });
    let special = sliding.map_or(0, |s| s.layers) + recurrent.map_or(0, |r| r.layers);
    if special > layers {
        check.invalid(
            format!("{AT}.recurrent.layers"),
            special,
            format!("and slidingWindow.layers together are more than the {layers} layers"),
            "count each layer once",
        );
    }
    if let Some(r) = recurrent.filter(|r| r.layers >= layers) {
        check.invalid(
            format!("{AT}.recurrent.layers"),
            r.layers,
            "leaves no layer with attention",
            "models without attention are not modelled; use fewer",
        );
    }
    (sliding, recurrent)
}

const SOURCE_REMEDY: &str =
    "use hf://org/repo, s3://bucket/path, oci://registry/repo:tag or pvc://claim/path";

fn is_source(source: &str) -> bool {
    ["hf://", "s3://", "oci://", "pvc://"].iter().any(|scheme| {
        source
            .strip_prefix(scheme)
            .is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
    })
}

fn source(check: &mut Check, model: &Model, needed: bool) -> Option<String> {
    let source = model
        .source
        .clone()
        .or_else(|| checkpoints::checkpoint(model.preset.as_deref()?).map(|c| c.source.to_owned()));
    match &source {
        Some(s) if !is_source(s) => check.invalid("spec.model.source", s, "is not a source", SOURCE_REMEDY),
        None if needed && model.architecture.is_some() => check.invalid(
            "spec.model.source",
            "",
            "is missing, and a model given by its architecture has no published checkpoint",
            SOURCE_REMEDY,
        ),
        _ => {}
    }
    source
}

/// The format of the weights at the pool's own source.
fn published_format(model: &Model) -> fleet::Dtype {
    match (&model.source, model.preset.as_deref().and_then(checkpoints::checkpoint)) {
        (None, Some(checkpoint)) => checkpoint.weights,
        _ => fleet::Dtype::Bf16,
    }
}

fn variants(check: &mut Check, spec: &ModelPoolSpec, needs_weights: bool) -> Vec<shape::Variant> {
    let published = published_format(&spec.model);
    if spec.variants.is_empty() {
        let plain = |dtype: fleet::Dtype, quality| shape::Variant {
            name: dtype.as_str().to_owned(),
            weights: dtype,
            kv: fleet::Dtype::Bf16,
            quality,
            source: None,
        };
        let mut variants = vec![plain(published, 1.0)];
        // llama.cpp reads one file per format and cannot quantise at load.
        if published == fleet::Dtype::Bf16 && spec.engine.kind != EngineKind::Llamacpp {
            variants.push(plain(fleet::Dtype::Fp8, FP8_QUALITY));
        }
        return variants;
    }
    let mut names = BTreeSet::new();
    let mut variants: Vec<shape::Variant> = Vec::with_capacity(spec.variants.len());
    for (i, v) in spec.variants.iter().enumerate() {
        let at = format!("spec.variants[{i}]");
        let fine = !v.name.is_empty()
            && v.name.len() <= 63
            && v.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
            && v.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && v.name.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !fine {
            check.invalid(
                format!("{at}.name"),
                &v.name,
                "is not a variant name",
                "use lower-case letters, digits, '-' and '.'",
            );
        } else if !names.insert(v.name.clone()) {
            check.invalid(format!("{at}.name"), &v.name, "is used twice", "give every variant its own name");
        }
        check.range(&format!("{at}.quality"), v.quality, 0.0, 1.0);
        if let Some(source) = &v.source
            && !is_source(source)
        {
            check.invalid(format!("{at}.source"), source, "is not a source", SOURCE_REMEDY);
        }
        let weights = fleet::Dtype::from(v.weights);
        let made_at_load = weights == published
            || matches!(
                weights,
                fleet::Dtype::Fp32 | fleet::Dtype::Fp16 | fleet::Dtype::Bf16 | fleet::Dtype::Fp8
            );
        if needs_weights && v.source.is_none() && !made_at_load && spec.model.source.is_none() {
            check.invalid(
                format!("{at}.source"),
                "",
                format!(
                    "is missing: {weights} weights cannot be made from the {published} checkpoint at load"
                ),
                format!("give the source of a checkpoint quantised to {weights}"),
            );
        }
        variants.push(shape::Variant {
            name: v.name.clone(),
            weights,
            kv: v.kv.into(),
            quality: v.quality,
            source: v.source.clone(),
        });
    }
    variants.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    variants
}

/// Limits of each objective, milliseconds.
const TTFT: (f64, f64, &str) = (1.0, 600e3, "1ms and 10m");
const TPOT: (f64, f64, &str) = (1.0, 10e3, "1ms and 10s");
const E2E: (f64, f64, &str) = (1.0, 86_400e3, "1ms and 24h");

fn objective(
    check: &mut Check,
    at: &str,
    given: Option<&Objective>,
    range: (f64, f64, &str),
) -> Option<fleet::Objective> {
    let given = given?;
    let keys = [
        ("p50", fleet::Percentile::P50, &given.p50),
        ("p90", fleet::Percentile::P90, &given.p90),
        ("p95", fleet::Percentile::P95, &given.p95),
        ("p99", fleet::Percentile::P99, &given.p99),
    ];
    let mut present = keys.into_iter().filter_map(|(key, p, text)| text.as_ref().map(|t| (key, p, t)));
    let (Some((key, percentile, text)), None) = (present.next(), present.next()) else {
        let names: Vec<&str> =
            [("p50", &given.p50), ("p90", &given.p90), ("p95", &given.p95), ("p99", &given.p99)]
                .into_iter()
                .filter_map(|(k, t)| t.as_ref().map(|_| k))
                .collect();
        check.invalid(
            at,
            names.join(", "),
            if names.is_empty() { "names no percentile" } else { "names more than one percentile" },
            "give exactly one of p50, p90, p95, p99, e.g. {p95: 800ms}",
        );
        return None;
    };
    let at = format!("{at}.{key}");
    match text.ms() {
        Some(ms) if ms >= range.0 && ms <= range.1 => Some(fleet::Objective { percentile, ms }),
        Some(_) => {
            check.invalid(at, text, "is out of range", format!("use a duration between {}", range.2));
            None
        }
        None => {
            check.invalid(
                at,
                text,
                "is not a duration",
                format!("use one such as 800ms or 1.5s, between {}", range.2),
            );
            None
        }
    }
}

fn slo(
    check: &mut Check,
    at: &str,
    (ttft, tpot, e2e): (Option<&Objective>, Option<&Objective>, Option<&Objective>),
) -> fleet::Slo {
    if ttft.is_none() && tpot.is_none() && e2e.is_none() {
        check.invalid(
            at,
            "",
            "names no objective",
            "give at least one of ttft, tpot, e2e, e.g. ttft: {p95: 800ms}",
        );
    }
    let slo = fleet::Slo {
        ttft: objective(check, &format!("{at}.ttft"), ttft, TTFT),
        tpot: objective(check, &format!("{at}.tpot"), tpot, TPOT),
        e2e: objective(check, &format!("{at}.e2e"), e2e, E2E),
    };
    if let (Some(first), Some(whole)) = (slo.ttft, slo.e2e)
        && first.percentile == whole.percentile
        && whole.ms < first.ms
    {
        check.invalid(
            format!("{at}.e2e"),
            format!("{}ms", whole.ms),
            format!("is shorter than ttft ({}ms), which is part of it", first.ms),
            "make e2e at least ttft plus the time of the answer",
        );
    }
    slo
}

fn slo_classes(check: &mut Check, given: &Slo) -> Vec<fleet::SloClass> {
    let default = slo(check, "spec.slo", (given.ttft.as_ref(), given.tpot.as_ref(), given.e2e.as_ref()));
    let mut classes = vec![fleet::SloClass {
        name: fleet::slo::DEFAULT_SLO_CLASS.to_owned(),
        slo: default,
        match_headers: Default::default(),
        expected_share: 1.0,
    }];
    let mut total = 0.0;
    for (i, class) in given.classes.iter().enumerate() {
        let at = format!("spec.slo.classes[{i}]");
        if class.name.is_empty() || class.name.len() > 63 {
            check.invalid(
                format!("{at}.name"),
                &class.name,
                "is not a class name",
                "use 1 to 63 characters, e.g. batch",
            );
        }
        if classes.iter().any(|c| c.name == class.name) {
            let problem = if class.name == fleet::slo::DEFAULT_SLO_CLASS {
                "is the pool's own class"
            } else {
                "is used twice"
            };
            check.invalid(format!("{at}.name"), &class.name, problem, "choose another name");
        }
        check.range(&format!("{at}.share"), class.share, 0.0, 1.0);
        total += class.share;
        classes.push(fleet::SloClass {
            name: class.name.clone(),
            slo: slo(check, &at, (class.ttft.as_ref(), class.tpot.as_ref(), class.e2e.as_ref())),
            match_headers: class
                .matches
                .iter()
                .flat_map(|m| &m.headers)
                .map(|(name, value)| (name.to_lowercase(), value.clone()))
                .collect(),
            expected_share: class.share,
        });
    }
    if total > 1.0 + 1e-9 {
        check.invalid(
            "spec.slo.classes",
            total,
            "is the sum of the shares, more than 1",
            "lower the shares so that they add to at most 1",
        );
    }
    classes[0].expected_share = (1.0 - total).clamp(0.0, 1.0);
    classes
}

fn lengths(check: &mut Check, at: &str, given: &Lengths) -> fleet::LengthDistribution {
    check.range(&format!("{at}.mean"), given.mean, 1.0, 1e8);
    let p95 = given.p95.unwrap_or(given.mean * P95_OVER_MEAN);
    if p95 < given.mean || !p95.is_finite() {
        check.invalid(
            format!("{at}.p95"),
            p95,
            format!("is below the mean ({})", given.mean),
            format!("use at least {}", given.mean),
        );
    }
    fleet::LengthDistribution { mean_tokens: given.mean, p95_tokens: p95 }
}

fn demand(check: &mut Check, given: &Demand) -> fleet::DemandPrior {
    check.range("spec.demand.rps", given.rps, 0.0, 1e6);
    fleet::DemandPrior {
        rps: given.rps,
        input: lengths(check, "spec.demand.input", &given.input),
        output: lengths(check, "spec.demand.output", &given.output),
    }
}

fn duration_seconds(check: &mut Check, at: &str, text: &DurationText, range: (f64, f64, &str)) -> f64 {
    match text.ms() {
        Some(ms) if (range.0..=range.1).contains(&ms) => ms / 1e3,
        Some(_) => {
            check.invalid(at, text, "is out of range", format!("use a duration between {}", range.2));
            range.0 / 1e3
        }
        None => {
            check.invalid(
                at,
                text,
                "is not a duration",
                format!("use one such as 90s or 15m, between {}", range.2),
            );
            range.0 / 1e3
        }
    }
}

fn scaling(check: &mut Check, given: &Scaling, pinned: Option<i32>) -> pool::Scaling {
    let min = check.count("spec.scaling.min", i64::from(given.min), 0, 10_000);
    let max = check.count("spec.scaling.max", i64::from(given.max), 0, 10_000);
    if max < min {
        check.invalid(
            "spec.scaling.max",
            max,
            format!("is below min ({min})"),
            format!("use at least {min}"),
        );
    }
    let min_zones = check.count("spec.scaling.minZones", i64::from(given.min_zones), 1, 16);
    if max > 0 && min_zones > max {
        check.invalid(
            "spec.scaling.minZones",
            min_zones,
            format!("needs more replicas than max ({max})"),
            format!("use at most {max} zones, or raise max"),
        );
    }
    let to_zero = given.scale_to_zero_after.as_ref().map(|text| {
        duration_seconds(check, "spec.scaling.scaleToZeroAfter", text, (1e3, 604_800e3, "1s and 168h"))
    });
    match pinned.map(|n| check.count("spec.replicas", i64::from(n), 0, 10_000)) {
        // A pinned pool neither follows demand nor goes to zero by itself.
        Some(n) => {
            pool::Scaling { min_replicas: n, max_replicas: n, scale_to_zero_after_seconds: None, min_zones }
        }
        None => pool::Scaling {
            min_replicas: min,
            max_replicas: max,
            scale_to_zero_after_seconds: to_zero,
            min_zones,
        },
    }
}

fn rollout(check: &mut Check, given: &Rollout) -> RolloutPolicy {
    const AT: &str = "spec.rollout.canary";
    let canary = &given.canary;
    let wave = check.count("spec.rollout.wavePercent", i64::from(given.wave_percent), 1, 100);
    check.range(&format!("{AT}.tolerance"), canary.tolerance, 0.0, 0.5);
    let seconds = |check: &mut Check, field: &str, text: &DurationText, range| {
        duration_seconds(check, &format!("{AT}.{field}"), text, range)
    };
    let policy = CanaryPolicy {
        replicas: check.count(&format!("{AT}.replicas"), i64::from(canary.replicas), 1, 1000),
        min_requests: check
            .count(&format!("{AT}.minRequests"), i64::from(canary.min_requests), 1, 1_000_000)
            .into(),
        block_seconds: seconds(check, "block", &canary.block, (1e3, 600e3, "1s and 10m")),
        warm_up_seconds: seconds(check, "warmUp", &canary.warm_up, (0.0, 3600e3, "0s and 1h")),
        tolerance: canary.tolerance,
        deadline_seconds: seconds(check, "deadline", &canary.deadline, (1e3, 604_800e3, "1s and 168h")),
        hold_without_traffic: canary.without_traffic == WithoutTraffic::Hold,
    };
    RolloutPolicy {
        paused: given.paused,
        wave: f64::from(wave) / 100.0,
        canary: canary.enabled.then_some(policy),
        ..RolloutPolicy::default()
    }
}

fn degrees(check: &mut Check, at: &str, given: &[i32]) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    for (i, degree) in given.iter().enumerate() {
        let value = check.count(&format!("{at}[{i}]"), i64::from(*degree), 1, 64);
        if !seen.insert(value) && *degree >= 1 {
            check.invalid(format!("{at}[{i}]"), degree, "is listed twice", "list every degree once");
        }
    }
    seen.into_iter().collect()
}

fn parallelism(
    check: &mut Check,
    given: &Parallelism,
    engine: EngineKind,
    model: Option<&fleet::ModelArchitecture>,
) -> pool::Parallelism {
    let tensor = degrees(check, "spec.parallelism.tensor", &given.tensor);
    let pipeline = degrees(check, "spec.parallelism.pipeline", &given.pipeline);
    if let Some(model) = model {
        for tp in tensor.iter().filter(|tp| !model.supports_tensor_parallel(**tp)) {
            let fitting: Vec<String> =
                (1..=64).filter(|d| model.supports_tensor_parallel(*d)).map(|d: u32| d.to_string()).collect();
            check.invalid(
                "spec.parallelism.tensor",
                tp,
                format!("does not divide the {} query heads of {}", model.heads, model.name),
                format!("use some of {}", fitting.join(", ")),
            );
        }
        for pp in pipeline.iter().filter(|pp| **pp > model.layers) {
            check.invalid(
                "spec.parallelism.pipeline",
                pp,
                format!("is more than the {} layers of {}", model.layers, model.name),
                format!("use at most {}", model.layers),
            );
        }
    }
    if given.expert {
        if let Some(model) = model.filter(|m| m.moe.is_none()) {
            check.invalid(
                "spec.parallelism.expert",
                true,
                format!("needs experts, and {} has none", model.name),
                "remove it, or serve a mixture-of-experts model",
            );
        }
        if engine == EngineKind::Llamacpp {
            check.invalid("spec.parallelism.expert", true, "is not for llama.cpp", "use vllm or sglang");
        }
    }
    if given.disaggregation == Disaggregation::Always && engine == EngineKind::Llamacpp {
        check.invalid(
            "spec.parallelism.disaggregation",
            "Always",
            "is not for llama.cpp, which hands no KV cache over",
            "use vllm or sglang, or Never",
        );
    }
    pool::Parallelism {
        tensor,
        pipeline,
        expert: given.expert,
        disaggregation: match given.disaggregation {
            Disaggregation::Auto => pool::Disaggregation::Auto,
            Disaggregation::Always => pool::Disaggregation::Always,
            Disaggregation::Never => pool::Disaggregation::Never,
        },
    }
}

fn placement(check: &mut Check, given: &Placement) -> pool::Placement {
    for (i, name) in given.accelerators.iter().enumerate() {
        if name.is_empty() {
            check.invalid(
                format!("spec.placement.accelerators[{i}]"),
                "",
                "is empty",
                "name an AcceleratorClass, e.g. h100",
            );
        }
    }
    if let Some(queue) = &given.queue_name {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let ends = queue.starts_with('-') || queue.ends_with('-');
        if queue.is_empty() || queue.len() > 63 || ends || !queue.chars().all(fine) {
            check.invalid(
                "spec.placement.queueName",
                queue,
                "is not the name of a LocalQueue",
                "use one of kubectl get localqueues, in the pool's namespace",
            );
        }
    }
    pool::Placement {
        accelerators: given.accelerators.clone(),
        spot: match given.spot {
            Spot::Allowed => pool::SpotPolicy::Allowed,
            Spot::Preferred => pool::SpotPolicy::Preferred,
            Spot::Never => pool::SpotPolicy::Never,
        },
        node_selector: given.node_selector.clone(),
        tolerations: tolerations(check, "spec.placement.tolerations", &given.tolerations),
    }
}

fn engine(check: &mut Check, given: &Engine) -> pool::EngineSpec {
    for (part, amounts) in [("requests", &given.resources.requests), ("limits", &given.resources.limits)] {
        for (resource, amount) in amounts {
            let at = format!("spec.engine.resources.{part}.{resource}");
            if quantity::parse(amount).is_none() {
                check.invalid(at.clone(), amount, "is not a quantity", "use one such as 8, 500m or 64Gi");
            }
            if resource.contains("/gpu") || resource.starts_with("gpu.") {
                check.invalid(
                    at,
                    amount,
                    "is set by the plan",
                    "remove it; parallelism and placement say which accelerators a replica may use",
                );
            }
        }
    }
    for (i, variable) in given.env.iter().enumerate() {
        if variable.name.is_empty() || variable.name.contains('=') {
            check.invalid(
                format!("spec.engine.env[{i}].name"),
                &variable.name,
                "is not a variable name",
                "use one such as HF_TOKEN",
            );
        }
    }
    if given.kind == EngineKind::External && given.endpoints.is_empty() {
        check.invalid(
            "spec.engine.endpoints",
            "",
            "is missing for engine.kind external",
            "list at least one host:port",
        );
    }
    for (i, endpoint) in given.endpoints.iter().enumerate() {
        let fine = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p > 0)
        });
        if !fine {
            check.invalid(
                format!("spec.engine.endpoints[{i}]"),
                endpoint,
                "is not an address",
                "use host:port, e.g. 10.0.0.7:8000",
            );
        }
    }
    pool::EngineSpec {
        kind: match given.kind {
            EngineKind::Vllm => pool::EngineKind::Vllm,
            EngineKind::Sglang => pool::EngineKind::Sglang,
            EngineKind::Llamacpp => pool::EngineKind::Llamacpp,
            EngineKind::Simulated => pool::EngineKind::Simulated,
            EngineKind::External => pool::EngineKind::External,
        },
        image: given.image.clone().filter(|image| !image.is_empty()),
        args: given.args.clone(),
        env: given.env.iter().filter_map(|v| Some((v.name.clone(), v.value.clone()?))).collect(),
        resources: given.resources.requests.clone(),
        cold_start_seconds: duration_seconds(
            check,
            "spec.engine.coldStart",
            &given.cold_start,
            (0.0, 86_400e3, "0s and 24h"),
        ),
    }
}
