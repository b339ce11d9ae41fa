//! The report that the seed prints of itself, with this repository's codecs in the same columns: bytes of one prompt's cache
//! before and after, cosine similarity, times.

use std::path::Path;

use anyhow::{Context as _, ensure};
use codec::{CodecKind, Coding, fit};
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use half::bf16;
use model::KvCache;
use node::prompt::export;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::super::body::Body;
use super::super::subject::{Prefilled, Subject, Way};
use crate::bench::timing::median;
use crate::prompts::{retrieval, text_tokens};

/// Seed of the prompt.
const SEED: u64 = 1;
/// Tokens that the prompt is made longer before it is cut to length: more than a sentence has.
const SLACK: usize = 200;
/// Measured repetitions in turns; one more goes first and is not counted.
const RUNS: usize = 5;

/// One method on the report's prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the method.
    pub codec: &'static str,
    /// Its tier.
    pub tier: Option<u8>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Of the cache.
    pub bytes_before: usize,
    /// Everything that is sent or stored; a plan is not.
    pub bytes_after: usize,
    /// Raw over coded bytes.
    pub ratio: f64,
    /// Over all tokens, sinks and window included, as the seed has it.
    pub all: Cosines,
    /// Over the tokens between sinks and window.
    pub body: Cosines,
    /// Median.
    pub compress_ms: f64,
    /// Median.
    pub decompress_ms: f64,
}

/// Mean cosine similarities of keys, with RoPE undone, and of values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cosines {
    /// Of each token's key in each layer and head: the seed's measure.
    pub head_k: f64,
    /// The same of values.
    pub head_v: f64,
    /// Of each token's keys in all layers and heads as one vector.
    pub token_k: f64,
    /// The same of values.
    pub token_v: f64,
}

/// What is reported: the seed's method at its default, the paper's at the same target, and `kvtc` there and at its own default.
fn ways() -> [Way; 4] {
    let usual = |kind, tier| Way::usual(Coding { kind, tier });
    [Way::seed(16), usual(CodecKind::KvtcPaper, 16), usual(CodecKind::Kvtc, 16), usual(CodecKind::Kvtc, 32)]
}

/// Measures every method of the report on a prompt of exactly `tokens` tokens.
///
/// # Errors
/// When the model was not made for so many tokens, or its plan lacks a method's tables.
pub fn seed_report(subject: &Subject, tokens: usize) -> anyhow::Result<Vec<Row>> {
    let limit = subject.loaded.llama.config().max_position_embeddings;
    ensure!(tokens <= limit, "a prompt of {tokens} tokens (--tokens), the model was made for {limit}");
    ways().iter().try_for_each(|way| subject.check(way.coding))?;
    let prompt = subject.prefill(prompt(subject, tokens)?, 0)?;
    let mut times = [(); 4].map(|()| (Vec::new(), Vec::new()));
    let mut rows = Vec::new();
    for run in 0..=RUNS {
        rows.clear();
        for (way, times) in ways().into_iter().zip(&mut times) {
            let (row, encode, decode) = row(subject, way, &prompt)?;
            rows.push(row);
            if run > 0 {
                times.0.push(encode);
                times.1.push(decode);
            }
        }
    }
    for (row, (encode, decode)) in rows.iter_mut().zip(times) {
        (row.compress_ms, row.decompress_ms) = (median(encode), median(decode));
    }
    Ok(rows)
}

/// A question's prompt, cut at the front.
fn prompt(subject: &Subject, tokens: usize) -> anyhow::Result<Vec<u32>> {
    let count = text_tokens(&subject.tokenizer);
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(SEED), tokens + SLACK, count);
    let mut ids = subject.tokenizer.encode(&task.prompt)?;
    let begin = usize::from(ids.first().copied() == subject.tokenizer.begin_of_text());
    let surplus = ids.len().checked_sub(tokens).context("the prompt came out too short; this is a bug")?;
    ids.drain(begin..begin + surplus);
    Ok(ids)
}

/// One transfer, with the milliseconds it took to code and to decode.
fn row(subject: &Subject, way: Way, prompt: &Prefilled) -> anyhow::Result<(Row, f64, f64)> {
    let (decoded, transfers) = subject.transfer(way, prompt)?;
    let tokens = prompt.ids.len();
    let [exact, decoded] = [rows(subject, &prompt.cache, tokens)?, rows(subject, &decoded, tokens)?];
    let features = subject.loaded.layout.features();
    let cosines = |tokens: std::ops::Range<usize>| {
        let part = tokens.start * features..tokens.end * features;
        let cosine =
            |side: usize, width| cosine(&exact[side][part.clone()], &decoded[side][part.clone()], width);
        let head = subject.loaded.layout.head_dim;
        Cosines {
            head_k: cosine(0, head),
            head_v: cosine(1, head),
            token_k: cosine(0, features),
            token_v: cosine(1, features),
        }
    };
    let row = Row {
        codec: way.coding.name(),
        tier: way.coding.tier(),
        tokens,
        bytes_before: transfers.raw_bytes,
        bytes_after: transfers.wire_bytes,
        ratio: transfers.raw_bytes as f64 / transfers.wire_bytes as f64,
        all: cosines(0..tokens),
        body: cosines(Body::of(tokens).range()),
        compress_ms: f64::NAN,
        decompress_ms: f64::NAN,
    };
    Ok((row, transfers.encode.as_secs_f64() * 1e3, transfers.decode.as_secs_f64() * 1e3))
}

