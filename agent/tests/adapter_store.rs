//! The node's cache of adapters against real files on disk and a server that speaks HTTP, Hugging Face's, a registry's and S3's ways.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_agent::AgentMetrics;
use plimsoll_agent::adapters::store::{Credentials, Hosts, Kept, Store, StoreConfig, StoreError, key};
use plimsoll_fleet::{AdapterFiles, ReplicaId};
use support::hub::{Hub, config, sha256, weights};

struct World {
    hub: Hub,
    dir: tempfile::TempDir,
    config: StoreConfig,
}

impl World {
    async fn new() -> Self {
        let hub = Hub::start().await;
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path().join("cache"), 1 << 20);
        config.engine_dir = "/engine".into();
        config.hf_endpoint = format!("http://{}", hub.addr);
        std::fs::create_dir_all(dir.path().join("secret")).unwrap();
        config.credentials = Credentials { dir: Some(dir.path().join("secret")), hf_token: None };
        Self { hub, dir, config }
    }

    fn open(&self) -> Arc<Store> {
        Arc::new(Store::open(self.config.clone(), "n1", AgentMetrics::default()).unwrap())
    }

    fn secret(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("secret").join(name), text).unwrap();
    }

    fn http(&self, folder: &str) -> String {
        format!("http://{}{folder}", self.hub.addr)
    }

    /// The weights that the cache has for a source.
    fn cached(&self, source: &str) -> Option<Vec<u8>> {
        let folder = self.config.dir.join("adapters").join(key(source, &AdapterFiles::default()));
        std::fs::read(folder.join("adapter_model.safetensors")).ok()
    }
}

async fn get(
    store: &Arc<Store>,
    source: &str,
) -> Result<plimsoll_agent::adapters::store::Obtained, StoreError> {
    store.obtain(source, &AdapterFiles::default(), 0).await
}

