//! The router as a process of its own, so that what the system says of its memory and its time is of it alone.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

/// Longest wait for the router to be up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Log lines that may wait to be read.
const LINES: usize = 16;

/// The router; killed when dropped.
#[derive(Debug)]
pub(super) struct RouterProcess {
    child: Child,
    pub(super) http: SocketAddr,
    pub(super) quic: SocketAddr,
}

/// The log line that says where it listens.
#[derive(Deserialize)]
struct Up {
    http: SocketAddr,
    quic: SocketAddr,
}

/// The binary that was built with this one.
pub(super) fn beside_this() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("router");
    if !path.exists() {
        bail!("{} does not exist; build it, or name another with --router-binary", path.display());
    }
    Ok(path)
}

impl RouterProcess {
    /// Starts a router that takes so many requests at once and lets nodes be silent for long.
    pub(super) fn start(binary: &Path, model: &Path, certs: &Path, requests: u32) -> anyhow::Result<Self> {
        let any_port = "127.0.0.1:0";
        let mut command = Command::new(binary);
        command.args(["--http", any_port, "--quic", any_port, "--log", "json", "--log-level", "info"]);
        command.arg("--model").arg(model).arg("--certs").arg(certs);
        command.args(["--max-requests", &requests.to_string(), "--next-token-seconds", "600"]);
        command.args(["--local-prefill", "never"]);
        let child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", binary.display()))?;
        let log = child.stderr.take();
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        // From here on it is killed whatever fails.
        let mut router = Self { child, http: unspecified, quic: unspecified };
        let Up { http, quic } = up(log.context("the router's log is not piped; this is a bug")?)?;
        (router.http, router.quic) = (http, quic);
        Ok(router)
    }

    /// Memory that it has in RAM.
    pub(super) fn resident_bytes(&self) -> anyhow::Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.ok_or_else(|| anyhow!("the system does not tell the router's VmRSS"))? * 1024.0)
    }

    /// Time that its threads have run.
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.child.id())
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}; this bench needs Linux"))
    }
}

/// Time that the threads of a process have run.
pub(super) fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{process}/task");
    let threads =
        std::fs::read_dir(&path).with_context(|| format!("cannot read {path}; this bench needs Linux"))?;
    let mut nanoseconds = 0.0;
    for thread in threads {
        // A thread that has ended meanwhile is left out.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let ran = stat.split_whitespace().next().and_then(|ran| ran.parse::<f64>().ok());
        nanoseconds += ran.ok_or_else(|| anyhow!("the system does not tell how long threads have run"))?;
    }
    Ok(nanoseconds / 1e9)
}

/// Reads a router's log for ever, and gives the line that says that it is up.
fn up(log: impl std::io::Read + Send + 'static) -> anyhow::Result<Up> {
    let (sender, lines) = mpsc::sync_channel(LINES);
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            // Nobody reads any more once the router is up; the pipe has to be emptied all the same.
            let _ = sender.send(line);
        }
    });
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
        if parsed["message"] == "router is up" {
            return serde_json::from_value(parsed).context("the router does not say where it listens");
        }
        said = line;
    }
    bail!("the router did not come up; its last words: {said}")
}

impl Drop for RouterProcess {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
