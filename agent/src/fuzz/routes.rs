//! Route tables: from disk, from the scheduler, and what is chosen by them.

use std::collections::BTreeSet;

use http::HeaderMap;
use plimsoll_fleet::{NodeName, RouteTable};
use plimsoll_proto::convert::{apply_route_delta, route_delta, route_table};
use plimsoll_proto::v1;
use prost::Message;

use super::{Dice, fuzz};
use crate::body::{Api, parse};
use crate::config::AgentConfig;
use crate::persist;
use crate::proxy::account::Sizes;
use crate::proxy::handler::Proxy;
use crate::proxy::routing::question;

const WORDS: [&str; 26] = [
    "\"version\":",
    "\"plan\":",
    "\"pools\":[",
    "\"endpoints\":[]",
    "\"role\":\"Prefill\"",
    "\"role\":\"Decode\"",
    "\"role\":\"Mixed\"",
    "\"weights\":[[\"default\",1.0]]",
    "\"weights\":[[\"default\",0.0]]",
    "\"draining\":true",
    "\"hand_over\":null",
    "\"agent_address\":null",
    "\"engine_address\":\"[::1]:80\"",
    "\"engine_address\":\"\"",
    "\"base_ms\":",
    "\"per_prefill_token_ms\":",
    "\"kv_tokens\":",
    "\"max_running\":0",
    "\"max_batched_tokens\":0",
    "\"protocol\":\"sglang\"",
    "\"bootstrap_port\":65535",
    "\"wake_wait_ms\":",
    "-1e308",
    "1e308",
    "null",
    "0",
];

fn agent() -> Proxy {
    let mut config = AgentConfig::new("fuzz");
    config.node = NodeName::new("n1").ok();
    Proxy::new_for_tests(config)
}

/// Installs a table and chooses by each of its pools.
fn used(table: &RouteTable, dice: &mut Dice) {
    let proxy = agent();
    proxy.shared.install(table.clone(), "epoch".into());
    let drained = table.pools.iter().flat_map(|p| &p.endpoints).filter(|_| dice.one_in(5));
    proxy.shared.set_drains(drained.map(|e| e.replica.clone()).collect());
    proxy.shared.install(table.clone(), "epoch".into());
    let current = proxy.shared.table.load_full();
    let parsed =
        parse(Api::Chat, br#"{"model":"m","messages":[{"content":"what is a load line?"}]}"#).unwrap();
    for pool in current.by_name.values() {
        let endpoints = &pool.view.route.endpoints;
        for (prompt_tokens, expected_output) in [(1.0, 1.0), (1e5, 300.0)] {
            let sizes = Sizes { begun_ms: 0.0, prompt_tokens, expected_output };
            let choice = proxy.choose(pool, &question(&parsed, Some(500.0), "default", sizes, pool));
            // A decode replica may be tried with a partner and then alone.
            let order: BTreeSet<_> =
                choice.order.iter().map(|r| (r.endpoint, r.prefill.map(|p| p.endpoint))).collect();
            assert_eq!(order.len(), choice.order.len(), "a replica is tried twice");
            assert!(order.iter().all(|(i, _)| *i < endpoints.len() && !endpoints[*i].draining));
            for ranked in &choice.order {
                assert!(
                    ranked
                        .prefill
                        .is_none_or(|p| p.endpoint < endpoints.len() && p.endpoint != ranked.endpoint)
                );
            }
        }
        // What a client is told where nobody is ready.
        let _ = proxy.open(&HeaderMap::new(), Api::Chat, &mut parsed.clone(), pool, None);
    }
}

/// The scheduler's message, whole and damaged.
fn sent(table: &RouteTable, dice: &mut Dice) {
    let wire = route_table(table, "epoch");
    let mut bytes = wire.encode_to_vec();
    if let Ok(read) = RouteTable::try_from(wire) {
        assert_eq!(&read, table, "what arrives is what was sent");
    }
    for _ in 0..dice.below(4).min(bytes.len()) {
        let at = dice.below(bytes.len());
        bytes[at] = dice.next() as u8;
    }
    if let Ok(Ok(damaged)) = v1::RouteTable::decode(&*bytes).map(RouteTable::try_from) {
        used(&damaged, dice);
        let delta = route_delta(table, &damaged);
        if let Ok(Some(applied)) = apply_route_delta(table, delta) {
            assert_eq!(applied.version, damaged.version);
        }
    }
}

fn check(text: &[u8], dice: &mut Dice) {
    if dice.one_in(200) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.json"), text).unwrap();
        if let Err(error) = persist::load(folder.path()) {
            assert!(error.to_string().contains("routes.json"));
        }
    }
    let Ok(table) = serde_json::from_slice::<RouteTable>(text) else { return };
    used(&table, dice);
    sent(&table, dice);
}

#[test]
fn route_tables() {
    fuzz("routes", &WORDS, check);
}
