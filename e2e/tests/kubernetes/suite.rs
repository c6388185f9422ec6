//! The cluster under test, with what the scenario asks of it.

use std::time::Duration;

use plimsoll_e2e::kubectl::Kubectl;
use plimsoll_e2e::kubernetes::Kubernetes;
use plimsoll_e2e::traffic::{Counts, Traffic};
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::Value;

/// The served model.
pub const MODEL: &str = "llama-3.1-8b";
/// Tokens of a stream: some seconds of a simulated engine.
const TOKENS: u32 = 1500;
const STREAMS: usize = 4;

/// What a disturbance may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Nothing at all: the part is not on the path of a request, or leaves it in order.
    Nothing,
    /// Answers that hang on the client's own connection to what is killed.
    Connections,
}

/// The cluster, the clients of it, and what did not hold so far.
pub struct Suite {
    pub cluster: Kubernetes,
    pub kubectl: Kubectl,
    pub base: String,
    pub began: tokio::time::Instant,
    /// What did not hold; the suite goes on to the end and fails then, so that one run tells all.
    pub faults: Vec<String>,
}

impl Suite {
    pub fn step(&self, text: &str) {
        println!("{:>5.0} s  {text}", self.began.elapsed().as_secs_f64());
    }

    pub fn fault(&mut self, text: String) {
        self.step(&format!("✗ {text}"));
        self.faults.push(text);
    }

    pub fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fault(what());
        }
    }

    pub async fn run(&self, args: &[&str]) -> Result<String, Error> {
        self.kubectl.kubectl(args).await
    }

    pub async fn restricted(&self, namespace: &str) -> Result<(), Error> {
        self.run(&["create", "namespace", namespace]).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        self.run(&["label", "namespace", namespace, label]).await.map(drop)
    }

    /// Name and life (uid, and how often its containers were restarted) of the pods with a label, besides those about
    /// to go.
    pub async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<(String, String)>, Error> {
        let list = self.kubectl.json(&["-n", namespace, "get", "pods", "-l", selector]).await?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut pods: Vec<_> = items(&list)
            .iter()
            .filter(|p| p["metadata"]["deletionTimestamp"].is_null())
            .map(|p| {
                (text(&p["metadata"]["name"]), format!("{} + {}", text(&p["metadata"]["uid"]), restarts(p)))
            })
            .collect();
        pods.sort();
        Ok(pods)
    }

    pub async fn part(&self, component: &str) -> Result<Vec<(String, String)>, Error> {
        self.pods("plimsoll", &format!("app.kubernetes.io/component={component}")).await
    }

    pub async fn engines(&self) -> Result<Vec<(String, String)>, Error> {
        self.pods("models", "plimsoll.dev/pool=small").await
    }

    pub async fn status(&self) -> Result<Value, Error> {
        Ok(self.kubectl.json(&["-n", "models", "get", "mp", "small"]).await?["status"].clone())
    }

    /// Waits until every part is ready, the pool has `engines` serving ones, and requests are answered.
    pub async fn settled(&self, what: &str, engines: usize) -> Result<(), Error> {
        eventually(&format!("{what}: settled"), 120, || async {
            for (namespace, wanted) in [("plimsoll", 6), ("models", engines)] {
                let list = self.kubectl.json(&["-n", namespace, "get", "pods"]).await?;
                let stays = |p: &&Value| p["metadata"]["deletionTimestamp"].is_null();
                let serves = |p: &&Value| condition(&p["status"], "Ready") == "True";
                let ready = items(&list).iter().filter(stays).filter(serves).count();
                if ready != wanted || items(&list).len() != wanted {
                    return Err(format!("{ready} ready pods of {} in {namespace}", items(&list).len()).into());
                }
            }
            let status = self.status().await?;
            if status["readyReplicas"] != engines || condition(&status, "Ready") != "True" {
                return Err(status.to_string().into());
            }
            for _ in 0..5 {
                let reply = openai::chat(&self.base, MODEL, "hello", 4, false).await?;
                if reply.status != 200 {
                    return Err(format!("{} {}", reply.status, reply.text).into());
                }
            }
            Ok(())
        })
        .await
    }

    /// Traffic around `disturb`; prints what became of it, and notes what it cost beyond what it may.
    pub async fn disturbed<F>(&mut self, what: &str, cost: Cost, disturb: F) -> Result<(), Error>
    where
        F: AsyncFnOnce(&Self) -> Result<(), Error>,
    {
        let traffic = Traffic::start(&self.base, MODEL, STREAMS, TOKENS);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let outcome = disturb(self).await;
        let counts = traffic.finish().await?;
        self.step(&format!("{what}: {counts}"));
        self.judge(what, cost, &counts);
        if let Err(error) = outcome {
            self.fault(format!("{what}: {error}"));
            self.tell().await;
        }
        Ok(())
    }

    /// What the parts that decide said last, for whoever has to find out.
    pub async fn tell(&self) {
        for component in ["operator", "scheduler"] {
            let selector = format!("app.kubernetes.io/component={component}");
            let logs = ["-n", "plimsoll", "logs", "--prefix", "--tail=5", "-l", &selector];
            println!("{}", self.run(&logs).await.unwrap_or_else(|e| e.to_string()));
        }
    }

    pub fn judge(&mut self, what: &str, cost: Cost, counts: &Counts) {
        self.check(counts.whole > 0, || format!("{what}: no stream came whole"));
        if cost == Cost::Nothing {
            let (lost, refused) = (counts.lost.len(), counts.refused());
            self.check(lost == 0, || format!("{what}: {lost} answers were lost that an engine had begun"));
            self.check(refused == 0, || format!("{what}: {refused} requests were refused"));
        }
    }

    /// Kills what runs in these pods, and waits until the kubelet has started all of it again.
    pub async fn crash(&self, namespace: &str, pods: &[(String, String)]) -> Result<(), Error> {
        let names: Vec<&str> = pods.iter().map(|(name, _)| name.as_str()).collect();
        let lives = async || {
            let list =
                self.kubectl.json(&[&["-n", namespace, "get", "pods"][..], &names[..]].concat()).await?;
            // One pod alone is no list.
            let pods = if list["items"].is_array() { items(&list) } else { std::slice::from_ref(&list) };
            Ok::<u64, Error>(pods.iter().map(restarts).sum())
        };
        let before = lives().await?;
        for name in &names {
            self.cluster.crash(name).await?;
        }
        eventually("the kubelet starts it again", 60, || async {
            let now = lives().await?;
            if now >= before + names.len() as u64 { Ok(()) } else { Err(format!("{now} restarts").into()) }
        })
        .await
    }

    pub async fn crash_part(&self, component: &str) -> Result<(), Error> {
        self.crash("plimsoll", &self.part(component).await?).await
    }
}

pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

pub fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
    containers.iter().filter_map(|c| c["restartCount"].as_u64()).sum()
}

pub fn condition<'a>(status: &'a Value, name: &str) -> &'a str {
    let of_name = |c: &&Value| c["type"] == name;
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(of_name).and_then(|c| c["status"].as_str()).unwrap_or("absent")
}
