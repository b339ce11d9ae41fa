//! `kvferry calibrate`: a plan for a model from sample text. Runs the model over documents, streams second moments of its cache and of
//! its tokens' features, weighs features by the model's own gradients, and measures steps on held-out documents. No Python, bounded memory.
//!
//! See docs/calibration.md for how much text it needs and how to judge the result.

mod collect;
mod corpus;
mod documents;
mod eigen;
mod fisher;
mod gradient;
mod held_out;
mod moments;
mod quality;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{DType, Device};
use codec::fit::{Balance, Basis, PlanBuilder, Predictor, add_paper};
use codec::{KvLayout, MAX_FEATURES, Plan, TokenFeatures};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::Loaded;
use node::args::default_model_dir;
use node::loaded::PLAN_FILE;
use openai::{ChatTemplate, Tokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use documents::Documents;
use fisher::{Fisher, fisher};
use gradient::Gradient;
use held_out::{HeldOut, first_row};
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

/// A layer's attention counts within these bounds, whatever the gradients say.
const LEAST_LAYER: f64 = 0.05;
const MOST_LAYER: f64 = 20.0;

/// Held-out rows that kvtc-paper's errors are measured on.
const PAPER_ROWS: usize = 2_048;

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
    let started = Instant::now();
    let loaded = Loaded::without_plan(&args.model).context("cannot load the model")?;
    let features = loaded.layout.features();
    ensure!(
        features <= MAX_FEATURES,
        "{features} features a token; at most {MAX_FEATURES} are supported for now"
    );
    let bars = MultiProgress::new();
    let texts = read_corpus(args, &bars)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let longest = args.document_tokens.min(loaded.llama.config().max_position_embeddings);
    let template = ChatTemplate::load(&args.model).ok();
    let mix = (args.question_share, args.seed);
    let mut documents = Documents::new(&texts, &tokenizer, template.as_ref(), longest, mix);
    let held_out = held_out::choose(&mut documents)?;
    let gradients = gradients(args, &mut documents, &bars)?;
    let (keys, values) = moments(args, &loaded, &mut documents, &bars)?;
    let layers = layer_weights(&loaded.layout, &gradients, (&keys, &values));
    let held_out = HeldOut::run(&loaded, held_out, &layers, &bars)?;
    let paper = (!args.without_paper).then(|| paper_rows(&held_out, features));
    let mut plan = fit(args, &loaded, (&keys, &values), (held_out, layers), &gradients, &bars)?;
    if let Some(rows) = paper {
        plan = with_paper(args, plan, (&keys, &values), rows, &bars)?;
    }
    let out = args.out.clone().unwrap_or_else(|| args.model.join(PLAN_FILE));
    let bytes = plan.to_bytes();
    write_whole(&out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    report::print(&plan, bytes.len(), started.elapsed());
    eprintln!("plan {} written to {}", plan.id(), out.display());
    match args.max_kl {
        Some(max_kl) => quality::find(&args.model, &out, documents.rest(), max_kl),
        None => Ok(()),
    }
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
) -> anyhow::Result<(Side, Side)> {
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
        seen >= features,
        "the corpus gave only {seen} tokens; a basis of {features} features needs at least as many (--corpus, --tokens)"
    );
    bar.finish_with_message(format!("calibration: {seen} tokens"));
    Ok(moments.finish()?)
}

