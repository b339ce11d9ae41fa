//! `kvferry demo`: a whole cluster in one process, a handful of prompts sent both raw and coded, a table, and then it
//! stays up for prompts of one's own.

mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use node::Loaded;
use node::args::{default_model_dir, served_name};
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use service::Shutdown;

use crate::client::Client;
use crate::cluster::{LocalCluster, Options};
use crate::output::{line, spinner};
use crate::prompts::{Task, retrieval, text_tokens};

/// Lengths of the built-in prompts, in tokens.
const PROMPT_TOKENS: [usize; 5] = [300, 700, 1_300, 2_000, 3_000];
const SEED: u64 = 7;

/// Brings up a router, a prefill and a decode node and shows what coding the KV cache saves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hugging Face model directory.
    #[arg(long, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    model: PathBuf,
    /// Calibrated plan [default: plan.kvtc in the model directory].
    #[arg(long, env = "KVFERRY_PLAN")]
    plan: Option<PathBuf>,
    /// Model id towards clients [default: name of the model directory].
    #[arg(long, env = "KVFERRY_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// Address the router listens on.
    #[arg(long, env = "KVFERRY_HTTP", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Speed of the link from prefill to decode in Gb/s; 0 leaves loopback unshaped. The default is to the embedded model
    /// on two cores about what 10 Gb/s is to Llama 3.2 1B on a data-centre GPU.
    #[arg(long, env = "KVFERRY_LINK_GBPS", default_value_t = 0.05)]
    link_gbps: f64,
    /// Tier of the coded runs: the body ratio aimed at.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(4..=128))]
    tier: u8,
    /// End after the table instead of serving on.
    #[arg(long)]
    once: bool,
    /// Print one JSON object per request instead of the table.
    #[arg(long)]
    json: bool,
}

/// Runs the demo.
///
/// # Errors
/// When the model cannot be loaded, an address is taken or a request fails.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let spinner = spinner("loading the model");
    let name = served_name(args.served_model_name.as_deref(), &args.model);
    let loaded = Loaded::load(&args.model, args.plan.as_deref(), name).context("cannot load the model")?;
    anyhow::ensure!(
        loaded.plan.is_some(),
        "the demo codes the cache, which needs a plan: run `kvferry calibrate` first"
    );
    let loaded = Arc::new(loaded);
    spinner.set_message("starting router, prefill node and decode node");
    let shutdown = Shutdown::on_signals(Duration::from_secs(5))?;
    let options =
        Options { listen: args.listen, link_gbps: args.link_gbps, ..Options::new(args.model.clone()) };
    let cluster = LocalCluster::start(&loaded, options, shutdown.clone()).await?;
    spinner.finish_and_clear();
    let client = Client::new(cluster.url(), &loaded.model_id)?;
    tokio::select! {
        result = compare(args, &client, &args.model) => result?,
        () = shutdown.draining() => {}
    }
    if args.once {
        shutdown.drain();
    } else if !args.json {
        print_help(&cluster, &loaded.model_id)?;
    }
    cluster.finished().await;
    Ok(())
}

async fn compare(args: &Args, client: &Client, model: &std::path::Path) -> anyhow::Result<()> {
    let tasks = tasks(model)?;
    // The first request of each kind pays for page faults and lazy set-up that no later one sees.
    for codec in ["raw", "kvtc"] {
        client.complete(&tasks[0].prompt, codec, args.tier).await?;
    }
    let progress =
        ProgressBar::new(2 * tasks.len() as u64).with_style(bar_style()).with_message("sending prompts");
    let mut rows = Vec::new();
    for task in &tasks {
        let send = async |codec| {
            let answer = client.complete(&task.prompt, codec, args.tier).await?;
            progress.inc(1);
            if args.json {
                progress.suspend(|| table::print_json(&answer))?;
            }
            anyhow::Ok(answer)
        };
        let (raw, coded) = (send("raw").await?, send("kvtc").await?);
        rows.push(table::Row { raw, coded, expected: task.answer.clone() });
    }
    progress.finish_and_clear();
    if !args.json {
        table::print(&rows, args.link_gbps, args.tier)?;
    }
    Ok(())
}

fn tasks(model: &std::path::Path) -> anyhow::Result<Vec<Task>> {
    let tokenizer = Tokenizer::load(model)?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let count = text_tokens(&tokenizer);
    Ok(PROMPT_TOKENS.map(|tokens| retrieval(&mut rng, tokens, &count)).into())
}

fn print_help(cluster: &LocalCluster, model_id: &str) -> anyhow::Result<()> {
    let url = cluster.url();
    line("\nThe cluster stays up; end it with Ctrl-C. A prompt of your own:\n")?;
    line(format!(
        "curl {url}/v1/completions -H 'content-type: application/json' -d '{{\"model\": \"{model_id}\", \
         \"prompt\": \"The linker reports\", \"max_tokens\": 32, \"kv_transfer\": true}}'\n"
    ))
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
