#![allow(clippy::unwrap_used)]

use rstest::rstest;

use super::*;

const ANY: [usize; 3] = [0, 1, 2];

fn settings(slots: usize, epochs: Epochs) -> Settings {
    Settings { slots, dimension: 2, ridge: 1.0, width: 0.5, price_per_ms: 0.01, epochs, window: 100 }
}

fn adapters(load_ms: &[f64]) -> Vec<Adapter> {
    load_ms
        .iter()
        .enumerate()
        .map(|(i, &load_ms)| Adapter { name: format!("adapter-{i}"), load_ms })
        .collect()
}

fn fixed(requests: usize) -> Epochs {
    Epochs::Fixed { requests }
}

fn doubling(first: usize, exploration: f64) -> Epochs {
    Epochs::Doubling { first, longest: 1_000, exploration, keep: 1.0 }
}

/// What is ready wins over what is a little better, until that is so by more than its load.
#[test]
fn a_load_has_its_price() {
    let mut polar = Polar::new(settings(2, fixed(1_000)), adapters(&[10.0, 10.0, 10.0])).unwrap();
    let x = [1.0, 0.0];
    assert_eq!(polar.choose(&x, &[1]).unwrap().adapter, 1);
    // Equal but for the load: the one that is ready.
    let choice = polar.choose(&x, &ANY).unwrap();
    assert_eq!((choice.adapter, choice.ready), (1, true));
    // 0.5·√½ = 0.35 against 0.5 − 0.1: what is not known of the others is worth more than a load.
    polar.reward(1, &x, 0.0).unwrap();
    let choice = polar.choose(&x, &ANY).unwrap();
    assert_eq!((choice.adapter, choice.ready), (0, false));
}

#[test]
fn residents_are_those_worth_most_for_the_requests_seen() {
    let mut polar = Polar::new(settings(2, fixed(10)), adapters(&[50.0; 3])).unwrap();
    for (adapter, reward) in [(0, 0.1), (1, 0.2), (2, 2.0)] {
        (0..20).for_each(|_| polar.reward(adapter, &[0.0, 1.0], reward).unwrap());
    }
    let loads: Vec<usize> = (0..11)
        .map(|_| polar.choose(&[0.0, 1.0], &ANY).unwrap())
        .filter(|choice| !choice.ready)
        .map(|choice| choice.adapter)
        .collect();
    assert_eq!(loads, [2]);
    assert_eq!(polar.residents(), &BTreeSet::from([2]));
}

#[test]
fn requests_that_name_an_adapter_count_for_residents_alone() {
    let mut polar = Polar::new(settings(2, fixed(20)), adapters(&[50.0; 3])).unwrap();
    polar.named(0).unwrap();
    (0..19).for_each(|_| drop(polar.named(1).unwrap()));
    let moves = polar.named(2).unwrap().moves;
    // It visited already, so that nothing is loaded for it to stay.
    assert_eq!(moves, Moves { load: vec![], unload: vec![0] });
    assert_eq!(polar.residents(), &BTreeSet::from([1]));
    assert_eq!(polar.expected(1, &[1.0, 1.0]), Some(0.0));
}

/// Every adapter answers ⌈κ·d·√(t/n)⌉ in a row, and is loaded once for it.
#[test]
fn epochs_begin_with_what_is_to_be_learnt() {
    // ⌈0.5·2·√(27/3)⌉ = 3.
    let mut polar = Polar::new(settings(2, doubling(27, 0.5)), adapters(&[50.0; 3])).unwrap();
    let mut served = Vec::new();
    for _ in 0..9 {
        let choice = polar.choose(&[1.0, 0.0], &ANY).unwrap();
        assert!(choice.exploring);
        served.push((choice.adapter, choice.ready));
        polar.reward(choice.adapter, &[1.0, 0.0], choice.adapter as f64).unwrap();
    }
    let of = |adapter| [(adapter, false), (adapter, true), (adapter, true)];
    assert_eq!(served, [of(0), of(1), of(2)].concat());
    assert_eq!(polar.residents(), &BTreeSet::from([2]));
    let choice = polar.choose(&[1.0, 0.0], &ANY).unwrap();
    assert_eq!((choice.adapter, choice.ready, choice.exploring), (2, true, false));
}

