//! The `kvferry` command line; every subcommand is a module of the library.

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use kvferry::{bench, calibrate, certs, demo, health};

/// Disaggregated prefill/decode serving with a coded KV cache.
#[derive(Debug, Parser)]
#[command(name = "kvferry", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: service::CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a whole cluster in one process and compare raw with coded transfer.
    Demo(demo::Args),
    /// Make a small certificate authority and certificates for a cluster's processes.
    Certs(certs::Args),
    /// Fit the codec's plan for a model from sample text.
    Calibrate(calibrate::Args),
    /// Measure the model, the codec, or a running cluster.
    Bench(bench::Args),
    /// Ask a router or node whether it can take work.
    Health(health::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if matches!(cli.command, Command::Demo(_))
        && matches.value_source("log_level") == Some(ValueSource::DefaultValue)
    {
        // The demo's table is its log; --log-level info brings the nodes' lines back.
        cli.common.log_level = "warn".into();
    }
    service::telemetry::init(&cli.common)?;
    match &cli.command {
        Command::Demo(args) => demo::run(args).await,
        Command::Certs(args) => certs::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Bench(args) => bench::run(args).await,
        Command::Health(args) => health::run(args).await,
    }
}
