//! Against a real etcd; where there is none, each test says so and passes.

use super::*;
use crate::store::testing::{Etcd, exercise};

fn election(etcd: &Etcd, config: &EtcdConfig, who: &str) -> Election {
    let _in = etcd.runtime().enter();
    Election::new(config, Leader { identity: who.to_owned(), address: format!("{who}:9090") }).unwrap()
}

fn seat(etcd: &Etcd, config: &EtcdConfig, who: &str) -> Seat {
    let election = election(etcd, config, who);
    let campaign = async { tokio::time::timeout(Duration::from_secs(20), election.campaign(|_| {})).await };
    etcd.runtime().block_on(campaign).expect("nobody else leads")
}

/// A seat that is renewed for as long as etcd runs.
fn held(etcd: &Etcd, config: &EtcdConfig, who: &str) -> Seat {
    let seat = seat(etcd, config, who);
    let (election, renewed) = (election(etcd, config, who), seat.clone());
    etcd.runtime().spawn(async move { election.hold(&renewed).await });
    seat
}

fn open(etcd: &Etcd, config: &EtcdConfig, seat: &Seat) -> EtcdStore {
    EtcdStore::open(&election(etcd, config, "reader"), seat, etcd.runtime().clone()).unwrap()
}

/// As many keys as etcd has under the prefix, and their bytes.
fn weigh(store: &EtcdStore) -> (usize, usize) {
    let all = store.range(b"/".to_vec(), false).unwrap();
    (all.len(), all.iter().map(|kv| kv.value.len()).sum())
}

