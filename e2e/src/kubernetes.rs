//! A real Kubernetes cluster on this host, held for as long as its value lives: one node without Docker (`scripts/kube`), or
//! kind's (`e2e/lanes/kind`). Both are driven by scripts of the same names.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Error;
use crate::kubectl::Kubectl;
use crate::system::{binary, workspace};

/// The image that the chart names by default.
pub const IMAGE: &str = "plimsoll/plimsoll:v0.1.0";
/// Asks for a cluster.
const ASKED: &str = "PLIMSOLL_E2E_KUBERNETES";
/// The host's network device of the cluster.
const LINK: &str = "plimsoll0";
/// The cgroup below which its pods run.
const CGROUP: &str = "plimsoll-kube";
/// How long the cluster may take to be gone, once its standard input is closed.
const END_SECONDS: u64 = 120;

/// A running cluster. It ends with this value, and with the test's process however that ends: `up --hold` reads a pipe
/// from it.
#[derive(Debug)]
pub struct Kubernetes {
    up: Option<Child>,
    scripts: PathBuf,
    state: PathBuf,
    folder: tempfile::TempDir,
}

impl Kubernetes {
    /// The scripts of the cluster that `PLIMSOLL_E2E_KUBERNETES` asks for, or why there can be none: `kind`, or anything
    /// else for the one without Docker; with `auto`, whatever it needs may be missing. Builds Kubernetes if it was not.
    ///
    /// # Errors
    /// If it is asked for with anything but `auto` and cannot be here.
    pub async fn wanted() -> Result<Result<PathBuf, String>, Error> {
        let Some(wanted) = std::env::var_os(ASKED) else {
            return Ok(Err(format!("{ASKED} is not set (`make e2e` sets it)")));
        };
        let folder = if wanted == "kind" { "e2e/lanes/kind" } else { "scripts/kube" };
        let scripts = workspace().join(folder);
        let mut check = tokio::process::Command::new(scripts.join("up"));
        check.arg("--check").stdin(Stdio::null()).kill_on_drop(true);
        let output = check.output().await?;
        if output.status.success() {
            return Ok(Ok(scripts));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        if wanted == "auto" { Ok(Err(why)) } else { Err(why.into()) }
    }

    /// Makes the image from the binary under test and brings a cluster up with it. Blocks for a quarter of a minute; the
    /// first time on a machine Kubernetes is built, which takes much longer.
    ///
    /// # Errors
    /// If the cluster does not come up; `up` has printed why.
    pub fn start(scripts: &Path) -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        let archive = folder.path().join("plimsoll.tar");
        said(Command::new(workspace().join("scripts/image")).arg(binary()?).arg(&archive).arg(IMAGE))?;
        let state = folder.path().join("kube");
        let mut up = Command::new(scripts.join("up"))
            .arg(&state)
            .arg("--hold")
            .arg("--image")
            .arg(&archive)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = up.stdout.take().ok_or("`up` has no standard output")?;
        let cluster = Self { up: Some(up), scripts: scripts.to_owned(), state, folder };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() == "ready" {
            Ok(cluster)
        } else {
            Err("the cluster did not come up: see what its `up` printed".into())
        }
    }

