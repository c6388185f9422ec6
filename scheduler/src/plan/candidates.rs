//! Candidates: the shapes that could serve a pool, what each can do, and why the others cannot.
//!
//! Complexity: variants × accelerator classes × parallel degrees × (request classes + 1) questions to the engine
//! model for a pool (up to ten times that where objectives are out of reach), answered from [`ShapeCache`] where asked
//! before.

use std::collections::BTreeSet;

use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::{ClusterSnapshot, ModelPool, NodeInfo, RequestClass, Role, Shape};

use super::inventory::{Eligibility, eligibility, price};
use super::pairs::{self, Pairing};
use super::performance::{Misfit, Miss, Performance, Query, ShapeCache};
use super::{PlannerConfig, engine_config};

/// A shape that can serve at least one of a pool's request classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The shape.
    pub shape: Shape,
    /// Quality of its variant.
    pub quality: f64,
    /// Highest rate of each class within its objectives, scaled so that the whole mix adds up, requests per second.
    pub rates: Vec<f64>,
    /// List price of a replica on demand, dollars per hour.
    pub usd_per_hour: f64,
    /// Most power that a replica's accelerators draw on average at its load line, watts: what it counts for, however busy
    /// it is.
    pub watts: f64,
    /// Of a prefill or decode replica: those of one number can exchange caches (`None`: it serves requests whole).
    pub pairing: Option<usize>,
}

impl Candidate {
    /// Replicas (not whole) that the whole demand would take; infinite if a class cannot be served.
    pub fn replicas_for(&self, classes: &[RequestClass]) -> f64 {
        classes.iter().zip(&self.rates).map(|(c, r)| if *r > 0.0 { c.rps / r } else { f64::INFINITY }).sum()
    }
}

/// Why a shape is not a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Rejection {
    /// It cannot hold the model.
    DoesNotFit(Misfit),
    /// It misses an objective even for a single request.
    MissesObjective(Miss),
    /// Anything else, in words.
    Other(String),
}

/// The candidates of a pool and the shapes that were turned down.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CandidateSet {
    /// Request classes with their rates as planned.
    pub classes: Vec<RequestClass>,
    /// Candidates, in shape order.
    pub candidates: Vec<Candidate>,
    /// Shapes turned down (`None`: a remark on something other than one shape).
    pub rejected: Vec<(Option<Shape>, Rejection)>,
    /// Classes (by index) that no shape serves within their objectives, and what was given up to size for them.
    pub lenient: Vec<(usize, Leniency)>,
    /// What prefill and decode on replicas of their own would take, where that was looked at.
    pub apart: Option<pairs::Apart>,
}

/// What is given up where a class is out of every shape's reach: its requests come all the same, and want replicas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Leniency {
    /// The reserve for bursts: sized as if requests came at random (Poisson).
    Calm,
    /// The objectives: sized for limits this many times longer.
    Stretched(f64),
}

/// Steps by which objectives out of reach are stretched: to twice what some shape just meets.
const STRETCHES: [f64; 9] = [2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 40.0, 100.0];

/// Most power of an accelerator that is believed, watts.
const MOST_WATTS: f64 = 1e5;

/// A shape that a pool may take.
#[derive(Clone)]
pub(super) struct Allowed<'a> {
    pub(super) shape: Shape,
    pub(super) variant: &'a plimsoll_fleet::shape::Variant,
    pub(super) accelerator: &'a plimsoll_fleet::AcceleratorClass,
    /// Of a replica that does a part of each request.
    pub(super) pairing: Option<Pairing>,
}

/// What the engine model is asked about all shapes of a pool.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) pool: &'a ModelPool,
    pub(super) engine: plimsoll_engine::EngineConfig,
    pub(super) config: &'a PlannerConfig,
    pub(super) model: &'a dyn Performance,
    pub(super) cache: &'a ShapeCache,
}

