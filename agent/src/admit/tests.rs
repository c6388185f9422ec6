use super::*;
use std::collections::HashMap;

use proptest::prelude::*;

fn limits(max_running: u32, max_queue: usize) -> Limits {
    Limits {
        kv_tokens: 0.0,
        max_running,
        backlog_requests: 0,
        backlog_tokens: 0.0,
        max_queue,
        step: StepCoefficients::default(),
    }
}

fn ask(id: u64, priority: i32, start_by_ms: f64) -> Ask {
    Ask {
        id,
        priority,
        whose: LengthKey::default(),
        weight: 1.0,
        prompt_tokens: 100.0,
        cached_tokens: 0.0,
        expected_output: 50.0,
        most_output: f64::INFINITY,
        prefill_ms: 10.0,
        service_ms: 100.0,
        start_by_ms: Some(start_by_ms),
        tpot_ms: None,
        finish_by_ms: None,
        stage_by_ms: None,
        deadline_ms: None,
        streaming: true,
    }
}

#[test]
fn what_may_be_shed_does_not_wait_where_others_do() {
    let mut a = Admission::new(limits(1, 8));
    assert_eq!(a.offer(0.0, ask(1, -1, 100.0)).0, Offer::Admitted);
    assert_eq!(a.offer(0.0, ask(2, -1, 100.0)).0, Offer::Queued, "among its own kind it waits");
    assert_eq!(a.offer(0.0, ask(3, 0, 900.0)).0, Offer::Queued);
    let shed = a.offer(0.0, ask(4, -1, 100.0)).0;
    assert!(matches!(shed, Offer::Refused(Refusal { reason: RefusalReason::Displaced, .. })), "{shed:?}");
    assert_eq!(a.offer(0.0, ask(5, 7, 900.0)).0, Offer::Queued);
    // The higher priority goes first, whatever the objectives' time.
    let mut order = Vec::new();
    for now in [1.0, 2.0, 3.0] {
        a.remove(now, *order.last().unwrap_or(&1));
        order.extend(a.pump(now).into_iter().map(|(id, _)| id));
    }
    assert_eq!(order, [5, 3, 2]);
}

#[test]
fn tier_first_then_least_slack_then_arrival() {
    let mut a = Admission::new(limits(1, 10));
    assert_eq!(a.offer(0.0, ask(1, 0, 0.0)).0, Offer::Admitted);
    for (id, priority, start_by) in [(2, 0, 500.0), (3, 0, 100.0), (4, 5, 900.0), (5, 0, 100.0)] {
        assert_eq!(a.offer(0.0, ask(id, priority, start_by)).0, Offer::Queued);
    }
    let mut order = Vec::new();
    let mut current = 1;
    while a.waiting() > 0 {
        a.remove(1.0, current);
        let verdicts = a.pump(1.0);
        assert_eq!(verdicts.len(), 1);
        current = verdicts[0].0;
        order.push(current);
    }
    assert_eq!(order, [4, 3, 5, 2]);
}

#[test]
fn a_full_queue_refuses_but_a_higher_tier_takes_the_last_place() {
    let mut a = Admission::new(limits(1, 1));
    a.offer(0.0, ask(1, 0, 0.0));
    assert_eq!(a.offer(0.0, ask(2, 0, 10.0)).0, Offer::Queued);
    let (offer, _) = a.offer(0.0, ask(3, 0, 5.0));
    let Offer::Refused(refusal) = offer else { panic!("{offer:?}") };
    assert_eq!(refusal.reason, RefusalReason::QueueFull);
    assert!(refusal.retry_after_ms >= 1000.0);
    let (offer, displaced) = a.offer(0.0, ask(4, 1, 5.0));
    assert_eq!(offer, Offer::Queued);
    assert!(matches!(displaced, Some((2, Err(Refusal { reason: RefusalReason::Displaced, .. })))));
}

