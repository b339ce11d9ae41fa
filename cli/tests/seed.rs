//! The replica of the seed's method beside the codecs, on the embedded model and a plan with tables of kvtc-paper made in the test.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};

use codec::fit::{self, Basis, PlanBuilder};
use codec::{CodecKind, Coding, Plan};
use faer::{Mat, MatRef, Side};
use kvferry::eval::{Input, PromptRow, Protocol, Score, Sets, Subject, Way, measure, seed_report};
use kvferry::prompts::{retrieval, text_tokens};
use model::{Draws, KvCache};
use node::PromptPass;
use node::prompt::{Progress, export};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Components of the test's basis.
const COMPONENTS: usize = 240;

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let mut subject = Subject::load(&model_dir(), None).unwrap();
    let plan = with_paper(&subject);
    subject.loaded.plan = Some(Arc::new(plan));
    subject
});

fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

fn prompt(seed: u64, tokens: usize) -> PromptRow {
    let subject = Subject::load(&model_dir(), None).unwrap();
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(seed), tokens, text_tokens(&subject.tokenizer));
    PromptRow { line: 1, input: Input::Text(task.prompt), answer: task.answer, later: vec![] }
}

/// The model's own plan with a basis of kvtc-paper from the rows of one prompt.
fn with_paper(subject: &Subject) -> Plan {
    let (Input::Text(text), loaded) = (prompt(50, 700).input, &subject.loaded) else { unreachable!() };
    let ids = subject.tokenizer.encode(&text).unwrap();
    let mut cache = KvCache::new(loaded.llama.config(), ids.len());
    let mut pass = PromptPass::new(ids.clone(), 256);
    while pass.advance(&loaded.llama, &mut cache, &Draws::GREEDY).unwrap().1 == Progress::More {}
    let block = export(&cache, 4..ids.len()).unwrap();
    let (keys, values) = fit::rows(&block, &loaded.layout).unwrap();
    let side = |rows: Vec<f32>| (principal(&rows, loaded.layout.features()), rows);
    fit::add_paper(loaded.plan.as_ref().unwrap(), side(keys), side(values), &mut |_| {}).unwrap()
}

/// Principal axes of a few rows, by way of their products with each other.
fn principal(rows: &[f32], features: usize) -> Basis {
    let rows = MatRef::from_row_major_slice(rows, rows.len() / features, features);
    let count = rows.nrows();
    let mean: Vec<f32> =
        (0..features).map(|j| (0..count).map(|i| rows[(i, j)]).sum::<f32>() / count as f32).collect();
    let centred = Mat::from_fn(count, features, |i, j| f64::from(rows[(i, j)] - mean[j]));
    let eigen = (&centred * centred.transpose()).self_adjoint_eigen(Side::Lower).unwrap();
    let (strongest, squares) = (eigen.U().subcols(count - COMPONENTS, COMPONENTS), eigen.S().column_vector());
    let axes = centred.transpose() * strongest;
    let norm = |j: usize| squares[count - COMPONENTS + j].sqrt();
    let vector = |j: usize| axes.col_as_slice(j).iter().map(move |x| (x / norm(j)) as f32);
    Basis { mean, weights: None, vectors: (0..COMPONENTS).flat_map(vector).collect() }
}

fn kvtc(tier: u8) -> Way {
    Way::usual(Coding { kind: CodecKind::Kvtc, tier })
}

#[test]
fn the_replica_is_measured_by_what_measures_the_codecs() {
    let protocol = Protocol { cache_tokens: 520, ahead_tokens: 48, near_tokens: 32 };
    let Input::Text(text) = prompt(3, 700).input else { unreachable!() };
    let windows = protocol.windows(&SUBJECT, &[text], 1).unwrap();
    let sets = Sets { prompts: vec![prompt(2, 500)], windows, protocol };
    let scores = measure(&SUBJECT, &sets, &[kvtc(16), Way::seed(8), Way::seed(16)]).unwrap();
    let [ours, fine, coarse] = <[Score; 3]>::try_from(scores).unwrap();
    assert_eq!((ours.codec, fine.codec, coarse.codec), ("kvtc", "seed-replica", "seed-replica"));
    assert_eq!((fine.tier, coarse.tier, fine.mode), (Some(8), Some(16), "after"));
    assert_eq!((fine.n, fine.em_raw), (Some(1), ours.em_raw));
    assert!(fine.kl.unwrap() > 0.0 && fine.kl_far.unwrap() > 0.0 && fine.agree.unwrap() > 0.0);
    assert!(fine.rel_k.unwrap() < coarse.rel_k.unwrap() && fine.rel_v.unwrap() < coarse.rel_v.unwrap());
    assert!(fine.body_ratio.unwrap() < coarse.body_ratio.unwrap(), "{fine:?} {coarse:?}");
    assert!(fine.encode_ms > 0.0 && fine.decode_ms > 0.0);
    // With 132 tokens raw no ratio can pass that of their share.
    assert!(coarse.whole_ratio < 500.0 / 132.0 && coarse.body_ratio.unwrap() > 8.0, "{coarse:?}");
}

