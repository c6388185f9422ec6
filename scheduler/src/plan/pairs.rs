//! Prefill and decode on replicas of their own: which shapes are candidates for either part, and how a request's objectives are
//! divided between them.
//!
//! DistServe (Zhong et al., 2024, algorithm 1) sizes each phase alone. So does the program, which needs a load line for each replica whatever stands on
//! the other side: TTFT less the transfer of keys and values is split into a prefill's and a decode's share (percentiles add up, which is on the safe
//! side), TPOT is decode's, and transfers may take half of a replica's network link, at which they take twice their own time (processor
//! sharing). Of several splits the one with the cheapest pair is taken, so that any prefill and any decode candidate that can exchange
//! caches meet the objectives together.
//!
//! Most pools have no use for it. A pair is looked at only if it takes fewer accelerators than replicas that serve requests whole: with `a` of one
//! class and `b` of another, of which those would take `A` or `B`, only where `a/A + b/B < 0.9`. At first with the smallest replicas that fit, then with
//! lines that neither transfers nor the split reduce, at last with the true ones.

use plimsoll_engine::{KvTransfer, LinkTier};
use plimsoll_fleet::pairing::splits_fit;
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::{ModelPool, Objective, RequestClass, Role, Shape, Slo};

use super::candidates::{Able, Allowed, Asking, Rejection};

/// Relative error to expect of predictions for pairs at least: no measurements of pairs are at hand that would say less.
pub(super) const RELATIVE_ERROR: f64 = 0.25;
/// Share of a replica's network link that transfers may take.
const LINK_SHARE: f64 = 0.5;
/// Decode's shares of the time to first token that are tried; of an end-to-end objective alone, prefill's.
const SPLITS: [f64; 3] = [0.1, 0.25, 0.5];
/// Share of an objective above which transfers rule a shape out.
const MOST_TRANSFER: f64 = 0.25;
/// Most accelerator classes of which the best shape of a role stays a candidate, those that run aside: every one more costs time in
/// the search for each pool.
const MOST_CLASSES: usize = 3;
/// A pair must take less than this share of what whole replicas take: it needs two to serve, and loads the network.
const WORTH_IT: f64 = 0.9;

/// What a part of a request has, and with whom it is shared.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pairing {
    /// Prefill and decode replicas of one number can exchange caches.
    pub(super) number: usize,
    /// What is left of the objectives, by SLO class.
    pub(super) limits: Vec<(String, Slo)>,
    /// A transfer to or from a replica that is no slower.
    transfer: KvTransfer,
}

impl Pairing {
    /// Rate of a class that the link of one replica carries, requests per second.
    pub(super) fn link_rps(&self, class: &RequestClass) -> f64 {
        1e3 * LINK_SHARE / self.transfer.occupied_ms(class.input_tokens)
    }
}

/// What the cheapest pair of shapes would take, stock and budgets aside.
#[derive(Debug, Clone, PartialEq)]
pub struct Apart {
    /// Prefill shape and replicas.
    pub prefill: (Shape, u32),
    /// Decode shape and replicas.
    pub decode: (Shape, u32),
    /// List price of them all, dollars per hour.
    pub usd_per_hour: f64,
}

/// A part's shape with what it can do.
struct Sized<'a> {
    option: Allowed<'a>,
    able: Able,
}

/// The pool's demand: as planned, and as the engine model is asked.
type Demand<'a> = (&'a [RequestClass], &'a [RequestClass]);