    /// A kubectl for it: the one of the cluster's own version.
    ///
    /// # Errors
    /// If the kubeconfig is not usable.
    pub async fn kubectl(&self) -> Result<Kubectl, Error> {
        Kubectl::of_cluster(&self.kubeconfig(), &self.state.join("bin/kubectl")).await
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// A folder that goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs helm against it; what it printed. Takes a helm of this machine, or builds one.
    ///
    /// # Errors
    /// If there is no helm, or it exits with a failure.
    pub async fn helm(&self, args: &[&str]) -> Result<String, Error> {
        helm(&find_helm().await?, &self.kubeconfig(), args).await
    }

    /// Calls the script `component`: `kill kube-apiserver`, `restart kubelet NODE`, …
    ///
    /// # Errors
    /// If it fails: a program that does not stop or start, say.
    pub async fn component(&self, args: &[&str]) -> Result<(), Error> {
        let mut command = tokio::process::Command::new(self.scripts.join("component"));
        command.arg(&self.state).args(args);
        finished(command).await.map(drop)
    }

    /// Kills the containers of a pod as `kill -9` does, past kubelet and API server.
    ///
    /// # Errors
    /// If none of them ran.
    pub async fn crash(&self, pod: &str) -> Result<(), Error> {
        self.component(&["crash", pod]).await
    }

    /// Gives an image that was imported another name.
    ///
    /// # Errors
    /// If there is no such image.
    pub async fn tag_image(&self, image: &str, new: &str) -> Result<(), Error> {
        self.component(&["tag", image, new]).await
    }

    /// Ends the cluster, and lists what is left of it on the host: nothing, if all is well.
    ///
    /// # Errors
    /// If it does not end in time, or the host cannot be looked at.
    pub fn end(mut self) -> Result<Vec<String>, Error> {
        self.close()?;
        self.leftovers()
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        drop(up.stdin.take());
        for _ in 0..END_SECONDS * 10 {
            if let Some(status) = up.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("`up` ended with {status}").into())
                };
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(format!("the cluster in {} did not end within {END_SECONDS} s", self.state.display()).into())
    }

    fn leftovers(&self) -> Result<Vec<String>, Error> {
        let mut left = Vec::new();
        let state = self.state.to_str().ok_or("the folder's name is not UTF-8")?;
        if self.state.exists() {
            left.push(format!("folder {state}"));
        }
        if Path::new("/sys/class/net").join(LINK).exists() {
            left.push(format!("network device {LINK}"));
        }
        let mut mine = |kind: &str, text: &str, mark: &str| {
            left.extend(text.lines().filter(|l| l.contains(mark)).map(|l| format!("{kind} {l}")));
        };
        mine("route", &std::fs::read_to_string("/proc/net/route")?, LINK);
        mine("mount", &std::fs::read_to_string("/proc/self/mountinfo")?, state);
        let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
        hierarchies.extend(std::fs::read_dir("/sys/fs/cgroup")?.filter_map(|e| e.ok().map(|e| e.path())));
        left.extend(
            hierarchies
                .iter()
                .map(|h| h.join(CGROUP))
                .filter(|g| g.exists())
                .map(|g| format!("cgroup {}", g.display())),
        );
        for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
            // Processes that end meanwhile, and those that are not processes, have none.
            let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(state) {
                left.push(format!("process {} {command}", entry.file_name().display()));
            }
        }
        Ok(left)
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            println!("{error}; {}/down {} takes it away", self.scripts.display(), self.state.display());
        }
    }
}

/// The path of a helm: an installed one, else one that is built.
///
/// # Errors
/// If there is none and none can be built.
pub async fn find_helm() -> Result<PathBuf, Error> {
    let path = finished(tokio::process::Command::new(workspace().join("scripts/kube/helm"))).await?;
    Ok(PathBuf::from(path.trim()))
}

/// Runs helm in the repository's root; what it printed.
///
/// # Errors
/// If it exits with a failure.
pub async fn helm(helm: &Path, kubeconfig: &Path, args: &[&str]) -> Result<String, Error> {
    let mut command = tokio::process::Command::new(helm);
    command.args(args).env("KUBECONFIG", kubeconfig).current_dir(workspace());
    finished(command).await
}

/// Runs a command to its end; its standard output, or an error with everything it printed.
async fn finished(mut command: tokio::process::Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    printed(&output, command.as_std())
}

fn said(command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output()?;
    printed(&output, command)
}

fn printed(output: &std::process::Output, command: &Command) -> Result<String, Error> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(stdout)
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?} ended with {}:\n{stdout}{stderr}", output.status).into())
    }
}
