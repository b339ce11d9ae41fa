//! The product as processes of the operating system, with certificates on disk.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::kit::PATIENCE;
use cluster_tests::process::{Process, binary, certificates};
use serde_json::{Value, json};

/// An answer whose cache went from node to node. The router takes note of a node a moment after the node has said that it
/// joined, so the first attempts may be refused or run on one node alone.
async fn remote_answer(http: &str) -> Value {
    let body =
        json!({"model": "tiny-llama", "prompt": "The linker reports", "max_tokens": 5, "kv_transfer": true});
    let client = cluster_tests::kit::client();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let response = client.post(format!("http://{http}/v1/completions")).json(&body).send().await.unwrap();
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        if status.is_success() && answer["kv_transfer"]["source"] == "remote" {
            return answer;
        }
        assert!(Instant::now() < deadline, "{status}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_decode_node_that_comes_back_at_its_address_is_reached_at_once() {
    let certs = certificates();
    let router = Process::start("router", &["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"], certs.path());
    let up = router.logged("router is up");
    let (http, quic) = (up["http"].as_str().unwrap(), up["quic"].as_str().unwrap());
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let decode = || {
        let process = Process::start(
            "decode-node",
            &["--router", quic, "--listen", &free, "--node-id", "decode-0"],
            certs.path(),
        );
        process.logged("joined the cluster");
        process
    };
    let killed = decode();
    let prefill =
        Process::start("prefill-node", &["--router", quic, "--listen", "127.0.0.1:0"], certs.path());
    prefill.logged("joined the cluster");
    remote_answer(http).await;
    drop(killed); // SIGKILL: nobody is told
    let _back = decode();
    let started = Instant::now();
    remote_answer(http).await;
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the old connection was waited for: {:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_serve_one_request_and_end_when_told() {
    let certs = certificates();

    let mut router =
        Process::start("router", &["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"], certs.path());
    let up = router.logged("router is up");
    let (http, quic) = (up["http"].as_str().unwrap(), up["quic"].as_str().unwrap());
    let node = ["--router", quic, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut prefill = Process::start("prefill-node", &node, certs.path());
    let mut decode = Process::start("decode-node", &node, certs.path());
    prefill.logged("joined the cluster");
    decode.logged("joined the cluster");

    let answer = remote_answer(http).await;
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert!(answer["kv_transfer"]["wire_bytes"].as_u64().unwrap() > 0);
    for process in [&mut prefill, &mut decode, &mut router] {
        assert!(process.terminate().success(), "a drained process ends well");
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

#[test]
fn a_process_that_cannot_start_says_why_in_one_line_and_what_to_do() {
    let certs = certificates();
    let no_model = certs.path().join("no-model");
    for name in ["router", "prefill-node", "decode-node"] {
        for model in [no_model.as_path(), certs.path()] {
            let mut command = Command::new(binary(name));
            command.args(["--log", "json", "--certs"]).arg(certs.path()).arg("--model").arg(model);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().collect();
            assert!(!output.status.success() && lines.len() == 1, "{name}: {said}");
            let line: Value = serde_json::from_str(lines[0]).unwrap();
            let message = line["message"].as_str().unwrap();
            assert!(message.contains("cannot start") && message.contains("config.json"), "{name}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_a_process_and_gives_its_reason() {
    let certs = certificates();
    let router = Process::start("router", &["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"], certs.path());
    let up = router.logged("router is up");
    let http = up["http"].as_str().unwrap();
    let ask = |path: &str| {
        Command::new(binary("kvferry")).arg("health").arg(format!("http://{http}{path}")).output()
    };
    assert!(ask("/live").unwrap().status.success());
    let unready = ask("/ready").unwrap();
    let said = String::from_utf8_lossy(&unready.stderr);
    assert!(!unready.status.success() && said.contains("no decode node is registered"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_start_can_stay_to_tell_probes_why() {
    let certs = certificates();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["--admin-listen", &free, "--linger-seconds", "60", "--plan", "no-such-plan"];
    let mut node = Process::start("decode-node", &args, certs.path());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let url = format!("http://{free}/ready");
        let asked = Command::new(binary("kvferry")).arg("health").arg(url).output().unwrap();
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(!asked.status.success(), "healthy without a plan");
        if said.contains("cannot start") && said.contains("no-such-plan") {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(node.terminate().code(), Some(1));
}

#[test]
fn kvferry_is_each_program_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["router", "prefill-node", "decode-node", "kvferry"] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(binary("kvferry"), &link).unwrap();
        let said = Command::new(link).arg("--version").output().unwrap();
        assert_eq!(
            String::from_utf8(said.stdout).unwrap(),
            format!("{name} {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
