//! The same requests and the same kubectl calls, put to a real API server and to this one: what they answer must not
//! differ, but for what [`accepted::ACCEPTED`] lists with a reason why nobody notices. [`known`] names the steps in which
//! this API still falls short of the real one: it is to become empty, and nothing new may join it unseen.
//!
//! The real side is etcd, kube-apiserver and kube-controller-manager on loopback. The programs are those in the folder
//! `$PLIMSOLL_KUBE_BIN`, else those that `scripts/kube/binaries` has built or found before, else that script gets them,
//! which may take many minutes. Runs only where `PLIMSOLL_DIFFERENTIAL` is set: `1` gets them (`make differential`), `auto`
//! takes only what is there (`.ci/run`).
//!
//! `PLIMSOLL_DIFFERENTIAL_CASE=NAME` plays one case alone, `PLIMSOLL_DIFFERENTIAL_OUT=FOLDER` keeps all answers there.

#![recursion_limit = "512"]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests")]

mod accepted;
mod cases;
mod compare;
mod known;
mod normal;
mod play;
mod real;
mod script;

use std::path::Path;

use futures::StreamExt as _;
use plimsoll_devcluster::{DevCluster, DevClusterConfig};

use compare::Difference;
use play::{Answer, Player};
use real::{RealCluster, find_programs, programs_at_hand};
use script::Script;

/// Cases that are played at once: their waits overlap.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn both_api_servers_answer_alike() {
    let programs = match std::env::var("PLIMSOLL_DIFFERENTIAL").as_deref() {
        Err(_) | Ok("") => Err("PLIMSOLL_DIFFERENTIAL is not set (`make differential` sets it)".to_owned()),
        Ok("auto") => programs_at_hand(),
        Ok(_) => Ok(find_programs().unwrap()),
    };
    let programs = match programs {
        Ok(folder) => folder,
        Err(why) => return println!("not run: {why}"),
    };
    let home = tempfile::tempdir().unwrap();
    let began = tokio::time::Instant::now();
    let real = RealCluster::start(&programs, home.path()).await.unwrap();
    println!("kube-apiserver of {} is ready after {:?}", programs.display(), began.elapsed());
    let ours = DevCluster::start(DevClusterConfig::default()).await.unwrap();
    let kubectl = programs.join("kubectl");
    let real_player = Player::new(&real.kubeconfig(), &kubectl, &home.path().join("real")).await;
    let our_player = Player::new(&ours.kubeconfig_yaml(), &kubectl, &home.path().join("ours")).await;

    let only = std::env::var("PLIMSOLL_DIFFERENTIAL_CASE").ok();
    let chosen = |s: &Script| only.as_deref().is_none_or(|name| s.name == name);
    let mut differences = Vec::new();
    let mut compared = 0;
    // What is served must be looked at before definitions are added.
    for batch in [cases::first(), cases::others()] {
        let played = futures::stream::iter(batch.into_iter().filter(chosen)).map(|script| {
            let (real, ours) = (&real_player, &our_player);
            async move {
                let (real, ours) = tokio::join!(real.play(&script), ours.play(&script));
                (script, real, ours)
            }
        });
        let mut played = played.buffer_unordered(AT_ONCE);
        while let Some((script, real, ours)) = played.next().await {
            keep(&script, &real, &ours);
            let found = compare::compare(&script, &real, &ours);
            println!("{}: {} steps, {} differences", script.name, script.steps.len(), found.len());
            compared += script.steps.len();
            differences.extend(found);
        }
    }
    println!("{compared} steps compared in {:?}", began.elapsed());
    ours.shutdown().await;
    drop(real);

    let sorted = accepted::sort(&differences, only.is_some());
    println!("{} differences where devcluster is known to fall short", sorted.known);
    for step in &sorted.mended {
        println!("known, but not there: {step}");
    }
    let listed: Vec<String> = sorted.unexpected.iter().map(ToString::to_string).collect();
    let unused: Vec<String> = sorted.unused.iter().map(|a| format!("{a:?}")).collect();
    assert!(
        listed.is_empty() && unused.is_empty(),
        "{} differences that are neither accepted nor known:\n{}\naccepted, but not there any more:\n{}",
        listed.len(),
        listed.join("\n"),
        unused.join("\n")
    );
}

/// Keeps what was answered, for a look at it.
fn keep(script: &Script, real: &[Answer], ours: &[Answer]) {
    let Some(folder) = std::env::var_os("PLIMSOLL_DIFFERENTIAL_OUT") else { return };
    for (side, answers) in [("real", real), ("ours", ours)] {
        let path = Path::new(&folder).join(side);
        std::fs::create_dir_all(&path).unwrap();
        let text: Vec<String> = (script.steps.iter().zip(answers))
            .map(|(step, answer)| format!("# {}\n{:#}\n", step.name, answer.normal))
            .collect();
        std::fs::write(path.join(format!("{}.txt", script.name)), text.concat()).unwrap();
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} / {} {}\n    real: {}\n    ours: {}",
            self.case, self.step, self.path, self.real, self.ours
        )
    }
}
