//! Keeps the adapters of this node's engines as the routes place them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_fleet::{AdapterRoute, ReplicaId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::store::{Kept, Store, key};
use super::upkeep::{Failed, Step, Wanted};
use crate::driver::Driver;
use crate::proxy::upstream::Upstream;
use crate::shared::{LocalReplica, Shared};

/// Longest time for one load: weights may have to be fetched.
const LOAD_WITHIN: Duration = Duration::from_secs(300);
/// For everything else.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Most that is read of an answer, bytes.
const LONGEST: usize = 1 << 20;

/// Tends one engine until cancelled, or until it is gone. One step at a time: engines load one adapter at once.
pub(crate) async fn run(shared: Arc<Shared>, upstream: Upstream, id: ReplicaId, stop: CancellationToken) {
    let mut tick = tokio::time::interval(shared.config.limits.probe_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What its engine needs of the node's cache, it needs no longer once this ends.
    let _needs = Needs { shared: &shared, id: &id };
    loop {
        let Some(local) = shared.locals.load().get(&id).cloned() else { return };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
            () = local.engine.adapter_asked.notified() => {}
        }
        let Some(local) = shared.locals.load().get(&id).cloned() else { return };
        if local.pool.route.adapters.is_empty()
            && local.engine.adapters.lock().held().is_none_or(BTreeSet::is_empty)
        {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tend(&shared, &upstream, &local) => {}
        }
    }
}

struct Needs<'a> {
    shared: &'a Shared,
    id: &'a ReplicaId,
}

impl Drop for Needs<'_> {
    fn drop(&mut self) {
        if let Some(store) = &self.shared.store {
            store.keep(self.id, Kept::default());
        }
    }
}

async fn tend(shared: &Arc<Shared>, upstream: &Upstream, local: &LocalReplica) {
    let driver = Driver::of(local.endpoint.engine);
    let address = &local.endpoint.engine_address;
    let Some(paths) = driver.adapter_paths() else { return };
    // Silence says nothing of what it holds.
    let Ok((200..=299, text)) = upstream.get(address, "/v1/models", ASK_WITHIN).await else { return };
    let Some(held) = adapters_of(&text) else { return };
    if local.engine.adapters.lock().found(held) {
        local.engine.adapters_moved.send_modify(|n| *n += 1);
        shared.report_now.notify_one();
    }
    let replica = &local.replica.id;
    let mut wanted = Wanted::default();
    for adapter in &local.pool.route.adapters {
        let to = if adapter.placed.contains(replica) { &mut wanted.placed } else { &mut wanted.others };
        to.insert(&adapter.served_name, &adapter.source);
    }
    let began = shared.clock.now_ms();
    let step = local.engine.adapters.lock().next(&wanted, began);
    if let Some(store) = &shared.store {
        keep(store, local, step.as_ref());
    }
    let Some(step) = step else { return };
    let result = match &step {
        Step::Load { name, source } => {
            let fetched = local.engine.adapters.lock().path(name).map(str::to_owned);
            let path = match (fetched, &shared.store) {
                (Some(path), _) => Ok(path),
                (None, Some(store)) => return fetch(shared, store, local, &step),
                (None, None) => driver.adapter_path(local.endpoint.engine, source),
            };
            match path {
                Ok(path) => {
                    let ask = json!({"lora_name": name, "lora_path": path});
                    post(upstream, address, paths.load, &ask, LOAD_WITHIN).await
                }
                Err(why) => Err(why),
            }
        }
        Step::Unload { name } => {
            post(upstream, address, paths.unload, &json!({"lora_name": name}), ASK_WITHIN).await
        }
    };
    ended(shared, local, &step, result.map_err(|why| Failed { why, lasting: false }), began);
}

/// Takes note of what came of a step, and tells who waits.
fn ended(shared: &Shared, local: &LocalReplica, step: &Step, result: Result<(), Failed>, began_ms: f64) {
    let replica = &local.replica.id;
    match &result {
        Ok(()) => tracing::info!(%replica, ?step, "adapters"),
        Err(Failed { why, .. }) => tracing::warn!(%replica, ?step, %why, "adapters"),
    }
    let now = shared.clock.now_ms();
    local.engine.adapters.lock().done(step, result, now - began_ms, now);
    local.engine.adapters_moved.send_modify(|n| *n += 1);
    // There may be more to do.
    local.engine.adapter_asked.notify_one();
    shared.report_now.notify_one();
}

