//! A whole calibration of a small random model, and what its report says.

use std::path::Path;

use clap::Parser;
use codec::Plan;
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::gradient::random_model;
use super::super::{Args, run};
use super::numbers::{components_for, percent};
use crate::prompts::{Family, Filler, document, text_tokens};

const TEXTS: usize = 160;
/// Longer than the model's context, so that a document takes one text.
const TEXT_TOKENS: usize = 550;
const PICTURES: [&str; 3] = ["spectrum", "bits", "layers"];

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// A model with the embedded model's tokenizer, and a corpus that is just enough.
fn prepare(dir: &Path) {
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
    let tokenizer = Tokenizer::load(&embedded).unwrap();
    random_model::write_with_vocabulary(dir, 8192, |_, _| {});
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(embedded.join(file), dir.join(file)).unwrap();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let lines = (0..TEXTS).map(|_| {
        let count = text_tokens(&tokenizer);
        let made = document(&mut rng, Family::Number, TEXT_TOKENS, Filler::Sentences, count);
        serde_json::json!({ "text": made.body }).to_string() + "\n"
    });
    std::fs::write(dir.join("corpus.jsonl"), lines.collect::<String>()).unwrap();
}

fn calibrate(dir: &Path, more: &[&str]) -> (Vec<u8>, String) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (model, corpus, out, report) = (path(""), path("corpus.jsonl"), path("out.plan"), path("report"));
    let all = ["kvferry", "--model", &model, "--corpus", &corpus, "--out", &out, "--report", &report];
    let all = [&all[..], &["--tokens", "3000", "--seed", "5"], more].concat();
    run(&Command::parse_from(all).args).unwrap();
    (std::fs::read(out).unwrap(), std::fs::read_to_string(dir.join("report/report.md")).unwrap())
}

/// Rows of the table under a title, cells trimmed.
fn rows(report: &str, title: &str) -> Vec<Vec<String>> {
    let section = report.split("\n## ").find(|section| section.starts_with(title)).unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.map(cells).collect()
}

fn number(cell: &str) -> f64 {
    cell.trim_end_matches(" %").trim_end_matches(" s").replace(',', "").parse().unwrap()
}

/// The ratio is what bytes a token give, and so is the share of keys.
fn check_tiers(report: &str) {
    let raw = 2.0 * 2.0 * 48.0;
    for title in ["Tiers with one step for all tokens", "Tiers with a step per token"] {
        let tiers = rows(report, title);
        assert_eq!(tiers.len(), 16);
        for tier in &tiers {
            let bytes: f64 = tier[2..5].iter().map(|cell| number(cell)).sum();
            assert!((raw / bytes / number(&tier[5]) - 1.0).abs() < 0.01, "{tier:?}");
            assert!((100.0 * number(&tier[2]) / bytes - number(&tier[6])).abs() < 0.5, "{tier:?}");
            assert!(number(&tier[9]) <= 100.5 && number(&tier[11]) <= 100.5, "{tier:?}");
        }
    }
}

fn check_pictures(dir: &Path, report: &str) {
    for name in PICTURES {
        let read = |end: &str| std::fs::read(dir.join(format!("report/{name}.{end}"))).unwrap();
        assert!(read("png").starts_with(b"\x89PNG") && read("svg").starts_with(b"<svg"), "{name}");
        assert!(report.contains(&format!("({name}.svg)")));
    }
}

#[test]
fn a_report_accounts_for_what_was_run_and_for_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (bytes, report) = calibrate(dir.path(), &[]);
    let plan = Plan::from_bytes(&bytes).unwrap();
    assert!(report.contains(&plan.id().to_string()));

    let ran = rows(&report, "What was run");
    let value = |name: &str| ran.iter().find(|row| row[0] == name).unwrap()[1].clone();
    assert_eq!((value("corpus"), value("seed")), (format!("{TEXTS} texts"), "5".to_owned()));
    assert!(value("variance that token ids leave, calibration tokens").contains("% of keys"));
    assert!(number(value("calibration").split(' ').next().unwrap()) >= 3000.0);
    let asked = value("of it with questions");
    assert!((20.0..80.0).contains(&number(asked.split(" (").next().unwrap())), "{asked}");

    let parts = rows(&report, "Where the plan's bytes go");
    let (all, parts) = parts.split_last().unwrap();
    assert_eq!(number(&all[2]), bytes.len() as f64);
    assert_eq!(parts.iter().map(|part| number(&part[2])).sum::<f64>(), bytes.len() as f64);

    check_tiers(&report);
    let shares = rows(&report, "Layers").iter().map(|row| number(&row[3]) + number(&row[4])).sum::<f64>();
    assert!((shares - 100.0).abs() < 0.5, "{shares}");
    for row in rows(&report, "kvtc-paper") {
        assert_eq!(row[2..6].iter().map(|count| number(count)).sum::<f64>(), 48.0, "{row:?}");
        assert!(number(&row[6]) <= number(&row[7]), "{row:?}");
    }
    let times = rows(&report, "Time and memory");
    for phase in
        ["gradients", "running documents", "axes", "tables and steps", "kvtc-paper", "writing", "all"]
    {
        assert!(times.iter().any(|row| row[0] == phase && row[1].ends_with(" s")), "{phase}");
    }
    check_pictures(dir.path(), &report);
}

#[test]
fn what_was_left_out_is_not_reported() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let more = ["--without-paper", "--context", "0", "--question-share", "0", "--pca-rank", "20"];
    let (_, report) = calibrate(dir.path(), &more);
    assert!(!report.contains("kvtc-paper") && !report.contains("variance that token ids leave"));
    let spectrum = rows(&report, "Spectrum");
    assert_eq!((spectrum[0][1].as_str(), spectrum[1][1].as_str()), ("20", "20"));
}

#[test]
fn the_fewest_components_that_hold_a_share_of_the_energy_are_counted() {
    let sigma = [2.0, 1.0, 1.0, 1.0, 1.0];
    let counts = [0.4, 0.5, 0.51, 0.99, 1.0].map(|share| components_for(&sigma, share));
    assert_eq!(counts, [1, 1, 2, 5, 5]);
    assert_eq!(components_for(&[], 0.5), 0);
}

#[test]
fn shares_keep_three_digits() {
    assert_eq!([0.5, 0.0612, 0.00123, 0.0].map(percent), ["50.0 %", "6.12 %", "0.123 %", "0.000 %"]);
}
