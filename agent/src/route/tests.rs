use plimsoll_fleet::{
    Endpoint, EngineKind, HandOver, HandOverProtocol, NodeName, PoolRoute, ReplicaId, Role, StepCoefficients,
};
use std::collections::HashMap;

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
        engine: EngineKind::Vllm,
        hand_over: None,
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
            adapters: Vec::new(),
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
fn an_adapter_that_is_placed_nowhere_is_found_where_it_visits_or_has_one_host_for_all() {
    let with = |placed: &[usize], held: &[usize], number: usize| {
        let mut endpoints: Vec<Endpoint> = (0..number).map(|i| endpoint(i, None, 10.0)).collect();
        for e in &mut endpoints {
            (e.engine, e.agent_address) = (EngineKind::Vllm, Some("10.0.0.1:1".into()));
        }
        let ids = |of: &[usize]| of.iter().map(|i| endpoints[*i].replica.clone()).collect();
        let law = AdapterRoute {
            served_name: "law".into(),
            placed: ids(placed),
            held: ids(held),
            ..AdapterRoute::default()
        };
        let mut v = view(endpoints);
        v.route.adapters = vec![law];
        PoolView::new(v.route, 1)
    };
    let order = |v: &PoolView| {
        let asked = Request { adapter: Some("law"), ..request(&[]) };
        choose(v, &asked, idle, &mut Memory::new(1)).order.iter().map(|r| r.endpoint).collect::<Vec<_>>()
    };
    // Where it is to stay: not where it is to go from.
    assert_eq!(order(&with(&[1], &[1, 2], 4)), [1]);
    assert_eq!(order(&with(&[1], &[2], 4)), Vec::<usize>::new());
    assert_eq!(order(&with(&[], &[2], 4)), [2]);
    // The first host is where it is placed, else one that does not change where others come and go.
    assert_eq!(with(&[3], &[], 4).hosts("law")[0], 3);
    let host = with(&[], &[], 4).hosts("law")[0];
    let five = with(&[], &[], 5).hosts("law");
    assert!(five[0] == host || (five[0] == 4 && five[1] == host), "{host} {five:?}");
    assert_eq!(with(&[], &[], 4).hosts("ode"), Vec::<usize>::new());
    let mut alone = with(&[], &[], 1);
    alone.route.endpoints[0].agent_address = None;
    assert_eq!(alone.hosts("law"), Vec::<usize>::new());
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

fn half(i: usize, role: Role, protocol: HandOverProtocol) -> Endpoint {
    let hand_over = HandOver {
        protocol,
        format: "rev/bf16/pp1".into(),
        tensor_parallel: 2,
        bootstrap_port: 8998,
        network_ms_per_token: 0.01,
        node_ms_per_token: 0.001,
        set_up_ms: 2.0,
    };
    Endpoint { role, hand_over: Some(hand_over), ..endpoint(i, None, 10.0) }
}

/// Prefill replicas 0 and 1, decode replicas 2 and 3.
fn halves(protocol: HandOverProtocol) -> Vec<Endpoint> {
    (0..4).map(|i| half(i, if i < 2 { Role::Prefill } else { Role::Decode }, protocol)).collect()
}

fn pairs(choice: &Choice) -> Vec<(Option<usize>, usize)> {
    choice.order.iter().map(|r| (r.prefill.map(|p| p.endpoint), r.endpoint)).collect()
}

#[test]
fn a_pair_is_the_idlest_prefill_and_the_idlest_decode_replica() {
    let view = view(halves(HandOverProtocol::Vllm));
    let mut memory = Memory::new(1);
    let load = |i: usize| match i {
        0 => ReplicaLoad { prefill_tokens: 20_000.0, ..ReplicaLoad::default() },
        3 => ReplicaLoad { running: 60.0, context_tokens: 100_000.0, ..ReplicaLoad::default() },
        _ => ReplicaLoad::default(),
    };
    let prefix: Vec<u64> = (0..40).collect();
    let choice = choose(&view, &request(&prefix), load, &mut memory);
    let first = choice.order[0];
    assert_eq!(pairs(&choice)[0], (Some(1), 2), "{choice:?}");
    let partner = first.prefill.unwrap();
    assert!((partner.transfer_ms - (2.0 + 0.01 * 64.0 * 40.0)).abs() < 1e-9, "{partner:?}");
    // TTFT is the prompt's time, the transfer, and the step that computes the last token again.
    let c = coefficients(10.0);
    let step = predict(&c, &ReplicaLoad::default(), 2560.0, 2560.0, 100.0).ttft_ms();
    assert!((first.prediction.ttft_ms() - (partner.prefill_ms + partner.transfer_ms + step)).abs() < 1e-6);
    // Should the prefill side fail: another one, then the decode replica by itself.
    let last: Vec<_> = pairs(&choice).into_iter().rev().take(2).collect();
    assert_eq!(last, [(None, 2), (Some(0), 2)], "{:?}", pairs(&choice));
    assert_eq!(choice.order.last().unwrap().reason, Reason::Alone);
    assert!(choice.order.len() <= MAX_ORDER);
}

#[test]
fn what_a_rollout_made_incompatible_is_no_pair() {
    let mut endpoints = halves(HandOverProtocol::Sglang);
    endpoints[0].hand_over.as_mut().unwrap().format = "newer/bf16/pp1".into();
    endpoints[3].hand_over.as_mut().unwrap().format = "newer/bf16/pp1".into();
    let view = view(endpoints);
    let mut memory = Memory::new(1);
    for _ in 0..20 {
        let choice = choose(&view, &request(&[]), |_| ReplicaLoad::default(), &mut memory);
        assert!(choice.order.len() >= 2);
        for pair in pairs(&choice) {
            assert!([(Some(1), 2), (Some(0), 3)].contains(&pair), "{pair:?}");
        }
        memory.record(&view, &request(&[]), choice.order[0].endpoint);
    }
}

#[test]
fn without_a_prefill_replica_a_mixed_one_serves_or_a_decode_replica_whose_engine_can() {
    let down = |i: usize| ReplicaLoad {
        availability: if i < 2 { Availability::Unhealthy } else { Availability::Ready },
        ..ReplicaLoad::default()
    };
    let chosen = |protocol, mixed: bool| {
        let mut endpoints = halves(protocol);
        endpoints.extend(mixed.then(|| endpoint(4, None, 30.0)));
        pairs(&choose(&view(endpoints), &request(&[]), down, &mut Memory::new(1)))
    };
    assert_eq!(chosen(HandOverProtocol::Vllm, true)[0], (None, 4), "a slower mixed replica goes first");
    assert!(chosen(HandOverProtocol::Vllm, false).iter().all(|(p, d)| p.is_none() && *d >= 2));
    assert_eq!(chosen(HandOverProtocol::Sglang, true), [(None, 4)]);
    assert_eq!(chosen(HandOverProtocol::Sglang, false), []);
    let none =
        choose(&view(halves(HandOverProtocol::Sglang)), &request(&[]), down, &mut Memory::new(1)).excluded;
    assert_eq!((none.unpaired, none.unhealthy, none.unplanned), (2, 2, 0));
}

#[test]
fn a_conversation_returns_to_where_its_prompt_is_cached_and_a_short_tail_needs_no_prefill_replica() {
    let view = view(halves(HandOverProtocol::Vllm));
    let mut memory = Memory::new(3);
    let prefix: Vec<u64> = (1000..1040).collect();
    let idle = |_: usize| ReplicaLoad::default();
    let first = choose(&view, &request(&prefix), idle, &mut memory).order[0];
    let at = first.prefill.unwrap().endpoint;
    memory.record(&view, &request(&prefix), first.endpoint);
    memory.remember(&view, &request(&prefix), at);
    // 64 more tokens: less than a step of the decode replica, which has the rest.
    let longer: Vec<u64> = prefix.iter().copied().chain([9]).collect();
    let next = choose(&view, &request(&longer), idle, &mut memory).order[0];
    assert_eq!((next.endpoint, next.prefill, next.reason), (first.endpoint, None, Reason::Prefix));
    // 2,560 more: the prefill replica that has the beginning.
    let longer: Vec<u64> = prefix.iter().copied().chain(5000..5040).collect();
    let next = choose(&view, &request(&longer), idle, &mut memory).order[0];
    assert_eq!((next.prefill.map(|p| p.endpoint), next.reason), (Some(at), Reason::Prefix), "{next:?}");
}

#[test]
fn routers_agree_on_the_prefill_replica_of_an_unseen_prompt() {
    let view = view(halves(HandOverProtocol::Vllm));
    let mut seen = std::collections::BTreeSet::new();
    for key in 0..20u64 {
        let prefix: Vec<u64> = (key * 100..key * 100 + 40).collect();
        let by = |seed| {
            choose(&view, &request(&prefix), |_| ReplicaLoad::default(), &mut Memory::new(seed)).order[0]
                .prefill
                .unwrap()
                .endpoint
        };
        assert_eq!(by(1), by(2));
        seen.insert(by(1));
    }
    assert_eq!(seen.len(), 2, "and prompts spread");
}

proptest! {
    #[test]
    fn every_pair_is_one_that_the_table_allows(
        roles in prop::collection::vec((0..3u8, 0..2u8, prop::sample::select(vec![1u32, 2, 3, 4]), 0..4u8), 1..50),
        sglang: bool, blocks in 0..60u64, seed: u64,
    ) {
        let protocol = if sglang { HandOverProtocol::Sglang } else { HandOverProtocol::Vllm };
        let endpoints: Vec<Endpoint> = roles.iter().enumerate().map(|(i, (role, format, tp, _))| {
            let role = [Role::Mixed, Role::Prefill, Role::Decode][usize::from(*role)];
            let mut e = half(i, role, protocol);
            let h = e.hand_over.as_mut().unwrap();
            (h.format, h.tensor_parallel) = (format!("f{format}"), *tp);
            if role == Role::Mixed { e.hand_over = None; }
            e
        }).collect();
        let view = view(endpoints.clone());
        let load = |i: usize| ReplicaLoad {
            availability: [Availability::Ready, Availability::Ready, Availability::Suspect, Availability::Stalled]
                [usize::from(roles[i].3)],
            ..ReplicaLoad::default()
        };
        let prefix: Vec<u64> = (0..blocks).collect();
        let choice = choose(&view, &request(&prefix), load, &mut Memory::new(seed));
        prop_assert!(choice.order.len() <= MAX_ORDER);
        for r in &choice.order {
            prop_assert_ne!(endpoints[r.endpoint].role, Role::Prefill);
            prop_assert!(r.prediction.e2e_ms().is_finite());
            prop_assert_ne!(load(r.endpoint).availability, Availability::Stalled);
            match r.prefill {
                Some(p) => {
                    prop_assert!(endpoints[r.endpoint].transfer_ms(&endpoints[p.endpoint], 1.0).is_some());
                    prop_assert_ne!(load(p.endpoint).availability, Availability::Stalled);
                }
                None => prop_assert!(endpoints[r.endpoint].role == Role::Mixed || !sglang),
            }
        }
    }
}
