//! Nodes: cordoned, drained, lost.

use plimsoll_e2e::kubectl::items;
use plimsoll_e2e::{Error, eventually};
use serde_json::Value;

use crate::lane::Lane;
use crate::suite::{Cost, Suite, condition, stays};

pub async fn cordon<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let before = suite.engines().await?;
    let all = suite.lane.nodes().to_vec();
    let nodes: Vec<&str> = all.iter().map(String::as_str).collect();
    suite.run(&[&["cordon"][..], &nodes[..]].concat()).await?;
    suite
        .disturbed("all nodes cordoned, then scaled to three", Cost::Nothing, async |suite: &Suite<L>| {
            suite.scale(3).await?;
            eventually("the status tells that a replica has no place", 120, || async {
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
    suite.run(&[&["uncordon"][..], &nodes[..]].concat()).await?;
    suite.settled("uncordoned", 3).await?;
    suite.step("uncordoned: the third engine serves");
    suite.scale(2).await?;
    suite.settled("scaled down again", 2).await
}

/// Whether the pool has room for its engines on another node than one.
fn spare<L: Lane>(suite: &Suite<L>) -> bool {
    suite.lane.nodes().len() > 1
}

/// `kubectl drain` of a node with engines, under traffic. With other nodes it costs nothing: successors serve first. The
/// only node's engines have nowhere to go: requests are refused until it is back, and what was begun is answered.
///
/// Only engines are evicted: the parts of a one-node cluster would have no node to go to either.
pub async fn drain<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let nodes = suite.nodes_in_use().await?;
    let node = nodes.first().ok_or("no node has an engine")?.clone();
    let spare = spare(suite);
    let cost = if spare { Cost::Nothing } else { Cost::Refusals };
    suite
        .disturbed(&format!("kubectl drain {node}"), cost, async |suite: &Suite<L>| {
            let what = ["--pod-selector=plimsoll.dev/pool", "--ignore-daemonsets", "--delete-emptydir-data"];
            suite.run(&[&["drain", &node, "--timeout=240s"][..], &what[..]].concat()).await?;
            let on_it = suite.nodes_in_use().await?;
            if on_it.contains(&node) {
                return Err(format!("engines on {on_it:?} after the drain").into());
            }
            if spare {
                suite.settled("drained", 2).await?;
            }
            suite.run(&["uncordon", &node]).await?;
            suite.settled("uncordoned", 2).await
        })
        .await
}

/// A node is not heard of any more, and comes back. With other nodes, its engines' streams are carried on there and the
/// engines replaced, at no cost. The only node's kubelet is away for as long as the cluster needs to call the node lost: its
/// engines go on being sent requests; but the cluster takes the gateways, which are on that node too, out of their Service for
/// a moment, and connections made then are refused.
pub async fn loss<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let nodes = suite.nodes_in_use().await?;
    let node = nodes.first().ok_or("no node has an engine")?.clone();
    let spare = spare(suite);
    let cost = if spare { Cost::Nothing } else { Cost::Refusals };
    suite
        .disturbed(&format!("node {node} lost and found"), cost, async |suite: &Suite<L>| {
            suite.lane.set_node(&node, false).await?;
            if spare {
                suite.serving("with a node lost", 2).await?;
                let list = suite.json(&["-n", "models", "get", "pods"]).await?;
                let counted = |pod: &&Value| {
                    stays(pod)
                        && condition(&pod["status"], "Ready") == "True"
                        && pod["spec"]["nodeName"] == *node
                };
                if items(&list).iter().any(|pod| counted(&pod)) {
                    return Err("an engine counts as ready on the lost node".into());
                }
            }
            suite.lane.set_node(&node, true).await?;
            suite.settled("the node is back", 2).await
        })
        .await
}
