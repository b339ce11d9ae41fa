//! From request to first token through a cluster in this process, raw and coded in turns over one shaped link, beside what the link and
//! the QUIC path alone would allow.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use node::args::served_name;
use node::{DeviceChoice, Loaded};
use openai::{KvTransfer, Tokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use service::Shutdown;

use super::Args;
use super::timing::{Figures, median};
use crate::client::{Answer, Client};
use crate::cluster::{LocalCluster, Models, Options};
use crate::prompts::{retrieval, text_tokens};

/// Bytes that the QUIC path is measured with, unshaped.
const GOODPUT_BYTES: usize = 1 << 30;
/// Share of the shaped rate that a raw transfer should reach; below, the path is the limit and not the link.
const REACHED: f64 = 0.8;
const SEED: u64 = 23;
/// How a conversation goes on: of the whole prompt the last 128 tokens run, and this.
const NEXT: &str = "\nAnd what else was said of it, and by whom?\n";

/// Link and tier.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct E2eArgs {
    /// Speed that the prefill node's link is shaped to, in Gb/s; 0 leaves it unshaped.
    #[arg(long, default_value_t = 10.0)]
    link_gbps: f64,
    /// Tier of the coded runs: the body ratio aimed at.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(4..=128))]
    tier: u8,
}

pub(crate) async fn e2e(args: &Args, what: E2eArgs) -> anyhow::Result<Figures> {
    let goodput = transport::probe::goodput(GOODPUT_BYTES, 0.0, 1).await.map_err(|error| anyhow!(error))?;
    let shutdown = Shutdown::new(Duration::from_secs(5));
    let options = Options { link_gbps: what.link_gbps, ..Options::new(args.model.clone()) };
    let cluster = LocalCluster::start(models(args)?, options, shutdown.clone()).await?;
    let client = Client::discover(cluster.url()).await?;
    let runs = measure(args, what, &client).await;
    shutdown.drain();
    cluster.finished().await;
    let mut figures = Figures::default();
    figures.say("device", args.device.to_string());
    figures.put("link_gbps", what.link_gbps);
    figures.put("goodput_unshaped_gbps", goodput.gbps());
    runs?.put(what.link_gbps, &mut figures);
    Ok(figures)
}

fn models(args: &Args) -> anyhow::Result<Models> {
    match args.device {
        DeviceChoice::Cpu => {
            let name = served_name(None, &args.model);
            let loaded = Loaded::load(&args.model, None, name).context("cannot load the model")?;
            Ok(Models::Host(Arc::new(loaded)))
        }
        device @ DeviceChoice::Cuda(_) => Ok(Models::Device(device)),
    }
}

/// What the measured requests said of their transfers.
#[derive(Default)]
struct Runs {
    prompt_tokens: u32,
    raw: Vec<KvTransfer>,
    coded: Vec<KvTransfer>,
    /// The turns of a conversation that follow the coded ones.
    next: Vec<KvTransfer>,
}

/// Every run sends a text of its own, raw and coded, in turns first, and then goes on with it; the first run is not counted.
async fn measure(args: &Args, what: E2eArgs, client: &Client) -> anyhow::Result<Runs> {
    let tokenizer = Tokenizer::load(&args.model)?;
    let progress = ProgressBar::new(u64::from(args.runs) + 1);
    let mut runs = Runs::default();
    for run in 0..=args.runs {
        let prompt = prompt(&tokenizer, args.tokens, run, &args.model)?;
        let salt = |codec| format!("{SEED}.{run}.{codec}");
        let send = async |codec| client.turn(&prompt, codec, what.tier, &salt(codec)).await;
        // Whatever the second request of a prompt may gain from the first, both codecs gain it.
        let (raw, coded) = if run % 2 == 0 {
            let raw = send("raw").await?;
            (raw, send("kvtc").await?)
        } else {
            let coded = send("kvtc").await?;
            (send("raw").await?, coded)
        };
        let Answer { prompt_tokens, transfer, text, .. } = coded;
        let next = client.turn(&format!("{prompt}{text}{NEXT}"), "kvtc", what.tier, &salt("kvtc")).await?;
        if run > 0 {
            runs.next.push(next.transfer);
            runs.prompt_tokens = prompt_tokens;
            runs.raw.push(raw.transfer);
            runs.coded.push(transfer);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(runs)
}

fn prompt(tokenizer: &Tokenizer, tokens: usize, run: u32, model: &Path) -> anyhow::Result<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + u64::from(run));
    let count = text_tokens(tokenizer);
    let prompt = retrieval(&mut rng, tokens, count).prompt;
    anyhow::ensure!(!prompt.is_empty(), "no prompt of {tokens} tokens for {}", model.display());
    Ok(prompt)
}

