//! `kvferry calibrate`: a plan for a model from sample text. Runs the model over documents, streams the covariance of
//! its cache, diagonalises it and measures steps on held-out documents. No Python, bounded memory.
//!
//! See docs/calibration.md for how much text it needs and how to judge the result.

mod collect;
mod corpus;
mod eigen;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use codec::fit::{Basis, Covariance, PlanBuilder};
use codec::{MAX_FEATURES, Plan};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::Loaded;
use node::args::default_model_dir;
use node::loaded::PLAN_FILE;
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use collect::Documents;

/// Calibration tokens per feature by default: below one the basis cannot span the data, at five it is good
/// (arXiv:2511.01815, table 8).
const TOKENS_PER_FEATURE: usize = 5;
/// Never fewer than the paper's calibration set.
const MIN_TOKENS: usize = 160_000;
/// Tokens of the documents on which steps and tables are measured.
const HELD_OUT_TOKENS: usize = 16_384;
/// Steps in a plan are logarithms in units of so many to the octave.
const GRID_PER_OCTAVE: f64 = 48.0;
/// Rows summed up at a time.
const BATCH_ROWS: usize = 4096;

/// Fits the codec's plan for a model from sample text.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hugging Face model directory.
    #[arg(long, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    model: PathBuf,
    /// Sample text: JSON lines with a `text` field or plain text, each plain, .gz or .xz.
    #[arg(long, required = true, num_args = 1..)]
    corpus: Vec<PathBuf>,
    /// Where to write the plan [default: plan.kvtc in the model directory].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Tokens to calibrate on [default: 160,000, or 5 per feature where that is more].
    #[arg(long)]
    tokens: Option<usize>,
    /// Longest document, in tokens; half of all tokens come from documents above 1,024.
    #[arg(long, default_value_t = 4096)]
    document_tokens: usize,
    /// Seed of the choice of documents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Calibrates and writes the plan.
///
/// # Errors
/// When model or corpus cannot be read, or the corpus is too small.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let loaded = Loaded::without_plan(&args.model).context("cannot load the model")?;
    let features = loaded.layout.features();
    ensure!(
        features <= MAX_FEATURES,
        "{features} features a token; at most {MAX_FEATURES} are supported for now"
    );
    let bars = MultiProgress::new();
    let documents = read_corpus(args, &bars)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let mut documents = Documents::new(
        &documents,
        &tokenizer,
        args.document_tokens.min(loaded.llama.config().max_position_embeddings),
    );
    let held_out = held_out(&loaded, &mut documents, &bars)?;
    let wanted = args.tokens.unwrap_or_else(|| (features * TOKENS_PER_FEATURE).max(MIN_TOKENS));
    let (keys, values) = covariances(&loaded, &mut documents, wanted, &bars)?;
    let bar = bar(&bars, 2, "principal axes");
    let keys = basis(keys, features, &bar)?;
    let values = basis(values, features, &bar)?;
    bar.finish();
    let builder = PlanBuilder::new(
        loaded.layout.clone(),
        loaded.llama.fingerprint(),
        (keys, held_out.0),
        (values, held_out.1),
    );
    let plan = build(builder, &bars)?;
    let out = args.out.clone().unwrap_or_else(|| args.model.join(PLAN_FILE));
    let bytes = plan.to_bytes();
    write_whole(&out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    report(&plan, bytes.len(), started.elapsed());
    eprintln!("plan {} written to {}", plan.id(), out.display());
    Ok(())
}

/// Writes beside the target and renames, so that no node ever reads half a plan.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("partial");
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path)
}

fn read_corpus(args: &Args, bars: &MultiProgress) -> anyhow::Result<Vec<String>> {
    let mut total = 0;
    for path in &args.corpus {
        total +=
            std::fs::metadata(path).with_context(|| format!("cannot read corpus {}", path.display()))?.len();
    }
    let bar = bar(bars, total, "reading the corpus");
    let documents = corpus::sample(&args.corpus, &mut ChaCha8Rng::seed_from_u64(args.seed), &bar)?;
    bar.finish_with_message(format!("corpus: {} documents", documents.len()));
    Ok(documents)
}

type Rows = (Vec<f32>, Vec<f32>);

fn held_out(loaded: &Loaded, documents: &mut Documents<'_>, bars: &MultiProgress) -> anyhow::Result<Rows> {
    let bar = bar(bars, HELD_OUT_TOKENS as u64, "held-out documents");
    let mut all = Rows::default();
    let seen = collect::collect(loaded, documents, HELD_OUT_TOKENS, &bar, |keys, values| {
        all.0.extend_from_slice(keys);
        all.1.extend_from_slice(values);
        Ok(())
    })?;
    bar.finish_with_message(format!("held-out documents: {seen} tokens"));
    Ok(all)
}

fn covariances(
    loaded: &Loaded,
    documents: &mut Documents<'_>,
    wanted: usize,
    bars: &MultiProgress,
) -> anyhow::Result<(Covariance, Covariance)> {
    let features = loaded.layout.features();
    let bar = bar(bars, wanted as u64, "running documents through the model");
    let mut sides = [Covariance::new(features), Covariance::new(features)];
    let mut waiting = [Vec::new(), Vec::new()];
    let seen = collect::collect(loaded, documents, wanted, &bar, |keys, values| {
        for ((side, waiting), rows) in sides.iter_mut().zip(&mut waiting).zip([keys, values]) {
            waiting.extend_from_slice(rows);
            if waiting.len() >= BATCH_ROWS * features {
                side.push(waiting)?;
                waiting.clear();
            }
        }
        Ok(())
    })?;
    for (side, waiting) in sides.iter_mut().zip(&waiting) {
        side.push(waiting)?;
    }
    ensure!(
        seen >= features,
        "the corpus gave only {seen} tokens; a basis of {features} features needs at least as many (--corpus, --tokens)"
    );
    bar.finish_with_message(format!("calibration: {seen} tokens"));
    let [keys, values] = sides;
    Ok((keys, values))
}

fn basis(covariance: Covariance, features: usize, bar: &ProgressBar) -> anyhow::Result<Basis> {
    let (mean, covariance) = covariance.finish()?;
    let vectors = eigen::axes(&covariance, features)?;
    bar.inc(1);
    Ok(Basis { mean, weights: None, vectors })
}

fn build(builder: PlanBuilder, bars: &MultiProgress) -> anyhow::Result<Plan> {
    let bar = bar(bars, 1, "plan");
    let plan = builder.build(&mut |progress| {
        bar.set_message(progress.stage);
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    })?;
    bar.finish_with_message("steps and tables");
    Ok(plan)
}

fn report(plan: &Plan, bytes: usize, elapsed: Duration) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["tier", "log2 step of keys", "log2 step of values", "components of keys", "of values"]);
    for entry in plan.tiers() {
        let (keys, values) = plan.kept_components(entry.tier);
        let log2 = |grid: i16| format!("{:.2}", f64::from(grid) / GRID_PER_OCTAVE);
        table.add_row([
            entry.tier.to_string(),
            log2(entry.keys),
            log2(entry.values),
            keys.to_string(),
            values.to_string(),
        ]);
    }
    let (keys, values) = plan.components();
    eprintln!("{table}");
    eprintln!(
        "{keys} components of keys and {values} of values, {} on disk, made in {}",
        indicatif::HumanBytes(bytes as u64),
        indicatif::HumanDuration(elapsed)
    );
}

fn bar(bars: &MultiProgress, length: u64, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} % {elapsed:>5}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(length).with_style(style).with_message(message))
}