/// Prefill and decode shapes that could serve a pool better than `whole` ones, each of which comes with what it can do; with those that run
/// and what they need beside them. All that can be paired where the pool allows nothing else.
///
/// # Errors
/// Why no pair can be, in words.
pub(super) fn find<'a>(
    asking: &Asking<'_>,
    (classes, asked): Demand<'_>,
    arrival_scv: f64,
    whole: &[(&Allowed<'a>, &Result<Able, Rejection>)],
    running: &[&Shape],
) -> Result<(Vec<Allowed<'a>>, Option<Apart>), String> {
    let pool = asking.pool;
    let always = pool.parallelism.disaggregation == Disaggregation::Always;
    if !pool.engine.kind.disaggregates() {
        return Err(format!(
            "{} does not prefill and decode on replicas of their own; set spec.parallelism.disaggregation to Never",
            pool.engine.kind.as_str()
        ));
    }
    if pool.scaling.max_replicas < 2 {
        return Err(
            "spec.scaling.max is 1, and prefill and decode apart are two replicas; raise it, or set spec.parallelism.disaggregation to Never"
                .to_owned(),
        );
    }
    let runs = |shape: &Shape| running.contains(&shape);
    let forced = always || running.iter().any(|s| s.role != Role::Mixed);
    if !forced && classes.iter().all(|c| c.rps <= 0.0) {
        return Ok((Vec::new(), None));
    }
    // Attention ranks each hold the caches of their own requests: which rank hands over to which is the engines' affair, and not known here.
    let fits = whole.iter().filter(|(option, able)| {
        option.shape.data_parallel == 1 && !matches!(able, Err(Rejection::DoesNotFit(_)))
    });
    let fits: Vec<&Allowed<'a>> = fits.map(|(option, _)| *option).collect();
    let needs = Whole { classes, whole };
    if !forced && !needs.may_pay(&fits) {
        return Ok((Vec::new(), None));
    }
    let shapes = Parts { asking, classes, asked, arrival_scv };
    let reachable: Vec<(&Allowed<'a>, KvTransfer)> = fits
        .into_iter()
        .map(|o| (o, transfer(pool, o)))
        .filter(|(_, transfer)| classes.iter().all(|c| is_quick(pool, transfer, c)))
        .collect();
    // At best: nothing is lost to transfers or to the other part.
    let at_best = |role: Role| -> Vec<Sized<'a>> {
        let limits = limits(pool, role, None, &|_| 0.0);
        shapes.sized(&reachable, role, &limits)
    };
    let (prefill, decode) = (at_best(Role::Prefill), at_best(Role::Decode));
    let useful = |p: &Sized<'_>, d: &Sized<'_>| {
        compatible(&p.option, &d.option)
            && (always || runs(&p.option.shape) || runs(&d.option.shape) || needs.pays(p, d))
    };
    let kept = |own: &[Sized<'a>], role: Role| -> Vec<(&Allowed<'a>, KvTransfer)> {
        let is_useful = |shape: &Shape| {
            let same = |s: &&Sized<'_>| Shape { role: Role::Mixed, ..s.option.shape.clone() } == *shape;
            own.iter().find(same).is_some_and(|own| match role {
                Role::Prefill => decode.iter().any(|d| useful(own, d)),
                _ => prefill.iter().any(|p| useful(p, own)),
            })
        };
        reachable.iter().filter(|(o, _)| is_useful(&o.shape)).copied().collect()
    };
    let (p, d) = (kept(&prefill, Role::Prefill), kept(&decode, Role::Decode));
    if p.is_empty() || d.is_empty() {
        return match always {
            true => {
                Err("no shape prefills, or none decodes, within spec.slo on replicas of their own".to_owned())
            }
            false => Ok((Vec::new(), None)),
        };
    }
    let Some((prefill, decode)) = shapes.best_split(&p, &d) else { return Ok((Vec::new(), None)) };
    Ok(choose(&needs, prefill, decode, (always, &runs)))
}

/// The few shapes worth having of those that were sized, and what the cheapest pair takes.
fn choose<'a>(
    needs: &Whole<'_, 'a>,
    mut prefill: Vec<Sized<'a>>,
    mut decode: Vec<Sized<'a>>,
    (always, runs): (bool, &dyn Fn(&Shape) -> bool),
) -> (Vec<Allowed<'a>>, Option<Apart>) {
    number(&mut prefill, &mut decode);
    let apart = cheapest_pair(needs.classes, &prefill, &decode);
    let same = |p: &Sized<'_>, d: &Sized<'_>| {
        let of = |s: &Sized<'_>| s.option.pairing.as_ref().map(|p| p.number);
        of(p) == of(d) && (always || runs(&p.option.shape) || runs(&d.option.shape) || needs.pays(p, d))
    };
    let good = |own: &Sized<'_>, others: &[Sized<'_>]| {
        others
            .iter()
            .any(|o| if own.option.shape.role == Role::Prefill { same(own, o) } else { same(o, own) })
    };
    let mut found = Vec::new();
    for (own, others) in [(&prefill, &decode), (&decode, &prefill)] {
        let mut own: Vec<&Sized<'a>> = own.iter().filter(|s| good(s, others)).collect();
        own.sort_by(|a, b| {
            let usd = |s: &Sized<'_>| usd_of(s, needs.classes);
            usd(a).total_cmp(&usd(b)).then_with(|| a.option.shape.cmp(&b.option.shape))
        });
        let mut taken: Vec<&str> = Vec::new();
        for s in own {
            let class = s.option.shape.accelerator.as_str();
            let new = taken.len() < MOST_CLASSES && !taken.contains(&class);
            if new || runs(&s.option.shape) {
                taken.push(class);
                found.push(s.option.clone());
            }
        }
    }
    (found, apart)
}