impl Asking<'_> {
    /// What a replica can do of these classes, within what is left of the objectives to it.
    pub(super) fn able(
        &self,
        o: &Allowed<'_>,
        classes: &[RequestClass],
        arrival_scv: f64,
        stretch: f64,
    ) -> Result<Able, Rejection> {
        let pool = self.pool;
        let error = pool.expected_error(&o.shape, o.accelerator.calibration.relative_error);
        let error = if o.pairing.is_some() { error.max(pairs::RELATIVE_ERROR) } else { error };
        let margin = self.config.margin(error);
        let (variant, accelerator, shape, engine) = (o.variant, o.accelerator, &o.shape, self.engine);
        let limits = o.pairing.as_ref().map(|p| p.limits.as_slice());
        let query = Query {
            pool,
            variant,
            accelerator,
            shape,
            classes,
            arrival_scv,
            margin,
            stretch,
            engine,
            limits,
        };
        let mut able = answer(self.model, self.cache, &query)?;
        if let Some(pairing) = &o.pairing {
            able.rates.iter_mut().zip(classes).for_each(|(r, c)| *r = r.min(pairing.link_rps(c)));
        }
        Ok(able)
    }
}

/// Nearest sixteenth of an octave: lengths within 2.2 % of one another share answers.
fn quantise_tokens(tokens: f64) -> f64 {
    if tokens.is_finite() && tokens >= 1.0 { ((tokens.log2() * 16.0).round() / 16.0).exp2() } else { 1.0 }
}

/// The request classes as the engine model is asked: lengths on a grid, shares of the mix in steps of 1/20.
fn asked(classes: &[RequestClass]) -> Vec<RequestClass> {
    let total: f64 = classes.iter().map(|c| c.rps).sum();
    classes
        .iter()
        .map(|c| RequestClass {
            input_tokens: quantise_tokens(c.input_tokens),
            output_tokens: quantise_tokens(c.output_tokens),
            cached_fraction: if c.cached_fraction.is_finite() {
                (c.cached_fraction.clamp(0.0, 1.0) * 20.0).floor() / 20.0
            } else {
                0.0
            },
            rps: if total > 0.0 { ((c.rps / total) * 20.0).round().max(1.0) / 20.0 } else { 1.0 },
            ..c.clone()
        })
        .collect()
}

/// Burstiness as the engine model is asked: rounded up to a quarter.
fn asked_scv(arrival_scv: f64) -> f64 {
    if arrival_scv.is_finite() { (arrival_scv.clamp(0.25, 64.0) * 4.0).ceil() / 4.0 } else { 1.0 }
}

/// The load line of one replica of any shape, candidate or not, asked as for candidates: highest rate of the demand
/// `(classes, arrival scv)` within the objectives, requests per second. Classes that it cannot serve at all are left out.
pub(crate) fn load_line(
    snapshot: &ClusterSnapshot,
    pool: &ModelPool,
    shape: &Shape,
    (demand, arrival_scv): (&[RequestClass], f64),
    config: &PlannerConfig,
    model: &dyn Performance,
    cache: &ShapeCache,
) -> Result<f64, Rejection> {
    let missing = |what: String| Rejection::Other(what);
    let accelerator = snapshot
        .accelerators
        .iter()
        .find(|a| a.name == shape.accelerator)
        .ok_or_else(|| missing(format!("there is no AcceleratorClass {}", shape.accelerator)))?;
    let variant = pool
        .variant(&shape.variant)
        .ok_or_else(|| missing(format!("the pool has no variant {}", shape.variant)))?;
    let classes = asked(&planned_classes(pool, demand));
    let margin = config.margin(pool.expected_error(shape, accelerator.calibration.relative_error));
    let (classes, arrival_scv) = (classes.as_slice(), asked_scv(arrival_scv));
    let (engine, stretch, limits) = (engine_config(pool, &snapshot.adapters), 1.0, None);
    let query =
        Query { pool, variant, accelerator, shape, classes, arrival_scv, margin, stretch, engine, limits };
    let rates = answer(model, cache, &query)?.rates;
    let served = || classes.iter().zip(&rates).filter(|(_, rate)| **rate > 0.0);
    let rps: f64 = served().map(|(c, _)| c.rps).sum();
    let work: f64 = served().map(|(c, rate)| c.rps / rate).sum();
    Ok(if work > 0.0 { rps / work } else { 0.0 })
}

