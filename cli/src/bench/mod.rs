//! `kvferry bench`: what this machine does, each figure beside the one it has to be compared with, measured in turns in
//! one run.

mod cluster;
mod codec;
#[cfg(feature = "cuda")]
mod cuda;
mod e2e;
mod links;
mod model;
mod router;
mod stages;
pub(crate) mod timing;

use std::path::PathBuf;

#[cfg(feature = "cuda")]
use anyhow::bail;
use clap::Subcommand;
use node::DeviceChoice;
use node::args::default_model_dir;
use node::prompt::AFTER_CHUNK_TOKENS;

use crate::output::line;
use crate::synth::Shape;

/// Measures the model and the codec on this machine, or a running cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Hugging Face model directory.
    #[arg(long, global = true, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    model: PathBuf,
    /// Where to measure prefill, decode and codec: cpu, cuda or cuda:N. The GPU's figures are of the GPU alone, without a comparison.
    #[arg(long, global = true, env = "KVFERRY_DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// On a GPU: random weights (and a synthetic plan) of this model's shape instead of the model directory's.
    #[arg(long, global = true)]
    shape: Option<Shape>,
    /// Tokens of the prompt.
    #[arg(long, global = true, default_value_t = 2048)]
    tokens: usize,
    /// Measured repetitions; one more goes first and is not counted.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Prompt pass, against candle-transformers' Llama on the same weights.
    Prefill,
    /// Decode steps of one session, against candle-transformers' Llama.
    Decode {
        /// Sessions stepped together (on the CPU ours only beyond 1).
        #[arg(long, default_value_t = 1)]
        batch: usize,
    },
    /// Coding and decoding of the prompt's cache, against its prompt pass.
    Codec {
        /// Tier of the codec.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(4..=128))]
        tier: u8,
        /// Largest chunk in tokens, on a GPU.
        #[arg(long, default_value_t = AFTER_CHUNK_TOKENS, value_name = "TOKENS")]
        chunk: usize,
    },
    /// The codec's stages after projection, against those of the first public proof of concept, on the same rows.
    Stages {
        /// Body ratio that both aim at.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(4..=128))]
        tier: u8,
        /// Plan with tables of kvtc-paper [default: plan.kvtc in the model directory].
        #[arg(long, env = "KVFERRY_PLAN")]
        plan: Option<PathBuf>,
    },
    /// Time to first token raw and coded in turns, through a cluster in this process over one shaped link.
    E2e(e2e::E2eArgs),
    /// Raw against coded through a running cluster, at several link speeds.
    Cluster(cluster::ClusterArgs),
    /// What the router adds to a request and to a token, and its memory per stream, between stub nodes and many clients.
    Router(router::RouterArgs),
}

/// Runs a benchmark and prints its figures.
///
/// # Errors
/// When the model or plan cannot be loaded, or the cluster does not answer.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let on_gpu = matches!(args.device, DeviceChoice::Cuda(_));
    let figures = match &args.what {
        What::Prefill | What::Decode { .. } | What::Codec { .. } if on_gpu => measure_on_gpu(args)?,
        What::Prefill => model::prefill(args)?,
        What::Decode { batch } => model::decode(args, *batch)?,
        What::Codec { tier, .. } => codec::codec(args, *tier)?,
        What::Stages { tier, plan } => stages::stages(args, *tier, plan.as_deref())?,
        What::E2e(what) => e2e::e2e(args, *what).await?,
        What::Router(what) => router::router(args, what).await?,
        What::Cluster(what) => return cluster::cluster(args, what).await,
    };
    if args.json {
        return line(serde_json::to_string(&figures)?);
    }
    figures.iter().try_for_each(|(name, value)| line(format!("{name:>32}  {value}")))
}

#[cfg(feature = "cuda")]
fn measure_on_gpu(args: &Args) -> anyhow::Result<timing::Figures> {
    let DeviceChoice::Cuda(ordinal) = args.device else { bail!("{} is no GPU; this is a bug", args.device) };
    let subject = cuda::Subject {
        ordinal,
        model: &args.model,
        shape: args.shape,
        tokens: args.tokens,
        runs: args.runs,
    };
    match &args.what {
        What::Prefill => cuda::prefill(&subject),
        What::Decode { batch } => cuda::decode(&subject, *batch),
        What::Codec { tier, chunk } => cuda::codec(&subject, *tier, *chunk),
        What::Stages { .. } | What::E2e(_) | What::Cluster(_) | What::Router(_) => {
            bail!("there is no such measurement on a GPU")
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn measure_on_gpu(_args: &Args) -> anyhow::Result<timing::Figures> {
    Err(node::LoadError::NotBuilt.into())
}
