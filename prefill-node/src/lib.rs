//! A prefill node: takes prompts from the router, runs them through the model and ships each KV cache, coded chunk by
//! chunk, to the decode node that reserved a slot for it.
//!
//! ```text
//! router --Prefill--> server --job--> engine --KvBlock--> code --chunks--> ship --> decode node
//! ```
//!
//! The engine never waits for the wire or the coder: its blocks queue up to the end of the prompt, or the whole cache is
//! handed over there, and admission bounds the prompts.
#![forbid(unsafe_code)]

mod busy;
mod code;
pub mod command;
mod config;
mod engine;
mod metrics;
mod prefix;
mod server;
mod ship;

use std::sync::Arc;

use node::{Runtime, Served, StartError};
use service::Shutdown;
use tracing::info;
use transport::message::{Register, Role};
use transport::{Backoff, Dialer, Identity};

pub use config::Config;

/// Largest raw chunk: what one data frame holds, less room for the container's own header.
const MAX_CHUNK_BYTES: usize = transport::frame::MAX_DATA_BYTES - (64 << 10);

/// Starts a node and returns once its sockets are bound; it joins the router's cluster in the background.
///
/// # Errors
/// For addresses that cannot be listened on and flags that make no sense.
pub async fn start(
    config: &Config,
    served: Arc<Served>,
    identity: &Identity,
    shutdown: Shutdown,
) -> Result<Runtime, StartError> {
    let runtime = Runtime::bind(&config.node, Role::Prefill, served, identity, shutdown).await?;
    let chunk_bytes = config.node.chunk_tokens as usize * runtime.served.layout.bytes_per_token();
    if chunk_bytes > MAX_CHUNK_BYTES {
        let fits = MAX_CHUNK_BYTES / runtime.served.layout.bytes_per_token();
        let asked = config.node.chunk_tokens;
        let message = format!("--chunk-tokens {asked} makes chunks too large to send; {fits} fit this model");
        return Err(StartError::Flag(message));
    }
    let max_session_tokens = config.node.max_session_tokens(&runtime.served);
    let dialer = Dialer::new(runtime.endpoint.clone(), Backoff::default());
    let server = server::Server::new(config, &runtime, dialer)?;
    let register = Register {
        kv_address: None,
        max_session_tokens,
        kv_capacity_tokens: config.node.kv_capacity_tokens,
        max_sessions: config.node.max_num_seqs,
        chunk_tokens: config.node.chunk_tokens,
        after_chunk_tokens: config.after_chunk(runtime.served.layout.bytes_per_token()) as u32,
        prefix_cache_tokens: config.prefix_cache(&runtime.served),
    };
    let load = server.load();
    info!(node = %runtime.id, admin = %runtime.admin_address, model = runtime.served.model_id, "prefill node is up");
    runtime.join(config.node.router.clone(), register, load, move |stream| server.serve(stream));
    Ok(runtime)
}