impl Runs {
    fn put(&self, link_gbps: f64, figures: &mut Figures) {
        let of =
            |runs: &[KvTransfer], field: fn(&KvTransfer) -> f64| median(runs.iter().map(field).collect());
        let second = |t: &KvTransfer| t.second_token_ms.unwrap_or(f64::NAN);
        figures.put("prompt_tokens", f64::from(self.prompt_tokens));
        figures.put("raw_bytes", of(&self.coded, |t| t.raw_bytes as f64));
        figures.put("wire_bytes_raw", of(&self.raw, |t| t.wire_bytes as f64));
        figures.put("wire_bytes_coded", of(&self.coded, |t| t.wire_bytes as f64));
        figures.put("ratio", of(&self.coded, |t| t.ratio.unwrap_or(f64::NAN)));
        let (raw, coded) = (of(&self.raw, |t| t.ttft_ms), of(&self.coded, |t| t.ttft_ms));
        figures.put("ttft_raw_ms", raw);
        figures.put("ttft_coded_ms", coded);
        figures.put("gain", raw / coded);
        figures.put("coded_over_prefill_ms", coded - of(&self.coded, |t| t.prefill_ms));
        for (name, field) in [
            ("prefill_ms", (|t| t.prefill_ms) as fn(&KvTransfer) -> f64),
            ("encode_ms", |t| t.encode_ms),
            ("wire_ms", |t| t.wire_ms),
            ("decode_ms", |t| t.decode_ms),
            ("queue_ms", |t| t.queue_ms),
        ] {
            figures.put(name, of(&self.coded, field));
        }
        figures.put("prefill_raw_ms", of(&self.raw, |t| t.prefill_ms));
        figures.put("wire_raw_ms", of(&self.raw, |t| t.wire_ms));
        figures.put("second_token_raw_ms", of(&self.raw, second));
        figures.put("second_token_coded_ms", of(&self.coded, second));
        figures.put("next_turn_cached_tokens", of(&self.next, |t| f64::from(t.cached_tokens)));
        figures.put("next_turn_prefill_ms", of(&self.next, |t| t.prefill_ms));
        figures.put("next_turn_ttft_ms", of(&self.next, |t| t.ttft_ms));
        self.put_link(link_gbps, figures);
    }

    /// Whether the raw transfer was held up by the link, as it should be, or by the path to it.
    fn put_link(&self, link_gbps: f64, figures: &mut Figures) {
        if link_gbps <= 0.0 {
            return;
        }
        let bits = |runs: &[KvTransfer]| median(runs.iter().map(|t| t.wire_bytes as f64 * 8.0).collect());
        let wire_ms = median(self.raw.iter().map(|t| t.wire_ms).collect());
        let reached = bits(&self.raw) / 1e6 / wire_ms / link_gbps;
        let modelled = bits(&self.raw) / 1e6 / link_gbps;
        figures.put("raw_share_of_link", reached);
        figures.put("modelled_wire_raw_ms", modelled);
        figures.put("modelled_wire_coded_ms", bits(&self.coded) / 1e6 / link_gbps);
        if reached < REACHED {
            let slow = "the raw transfer does not reach 80 % of the link: the QUIC path is the limit, compare with the modelled wire time";
            figures.say("note", slow);
        }
    }
}
