//! The decode node as a process: flags in, logs out.

use std::process::ExitCode;

use clap::Parser;
use service::CommonArgs;
use transport::message::Role;

use crate::Config;

/// Takes KV caches from prefill nodes and continues their generations.
#[derive(Debug, Parser)]
#[command(name = "decode-node", version)]
struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the node that the process's flags describe, until it is told to end.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { config, common } = Cli::parse();
    node::process::run(Role::Decode, &config.node, &common, async |served, identity, shutdown| {
        crate::start(&config, served, identity, shutdown).await
    })
}
