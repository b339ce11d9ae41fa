//! The binary's own words. Cargo builds a package's binary for its integration tests only, and the cluster's tests need it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::process::Command;

#[test]
fn help_names_every_variable_and_a_bad_flag_is_refused() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_prefill-node")).args(args).output().unwrap();
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for flag in
        ["--model", "--plan", "--router", "--certs", "--link-gbps", "--chunk-tokens", "--kv-capacity-tokens"]
    {
        let variable = format!("KVFERRY_{}", flag[2..].replace('-', "_").to_uppercase());
        assert!(help.contains(flag) && help.contains(&variable), "{flag} or {variable} is missing:\n{help}");
    }
    let refused = run(&["--chunk-tokens", "0"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("chunk-tokens"));
}
