use plimsoll_fleet::{Endpoint, NodeName, PoolRoute, ReplicaId, Role, StepCoefficients};
use proptest::prelude::*;

use super::*;

fn coefficients(base_ms: f64) -> StepCoefficients {
    StepCoefficients {
        base_ms,
        per_request_ms: 0.1,
        per_context_token_ms: 1e-4,
        per_prefill_token_ms: 0.05,
        api_overhead_ms: 1.0,
        kv_tokens: 200_000.0,
        max_running: 64,
        max_batched_tokens: 4096,
    }
}

fn endpoint(i: usize, weight: Option<f64>, base_ms: f64) -> Endpoint {
    Endpoint {
        replica: ReplicaId::new(format!("r{i}")).unwrap(),
        node: NodeName::new(format!("n{i}")).unwrap(),
        zone: "a".into(),
        role: Role::Mixed,
        agent_address: None,
        engine_address: "127.0.0.1:1".into(),
        engine_model: "m".into(),
        weights: weight.map(|w| vec![("default".to_owned(), w)]).unwrap_or_default(),
        coefficients: coefficients(base_ms),
        draining: false,
    }
}

fn view(endpoints: Vec<Endpoint>) -> PoolView {
    PoolView::new(
        PoolRoute {
            pool: "default/chat".parse().unwrap(),
            served_name: "m".into(),
            slo_classes: vec![],
            priority: 0,
            max_context_tokens: 8192,
            endpoints,
            wake_wait_ms: 0.0,
            usd_per_million_tokens: (0.0, 0.0),
            unavailable_reason: String::new(),
            objectives: Vec::new(),
        },
        1,
    )
}

fn request(prefix: &[u64]) -> Request<'_> {
    Request {
        class: "default",
        prefix,
        prompt_tokens: 64.0 * prefix.len().max(1) as f64,
        tokens_per_block: 64.0,
        expected_output: 100.0,
        adapter: None,
        ttft_objective_ms: None,
    }
}

fn idle(_: usize) -> ReplicaLoad {
    ReplicaLoad::default()
}

#[test]
fn a_known_prefix_goes_back_to_its_replica_until_that_is_too_busy() {
    let v = view((0..4).map(|i| endpoint(i, None, 10.0)).collect());
    let mut memory = Memory::new(1);
    let prefix: Vec<u64> = (100..200).collect();
    let first = choose(&v, &request(&prefix), idle, &mut memory).order[0];
    memory.record(&v, &request(&prefix), first.endpoint);
    let again = choose(&v, &request(&prefix), idle, &mut memory).order[0];
    assert_eq!(again.endpoint, first.endpoint);
    assert_eq!(again.reason, Reason::Prefix);
    assert_eq!(again.cached_tokens, 6400.0);
    let busy = |i: usize| ReplicaLoad {
        prefill_tokens: if i == first.endpoint { 100_000.0 } else { 0.0 },
        ..Default::default()
    };
    let elsewhere = choose(&v, &request(&prefix), busy, &mut memory).order[0];
    assert_ne!(elsewhere.endpoint, first.endpoint);
}

#[test]
fn routers_that_do_not_talk_agree_on_an_unseen_prefix() {
    for n in [5, 200] {
        let v = view((0..n).map(|i| endpoint(i, None, 10.0)).collect());
        let mut used = std::collections::BTreeSet::new();
        for p in 0..50u64 {
            let prefix = [1, mix(p, 3), mix(p, 4)];
            let a = choose(&v, &request(&prefix), idle, &mut Memory::new(1)).order[0].endpoint;
            let b = choose(&v, &request(&prefix), idle, &mut Memory::new(2)).order[0].endpoint;
            assert_eq!(a, b);
            used.insert(a);
        }
        assert!(used.len() >= 4, "{n}: {used:?}");
    }
}

