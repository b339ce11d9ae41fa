//! A decode node: holds slots for sessions, takes their KV caches from prefill nodes over QUIC, and continues all ready
//! generations together, one batched step at a time.
//!
//! ```text
//! router --Reserve--> server ── tickets ──┐
//! prefill node --KV stream--> receive ── import (decode) ──► session ──► engine ──tokens──► server ──► router
//! prefill node ◄--Deliver-- fetch, for a cache that it keeps already
//! ```
//!
//! No step is made on a cache that is not complete and verified; `session.rs` has the states.
#![forbid(unsafe_code)]

pub mod command;
mod config;
mod engine;
mod fetch;
mod import;
mod metrics;
mod receive;
mod server;
mod session;
mod slots;
mod tickets;

use std::sync::Arc;

use node::{Offer, Runtime, Served, StartError};
use service::Shutdown;
use tracing::info;
use transport::Identity;
use transport::message::{Register, Role};

pub use config::Config;

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
    let mut runtime = Runtime::bind(&config.node, Role::Decode, served, identity, shutdown).await?;
    let server = server::Server::new(config, &runtime)?;
    let intake = receive::Intake {
        served: Arc::clone(&runtime.served),
        tickets: server.tickets.clone(),
        metrics: server.metrics.clone(),
        silence: config.kv_silence(),
        shutdown: runtime.shutdown.clone(),
    };
    tokio::spawn(intake.accept_peers(runtime.endpoint.clone()));
    let register = Register {
        kv_address: Some(config.kv_address(&runtime)),
        max_session_tokens: config.node.max_session_tokens(&runtime.served),
        kv_capacity_tokens: config.node.kv_capacity_tokens,
        max_sessions: config.node.max_num_seqs,
        chunk_tokens: config.node.chunk_tokens,
        after_chunk_tokens: 0,
        prefix_cache_tokens: 0,
    };
    let load = server.load();
    info!(node = %runtime.id, admin = %runtime.admin_address, model = runtime.served.model_id, "decode node is up");
    let serve = move |stream| server.serve(stream);
    let offer = Offer { register, load, serve, prefill_failure: config.prefill_failure };
    runtime.join(&config.node, offer).await?;
    Ok(runtime)
}