/// The classes of a pool with demand, made finite; a pool without any gets one nominal class at rate zero, so that a
/// replica kept without traffic still has a shape that would meet the objectives.
pub fn planned_classes(pool: &ModelPool, classes: &[RequestClass]) -> Vec<RequestClass> {
    let mut planned: Vec<RequestClass> =
        classes.iter().filter(|c| c.rps.is_finite() && c.rps > 1e-9).cloned().collect();
    if planned.is_empty() {
        let (input, output) = pool
            .demand
            .map_or((1024.0, 256.0), |d| (d.input.mean_tokens.max(1.0), d.output.mean_tokens.max(1.0)));
        planned.push(RequestClass {
            name: "nominal".to_owned(),
            slo_class: pool.slo_classes.first().map_or_else(String::new, |c| c.name.clone()),
            input_tokens: input,
            output_tokens: output,
            cached_fraction: 0.0,
            rps: 0.0,
        });
    }
    planned
}

/// Tensor-parallel degrees to try within links of `limit` accelerators of one node.
fn tensor_degrees(pool: &ModelPool, limit: u32) -> Vec<u32> {
    let mut degrees: Vec<u32> = if pool.parallelism.tensor.is_empty() {
        (0..8).map(|e| 1 << e).filter(|tp| pool.architecture.supports_tensor_parallel(*tp)).collect()
    } else {
        pool.parallelism.tensor.clone()
    };
    degrees.retain(|tp| *tp >= 1 && *tp <= limit);
    degrees.sort_unstable();
    degrees.dedup();
    degrees
}

/// Attention data-parallel degrees of stages of `tensor` × degree accelerators that stay within links of `limit`, each with the
/// expert-parallel degree that goes with it: experts are whole on all accelerators of a stage, or sliced over all.
fn rank_degrees(pool: &ModelPool, tensor: u32, pipeline: u32, limit: u32) -> Vec<(u32, u32)> {
    let moe = pool.architecture.moe.as_ref();
    let mut degrees = if pool.parallelism.data.is_empty() { vec![1] } else { pool.parallelism.data.clone() };
    degrees.sort_unstable();
    degrees.dedup();
    degrees.retain(|d| *d == 1 || (*d > 1 && moe.is_some() && pipeline == 1));
    let expert = |d: u32| match moe {
        Some(_) if pool.parallelism.expert => tensor.saturating_mul(d),
        _ => 1,
    };
    let shapes = degrees.into_iter().map(|d| (d, expert(d)));
    shapes
        .filter(|(d, ep)| {
            let divides = moe.is_none_or(|m| m.experts.is_multiple_of(*ep));
            tensor.saturating_mul(*d) <= limit && divides
        })
        .collect()
}