#[test]
fn what_cannot_meet_its_deadline_is_refused_early_or_while_it_waits() {
    let mut a = Admission::new(limits(1, 10));
    let late = Ask { deadline_ms: Some(50.0), ..ask(1, 0, 0.0) };
    assert!(matches!(a.offer(0.0, late).0, Offer::Refused(Refusal { reason: RefusalReason::Deadline, .. })));
    a.offer(0.0, ask(2, 0, 0.0));
    a.offer(0.0, ask(3, 0, 0.0));
    assert_eq!(a.offer(0.0, Ask { deadline_ms: Some(500.0), ..ask(4, 0, 1.0) }).0, Offer::Queued);
    assert_eq!(a.pump(100.0), []);
    assert!(matches!(a.pump(401.0)[..], [(4, Err(Refusal { reason: RefusalReason::Deadline, .. }))]));
    assert_eq!(a.waiting(), 1);
}

#[test]
fn kv_and_prefill_backlog_hold_requests_back() {
    let mut a = Admission::new(Limits { kv_tokens: 400.0, ..limits(0, 10) });
    assert_eq!(a.offer(0.0, ask(1, 0, 0.0)).0, Offer::Admitted);
    assert_eq!(a.offer(0.0, ask(2, 0, 0.0)).0, Offer::Admitted);
    assert_eq!(a.offer(0.0, ask(3, 0, 0.0)).0, Offer::Queued);
    let mut b = Admission::new(Limits { backlog_tokens: 150.0, ..limits(0, 10) });
    for id in 0..3 {
        b.offer(0.0, ask(id, 0, 50.0));
    }
    assert_eq!((b.running(), b.waiting()), (2, 1));
    b.produced(0.0, 0, 1.0);
    assert_eq!(b.pump(1.0), [(2, Ok(()))]);
}

#[test]
fn draining_refuses_the_new_and_finishes_the_old() {
    let mut a = Admission::new(limits(1, 10));
    a.offer(0.0, ask(1, 0, 0.0));
    a.offer(0.0, ask(2, 0, 0.0));
    a.set_draining(true);
    assert!(matches!(
        a.offer(0.0, ask(3, 0, 0.0)).0,
        Offer::Refused(Refusal { reason: RefusalReason::Draining, .. })
    ));
    a.remove(1.0, 1);
    assert_eq!(a.pump(1.0), [(2, Ok(()))]);
    a.remove(2.0, 2);
    assert!(a.is_idle());
}

proptest! {
    #[test]
    fn books_balance_and_limits_hold(
        events in prop::collection::vec((0u8..4, 0u64..30, -2i32..3, 1.0..500.0f64, 0.0..2000.0f64), 1..200),
    ) {
        let l = Limits { kv_tokens: 2000.0, max_running: 4, backlog_requests: 1, backlog_tokens: 600.0, max_queue: 5, step: StepCoefficients::default() };
        let mut a = Admission::new(l);
        let mut state: HashMap<u64, bool> = HashMap::new(); // id → running?
        let mut next = 0;
        let mut now = 0.0;
        for (kind, pick, priority, prompt, at) in events {
            now += 1.0;
            let ids: Vec<u64> = { let mut v: Vec<_> = state.keys().copied().collect(); v.sort_unstable(); v };
            let target = ids.get(pick as usize % ids.len().max(1)).copied();
            let mut verdicts = Vec::new();
            match (kind, target) {
                (0 | 1, _) => {
                    next += 1;
                    let ask = Ask { prompt_tokens: prompt, streaming: kind == 0, deadline_ms: Some(now + 5.0 * at), ..ask(next, priority, at) };
                    let (offer, displaced) = a.offer(now, ask);
                    match offer {
                        Offer::Admitted => { state.insert(next, true); }
                        Offer::Queued => { state.insert(next, false); }
                        Offer::Refused(_) => {}
                    }
                    verdicts.extend(displaced);
                }
                (2, Some(id)) => a.produced(now, id, 3.0),
                (3, Some(id)) => { a.remove(now, id); state.remove(&id); }
                _ => {}
            }
            verdicts.extend(a.pump(now));
            for (id, verdict) in verdicts {
                prop_assert_eq!(state.get(&id), Some(&false), "a verdict only for what waits");
                if verdict.is_ok() { state.insert(id, true); } else { state.remove(&id); }
            }
            prop_assert_eq!(a.running(), state.values().filter(|r| **r).count());
            prop_assert_eq!(a.waiting(), state.values().filter(|r| !**r).count());
            prop_assert!(a.running() <= 5 && a.waiting() <= 5);
            prop_assert!(a.waiting() == 0 || a.running() > 0, "an idle engine never keeps anybody waiting");
        }
        for id in state.keys() { a.remove(now, *id); }
        for (id, _) in a.pump(now) { a.remove(now, id); }
        prop_assert!(a.is_idle());
        prop_assert!(a.prefill_tokens().abs() < 1e-6 && a.context_tokens() < 1e-6);
    }
}

