//! Starting, finding and killing the processes under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::{Error, eventually};

/// Where a running system answers; `plimsoll up` and `plimsoll devcluster` write it to `DIR/endpoints.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoints {
    /// Kubernetes API, `http://host:port`.
    pub kubernetes: String,
    /// Path of the kubeconfig.
    pub kubeconfig: PathBuf,
    /// OpenAI API, `http://host:port/v1`.
    #[serde(default)]
    pub openai: Option<String>,
    /// Fleet view and metrics, `http://host:port`.
    #[serde(default)]
    pub view: Option<String>,
    /// Scheduler's gRPC, `http://host:port`.
    #[serde(default)]
    pub scheduler: Option<String>,
}

/// Path of the `plimsoll` binary: `$PLIMSOLL_BIN`, or beside this test's own executable, built if it is not there.
///
/// # Errors
/// If it is nowhere and cannot be built.
pub fn binary() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os("PLIMSOLL_BIN") {
        return Ok(PathBuf::from(path));
    }
    let exe = std::env::current_exe()?;
    let dir = exe.ancestors().nth(2).ok_or("the test executable has no target folder")?;
    let path = dir.join("plimsoll");
    let status = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "-p", "plimsoll"])
        .current_dir(workspace())
        .status()?;
    if !status.success() {
        return Err("cargo build -p plimsoll failed".into());
    }
    Ok(path)
}

/// The repository's root.
pub fn workspace() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `plimsoll ARGS`, its output in `dir/NAME.out`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, args: &[&str], dir: &Path) -> Result<Self, Error> {
        Self::start_program(name, &binary()?, args, dir)
    }

    /// Starts any program, its output in `dir/NAME.out`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_program<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        args: &[A],
        dir: &Path,
    ) -> Result<Self, Error> {
        let log = dir.join(format!("{name}.out"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("{} does not start: {e}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child.kill().await?;
        Ok(())
    }

    /// Sends Ctrl-C (SIGINT) and waits for the exit, at most `seconds`.
    ///
    /// # Errors
    /// If it does not exit, or exits with a failure.
    pub async fn interrupt(mut self, seconds: u64) -> Result<String, Error> {
        let pid = self.child.id().ok_or("it has exited already")?;
        let killed = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status()?;
        if !killed.success() {
            return Err("kill -INT failed".into());
        }
        let status = tokio::time::timeout(std::time::Duration::from_secs(seconds), self.child.wait())
            .await
            .map_err(|_| format!("{} did not exit within {seconds} s of Ctrl-C", self.name))??;
        let output = std::fs::read_to_string(&self.log)?;
        if !status.success() {
            return Err(format!("{} exited with {status}:\n{output}", self.name).into());
        }
        Ok(output)
    }

    /// A figure of `/proc/PID/status` such as `VmRSS` (resident memory now) or `VmHWM` (at its highest), bytes.
    ///
    /// # Errors
    /// If it has exited, or there is no such figure.
    pub fn memory_bytes(&self, figure: &str) -> Result<u64, Error> {
        let pid = self.child.id().ok_or("it has exited already")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix(figure)?.strip_prefix(':'));
        let kib: u64 = line
            .and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok())
            .ok_or_else(|| format!("/proc/{pid}/status has no {figure}"))?;
        Ok(kib * 1024)
    }

    /// Processor time that it has used, seconds.
    ///
    /// # Errors
    /// If it has exited.
    pub fn cpu_seconds(&self) -> Result<f64, Error> {
        /// What Linux counts in, whatever its own tick is.
        const TICKS_PER_SECOND: f64 = 100.0;
        let pid = self.child.id().ok_or("it has exited already")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is a name in brackets; user and system time are the 14th and 15th.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for `dir/endpoints.json`.
    ///
    /// # Errors
    /// If the process exits or the file does not appear in time; says what it printed.
    pub async fn endpoints(&mut self, dir: &Path) -> Result<Endpoints, Error> {
        let path = dir.join("endpoints.json");
        for _ in 0..600 {
            if let Ok(text) = std::fs::read(&path) {
                return Ok(serde_json::from_slice(&text)?);
            }
            if !self.alive() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Err(format!("{} did not come up:\n{}", self.name, self.output()).into())
    }
}

/// Runs `plimsoll ARGS` to its end; standard output, or an error with everything it printed.
///
/// # Errors
/// If it cannot run or exits with a failure.
pub async fn run(args: &[&str]) -> Result<String, Error> {
    let output = Command::new(binary()?).args(args).stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(stdout)
    } else {
        Err(format!("{}{stdout}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// A whole system in one process (`plimsoll up`) on free ports, with its state in `dir`.
#[derive(Debug)]
pub struct Up {
    /// The process.
    pub process: Process,
    /// Where it answers.
    pub endpoints: Endpoints,
}

impl Up {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(dir: &Path, extra: &[&str]) -> Result<Self, Error> {
        let _ = std::fs::remove_file(dir.join("endpoints.json"));
        let dir_text = dir.to_str().ok_or("the folder's name is not UTF-8")?;
        let mut args = vec![
            "up",
            "--no-screen",
            "--dir",
            dir_text,
            "--api-listen",
            "127.0.0.1:0",
            "--openai-listen",
            "127.0.0.1:0",
            "--view-listen",
            "127.0.0.1:0",
        ];
        args.extend(extra);
        let mut process = Process::start("up", &args, dir)?;
        let endpoints = process.endpoints(dir).await?;
        Ok(Self { process, endpoints })
    }

    /// The OpenAI base URL.
    ///
    /// # Errors
    /// If it was not announced.
    pub fn openai(&self) -> Result<&str, Error> {
        self.endpoints.openai.as_deref().ok_or_else(|| "no OpenAI endpoint was announced".into())
    }

    /// Waits until a pool answers a short request.
    ///
    /// # Errors
    /// If it does not within `seconds`.
    pub async fn wait_serving(&self, model: &str, seconds: u64) -> Result<(), Error> {
        let url = self.openai()?.to_owned();
        eventually(&format!("{model} serves"), seconds, || {
            let url = url.clone();
            async move {
                let reply = crate::openai::chat(&url, model, "hello", 4, false).await?;
                if reply.status == 200 {
                    Ok(())
                } else {
                    Err(format!("{} {}", reply.status, reply.text).into())
                }
            }
        })
        .await
    }
}
