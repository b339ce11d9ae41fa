//! The router as a process: flags in, logs out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use service::{CommonArgs, Shutdown};
use transport::Identity;

use crate::{Config, RouterModel, StartError, start};

/// Takes OpenAI requests and places each on a prefill and a decode node.
#[derive(Debug, Parser)]
#[command(name = "router", version)]
struct Cli {
    /// Hugging Face model directory, for its config.json and tokenizer; no weights are read.
    #[arg(long, env = "KVFERRY_MODEL", default_value = "models/tiny-llama")]
    model: PathBuf,
    /// Model id towards clients; the same on all nodes [default: name of the model directory].
    #[arg(long, env = "KVFERRY_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// Directory with ca.pem, router.pem and router.key, as `kvferry certs` writes it.
    #[arg(long, env = "KVFERRY_CERTS", default_value = "certs")]
    certs: PathBuf,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the router that the process's flags describe, until it is told to end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    service::process::run(&cli.common, cli.config.http, "this router cannot start", serve(&cli))
}

async fn serve(cli: &Cli) -> Result<(), StartError> {
    let identity = Identity::load(&cli.certs, "router")?;
    let model = RouterModel::load(&cli.model, cli.served_model_name.as_deref())?;
    let shutdown = Shutdown::on_signals(cli.common.grace()).map_err(StartError::Signals)?;
    start(&cli.config, model, &identity, shutdown).await?.finished().await;
    Ok(())
}
