//! What the steps ask of the cluster under test, whichever it is.

use std::time::Duration;

use plimsoll_e2e::kubectl::{Kubectl, items};
use plimsoll_e2e::traffic::{Counts, Traffic};
use plimsoll_e2e::{Error, eventually, openai};
use serde_json::Value;

use crate::lane::{Lane, Life};

/// The served model.
pub const MODEL: &str = "llama-3.1-8b";
/// Tokens of a stream: some seconds of a simulated engine.
const TOKENS: u32 = 1500;
const STREAMS: usize = 4;
/// Longest time for anything to settle. Nothing is measured by it: a slow machine may need most of it.
const PATIENCE_SECONDS: u64 = 240;

/// What a disturbance may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Nothing at all: the part is not on the path of a request, or leaves it in order.
    Nothing,
    /// Answers that hang on the client's own connection to what is killed.
    Connections,
    /// Requests that come while no engine is left to take them; no answer that was begun.
    Refusals,
}

/// The cluster, the clients of it, and what did not hold so far.
pub struct Suite<L> {
    pub lane: L,
    pub base: String,
    pub began: tokio::time::Instant,
    /// What did not hold; the suite goes on to the end and fails then, so that one run tells all.
    pub faults: Vec<String>,
}

impl<L: Lane> Suite<L> {
    pub fn new(lane: L) -> Self {
        Self { lane, base: String::new(), began: tokio::time::Instant::now(), faults: Vec::new() }
    }

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
        self.lane.kubectl().kubectl(args).await
    }

    pub async fn json(&self, args: &[&str]) -> Result<Value, Error> {
        self.lane.kubectl().json(args).await
    }

    pub async fn apply(&self, manifest: &str) -> Result<(), Error> {
        self.lane.kubectl().apply_text(manifest).await.map(drop)
    }

    /// Makes a namespace that enforces Pod Security `restricted`, where the cluster can.
    pub async fn restricted(&self, namespace: &str) -> Result<(), Error> {
        self.run(&["create", "namespace", namespace]).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        self.run(&["label", "namespace", namespace, label]).await.map(drop)
    }

    pub async fn scale(&self, replicas: usize) -> Result<(), Error> {
        let replicas = format!("--replicas={replicas}");
        self.run(&["-n", "models", "scale", "mp/small", &replicas]).await.map(drop)
    }

    /// The pool's engines, besides those about to go.
    pub async fn engines(&self) -> Result<Vec<Life>, Error> {
        lives(self.lane.kubectl(), "models", "plimsoll.dev/pool=small").await
    }

    /// The nodes that the pool's engines are on, besides engines about to go.
    pub async fn nodes_in_use(&self) -> Result<Vec<String>, Error> {
        let list = self.json(&["-n", "models", "get", "pods", "-l", "plimsoll.dev/pool=small"]).await?;
        let node = |pod: &Value| pod["spec"]["nodeName"].as_str().map(str::to_owned);
        let mut nodes: Vec<String> = items(&list).iter().filter(stays).filter_map(node).collect();
        nodes.sort();
        nodes.dedup();
        Ok(nodes)
    }

    pub async fn status(&self) -> Result<Value, Error> {
        Ok(self.json(&["-n", "models", "get", "mp", "small"]).await?["status"].clone())
    }

    /// Waits until the pool has `engines` serving ones, whatever else there may be, and requests are answered.
    pub async fn serving(&self, what: &str, engines: usize) -> Result<(), Error> {
        eventually(&format!("{what}: serving"), PATIENCE_SECONDS, || async {
            let list = self.json(&["-n", "models", "get", "pods"]).await?;
            let serves = |p: &&Value| condition(&p["status"], "Ready") == "True";
            let ready = items(&list).iter().filter(stays).filter(serves).count();
            if ready != engines {
                return Err(format!("{ready} ready engines of {}", items(&list).len()).into());
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

    /// Waits until every part is ready, the pool has `engines` serving ones and no others, and requests are answered.
    pub async fn settled(&self, what: &str, engines: usize) -> Result<(), Error> {
        eventually(&format!("{what}: settled"), PATIENCE_SECONDS, || async {
            let behind = self.lane.unsettled().await?;
            if !behind.is_empty() {
                return Err(format!("parts: {}", behind.join(", ")).into());
            }
            let list = self.json(&["-n", "models", "get", "pods"]).await?;
            let pods = items(&list).len();
            if pods == engines { Ok(()) } else { Err(format!("{pods} pods of engines").into()) }
        })
        .await?;
        self.serving(what, engines).await
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
        let before = self.faults.len();
        self.judge(what, cost, &counts);
        if let Err(error) = outcome {
            self.fault(format!("{what}: {error}"));
        }
        if self.faults.len() > before {
            self.tell().await;
        }
        Ok(())
    }

    /// What there is and what was said last, for whoever has to find out.
    pub async fn tell(&self) {
        let looks: [&[&str]; 4] = [
            &["get", "nodes", "--output=wide"],
            &["get", "pods", "--all-namespaces", "--output=wide"],
            &["-n", "models", "get", "mp", "--output=yaml"],
            &["-n", "models", "get", "events", "--sort-by=.metadata.creationTimestamp"],
        ];
        for look in looks {
            let said = self.run(look).await.unwrap_or_else(|e| e.to_string());
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            println!("--- kubectl {}\n{}", look.join(" "), last.join("\n"));
        }
        println!("--- logs\n{}", self.lane.logs().await);
    }

    pub fn judge(&mut self, what: &str, cost: Cost, counts: &Counts) {
        let (lost, refused) = (counts.lost.len(), counts.refused());
        self.check(counts.whole > 0, || format!("{what}: no stream came whole"));
        self.check(lost == 0 || cost == Cost::Connections, || {
            format!("{what}: {lost} answers were lost that an engine had begun: {}", counts.reasons())
        });
        self.check(refused == 0 || cost != Cost::Nothing, || {
            format!("{what}: {refused} requests were refused: {}", counts.reasons())
        });
    }

    /// Kills what runs in a part's pods, and waits until all of it was started again.
    pub async fn crash_parts(&self, component: &str, pods: &[Life]) -> Result<(), Error> {
        for (name, _) in pods {
            self.lane.crash_part(name).await?;
        }
        until_lives_change(pods, || self.lane.parts(component)).await
    }

    /// Kills what runs in an engine's pod, and waits until it was started again.
    pub async fn crash_engine(&self, engine: &Life) -> Result<(), Error> {
        self.lane.crash_engine(&engine.0).await?;
        until_lives_change(std::slice::from_ref(engine), || self.engines()).await
    }
}

/// Waits until none of these lives goes on, though each of the pods is there.
async fn until_lives_change<F, Fut>(before: &[Life], mut now: F) -> Result<(), Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Vec<Life>, Error>>,
{
    eventually("what was killed is started again", PATIENCE_SECONDS, || {
        let now = now();
        async move {
            let now = now.await?;
            let again = |(name, life): &Life| now.iter().any(|(n, l)| n == name && l != life);
            if before.iter().all(again) { Ok(()) } else { Err(format!("{now:?}").into()) }
        }
    })
    .await
}

/// The pods with a label, besides those about to go; a life is a uid and how often its containers were restarted.
pub async fn lives(kubectl: &Kubectl, namespace: &str, selector: &str) -> Result<Vec<Life>, Error> {
    let list = kubectl.json(&["-n", namespace, "get", "pods", "-l", selector]).await?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let life = |p: &Value| {
        (text(&p["metadata"]["name"]), format!("{} + {}", text(&p["metadata"]["uid"]), restarts(p)))
    };
    let mut pods: Vec<Life> = items(&list).iter().filter(stays).map(life).collect();
    pods.sort();
    Ok(pods)
}

/// Whether a pod is not about to go.
pub fn stays(pod: &&Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
    containers.iter().filter_map(|c| c["restartCount"].as_u64()).sum()
}

pub fn condition<'a>(status: &'a Value, name: &str) -> &'a str {
    let of_name = |c: &&Value| c["type"] == name;
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(of_name).and_then(|c| c["status"].as_str()).unwrap_or("absent")
}
