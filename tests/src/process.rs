//! The product's own binaries as processes of the operating system.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::kit::{PATIENCE, model_dir};

/// A process that is killed when the test ends, however it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: mpsc::Receiver<Value>,
}

impl Process {
    /// Starts a router or node on the embedded model.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(name: &str, args: &[&str], certs: &Path) -> Self {
        let mut command = Command::new(binary(name));
        command.args(args).args(["--log", "json"]).arg("--certs").arg(certs).arg("--model").arg(model_dir());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the process starts");
        let lines = BufReader::new(child.stderr.take().expect("its log is piped")).lines();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            let parsed = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            parsed.for_each(|line| drop(sender.send(line)));
        });
        Self { child, log }
    }

    /// The fields of the next log line with this message.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn logged(&self, message: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("never logged: {message}"));
            if line["message"] == message {
                return line;
            }
        }
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().is_ok_and(|status| status.success()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A binary of this build, which lies beside the folder of this test's.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.parent().and_then(Path::parent).expect("it lies in target/PROFILE/deps").join(name);
    assert!(path.exists(), "{} is not built; test the whole workspace, or build it first", path.display());
    path
}

/// A directory with a fresh cluster's certificates.
///
/// # Panics
/// When `kvferry certs` fails.
#[must_use]
pub fn certificates() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = Command::new(binary("kvferry")).arg("certs").arg(dir.path()).output();
    assert!(made.is_ok_and(|output| output.status.success()), "certificates are made");
    dir
}
