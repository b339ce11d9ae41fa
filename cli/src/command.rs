//! The command line: which commands there are, and how they end. The runtime is made here and not in the binary, so that
//! everything asynchronous is compiled once.

use std::process::ExitCode;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{bench, calibrate, certs, demo, eval, health, inspect, synth};

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
    /// Measure what a codec costs in quality, or make data to measure on.
    Eval(eval::Args),
    /// Show what a plan or coded chunks hold, byte by byte.
    Inspect(inspect::Args),
    /// Write a model of a real model's shape with random weights, to measure at that size.
    SynthModel(synth::Args),
    /// Ask a router or node whether it can take work.
    Health(health::Args),
}

/// Runs the command that the process was given; a failure is one line that says why.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvferry: {}", service::process::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let is_default = matches.value_source("log_level") == Some(ValueSource::DefaultValue);
    if matches!(cli.command, Command::Demo(_) | Command::Bench(_)) && is_default {
        // Their tables are their log; --log-level info brings the lines of nodes back that they start.
        cli.common.log_level = "warn".into();
    }
    let _telemetry = service::telemetry::init(&cli.common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(async {
        match &cli.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Certs(args) => certs::run(args),
            Command::Calibrate(args) => calibrate::run(args),
            Command::Bench(args) => bench::run(args).await,
            Command::Eval(args) => eval::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::SynthModel(args) => synth::run(args),
            Command::Health(args) => health::run(args).await,
        }
    })
}
