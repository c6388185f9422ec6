//! The choice of a pair: which prefill replica computes the prompt, which decode replica takes its KV cache and answers.
//!
//! A pair's time is the prompt's at the prefill replica (its queue, what is not cached there), then the transfer of what the decode
//! replica lacks, then the answer there, whose first step computes the prompt's last token again: the phases of
//! DistServe (Zhong et al., 2024). Only replicas that [`plimsoll_fleet::pairing`] allows are paired, by what the route table
//! says of them.

use plimsoll_fleet::{Endpoint, Role};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{Availability, ClassPlan, EQUAL_WITHIN, PREDICT_ALL, PoolView, Prediction, ReplicaLoad};
use super::{Ranked, Reason, Request, predict};

/// The prefill half of a choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Partner {
    /// Index in the pool's endpoints.
    pub endpoint: usize,
    /// Prompt tokens believed to be cached there.
    pub cached_tokens: f64,
    /// Time to the one token that it is asked for, ms.
    pub prefill_ms: f64,
    /// Transfer of the cache, ms.
    pub transfer_ms: f64,
}

/// A prefill replica that may be used, and what it would take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    endpoint: usize,
    cached_tokens: f64,
    prediction: Prediction,
    /// It failed a moment ago.
    suspect: bool,
}

/// Endpoints that prefill for others in a class: those with a share of it, or without any weights.
pub(super) fn planned(endpoints: &[Endpoint], class: &str, named: bool) -> Vec<usize> {
    let share = |e: &Endpoint| {
        e.weights.is_empty() || e.weights.iter().any(|(c, w)| *w > 0.0 && (!named || c == class))
    };
    let half = |e: &Endpoint| e.role == Role::Prefill && e.hand_over.is_some();
    (0..endpoints.len()).filter(|i| half(&endpoints[*i]) && share(&endpoints[*i])).collect()
}

/// Prefill replicas by predicted time, those that failed a moment ago last. In big pools only the holders of the prefix, its
/// hashed home and a few random ones are looked at.
pub(super) fn prefills(
    view: &PoolView,
    plan: &ClassPlan,
    request: &Request<'_>,
    prefix_key: Option<u64>,
    held: &[(usize, usize)],
    load: &impl Fn(usize) -> ReplicaLoad,
    rng: &mut SmallRng,
) -> Vec<Candidate> {
    let all = &plan.prefill;
    if all.is_empty() {
        return Vec::new();
    }
    let endpoints = &view.route.endpoints;
    let state = |i: usize| {
        if endpoints[i].draining { Availability::Draining } else { load(i).availability }
    };
    let ready = |i: usize| state(i) == Availability::Ready;
    let is_prefill = |i: usize| all.binary_search(&i).is_ok();
    let home = prefix_key.and_then(|key| view.home(key, |i| is_prefill(i) && ready(i)));
    let mut looked: Vec<usize> = if all.len() <= PREDICT_ALL {
        all.iter()
            .copied()
            .filter(|i| matches!(state(*i), Availability::Ready | Availability::Suspect))
            .collect()
    } else {
        let drawn =
            (0..4).filter_map(|_| (0..8).map(|_| all[rng.random_range(0..all.len())]).find(|i| ready(*i)));
        let held = held.iter().map(|(i, _)| *i).filter(|i| is_prefill(*i) && ready(*i));
        held.chain(home).chain(drawn).collect()
    };
    if looked.is_empty() {
        looked.extend(all.iter().copied().filter(|i| state(*i) == Availability::Suspect));
    }
    looked.sort_unstable();
    looked.dedup();
    let mut out: Vec<Candidate> = looked
        .into_iter()
        .map(|i| {
            let depth = held.iter().find(|(h, _)| *h == i).map_or(0, |(_, d)| *d);
            let cached_tokens = (depth as f64 * request.tokens_per_block).min(request.prompt_tokens);
            let l = load(i);
            // One token: the answer's others are not its work.
            let prediction =
                predict(&endpoints[i].coefficients, &l, request.prompt_tokens, cached_tokens, 1.0);
            Candidate {
                endpoint: i,
                cached_tokens,
                prediction,
                suspect: l.availability == Availability::Suspect,
            }
        })
        .collect();
    out.sort_by(|a, b| {
        let home_of = |c: &Candidate| Some(c.endpoint) != home;
        a.suspect
            .cmp(&b.suspect)
            .then(a.prediction.ttft_ms().total_cmp(&b.prediction.ttft_ms()))
            .then(home_of(a).cmp(&home_of(b)))
    });
    // An unseen prefix goes to its home where times are about equal, so that routers agree.
    if let Some(best) = out.first().copied()
        && best.cached_tokens == 0.0
        && let Some(at) = out.iter().position(|c| Some(c.endpoint) == home && !c.suspect)
        && out[at].prediction.ttft_ms() <= best.prediction.ttft_ms() * EQUAL_WITHIN
    {
        let home = out.remove(at);
        out.insert(0, home);
    }
    out
}

