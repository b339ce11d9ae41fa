//! The command line as a user meets it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::process::Command;

fn kvferry(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_kvferry")).args(args).output().unwrap()
}

#[test]
fn help_names_every_command() {
    let help = String::from_utf8(kvferry(&["--help"]).stdout).unwrap();
    for command in ["demo", "certs", "calibrate", "eval", "bench", "inspect", "synth-model", "health"] {
        assert!(help.contains(command), "{help}");
    }
}

#[test]
fn certs_are_made_once_and_what_is_missing_by_the_same_authority() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("certs");
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    assert!(kvferry(&["certs", path.to_str().unwrap()]).status.success());
    let authority = read("ca.pem");
    for role in ["router", "prefill", "decode"] {
        assert!(!read(&format!("{role}.pem")).is_empty() && !read(&format!("{role}.key")).is_empty());
    }
    let kept = read("decode.pem");
    std::fs::remove_file(path.join("prefill.key")).unwrap();
    assert!(kvferry(&["certs", path.to_str().unwrap()]).status.success());
    assert_eq!((read("ca.pem"), read("decode.pem")), (authority, kept));
    assert!(!read("prefill.key").is_empty());
}

#[test]
fn certs_that_cannot_be_written_are_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    let output = kvferry(&["certs", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot be written"), "{said}");
}

#[test]
fn calibrating_on_too_little_text_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = dir.path().join("small.txt");
    std::fs::write(&corpus, "too little text to calibrate anything on. ".repeat(40)).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama");
    let out = dir.path().join("plan");
    let args =
        ["calibrate", "--model", model, "--corpus", corpus.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = kvferry(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("needs at least as many"), "{said}");
    assert!(!out.exists());
}

#[test]
fn inspect_accounts_for_every_byte_of_a_plan_and_of_chunks() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../codec/tests/golden");
    let dir = tempfile::tempdir().unwrap();
    let chunks = dir.path().join("chunks");
    let names = ["v1.raw.chunk", "v1.lossless.chunk", "v1.fp8.chunk", "v1.kvtc.chunk"];
    let bytes: Vec<u8> =
        names.iter().flat_map(|name| std::fs::read(format!("{golden}/{name}")).unwrap()).collect();
    std::fs::write(&chunks, &bytes).unwrap();
    let plan = format!("{golden}/v1.plan");
    for (file, items) in [(plan.as_str(), 1), (chunks.to_str().unwrap(), 4)] {
        let answer = kvferry(&["inspect", file, "--plan", &plan, "--json"]);
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(answer["items"].as_array().unwrap().len(), items);
        let parts = answer["parts"].as_array().unwrap();
        let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), answer["bytes"].as_u64());
        assert_eq!(sum, std::fs::metadata(file).unwrap().len());
    }
    let table = kvferry(&["inspect", chunks.to_str().unwrap(), "--plan", &plan]);
    let table = String::from_utf8(table.stdout).unwrap();
    for part in ["segment ends", "key symbols of class", "value mantissas", "key codes", "4 chunks"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    std::fs::write(&chunks, &bytes[..bytes.len() - 1]).unwrap();
    let answer = kvferry(&["inspect", chunks.to_str().unwrap()]);
    assert!(!answer.status.success());
    assert!(String::from_utf8_lossy(&answer.stderr).contains("truncated chunk"));
}
