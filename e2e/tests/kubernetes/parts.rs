//! Every part killed and deleted while requests flow; the Kubernetes API away for a minute.

use std::time::Duration;

use plimsoll_e2e::{Error, eventually};

use crate::lane::Lane;
use crate::suite::{Cost, Suite};

pub async fn killed_and_deleted<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    for part in ["operator", "scheduler"] {
        let before = suite.engines().await?;
        suite
            .disturbed(&format!("{part} killed"), Cost::Nothing, async |suite: &Suite<L>| {
                suite.crash_parts(part, &suite.lane.parts(part).await?).await?;
                suite.settled(part, 2).await
            })
            .await?;
        let after = suite.engines().await?;
        suite.check(before == after, || format!("{part} killed: engines were {before:?}, are {after:?}"));
    }
    // A dead gateway takes its clients' connections with it; one that is replaced finishes them.
    for (how, cost) in [("deleted", Cost::Nothing), ("killed", Cost::Connections)] {
        suite
            .disturbed(&format!("a gateway {how}"), cost, async |suite: &Suite<L>| {
                let pods = suite.lane.parts("gateway").await?;
                let gateway = pods.first().ok_or("no gateway")?;
                if how == "killed" {
                    suite.crash_parts("gateway", std::slice::from_ref(gateway)).await?;
                } else {
                    suite.lane.delete_part(&gateway.0).await?;
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    // While a new agent pod is not in the gateways' routes yet, they pass by the old one's address.
    for how in ["killed", "deleted"] {
        suite
            .disturbed(&format!("agents {how}"), Cost::Nothing, async |suite: &Suite<L>| {
                let agents = suite.lane.parts("agent").await?;
                if how == "killed" {
                    suite.crash_parts("agent", &agents).await?;
                } else {
                    for (agent, _) in &agents {
                        suite.lane.delete_part(agent).await?;
                    }
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    for how in ["killed", "deleted"] {
        suite
            .disturbed(&format!("an engine {how}"), Cost::Nothing, async |suite: &Suite<L>| {
                let engines = suite.engines().await?;
                let engine = engines.first().ok_or("no engine")?;
                if how == "killed" {
                    suite.crash_engine(engine).await?;
                } else {
                    suite.run(&["-n", "models", "delete", "pod", &engine.0, "--wait=false"]).await?;
                }
                suite.settled(how, 2).await
            })
            .await?;
    }
    Ok(())
}

pub async fn without_the_api<L: Lane>(suite: &mut Suite<L>) -> Result<(), Error> {
    let before = suite.engines().await?;
    suite
        .disturbed("the Kubernetes API away for 60 s", Cost::Nothing, async |suite: &Suite<L>| {
            suite.lane.set_api(false).await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            suite.lane.set_api(true).await?;
            suite.settled("the API is back", 2).await
        })
        .await?;
    let after = suite.engines().await?;
    suite.check(before == after, || format!("API outage: engines were {before:?}, are {after:?}"));

    let mut restarted = false;
    let kubelet = &mut restarted;
    suite
        .disturbed("kubelet restarted", Cost::Nothing, async |suite: &Suite<L>| {
            *kubelet = suite.lane.restart_kubelet().await?;
            suite.settled("kubelet is back", 2).await
        })
        .await?;
    if !restarted {
        suite.step("(this cluster has no kubelet to restart)");
    }
    let last = suite.engines().await?;
    suite.check(after == last, || format!("kubelet restarted: engines were {after:?}, are {last:?}"));

    // The leader that the outage ended leads again, from the same process and under the same name: it must be heard.
    suite.scale(3).await?;
    let heard = eventually("the third engine is made", 60, || async {
        let engines = suite.engines().await?.len();
        if engines == 3 { Ok(()) } else { Err(format!("{engines} engines").into()) }
    })
    .await;
    suite.check(heard.is_ok(), || "after an API outage, a change of a pool was not planned".to_owned());
    suite.settled("scaled after the outage", 3).await?;
    suite.scale(2).await?;
    suite.settled("and down again", 2).await
}
