//! `kv_transfer_params` of an answer: vLLM's fields, which proxies pass on to a decode instance, and our ticket among them.

use serde::{Deserialize, Serialize};

/// Where the cache of a prompt is kept, as vLLM tells it. Our decode nodes read the ticket alone; the rest is for proxies that
/// look into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTransferParams {
    /// Always true: who gets these is to take the cache from elsewhere.
    pub do_remote_prefill: bool,
    /// Always false.
    pub do_remote_decode: bool,
    /// The node that keeps the cache.
    pub remote_engine_id: String,
    /// The request's id there.
    pub remote_request_id: String,
    /// Always empty: the cache is not kept in blocks.
    pub remote_block_ids: Vec<u32>,
    /// IP address at which decode nodes reach the node.
    pub remote_host: String,
    /// UDP port at which they do.
    pub remote_port: u16,
    /// Always 1: a cache is kept as a whole.
    pub tp_size: u32,
    /// Tokens of the prompt.
    pub remote_num_tokens: u32,
    /// Until when the cache is kept, in seconds since 1970 by the node's clock.
    pub remote_blocks_expiry_time: u64,
    /// What opens it, opaque to all but our own servers.
    pub kvferry_ticket: String,
}
