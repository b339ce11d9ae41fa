//! Bad input ends in an error that says what was wrong, and disturbs nothing else.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::Path;

use cluster_tests::Kit;
use cluster_tests::kit::model_dir;
use node::compute::Sizes;
use node::{DeviceChoice, Loaded, Served};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_is_named_and_the_next_good_one_served() {
    let kit = Kit::start().await;
    let url = format!("{}/v1/completions", kit.cluster.url());
    let http = cluster_tests::kit::client();
    let long = kit.prompt(8_192);
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "tiny-llama", "prompt": "The linker"});
        body[field] = value;
        body.to_string()
    };
    for (body, status, word) in [
        (with("model", json!("gpt-5")), 404, "tiny-llama"),
        (with("prompt", json!("")), 400, "prompt"),
        (with("prompt", json!(long)), 400, "8192"),
        (with("prompt", json!({"text": "x"})), 400, "prompt"),
        (with("max_tokens", json!("ten")), 400, "max_tokens"),
        (with("max_tokens", json!(0)), 400, "max_tokens"),
        (with("temperature", json!(-1)), 400, "temperature"),
        (with("top_p", json!(1.5)), 400, "top_p"),
        (with("kv_codec", json!("gzip")), 400, "kv_codec"),
        (with("kv_tier", json!(3)), 400, "kv_tier"),
        (with("kv_mode", json!("later")), 400, "kv_mode"),
        (with("stream_options", json!({"include_usage": true})), 400, "stream"),
        ("{\"model\": \"tiny-llama\", \"prompt\": \"x\", \"temperature\": NaN}".into(), 400, "line 1"),
        ("{\"model\": \"tiny-llama\", \"prompt\": ".into(), 400, "line 1"),
        ("[]".into(), 400, "object"),
    ] {
        let request = http.post(&url).header("content-type", "application/json").body(body.clone());
        let response = request.send().await.unwrap();
        let got = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        let shown = body.chars().take(120).collect::<String>();
        assert_eq!(got, status, "{shown}: {answer}");
        let error = &answer["error"];
        let told = format!("{} {}", error["message"], error["param"]);
        assert!(told.contains(word), "{shown}: {answer}");
        assert!(error["type"].is_string(), "{shown}: {answer}");
    }
    assert_eq!(kit.complete("The linker", 2, json!({})).await.usage.unwrap().completion_tokens, 2);
    kit.stop().await;
}

fn copy_model(to: &Path) {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(model_dir().join(name), to.join(name)).unwrap();
    }
}

/// The embedded checkpoint with every name replaced that `rename` changes.
fn write_weights(to: &Path, rename: impl Fn(&str) -> String) {
    let bytes = std::fs::read(model_dir().join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let header = rename(header);
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    std::fs::write(to.join("model.safetensors"), out).unwrap();
}

#[test]
fn a_model_directory_with_a_missing_tensor_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    copy_model(dir.path());
    write_weights(dir.path(), |h| h.replace("layers.3.mlp.up_proj", "layers.3.mlp.op_proj"));
    let error = Loaded::load(dir.path(), None, "x".into()).unwrap_err().to_string();
    assert!(error.contains("model.layers.3.mlp.up_proj.weight"), "{error}");
}

#[test]
fn a_plan_of_another_model_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    copy_model(dir.path());
    // The same weights under another configuration are another model.
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let config = config.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-06");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    write_weights(dir.path(), str::to_owned);
    let plan = model_dir().join("plan.kvtc");
    let error = Loaded::load(dir.path(), Some(&plan), "x".into()).unwrap_err();
    let error = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(error.contains("model") && error.contains("calibrate"), "{error}");
}

#[test]
fn a_damaged_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(model_dir().join("plan.kvtc")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let path = dir.path().join("plan.kvtc");
    std::fs::write(&path, bytes).unwrap();
    let error = Loaded::load(&model_dir(), Some(&path), "x".into()).unwrap_err();
    assert!(error.to_string().contains("plan.kvtc"), "{error}");
}

#[test]
fn a_gpu_that_is_not_there_is_missed_in_one_sentence_that_says_what_to_do() {
    let sizes = Sizes { kv_tokens: 256, sessions: 1 };
    // Without CUDA in the build, without a driver, or without a hundredth device: nobody has this one.
    let error = Served::load(DeviceChoice::Cuda(99), &model_dir(), None, "x".into(), sizes).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("--device cpu") && !error.contains('\n'), "{error}");
}
