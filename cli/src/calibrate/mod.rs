//! `kvferry calibrate`: a plan for a model from sample text. Runs the model over documents, streams second moments of its cache and of
//! its tokens' features, weighs features by the model's own gradients, and measures steps on held-out documents. No Python, bounded memory.
//!
//! See docs/calibration.md for how much text it needs and how to judge the result.

mod clock;
mod collect;
mod corpus;
mod documents;
mod eigen;
mod fisher;
mod gradient;
mod held_out;
mod layers;
mod memory;
mod moments;
mod paper;
mod quality;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use candle_core::{DType, Device};
use codec::fit::{Balance, Basis, PlanBuilder, Predictor, Progress, Report};
use codec::{MAX_FEATURES, Plan, TokenFeatures};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::Loaded;
use node::args::default_model_dir;
use node::loaded::PLAN_FILE;
use openai::{ChatTemplate, Tokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use clock::Clock;
use collect::Sample;
use documents::Documents;
use fisher::{Fisher, fisher};
use gradient::Gradient;
use held_out::{HeldOut, first_row};
use layers::Layer;
use memory::Memory;
use moments::{Moments, Side, predictor};

/// Calibration tokens per feature by default: below one the basis cannot span the data, at five it is good
/// (arXiv:2511.01815, table 8).
const TOKENS_PER_FEATURE: usize = 5;
/// Never fewer than the paper's calibration set.
const MIN_TOKENS: usize = 160_000;
/// Tokens whose gradients say which features matter.
const FISHER_TOKENS: usize = 16_384;
/// Added to every feature's mean squared gradient, as a share of their mean: a feature without gradient is not worthless.
const FISHER_FLOOR: f64 = 0.05;

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
    /// Longest document, in tokens; half of all tokens of plain documents come from those above 1,024.
    #[arg(long, visible_alias = "sample-tokens", default_value_t = 4096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(64..=1_048_576))]
    document_tokens: usize,
    /// Calibrate on so many documents at most.
    #[arg(long, value_name = "N")]
    calibration_samples: Option<usize>,
    /// Components kept at most of keys and of values [default: as many as any tier codes].
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=16_384))]
    pca_rank: Option<usize>,
    /// Body ratio that the plan is tuned for; any other can be asked for as well.
    #[arg(long, value_name = "TIER", default_value_t = 32, value_parser = clap::value_parser!(u8).range(4..=128))]
    target_ratio: u8,
    /// Leave out the tables of kvtc-paper: a third of the plan's bytes.
    #[arg(long)]
    without_paper: bool,
    /// Write what was found, with pictures, into this directory: report.md, and spectrum, bits and layers as SVG and PNG.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Find the cheapest tier whose KL on held-out documents stays within this, in nats.
    #[arg(long, value_name = "NATS")]
    max_kl: Option<f64>,
    /// Share of the tokens that come from documents with facts hidden in them and questions at the end: what is read far back.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    question_share: f64,
    /// Tokens that a row is predicted from, its own and those before; 0 predicts nothing.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=4))]
    context: u8,
    /// Seed of the choice of documents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Calibrates and writes the plan.
///
/// # Errors
/// When model or corpus cannot be read, or the corpus is too small.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut clock = Clock::start();
    let loaded = Loaded::without_plan(&args.model).context("cannot load the model")?;
    let config = loaded.llama.config();
    let features = loaded.layout.features();
    ensure!(
        features <= MAX_FEATURES,
        "{features} features a token; at most {MAX_FEATURES} are supported for now"
    );
    let longest = args.document_tokens.min(config.max_position_embeddings);
    let memory = Memory::of(config, args.context.into(), longest);
    eprintln!("memory: {memory}");
    let bars = MultiProgress::new();
    let texts = read_corpus(args, &bars)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let template = ChatTemplate::load(&args.model).ok().flatten();
    let mix = (args.question_share, args.seed);
    let mut documents = Documents::new(&texts, &tokenizer, template.as_ref(), longest, mix);
    let (mut seen, held_out) = see(args, &loaded, &mut documents, (&bars, &mut clock))?;
    seen.texts = texts.len();
    let fitted = fit(args, &loaded, &seen, held_out, (&bars, &mut clock))?;
    let out = args.out.clone().unwrap_or_else(|| args.model.join(PLAN_FILE));
    let bytes = fitted.plan.to_bytes();
    write_whole(&out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    clock.end("writing");
    let found =
        report::Found { args, longest, memory, seen: &seen, fitted: &fitted, bytes: &bytes, clock: &clock };
    found.print()?;
    if let Some(dir) = &args.report {
        found.write(dir)?;
    }
    eprintln!("plan {} written to {}", fitted.plan.id(), out.display());
    match args.max_kl {
        Some(max_kl) => quality::find(&args.model, &out, documents.rest(), max_kl),
        None => Ok(()),
    }
}

