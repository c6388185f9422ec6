//! Where adapters are: a web server with ranges and tags, Hugging Face's, a registry's and S3's ways on top of it, that breaks off when
//! it is told to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::header;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

#[derive(Debug, Default)]
pub struct State {
    files: HashMap<String, Bytes>,
    /// Bytes after which the next answers with files break off.
    cuts: Vec<usize>,
    /// What a request must have as its authorization, by path prefix.
    guards: Vec<(String, String)>,
    /// Redirects, by path.
    redirects: HashMap<String, String>,
    /// `METHOD path range authorization` of each request.
    pub log: Vec<String>,
    /// Time before a file is sent.
    delay: std::time::Duration,
    ranges: bool,
}

#[derive(Debug, Clone)]
pub struct Hub {
    pub addr: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl Hub {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(Mutex::new(State { ranges: true, ..State::default() }));
        let hub = Self { addr: listener.local_addr().unwrap(), state };
        let served = hub.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hub = served.clone();
                let service = service_fn(move |request| {
                    let hub = hub.clone();
                    async move { Ok::<_, Infallible>(hub.answer(request).await) }
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        hub
    }

    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        self.state.lock().files.insert(path.to_owned(), bytes.into());
    }

    /// An adapter's two files under a path.
    pub fn put_adapter(&self, folder: &str, weights: &[u8]) {
        self.put(&format!("{folder}/adapter_config.json"), config());
        self.put(&format!("{folder}/adapter_model.safetensors"), weights.to_vec());
    }

    /// The next answers with a weights' file break off after so many bytes.
    pub fn cut(&self, after: &[usize]) {
        self.state.lock().cuts = after.iter().rev().copied().collect();
    }

    pub fn guard(&self, prefix: &str, authorization: &str) {
        self.state.lock().guards.push((prefix.to_owned(), authorization.to_owned()));
    }

    pub fn redirect(&self, from: &str, to: &str) {
        self.state.lock().redirects.insert(from.to_owned(), to.to_owned());
    }

    pub fn slow(&self, delay: std::time::Duration) {
        self.state.lock().delay = delay;
    }

    pub fn no_ranges(&self) {
        self.state.lock().ranges = false;
    }

    pub fn log(&self) -> Vec<String> {
        self.state.lock().log.clone()
    }

    /// Downloads of weights that began.
    pub fn downloads(&self) -> usize {
        let weights = |line: &&String| {
            line.starts_with("GET") && (line.contains(".safetensors") || line.contains("/blobs/"))
        };
        self.log().iter().filter(weights).count()
    }

    /// Hugging Face's list for a repository whose files are under `/repo/resolve/commit/`.
    pub fn put_repository(&self, repository: &str, revision: &str, commit: &str, weights: &[u8]) {
        let sha256 = sha256(weights);
        let list = json!({"sha": commit, "siblings": [
            {"rfilename": "README.md", "size": 3},
            {"rfilename": "adapter_config.json", "size": config().len()},
            {"rfilename": "adapter_model.safetensors", "size": weights.len(),
             "lfs": {"sha256": sha256, "size": weights.len()}},
        ]});
        self.put(&format!("/api/models/{repository}/revision/{revision}"), list.to_string());
        self.put_adapter(&format!("/{repository}/resolve/{commit}"), weights);
    }

    /// An artifact in a registry.
    pub fn put_artifact(&self, repository: &str, tag: &str, weights: &[u8]) {
        let layer = |name: &str, bytes: &[u8]| {
            let digest = format!("sha256:{}", sha256(bytes));
            self.put(&format!("/v2/{repository}/blobs/{digest}"), bytes.to_vec());
            json!({"digest": digest, "size": bytes.len(), "annotations": {"org.opencontainers.image.title": name}})
        };
        let layers = [layer("adapter_config.json", &config()), layer("adapter_model.safetensors", weights)];
        self.put(&format!("/v2/{repository}/manifests/{tag}"), json!({"layers": layers}).to_string());
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().replace("%3A", ":");
        let header = |name: header::HeaderName| {
            request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned()
        };
        let (range, authorization, if_match) =
            (header(header::RANGE), header(header::AUTHORIZATION), header(header::IF_MATCH));
        let (delay, ranges) = {
            let mut state = self.state.lock();
            state.log.push(format!("{} {path} {range} {authorization}", request.method()));
            if let Some(to) = state.redirects.get(&path) {
                return plain(302, "").header(header::LOCATION, to).body(full("")).unwrap();
            }
            let guard = state.guards.iter().find(|(prefix, _)| path.starts_with(prefix));
            if guard.is_some_and(|(_, wanted)| !authorization.starts_with(wanted.as_str())) {
                let realm = format!("Bearer realm=\"http://{}/token\",service=\"hub\"", self.addr);
                return plain(401, "")
                    .header(header::WWW_AUTHENTICATE, realm)
                    .body(full(&format!("you sent {authorization}")))
                    .unwrap();
            }
            (state.delay, state.ranges)
        };
        if path == "/token" {
            return plain(200, "").body(full(&json!({"token": "of-the-registry"}).to_string())).unwrap();
        }
        if let Some(query) = request.uri().query().filter(|q| q.contains("list-type=2")) {
            return self.s3_list(&path, query);
        }
        let Some(bytes) = self.state.lock().files.get(&path).cloned() else {
            return plain(404, "").body(full(&format!("no {path}, {authorization}"))).unwrap();
        };
        let tag = format!("\"{}\"", &sha256(&bytes)[..16]);
        if if_match != "-" && if_match != tag {
            return plain(412, "").body(full("")).unwrap();
        }
        let from = range
            .strip_prefix("bytes=")
            .and_then(|r| r.strip_suffix('-'))
            .and_then(|r| r.parse::<usize>().ok());
        let from = from.filter(|_| ranges);
        let part = bytes.slice(from.unwrap_or(0).min(bytes.len())..);
        let status = if from.is_some() { 206 } else { 200 };
        let mut head = plain(status, &tag).header(header::CONTENT_LENGTH, part.len());
        if let Some(from) = from {
            let said = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            head = head.header(header::CONTENT_RANGE, said);
        }
        if request.method() == http::Method::HEAD {
            return head.body(full("")).unwrap();
        }
        let large = path.contains(".safetensors") || (path.contains("/blobs/") && bytes.len() > 1000);
        if large && !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let cut = if large { self.state.lock().cuts.pop() } else { None };
        match cut {
            Some(after) if after < part.len() => {
                let begin = part.slice(..after);
                // What was sent is to arrive before the connection ends.
                let end = async {
                    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                    Err(std::io::Error::other("cut"))
                };
                let parts = futures::stream::iter([Ok(Frame::data(begin))]).chain(futures::stream::once(end));
                head.body(BodyExt::boxed(StreamBody::new(parts))).unwrap()
            }
            _ => head.body(Full::new(part).map_err(|never| match never {}).boxed()).unwrap(),
        }
    }

    /// ListObjectsV2 of the bucket at a path.
    fn s3_list(&self, path: &str, query: &str) -> Answer {
        let bucket = path.trim_end_matches('/').to_owned();
        let prefix =
            query.split('&').find_map(|p| p.strip_prefix("prefix=")).unwrap_or_default().replace("%2F", "/");
        let state = self.state.lock();
        let contents: String = state
            .files
            .iter()
            .filter_map(|(path, bytes)| Some((path.strip_prefix(&format!("{bucket}/"))?, bytes)))
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(key, bytes)| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>\
                     <ETag>&quot;x&quot;</ETag><Size>{}</Size></Contents>",
                    bytes.len()
                )
            })
            .collect();
        let text = format!(
            "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        );
        plain(200, "").header(header::CONTENT_LENGTH, text.len()).body(full(&text)).unwrap()
    }
}

fn plain(status: u16, tag: &str) -> http::response::Builder {
    let builder = Response::builder().status(status);
    if tag.is_empty() { builder } else { builder.header(header::ETAG, tag) }
}

fn full(text: &str) -> BoxBody<Bytes, std::io::Error> {
    Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed()
}

pub fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// An adapter's settings.
pub fn config() -> Vec<u8> {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "acme/base"})
        .to_string()
        .into_bytes()
}

/// A safetensors file with matrices for `q_proj` of one layer, its numbers by `seed`.
pub fn weights(rank: usize, hidden: usize, seed: u8) -> Vec<u8> {
    let bytes = 4 * rank * hidden;
    let name = |matrix: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{matrix}.weight");
    let mut header = serde_json::Map::<String, Value>::new();
    header
        .insert(name("lora_A"), json!({"dtype": "F32", "shape": [rank, hidden], "data_offsets": [0, bytes]}));
    header.insert(
        name("lora_B"),
        json!({"dtype": "F32", "shape": [hidden, rank], "data_offsets": [bytes, 2 * bytes]}),
    );
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..2 * bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    file
}