/// Finds a pool's candidates, of which some run already. Each serves at least one class.
pub fn candidates(
    snapshot: &ClusterSnapshot,
    pool: &ModelPool,
    running: &[&Shape],
    (demand, arrival_scv): (&[RequestClass], f64),
    config: &PlannerConfig,
    model: &dyn Performance,
    cache: &ShapeCache,
) -> CandidateSet {
    let classes = planned_classes(pool, demand);
    let asked = asked(&classes);
    let scv = asked_scv(arrival_scv);
    let mut set = CandidateSet { classes, ..CandidateSet::default() };
    if pool.eligible_variants().next().is_none() {
        let why = if pool.variants.is_empty() {
            "spec.variants is empty; add a variant such as {name: bf16, weights: bf16}".to_owned()
        } else {
            format!(
                "no variant reaches spec.minQuality {}; lower it or add a better variant (best has {})",
                pool.min_quality,
                pool.variants.iter().map(|v| v.quality).fold(0.0, f64::max)
            )
        };
        set.rejected.push((None, Rejection::Other(why)));
        return set;
    }
    for name in &pool.placement.accelerators {
        if !snapshot.accelerators.iter().any(|a| &a.name == name) {
            let known: Vec<&str> = snapshot.accelerators.iter().map(|a| a.name.as_str()).collect();
            let text = format!(
                "spec.placement.accelerators names {name}, which does not exist; there is {}",
                list(&known)
            );
            set.rejected.push((None, Rejection::Other(text)));
        }
    }
    let mut accelerators: Vec<_> = snapshot.accelerators.iter().collect();
    accelerators.sort_by(|a, b| a.name.cmp(&b.name));
    let mut shapes: Vec<Allowed<'_>> = Vec::new();
    for accelerator in accelerators {
        if !pool.placement.accelerators.is_empty() && !pool.placement.accelerators.contains(&accelerator.name)
        {
            continue;
        }
        if price(snapshot, &accelerator.name, false).is_none() {
            let text = format!(
                "AcceleratorClass {}: usdPerHour is {}; give a price of 0 or more, up to 1000000",
                accelerator.name, accelerator.usd_per_hour
            );
            set.rejected.push((None, Rejection::Other(text)));
            continue;
        }
        let here = || snapshot.nodes.iter().filter(|n| n.accelerator == accelerator.name);
        let usable = |n: &NodeInfo| eligibility(pool, n) != Eligibility::Closed;
        // Whether a node may be used is asked only of those that are larger than what is known.
        let largest = here().fold(None, |most, n| {
            let size = Some(n.allocatable_gpus);
            if size > most && usable(n) { size } else { most }
        });
        let autoscaled = (accelerator.autoscalable_max > 0).then(|| {
            let size =
                here().map(|n| n.allocatable_gpus).max().unwrap_or(accelerator.link_domain_size).max(1);
            size.min(accelerator.autoscalable_max)
        });
        let Some(node_gpus) = largest.max(autoscaled).filter(|g| *g > 0) else {
            if here().next().is_some() {
                let text = format!(
                    "no usable {} node: {}",
                    accelerator.name.to_uppercase(),
                    why_unusable(pool, &here().collect::<Vec<_>>())
                );
                set.rejected.push((None, Rejection::Other(text)));
            }
            continue;
        };
        let together = accelerator.link_domain_size.max(1).min(node_gpus);
        let degrees = tensor_degrees(pool, together);
        let mut ranks_used: BTreeSet<u32> = BTreeSet::new();
        for tp in &pool.parallelism.tensor {
            if !pool.architecture.supports_tensor_parallel(*tp) {
                let text = format!(
                    "TP{tp} does not divide the model's {} attention heads; spec.parallelism.tensor can hold {}",
                    pool.architecture.heads,
                    list(
                        &(1..=8)
                            .filter(|t| pool.architecture.supports_tensor_parallel(*t))
                            .collect::<Vec<_>>()
                    )
                );
                if !set.rejected.iter().any(|(_, r)| *r == Rejection::Other(text.clone())) {
                    set.rejected.push((None, Rejection::Other(text)));
                }
            } else if !degrees.contains(tp) {
                let text = format!(
                    "TP{tp} {}: a node has {node_gpus} and a link domain {}",
                    accelerator.name.to_uppercase(),
                    accelerator.link_domain_size
                );
                set.rejected.push((None, Rejection::Other(text)));
            }
        }
        let stages: Vec<u32> =
            if pool.parallelism.pipeline.is_empty() { vec![1] } else { pool.parallelism.pipeline.clone() };
        for variant in pool.eligible_variants() {
            let native = accelerator.flops_per_second.contains_key(&variant.weights);
            if variant.weights == plimsoll_fleet::Dtype::Fp8 && !native {
                let text = format!("{} has no fp8", accelerator.name.to_uppercase());
                if !set.rejected.iter().any(|(_, r)| *r == Rejection::Other(text.clone())) {
                    set.rejected.push((None, Rejection::Other(text)));
                }
                continue;
            }
            for tp in degrees.iter().filter(|tp| pool.architecture.supports_tensor_parallel(**tp)) {
                let depths = stages.iter().filter(|pp| (1..=pool.architecture.layers.max(1)).contains(*pp));
                let depths = depths.flat_map(|pp| {
                    rank_degrees(pool, *tp, *pp, together).into_iter().map(move |ranks| (*pp, ranks))
                });
                for (pipeline_parallel, (data_parallel, expert_parallel)) in depths {
                    ranks_used.insert(data_parallel);
                    let shape = Shape {
                        variant: variant.name.clone(),
                        accelerator: accelerator.name.clone(),
                        tensor_parallel: *tp,
                        pipeline_parallel,
                        data_parallel,
                        expert_parallel,
                        role: Role::Mixed,
                    };
                    if shape.nodes_of(node_gpus) > 1 && !pool.engine.kind.spans_nodes() {
                        let text = format!(
                            "{} runs on one node, and a {} node has {node_gpus} accelerators",
                            pool.engine.kind.as_str(),
                            accelerator.name.to_uppercase()
                        );
                        set.rejected.push((Some(shape), Rejection::Other(text)));
                        continue;
                    }
                    shapes.push(Allowed { shape, variant, accelerator, pairing: None });
                }
            }
        }
        for dp in pool.parallelism.data.iter().filter(|dp| !ranks_used.contains(*dp)) {
            let text = format!(
                "DP{dp} {}: no tensor degree leaves room for so many attention ranks on one node (it has {node_gpus}, a link domain {})",
                accelerator.name.to_uppercase(),
                accelerator.link_domain_size
            );
            set.rejected.push((None, Rejection::Other(text)));
        }
    }
    shapes.sort_by(|a, b| a.shape.cmp(&b.shape));
    shapes.dedup_by(|a, b| a.shape == b.shape);
    let asking = Asking { pool, engine: engine_config(pool, &snapshot.adapters), config, model, cache };
    let ask = |o: &Allowed<'_>, classes: &[RequestClass], scv: f64, stretch: f64| {
        asking.able(o, classes, scv, stretch)
    };
    let mut answers: Vec<_> = shapes.iter().map(|o| ask(o, &asked, scv, 1.0)).collect();
    let always = pool.parallelism.disaggregation == Disaggregation::Always;
    // Adapters go to replicas that serve requests whole: prefill and decode apart would leave their requests to nobody.
    let adapts =
        pool.engine.kind.loads_adapters() && snapshot.adapters.iter().any(|a| a.base_pool == pool.id);
    if always || (pool.parallelism.disaggregation == Disaggregation::Auto && !adapts) {
        let whole: Vec<_> = shapes.iter().zip(&answers).collect();
        let found = pairs::find(&asking, (&set.classes, &asked), scv, &whole, running);
        match found {
            Ok((parts, apart)) => {
                if always {
                    shapes.clear();
                    answers.clear();
                }
                answers.extend(parts.iter().map(|o| ask(o, &asked, scv, 1.0)));
                shapes.extend(parts);
                set.apart = apart;
            }
            Err(why) => {
                if always {
                    let misfits = shapes.into_iter().zip(answers).filter_map(|(o, a)| {
                        let why = a.err().filter(|why| matches!(why, Rejection::DoesNotFit(_)))?;
                        Some((Some(o.shape), why))
                    });
                    set.rejected.extend(misfits);
                    set.rejected.push((None, Rejection::Other(why)));
                    return set;
                }
            }
        }
    }
    let nothing = || Able { rates: vec![0.0; asked.len()], watts: 0.0 };
    let mut found: Vec<Able> = answers.iter().map(|a| a.clone().unwrap_or_else(|_| nothing())).collect();
    let serves = |able: Result<Able, Rejection>, class: usize| able.is_ok_and(|a| a.rates[class] > 0.0);
    // Whether a class is served, where some shapes can do their part of it.
    let reaches = |able: &dyn Fn(usize) -> bool| {
        let any = |role: Role, pairing: Option<usize>| {
            let own =
                |o: &Allowed<'_>| o.shape.role == role && o.pairing.as_ref().map(|p| p.number) == pairing;
            (0..shapes.len()).any(|i| own(&shapes[i]) && able(i))
        };
        let pairings = shapes.iter().filter_map(|o| o.pairing.as_ref().map(|p| p.number));
        any(Role::Mixed, None) || pairings.map(Some).any(|p| any(Role::Prefill, p) && any(Role::Decode, p))
    };
    let out_of_reach = |found: &[Able]| -> Vec<usize> {
        (0..asked.len()).filter(|c| !reaches(&|i| found[i].rates[*c] > 0.0)).collect()
    };
    // Objectives that not even a typical request meets are the owner's to change; those that only some of the requests
    // miss, or all for now, must not take replicas away from them.
    let mut missing = out_of_reach(&found);
    let typical = || {
        let nominal = planned_classes(pool, &[]);
        shapes.iter().any(|o| ask(o, &nominal, 1.0, 1.0).is_ok())
    };
    if !missing.is_empty() && (missing.len() < asked.len() || typical()) {
        let calm = (scv > 1.0).then_some(Leniency::Calm);
        for leniency in calm.into_iter().chain(STRETCHES.map(Leniency::Stretched)) {
            let (scv, stretch) = match leniency {
                Leniency::Calm => (1.0, 1.0),
                Leniency::Stretched(by) => (scv.min(1.0), by),
            };
            // Within twice the limits that some shape just meets: at the limit itself hardly anything can be carried.
            let first = |c: &usize| reaches(&|i| serves(ask(&shapes[i], &asked, scv, stretch / 2.0), *c));
            let reached: Vec<usize> = match leniency {
                Leniency::Calm => missing.clone(),
                Leniency::Stretched(_) => missing.iter().copied().filter(first).collect(),
            };
            for (option, found) in shapes.iter().zip(&mut found) {
                let able = ask(option, &asked, scv, stretch).unwrap_or_else(|_| nothing());
                for c in reached.iter().filter(|c| able.rates[**c] > 0.0) {
                    found.rates[*c] = able.rates[*c];
                    found.watts = found.watts.max(able.watts);
                }
            }
            let still = out_of_reach(&found);
            set.lenient.extend(missing.iter().filter(|c| !still.contains(c)).map(|c| (*c, leniency)));
            missing = still;
            if missing.is_empty() {
                break;
            }
        }
    }
    let mut all: Vec<_> = shapes.into_iter().zip(found).zip(answers).collect();
    all.sort_by(|((a, _), _), ((b, _), _)| a.shape.cmp(&b.shape));
    for ((option, able), answer) in all {
        let usd_per_hour = option.accelerator.usd_per_hour * f64::from(option.shape.gpus());
        match answer {
            Err(why) if able.rates.iter().all(|r| *r <= 0.0) => set.rejected.push((Some(option.shape), why)),
            _ => set.candidates.push(Candidate {
                shape: option.shape,
                quality: option.variant.quality,
                rates: able.rates,
                usd_per_hour,
                watts: able.watts,
                pairing: option.pairing.map(|p| p.number),
            }),
        }
    }
    set
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn why_unusable(pool: &ModelPool, nodes: &[&NodeInfo]) -> String {
    let all = |f: &dyn Fn(&NodeInfo) -> bool| nodes.iter().all(|n| f(n));
    if all(&|n| !n.ready) {
        "none is ready".to_owned()
    } else if all(&|n| n.allocatable_gpus == 0) {
        "they offer no allocatable accelerators".to_owned()
    } else if all(&|n| !pool.placement.node_selector.iter().all(|(k, v)| n.labels.get(k) == Some(v))) {
        "none has the labels in spec.placement.nodeSelector".to_owned()
    } else if all(&|n| n.spot) {
        "all are spot capacity; set spec.placement.spot to Allowed".to_owned()
    } else {
        "cordoned, tainted or excluded by spec.placement".to_owned()
    }
}