/// What the documents said.
struct Seen {
    texts: usize,
    held_out: Sample,
    gradients: Fisher,
    sample: Sample,
    /// Share of the sample's tokens that come with questions.
    asked_share: f64,
    keys: Side,
    values: Side,
    layers: Vec<Layer>,
    weights: Vec<f32>,
}

/// Runs everything that has to run through the model: gradients first, then moments, then the held-out documents.
fn see(
    args: &Args,
    loaded: &Loaded,
    documents: &mut Documents<'_>,
    (bars, clock): (&MultiProgress, &mut Clock),
) -> anyhow::Result<(Seen, HeldOut)> {
    let held_out = held_out::choose(documents)?;
    ensure!(
        !documents.rest().is_empty(),
        "the corpus has no text left after the {} tokens that are held out; a basis of {} features needs at least as many (--corpus)",
        held_out.iter().map(Vec::len).sum::<usize>(),
        loaded.layout.features()
    );
    clock.end("loading and reading");
    let gradients = gradients(args, documents, bars)?;
    clock.end("gradients");
    let before = documents.seen();
    let (sample, (keys, values)) = moments(args, loaded, documents, bars)?;
    let after = documents.seen();
    let asked_share = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    clock.end("running documents");
    let layers = layers::layers(&loaded.layout, &gradients, (&keys, &values));
    let weights = layers::weights(&layers);
    let rows = HeldOut::run(loaded, held_out, &weights, bars)?;
    clock.end("running held-out documents");
    let held_out = rows.sample();
    Ok((Seen { texts: 0, held_out, gradients, sample, asked_share, keys, values, layers, weights }, rows))
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

/// Mean squared gradients of the model's log-likelihood with respect to its cache.
fn gradients(args: &Args, documents: &mut Documents<'_>, bars: &MultiProgress) -> anyhow::Result<Fisher> {
    let gradient = Gradient::load(&args.model, DType::F32, &Device::Cpu)?;
    let bar = bar(bars, FISHER_TOKENS as u64, "gradients");
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let documents = std::iter::from_fn(|| documents.next().transpose());
    let found = fisher(&gradient, documents, FISHER_TOKENS, &mut rng, &bar)?;
    bar.finish_with_message(format!("gradients: {} tokens", found.tokens));
    Ok(found)
}

fn moments(
    args: &Args,
    loaded: &Loaded,
    documents: &mut Documents<'_>,
    bars: &MultiProgress,
) -> anyhow::Result<(Sample, (Side, Side))> {
    let features = loaded.layout.features();
    let wanted = args.tokens.unwrap_or_else(|| (features * TOKENS_PER_FEATURE).max(MIN_TOKENS));
    let bar = bar(bars, wanted as u64, "running documents through the model");
    let source = loaded.token_features();
    let mut moments = Moments::new(source.as_ref(), args.context.into(), features);
    let most = args.calibration_samples.unwrap_or(usize::MAX);
    let seen = collect::collect(loaded, documents, (wanted, most), &bar, |document| {
        Ok(moments.push(source.as_ref(), &document)?)
    })?;
    ensure!(
        seen.tokens >= features,
        "the corpus gave only {} tokens; a basis of {features} features needs at least as many (--corpus, --tokens)",
        seen.tokens
    );
    bar.finish_with_message(format!("calibration: {} tokens", seen.tokens));
    Ok((seen, moments.finish()?))
}

/// A plan and what was measured for it.
struct Fitted {
    plan: Plan,
    measured: Report,
    /// Where rows are predicted.
    left: Option<Left>,
}

/// Shares of the variance of keys and of values that token ids leave.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Of the rows that the prediction was made from.
    calibration: (f64, f64),
    held_out: (f64, f64),
}

fn fit(
    args: &Args,
    loaded: &Loaded,
    seen: &Seen,
    held_out: HeldOut,
    (bars, clock): (&MultiProgress, &mut Clock),
) -> anyhow::Result<Fitted> {
    let paper = (!args.without_paper).then(|| paper::rows(&held_out, loaded.layout.features()));
    let mut fitted = fit_kvtc(args, loaded, seen, held_out, (bars, clock))?;
    if let Some(rows) = paper {
        fitted.plan = paper::add(args, &fitted.plan, (&seen.keys, &seen.values), rows, bars)?;
        clock.end("kvtc-paper");
    }
    Ok(fitted)
}

