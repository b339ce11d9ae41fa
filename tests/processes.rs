//! Three operating-system processes, certificates on disk, one request.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::kit::{PATIENCE, model_dir};
use serde_json::{Value, json};

/// A process that is killed when the test ends, however it ends.
struct Process {
    child: Child,
    log: std::sync::mpsc::Receiver<Value>,
}

impl Process {
    fn start(name: &str, args: &[&str], certs: &Path) -> Self {
        let mut command = Command::new(binary(name));
        command.args(args).args(["--log", "json"]).arg("--certs").arg(certs).arg("--model").arg(model_dir());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let parsed = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            parsed.for_each(|line| drop(sender.send(line)));
        });
        Self { child, log }
    }

    /// The fields of the first log line with this message.
    fn logged(&self, message: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).unwrap_or_else(|_| panic!("never logged: {message}"));
            if line["message"] == message {
                return line;
            }
        }
    }

    fn interrupt(&mut self) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
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
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is not built; test the whole workspace, or build it first", path.display());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_serve_one_request_and_end_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let made = Command::new(binary("kvferry")).arg("certs").arg(&certs).status().unwrap();
    assert!(made.success());

    let mut router = Process::start("router", &["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"], &certs);
    let up = router.logged("router is up");
    let (http, quic) = (up["http"].as_str().unwrap(), up["quic"].as_str().unwrap());
    let node = ["--router", quic, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut prefill = Process::start("prefill-node", &node, &certs);
    let mut decode = Process::start("decode-node", &node, &certs);
    prefill.logged("joined the cluster");
    decode.logged("joined the cluster");

    let body =
        json!({"model": "tiny-llama", "prompt": "The linker reports", "max_tokens": 5, "kv_transfer": true});
    let client = cluster_tests::kit::client();
    let deadline = Instant::now() + PATIENCE;
    let answer: Value = loop {
        let response = client.post(format!("http://{http}/v1/completions")).json(&body).send().await.unwrap();
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        if status.is_success() && answer["kv_transfer"]["source"] == "remote" {
            break answer;
        }
        // The router takes note of a node a moment after the node has said that it joined.
        assert!(Instant::now() < deadline, "{status}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert!(answer["kv_transfer"]["wire_bytes"].as_u64().unwrap() > 0);
    for process in [&mut prefill, &mut decode, &mut router] {
        assert!(process.interrupt().success(), "a drained process ends well");
    }
}

#[test]
fn a_process_without_certificates_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["router", "prefill-node", "decode-node"] {
        let output = Command::new(binary(name)).arg("--certs").arg(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("kvferry certs"), "{name}: {said}");
    }
}