/// Dollars per hour of replicas (not whole) for all classes that a shape serves; infinite if it serves none.
fn usd_of(s: &Sized<'_>, classes: &[RequestClass]) -> f64 {
    let usd = s.option.accelerator.usd_per_hour * f64::from(s.option.shape.gpus());
    let load = load_of(&s.able.rates, classes, &|_| true);
    if load > 0.0 { usd * load } else { f64::INFINITY }
}

/// Replicas (not whole) of these rates that some classes take, those aside that they do not serve. Without demand all count alike.
fn load_of(rates: &[f64], classes: &[RequestClass], counts: &dyn Fn(usize) -> bool) -> f64 {
    let idle = classes.iter().all(|c| c.rps <= 0.0);
    let served = (0..classes.len()).filter(|c| counts(*c) && rates[*c] > 0.0);
    served.map(|c| if idle { 1.0 } else { classes[c].rps } / rates[c]).fold(0.0, |a, b| a + b)
}

fn cheapest_pair(classes: &[RequestClass], prefill: &[Sized<'_>], decode: &[Sized<'_>]) -> Option<Apart> {
    let all = |s: &&Sized<'_>| s.able.rates.iter().zip(classes).all(|(r, c)| *r > 0.0 || c.rps <= 0.0);
    let count = |s: &Sized<'_>| load_of(&s.able.rates, classes, &|c| classes[c].rps > 0.0).ceil().max(1.0);
    let usd = |s: &Sized<'_>| s.option.accelerator.usd_per_hour * f64::from(s.option.shape.gpus()) * count(s);
    let mut best: Option<Apart> = None;
    for p in prefill.iter().filter(all) {
        for d in decode.iter().filter(all).filter(|d| compatible(&p.option, &d.option)) {
            let usd_per_hour = usd(p) + usd(d);
            if best.as_ref().is_none_or(|b| usd_per_hour < b.usd_per_hour - 1e-9) {
                let of = |s: &Sized<'_>| (s.option.shape.clone(), count(s).min(1e6) as u32);
                best = Some(Apart { prefill: of(p), decode: of(d), usd_per_hour });
            }
        }
    }
    best
}

/// Replicas that serve requests whole, to compare with.
struct Whole<'w, 'a> {
    classes: &'w [RequestClass],
    whole: &'w [(&'w Allowed<'a>, &'w Result<Able, Rejection>)],
}

impl Whole<'_, '_> {
    /// Accelerators of a class that replicas of one shape take for some request classes; infinite where none serves them all.
    fn gpus(&self, accelerator: &str, counts: &dyn Fn(usize) -> bool) -> f64 {
        let of = |(option, able): &(&Allowed<'_>, &Result<Able, Rejection>)| {
            let able = able.as_ref().ok()?;
            let all = (0..self.classes.len()).filter(|c| counts(*c)).all(|c| able.rates[c] > 0.0);
            let here = option.shape.accelerator == accelerator;
            let load = load_of(&able.rates, self.classes, counts).ceil().max(1.0);
            (all && here).then(|| load * f64::from(option.shape.gpus()))
        };
        self.whole.iter().filter_map(of).fold(f64::INFINITY, f64::min)
    }

    /// Whether two of the smallest replicas that hold the model could be fewer accelerators.
    fn may_pay(&self, fits: &[&Allowed<'_>]) -> bool {
        let share = |o: &&Allowed<'_>| {
            f64::from(o.shape.gpus()) / self.gpus(&o.shape.accelerator, &|c| self.classes[c].rps > 0.0)
        };
        2.0 * fits.iter().map(share).fold(f64::INFINITY, f64::min) < WORTH_IT
    }

