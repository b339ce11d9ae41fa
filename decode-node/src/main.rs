//! The decode node's process: flags in, logs out, everything else in the library.

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use node::Loaded;
use node::args::served_name;
use service::{CommonArgs, Shutdown};
use transport::Identity;

/// Takes KV caches from prefill nodes and continues their generations.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    config: decode_node::Config,
    #[command(flatten)]
    common: CommonArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    service::telemetry::init(&cli.common)?;
    let args = &cli.config.node;
    let identity = Identity::load(&args.certs, "decode").context("cannot identify this node")?;
    let name = served_name(args.served_model_name.as_deref(), &args.model);
    let loaded = Loaded::load(&args.model, args.plan.as_deref(), name).context("cannot load the model")?;
    let shutdown = Shutdown::on_signals(cli.common.grace())?;
    let running = decode_node::start(&cli.config, Arc::new(loaded), &identity, shutdown).await?;
    running.finished().await;
    Ok(())
}
