//! `kvferry eval` on the embedded model, with prompts and windows as small as they can be.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use codec::{CodecKind, Coding};
use kvferry::eval::{Input, Later, PromptRow, Protocol, Score, Sets, Subject, Way, measure};
use kvferry::prompts::{Document, Family, Filler, document, retrieval, text_tokens};
use openai::{ChatMessage, ChatTemplate};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let mut subject = Subject::load(&model_dir(), None).unwrap();
    subject.template = ChatTemplate::load(&model_dir()).unwrap();
    subject
});

fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

fn text(seed: u64, tokens: usize) -> Document {
    let count = text_tokens(&SUBJECT.tokenizer);
    document(&mut ChaCha8Rng::seed_from_u64(seed), Family::Number, tokens, Filler::Sentences, count)
}

fn kvtc(tier: u8) -> Coding {
    Coding { kind: CodecKind::Kvtc, tier }
}

fn prompts() -> Vec<PromptRow> {
    let count = text_tokens(&SUBJECT.tokenizer);
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(100), 400, count);
    let Document { body, questions } = text(7, 350);
    let question = format!("{body}\n\n{}", questions[0].text);
    let messages = vec![ChatMessage { role: "user".into(), content: question }];
    let row = |line, input, answer: &str, later| PromptRow { line, input, answer: answer.into(), later };
    let later = Later { text: "\n\nQuestion: What is new?\nAnswer:".into(), answer: "nothing".into() };
    vec![
        row(1, Input::Text(task.prompt), &task.answer, vec![later]),
        row(2, Input::Chat(messages), &questions[0].answer, vec![]),
    ]
}

fn windows(protocol: &Protocol) -> Vec<Vec<u32>> {
    protocol.windows(&SUBJECT, &[text(1, 400).body, text(2, 400).body], 2).unwrap()
}

#[test]
fn raw_changes_nothing_and_quality_falls_with_bytes() {
    let protocol = Protocol { cache_tokens: 320, ahead_tokens: 48, near_tokens: 32 };
    let sets = Sets { prompts: prompts(), windows: windows(&protocol), protocol };
    let scores =
        measure(&SUBJECT, &sets, &[Coding::RAW, kvtc(4), kvtc(24), kvtc(128)].map(Way::usual)).unwrap();
    let [raw, fine, middle, coarse] = <[Score; 4]>::try_from(scores).unwrap();
    assert_eq!((raw.kl, raw.dnll, raw.agree), (Some(0.0), Some(0.0), Some(1.0)));
    assert_eq!((raw.kl_far, raw.rel_k, raw.rel_v), (Some(0.0), Some(0.0), Some(0.0)));
    assert_eq!((raw.n, raw.em, raw.tier), (Some(2), raw.em_raw, None));
    assert_eq!((raw.n_later, raw.em_later), (Some(1), raw.em_later_raw));
    assert_eq!(raw.body_ratio, Some(1.0));
    assert!(raw.whole_ratio < 1.0 && raw.whole_ratio > 0.999, "{}", raw.whole_ratio);
    assert_eq!((fine.tier, fine.em_raw), (Some(4), raw.em_raw));
    assert!(fine.kl.unwrap() > 0.0);
    for (less, more) in [(&fine, &middle), (&middle, &coarse)] {
        assert!(less.kl.unwrap() < more.kl.unwrap(), "{less:?} {more:?}");
        assert!(less.rel_k.unwrap() < more.rel_k.unwrap() && less.rel_v.unwrap() < more.rel_v.unwrap());
        assert!(less.body_ratio.unwrap() < more.body_ratio.unwrap() && less.whole_ratio < more.whole_ratio);
    }
    assert!(coarse.body_ratio.unwrap() > coarse.whole_ratio, "the last tokens weigh in a short prompt");
}

#[test]
fn what_was_not_asked_for_is_none_and_a_short_prompt_has_no_body() {
    let row =
        PromptRow { line: 1, input: Input::Text("The linker".into()), answer: "x".into(), later: vec![] };
    let sets = Sets { prompts: vec![row], ..Sets::default() };
    let [score] = <[Score; 1]>::try_from(measure(&SUBJECT, &sets, &[Way::usual(kvtc(32))]).unwrap()).unwrap();
    assert_eq!((score.n, score.em), (Some(1), Some(0.0)));
    assert_eq!((score.kl, score.em_later, score.body_ratio, score.rel_k), (None, None, None, None));
}

fn eval(args: &[&str]) -> Output {
    let model = model_dir();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
    command.args(["eval", "--model", model.to_str().unwrap()]).args(args).output().unwrap()
}

#[track_caller]
fn refused(args: &[&str], said: &[&str]) {
    let output = eval(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args:?}");
    said.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
}

#[test]
fn the_command_prints_json_a_line_for_each_coding() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.jsonl");
    std::fs::write(&path, serde_json::json!({ "text": text(3, 300).body }).to_string()).unwrap();
    let sizes = ["--cache-tokens", "200", "--ahead-tokens", "40"];
    let what = ["--text", path.to_str().unwrap(), "--codec", "raw,kvtc", "--tier", "16", "--json"];
    let output = eval(&[&sizes[..], &what[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]["codec"], &rows[1]["tier"]), (2, &"raw".into(), &16.into()));
    assert_eq!((rows[0]["kl"].as_f64(), rows[0]["em"].is_null()), (Some(0.0), true));
    assert!(rows[1]["kl"].as_f64().unwrap() > 0.0 && rows[1]["encode_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_measured_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = write("bad.jsonl", "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n");
    refused(&["--prompts", &bad], &["bad.jsonl, line 2", "missing field `answer`", "expected {\"prompt\""]);
    let short = write("short.jsonl", "{\"text\": \"too short\"}\n");
    refused(&["--text", &short], &["short.jsonl", "one window takes 2560"]);
    refused(&["--text", &short, "--cache-tokens", "9000"], &["the model was made for 8192"]);
    refused(&["--prompts", "none.jsonl"], &["cannot read none.jsonl"]);
    refused(&["--text", &short, "--codec", "gzip"], &["unknown codec", "kvtc"]);
    refused(&["--text", &short, "--sweep"], &["--out"]);
    refused(&["--json"], &["--prompts"]);
}