/// What a replica of a shape is able to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Able {
    /// Rate of each class.
    pub(super) rates: Vec<f64>,
    /// Most power at them, watts.
    pub(super) watts: f64,
}

/// What a shape is able to do, or why it is not.
fn answer(model: &dyn Performance, cache: &ShapeCache, query: &Query<'_>) -> Result<Able, Rejection> {
    let rates = rates(model, cache, query)?;
    // A figure that is none, or that no accelerator draws, would reach into programs with all others.
    let each = query.accelerator.most_watts();
    let each = if each.is_nan() { MOST_WATTS } else { each.clamp(0.0, MOST_WATTS) };
    let most = each * f64::from(query.shape.gpus());
    let watts = cache.evaluate(model, query).as_ref().as_ref().map_or(f64::NAN, |e| e.watts);
    // A figure that is none counts as full load.
    Ok(Able { rates, watts: if watts.is_finite() { watts.clamp(0.0, most) } else { most } })
}

/// Rates of each class, scaled so that the linear load line `Σ f/μ ≤ n` meets the mix's own load line exactly.
///
/// Where the classes cannot run together (the mix has no load line although each class alone has one), the most
/// demanding ones are left to other shapes.
fn rates(model: &dyn Performance, cache: &ShapeCache, query: &Query<'_>) -> Result<Vec<f64>, Rejection> {
    let answer = cache.evaluate(model, query);
    let evaluation = match answer.as_ref() {
        Ok(e) => e,
        Err(misfit) => return Err(Rejection::DoesNotFit(misfit.clone())),
    };
    let mut rates: Vec<f64> =
        evaluation.rates.iter().map(|r| if r.is_finite() && *r > 1e-9 { *r } else { 0.0 }).collect();
    if rates.iter().all(|r| *r == 0.0) {
        let miss = evaluation.misses.iter().flatten().next().cloned();
        return Err(miss.map_or_else(
            || Rejection::Other("it serves no request within the objectives".to_owned()),
            Rejection::MissesObjective,
        ));
    }
    let mut mix_rps = if rates.iter().all(|r| *r > 0.0) { evaluation.mix_rps } else { 0.0 };
    loop {
        let served: Vec<usize> = (0..rates.len()).filter(|i| rates[*i] > 0.0).collect();
        if served.len() == 1 {
            return Ok(rates);
        }
        if mix_rps <= 0.0 || served.len() < rates.len() {
            let classes: Vec<RequestClass> = served.iter().map(|i| query.classes[*i].clone()).collect();
            let sub = Query { classes: &classes, ..*query };
            mix_rps = match cache.evaluate(model, &sub).as_ref() {
                Ok(e) => e.mix_rps,
                Err(_) => 0.0,
            };
        }
        if mix_rps > 0.0 && mix_rps.is_finite() {
            let total: f64 = served.iter().map(|i| query.classes[*i].rps).sum();
            let linear = 1.0 / served.iter().map(|i| query.classes[*i].rps / total / rates[*i]).sum::<f64>();
            let scale = (mix_rps / linear).clamp(0.01, 2.0);
            for i in served {
                rates[i] *= scale;
            }
            return Ok(rates);
        }
        // Leave out the class that takes most of a replica for each request.
        if let Some(worst) = served.into_iter().min_by(|a, b| rates[*a].total_cmp(&rates[*b])) {
            rates[worst] = 0.0;
        }
        mix_rps = 0.0;
    }
}

