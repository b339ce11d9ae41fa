//! A prefill node: takes prompts from the router, runs them through the model and ships each KV cache, coded chunk by
//! chunk, to the decode node that reserved a slot for it.
//!
//! ```text
//! router --Prefill--> server --job--> engine --KvBlock--> code --chunks--> ship --> decode node
//!                                                              └► leases ─────▲
//! decode node --Deliver--> handover ──────────────────────────────────┴───────┘
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
mod handover;
mod leases;
mod metrics;
mod prefix;
mod server;
mod ship;

use std::sync::Arc;

use node::{Offer, PrefillFailure, Runtime, Served, StartError};
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
    check_reachable(config)?;
    let mut runtime = Runtime::bind(&config.node, Role::Prefill, served, identity, shutdown).await?;
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
        kv_address: Some(config.advertise.unwrap_or(runtime.quic_address)),
        max_session_tokens,
        kv_capacity_tokens: config.node.kv_capacity_tokens,
        max_sessions: config.node.max_num_seqs,
        chunk_tokens: config.node.chunk_tokens,
        after_chunk_tokens: config.after_chunk(runtime.served.layout.bytes_per_token()) as u32,
        prefix_cache_tokens: config.prefix_cache(&runtime.served),
    };
    let load = server.load();
    tokio::spawn(server.clone().accept_peers(runtime.endpoint.clone()));
    info!(node = %runtime.id, admin = %runtime.admin_address, model = runtime.served.model_id, "prefill node is up");
    let serve = move |stream| server.serve(stream);
    // Of a prompt that fails here nothing else can be had.
    let offer = Offer { register, load, serve, prefill_failure: PrefillFailure::Fail };
    runtime.join(&config.node, offer).await?;
    Ok(runtime)
}

/// A router sees where a node dials in from; a face, which is in the same process, does not.
fn check_reachable(config: &Config) -> Result<(), StartError> {
    let listen = config.node.listen;
    if config.node.face.http.is_none() || config.advertise.is_some() || !listen.ip().is_unspecified() {
        return Ok(());
    }
    Err(StartError::Flag(format!(
        "with --http a node has to know where decode nodes reach it, which --listen {listen} does not tell; give --listen the \
         address of one interface, or say with --advertise IP:PORT where its QUIC port is reached"
    )))
}
