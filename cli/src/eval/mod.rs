//! `kvferry eval`: what coding a cache costs in quality, measured at the model's own output. Every prompt runs as a prefill
//! node would run it, its cache is coded to bytes and those bytes decoded to a fresh cache, and the model goes on from both.
//!
//! See docs/evaluation.md for the protocol, the figures and how to reproduce them.

mod body;
#[cfg(feature = "cuda")]
mod device;
mod make;
mod plot;
mod report;
mod retrieval;
mod rows;
mod sample;
mod score;
mod search;
pub(crate) mod seed;
mod subject;
mod sweep;
mod text;

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::ArgGroup;
use codec::{CodecKind, Coding};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::DeviceChoice;
use node::args::default_model_dir;
use openai::ChatTemplate;
use transport::message::KvMode;

use crate::output::line;
pub use rows::{Input, Later, PromptRow, read_prompts, read_texts};
pub use score::Score;
use score::{Tally, has_tiers};
pub use seed::{Cosines, Row, seed_report};
pub use subject::{Method, Subject, Way};
pub use text::Protocol;

/// Measures what a codec costs in quality: retrieval answers, KL divergence, bytes.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("task").multiple(true).required(true).args(["prompts", "text", "make_prompts", "make_text", "seed_report"]))]
pub struct Args {
    /// Hugging Face model directory.
    #[arg(long, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    model: PathBuf,
    /// Calibrated plan of the model [default: plan.kvtc in the model directory].
    #[arg(long, env = "KVFERRY_PLAN")]
    plan: Option<PathBuf>,
    /// Where the codec works: cpu, cuda or cuda:N. The model runs on the CPU anyway.
    #[arg(long, env = "KVFERRY_DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Questions to ask: JSON lines with `prompt` or `messages`, `answer`, and perhaps `later` questions.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Text to predict: JSON lines with `text`.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Codecs, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "kvtc")]
    codec: Vec<CodecKind>,
    /// Tiers, separated by commas; codecs without tiers ignore them.
    #[arg(long, value_delimiter = ',', default_value = "32", value_parser = clap::value_parser!(u8).range(4..=128))]
    tier: Vec<u8>,
    /// When kvtc codes: `after` the prompt, with a step per token, or as it streams, with one for all [default: after].
    #[arg(long, value_name = "MODE")]
    kv_mode: Option<Mode>,
    /// Measure a replica of the first public proof of concept as well, at tiers 8 and 16.
    #[arg(long, conflicts_with = "max_kl")]
    seed_method: bool,
    /// Print that proof of concept's own report, of a prompt of --tokens tokens, for it and for kvtc.
    #[arg(long, conflicts_with_all = ["prompts", "text", "make_prompts", "make_text", "seed_method"])]
    seed_report: bool,
    /// Tokens of that report's prompt.
    #[arg(long, default_value_t = 862, requires = "seed_report", value_parser = clap::value_parser!(u32).range(133..))]
    tokens: u32,
    /// Find the cheapest tier whose KL on --text stays within this, in nats.
    #[arg(long, value_name = "NATS", conflicts_with_all = ["tier", "sweep"], requires = "text")]
    max_kl: Option<f64>,
    /// Measure at most so many prompts and so many windows of text.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of a text window whose cache is coded.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    cache_tokens: u32,
    /// Tokens of a text window that are predicted after them.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    ahead_tokens: u32,
    /// Print one JSON object per line and coding.
    #[arg(long)]
    json: bool,
    /// Measure every codec at many tiers; writes sweep.md, sweep.svg and sweep.png into the directory --out.
    #[arg(long, requires = "out", requires = "text", conflicts_with_all = ["codec", "tier"])]
    sweep: bool,
    /// Make so many prompts and write them to --out.
    #[arg(long, value_name = "N", requires = "out", conflicts_with_all = ["prompts", "text", "make_text"], value_parser = clap::value_parser!(u32).range(1..))]
    make_prompts: Option<u32>,
    /// Sample text from the model, enough for so many windows, and write it to --out.
    #[arg(long, value_name = "N", requires = "out", conflicts_with_all = ["prompts", "text"], value_parser = clap::value_parser!(u32).range(1..))]
    make_text: Option<u32>,
    /// Seed of what is made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to make, directory of a sweep, or Markdown file of the proof of concept's report.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

/// When kvtc codes a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// While the prompt runs, with one step for all tokens.
    Stream,
    /// After the prompt, with a step per token.
    After,
}

