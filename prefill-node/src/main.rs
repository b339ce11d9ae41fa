//! The prefill node's process: flags in, logs out, everything else in the library.

use std::process::ExitCode;

use clap::Parser;
use service::CommonArgs;
use transport::message::Role;

/// Runs prompt passes and ships their KV caches to decode nodes.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    config: prefill_node::Config,
    #[command(flatten)]
    common: CommonArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { config, common } = Cli::parse();
    node::process::run(Role::Prefill, &config.node, &common, async |loaded, identity, shutdown| {
        prefill_node::start(&config, loaded, identity, shutdown).await
    })
    .await
}
