//! Raw against coded through a cluster that runs already, over whatever network lies between its nodes.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use indicatif::{HumanBytes, ProgressBar};
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Args;
use super::links::Links;
use super::timing::median;
use crate::client::{Answer, Client};
use crate::output::line;
use crate::prompts::{Task, retrieval, text_tokens};

const SEED: u64 = 11;

/// Where the cluster is and what to send.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Base URL of the router.
    #[arg(long, env = "KVFERRY_ROUTER_URL", default_value = "http://127.0.0.1:8080")]
    router: String,
    /// Admin faces of the prefill nodes, `HOST:PORT`, all addresses behind a name; the nodes must run with --link-admin.
    #[arg(long, value_delimiter = ',')]
    link_admin: Vec<String>,
    /// Speeds to shape the prefill nodes' links to, in Gb/s; 0 is unshaped [default: links stay as they are].
    #[arg(long, value_delimiter = ',', requires = "link_admin")]
    links: Vec<f64>,
    /// Lengths of the prompts in tokens.
    #[arg(long, value_delimiter = ',', default_value = "300,1300,3000")]
    prompts: Vec<usize>,
    /// Tier of the coded runs: the body ratio aimed at.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(4..=128))]
    tier: u8,
}

/// One prompt length over one link; times are medians.
#[derive(Debug, Serialize)]
struct Row {
    /// None where the links were left as they were.
    link_gbps: Option<f64>,
    prompt_tokens: u32,
    raw_bytes: u64,
    raw_wire_bytes: u64,
    wire_bytes: u64,
    saved_bytes: i64,
    ratio: Option<f64>,
    ttft_raw_ms: f64,
    ttft_coded_ms: f64,
}

/// Sends every prompt raw and coded in turns, link by link; links are put back whatever happens.
pub(crate) async fn cluster(args: &Args, what: &ClusterArgs) -> anyhow::Result<()> {
    let client = Client::discover(&what.router).await?;
    let links = Links::find(&what.link_admin).await?;
    let speeds: Vec<Option<f64>> =
        if what.links.is_empty() { vec![None] } else { what.links.iter().copied().map(Some).collect() };
    let outcome = tokio::select! {
        rows = measure(args, what, &client, &links, &speeds) => rows,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if !what.links.is_empty() {
        links.restore().await?;
    }
    print(&outcome?, args.json, what.tier)
}

async fn measure(
    args: &Args,
    what: &ClusterArgs,
    client: &Client,
    links: &Links,
    speeds: &[Option<f64>],
) -> anyhow::Result<Vec<Row>> {
    let tokenizer = Tokenizer::load(&args.model)?;
    let (mut rng, count) = (ChaCha8Rng::seed_from_u64(SEED), text_tokens(&tokenizer));
    let tasks: Vec<_> = what.prompts.iter().map(|&tokens| retrieval(&mut rng, tokens, &count)).collect();
    let rounds = args.runs as usize + 1;
    let progress = ProgressBar::new((speeds.len() * tasks.len() * rounds) as u64);
    let mut rows = Vec::new();
    for &speed in speeds {
        if let Some(gbps) = speed {
            links.shape(gbps).await?;
        }
        for task in &tasks {
            rows.push(row(client, task, what.tier, speed, args.runs, &progress).await?);
        }
    }
    progress.finish_and_clear();
    Ok(rows)
}

async fn row(
    client: &Client,
    task: &Task,
    tier: u8,
    link_gbps: Option<f64>,
    runs: u32,
    progress: &ProgressBar,
) -> anyhow::Result<Row> {
    let (mut raw_ms, mut coded_ms) = (Vec::new(), Vec::new());
    // The first round pays for what no later one sees, and is not counted.
    let mut last = send(client, task, tier).await?;
    progress.inc(1);
    for _ in 0..runs {
        last = send(client, task, tier).await?;
        raw_ms.push(last.0.transfer.ttft_ms);
        coded_ms.push(last.1.transfer.ttft_ms);
        progress.inc(1);
    }
    let (raw, coded) = last;
    Ok(Row {
        link_gbps,
        prompt_tokens: coded.prompt_tokens,
        raw_bytes: coded.transfer.raw_bytes,
        raw_wire_bytes: raw.transfer.wire_bytes,
        wire_bytes: coded.transfer.wire_bytes,
        saved_bytes: coded.transfer.saved_bytes,
        ratio: coded.transfer.ratio,
        ttft_raw_ms: median(raw_ms),
        ttft_coded_ms: median(coded_ms),
    })
}

async fn send(client: &Client, task: &Task, tier: u8) -> anyhow::Result<(Answer, Answer)> {
    let raw = client.complete(&task.prompt, "raw", tier).await?;
    Ok((raw, client.complete(&task.prompt, "kvtc", tier).await?))
}

fn speed(link_gbps: Option<f64>) -> String {
    match link_gbps {
        None => "as it is".into(),
        Some(0.0) => "unshaped".into(),
        Some(gbps) => format!("{gbps} Gb/s"),
    }
}

fn print(rows: &[Row], json: bool, tier: u8) -> anyhow::Result<()> {
    if json {
        return rows.iter().try_for_each(|row| line(serde_json::to_string(row)?));
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["link", "prompt tokens", "raw", "coded", "ratio", "TTFT raw", "TTFT coded", "gain"]);
    for row in rows {
        table.add_row([
            speed(row.link_gbps),
            row.prompt_tokens.to_string(),
            HumanBytes(row.raw_wire_bytes).to_string(),
            HumanBytes(row.wire_bytes).to_string(),
            row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.1}x")),
            format!("{:.0} ms", row.ttft_raw_ms),
            format!("{:.0} ms", row.ttft_coded_ms),
            format!("{:.2}x", row.ttft_raw_ms / row.ttft_coded_ms),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table)?;
    line(format!(
        "Bytes of the KV streams, everything counted; kvtc at tier {tier}; TTFT at the router, medians."
    ))
}
