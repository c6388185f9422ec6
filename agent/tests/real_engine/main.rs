//! The agent before a real engine: vLLM on CPU with tiny random weights, in `make test-engine` alone.
//!
//! Two replicas, each with the agent of its node, behind a gateway; then one that embeds; then a pair that hands caches over
//! by NIXL. What the engine says of itself is read past the agent and compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod answers;
mod broken;
mod engine;
mod pair;
mod world;

use std::io::Write;

use world::World;

/// Says something past the capture of output, which is shown for failures alone.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_engine_behind_the_agent() {
    let home = match engine::installed() {
        Ok(home) => home,
        Err(why) => return say(&format!("not run: {why}")),
    };
    // For whoever works on a step: only those whose names hold this.
    let only = std::env::var("PLIMSOLL_ENGINE_STEPS").unwrap_or_default();
    let mut faults: Vec<String> = Vec::new();
    macro_rules! step {
        ($world:expr, $($module:ident :: $step:ident),+ $(,)?) => {$(
            let name = concat!(stringify!($module), "::", stringify!($step));
            if name.contains(&only) {
                // On a task of its own, so that the next step follows whatever comes of it.
                let mut world = $world;
                let (back, ended) = tokio::sync::oneshot::channel();
                let done = tokio::spawn(async move {
                    let result = futures_catch(std::panic::AssertUnwindSafe($module::$step(&mut world))).await;
                    back.send(world).ok();
                    result
                });
                let result = done.await.unwrap();
                $world = ended.await.unwrap();
                match result {
                    Ok(()) => say(&format!("✓ {name}")),
                    Err(what) => {
                        say(&format!("✗ {name}: {what}"));
                        faults.push(name.to_owned());
                    }
                }
            }
        )+};
    }
    if ["answers", "adapters", "broken"].iter().any(|m| m.contains(&*only) || only.starts_with(m)) {
        let mut world = World::replicas(&home).await;
        step!(
            world,
            answers::whole_and_streamed,
            answers::what_was_cached,
            answers::errors,
            answers::models_and_tokens,
            answers::structured,
            answers::responses_api,
            answers::openai_client,
            answers::metrics,
            adapters::at_run_time,
            adapters::from_the_nodes_caches,
            broken::cancelled,
            broken::frozen,
            broken::killed_in_the_middle,
            broken::killed_before_the_answer,
        );
        drop(world);
    }
    if "answers::embeddings".contains(&*only) {
        let mut world = World::embeds(&home).await;
        step!(world, answers::embeddings);
        drop(world);
    }
    if "pair".contains(&*only) || only.starts_with("pair") {
        let mut world = World::pair(&home).await;
        step!(world, pair::handed_over, pair::cancelled, pair::without_its_prefill_half);
        drop(world);
    }
    assert!(faults.is_empty(), "{faults:?}");
}

/// A step's end, or what it panicked with.
async fn futures_catch<F: Future<Output = ()>>(step: std::panic::AssertUnwindSafe<F>) -> Result<(), String> {
    let mut step = Box::pin(step.0);
    std::future::poll_fn(move |cx| {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(what) => {
                let text = what.downcast_ref::<String>().cloned();
                let text = text.or_else(|| what.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                std::task::Poll::Ready(Err(text.unwrap_or_else(|| "it panicked".into())))
            }
        }
    })
    .await
}