#[test]
fn etcd_stores_and_swaps_and_lasts() {
    let Some(etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let first = held(&etcd, &config, "a");
    let store = open(&etcd, &config, &first);
    exercise(&store);
    // Another prefix is another store.
    let other = EtcdConfig { prefix: "/other/".into(), ..config.clone() };
    let elsewhere = held(&etcd, &other, "a");
    exercise(&open(&etcd, &other, &elsewhere));
    drop(store);
    let store = open(&etcd, &config, &first);
    assert_eq!(store.get("c").unwrap(), Some(b"three".to_vec()));
}

#[test]
fn values_and_transactions_beyond_etcds_limits_are_stored_whole_and_leave_nothing_behind() {
    let Some(etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let mine = held(&etcd, &config, "a");
    let store = open(&etcd, &config, &mine);
    let large = |n: u8| (0..3_000_000_u32).map(|i| (i % 251) as u8 ^ n).collect::<Vec<u8>>();
    store.put("plan", large(1)).unwrap();
    assert_eq!(store.get("plan").unwrap(), Some(large(1)));
    let (keys, bytes) = weigh(&store);
    // Replaced, with more keys than etcd takes at once, in one transaction.
    let mut writes = vec![Write::Put("plan".into(), large(2)), Write::Put("old".into(), large(3))];
    writes.extend((0..400).map(|i| Write::Put(format!("records/{i:03}"), vec![7; 9_000])));
    let held = Require { key: "plan".into(), value: Some(large(1)) };
    assert!(store.transact(std::slice::from_ref(&held), &writes).unwrap());
    assert!(
        !store.transact(std::slice::from_ref(&held), &writes).unwrap(),
        "what was required is no longer there"
    );
    assert_eq!(store.get("plan").unwrap(), Some(large(2)));
    let records = store.list("records/").unwrap();
    assert_eq!(records.len(), 400);
    assert_eq!(records[399], ("records/399".to_owned(), vec![7; 9_000]));
    // What a leader left that died at a bad moment is removed by the next.
    store.cut(&large(9)).unwrap();
    store.delete("old").unwrap();
    let all: Vec<Write> = (0..400).map(|i| Write::Delete(format!("records/{i:03}"))).collect();
    assert!(store.transact(&[], &all).unwrap());
    let store = open(&etcd, &config, &mine);
    assert_eq!(store.get("plan").unwrap(), Some(large(2)));
    assert_eq!(weigh(&store), (keys, bytes), "as much as when only the plan was there");
}

#[test]
fn a_transaction_that_was_begun_is_finished_by_the_next_leader() {
    let Some(etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let mine = held(&etcd, &config, "a");
    let store = open(&etcd, &config, &mine);
    let big = vec![5; 400_000];
    let writes: Vec<Write> = (0..150)
        .map(|i| Write::Put(format!("k/{i:03}"), vec![1]))
        .chain([Write::Put("big".into(), big.clone())])
        .collect();
    // As far as the journal, and a first piece.
    let prepared = store.prepare(&writes).unwrap();
    let journal = TxnRequest { success: prepared.ops.clone(), ..TxnRequest::default() }.encode_to_vec();
    let head = Head::Chunked(store.cut(&journal).unwrap()).encode();
    store.write(vec![encode::put(store.keys.journal(), head)]).unwrap();
    store.write(encode::pieces(prepared.ops).remove(0)).unwrap();
    assert_eq!(store.list("k/").unwrap().len(), 100);
    drop(store);
    let store = open(&etcd, &config, &mine);
    assert_eq!(store.list("k/").unwrap().len(), 150);
    assert_eq!(store.get("big").unwrap(), Some(big));
    assert!(store.read(store.keys.journal()).unwrap().is_none());
    // Carried out once more, as after an answer that was lost, it harms nothing.
    assert!(store.transact(&[], &writes).unwrap());
    let again = open(&etcd, &config, &mine);
    assert_eq!(again.get("big").unwrap().map(|v| v.len()), Some(400_000));
}

#[test]
fn a_leader_that_was_deposed_writes_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let old = seat(&etcd, &config, "a");
    let before = open(&etcd, &config, &old);
    before.put("plan", b"1".to_vec()).unwrap();
    // Its lease ends while it looks elsewhere; it is not told.
    let new = seat(&etcd, &config, "b");
    assert!(new.term > old.term);
    assert!(!old.holds(), "by its own clock, it was over before another could be elected");
    let after = open(&etcd, &config, &new);
    for refused in [
        before.put("plan", b"2".to_vec()).unwrap_err(),
        before.put("plan", vec![2; 2_000_000]).unwrap_err(),
        before.transact(&[Require { key: "plan".into(), value: Some(b"1".to_vec()) }], &[]).unwrap_err(),
    ] {
        assert!(matches!(refused, StoreError::Deposed { .. }), "{refused}");
    }
    assert_eq!(after.get("plan").unwrap(), Some(b"1".to_vec()));
    after.put("plan", b"3".to_vec()).unwrap();
    assert_eq!(after.get("plan").unwrap(), Some(b"3".to_vec()));
}

#[test]
fn a_leader_keeps_its_seat_while_it_renews_and_gives_it_up_at_once() {
    let Some(etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let (a, b, again) =
        (election(&etcd, &config, "a"), election(&etcd, &config, "b"), election(&etcd, &config, "b"));
    etcd.runtime().block_on(async {
        let mine = a.campaign(|_| {}).await;
        let mut seen = None;
        tokio::select! {
            _ = b.campaign(|s| seen = Some(s)) => panic!("two lead"),
            why = a.hold(&mine) => panic!("lost the seat: {why}"),
            () = tokio::time::sleep(Duration::from_secs(6)) => {}
        }
        assert_eq!(seen, Some(Seen::Leader(Leader { identity: "a".into(), address: "a:9090".into() })));
        assert!(mine.holds());
        a.resign(mine.clone()).await;
        assert!(!mine.holds());
        let theirs =
            tokio::time::timeout(Duration::from_secs(2), b.campaign(|_| {})).await.expect("the seat is free");
        // Started again under the same name, it need not wait for its own lease.
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(2), again.campaign(|_| {})).await.expect("it is its own");
    });
}

#[test]
fn without_etcd_a_leader_steps_down_and_afterwards_leads_again() {
    let Some(mut etcd) = Etcd::start() else { return };
    let config = etcd.config();
    let election = election(&etcd, &config, "a");
    let first = seat(&etcd, &config, "a");
    let store = open(&etcd, &config, &first);
    store.put("plan", b"1".to_vec()).unwrap();
    etcd.kill();
    let error = store.put("plan", b"2".to_vec()).unwrap_err();
    assert!(matches!(error, StoreError::Etcd { .. }), "{error}");
    assert!(error.to_string().contains(&config.endpoints[0]), "{error}");
    let lost = etcd
        .runtime()
        .block_on(async { tokio::time::timeout(Duration::from_secs(8), election.hold(&first)).await });
    assert!(lost.is_ok(), "it would lead for ever");
    assert!(!first.holds());
    etcd.again();
    let second = seat(&etcd, &config, "a");
    let store = open(&etcd, &config, &second);
    assert_eq!(store.get("plan").unwrap(), Some(b"1".to_vec()));
    store.put("plan", b"3".to_vec()).unwrap();
}

#[test]
fn what_cannot_be_etcd_is_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _in = runtime.enter();
    let new = |change: &dyn Fn(&mut EtcdConfig)| {
        let mut config = EtcdConfig::new(vec!["https://127.0.0.1:1".into()]);
        change(&mut config);
        Client::new(&config).unwrap_err().to_string()
    };
    assert!(new(&|c| c.endpoints = vec!["etcd:2379".into()]).contains("use http://HOST:2379"));
    assert!(new(&|c| c.endpoints.clear()).contains("--etcd"));
    assert!(
        new(&|c| c.ca = Some("/does/not/exist".into())).contains("--etcd-ca is not usable: /does/not/exist")
    );
    assert!(new(&|c| c.cert = Some("/does/not/exist".into())).contains("--etcd-key"));
}
