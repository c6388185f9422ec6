//! One vLLM process, as `scripts/engine/setup` installed it.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Got, client, post, send};
use http_body_util::{BodyExt, Full};

/// The name that the engines know their model by.
pub const MODEL: &str = "tiny";
/// Longest request, tokens.
pub const CONTEXT: usize = 1024;
/// How long an engine may take to start, on a machine that has more to do.
const START: Duration = Duration::from_secs(420);

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder of the installation, or why there is none. Only `PLIMSOLL_TEST_ENGINE=1` has it looked for: engines take
/// several GB and minutes.
pub fn installed() -> Result<PathBuf, String> {
    if std::env::var("PLIMSOLL_TEST_ENGINE").as_deref() != Ok("1") {
        return Err("a real vLLM is for `make test-engine`".into());
    }
    let said = Command::new(workspace().join("scripts/engine/setup")).output().unwrap();
    if said.status.success() {
        return Ok(PathBuf::from(String::from_utf8(said.stdout).unwrap().trim()));
    }
    let why = String::from_utf8_lossy(&said.stderr);
    Err(why.lines().last().unwrap_or("scripts/engine/setup failed").to_owned())
}

/// A port that nobody listens at; of several asked for at once, each another.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    std::array::from_fn(|i| held[i].local_addr().unwrap().port())
}

/// How an engine is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub home: PathBuf,
    pub args: Vec<&'static str>,
    /// It hands caches over by NIXL.
    pub pairs: bool,
}

pub struct Vllm {
    pub address: SocketAddr,
    options: Options,
    child: Child,
    log: PathBuf,
}

impl Drop for Vllm {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Vllm {
    /// Starts one; [`Self::ready`] waits for it.
    pub fn start(options: Options, log: &Path) -> Self {
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = Self::spawn(&options, address, log);
        Self { address, options, child, log: log.to_owned() }
    }

    fn spawn(options: &Options, address: SocketAddr, log: &Path) -> Child {
        let [side_channel] = free_ports();
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(options.home.join("venv/bin/vllm"));
        command
            .arg("serve")
            .arg(options.home.join("tiny/model"))
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args([
                "--served-model-name",
                MODEL,
                "--dtype",
                "float32",
                "--enforce-eager",
                "--max-model-len",
                &CONTEXT.to_string(),
            ])
            // 256 blocks of 32 tokens: room for eight of the longest requests, in a few MB.
            .args([
                "--block-size",
                "32",
                "--num-gpu-blocks-override",
                "256",
                "--enable-prompt-tokens-details",
            ])
            .args(&options.args)
            .env("VLLM_CPU_KVCACHE_SPACE", "1")
            .env("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
            .env("VLLM_NO_USAGE_STATS", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // Its processes are ended together.
            .process_group(0);
        if options.pairs {
            let connector =
                json!({"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"});
            command
                .args(["--kv-transfer-config", &connector.to_string()])
                .env("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")
                .env("VLLM_NIXL_SIDE_CHANNEL_PORT", side_channel.to_string())
                .env("UCX_NET_DEVICES", "lo")
                .env("UCX_TLS", "tcp,sm,self");
        }
        command.spawn().unwrap()
    }

    /// Starts it again at its address.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(&self.options, self.address, &self.log);
    }

    /// Waits until it answers its health check.
    pub async fn ready(&mut self) {
        let until = tokio::time::Instant::now() + START;
        while tokio::time::Instant::now() < until {
            if self.get("/health").await.is_some_and(|(status, _)| status == 200) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                self.give_up(&format!("ended with {status}"));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.give_up("is not up in time");
    }

    fn give_up(&self, what: &str) -> ! {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(40).collect();
        panic!("vLLM {what}:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }

    fn signal(&self, signal: &str, to: &str) {
        let said = Command::new("kill").args([signal, "--", to]).status().unwrap();
        assert!(said.success(), "kill {signal} {to}");
    }

    /// As a machine that loses power: all its processes at once.
    pub fn kill(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("-KILL", &format!("-{}", self.child.id()));
        }
        let _ = self.child.wait();
    }

    /// The processes behind its API server, which compute.
    fn cores(&self) -> Vec<String> {
        let group = self.child.id().to_string();
        let listed = Command::new("ps").args(["-eo", "pid=,pgid="]).output().unwrap().stdout;
        let listed = String::from_utf8(listed).unwrap();
        let mut pids = Vec::new();
        for line in listed.lines() {
            if let Some((pid, of)) = line.trim().split_once(char::is_whitespace)
                && of.trim() == group
                && pid != group
            {
                pids.push(pid.to_owned());
            }
        }
        assert!(!pids.is_empty(), "an engine without a core process");
        pids
    }

    /// Stops (or lets go on) what computes; its API server still answers.
    pub fn freeze(&self, stop: bool) {
        for pid in self.cores() {
            self.signal(if stop { "-STOP" } else { "-CONT" }, &pid);
        }
    }

    /// A GET, within two seconds.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let request =
            http::Request::get(format!("http://{}{path}", self.address)).body(Full::default()).unwrap();
        let whole = async {
            let response = client().request(request).await.ok()?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::time::timeout(Duration::from_secs(2), whole).await.ok()?
    }

    /// The sum of a metric's lines whose labels hold `label`; not read by the agent's own reader.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = loop {
            if let Some((200, text)) = self.get("/metrics").await {
                break text;
            }
        };
        let of_name =
            text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        of_name
            .filter(|l| l.contains(label))
            .map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Asks the engine itself.
    pub async fn ask(&self, path: &str, body: &Value) -> Got {
        let mut request = post(self.address, path, body.to_string());
        request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        send(request).await
    }

    /// The adapters that it lists itself, in order.
    pub async fn holds(&self) -> Vec<String> {
        let Some((200, text)) = self.get("/v1/models").await else { return Vec::new() };
        let list: Value = serde_json::from_str(&text).unwrap();
        let models = list["data"].as_array().unwrap().iter();
        let mut names: Vec<String> = models
            .filter(|m| m["parent"].is_string())
            .map(|m| m["id"].as_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    }
}

/// Waits until a condition of an engine holds; a busy machine may take its time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let until = tokio::time::Instant::now() + Duration::from_secs(90);
    while !condition().await {
        assert!(tokio::time::Instant::now() < until, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