fn fit_kvtc(
    args: &Args,
    loaded: &Loaded,
    seen: &Seen,
    mut held_out: HeldOut,
    (bars, clock): (&MultiProgress, &mut Clock),
) -> anyhow::Result<Fitted> {
    let source = loaded.token_features();
    let (keys, values) = (&seen.keys, &seen.values);
    let predictor = predictor_of(args, source.as_ref(), (keys, values))?;
    let (key_basis, value_basis) = bases(args, seen, predictor.as_ref(), bars)?;
    let mut left = None;
    if let Some(predictor) = &predictor {
        let (of_keys, of_values) = predictor.maps();
        let calibration = (keys.unexplained(of_keys), values.unexplained(of_values));
        let held_out = held_out.remove(predictor, source.as_ref(), loaded.layout.features())?;
        left = Some(Left { calibration, held_out });
    }
    clock.end("axes");
    let sides = ((key_basis, held_out.keys), (value_basis, held_out.values));
    let (layout, model) = (loaded.layout.clone(), loaded.llama.fingerprint());
    let mut builder = PlanBuilder::new(layout, model, sides.0, sides.1)
        .balance(Balance::OneStep)
        .target(args.target_ratio)
        .shifts(held_out.shifts)
        .layer_weights(seen.weights.clone());
    if let Some(predictor) = predictor {
        builder = builder.predicting(predictor, held_out.ids);
        if let Some((token, keys, values)) = first_row(args, loaded)? {
            builder = builder.first_row(token, keys, values);
        }
    }
    let (plan, measured) = build(builder, bars)?;
    clock.end("tables and steps");
    Ok(Fitted { plan, measured, left })
}

/// Axes of what a predictor leaves.
fn bases(
    args: &Args,
    seen: &Seen,
    predictor: Option<&Predictor>,
    bars: &MultiProgress,
) -> anyhow::Result<(Basis, Basis)> {
    let bar = bar(bars, 2, "principal axes");
    let (of_keys, of_values) = predictor.map(Predictor::maps).unwrap_or_default();
    let (key_weights, value_weights) = weights(&seen.gradients);
    let keys = cut(args, seen.keys.weighted_basis(of_keys, &key_weights)?);
    bar.inc(1);
    let values = cut(args, seen.values.weighted_basis(of_values, &value_weights)?);
    bar.finish_with_message("principal axes");
    Ok((keys, values))
}

/// Keeps the strongest components of a basis.
fn cut(args: &Args, mut basis: Basis) -> Basis {
    if let Some(rank) = args.pca_rank {
        basis.vectors.truncate(rank * basis.mean.len());
    }
    basis
}

fn predictor_of(
    args: &Args,
    source: &dyn TokenFeatures,
    (keys, values): (&Side, &Side),
) -> anyhow::Result<Option<Predictor>> {
    if args.context == 0 {
        return Ok(None);
    }
    predictor(source, args.context.into(), (keys, values)).map(Some)
}

/// Square roots of the mean squared gradients, keys and values on one scale: about 1.
fn weights(gradients: &Fisher) -> (Vec<f32>, Vec<f32>) {
    let mean = |side: &[f64]| side.iter().sum::<f64>() / side.len().max(1) as f64;
    let (of_keys, of_values) = (mean(&gradients.keys), mean(&gradients.values));
    let scale = 1.0 / of_keys.max(of_values).sqrt();
    let root = |side: &[f64], mean: f64| {
        side.iter().map(|x| (scale * (x + FISHER_FLOOR * mean).sqrt()) as f32).collect()
    };
    (root(&gradients.keys, of_keys), root(&gradients.values, of_values))
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{share} is outside 0 to 1")) }
}

fn build(builder: PlanBuilder, bars: &MultiProgress) -> anyhow::Result<(Plan, Report)> {
    let bar = bar(bars, 1, "plan");
    let built = builder.build_with_report(&mut |progress| show(&bar, progress))?;
    bar.finish_with_message("steps and tables");
    Ok(built)
}

/// Moves a bar to where the codec's fitting has come.
fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(progress.stage);
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
}

fn bar(bars: &MultiProgress, length: u64, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} % {elapsed:>5}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(length).with_style(style).with_message(message))
}
