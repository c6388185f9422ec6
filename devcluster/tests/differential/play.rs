//! Puts a case to one server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::{Request, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::normal::Normaliser;
use crate::script::{Action, Script, Step};

/// How long a step may take.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Headers that clients of the API read.
const HEADERS: &[&str] = &["content-type", "warning", "retry-after", "location"];

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As it came: the body of a request, or `{exit, stdout, stderr}` of kubectl.
    pub body: Value,
    /// All that is compared, freed of what differs from run to run.
    pub normal: Value,
}

/// A client of one server.
pub struct Player {
    client: Client,
    kubectl: PathBuf,
    home: PathBuf,
    server: String,
}

impl Player {
    /// A client by a kubeconfig's text, with a home for kubectl.
    pub async fn new(kubeconfig: &str, kubectl: &Path, home: &Path) -> Self {
        std::fs::create_dir_all(home).unwrap();
        std::fs::write(home.join("config"), kubeconfig).unwrap();
        let parsed = Kubeconfig::from_yaml(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(parsed, &options).await.unwrap();
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).unwrap();
        Self { client, kubectl: kubectl.to_owned(), home: home.to_owned(), server }
    }

    /// Plays all steps; an answer for each.
    pub async fn play(&self, script: &Script) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        let mut normaliser = Normaliser::new(&self.server);
        for step in &script.steps {
            let fill = |text: &str| fill(text, script, &answers);
            let taken = tokio::time::timeout(STEP_LIMIT, self.step(step, &fill)).await;
            let (body, mut whole) =
                taken.unwrap_or_else(|_| (Value::Null, format!("no answer within {STEP_LIMIT:?}").into()));
            normaliser.normalise(&mut whole);
            answers.push(Answer { body, normal: whole });
        }
        answers
    }

    async fn step(&self, step: &Step, fill: &(impl Fn(&str) -> String + Sync)) -> (Value, Value) {
        match &step.action {
            Action::Http { method, path, headers, body } => {
                let mut request = Request::builder()
                    .method(method.clone())
                    .uri(encode(&fill(path)))
                    .header(header::USER_AGENT, "differential/1");
                if !headers.iter().any(|(name, _)| name == "accept") {
                    request = request.header(header::ACCEPT, "application/json");
                }
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                self.http(request.body(Body::from(fill(body).into_bytes())).unwrap()).await
            }
            Action::Kubectl { args, stdin } => {
                let args: Vec<String> = args.iter().map(|a| fill(a)).collect();
                let answer = self.call(&args, &fill(stdin)).await;
                (answer.clone(), answer)
            }
            Action::Until { path, code, text } => {
                let path = fill(path);
                loop {
                    let request = Request::get(encode(&path)).body(Body::empty()).unwrap();
                    let (body, whole) = self.http(request).await;
                    if whole["code"] == *code && (text.is_empty() || body.to_string().contains(&fill(text))) {
                        return (body, Value::Null);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn http(&self, request: Request<Body>) -> (Value, Value) {
        let response = match self.client.send(request).await {
            Ok(response) => response,
            Err(error) => return (Value::Null, format!("no answer: {error}").into()),
        };
        let mut whole = Map::new();
        whole.insert("code".into(), response.status().as_u16().into());
        for name in HEADERS {
            let values: Vec<Value> = response
                .headers()
                .get_all(*name)
                .iter()
                .map(|v| v.to_str().unwrap_or_default().into())
                .collect();
            if !values.is_empty() {
                whole.insert((*name).into(), values.into());
            }
        }
        let yaml =
            response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/yaml");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        // How YAML is written is free: what it says is compared.
        let parsed = yaml.then(|| serde_saphyr::from_slice(&bytes).ok()).flatten();
        let body = parsed.unwrap_or_else(|| parse(&bytes));
        whole.insert("body".into(), body.clone());
        (body, Value::Object(whole))
    }

    async fn call(&self, args: &[String], stdin: &str) -> Value {
        let mut child = Command::new(&self.kubectl)
            .args(args)
            .env("KUBECONFIG", self.home.join("config"))
            .env("HOME", &self.home)
            .env("KUBE_EDITOR", "false")
            .current_dir(&self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // One that reads no input has closed it already.
        let _ = pipe.write_all(stdin.as_bytes()).await;
        drop(pipe);
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes: &[u8]| -> Value {
            let text = String::from_utf8_lossy(bytes);
            match serde_json::from_str::<Value>(&text) {
                Ok(value) if value.is_object() => value,
                _ => text.lines().map(Value::from).collect(),
            }
        };
        json!({"exit": output.status.code(), "stdout": text(&output.stdout), "stderr": text(&output.stderr)})
    }
}

/// A body as JSON, a stream of JSON lines as a list, else as text.
fn parse(bytes: &[u8]) -> Value {
    match serde_json::from_slice::<Value>(bytes) {
        // A watch that told of one thing is a list all the same.
        Ok(value) if value["type"].is_string() && value["object"].is_object() => return vec![value].into(),
        Ok(value) => return value,
        Err(_) => {}
    }
    let text = String::from_utf8_lossy(bytes);
    let lines: Option<Vec<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    // Whether and when a watch is told how far it has come is the server's to choose, but for the end of the first events.
    let told =
        |line: &Value| line["type"] != "BOOKMARK" || line.pointer("/object/metadata/annotations").is_some();
    lines.map_or_else(|| text.as_ref().into(), |all| all.into_iter().filter(told).collect())
}

/// A path and query with what they must not hold as it is percent-encoded.
fn encode(path: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !"<>\"{}|\\^`".contains(c);
    path.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) }).collect()
}

/// Puts the namespace and values of earlier answers in.
fn fill(text: &str, script: &Script, answers: &[Answer]) -> String {
    let mut out = String::new();
    let text = text.replace("{ns}", &script.namespace());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("@{") {
        let (reference, after) = after.split_once('}').expect("a closing brace");
        let (step, pointer) = reference.split_once(':').expect("step:pointer");
        let at = script.steps.iter().position(|s| s.name == step).unwrap_or_else(|| panic!("no step {step}"));
        let value = answers[at].body.pointer(pointer).cloned().unwrap_or_default();
        out.push_str(before);
        out.push_str(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        rest = after;
    }
    out.push_str(rest);
    out
}