/// Drops candidates that another of the same accelerator class makes pointless: never dearer, at least as good for
/// every request class with `m` replicas in the same accelerators, and never harder to place. Shapes in `keep` (they
/// run) always stay.
pub fn prune(set: &mut CandidateSet, pool: &ModelPool, keep: &dyn Fn(&Shape) -> bool) {
    let classes = set.classes.clone();
    let all = set.candidates.clone();
    set.candidates.retain(|a| {
        keep(&a.shape)
            || !all.iter().any(|b| {
                if a.shape == b.shape
                    || a.shape.accelerator != b.shape.accelerator
                    || (a.shape.role, a.pairing) != (b.shape.role, b.pairing)
                {
                    return false;
                }
                let (stages_a, stages_b) = (a.shape.pipeline_parallel, b.shape.pipeline_parallel);
                if stages_b > stages_a || a.shape.stage_gpus() % b.shape.stage_gpus().max(1) != 0 {
                    return false;
                }
                let m = (a.shape.gpus() / b.shape.gpus().max(1)).max(1);
                let (m, m_f) = (m, f64::from(m));
                if b.shape.gpus() * m > a.shape.gpus() {
                    return false;
                }
                // Splitting one replica into m must not run into the replica bound.
                let room =
                    m == 1 || (b.replicas_for(&classes).ceil() + m_f) <= f64::from(pool.scaling.max_replicas);
                let covers = a.rates.iter().zip(&b.rates).all(|(ra, rb)| m_f * rb >= *ra - 1e-12);
                let strictly = m > 1
                    || b.shape.gpus() < a.shape.gpus()
                    || b.quality > a.quality
                    || a.rates.iter().zip(&b.rates).any(|(ra, rb)| *rb > *ra + 1e-12)
                    || b.shape < a.shape;
                room && covers
                    && strictly
                    && !(m == 1
                        && b.quality < a.quality
                        && a.rates == b.rates
                        && a.shape.gpus() == b.shape.gpus())
            })
    });
}