/// Keys without RoPE and values, `[tokens, P]` each.
fn rows(subject: &Subject, cache: &KvCache<bf16>, tokens: usize) -> anyhow::Result<[Vec<f32>; 2]> {
    let (keys, values) = fit::rows(&export(cache, 0..tokens)?, &subject.loaded.layout)?;
    Ok([keys, values])
}

/// Mean cosine similarity of vectors of `width` numbers; that of a vector of zeros is 0.
fn cosine(exact: &[f32], decoded: &[f32], width: usize) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let of = |(a, b): (&[f32], &[f32])| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE);
    let vectors = exact.chunks_exact(width).zip(decoded.chunks_exact(width));
    let count = vectors.len();
    vectors.map(of).sum::<f64>() / count as f64
}

const HEADER: [&str; 13] = [
    "codec",
    "tier",
    "before",
    "after",
    "saved",
    "saved %",
    "ratio",
    "cos K, V",
    "of body",
    "per token K, V",
    "of body",
    "compress",
    "decompress",
];

/// The table for a terminal.
pub(in super::super) fn terminal(rows: &[Row]) -> String {
    table(rows, presets::UTF8_FULL_CONDENSED)
}

/// Writes the table as Markdown.
pub(in super::super) fn write(rows: &[Row], path: &Path) -> anyhow::Result<()> {
    let text = format!("{}\n", table(rows, presets::ASCII_MARKDOWN));
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("written to {}", path.display());
    Ok(())
}

fn table(rows: &[Row], style: TableStyle) -> String {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(HEADER);
    rows.iter().for_each(|row| {
        table.add_row(cells(row));
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn cells(row: &Row) -> [String; 13] {
    let mib = |bytes: f64| format!("{:.2} MiB", bytes / f64::from(1 << 20));
    let (before, after) = (row.bytes_before as f64, row.bytes_after as f64);
    let pair = |keys: f64, values: f64| format!("{keys:.4}, {values:.4}");
    [
        row.codec.into(),
        row.tier.map_or_else(|| "-".into(), |tier| tier.to_string()),
        mib(before),
        mib(after),
        mib(before - after),
        format!("{:.1} %", 100.0 * (1.0 - after / before)),
        format!("{:.2}", row.ratio),
        pair(row.all.head_k, row.all.head_v),
        pair(row.body.head_k, row.body.head_v),
        pair(row.all.token_k, row.all.token_v),
        pair(row.body.token_k, row.body.token_v),
        format!("{:.1} ms", row.compress_ms),
        format!("{:.1} ms", row.decompress_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_means_over_vectors_of_the_width() {
        let (exact, decoded) = ([1.0, 0.0, 3.0, 4.0], [2.0, 0.0, 4.0, -3.0]);
        assert!((cosine(&exact, &decoded, 2) - 0.5).abs() < 1e-12);
        let whole = 2.0 / (26.0f64 * 29.0).sqrt();
        assert!((cosine(&exact, &decoded, 4) - whole).abs() < 1e-12);
        assert_eq!(cosine(&[0.0; 2], &[1.0; 2], 2), 0.0);
    }

    #[test]
    fn a_row_says_what_was_saved() {
        let cosines = Cosines { head_k: 0.99, head_v: 0.86, token_k: 0.98, token_v: 0.85 };
        let row = Row {
            codec: "seed-replica",
            tier: Some(16),
            tokens: 862,
            bytes_before: 28_246_016,
            bytes_after: 6_060_769,
            ratio: 4.66,
            all: cosines,
            body: cosines,
            compress_ms: 835.0,
            decompress_ms: 347.0,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.md");
        write(&[row.clone(), row], &path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        let last: Vec<&str> = text.lines().last().unwrap().split('|').map(str::trim).collect();
        assert_eq!(
            last[1..8],
            ["seed-replica", "16", "26.94 MiB", "5.78 MiB", "21.16 MiB", "78.5 %", "4.66"]
        );
        assert_eq!(last[8], "0.9900, 0.8600");
    }
}
