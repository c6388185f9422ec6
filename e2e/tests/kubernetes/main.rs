//! The whole product on a real Kubernetes cluster of one node, as a platform team handles it: installed by Helm, serving
//! through the gateway's Service, scaled, upgraded, removed, and every part of it killed while requests flow. Pods run
//! our image under the real kubelet, in namespaces that enforce Pod Security `restricted`.
//!
//! Runs only where `PLIMSOLL_E2E_KUBERNETES` is set (`make e2e-kube`): it needs root, and brings a cluster up.

mod suite;

use std::time::Duration;

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::kubernetes::Kubernetes;
use plimsoll_e2e::{Error, eventually, openai};

use suite::{Cost, MODEL, Suite, condition, items};

const CLASS: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: h100}
spec: {preset: h100}
";

fn pool(namespace: &str, name: &str, min: u32) -> String {
    format!(
        "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  engine: {{kind: simulated}}
  model: {{name: {MODEL}, preset: {MODEL}}}
  slo: {{ttft: {{p95: 4s}}, tpot: {{p95: 150ms}}}}
  scaling: {{min: {min}, max: 4}}
  maxContextTokens: 16384
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_product_on_a_real_cluster() -> Result<(), Error> {
    if std::env::var_os("PLIMSOLL_E2E_KUBERNETES").is_none() {
        println!("not run: PLIMSOLL_E2E_KUBERNETES is not set (`make e2e-kube` sets it, as root)");
        return Ok(());
    }
    let cluster = Kubernetes::start()?;
    let kubectl = cluster.kubectl().await?;
    let mut suite = Suite {
        cluster,
        kubectl,
        base: String::new(),
        began: tokio::time::Instant::now(),
        faults: Vec::new(),
    };
    let outcome = scenario(&mut suite).await;
    if let Err(error) = outcome {
        suite.fault(format!("the suite can't go on: {error}"));
        suite.tell().await;
    }

    let Suite { cluster, faults, .. } = suite;
    let left = cluster.end()?;
    assert!(left.is_empty(), "left on the host: {left:#?}");
    assert!(faults.is_empty(), "what did not hold:\n{}", faults.join("\n"));
    Ok(())
}

async fn scenario(suite: &mut Suite) -> Result<(), Error> {
    install(suite).await?;
    scale(suite).await?;
    kill_parts(suite).await?;
    kill_the_cluster_s_own(suite).await?;
    cordon(suite).await?;
    upgrade(suite).await?;
    remove(suite).await
}

async fn install(suite: &mut Suite) -> Result<(), Error> {
    suite.restricted("plimsoll").await?;
    suite.restricted("models").await?;
    let values = ["-n", "plimsoll", "-f", "e2e/lanes/values.yaml", "--wait", "--timeout", "3m"];
    suite.cluster.helm(&[&["install", "plimsoll", "charts/plimsoll"][..], &values[..]].concat()).await?;
    suite.step("installed by Helm");
    suite.kubectl.apply_text(CLASS).await?;
    suite.kubectl.apply_text(&pool("models", "small", 2)).await?;
    let path = "jsonpath={.spec.clusterIP}";
    let address = suite.run(&["-n", "plimsoll", "get", "service", "plimsoll-gateway", "-o", path]).await?;
    suite.base = format!("http://{address}/v1");
    suite.settled("a pool of two", 2).await?;
    let reply = openai::chat(&suite.base, MODEL, "hello", 8, false).await?;
    assert_eq!((reply.status, reply.finish_reason.as_deref()), (200, Some("length")), "{}", reply.text);
    let reply = openai::chat(&suite.base, MODEL, "hello", 8, true).await?;
    assert!(reply.done && reply.pieces == 8, "{}", reply.text);
    suite.step(&format!("two engines run our image and answer at the gateway Service {address}"));
    Ok(())
}

async fn scale(suite: &mut Suite) -> Result<(), Error> {
    suite.run(&["-n", "models", "scale", "mp/small", "--replicas=3"]).await?;
    suite.settled("scaled up to three", 3).await?;
    suite.step("kubectl scale to three: three engines serve");

    // Down under traffic: the engine that goes is marked as draining first, and deleted after its last answer.
    let mut order = (false, false);
    let seen = &mut order;
    suite
        .disturbed("kubectl scale to two", Cost::Nothing, async |suite: &Suite| {
            suite.run(&["-n", "models", "scale", "mp/small", "--replicas=2"]).await?;
            for _ in 0..600 {
                let list = suite.kubectl.json(&["-n", "models", "get", "pods"]).await?;
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
    suite.settled("scaled down to two", 2).await
}

async fn kill_parts(suite: &mut Suite) -> Result<(), Error> {
    for part in ["operator", "scheduler"] {
        let before = suite.engines().await?;
        suite
            .disturbed(&format!("{part} killed"), Cost::Nothing, async |suite: &Suite| {
                suite.crash_part(part).await?;
                suite.settled(part, 2).await
            })
            .await?;
        let after = suite.engines().await?;
        suite.check(before == after, || format!("{part} killed: engines were {before:?}, are {after:?}"));
    }
    // A dead gateway takes its clients' connections with it; one that is replaced finishes them.
    for (how, cost) in [("deleted", Cost::Nothing), ("killed", Cost::Connections)] {
        suite
            .disturbed(&format!("a gateway {how}"), cost, async |suite: &Suite| {
                let pods = suite.part("gateway").await?;
                let gateway = pods.first().ok_or("no gateway")?;
                if how == "killed" {
                    suite.crash("plimsoll", std::slice::from_ref(gateway)).await?;
                } else {
                    suite.run(&["-n", "plimsoll", "delete", "pod", &gateway.0, "--wait=false"]).await?;
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    // While a new agent pod is not in the gateways' routes yet, they pass by the old one's address.
    for how in ["killed", "deleted"] {
        suite
            .disturbed(&format!("the agent {how}"), Cost::Nothing, async |suite: &Suite| {
                if how == "killed" {
                    suite.crash_part("agent").await?;
                } else {
                    let label = "app.kubernetes.io/component=agent";
                    suite.run(&["-n", "plimsoll", "delete", "pod", "-l", label, "--wait=false"]).await?;
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    for how in ["killed", "deleted"] {
        suite
            .disturbed(&format!("an engine {how}"), Cost::Nothing, async |suite: &Suite| {
                let engines = suite.engines().await?;
                let engine = engines.first().ok_or("no engine")?;
                if how == "killed" {
                    suite.crash("models", std::slice::from_ref(engine)).await?;
                } else {
                    suite.run(&["-n", "models", "delete", "pod", &engine.0, "--wait=false"]).await?;
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    Ok(())
}

async fn kill_the_cluster_s_own(suite: &mut Suite) -> Result<(), Error> {
    let before = suite.engines().await?;
    suite
        .disturbed("kube-apiserver away for 60 s", Cost::Nothing, async |suite: &Suite| {
            suite.cluster.component("kill", "kube-apiserver").await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            suite.cluster.component("start", "kube-apiserver").await?;
            suite.settled("kube-apiserver is back", 2).await
        })
        .await?;
    let after = suite.engines().await?;
    suite.check(before == after, || format!("API outage: engines were {before:?}, are {after:?}"));
    suite
        .disturbed("kubelet restarted", Cost::Nothing, async |suite: &Suite| {
            suite.cluster.component("restart", "kubelet").await?;
            // Time for it to look at every container.
            tokio::time::sleep(Duration::from_secs(10)).await;
            suite.settled("kubelet is back", 2).await
        })
        .await?;
    let last = suite.engines().await?;
    suite.check(after == last, || format!("kubelet restarted: engines were {after:?}, are {last:?}"));

    // The leader that the outage ended leads again, from the same process and under the same name: it must be heard.
    suite.run(&["-n", "models", "scale", "mp/small", "--replicas=3"]).await?;
    let heard = eventually("the third engine is made", 30, || async {
        let engines = suite.engines().await?.len();
        if engines == 3 { Ok(()) } else { Err(format!("{engines} engines").into()) }
    })
    .await;
    suite.check(heard.is_ok(), || "after an API outage, a change of a pool was not planned".to_owned());
    suite.settled("scaled after the outage", 3).await?;
    suite.run(&["-n", "models", "scale", "mp/small", "--replicas=2"]).await?;
    suite.settled("and down again", 2).await
}

async fn cordon(suite: &mut Suite) -> Result<(), Error> {
    let before = suite.engines().await?;
    suite.run(&["cordon", "plimsoll-node"]).await?;
    suite
        .disturbed("the node cordoned, then scaled to three", Cost::Nothing, async |suite: &Suite| {
            suite.run(&["-n", "models", "scale", "mp/small", "--replicas=3"]).await?;
            eventually("the status tells that a replica has no place", 60, || async {
                let status = suite.status().await?;
                let limited = condition(&status, "CapacityLimited");
                if limited == "True" { Ok(()) } else { Err(status.to_string().into()) }
            })
            .await
        })
        .await?;
    let after = suite.engines().await?;
    suite.check(before == after, || format!("cordoned: engines were {before:?}, are {after:?}"));
    let status = suite.status().await?;
    let named = [&status["conditions"], &status["why"]].iter().any(|v| v.to_string().contains("cordon"));
    suite.check(named, || format!("cordoned: the status does not name it, but says {}", status["why"]));
    suite.run(&["uncordon", "plimsoll-node"]).await?;
    suite.settled("uncordoned", 3).await?;
    suite.step("uncordoned: the third engine serves");
    suite.run(&["-n", "models", "scale", "mp/small", "--replicas=2"]).await?;
    suite.settled("scaled down again", 2).await
}

async fn upgrade(suite: &mut Suite) -> Result<(), Error> {
    let engines = suite.engines().await?;
    let gateways = suite.part("gateway").await?;
    // It changes the pods of every part.
    suite
        .disturbed("helm upgrade", Cost::Nothing, async |suite: &Suite| {
            let chart = ["upgrade", "plimsoll", "charts/plimsoll", "-n", "plimsoll", "--reuse-values"];
            let change = ["--set", "log.filter=debug", "--wait", "--timeout", "4m"];
            suite.cluster.helm(&[&chart[..], &change[..]].concat()).await?;
            suite.settled("helm upgrade", 2).await
        })
        .await?;
    let replaced = suite.part("gateway").await?;
    suite.check(gateways.iter().all(|g| !replaced.contains(g)), || {
        "helm upgrade replaced no gateway".to_owned()
    });
    let after = suite.engines().await?;
    suite.check(engines == after, || format!("helm upgrade: engines were {engines:?}, are {after:?}"));
    Ok(())
}

async fn remove(suite: &mut Suite) -> Result<(), Error> {
    suite.run(&["-n", "models", "delete", "mp", "small", "--timeout=120s"]).await?;
    eventually("the deleted pool's engines are gone", 60, || async {
        let pods = suite.kubectl.json(&["-n", "models", "get", "pods"]).await?;
        if items(&pods).is_empty() { Ok(()) } else { Err(format!("{} pods", items(&pods).len()).into()) }
    })
    .await?;
    suite.step("the pool is deleted, its engines are gone");

    suite.kubectl.apply_text(&pool("models", "second", 1)).await?;
    let ready = ["wait", "mp/second", "--for=condition=Ready", "--timeout=90s"];
    suite.run(&[&["-n", "models"][..], &ready[..]].concat()).await?;
    suite.run(&["delete", "namespace", "models", "--timeout=120s"]).await?;
    suite.step("a namespace goes with a serving pool in it");

    suite.cluster.helm(&["uninstall", "plimsoll", "-n", "plimsoll", "--wait", "--timeout", "3m"]).await?;
    let left = eventually("nothing is left of the release", 90, || async {
        let left = left_in_cluster(&suite.kubectl).await?;
        if left.is_empty() { Ok(left) } else { Err(left.join(", ").into()) }
    })
    .await;
    suite.step("uninstalled by Helm");
    if let Err(error) = left {
        suite.fault(error.to_string());
    }
    suite.run(&["delete", "namespace", "plimsoll", "--timeout=90s"]).await?;
    Ok(())
}

/// Everything with our name or label, besides what stays on purpose (the definitions, and AcceleratorClasses with them)
/// and what Kubernetes made itself.
async fn left_in_cluster(kubectl: &Kubectl) -> Result<Vec<String>, Error> {
    let kinds = kubectl.kubectl(&["api-resources", "--verbs=list", "--output=name"]).await?;
    let stays = [
        "acceleratorclasses",
        "apiservices",
        "componentstatuses",
        "customresourcedefinitions",
        "events",
        "nodes",
    ];
    let kinds: Vec<&str> = kinds
        .split_whitespace()
        .filter(|kind| !stays.contains(&kind.split('.').next().unwrap_or_default()))
        .collect();
    let list = kubectl.json(&["get", &kinds.join(","), "--all-namespaces"]).await?;
    let mut left = Vec::new();
    for object in items(&list) {
        let (kind, metadata) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        let made_by_kubernetes = matches!(
            (kind, name),
            ("Namespace", "plimsoll") | ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default")
        );
        // The lane's own: its node, and what it grants kube-proxy.
        let text = format!("{name} {}", metadata["labels"])
            .replace("plimsoll-node", "")
            .replace("plimsoll-lane", "");
        let ours = text.contains("plimsoll") || metadata["namespace"] == "plimsoll";
        if ours && !made_by_kubernetes {
            left.push(format!("{kind} {name}"));
        }
    }
    Ok(left)
}