/// Ranks a decode replica with its best partner, or alone where it prefills sooner itself without holding up others: what is
/// not cached there takes no longer than one of its steps. `None`: no partner, and its engine does not prefill.
pub(super) fn rank(
    endpoints: &[Endpoint],
    decode: usize,
    own_tokens: f64,
    load: &ReplicaLoad,
    prefills: &[Candidate],
    request: &Request<'_>,
) -> Option<Ranked> {
    let paired = prefills_for(endpoints, decode, own_tokens, load, prefills, request, None);
    let alone = alone(endpoints, decode, own_tokens, load, request);
    match (paired, alone) {
        (Some(paired), Some(alone)) => {
            let c = &endpoints[decode].coefficients;
            let step_ms =
                c.base_ms + load.running * c.per_request_ms + load.context_tokens * c.per_context_token_ms;
            let tail_ms = (request.prompt_tokens - own_tokens) * c.per_prefill_token_ms;
            let short = tail_ms <= step_ms && alone.prediction.e2e_ms() <= paired.prediction.e2e_ms();
            let reason = if own_tokens > 0.0 { Reason::Prefix } else { Reason::Completion };
            Some(if short { Ranked { reason, ..alone } } else { paired })
        }
        (one, other) => one.or(other),
    }
}

/// The decode replica computes the prompt itself, where its engine does that.
pub(super) fn alone(
    endpoints: &[Endpoint],
    decode: usize,
    own_tokens: f64,
    load: &ReplicaLoad,
    request: &Request<'_>,
) -> Option<Ranked> {
    let endpoint = &endpoints[decode];
    let able = endpoint.hand_over.as_ref().is_none_or(|h| h.protocol.decode_prefills());
    able.then(|| Ranked {
        endpoint: decode,
        prediction: predict(
            &endpoint.coefficients,
            load,
            request.prompt_tokens,
            own_tokens,
            request.expected_output,
        ),
        cached_tokens: own_tokens,
        reason: Reason::Alone,
        prefill: None,
    })
}

/// The best pair of a decode replica, `but` for one partner.
pub(super) fn prefills_for(
    endpoints: &[Endpoint],
    decode: usize,
    own_tokens: f64,
    load: &ReplicaLoad,
    prefills: &[Candidate],
    request: &Request<'_>,
    but: Option<usize>,
) -> Option<Ranked> {
    let endpoint = &endpoints[decode];
    let mut best: Option<(f64, Candidate, f64)> = None;
    for candidate in prefills.iter().filter(|c| Some(c.endpoint) != but) {
        let ttft_ms = candidate.prediction.ttft_ms();
        // In order of time, but for the home, the suspects and the transfer: nothing that follows can be sooner.
        if best
            .as_ref()
            .is_some_and(|(ms, b, _)| ttft_ms > *ms * EQUAL_WITHIN || (candidate.suspect && !b.suspect))
        {
            break;
        }
        let missing = request.prompt_tokens - own_tokens;
        let Some(transfer_ms) = endpoint.transfer_ms(&endpoints[candidate.endpoint], missing) else {
            continue;
        };
        let total = ttft_ms + transfer_ms;
        // The first, which may be the prefix's home, keeps its place among equals.
        if best.as_ref().is_none_or(|(ms, _, _)| total * EQUAL_WITHIN < *ms) {
            best = Some((total, *candidate, transfer_ms));
        }
    }
    let (_, partner, transfer_ms) = best?;
    // All but the last token arrives.
    let taken = predict(
        &endpoint.coefficients,
        load,
        request.prompt_tokens,
        request.prompt_tokens,
        request.expected_output,
    );
    Some(Ranked {
        endpoint: decode,
        prediction: Prediction {
            queue_ms: partner.prediction.queue_ms + taken.queue_ms,
            prefill_ms: partner.prediction.prefill_ms + transfer_ms + taken.prefill_ms,
            decode_ms: taken.decode_ms,
        },
        cached_tokens: partner.cached_tokens,
        reason: if partner.suspect {
            Reason::LastResort
        } else if partner.cached_tokens > 0.0 {
            Reason::Prefix
        } else {
            Reason::Completion
        },
        prefill: Some(Partner {
            endpoint: partner.endpoint,
            cached_tokens: partner.cached_tokens,
            prefill_ms: partner.prediction.ttft_ms(),
            transfer_ms,
        }),
    })
}