    /// Whether a pair takes fewer accelerators for what both of it serve.
    fn pays(&self, prefill: &Sized<'_>, decode: &Sized<'_>) -> bool {
        let counts = |c: usize| prefill.able.rates[c] > 0.0 && decode.able.rates[c] > 0.0;
        if !(0..self.classes.len()).any(counts) {
            return false;
        }
        let share = |s: &Sized<'_>| {
            let load = load_of(&s.able.rates, self.classes, &counts).max(1.0);
            load * f64::from(s.option.shape.gpus()) / self.gpus(&s.option.shape.accelerator, &counts)
        };
        share(prefill) + share(decode) < WORTH_IT
    }
}

/// How parts are sized.
struct Parts<'p, 'q> {
    asking: &'p Asking<'q>,
    classes: &'p [RequestClass],
    asked: &'p [RequestClass],
    arrival_scv: f64,
}

impl Parts<'_, '_> {
    /// What shapes can do in a role within these objectives: those that can do something.
    fn sized<'a>(
        &self,
        shapes: &[(&Allowed<'a>, KvTransfer)],
        role: Role,
        limits: &[(String, Slo)],
    ) -> Vec<Sized<'a>> {
        let mut sized = Vec::with_capacity(shapes.len());
        for (option, transfer) in shapes {
            let pairing = Pairing { number: 0, limits: limits.to_vec(), transfer: *transfer };
            let shape = Shape { role, ..option.shape.clone() };
            let option = Allowed { shape, pairing: Some(pairing), ..(*option).clone() };
            if let Ok(able) = self.asking.able(&option, self.asked, self.arrival_scv, 1.0)
                && able.rates.iter().any(|r| *r > 0.0)
            {
                sized.push(Sized { option, able });
            }
        }
        sized
    }

