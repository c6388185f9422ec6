//! Engines with room for the LoRA adapters of their pool: what they are started with, and which are replaced for want of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::api::core::v1::Pod;
use plimsoll_crds::{LoraAdapter, LoraAdapterSpec};
use plimsoll_fleet::{AdapterRoom, ReplicaStatus};
use plimsoll_operator::fault::known_conditions;
use plimsoll_operator::snapshot;
use plimsoll_operator::world::World;
use serde_json::Value;

fn adapter(name: &str, rank: i32) -> LoraAdapter {
    let source = format!("hf://acme/{name}");
    let spec = LoraAdapterSpec { base_pool: "chat".into(), source, rank, ..LoraAdapterSpec::default() };
    let mut adapter = LoraAdapter::new(name, spec);
    adapter.metadata.namespace = Some("default".to_owned());
    adapter
}

fn with_adapters(ranks: &[i32]) -> World {
    let mut world = world(vec![chat()]);
    world.adapters = ranks.iter().enumerate().map(|(i, rank)| adapter(&format!("a{i}"), *rank)).collect();
    world
}

/// The pod of one replica, made while the pool had adapters of these ranks.
fn made_for(ranks: &[i32]) -> Arc<Pod> {
    let plan = plan(4, &chat(), vec![assignment("chat-1", "gpu-1")]);
    started(&pods(&decide(&with_adapters(ranks), Some(&plan), &[], at(0)))[0], true)
}

/// How that replica looks once the pool has adapters of those ranks.
fn seen(pod: Arc<Pod>, ranks: &[i32]) -> ReplicaStatus {
    let mut world = with_adapters(ranks);
    world.pods = vec![pod];
    let (replicas, _) = snapshot::replicas(&world);
    snapshot::snapshot(&world, &validated(&world), &replicas, &known_conditions()).replicas.remove(0)
}

fn outdated(before: &[i32], after: &[i32]) -> bool {
    seen(made_for(before), after).outdated
}

fn argument(pod: &Pod, flag: &str) -> Option<String> {
    let args = pod.spec.as_ref()?.containers[0].args.as_ref()?;
    args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1).cloned())
}

#[test]
fn engines_have_as_much_room_as_their_pool_wants_and_say_so() {
    assert_eq!(argument(&made_for(&[]), "--max-loras"), None);
    let pod = made_for(&[8, 20, 16]);
    assert_eq!(argument(&pod, "--max-lora-rank").as_deref(), Some("32"));
    assert_eq!(argument(&pod, "--max-loras").as_deref(), Some("4"));
    assert_eq!(seen(pod, &[8]).adapter_room, Some(AdapterRoom { slots: 4, max_rank: 32 }));
    assert_eq!(seen(made_for(&[]), &[]).adapter_room, Some(AdapterRoom::default()));
}

#[test]
fn engines_without_the_room_are_replaced_and_those_with_more_are_not() {
    assert!(outdated(&[], &[8]), "the first adapter");
    assert!(outdated(&[16], &[16, 64]), "a larger rank");
    assert!(outdated(&[16, 16], &[16, 16, 16]), "more than there are slots");
    assert!(!outdated(&[16, 16, 16], &[16, 16, 16, 16]), "slots come in powers of two");
    assert!(!outdated(&[16; 9], &[16; 30]), "no engine gets more than eight");
    assert!(!outdated(&[64, 8], &[8]), "one went");
    assert!(!outdated(&[8], &[]), "the last one went");
}

#[test]
fn nothing_is_replaced_that_does_not_say_what_room_it_has() {
    // Made by a version of the operator that did not write it down.
    let mut pod = serde_json::to_value(&*made_for(&[])).unwrap();
    let record = &mut pod["metadata"]["annotations"]["plimsoll.dev/replica"];
    let mut said: Value = serde_json::from_str(record.as_str().unwrap()).unwrap();
    assert!(said.as_object_mut().unwrap().remove("adapter_room").is_some());
    *record = said.to_string().into();
    let status = seen(Arc::new(serde_json::from_value(pod).unwrap()), &[8]);
    assert_eq!((status.adapter_room, status.outdated), (None, false));
}
