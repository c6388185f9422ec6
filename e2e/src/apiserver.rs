//! The real Kubernetes API alone: etcd and kube-apiserver on loopback, with neither controllers nor nodes.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::system::{Process, workspace};
use crate::{Error, eventually};

/// The service account that [`ApiServer::account`] speaks for: the API's flow control treats it as such. It may do
/// everything, and its requests, no others, are in the audit log.
pub const ACCOUNT: &str = "system:serviceaccount:default:plimsoll-operator";

/// A running API server; it ends with this value.
#[derive(Debug)]
pub struct ApiServer {
    folder: tempfile::TempDir,
    programs: Vec<Process>,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver, and waits until they are ready. The first time on a machine Kubernetes may have to
    /// be built, which takes long.
    ///
    /// # Errors
    /// If the programs are not to be had or do not become ready.
    pub async fn start() -> Result<Self, Error> {
        let bin = programs()?;
        let folder = tempfile::tempdir()?;
        let dir = folder.path();
        let (etcd, etcd_url) = etcd(&bin, dir)?;
        let port = free_port()?;
        configure(dir, port)?;
        let program = kube_apiserver(&bin, dir, port, &etcd_url)?;
        let mut server = Self { folder, programs: vec![etcd, program] };
        let client = eventually("the API server is ready", 120, || {
            let ended = server.programs.iter_mut().find_map(|p| (!p.alive()).then(|| p.output()));
            let kubeconfig = server.administrator();
            async move {
                if let Some(output) = ended {
                    return Err(output.into());
                }
                let client = client(&kubeconfig).await?;
                let said = client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
                if said == "ok" { Ok(client) } else { Err(said.into()) }
            }
        })
        .await?;
        let binding = json!({"metadata": {"name": "plimsoll-operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": ACCOUNT}]});
        let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(client);
        bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
        Ok(server)
    }

    /// Kubeconfig of an administrator, whom flow control lets pass.
    pub fn administrator(&self) -> PathBuf {
        self.folder().join("admin.kubeconfig")
    }

    /// Kubeconfig of [`ACCOUNT`].
    pub fn account(&self) -> PathBuf {
        self.folder().join("account.kubeconfig")
    }

    /// A folder that goes with the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The requests of [`ACCOUNT`] from an offset in the audit log on, each as verb and resource, and the log's end. A
    /// watch counts when it begins, any other request when it is answered.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn requests(&self, from: u64) -> Result<(Vec<(String, String)>, u64), Error> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = std::fs::File::open(self.folder().join("audit.log"))?;
        file.seek(SeekFrom::Start(from))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may still be being written.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let requests = text[..whole]
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|event| {
                let part = |name: &str| event["objectRef"][name].as_str().unwrap_or_default().to_owned();
                let resource = match (part("resource"), part("subresource")) {
                    (resource, sub) if sub.is_empty() => resource,
                    (resource, sub) => format!("{resource}/{sub}"),
                };
                (event["verb"].as_str().unwrap_or_default().to_owned(), resource)
            })
            .collect();
        Ok((requests, from + whole as u64))
    }
}

/// A client for a kubeconfig.
///
/// # Errors
/// If it is not usable.
pub async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The folder of Kubernetes' programs: `$KUBEBUILDER_ASSETS` if it has these two, else what `scripts/kube/binaries` finds
/// or builds.
fn programs() -> Result<PathBuf, Error> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let complete = |dir: &PathBuf| ["etcd", "kube-apiserver"].iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = assets.filter(complete) {
        return Ok(dir);
    }
    let output = std::process::Command::new(workspace().join("scripts/kube/binaries"))
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("scripts/kube/binaries has no programs to offer: see above".into());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// An address on loopback that nobody listens on just now.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<String, Error> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

/// A port that nobody listens on just now.
fn free_port() -> Result<u16, Error> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn etcd(bin: &Path, dir: &Path) -> Result<(Process, String), Error> {
    let (clients, peers) = (free_port()?, free_port()?);
    let (url, peer_url) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    let args = [
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        "--log-level=warn".to_owned(),
    ];
    Ok((Process::start_program("etcd", &bin.join("etcd"), &args, dir)?, url))
}

/// Writes keys, tokens, the audit policy and the kubeconfigs.
fn configure(dir: &Path, port: u16) -> Result<(), Error> {
    let made = std::process::Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
        .arg(dir.join("service-account.key"))
        .output()
        .map_err(|e| format!("openssl, which makes a key, does not run: {e}"))?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
    }
    let tokens = format!(
        "admin-token,admin,admin,system:masters\naccount-token,{ACCOUNT},account,system:serviceaccounts\n"
    );
    std::fs::write(dir.join("tokens.csv"), tokens)?;
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [
        {"level": "Metadata", "users": [ACCOUNT], "verbs": ["watch"], "omitStages": ["RequestReceived", "ResponseComplete"]},
        {"level": "Metadata", "users": [ACCOUNT], "omitStages": ["RequestReceived", "ResponseStarted"]},
        {"level": "None"},
    ]});
    std::fs::write(dir.join("audit.yaml"), policy.to_string())?;
    for user in ["admin", "account"] {
        // The server makes its own certificate; whoever it belongs to is its own authority.
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": user,
            "contexts": [{"name": user, "context": {"cluster": "api", "user": user}}],
            "clusters": [{"name": "api", "cluster": {"server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": dir.join("certs/apiserver.crt")}}],
            "users": [{"name": user, "user": {"token": format!("{user}-token")}}]});
        std::fs::write(dir.join(format!("{user}.kubeconfig")), kubeconfig.to_string())?;
    }
    Ok(())
}

fn kube_apiserver(bin: &Path, dir: &Path, port: u16, etcd_url: &str) -> Result<Process, Error> {
    let path = |name: &str| dir.join(name).display().to_string();
    let args = [
        format!("--etcd-servers={etcd_url}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--cert-dir={}", path("certs")),
        format!("--token-auth-file={}", path("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", path("service-account.key")),
        format!("--service-account-key-file={}", path("service-account.key")),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        // Here nobody makes service accounts, or takes back from new nodes that they are not ready.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
        format!("--audit-policy-file={}", path("audit.yaml")),
        format!("--audit-log-path={}", path("audit.log")),
    ];
    Process::start_program("kube-apiserver", &bin.join("kube-apiserver"), &args, dir)
}