fn step() -> StepCoefficients {
    StepCoefficients {
        base_ms: 10.0,
        per_request_ms: 0.1,
        per_context_token_ms: 1e-4,
        per_prefill_token_ms: 0.1,
        api_overhead_ms: 0.0,
        kv_tokens: 0.0,
        max_running: 8,
        max_batched_tokens: 8192,
    }
}

/// Runs a queue empty, one at a time; returns the order of admission.
fn drain(a: &mut Admission, mut now: f64, each_ms: f64) -> Vec<u64> {
    let mut order = Vec::new();
    let mut running: Vec<u64> = a.running.keys().copied().collect();
    while a.waiting() > 0 {
        now += each_ms;
        for id in running.drain(..) {
            a.remove(now, id);
        }
        for (id, verdict) in a.pump(now) {
            if verdict.is_ok() {
                running.push(id);
                order.push(id);
            }
        }
    }
    order
}

#[test]
fn what_cannot_make_it_lets_others_go_first_but_is_served() {
    let mut a = Admission::new(limits(1, 10));
    a.offer(0.0, ask(1, 0, 0.0));
    // The second is lost at once, by its own objective; the others can make it.
    for (id, start_by) in [(2, -1.0), (3, 900.0), (4, 800.0)] {
        assert_eq!(a.offer(0.0, ask(id, 0, start_by)).0, Offer::Queued);
    }
    assert_eq!(drain(&mut a, 0.0, 10.0), [4, 3, 2]);
}

#[test]
fn a_full_queue_gives_up_what_is_lost_anyway_for_one_that_can_make_it() {
    let mut a = Admission::new(limits(1, 2));
    a.offer(0.0, ask(1, 0, 0.0));
    a.offer(0.0, ask(2, 0, -50.0));
    a.offer(0.0, Ask { prompt_tokens: 900.0, ..ask(3, 0, -50.0) });
    a.pump(1.0);
    let (offer, displaced) = a.offer(2.0, ask(4, 0, -50.0));
    assert!(matches!(offer, Offer::Refused(Refusal { reason: RefusalReason::QueueFull, .. })), "{offer:?}");
    assert_eq!(displaced, None);
    let (offer, displaced) = a.offer(2.0, ask(5, 0, 500.0));
    assert_eq!(offer, Offer::Queued);
    assert!(
        matches!(displaced, Some((3, Err(Refusal { reason: RefusalReason::Displaced, .. })))),
        "{displaced:?}"
    );
}

#[test]
fn a_flood_of_requests_on_time_leaves_the_late_their_share() {
    let mut a = Admission::new(limits(1, 50));
    a.offer(0.0, ask(1, 0, 0.0));
    a.offer(0.0, ask(2, 0, -1.0));
    let (mut now, mut running, mut served_after) = (0.0, 1, None);
    for i in 0..2_000u64 {
        now += 20.0;
        // More than can be served, all of them on time.
        for j in 0..2 {
            a.offer(now, ask(10 + 2 * i + j, 0, now + 200.0));
        }
        a.remove(now, running);
        for (id, verdict) in a.pump(now) {
            if verdict.is_ok() {
                running = id;
                if id == 2 {
                    served_after = Some(now);
                }
            }
        }
    }
    let served = served_after.expect("it was served");
    assert!((PATIENCE_MS..PATIENCE_MS + 1_000.0).contains(&served), "{served}");
}

