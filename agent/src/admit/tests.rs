use super::*;
use proptest::prelude::*;

fn limits(max_running: u32, max_queue: usize) -> Limits {
    Limits { kv_tokens: 0.0, max_running, backlog_requests: 0, backlog_tokens: 0.0, max_queue }
}

fn ask(id: u64, priority: i32, start_by_ms: f64) -> Ask {
    Ask {
        id,
        priority,
        prompt_tokens: 100.0,
        expected_output: 50.0,
        prefill_ms: 10.0,
        service_ms: 100.0,
        start_by_ms: Some(start_by_ms),
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
    assert!(matches!(
        a.offer(0.0, late).0,
        Offer::Refused(Refusal { reason: RefusalReason::Deadline, .. })
    ));
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
        b.offer(0.0, ask(id, 0, 0.0));
    }
    assert_eq!((b.running(), b.waiting()), (2, 1));
    b.produced(0, 1.0);
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
        let l = Limits { kv_tokens: 2000.0, max_running: 4, backlog_requests: 1, backlog_tokens: 600.0, max_queue: 5 };
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
                (2, Some(id)) => a.produced(id, 3.0),
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
