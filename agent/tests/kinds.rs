//! The truth about engines of each kind: life is progress, and what is not said is not zero.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use plimsoll_agent::AgentHandle;
use plimsoll_fleet::EngineKind;
use rstest::rstest;
use support::*;

/// A node with one engine of a kind, which is stalled after two seconds without progress.
async fn node(kind: EngineKind, engine: &Engine) -> AgentHandle {
    let node = agent("n1", Some("n1"), |c| c.limits.stall_after = Duration::from_secs(2)).await;
    let mut e = endpoint("r", "n1", engine.addr, Some(node.addr()));
    e.engine = kind;
    node.set_routes(table(1, vec![e]));
    node
}

fn page(kind: EngineKind, running: u32, tokens: u32) -> String {
    match kind {
        EngineKind::Sglang => format!(
            "sglang:num_running_reqs{{model_name=\"m\"}} {running}.0\nsglang:num_queue_reqs{{model_name=\"m\"}} 2.0\n\
             sglang:num_decode_transfer_queue_reqs{{model_name=\"m\"}} 1.0\nsglang:token_usage 0.5\n\
             sglang:generation_tokens_total{{model_name=\"m\"}} {tokens}\n"
        ),
        EngineKind::Llamacpp => format!(
            "llamacpp:requests_processing {running}\nllamacpp:requests_deferred 3\nllamacpp:kv_cache_usage_ratio 0.5\n\
             llamacpp:tokens_predicted_total {tokens}\n"
        ),
        _ => format!(
            "vllm:num_requests_running{{engine=\"0\"}} {running}.0\nvllm:num_requests_waiting{{engine=\"0\"}} 3.0\n\
             vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\nvllm:generation_tokens_total{{engine=\"0\"}} {tokens}.0\n"
        ),
    }
}

#[rstest]
#[case(EngineKind::Vllm)]
#[case(EngineKind::Simulated)]
#[case(EngineKind::Sglang)]
#[case(EngineKind::Llamacpp)]
#[case(EngineKind::External)]
#[tokio::test]
async fn an_engine_that_answers_its_health_check_and_moves_nothing_is_dead(#[case] kind: EngineKind) {
    let engine = Engine::start().await;
    *engine.state.metrics.lock() = Some(page(kind, 1, 100));
    let node = node(kind, &engine).await;
    let report = || node.engines().remove(0);
    until("its figures are read", || report().running.is_some()).await;
    let seen = report();
    assert_eq!((seen.running, seen.waiting, seen.kv_usage), (Some(1.0), Some(3.0), Some(0.5)));
    assert!(seen.healthy && !seen.stalled);
    // It moves, and then no more, with a request running.
    let mut tokens = 100;
    for _ in 0..30 {
        tokens += 7;
        *engine.state.metrics.lock() = Some(page(kind, 1, tokens));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!report().stalled, "it works");
    }
    until("it is found dead", || report().stalled).await;
    assert!(report().healthy, "by its own word it is well");
    // A request would have nowhere to go.
    assert_eq!(send(chat(node.addr(), false)).await.status, 503);
    *engine.state.metrics.lock() = Some(page(kind, 1, tokens + 1));
    until("it is back with the next token", || !report().stalled).await;
    // Without work there is nothing to move.
    *engine.state.metrics.lock() = Some(page(kind, 0, tokens + 1));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!report().stalled);
}

#[rstest]
#[case(EngineKind::Vllm)]
#[case(EngineKind::Sglang)]
#[case(EngineKind::Llamacpp)]
#[case(EngineKind::External)]
#[tokio::test]
async fn what_an_engine_does_not_say_is_unknown(#[case] kind: EngineKind) {
    let engine = Engine::start().await;
    // Its metrics are off, then broken, then another engine's.
    for page in [None, Some("# nothing\n".to_owned()), Some("other:num_requests_running 0\n".to_owned())] {
        *engine.state.metrics.lock() = page;
        let node = node(kind, &engine).await;
        until("it is looked at", || node.engines()[0].healthy).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let seen = node.engines().remove(0);
        assert_eq!((seen.running, seen.waiting, seen.kv_usage), (None, None, None));
        assert!(!seen.stalled);
        assert_eq!(send(chat(node.addr(), false)).await.status, 200, "it serves all the same");
    }
    // Known figures are forgotten with the page, not kept and not zero.
    let pages = node(kind, &engine).await;
    *engine.state.metrics.lock() = Some(page(kind, 0, 5));
    until("its figures are read", || pages.engines()[0].running == Some(0.0)).await;
    *engine.state.metrics.lock() = None;
    until("they are forgotten", || pages.engines()[0].running.is_none()).await;
}

#[tokio::test]
async fn a_server_without_a_health_check_is_well_if_it_lists_its_models() {
    for (kind, well) in [(EngineKind::External, true), (EngineKind::Vllm, false)] {
        let engine = Engine::start().await;
        engine.state.no_health.store(true, SeqCst);
        let node = node(kind, &engine).await;
        until("it is judged", || node.engines()[0].healthy == well).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(node.engines()[0].healthy, well, "{kind:?}");
    }
}