#[test]
fn weights_hold_however_much_faster_one_group_is() {
    let v = view(vec![endpoint(0, Some(0.3), 5.0), endpoint(1, Some(0.7), 50.0)]);
    let mut memory = Memory::new(1);
    let mut counts = [0usize; 2];
    for _ in 0..2000 {
        let c = choose(&v, &request(&[]), idle, &mut memory).order[0].endpoint;
        memory.record(&v, &request(&[]), c);
        counts[c] += 1;
    }
    assert!((counts[0] as f64 / 2000.0 - 0.3).abs() < 0.03, "{counts:?}");
}

#[test]
fn the_plan_yields_when_what_it_allows_misses_the_objective() {
    let v = view(vec![endpoint(0, Some(0.1), 10.0), endpoint(1, Some(0.9), 11.0)]);
    let mut memory = Memory::new(1);
    let loads =
        |i: usize| ReplicaLoad { prefill_tokens: if i == 1 { 100_000.0 } else { 0.0 }, ..Default::default() };
    let r = Request { ttft_objective_ms: Some(500.0), ..request(&[]) };
    for _ in 0..100 {
        let c = choose(&v, &r, loads, &mut memory).order[0].endpoint;
        memory.record(&v, &r, c);
        assert_eq!(c, 0);
    }
}

#[test]
fn a_group_that_returns_is_not_flooded() {
    let v = view(vec![endpoint(0, Some(0.5), 10.0), endpoint(1, Some(0.5), 11.0)]);
    let mut memory = Memory::new(1);
    let down = |i: usize| ReplicaLoad {
        availability: if i == 1 { Availability::Unhealthy } else { Availability::Ready },
        ..Default::default()
    };
    for _ in 0..1000 {
        let c = choose(&v, &request(&[]), down, &mut memory).order[0].endpoint;
        assert_eq!(c, 0);
        memory.record(&v, &request(&[]), c);
    }
    let mut to_one = 0;
    for _ in 0..20 {
        let c = choose(&v, &request(&[]), idle, &mut memory).order[0].endpoint;
        memory.record(&v, &request(&[]), c);
        to_one += c;
    }
    assert!(to_one <= 12, "{to_one} of 20");
}

#[test]
fn equal_replicas_share_prompts_too_short_to_hash() {
    let v = view((0..4).map(|i| endpoint(i, None, 10.0)).collect());
    let mut memory = Memory::new(1);
    let mut counts = [0usize; 4];
    for _ in 0..400 {
        counts[choose(&v, &request(&[]), idle, &mut memory).order[0].endpoint] += 1;
    }
    assert!(counts.iter().all(|c| *c > 60), "{counts:?}");
}