/// What to measure on.
#[derive(Debug, Clone, Default)]
pub struct Sets {
    /// Questions.
    pub prompts: Vec<PromptRow>,
    /// Windows of text, see [`Protocol::windows`].
    pub windows: Vec<Vec<u32>>,
    /// How the windows are cut.
    pub protocol: Protocol,
}

/// Measures, or makes data to measure on.
///
/// # Errors
/// When model, plan or data cannot be used, or the output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut subject = Subject::load(&args.model, args.plan.as_deref())?;
    subject.code_on(args.device)?;
    if args.make_prompts.is_some() || args.make_text.is_some() {
        return make_data(args, &mut subject);
    }
    if args.seed_report {
        return report_seed(args, &subject);
    }
    let sets = sets(args, &mut subject)?;
    let seed = if args.seed_method { seed::TIERS.map(Way::seed).to_vec() } else { Vec::new() };
    let scores = if args.sweep {
        measure(&subject, &sets, &[sweep::ways(), seed].concat())?
    } else if let Some(max_kl) = args.max_kl {
        within(&subject, &sets, (&args.codec, args.kv_mode), max_kl)?
    } else {
        measure(&subject, &sets, &[ways(&args.codec, &args.tier, args.kv_mode), seed].concat())?
    };
    if let (true, Some(dir)) = (args.sweep, &args.out) {
        sweep::write(&scores, dir)?;
    }
    if args.json {
        return scores.iter().try_for_each(|score| line(serde_json::to_string(score)?));
    }
    line(report::terminal(&scores))
}

/// Measures every coding on all sets; what does not depend on the coding is computed once.
///
/// # Errors
/// When a coding is not possible with this model and plan, or the model refuses a prompt.
pub fn measure(subject: &Subject, sets: &Sets, ways: &[Way]) -> anyhow::Result<Vec<Score>> {
    ensure!(!(sets.prompts.is_empty() && sets.windows.is_empty()), "nothing to measure on");
    ways.iter().try_for_each(|way| subject.check(way.coding))?;
    let mut tallies = vec![Tally::default(); ways.len()];
    let bars = MultiProgress::new();
    let prompts_bar = bar(&bars, sets.prompts.len(), "prompts");
    let windows_bar = bar(&bars, sets.windows.len(), "windows of text");
    retrieval::run(subject, &sets.prompts, ways, &mut tallies, &prompts_bar)?;
    text::run(subject, &sets.protocol, &sets.windows, ways, &mut tallies, &windows_bar)?;
    bars.clear()?;
    Ok(ways.iter().zip(&tallies).map(|(way, tally)| tally.score(*way)).collect())
}

/// Every codec at its cheapest tier with a KL of at most `max_kl`.
fn within(
    subject: &Subject,
    sets: &Sets,
    (codecs, mode): (&[CodecKind], Option<Mode>),
    max_kl: f64,
) -> anyhow::Result<Vec<Score>> {
    let texts = Sets { prompts: Vec::new(), ..sets.clone() };
    let mut found = Vec::new();
    for kind in codecs.iter().copied() {
        if !has_tiers(kind) {
            found.extend(ways(&[kind], &[], mode));
            continue;
        }
        let best = cheapest(subject, &texts, kind, mode, max_kl)?;
        let Some((tier, _)) = best else {
            bail!(
                "{kind} exceeds a KL of {max_kl} even at tier {}; allow more with --max-kl",
                kind.tiers().first().copied().unwrap_or_default()
            );
        };
        found.extend(ways(&[kind], &[tier], mode));
    }
    measure(subject, sets, &found)
}

