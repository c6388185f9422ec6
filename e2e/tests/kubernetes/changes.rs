//! What people change: the chart, the number of replicas, the engine.

use std::time::Duration;

use plimsoll_e2e::kubectl::items;
use plimsoll_e2e::{Error, eventually};
use serde_json::{Value, json};

use crate::lane::Lane;
use crate::suite::{Cost, Suite, condition};

/// From the chart before to this one, with a value that changes the pods of every part.
pub async fn upgrade<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let engines = suite.engines().await?;
    let gateways = suite.lane.parts("gateway").await?;
    suite
        .disturbed("helm upgrade from the chart before", Cost::Nothing, async |suite: &Suite<L>| {
            let chart = ["upgrade", "plimsoll", "charts/plimsoll", "-n", "plimsoll"];
            let change = ["-f", "e2e/lanes/values.yaml", "--set", "log.filter=info"];
            suite.lane.helm(&[&chart[..], &change[..]].concat()).await?;
            suite.settled("helm upgrade", 2).await
        })
        .await?;
    let replaced = suite.lane.parts("gateway").await?;
    suite.check(gateways.iter().all(|g| !replaced.contains(g)), || {
        "helm upgrade replaced no gateway".to_owned()
    });
    let after = suite.engines().await?;
    suite.check(engines == after, || format!("helm upgrade: engines were {engines:?}, are {after:?}"));
    tls_throughout(suite).await
}

/// The chart before spoke no TLS: the upgrade from it puts up with plaintext, and the same upgrade again does no more.
async fn tls_throughout<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let (permissive, _) = tls(suite).await?;
    suite.check(permissive, || "the parts were made to refuse those of before the upgrade".to_owned());
    suite
        .disturbed("helm upgrade that refuses plaintext", Cost::Nothing, async |suite: &Suite<L>| {
            let chart = ["upgrade", "plimsoll", "charts/plimsoll", "-n", "plimsoll"];
            let change = ["-f", "e2e/lanes/values.yaml", "--set", "log.filter=info"];
            suite.lane.helm(&[&chart[..], &change[..]].concat()).await?;
            suite.settled("helm upgrade that refuses plaintext", 2).await
        })
        .await?;
    let (permissive, peers_only) = tls(suite).await?;
    suite.check(!permissive && peers_only, || {
        format!("after the second upgrade: permissive {permissive}, agents for peers only {peers_only}")
    });
    Ok(())
}

/// Whether some part puts up with plaintext, and whether agents take requests from peers alone.
async fn tls<L: Lane>(suite: &Suite<L>) -> Result<(bool, bool), Error> {
    let list = suite.json(&["-n", "plimsoll", "get", "deployments,daemonsets"]).await?;
    let containers: Vec<&Value> =
        items(&list).iter().map(|o| &o["spec"]["template"]["spec"]["containers"][0]).collect();
    let has = |list: &Value, wanted: &str| {
        list.as_array().is_some_and(|all| all.iter().any(|one| one == wanted || one["name"] == wanted))
    };
    for container in &containers {
        if !has(&container["env"], "PLIMSOLL_TLS_DIR") {
            return Err(format!("{} speaks no TLS", container["name"]).into());
        }
    }
    Ok((
        containers.iter().any(|c| has(&c["env"], "PLIMSOLL_TLS_PERMISSIVE")),
        containers.iter().any(|c| has(&c["args"], "--peers-only")),
    ))
}

pub async fn scale<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    suite
        .disturbed("kubectl scale to three", Cost::Nothing, async |suite: &Suite<L>| {
            suite.scale(3).await?;
            suite.settled("scaled up to three", 3).await
        })
        .await?;

    // Down under traffic: the engine that goes is marked as draining first, and deleted after its last answer.
    let mut order = (false, false);
    let seen = &mut order;
    suite
        .disturbed("kubectl scale to two", Cost::Nothing, async |suite: &Suite<L>| {
            suite.scale(2).await?;
            for _ in 0..1200 {
                let list = suite.json(&["-n", "models", "get", "pods"]).await?;
                for pod in items(&list) {
                    let metadata = &pod["metadata"];
                    let draining = !metadata["annotations"]["plimsoll.dev/draining"].is_null();
                    let deleted = !metadata["deletionTimestamp"].is_null();
                    seen.0 |= draining && !deleted;
                    seen.1 |= deleted && !draining;
                }
                if items(&list).len() == 2 {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err("the third engine did not go".into())
        })
        .await?;
    suite.check(order.0, || "no engine was seen draining before it went".to_owned());
    suite.check(!order.1, || "an engine was deleted without having drained".to_owned());
    suite.settled("scaled down to two", 2).await?;
    autoscaled(suite).await
}

/// The cluster's own HorizontalPodAutoscaler moves the floor through the scale subresource. It has no metric here: what is
/// below its minimum or above its maximum it changes without one.
async fn autoscaled<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    if !suite.lane.has_own_controllers() {
        return Ok(());
    }
    for (min, max, engines) in [(3, 4, 3), (1, 2, 2)] {
        let what = format!("an autoscaler from {min} to {max}");
        suite
            .disturbed(&what, Cost::Nothing, async |suite: &Suite<L>| {
                suite.apply(&autoscaler(min, max)).await?;
                suite.settled(&what, engines).await
            })
            .await?;
    }
    let read = eventually("the autoscaler reads the pool's replicas", 60, || async {
        let hpa = suite.json(&["-n", "models", "get", "hpa", "small"]).await?;
        let status = &hpa["status"];
        let right = condition(status, "AbleToScale") == "True" && status["currentReplicas"] == 2;
        if right { Ok(()) } else { Err(status.to_string().into()) }
    })
    .await;
    if let Err(error) = read {
        suite.fault(error.to_string());
    }
    suite.run(&["-n", "models", "delete", "hpa", "small"]).await.map(drop)
}