/// Has the files for a load fetched, while other steps go on.
fn fetch(shared: &Arc<Shared>, store: &Arc<Store>, local: &LocalReplica, step: &Step) {
    let Step::Load { name, source } = step.clone() else { return };
    let adapters = &local.pool.route.adapters;
    let Some(adapter) = adapters.iter().find(|a| a.served_name == name) else { return };
    // Engines are started with room for the largest rank of their pool.
    let limit = adapters.iter().map(|a| a.files.rank).max().unwrap_or(0);
    let files = adapter.files.clone();
    local.engine.adapters.lock().fetching(&name);
    let (shared, store, local, step) = (shared.clone(), store.clone(), local.clone(), step.clone());
    tokio::spawn(async move {
        let began = shared.clock.now_ms();
        match store.obtain(&source, &files, limit).await {
            Ok(found) => {
                local.engine.adapters.lock().fetched(&name, found.path);
                local.engine.adapter_asked.notify_one();
            }
            Err(error) => {
                let failed = Failed { why: error.to_string(), lasting: error.is_lasting() };
                ended(&shared, &local, &step, Err(failed), began);
            }
        }
    });
}

/// Tells the node's cache what an engine needs of it.
fn keep(store: &Store, local: &LocalReplica, step: Option<&Step>) {
    let routes = &local.pool.route.adapters;
    let files = |name: &str| routes.iter().find(|a| a.served_name == name);
    let key_of = |source: &str, adapter: Option<&AdapterRoute>| {
        key(source, &adapter.map(|a| a.files.clone()).unwrap_or_default())
    };
    let adapters = local.engine.adapters.lock();
    let held = adapters.held().into_iter().flatten().filter_map(|name| {
        let adapter = files(name);
        // Of one that another agent had loaded, the routes say where it came from.
        let source = adapters.source(name).or(adapter.map(|a| a.source.as_str()))?;
        Some(key_of(source, adapter))
    });
    let next = match step {
        Some(Step::Load { name, .. }) => Some(name.as_str()),
        _ => None,
    };
    let coming = adapters.coming().chain(next).filter_map(|name| {
        let adapter = files(name)?;
        Some(key_of(&adapter.source, Some(adapter)))
    });
    let needs = Kept { held: held.collect(), coming: coming.collect() };
    store.keep(&local.replica.id, needs);
}

/// The adapters in a list of models: those with a parent.
pub(crate) fn adapters_of(text: &[u8]) -> Option<BTreeSet<String>> {
    let list: Value = serde_json::from_slice(text).ok()?;
    let with_parent = list["data"].as_array()?.iter().filter(|model| model["parent"].is_string());
    Some(with_parent.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
}

async fn post(
    upstream: &Upstream,
    address: &str,
    path: &str,
    ask: &Value,
    within: Duration,
) -> Result<(), String> {
    let whole = upstream.post(address, path, ask, within, LONGEST);
    match tokio::time::timeout(within, whole).await {
        Err(_) => Err(format!("the engine did not answer within {} s", within.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok((status, _))) if status.is_success() => Ok(()),
        Ok(Ok((status, text))) => Err(refusal(status, &text)),
    }
}

/// What an engine says against a step.
fn refusal(status: http::StatusCode, text: &[u8]) -> String {
    let said: Value = serde_json::from_slice(text).unwrap_or_default();
    let message = [&said["error"]["message"], &said["message"], &said["detail"]]
        .into_iter()
        .find_map(|m| m.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(text).trim().to_owned());
    let short: String = message.chars().take(300).collect();
    // vLLM has no such address unless it was started for it.
    let hint = if status == http::StatusCode::NOT_FOUND {
        "; it may have been started without room for adapters (--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True): change \
         spec.engine to have the pool's engines replaced"
    } else {
        ""
    };
    format!("the engine answered {status}: {short}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_the_models_with_a_parent() {
        let list = json!({"data": [
            {"id": "base", "parent": null}, {"id": "law", "parent": "base"}, {"id": "other"}, {"parent": "base"},
        ]});
        assert_eq!(adapters_of(list.to_string().as_bytes()), Some(BTreeSet::from(["law".to_owned()])));
        assert_eq!(adapters_of(b"{}"), None);
        assert_eq!(adapters_of(b"not json"), None);
    }

    #[test]
    fn refusals_are_told_in_the_engines_words() {
        let status = http::StatusCode::BAD_REQUEST;
        let said = |body: &str| refusal(status, body.as_bytes());
        assert_eq!(
            said(r#"{"error": {"message": "rank 64 is greater than max_lora_rank 16"}}"#),
            "the engine answered 400 Bad Request: rank 64 is greater than max_lora_rank 16"
        );
        assert_eq!(said("no"), "the engine answered 400 Bad Request: no");
        let missing = refusal(http::StatusCode::NOT_FOUND, br#"{"detail":"Not Found"}"#);
        assert!(missing.starts_with("the engine answered 404 Not Found: Not Found; it may"), "{missing}");
    }
}