#[test]
fn tenants_share_by_weight_whoever_floods() {
    let mut a = Admission::new(limits(1, 1_000));
    a.offer(0.0, ask(1, 0, 0.0));
    let of = |tenant| LengthKey { tenant, class: 0 };
    // One tenant has everything urgent and sends nine times as much; the other has twice the weight.
    for id in 0..900u64 {
        let flood = id % 10 != 0;
        let whose = of(if flood { 1 } else { 2 });
        let weight = if flood { 1.0 } else { 2.0 };
        let big =
            Ask { prompt_tokens: 4_000.0, whose, weight, ..ask(100 + id, 0, if flood { 1e6 } else { 2e6 }) };
        assert_eq!(a.offer(0.0, big).0, Offer::Queued);
    }
    let mut now = 0.0;
    let mut running = 1;
    for _ in 0..120 {
        now += 10.0;
        a.remove(now, running);
        for (id, verdict) in a.pump(now) {
            assert!(verdict.is_ok());
            running = id;
        }
        // Once both were let in, neither is further behind than the window and one request.
        let (one, two) = (a.served(1), a.served(2));
        assert!((one - two).abs() <= fair::WINDOW_TOKENS + 4_100.0, "{one} {two}");
    }
    assert!(a.served(2) > 100_000.0, "served twice as much by weight: {}", a.served(2));
}

#[test]
fn streams_that_have_nothing_to_spare_are_not_made_to_wait_for_a_prompt() {
    let mut a = Admission::new(Limits { step: step(), ..limits(8, 10) });
    let stream = Ask { tpot_ms: Some(20.0), expected_output: 100.0, ..ask(1, 0, 0.0) };
    assert_eq!(a.offer(0.0, stream).0, Offer::Admitted);
    a.produced(20.0, 1, 1.0);
    // 10 ms a step of 20: half a second of slack over the 50 tokens it is sure to have; a prompt of 1,000 tokens takes 100 ms.
    let long = Ask { prompt_tokens: 8_000.0, ..ask(2, 0, 60_000.0) };
    assert_eq!(a.offer(21.0, long).0, Offer::Queued, "800 ms are too many");
    assert_eq!(a.offer(21.0, Ask { prompt_tokens: 1_000.0, ..ask(3, 0, 50_000.0) }).0, Offer::Admitted);
    assert_eq!(a.pump(21.0), []);
    // A higher tier does not ask the streams of a lower one.
    assert_eq!(a.offer(22.0, Ask { prompt_tokens: 4_000.0, ..ask(4, 1, 60_000.0) }).0, Offer::Admitted);
    // Once the stream is over, the way is free.
    a.produced(30.0, 3, 1.0);
    a.produced(30.0, 4, 1.0);
    a.remove(30.0, 1);
    assert_eq!(a.pump(30.0), [(2, Ok(()))]);
}

#[test]
fn what_is_late_is_not_served_singly_because_the_engine_is_too_slow_for_its_objective() {
    let mut a = Admission::new(Limits { step: step(), ..limits(8, 100) });
    // A step takes 10 ms at least; 5 were asked for.
    for id in 0..40 {
        a.offer(0.0, Ask { tpot_ms: Some(5.0), ..ask(id, 0, -1.0) });
    }
    let mut now = 0.0;
    for _ in 0..40 {
        now += 20.0;
        let running: Vec<u64> = a.running.keys().copied().collect();
        for id in running {
            a.produced(now, id, 1.0);
        }
        a.pump(now);
    }
    assert_eq!(a.running(), 8, "the batch fills all the same");
}