fn autoscaler(min: u32, max: u32) -> String {
    format!(
        "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: small, namespace: models}}
spec:
  scaleTargetRef: {{apiVersion: plimsoll.dev/v1alpha1, kind: ModelPool, name: small}}
  minReplicas: {min}
  maxReplicas: {max}
  metrics:
  - type: External
    external:
      metric: {{name: batch_queue_length}}
      target: {{type: AverageValue, averageValue: \"100\"}}
"
    )
}

async fn set_engine<L: Lane>(suite: &Suite<L>, engine: &Value) -> Result<(), Error> {
    let patch = json!([{"op": "replace", "path": "/spec/engine", "value": engine}]).to_string();
    suite.run(&["-n", "models", "patch", "mp", "small", "--type=json", "-p", &patch]).await.map(drop)
}

/// The engine that the pool is changed to: another image, an argument and a variable more.
fn changed<L: Lane>(suite: &Suite<L>) -> Value {
    json!({
        "kind": "simulated", "image": suite.lane.other_image(), "args": ["--seed=7"],
        "env": [{"name": "CHANGED", "value": "yes"}],
    })
}

/// Image, arguments and environment of the engines, changed under traffic: they are replaced one by one, and drain first.
pub async fn rollout<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let before = suite.engines().await?;
    let engine = changed(suite);
    suite
        .disturbed(
            "the engine's image, arguments and environment changed",
            Cost::Nothing,
            async |suite: &Suite<L>| {
                set_engine(suite, &engine).await?;
                eventually("all engines are new ones", 300, || async {
                    let now = suite.engines().await?;
                    let old = now.iter().filter(|engine| before.contains(engine)).count();
                    if old == 0 && now.len() == 2 { Ok(()) } else { Err(format!("{now:?}").into()) }
                })
                .await?;
                suite.settled("changed", 2).await
            },
        )
        .await?;
    let list = suite.json(&["-n", "models", "get", "pods"]).await?;
    for pod in items(&list) {
        let container = &pod["spec"]["containers"][0];
        let has = |list: &str, wanted: &Value| {
            container[list].as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
        };
        let new = container["image"] == engine["image"]
            && has("args", &engine["args"][0])
            && has("env", &engine["env"][0]);
        suite.check(new, || format!("{} is not as the engine was changed", pod["metadata"]["name"]));
    }
    Ok(())
}

/// A change that no engine starts from stops at the first; what runs serves on, and a change back clears it up.
pub async fn broken_rollout<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let Some(image) = suite.lane.no_image() else {
        suite.step("(engines of this cluster start from any image: no broken rollout)");
        return Ok(());
    };
    let good = changed(suite);
    let mut broken = good.clone();
    broken["image"] = image.into();
    let before = suite.engines().await?;
    let mut kept = 0;
    let serving = &mut kept;
    suite
        .disturbed("an image that is not to be had, and back", Cost::Nothing, async |suite: &Suite<L>| {
            set_engine(suite, &broken).await?;
            eventually("the rollout says that it is stuck", 300, || async {
                let status = suite.status().await?;
                let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
                let stuck =
                    conditions.iter().any(|c| c["type"] == "Progressing" && c["reason"] == "RolloutStuck");
                if stuck { Ok(()) } else { Err(status["conditions"].to_string().into()) }
            })
            .await?;
            *serving = suite.engines().await?.iter().filter(|engine| before.contains(engine)).count();
            set_engine(suite, &good).await?;
            suite.settled("changed back", 2).await
        })
        .await?;
    suite.check(kept == 2, || format!("a broken rollout left {kept} of two engines"));
    Ok(())
}
