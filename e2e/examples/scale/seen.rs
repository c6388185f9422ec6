//! What the API shows of pools and their pods, and since when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use plimsoll_e2e::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pools;

/// One pool.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    pods: BTreeSet<String>,
    /// How many pods there were from when on.
    steps: Vec<(Instant, usize)>,
    /// Generation that a plan is in force for, from when on, and how many replicas it wants.
    pub planned: Option<(i64, Instant, usize)>,
}

impl Pool {
    /// Pods now.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// When the number of pods first was as asked, at `since` or later.
    pub fn first(&self, since: Instant, asked: impl Fn(usize) -> bool) -> Option<Instant> {
        let before = self.steps.iter().rev().find(|(at, _)| *at <= since).map_or(0, |(_, n)| *n);
        let later = self.steps.iter().filter(|(at, n)| *at > since && asked(*n)).map(|(at, _)| *at).min();
        if asked(before) { Some(since) } else { later }
    }

    fn step(&mut self) {
        self.steps.push((Instant::now(), self.pods.len()));
    }
}

/// All pools by name.
pub type Pools = BTreeMap<String, Pool>;

/// Live copy of what the API shows.
#[derive(Debug)]
pub struct Seen {
    pools: watch::Receiver<Pools>,
}

impl Seen {
    /// Starts watching.
    pub fn start(client: &Client) -> Self {
        let (sender, pools) = watch::channel(Pools::new());
        let pods = follow_pods(client.clone(), sender.clone());
        let resources = follow_pools(client.clone(), sender);
        tokio::spawn(async move { tokio::join!(pods, resources) });
        Self { pools }
    }

    /// Everything now.
    pub fn now(&self) -> Pools {
        self.pools.borrow().clone()
    }

    /// Waits until a pool is as `probe` wants it.
    pub async fn wait<T>(
        &mut self,
        name: &str,
        limit: Duration,
        mut probe: impl FnMut(&Pool) -> Option<T>,
    ) -> Result<T, Error> {
        let mut found = None;
        let look = self.pools.wait_for(|pools| {
            found = pools.get(name).and_then(&mut probe);
            found.is_some()
        });
        tokio::time::timeout(limit, look).await.map_err(|_| format!("{name}: not within {limit:?}"))??;
        found.ok_or_else(|| format!("{name} is gone").into())
    }
}

async fn follow_pods(client: Client, pools: watch::Sender<Pools>) {
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let config = watcher::Config::default().labels("plimsoll.dev/replica");
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                change(&pools, &pod, |pool, name| pool.pods.insert(name));
            }
            Ok(watcher::Event::Delete(pod)) => change(&pools, &pod, |pool, name| pool.pods.remove(&name)),
            Ok(_) => {}
            Err(error) => eprintln!("the watch of pods: {error}"),
        }
    }
}

fn change(
    pools: &watch::Sender<Pools>,
    pod: &PartialObjectMeta<Pod>,
    with: impl FnOnce(&mut Pool, String) -> bool,
) {
    let Some(owner) = pod.labels().get("plimsoll.dev/pool") else { return };
    pools.send_if_modified(|pools| {
        let pool = pools.entry(owner.clone()).or_default();
        let changed = with(pool, pod.name_any());
        if changed {
            pool.step();
        }
        changed
    });
}

async fn follow_pools(client: Client, pools: watch::Sender<Pools>) {
    let api: Api<DynamicObject> = Api::all_with(client, &pools::resource());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let resource = match event {
            Ok(watcher::Event::Apply(resource) | watcher::Event::InitApply(resource)) => resource,
            Ok(_) => continue,
            Err(error) => {
                eprintln!("the watch of pools: {error}");
                continue;
            }
        };
        let status = &resource.data["status"];
        let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let planned = conditions.iter().any(|c| c["type"] == "Planned" && c["status"] == "True");
        let (generation, desired) =
            (status["observedGeneration"].as_i64(), status["desiredReplicas"].as_u64());
        let (Some(generation), Some(desired), true) = (generation, desired, planned) else { continue };
        pools.send_modify(|pools| {
            let pool = pools.entry(resource.name_any()).or_default();
            let since = pool.planned.filter(|p| p.0 == generation).map_or_else(Instant::now, |p| p.1);
            pool.planned = Some((generation, since, desired as usize));
        });
    }
}