    /// Both parts, by the split whose cheapest pair costs least and serves most classes; `None` if no split serves any.
    fn best_split<'a>(
        &self,
        prefill: &[(&Allowed<'a>, KvTransfer)],
        decode: &[(&Allowed<'a>, KvTransfer)],
    ) -> Option<(Vec<Sized<'a>>, Vec<Sized<'a>>)> {
        let pool = self.asking.pool;
        // As slow as the slowest of them.
        let transfer_ms = |slo_class: &str| {
            let own = self.asked.iter().filter(|c| c.slo_class == slo_class);
            let of = |c: &RequestClass| {
                prefill.iter().chain(decode).map(|(_, t)| stretched_ms(t, c)).fold(0.0, f64::max)
            };
            own.map(of).fold(0.0, f64::max)
        };
        let has_split = pool.slo_classes.iter().any(|c| c.slo.ttft.is_some() || c.slo.e2e.is_some());
        let splits = if has_split { SPLITS.as_slice() } else { &SPLITS[..1] };
        type Found<'a> = ((usize, f64), (Vec<Sized<'a>>, Vec<Sized<'a>>));
        let mut best: Option<Found<'a>> = None;
        for split in splits {
            let part = |shapes: &[(&Allowed<'a>, KvTransfer)], role: Role| {
                self.sized(shapes, role, &limits(pool, role, Some(*split), &transfer_ms))
            };
            let (p, d) = (part(prefill, Role::Prefill), part(decode, Role::Decode));
            let Some(rank) = self.rank(&p, &d) else { continue };
            let better = best.as_ref().is_none_or(|((unserved, usd), _)| {
                rank.0 < *unserved || (rank.0 == *unserved && rank.1 < usd - 1e-9)
            });
            if better {
                best = Some((rank, (p, d)));
            }
        }
        best.map(|(_, parts)| parts)
    }

    /// Classes that the best pair does not serve, and what it costs for the others.
    fn rank(&self, prefill: &[Sized<'_>], decode: &[Sized<'_>]) -> Option<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        for p in prefill {
            for d in decode.iter().filter(|d| compatible(&p.option, &d.option)) {
                let both = |c: usize| p.able.rates[c] > 0.0 && d.able.rates[c] > 0.0;
                let unserved = (0..self.classes.len()).filter(|c| !both(*c)).count();
                let usd = |s: &Sized<'_>| {
                    let each = s.option.accelerator.usd_per_hour * f64::from(s.option.shape.gpus());
                    each * load_of(&s.able.rates, self.classes, &both)
                };
                let rank = (unserved, usd(p) + usd(d));
                let better = |(u, x): &(usize, f64)| rank.0 < *u || (rank.0 == *u && rank.1 < *x);
                if unserved < self.classes.len() && best.as_ref().is_none_or(better) {
                    best = Some(rank);
                }
            }
        }
        best
    }
}

/// A transfer between two replicas of this shape over the network: they may be on any nodes of a zone.
fn transfer(pool: &ModelPool, o: &Allowed<'_>) -> KvTransfer {
    let side = (o.accelerator, &o.shape);
    KvTransfer::new(&pool.architecture, o.variant, side, side, LinkTier::Network)
}

/// Time of a transfer on a link that is as busy as may be, milliseconds.
fn stretched_ms(transfer: &KvTransfer, class: &RequestClass) -> f64 {
    let busy = LINK_SHARE / (1.0 - LINK_SHARE);
    transfer.ms(class.input_tokens) + busy * transfer.occupied_ms(class.input_tokens)
}

/// Whether transfers leave most of the objectives to computing.
fn is_quick(pool: &ModelPool, transfer: &KvTransfer, class: &RequestClass) -> bool {
    let slo = pool.slo_class(&class.slo_class).map(|c| c.slo).unwrap_or_default();
    let limit = slo.ttft.or(slo.e2e).map_or(f64::INFINITY, |o| o.ms);
    stretched_ms(transfer, class) <= MOST_TRANSFER * limit
}

/// What is left of the pool's objectives to a part of a request; at best where nothing is split.
fn limits(
    pool: &ModelPool,
    role: Role,
    split: Option<f64>,
    transfer_ms: &dyn Fn(&str) -> f64,
) -> Vec<(String, Slo)> {
    let of = |name: &str, slo: &Slo| -> Slo {
        let Some(split) = split else {
            return match role {
                Role::Decode => Slo { tpot: slo.tpot, ..Slo::default() },
                _ => Slo { ttft: slo.ttft.or(slo.e2e), ..Slo::default() },
            };
        };
        let left =
            |o: Objective, share: f64| Objective { ms: share * (o.ms - transfer_ms(name)).max(0.0), ..o };
        let prefill = slo.ttft.map(|o| left(o, 1.0 - split)).or(slo.e2e.map(|o| left(o, split)));
        match role {
            Role::Decode => Slo {
                ttft: slo.ttft.map(|o| left(o, split)),
                tpot: slo.tpot,
                e2e: slo.e2e.map(|o| {
                    let all = left(o, 1.0);
                    Objective { ms: (all.ms - prefill.map_or(0.0, |p| p.ms)).max(0.0), ..all }
                }),
            },
            _ => Slo { ttft: prefill, ..Slo::default() },
        }
    };
    pool.slo_classes.iter().map(|c| (c.name.clone(), of(&c.name, &c.slo))).collect()
}

/// Whether a decode replica can read what a prefill replica wrote, of one engine release ([`plimsoll_fleet::pairing`]).
fn compatible(a: &Allowed<'_>, b: &Allowed<'_>) -> bool {
    let (x, y) = (a.shape.tensor_parallel, b.shape.tensor_parallel);
    a.variant.kv == b.variant.kv && a.shape.pipeline_parallel == b.shape.pipeline_parallel && splits_fit(x, y)
}

/// Numbers the shapes so that all of one number can exchange caches.
fn number<'a>(prefill: &mut [Sized<'a>], decode: &mut [Sized<'a>]) {
    let mut groups: Vec<Vec<Allowed<'a>>> = Vec::new();
    for s in prefill.iter_mut().chain(decode) {
        let at = groups.iter().position(|g| g.iter().all(|o| compatible(o, &s.option)));
        let at = at.unwrap_or_else(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[at].push(Allowed { pairing: None, ..s.option.clone() });
        if let Some(pairing) = &mut s.option.pairing {
            pairing.number = at;
        }
    }
}
