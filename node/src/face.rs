//! A node's own HTTP face: the router's front door, in the node's process and in front of that node alone, so that the node can
//! be asked directly, above all by the proxies that put vLLM's prefill and decode instances together (`kv_transfer_params`).
//!
//! The router takes the node as it takes any other, over QUIC: on loopback, with certificates of an authority that exists only
//! in this process. So the two meet nobody else there, and nothing of the cluster's is given away.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use router::{PrefillFailure, RouterModel};
use service::Readiness;
use tracing::info;
use transport::message::{Register, Role};
use transport::{Authority, CloseCode, Endpoint, EndpointConfig};

use crate::args::NodeArgs;
use crate::membership::Membership;
use crate::runtime::{Runtime, StartError};

/// How long the face's own connection may take to close.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Flags of the face. Their variables are not the router's, which may be set for a router on the same machine.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "HTTP face")]
pub struct FaceArgs {
    /// Address for an API of the node's own, for proxies that send kv_transfer_params as vLLM's do; without it the node is asked
    /// by its router only. With it, --router is optional.
    #[arg(long, env = "KVFERRY_NODE_HTTP")]
    pub http: Option<SocketAddr>,
    /// File with the API keys that clients of --http may use, one a line; without it nobody is asked for one.
    #[arg(long, env = "KVFERRY_NODE_API_KEY_FILE", requires = "http")]
    pub api_key_file: Option<PathBuf>,
}

/// Why a node's face cannot come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaceError {
    /// Its own certificates.
    #[error("no certificates for the HTTP face: {0}")]
    Authority(#[from] transport::tls::AuthorityError),
    /// Its tokenizer, its addresses, its keys.
    #[error("the HTTP face cannot come up: {0}")]
    Router(#[from] router::StartError),
    /// Its way to the node.
    #[error(transparent)]
    Bind(#[from] transport::BindError),
}

/// Brings a router up in front of the node; gives the node's place in it, and where it listens for clients.
pub(crate) async fn start(
    http: SocketAddr,
    node: &Runtime,
    args: &NodeArgs,
    register: Register,
    prefill_failure: PrefillFailure,
) -> Result<(Membership, SocketAddr), StartError> {
    let hello = node.endpoint.hello().clone();
    let config = config(http, hello.role, args, &register, prefill_failure);
    let model = RouterModel::load(&args.model, Some(&node.served.model_id));
    let model = model.map_err(router::StartError::from).map_err(FaceError::from)?;
    let authority = Authority::new().map_err(FaceError::from)?;
    let issue = |role: Role| authority.issue(role.name()).map_err(FaceError::from);
    let running = router::start(&config, model, &issue(Role::Router)?, node.shutdown.clone()).await;
    let running = running.map_err(FaceError::from)?;
    let (http, quic) = (running.http, running.quic);
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    // The same run of the same node: leases name it, and other nodes compare.
    let endpoint = Endpoint::bind(here, &issue(hello.role)?, hello, EndpointConfig::default());
    let endpoint = endpoint.map_err(FaceError::from)?;
    info!(%http, "the node has a face of its own");
    let closing = endpoint.clone();
    tokio::spawn(async move {
        running.finished().await;
        closing.close(CloseCode::DRAINING, "the node has stopped", CLOSE_GRACE).await;
    });
    let (readiness, shutdown) = (Readiness::starting(), node.shutdown.clone());
    let membership = Membership { endpoint, router: quic.into(), register, readiness, shutdown };
    Ok((membership, http))
}

/// A router that takes what the node takes.
fn config(
    http: SocketAddr,
    role: Role,
    args: &NodeArgs,
    register: &Register,
    prefill_failure: PrefillFailure,
) -> router::Config {
    router::Config {
        http,
        max_requests: args.max_num_seqs,
        max_model_len: Some(register.max_session_tokens),
        api_key_file: args.face.api_key_file.clone(),
        prefill_failure,
        // There is no other node.
        retries: 0,
        kv_transfer_params: true,
        face_of: Some(role),
        ..router::Config::local()
    }
}