/// Of what is asked for all the time enough is known: only the others are tried again.
#[test]
fn what_requests_taught_need_not_be_explored() {
    let mut polar = Polar::new(settings(2, doubling(27, 0.5)), adapters(&[50.0; 3])).unwrap();
    let mut explored = Vec::new();
    for _ in 0..81 {
        let choice = polar.choose(&[1.0, 0.0], &ANY).unwrap();
        polar.reward(choice.adapter, &[1.0, 0.0], choice.adapter as f64).unwrap();
        explored.extend(choice.exploring.then_some(choice.adapter));
    }
    // Three each for the first 27; for all 81 ⌈0.5·2·√(81/3)⌉ = 6 are to be known, and adapter 2 has answered the rest.
    assert_eq!(explored, [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn a_request_explores_what_it_allows() {
    let mut polar = Polar::new(settings(2, doubling(27, 0.5)), adapters(&[50.0; 3])).unwrap();
    let served: Vec<(usize, bool)> = (0..4)
        .map(|_| polar.choose(&[1.0, 0.0], &[2]).unwrap())
        .map(|choice| (choice.adapter, choice.exploring))
        .collect();
    assert_eq!(served, [(2, true), (2, true), (2, true), (2, false)]);
    assert_eq!(polar.choose(&[1.0, 0.0], &ANY).unwrap().adapter, 0);
}

/// Adapter 0 is never asked for: what there is to learn of it does not keep residents from being chosen.
#[test]
fn exploring_ends_in_the_middle_of_an_epoch() {
    let mut polar = Polar::new(settings(2, doubling(28, 0.5)), adapters(&[50.0; 3])).unwrap();
    polar.named(0).unwrap();
    let moved = (1..14).position(|_| polar.named(1).unwrap().moves != Moves::default());
    assert_eq!(moved, Some(12));
    assert_eq!(polar.residents(), &BTreeSet::from([1]));
}

#[test]
fn epochs_double_up_to_the_longest() {
    let lengths: Vec<usize> = [0, 1, 2, 5, 40]
        .map(|n| Epochs::Doubling { first: 10, longest: 100, exploration: 1.0, keep: 1.0 }.length(n))
        .into();
    assert_eq!(lengths, [10, 20, 40, 100, 100]);
    assert_eq!(fixed(0).length(3), 1);
}

#[test]
fn what_is_known_of_an_adapter_stays_with_its_name() {
    let mut polar = Polar::new(settings(3, doubling(27, 0.0)), adapters(&[50.0; 3])).unwrap();
    let x = [1.0, 0.0];
    polar.reward(2, &x, 1.0).unwrap();
    polar.named(2).unwrap();
    let known = polar.expected(2, &x);
    let mut list = adapters(&[50.0; 3]);
    list.remove(0);
    list.push(Adapter { name: "new".to_owned(), load_ms: 5.0 });
    polar.set_adapters(list).unwrap();
    assert_eq!(polar.expected(1, &x), known);
    assert!(polar.is_ready(1));
    assert_eq!(polar.expected(2, &x), Some(0.0));
    assert!(!polar.is_ready(2));
}

#[rstest]
#[case(&[1.0], "context: 1 figures; give 2 finite figures")]
#[case(&[1.0, f64::NAN], "context: figure 1 is NaN; give 2 finite figures")]
fn contexts_that_are_none_are_refused(#[case] context: &[f64], #[case] said: &str) {
    let mut polar = Polar::new(settings(2, fixed(10)), adapters(&[1.0; 3])).unwrap();
    assert_eq!(polar.choose(context, &ANY).unwrap_err().to_string(), said);
    assert_eq!(polar.reward(0, context, 1.0).unwrap_err().to_string(), said);
}

#[test]
fn what_cannot_be_is_refused() {
    let mut polar = Polar::new(settings(2, fixed(10)), adapters(&[1.0; 3])).unwrap();
    assert_eq!(polar.choose(&[1.0, 1.0], &[]), Err(Rejected::Nobody));
    assert_eq!(polar.choose(&[1.0, 1.0], &[3]), Err(Rejected::Unknown { index: 3, count: 3 }));
    assert_eq!(polar.named(9), Err(Rejected::Unknown { index: 9, count: 3 }));
    assert!(polar.reward(0, &[1.0, 1.0], f64::INFINITY).is_err());
    assert!(Polar::new(settings(0, fixed(10)), adapters(&[1.0])).is_err());
    assert!(Polar::new(settings(2, fixed(10)), adapters(&[-1.0])).is_err());
    let wide = Settings { width: f64::NAN, ..settings(2, fixed(10)) };
    assert_eq!(
        Polar::new(wide, adapters(&[1.0])).unwrap_err().to_string(),
        "settings.width: NaN is not zero or more"
    );
}

#[test]
fn where_others_fill_the_slots_answers_come_from_what_is_there_and_wishes_from_what_should_be() {
    let mut polar = Polar::new(settings(2, fixed(1_000)), adapters(&[10.0; 3])).unwrap();
    let x = [1.0, 0.0];
    for (adapter, reward) in [(0, 0.2), (1, 0.4), (2, 0.9)] {
        (0..200).for_each(|_| polar.reward(adapter, &x, reward).unwrap());
    }
    let mut choose = |ready: &[usize], coming: &[usize]| {
        let choice = polar.choose_placed(&x, &ANY, |i| ready.contains(&i), |i| coming.contains(&i)).unwrap();
        (choice.adapter, choice.wish)
    };
    assert_eq!(choose(&[0, 1], &[0, 1]), (1, 2));
    assert_eq!(choose(&[], &[0]), (0, 2));
    assert_eq!(choose(&[], &[]), (2, 2));
    assert_eq!(choose(&ANY, &ANY), (2, 2));
    assert_eq!(polar.choose_placed(&x, &[], |_| true, |_| true), Err(Rejected::Nobody));
    assert!(polar.choose_placed(&x, &[3], |_| true, |_| true).is_err());
    polar.forget().unwrap();
    assert_eq!(polar.expected(2, &x), Some(0.0));
}
