//! The whole product on Kubernetes, as a platform team handles it: installed by Helm, serving through the gateways'
//! Service, upgraded from the chart before, scaled, changed, drained, removed, and every part of it killed while requests
//! flow. One suite, two clusters: `plimsoll devcluster` with the chart's pods as processes, wherever helm and kubectl are to
//! be had; and a real one whose kubelet runs our image, in namespaces that enforce Pod Security `restricted`.
//!
//! `PLIMSOLL_E2E_KUBERNETES=1` asks for the real one and fails where it cannot be; `auto` runs it where it can be; `kind` takes
//! kind's instead. It brings the cluster up and takes it down. See e2e/lanes/README.md.

mod changes;
mod devices;
mod lane;
mod local;
mod nodes;
mod parts;
mod real;
mod suite;
mod whole;

use plimsoll_e2e::Error;
use plimsoll_e2e::kubernetes::Kubernetes;

use lane::Lane;
use local::Local;
use real::Real;
use suite::Suite;

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_product_on_devcluster() -> Result<(), Error> {
    match Local::start().await? {
        Ok(lane) => run(lane).await,
        Err(why) => {
            println!("not run: {why}");
            Ok(())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_product_on_a_real_cluster() -> Result<(), Error> {
    match Kubernetes::wanted().await? {
        Ok(scripts) => run(Real::start(&scripts).await?).await,
        Err(why) => {
            println!("not run: {why}");
            Ok(())
        }
    }
}

async fn run<L: Lane>(lane: L) -> Result<(), Error> {
    let mut suite = Suite::new(lane);
    if let Err(error) = scenario(&mut suite).await {
        suite.fault(format!("the suite can't go on: {error}"));
        suite.tell().await;
    }
    let Suite { lane, mut faults, .. } = suite;
    faults.extend(lane.end().await?);
    assert!(faults.is_empty(), "what did not hold:\n{}", faults.join("\n"));
    Ok(())
}

async fn scenario<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    whole::install(suite).await?;
    // For whoever works on a step: only these, between install and removal.
    let only = std::env::var("PLIMSOLL_E2E_STEPS").ok();
    let wanted = |step: &str| only.as_ref().is_none_or(|only| only.split(',').any(|one| one == step));
    if wanted("upgrade") {
        changes::upgrade(suite).await?;
    }
    if wanted("scale") {
        changes::scale(suite).await?;
    }
    if wanted("parts") {
        parts::killed_and_deleted(suite).await?;
    }
    if wanted("api") {
        parts::without_the_api(suite).await?;
    }
    if wanted("rollout") {
        changes::rollout(suite).await?;
        changes::broken_rollout(suite).await?;
    }
    if wanted("devices") {
        devices::claimed(suite).await?;
    }
    if wanted("cordon") {
        nodes::cordon(suite).await?;
    }
    if wanted("drain") {
        nodes::drain(suite).await?;
    }
    if wanted("loss") {
        nodes::loss(suite).await?;
    }
    whole::remove(suite).await
}
