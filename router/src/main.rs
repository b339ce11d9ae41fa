//! The router's process: flags in, logs out, everything else in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use router::{RouterModel, StartError};
use service::{CommonArgs, Shutdown};
use transport::Identity;

/// Takes OpenAI requests and places each on a prefill and a decode node.
#[derive(Debug, Parser)]
#[command(version)]
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
    config: router::Config,
    #[command(flatten)]
    common: CommonArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    service::process::run(&cli.common, cli.config.http, "this router cannot start", serve(&cli)).await
}

async fn serve(cli: &Cli) -> Result<(), StartError> {
    let identity = Identity::load(&cli.certs, "router")?;
    let model = RouterModel::load(&cli.model, cli.served_model_name.as_deref())?;
    let shutdown = Shutdown::on_signals(cli.common.grace()).map_err(StartError::Signals)?;
    router::start(&cli.config, model, &identity, shutdown).await?.finished().await;
    Ok(())
}