/// The cheapest tier of a codec with a KL of at most `max_kl` on the texts, and that KL; none where no tier keeps it.
///
/// # Errors
/// As [`measure`].
pub(crate) fn cheapest(
    subject: &Subject,
    texts: &Sets,
    kind: CodecKind,
    mode: Option<Mode>,
    max_kl: f64,
) -> anyhow::Result<Option<(u8, f64)>> {
    search::cheapest(max_kl, kind.tiers(), |tiers| {
        let scores = measure(subject, texts, &ways(&[kind], tiers, mode))?;
        for score in &scores {
            let (tier, kl) = (score.tier.unwrap_or_default(), score.kl.unwrap_or_default());
            eprintln!("{kind} at tier {tier}: KL {kl:.4}");
        }
        Ok(scores.iter().map(|score| score.kl.unwrap_or(f64::INFINITY)).collect())
    })
}

/// Each codec at each of the tiers that it has, those without tiers once; kvtc in the mode asked for, the others as they always are.
fn ways(codecs: &[CodecKind], tiers: &[u8], mode: Option<Mode>) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    for &kind in codecs {
        for &tier in if has_tiers(kind) { tiers } else { &[0] } {
            if has_tiers(kind) && kind.check_tier(tier).is_err() {
                continue;
            }
            let usual = Way::usual(Coding { kind, tier });
            let way = match mode {
                Some(Mode::Stream) => Way { mode: KvMode::Stream, ..usual },
                Some(Mode::After) | None => usual,
            };
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
    }
    ways
}

fn sets(args: &Args, subject: &mut Subject) -> anyhow::Result<Sets> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut sets = Sets { protocol: args.protocol(), ..Sets::default() };
    if let Some(path) = &args.prompts {
        sets.prompts = read_prompts(path, limit)?;
        if sets.prompts.iter().any(|row| matches!(row.input, Input::Chat(_))) {
            let template = ChatTemplate::load(&args.model)?
                .context("the prompts have messages, and this model has no chat template")?;
            subject.template = Some(template);
        }
    }
    if let Some(path) = &args.text {
        let texts = read_texts(path)?;
        let windows = sets.protocol.windows(subject, &texts, limit);
        sets.windows = windows.with_context(|| format!("{} cannot be measured on", path.display()))?;
    }
    Ok(sets)
}

fn report_seed(args: &Args, subject: &Subject) -> anyhow::Result<()> {
    let rows = seed_report(subject, args.tokens as usize)?;
    if let Some(path) = &args.out {
        seed::write(&rows, path)?;
    }
    if args.json {
        return rows.iter().try_for_each(|row| line(serde_json::to_string(row)?));
    }
    line(seed::terminal(&rows))
}

fn make_data(args: &Args, subject: &mut Subject) -> anyhow::Result<()> {
    let out = args.out.as_deref().context("--out says where the data goes")?;
    let bars = MultiProgress::new();
    if let Some(count) = args.make_prompts {
        // A model without a template gets no rows with messages.
        subject.template = ChatTemplate::load(&args.model).ok().flatten();
        let bar = bar(&bars, 0, "prompts");
        make::prompts(subject, count as usize, args.seed, out, &bar)?;
    }
    if let Some(count) = args.make_text {
        let bar = bar(&bars, 0, "tokens of text");
        make::text(subject, &args.protocol(), count as usize, args.seed, out, &bar)?;
    }
    bars.clear()?;
    eprintln!("written to {}", out.display());
    Ok(())
}

impl Args {
    fn protocol(&self) -> Protocol {
        let (cache_tokens, ahead_tokens) = (self.cache_tokens as usize, self.ahead_tokens as usize);
        Protocol { cache_tokens, ahead_tokens, ..Protocol::default() }
    }
}

fn bar(bars: &MultiProgress, length: usize, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:16} {wide_bar} {pos}/{len} {elapsed:>5}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bars.add(ProgressBar::new(length as u64).with_style(style).with_message(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_without_tiers_are_measured_once() {
        let ways = ways(&[CodecKind::Raw, CodecKind::Kvtc], &[8, 32, 8], None);
        let shown: Vec<String> =
            ways.iter().map(|way| format!("{}, {}", way.coding, way.mode.name())).collect();
        assert_eq!(shown, ["raw, stream", "kvtc at tier 8, after", "kvtc at tier 32, after"]);
    }
}
