//! `kvferry health`: one probe of a process's health, for container health checks in images without an HTTP client.

use std::time::Duration;

use anyhow::{Context, bail};

/// How long the answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Asks a process whether it can take work; fails with its reason when it cannot.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to ask: `http://HOST:PORT/ready` of a router or of a node's admin face.
    #[arg(env = "KVFERRY_HEALTH_URL")]
    pub url: String,
}

/// Prints what the process answers.
///
/// # Errors
/// When it does not answer in time, or answers that it cannot take work.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
    let unreachable = || format!("no answer from {}", args.url);
    let response = client.get(&args.url).send().await.with_context(unreachable)?;
    let status = response.status();
    let body = response.text().await.with_context(unreachable)?;
    if !status.is_success() {
        bail!("{} {body}", status.as_u16());
    }
    crate::output::line(body)
}
