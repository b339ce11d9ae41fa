//! The decode node's process: flags in, logs out, everything else in the library.

use std::process::ExitCode;

use clap::Parser;
use service::CommonArgs;
use transport::message::Role;

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
async fn main() -> ExitCode {
    let Cli { config, common } = Cli::parse();
    node::process::run(Role::Decode, &config.node, &common, async |loaded, identity, shutdown| {
        decode_node::start(&config, loaded, identity, shutdown).await
    })
    .await
}