#[test]
fn room_is_kept_for_what_answers_turn_out_to_be() {
    let mut a = Admission::new(Limits { kv_tokens: 1_000.0, ..limits(0, 10) });
    for id in 0..60u64 {
        a.offer(0.0, ask(id, 0, 0.0));
        a.produced(1.0, id, 400.0);
        a.finished(id, None);
        a.remove(2.0, id);
    }
    a.offer(10.0, ask(100, 0, 10.0));
    a.produced(11.0, 100, 51.0);
    // Longer than expected: such answers get to 400, and there is no room for two.
    assert_eq!(a.offer(12.0, Ask { prompt_tokens: 600.0, ..ask(101, 0, 20.0) }).0, Offer::Queued);
    a.remove(13.0, 100);
    assert_eq!(a.pump(13.0), [(101, Ok(()))]);
}

#[test]
fn a_deadline_is_refused_as_soon_as_the_queue_ahead_makes_it_impossible() {
    let mut a = Admission::new(Limits { step: step(), ..limits(1, 100) });
    a.offer(0.0, ask(1, 0, 0.0));
    for id in 2..12 {
        // A tenth of a second of prefill each.
        assert_eq!(a.offer(0.0, Ask { prompt_tokens: 1_000.0, ..ask(id, 0, 1_000.0) }).0, Offer::Queued);
    }
    let soon = Ask { deadline_ms: Some(500.0), ..ask(20, 0, 2_000.0) };
    // It would go first: its deadline is the nearest.
    assert_eq!(a.offer(0.0, soon).0, Offer::Queued);
    let below = Ask { priority: -1, ..soon };
    assert!(matches!(a.offer(0.0, below).0, Offer::Refused(_)));
    let Offer::Refused(refusal) = a.offer(0.0, Ask { deadline_ms: Some(50.0), ..ask(21, 0, 0.0) }).0 else {
        panic!("it takes 100 ms by itself")
    };
    assert_eq!(refusal.reason, RefusalReason::Deadline);
    assert!((1_000.0..=60_000.0).contains(&refusal.retry_after_ms));
}

proptest! {
    /// Whatever comes, everything that was queued gets a verdict, in order of tier at equal times, and books balance.
    #[test]
    fn nothing_starves_and_tiers_hold(
        asks in prop::collection::vec((0u64..4, -1i32..3, 1.0..3_000.0f64, prop::option::of(-500.0..5_000.0f64), any::<bool>()), 1..60),
    ) {
        let mut a = Admission::new(Limits { step: step(), kv_tokens: 20_000.0, backlog_tokens: 8_192.0, ..limits(4, 100) });
        let mut waiting: HashMap<u64, i32> = HashMap::new();
        let mut running: Vec<u64> = Vec::new();
        for (i, (tenant, priority, prompt, start_by, tpot)) in asks.into_iter().enumerate() {
            let id = i as u64;
            let one = Ask {
                whose: LengthKey { tenant, class: 0 },
                start_by_ms: start_by,
                tpot_ms: tpot.then_some(15.0),
                prompt_tokens: prompt,
                ..ask(id, priority, 0.0)
            };
            let (offer, displaced) = a.offer(0.0, one);
            match offer {
                Offer::Admitted => running.push(id),
                Offer::Queued => { waiting.insert(id, priority); }
                Offer::Refused(_) => {}
            }
            prop_assert!(displaced.is_none(), "the queue is not full");
        }
        let mut now = 0.0;
        while !waiting.is_empty() {
            now += 25.0;
            prop_assert!(now < 60_000.0, "{} starve", waiting.len());
            let top = waiting.values().copied().max();
            for (n, (id, verdict)) in a.pump(now).into_iter().enumerate() {
                let priority = waiting.remove(&id);
                prop_assert!(priority.is_some() && verdict.is_ok());
                prop_assert!(n > 0 || priority == top, "the highest tier goes first");
                running.push(id);
            }
            prop_assert!(a.running() <= 4 && a.running() == running.len());
            for id in &running {
                a.produced(now, *id, 10.0);
            }
            if !running.is_empty() {
                let id = running.remove(0);
                a.finished(id, None);
                a.remove(now, id);
            }
        }
        for id in running { a.remove(now, id); }
        prop_assert!(a.is_idle() && a.prefill_tokens().abs() < 1e-6 && a.context_tokens() < 1e-6);
        prop_assert!(a.committed_tokens.abs() < 1e-6);
    }
}
