//! A real API server on loopback: etcd, kube-apiserver and kube-controller-manager, with their state in one folder.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The minor version that devcluster speaks; others differ in their kinds and texts.
const MINOR: &str = "v1.35.";
const PROGRAMS: &[&str] = &["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
/// How long the API server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Token of the only user.
const TOKEN: &str = "differential";

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The folder in which the programs are, or why there is none.
pub fn programs_at_hand() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("PLIMSOLL_KUBE_BIN") {
        let folder = PathBuf::from(folder);
        return suitable(&folder).map(|()| folder);
    }
    cached().into_iter().find(|f| suitable(f).is_ok()).ok_or_else(|| {
        format!("programs of Kubernetes {MINOR}x are not at hand (`scripts/kube/binaries` builds them)")
    })
}

/// The folder with the programs, built where they are not at hand, or why there is none.
pub fn find_programs() -> Result<PathBuf, String> {
    let at_hand = programs_at_hand();
    if at_hand.is_ok() || std::env::var_os("PLIMSOLL_KUBE_BIN").is_some() {
        return at_hand;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kube/binaries");
    let output = Command::new(script).stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err("scripts/kube/binaries failed".into());
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    suitable(&folder).map(|()| folder)
}

/// Folders in which `scripts/kube/binaries` keeps what it built or found.
fn cached() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let cache = std::env::var_os("PLIMSOLL_CACHE").map(PathBuf::from).or_else(|| {
        Some(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("plimsoll"))
    });
    let Some(entries) = cache.and_then(|c| std::fs::read_dir(c.join("kube")).ok()) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path().join("bin"))).collect();
    folders.retain(|f| f.is_dir());
    folders.sort();
    folders.reverse();
    folders
}

fn suitable(folder: &Path) -> Result<(), String> {
    for program in PROGRAMS {
        if !folder.join(program).is_file() {
            return Err(format!("{} has no {program}", folder.display()));
        }
    }
    let program = folder.join("kube-apiserver");
    let output = Command::new(&program).arg("--version").output();
    let output = output.map_err(|e| format!("{} does not run: {e}", program.display()))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match version.contains(MINOR) {
        true => Ok(()),
        false => Err(format!("{} is of {version}, not {MINOR}x", folder.display())),
    }
}

/// A process that ends with this value, and with the test's own process however that ends: a shell reads a pipe from it.
#[derive(Debug)]
struct Held {
    shell: Child,
}

impl Held {
    fn start(program: &Path, args: &[String], log: &Path) -> Result<Self, Error> {
        let file = std::fs::File::create(log)?;
        let shell = Command::new("sh")
            .args(["-c", "\"$@\" </dev/null & pid=$!; read -r _; kill -9 $pid; wait $pid", "sh"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { shell })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A running API server.
#[derive(Debug)]
pub struct RealCluster {
    // In the order in which they are to end.
    _controller_manager: Held,
    _api: Held,
    _etcd: Held,
    port: u16,
}

impl RealCluster {
    /// Starts it and waits until it answers.
    pub async fn start(programs: &Path, home: &Path) -> Result<Self, Error> {
        let ports = free_ports(4)?;
        let [etcd_port, peer_port, port, manager_port] = ports[..] else {
            unreachable!("four were asked for")
        };
        let dir = home.join("kubernetes");
        std::fs::create_dir_all(&dir)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let openssl = Command::new("openssl").args(["genrsa", "-out", &path("key"), "2048"]).output()?;
        if !openssl.status.success() {
            return Err("openssl could not make a key for ServiceAccounts".into());
        }
        std::fs::write(dir.join("tokens"), format!("{TOKEN},kubernetes-admin,,system:masters\n"))?;
        let start = |name: &str, args: &[String]| {
            let args: Vec<String> = args.iter().map(|a| format!("--{a}")).collect();
            Held::start(&programs.join(name), &args, &dir.join(format!("{name}.log")))
        };
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let etcd = start(
            "etcd",
            &[
                "name=default".into(),
                format!("data-dir={}", path("etcd")),
                "unsafe-no-fsync".into(),
                format!("listen-client-urls={etcd_url}"),
                format!("advertise-client-urls={etcd_url}"),
                format!("listen-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("initial-cluster=default=http://127.0.0.1:{peer_port}"),
            ],
        )?;
        let api = start(
            "kube-apiserver",
            &[
                format!("etcd-servers={etcd_url}"),
                format!("cert-dir={}", path("certificates")),
                "bind-address=127.0.0.1".into(),
                "advertise-address=127.0.0.1".into(),
                format!("secure-port={port}"),
                "endpoint-reconciler-type=none".into(),
                "authorization-mode=RBAC".into(),
                "allow-privileged=true".into(),
                format!("token-auth-file={}", path("tokens")),
                "service-cluster-ip-range=10.96.0.0/16".into(),
                "service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("service-account-key-file={}", path("key")),
                format!("service-account-signing-key-file={}", path("key")),
                "profiling=false".into(),
            ],
        )?;
        let kubeconfig = kubeconfig(port);
        std::fs::write(dir.join("kubeconfig"), &kubeconfig)?;
        ready(&programs.join("kubectl"), &dir).await?;
        // What devcluster does of it: namespaces end, owners take their objects along, each namespace has its account.
        let manager = start(
            "kube-controller-manager",
            &[
                format!("kubeconfig={}", path("kubeconfig")),
                format!("root-ca-file={}", path("certificates/apiserver.crt")),
                format!("service-account-private-key-file={}", path("key")),
                "bind-address=127.0.0.1".into(),
                format!("secure-port={manager_port}"),
                format!("cert-dir={}", path("certificates")),
                "leader-elect=false".into(),
                "concurrent-gc-syncs=4".into(),
                "controllers=namespace-controller,garbage-collector-controller,serviceaccount-controller,\
             root-ca-certificate-publisher-controller"
                    .into(),
            ],
        )?;
        Ok(Self { _controller_manager: manager, _api: api, _etcd: etcd, port })
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(self.port)
    }
}

/// The certificate is one that the server made for itself; it listens on loopback alone.
fn kubeconfig(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: plimsoll\n  cluster: {{server: \"https://127.0.0.1:{port}\", \
         insecure-skip-tls-verify: true}}\nusers:\n- name: plimsoll\n  user: {{token: {TOKEN}}}\ncontexts:\n- name: plimsoll\n  \
         context: {{cluster: plimsoll, user: plimsoll, namespace: default}}\ncurrent-context: plimsoll\n"
    )
}

async fn ready(kubectl: &Path, dir: &Path) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + READY_LIMIT;
    loop {
        let mut probe = tokio::process::Command::new(kubectl);
        let probe = probe
            .args(["--request-timeout=5s", "get", "--raw", "/readyz"])
            .env("KUBECONFIG", dir.join("kubeconfig"))
            .env("HOME", dir)
            .kill_on_drop(true);
        if probe.output().await?.status.success() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let log = |name: &str| {
                let text = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                lines[lines.len().saturating_sub(20)..].join("\n")
            };
            let (api, etcd) = (log("kube-apiserver"), log("etcd"));
            return Err(format!("kube-apiserver is not ready after {READY_LIMIT:?}:\n{api}\n{etcd}").into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Ports that nothing listens on now.
fn free_ports(count: usize) -> Result<Vec<u16>, Error> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<_, _>>()?)
}
