//! A real etcd for a test, where there is one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// One etcd of its own, killed when dropped.
pub struct Etcd {
    binary: PathBuf,
    dir: tempfile::TempDir,
    ports: [u16; 2],
    child: Option<Child>,
}

/// `$PLIMSOLL_ETCD`, or `etcd` on the PATH, or the one that scripts/kube built.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("PLIMSOLL_ETCD") {
        return Some(path.into());
    }
    let on_path = std::env::var_os("PATH")
        .iter()
        .flat_map(|p| std::env::split_paths(p).collect::<Vec<_>>())
        .map(|d| d.join("etcd"))
        .find(|p| p.is_file());
    on_path.or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME")?).join(".cache/plimsoll/kube");
        let versions = std::fs::read_dir(home).ok()?;
        versions.filter_map(|v| Some(v.ok()?.path().join("bin/etcd"))).find(|p| p.is_file())
    })
}

impl Etcd {
    /// Starts one, if there is a binary.
    pub fn start() -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("etcd not found: not tested (apt-get install etcd-server)");
            return None;
        };
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut etcd =
            Self { binary, dir: tempfile::tempdir().unwrap(), ports: [port(), port()], child: None };
        etcd.again();
        Some(etcd)
    }

    /// Starts it once more, with the data it had, and waits until it answers.
    pub fn again(&mut self) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = (url(self.ports[0]), url(self.ports[1]));
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", self.ports[0])).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("etcd does not come up: {}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