async fn said(store: &Arc<Store>, source: &str) -> String {
    get(store, source).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_on_a_web_server_is_fetched_once_and_found_again_after_a_restart() {
    let world = World::new().await;
    let file = weights(4, 64, 1);
    world.hub.put_adapter("/a", &file);
    let (store, source) = (world.open(), world.http("/a"));
    // However many ask.
    let asks = (0..8).map(|_| {
        let (store, source) = (store.clone(), source.clone());
        tokio::spawn(async move { get(&store, &source).await.unwrap() })
    });
    let all: Vec<_> = futures::future::join_all(asks).await.into_iter().map(Result::unwrap).collect();
    let name = key(&source, &AdapterFiles::default());
    assert_eq!(all[0].path, format!("/engine/adapters/{name}"));
    assert_eq!(all[0].bytes, Some((file.len() + config().len()) as u64));
    assert_eq!(world.cached(&source), Some(file.clone()));
    assert_eq!(world.hub.downloads(), 1);
    let again = world.open();
    assert_eq!(get(&again, &source).await.unwrap(), all[0]);
    assert_eq!((world.hub.downloads(), again.bytes()), (1, all[0].bytes.unwrap()));
    // What somebody damaged behind its back is fetched anew.
    let weights_file = world.config.dir.join("adapters").join(&name).join("adapter_model.safetensors");
    std::fs::write(&weights_file, b"short").unwrap();
    get(&again, &source).await.unwrap();
    assert_eq!((world.hub.downloads(), world.cached(&source)), (2, Some(file)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_off_is_gone_on_with_and_what_changed_meanwhile_begins_anew() {
    let world = World::new().await;
    let file = weights(4, 4096, 1);
    world.hub.put_adapter("/a", &file);
    let source = world.http("/a");
    let store = world.open();
    // The library itself goes on after a break; here it breaks off more often than it asks again.
    world.hub.cut(&[1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
    let mut failures = 0;
    while let Err(error) = get(&store, &source).await {
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        failures += 1;
        assert!(failures < 10);
    }
    assert_eq!(world.cached(&source), Some(file));
    let ranged =
        world.hub.log().iter().filter(|l| l.contains("bytes=1000-") || l.contains("bytes=2000-")).count();
    assert!(ranged > 0, "{:?}", world.hub.log());

    let other = world.http("/b");
    world.hub.put_adapter("/b", &weights(4, 4096, 2));
    let partial = world.config.dir.join("partial").join(key(&other, &AdapterFiles::default()));
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("adapter_model.safetensors"), &weights(4, 4096, 3)[..5000]).unwrap();
    std::fs::write(partial.join("adapter_model.safetensors.etag"), "\"of another\"").unwrap();
    get(&store, &other).await.unwrap();
    assert_eq!(world.cached(&other), Some(weights(4, 4096, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_ranges_is_asked_from_the_start() {
    let world = World::new().await;
    let (file, source) = (weights(4, 1024, 1), world.http("/a"));
    world.hub.put_adapter("/a", &file);
    world.hub.no_ranges();
    let partial = world.config.dir.join("partial").join(key(&source, &AdapterFiles::default()));
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("adapter_model.safetensors"), &file[..5000]).unwrap();
    std::fs::write(partial.join("adapter_model.safetensors.etag"), format!("\"{}\"", &sha256(&file)[..16]))
        .unwrap();
    get(&world.open(), &source).await.unwrap();
    assert_eq!(world.cached(&source), Some(file));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hugging_faces_files_are_those_of_the_commit_and_of_its_digest() {
    let world = World::new().await;
    let file = weights(4, 64, 1);
    world.hub.put_repository("acme/law", "v2", "c0ffee", &file);
    world.hub.guard("/api/models/acme/law", "Bearer hf_secret");
    world.hub.guard("/acme/law", "Bearer hf_secret");
    // Weights are elsewhere, as Hugging Face has it; the token is not for them.
    let cdn = Hub::start().await;
    cdn.put("/blob.safetensors", file.clone());
    world.hub.redirect(
        "/acme/law/resolve/c0ffee/adapter_model.safetensors",
        &format!("http://{}/blob.safetensors?signature=x", cdn.addr),
    );
    let store = world.open();
    let denied = said(&store, "hf://acme/law@v2").await;
    assert!(denied.contains("Secret of credentials") && !denied.contains("Bearer"), "{denied}");
    world.secret("HF_TOKEN", "hf_secret\n");
    get(&store, "hf://acme/law@v2").await.unwrap();
    assert_eq!(world.cached("hf://acme/law@v2"), Some(file));
    assert!(cdn.log().iter().all(|line| line.ends_with(" -")), "{:?}", cdn.log());
    let gone = said(&store, "hf://acme/law@v3").await;
    assert!(gone.contains("Secret of credentials") || gone.contains("v3"), "{gone}");

    // Not what the digest says.
    world.hub.put_repository("acme/ode", "main", "beef", &weights(4, 64, 2));
    world.hub.put("/acme/ode/resolve/beef/adapter_model.safetensors", weights(4, 64, 3));
    let damaged = said(&store, "hf://acme/ode").await;
    assert!(damaged.contains("came damaged") && damaged.contains("SHA-256"), "{damaged}");
    assert_eq!(world.cached("hf://acme/ode"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_come_from_registries_that_ask_for_a_token() {
    let world = World::new().await;
    let file = weights(4, 1024, 1);
    world.hub.put_artifact("acme/law", "v1", &file);
    world.hub.guard("/v2/", "Bearer of-the-registry");
    world.hub.guard("/token", "Basic bWU6cHc=");
    let (registry, store) = (world.hub.addr, world.open());
    let source = format!("oci://{registry}/acme/law:v1");
    assert!(said(&store, &source).await.contains("gives no token"));
    world.secret(
        ".dockerconfigjson",
        &format!(r#"{{"auths": {{"{registry}": {{"username": "me", "password": "pw"}}}}}}"#),
    );
    get(&store, &source).await.unwrap();
    assert_eq!(world.cached(&source), Some(file));
    let gone = said(&store, &format!("oci://{registry}/acme/law:v9")).await;
    assert!(gone.contains("v9") && gone.contains("spec.source"), "{gone}");
    // An image is no artifact with a layer for each file.
    world.hub.put("/v2/acme/image/manifests/latest", r#"{"layers": [{"digest": "sha256:00", "size": 1}]}"#);
    assert!(said(&store, &format!("oci://{registry}/acme/image")).await.contains("oras push"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_come_from_s3_signed() {
    let world = World::new().await;
    let file = weights(4, 1024, 1);
    world.hub.put_adapter("/models/lora/law", &file);
    world.hub.guard("/models", "AWS4-HMAC-SHA256 Credential=AKID/");
    world.secret("AWS_ACCESS_KEY_ID", "AKID");
    world.secret("AWS_SECRET_ACCESS_KEY", "hunter2");
    world.secret("AWS_REGION", "eu-north-1");
    world.secret("AWS_ENDPOINT_URL", &format!("http://{}", world.hub.addr));
    let store = world.open();
    get(&store, "s3://models/lora/law").await.unwrap();
    assert_eq!(world.cached("s3://models/lora/law"), Some(file));
    let gone = said(&store, "s3://models/lora/ode").await;
    assert!(gone.contains("adapter_config.json"), "{gone}");
    // Of what a server says against a signed request, nothing is passed on.
    world.secret("AWS_ACCESS_KEY_ID", "OTHER");
    let denied = said(&store, "s3://models/lora/pun").await;
    assert!(
        !denied.contains("OTHER") && !denied.contains("Signature") && !denied.contains("hunter2"),
        "{denied}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_engines_cannot_load_is_told_and_fetched_anew_once_it_is_mended() {
    let world = World::new().await;
    let (store, source) = (world.open(), world.http("/a"));
    let missing = said(&store, &source).await;
    assert!(missing.contains("adapter_config.json") && missing.contains("spec.source"), "{missing}");
    world.hub.put_adapter("/a", &weights(16, 64, 1));
    let files = AdapterFiles { rank: 8, hidden: 64, layers: 1, ..AdapterFiles::default() };
    let rank = store.obtain(&source, &files, 8).await.unwrap_err();
    assert!(rank.to_string().contains("its rank is 16") && rank.is_lasting(), "{rank}");
    world.hub.put_adapter("/a", &weights(8, 32, 1));
    let base = store.obtain(&source, &files, 8).await.unwrap_err().to_string();
    assert!(base.contains("acme/base") && base.contains("spec.basePool"), "{base}");
    let cut = weights(8, 64, 1);
    world.hub.put_adapter("/a", &cut[..cut.len() - 100]);
    let corrupt = store.obtain(&source, &files, 8).await.unwrap_err().to_string();
    assert!(corrupt.contains("cut off"), "{corrupt}");
    world.hub.put_adapter("/a", &weights(8, 64, 1));
    assert!(store.obtain(&source, &files, 8).await.is_ok());
    let other = AdapterFiles { sha256: "0".repeat(64), ..files.clone() };
    let digest = store.obtain(&source, &other, 8).await.unwrap_err().to_string();
    assert!(digest.contains("spec.sha256") && digest.contains(&sha256(&weights(8, 64, 1))), "{digest}");
    let right = AdapterFiles { sha256: sha256(&weights(8, 64, 1)), ..files };
    assert!(store.obtain(&source, &right, 8).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_holds_and_what_engines_hold_stays() {
    let mut world = World::new().await;
    let file = weights(4, 1024, 1);
    let one = (file.len() + config().len()) as u64;
    world.config.cap_bytes = 2 * one + one / 2;
    for folder in ["/a", "/b", "/c", "/d"] {
        world.hub.put_adapter(folder, &file);
    }
    let store = world.open();
    let [a, b, c, d] = ["/a", "/b", "/c", "/d"].map(|folder| world.http(folder));
    get(&store, &a).await.unwrap();
    get(&store, &b).await.unwrap();
    let named = |sources: &[&String]| -> BTreeSet<String> {
        sources.iter().map(|s| key(s, &AdapterFiles::default())).collect()
    };
    let (first, second) = (ReplicaId::new("r1").unwrap(), ReplicaId::new("r2").unwrap());
    store.keep(&first, Kept { held: named(&[&a]), ..Kept::default() });
    get(&store, &c).await.unwrap();
    assert!(
        world.cached(&a).is_some() && world.cached(&b).is_none() && store.bytes() <= world.config.cap_bytes
    );
    store.keep(&second, Kept { coming: named(&[&c]), ..Kept::default() });
    let full = get(&store, &d).await.unwrap_err();
    assert!(full.to_string().contains("no room") && !full.is_lasting(), "{full}");
    store.keep(&second, Kept::default());
    get(&store, &d).await.unwrap();
    assert!(world.cached(&a).is_some() && world.cached(&c).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_have_a_deadline_and_a_queue() {
    let mut world = World::new().await;
    world.config.within = Duration::from_millis(300);
    (world.config.downloads, world.config.most_waiting) = (1, 1);
    for folder in ["/a", "/b", "/c"] {
        world.hub.put_adapter(folder, &weights(4, 64, 1));
    }
    world.hub.slow(Duration::from_secs(30));
    let store = world.open();
    let [a, b, c] = ["/a", "/b", "/c"].map(|folder| world.http(folder));
    let ask = |source: String| {
        let store = store.clone();
        tokio::spawn(async move { get(&store, &source).await })
    };
    let (first, second) = (ask(a.clone()), ask(b));
    while world.hub.downloads() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let busy = get(&store, &c).await.unwrap_err();
    assert!(matches!(busy, StoreError::Busy { waiting: 2 }), "{busy}");
    assert!(matches!(first.await.unwrap(), Err(StoreError::TooLate { .. })));
    assert!(matches!(second.await.unwrap(), Err(StoreError::TooLate { .. })));
    world.hub.slow(Duration::ZERO);
    get(&store, &a).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_hosts_that_may_be_asked_are_and_volumes_of_engines_are_not_copied() {
    let mut world = World::new().await;
    world.config.hosts = Hosts(vec!["files.acme".into()]);
    world.hub.put_adapter("/a", &weights(4, 64, 1));
    let store = world.open();
    let host = said(&store, &world.http("/a")).await;
    assert!(host.contains("127.0.0.1") && host.contains("--adapter-host"), "{host}");
    assert!(world.hub.log().is_empty());
    assert_eq!(get(&store, "pvc://claim/a/b").await.unwrap().path, "/adapter-claims/claim/a/b");
    assert_eq!(get(&store, "file:///models/law").await.unwrap().path, "/models/law");
    assert!(said(&store, "law").await.contains("no scheme"));
}