#[test]
fn a_prompt_without_a_body_stays_raw() {
    let row = PromptRow {
        line: 1,
        input: Input::Text("The linker joins objects".into()),
        answer: "x".into(),
        later: vec![],
    };
    let sets = Sets { prompts: vec![row], ..Sets::default() };
    let score = measure(&SUBJECT, &sets, &[Way::seed(16)]).unwrap().remove(0);
    assert_eq!((score.whole_ratio, score.body_ratio), (1.0, None));
}

#[test]
fn the_seed_s_report_has_a_row_for_each_method() {
    let rows = seed_report(&SUBJECT, 400).unwrap();
    let names: Vec<_> = rows.iter().map(|row| (row.codec, row.tier.unwrap())).collect();
    assert_eq!(names, [("seed-replica", 16), ("kvtc-paper", 16), ("kvtc", 16), ("kvtc", 32)]);
    for row in &rows {
        assert_eq!((row.tokens, row.bytes_before), (400, 400 * SUBJECT.loaded.layout.bytes_per_token()));
        assert!((row.ratio - row.bytes_before as f64 / row.bytes_after as f64).abs() < 1e-9);
        assert!(row.compress_ms > 0.0 && row.decompress_ms > 0.0);
        for cosine in [row.body.head_k, row.body.head_v, row.body.token_k, row.body.token_v] {
            assert!((0.5..1.0).contains(&cosine), "{row:?}");
        }
    }
    // 132 of 400 tokens are exact, and count.
    let body_share = 268.0 / 400.0;
    for (all, body) in
        [(rows[0].all.head_k, rows[0].body.head_k), (rows[0].all.token_v, rows[0].body.token_v)]
    {
        assert!((all - (1.0 - body_share * (1.0 - body))).abs() < 1e-6, "{all} {body}");
    }
}

fn kvferry(args: &[&str], plan: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
    command.args(args).arg("--model").arg(model_dir());
    if let Some(plan) = plan {
        command.arg("--plan").arg(plan);
    }
    command.output().unwrap()
}

#[track_caller]
fn json_rows(output: Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_commands_print_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, text, out) =
        (dir.path().join("paper.kvtc"), dir.path().join("text.jsonl"), dir.path().join("report.md"));
    std::fs::write(&plan, SUBJECT.loaded.plan.as_ref().unwrap().to_bytes()).unwrap();
    let Input::Text(body) = prompt(3, 400).input else { unreachable!() };
    std::fs::write(&text, serde_json::json!({ "text": body }).to_string()).unwrap();
    let sizes = ["--cache-tokens", "200", "--ahead-tokens", "40", "--json"];
    let what = ["eval", "--text", text.to_str().unwrap(), "--codec", "raw", "--seed-method"];
    let rows = json_rows(kvferry(&[&what[..], &sizes[..]].concat(), Some(&plan)));
    let names: Vec<_> = rows.iter().map(|row| (row["codec"].clone(), row["tier"].clone())).collect();
    assert_eq!(names[1..], [("seed-replica".into(), 8.into()), ("seed-replica".into(), 16.into())]);
    assert!(rows[2]["kl"].as_f64().unwrap() > 0.0);

    let what = ["eval", "--seed-report", "--tokens", "300", "--json", "--out", out.to_str().unwrap()];
    let rows = json_rows(kvferry(&what, Some(&plan)));
    assert_eq!((rows.len(), &rows[0]["tokens"], &rows[3]["tier"]), (4, &300.into(), &32.into()));
    assert!(rows[0]["body"]["head_v"].as_f64().unwrap() < rows[0]["all"]["head_v"].as_f64().unwrap());
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 2 + rows.len());

    let what = ["bench", "stages", "--tokens", "400", "--runs", "1", "--json"];
    let figures = json_rows(kvferry(&what, Some(&plan))).remove(0);
    assert!(figures["encode_speedup"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(figures["kvtc_body_ratio"].as_f64().unwrap() > 5.0, "{figures}");
}

#[test]
fn a_plan_without_the_paper_s_tables_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("old.kvtc");
    let loaded = &SUBJECT.loaded;
    let features = loaded.layout.features();
    let rows: Vec<f32> = (0..256 * features).map(|i| (i * 7_919 % 997) as f32 / 997.0).collect();
    let vectors = (0..8 * features).map(|i| f32::from(u8::from(i / features == i % features))).collect();
    let basis = Basis { mean: vec![0.5; features], weights: None, vectors };
    let side = (basis, rows);
    let builder =
        PlanBuilder::new(loaded.layout.clone(), loaded.llama.fingerprint(), side.clone(), side.clone());
    std::fs::write(&plan, builder.build(&mut |_| {}).unwrap().to_bytes()).unwrap();
    for args in [&["eval", "--seed-report"][..], &["bench", "stages", "--tokens", "300"]] {
        let output = kvferry(args, Some(&plan));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && text.contains("make a new one with `kvferry calibrate`"),
            "{text}"
        );
    }
}
