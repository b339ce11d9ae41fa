//! Brings the router up and takes it down, in its own process or inside another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openai::Tokenizer;
use openai::tokenizer::LoadError;
use service::{Drained, Readiness, Registry, Shutdown};
use tokio::net::TcpListener;
use tracing::info;
use transport::ids::NodeId;
use transport::message::{Hello, Role};
use transport::{BindError, CloseCode, Endpoint, EndpointConfig, Identity, IdentityError};

use crate::app::{self, App};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::{ModelError, RouterModel};
use crate::nodes;
use crate::relay::Relay;

/// How long nodes are given to hear that the router goes.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// A router that is up.
#[derive(Debug)]
pub struct Running {
    /// Where clients reach it.
    pub http: SocketAddr,
    /// Where nodes dial it.
    pub quic: SocketAddr,
    endpoint: Endpoint,
    cluster: Cluster,
    shutdown: Shutdown,
}

/// Why a router cannot come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The model directory.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The tokenizer.
    #[error("cannot load the tokenizer: {0}")]
    Tokenizer(#[from] LoadError),
    /// The address for clients.
    #[error("cannot listen on TCP {address}: {source}; choose another with --http")]
    Http {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address for nodes, or the certificates.
    #[error("cannot take nodes: {0}; choose another address with --quic")]
    Quic(#[from] BindError),
    /// An address that the system will not tell.
    #[error("cannot tell where the router listens: {0}")]
    Address(#[from] std::io::Error),
}

/// Brings a router up. It serves until the shutdown drains it; [`Running::finished`] waits for that.
///
/// # Errors
/// See [`StartError`]; nothing is left behind.
pub async fn start(
    config: &Config,
    model: RouterModel,
    identity: &Identity,
    shutdown: Shutdown,
) -> Result<Running, StartError> {
    let tokenizer = Tokenizer::load(&model.model_dir)?;
    let in_http = |source| StartError::Http { address: config.http, source };
    let listener = TcpListener::bind(config.http).await.map_err(in_http)?;
    let hello = Hello::new(NodeId("router".into()), Role::Router, model.identity.clone());
    let endpoint = Endpoint::bind(config.quic, identity, hello, EndpointConfig::default())?;
    let (http, quic) = (listener.local_addr()?, endpoint.local_addr()?);

    let (registry, readiness) = (Registry::new(), Readiness::starting());
    let metrics = Metrics::new(&registry);
    let cluster = Cluster::new(config.rules(&model), readiness.clone(), metrics.clone());
    let relay = Relay::new(cluster.clone(), metrics.clone(), config);
    let app = Arc::new(App::new(config, &model, tokenizer, relay, metrics, shutdown.clone()));
    take_nodes(endpoint.clone(), cluster.clone(), config.silence_seconds, &shutdown);
    let service = app::app(app, readiness, registry);
    let draining = shutdown.draining();
    shutdown.spawn(async move { axum::serve(listener, service).with_graceful_shutdown(draining).await });
    info!(%http, %quic, model = model.served_name, max_model_len = model.max_model_len, "router is up");
    Ok(Running { http, quic, endpoint, cluster, shutdown })
}

/// Takes nodes until the very end, since running requests need theirs while the router drains.
fn take_nodes(endpoint: Endpoint, cluster: Cluster, silence: Duration, shutdown: &Shutdown) {
    let (draining, ended) = (shutdown.draining(), shutdown.ended());
    let accept = nodes::accept(endpoint, cluster.clone(), silence);
    tokio::spawn(async move {
        let drain = async {
            draining.await;
            cluster.drain();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = accept => {}
            () = drain => {}
            () = ended => {}
        }
    });
}

impl Running {
    /// Nodes that have joined and not left.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.cluster.len()
    }

    /// Waits for the drain to begin and to end, then says goodbye to the nodes.
    pub async fn finished(self) -> Drained {
        let drained = self.shutdown.finished().await;
        self.endpoint.close(CloseCode::DRAINING, "the router is shutting down", CLOSE_GRACE).await;
        info!(?drained, "router has stopped");
        drained
    }
}