proptest! {
    #[test]
    fn never_chooses_what_may_not_be_used(
        states in prop::collection::vec((0usize..5, any::<bool>(), 0usize..3), 1..60), prefix in prop::collection::vec(any::<u64>(), 0..4), seed: u64,
    ) {
        let endpoints = states.iter().enumerate().map(|(i, (_, draining, w))| {
            Endpoint { draining: *draining, ..endpoint(i, Some(*w as f64), 10.0) }
        }).collect();
        let v = view(endpoints);
        let kinds = [Availability::Ready, Availability::Suspect, Availability::Draining, Availability::Unhealthy, Availability::Stalled];
        let load = |i: usize| ReplicaLoad { availability: kinds[states[i].0], ..Default::default() };
        let mut memory = Memory::new(seed);
        let planned = states.iter().any(|s| s.2 > 0);
        let ok = |i: usize| states[i].0 < 2 && !states[i].1 && (states[i].2 > 0 || !planned);
        for _ in 0..5 {
            let c = choose(&v, &request(&prefix), load, &mut memory);
            for r in &c.order {
                prop_assert!(ok(r.endpoint) || !planned);
            }
            let usable = (0..states.len()).any(|i| ok(i) && states[i].2 > 0);
            prop_assert_eq!(!c.order.is_empty(), usable);
            let mut seen: Vec<usize> = c.order.iter().map(|r| r.endpoint).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), c.order.len());
            if let Some(first) = c.order.first() {
                let ready = (0..states.len()).any(|i| ok(i) && states[i].0 == 0 && states[i].2 > 0);
                prop_assert!(!ready || states[first.endpoint].0 == 0, "a suspect before a ready one");
                memory.record(&v, &request(&prefix), first.endpoint);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn weights_are_kept_on_average(a in 1u32..10, b in 1u32..10, c in 1u32..10, seed: u64) {
        let w = [f64::from(a), f64::from(b), f64::from(c)];
        let v = view(w.iter().enumerate().map(|(i, w)| endpoint(i, Some(*w), 10.0 * (i + 1) as f64)).collect());
        let mut memory = Memory::new(seed);
        let mut counts = [0.0; 3];
        for i in 0..1500u64 {
            let prefix = [mix(seed, i % 40), mix(seed, 1000 + i % 40)];
            let e = choose(&v, &request(&prefix), idle, &mut memory).order[0].endpoint;
            memory.record(&v, &request(&prefix), e);
            counts[e] += 1.0;
        }
        for i in 0..3 {
            let share = w[i] / w.iter().sum::<f64>();
            prop_assert!((counts[i] / 1500.0 - share).abs() < 0.03, "{i}: {} vs {share}", counts[i] / 1500.0);
        }
    }
}

#[test]
fn routers_that_do_not_talk_send_a_conversation_to_one_replica() {
    let view = view((0..8).map(|i| endpoint(i, None, 10.0)).collect());
    let mut routers: Vec<Memory> = (0..4).map(Memory::new).collect();
    // A system prompt of 20 blocks, shared by all; each conversation grows by 10 blocks a turn.
    let prompt = |conversation: u64, turns: u64| -> Vec<u64> {
        (0..20)
            .chain((0..10 * turns).map(|b| 1_000 * (conversation + 1) + b))
            .map(|b| mix(b + 1, 77))
            .collect()
    };
    let mut homes: HashMap<u64, Vec<usize>> = HashMap::new();
    for turn in 1..=4 {
        for conversation in 0..60u64 {
            let prefix = prompt(conversation, turn);
            let request = request(&prefix);
            // Every turn is somebody else's.
            let memory = &mut routers[((conversation + turn) % 4) as usize];
            let chosen = choose(&view, &request, |_| ReplicaLoad::default(), memory).order[0].endpoint;
            memory.record(&view, &request, chosen);
            homes.entry(conversation).or_default().push(chosen);
        }
    }
    // The first turns go where the system prompt is; once it is known to be shared, every router finds the same home.
    let learned: Vec<_> = homes.iter().filter(|(c, _)| **c >= 20).map(|(_, h)| &h[1..]).collect();
    assert!(learned.iter().all(|h| h.iter().all(|r| *r == h[0])), "{learned:?}");
    let used: std::collections::HashSet<usize> = learned.iter().map(|h| h[0]).collect();
    assert!(used.len() >= 6, "and they are spread: {used:?}");
}

#[test]
fn an_engine_that_lost_its_cache_is_no_longer_believed() {
    let view = view((0..2).map(|i| endpoint(i, None, 10.0)).collect());
    let mut memory = Memory::new(1);
    let prefix: Vec<u64> = (100..140).collect();
    let request = request(&prefix);
    let first = choose(&view, &request, |_| ReplicaLoad::default(), &mut memory).order[0].endpoint;
    memory.record(&view, &request, first);
    let believed = |memory: &mut Memory| {
        let order = choose(&view, &request, |_| ReplicaLoad::default(), memory).order;
        order.iter().find(|r| r.endpoint == first).unwrap().cached_tokens
    };
    assert!(believed(&mut memory) >= MUCH_EXPECTED);
    let key = view.keys[first];
    memory.found(key, 0);
    memory.found(key, 640);
    memory.found(key, 0);
    assert!(believed(&mut memory) > 0.0, "not twice in a row");
    memory.found(key, 0);
    assert_eq!(believed(&mut memory), 0.0);
}