fn fit(
    args: &Args,
    loaded: &Loaded,
    (keys, values): (&Side, &Side),
    (mut held_out, layers): (HeldOut, Vec<f32>),
    gradients: &Fisher,
    bars: &MultiProgress,
) -> anyhow::Result<Plan> {
    let source = loaded.token_features();
    let bar = bar(bars, 3, "principal axes");
    let predictor = predictor_of(args, source.as_ref(), (keys, values))?;
    bar.inc(1);
    let (of_keys, of_values) = predictor.as_ref().map(Predictor::maps).unwrap_or_default();
    let (key_weights, value_weights) = weights(gradients);
    let key_basis = cut(args, keys.weighted_basis(of_keys, &key_weights)?);
    bar.inc(1);
    let value_basis = cut(args, values.weighted_basis(of_values, &value_weights)?);
    bar.finish_with_message("principal axes");
    if let Some(predictor) = &predictor {
        held_out.remove(predictor, source.as_ref(), loaded.layout.features())?;
    }
    let HeldOut { keys, values, ids, shifts, .. } = held_out;
    let (layout, model) = (loaded.layout.clone(), loaded.llama.fingerprint());
    let mut builder = PlanBuilder::new(layout, model, (key_basis, keys), (value_basis, values))
        .balance(Balance::OneStep)
        .target(args.target_ratio)
        .shifts(shifts)
        .layer_weights(layers);
    if let Some(predictor) = predictor {
        builder = builder.predicting(predictor, ids);
        if let Some((token, keys, values)) = first_row(args, loaded)? {
            builder = builder.first_row(token, keys, values);
        }
    }
    build(builder, bars)
}

/// Keeps the strongest components of a basis.
fn cut(args: &Args, mut basis: Basis) -> Basis {
    if let Some(rank) = args.pca_rank {
        basis.vectors.truncate(rank * basis.mean.len());
    }
    basis
}

/// Rows as they are, which kvtc-paper codes.
fn paper_rows(held_out: &HeldOut, features: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = held_out.ids.len();
    let every = rows.div_ceil(PAPER_ROWS).max(1);
    let sample = |side: &[f32]| side.chunks_exact(features).step_by(every).flatten().copied().collect();
    (sample(&held_out.keys), sample(&held_out.values))
}

fn with_paper(
    args: &Args,
    plan: Plan,
    (keys, values): (&Side, &Side),
    rows: (Vec<f32>, Vec<f32>),
    bars: &MultiProgress,
) -> anyhow::Result<Plan> {
    let bar = bar(bars, 1, "kvtc-paper");
    let (of_keys, of_values) = (cut(args, keys.plain_basis()?), cut(args, values.plain_basis()?));
    let plan = add_paper(&plan, (of_keys, rows.0), (of_values, rows.1), &mut |progress| {
        bar.set_message(progress.stage);
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    })?;
    bar.finish_with_message("kvtc-paper");
    Ok(plan)
}

fn predictor_of(
    args: &Args,
    source: &dyn TokenFeatures,
    (keys, values): (&Side, &Side),
) -> anyhow::Result<Option<Predictor>> {
    if args.context == 0 {
        return Ok(None);
    }
    let predictor = predictor(source, args.context.into(), (keys, values))?;
    let (of_keys, of_values) = predictor.maps();
    eprintln!(
        "token ids leave {:.1} % of the variance of keys and {:.1} % of values",
        100.0 * keys.unexplained(of_keys),
        100.0 * values.unexplained(of_values)
    );
    Ok(Some(predictor))
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

/// What attention in each layer is worth, 1 on average: how much the model's loss feels of that layer's cache.
fn layer_weights(layout: &KvLayout, gradients: &Fisher, (keys, values): (&Side, &Side)) -> Vec<f32> {
    let per_layer = layout.kv_heads * layout.head_dim;
    let felt = |gradients: &[f64], side: &Side| -> Vec<f64> {
        let each: Vec<f64> = gradients.iter().zip(side.variances()).map(|(g, v)| g * v).collect();
        each.chunks_exact(per_layer).map(|layer| layer.iter().sum()).collect()
    };
    let (of_keys, of_values) = (felt(&gradients.keys, keys), felt(&gradients.values, values));
    let felt: Vec<f64> = of_keys.iter().zip(&of_values).map(|(a, b)| a + b).collect();
    let mean = felt.iter().sum::<f64>() / felt.len() as f64;
    felt.iter().map(|x| (x / mean).clamp(LEAST_LAYER, MOST_LAYER) as f32).collect()
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{share} is outside 0 to 1")) }
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

fn bar(bars: &MultiProgress, length: u64, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} % {elapsed:>5}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(length).with_style(style).with_message(message))
}
