//! Brings the router up and takes it down, in its own process or inside another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openai::tokenizer::LoadError;
use openai::{ChatTemplate, Tokenizer};
use service::{Drained, Readiness, Registry, Shutdown};
use tracing::info;
use transport::ids::NodeId;
use transport::message::{Hello, Role};
use transport::{BindError, CloseCode, Endpoint, EndpointConfig, Identity, IdentityError};

use crate::access::{self, AccessError, Keys};
use crate::app::{self, Access, App, TextModel};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::listener::{self, TlsError};
use crate::load::ClusterLoad;
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
    /// The tokenizer or the chat template.
    #[error("cannot load the tokenizer: {0}")]
    Tokenizer(#[from] LoadError),
    /// A context longer than the model's.
    #[error("--max-model-len {asked} is more than the model's context of {context} tokens")]
    MaxModelLen {
        /// What was asked for.
        asked: u32,
        /// What the model has.
        context: u32,
    },
    /// API keys or origins.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Certificates of the API.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    mut model: RouterModel,
    identity: &Identity,
    shutdown: Shutdown,
) -> Result<Running, StartError> {
    shorten(&mut model, config.max_model_len)?;
    let text = TextModel {
        tokenizer: Tokenizer::load(&model.model_dir)?,
        chat_template: ChatTemplate::load(&model.model_dir)?,
    };
    let keys = config.api_key_file.as_deref().map(Keys::load).transpose()?;
    let access = Access { keys, cors: access::cors(&config.allowed_origins)? };
    let tls = config.tls_cert.as_deref().zip(config.tls_key.as_deref());
    let tls = tls.map(|(cert, key)| listener::tls(cert, key)).transpose()?;
    let in_http = |source| StartError::Http { address: config.http, source };
    let listening = listener::bind(config.http).map_err(in_http)?;
    let hello = Hello::new(NodeId("router".into()), Role::Router, model.identity.clone());
    let endpoint = Endpoint::bind(config.quic, identity, hello, EndpointConfig::default())?;
    let (http, quic) = (listening.local_addr()?, endpoint.local_addr()?);

    let (registry, readiness) = (Registry::new(), Readiness::starting());
    let metrics = Metrics::new(&registry, &model);
    let cluster = Cluster::new(config.rules(&model), readiness.clone(), metrics.clone());
    registry.collector(ClusterLoad { cluster: cluster.clone(), model: model.served_name.clone() });
    let relay = Relay::new(cluster.clone(), metrics.clone(), config);
    let app = Arc::new(App::new(config, &model, text, relay, metrics, shutdown.clone()));
    take_nodes(endpoint.clone(), cluster.clone(), config.silence_seconds, &shutdown);
    let service = app::app(app, readiness, registry, access);
    let served = shutdown.clone();
    let scheme = if tls.is_some() { "https" } else { "http" };
    shutdown.spawn(async move { listener::serve(listening, service, tls, &served).await });
    info!(scheme, %http, %quic, model = model.served_name, max_model_len = model.max_model_len, "router is up");
    Ok(Running { http, quic, endpoint, cluster, shutdown })
}

/// Serves less than the model's context, where that is asked for.
fn shorten(model: &mut RouterModel, max_model_len: Option<u32>) -> Result<(), StartError> {
    match max_model_len {
        Some(asked) if asked > model.max_model_len => {
            Err(StartError::MaxModelLen { asked, context: model.max_model_len })
        }
        Some(asked) => {
            model.max_model_len = asked;
            Ok(())
        }
        None => Ok(()),
    }
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
