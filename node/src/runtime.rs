//! What every node brings up before its own work: the QUIC endpoint on its (perhaps shaped) link, metrics, the admin
//! face, and its place in the cluster, in front of it a face of its own or both.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use router::PrefillFailure;
use service::{Readiness, Registry, Shutdown, admin};
use tokio::net::TcpListener;
use tracing::error;
use transport::ids::NodeId;
use transport::message::{Load, Register, Role};
use transport::{CloseCode, Endpoint, EndpointConfig, Identity, LinkShaper, Stream};

use crate::args::NodeArgs;
use crate::compute::Served;
use crate::face::{self, FaceError};
use crate::gauges::LoadGauges;
use crate::link;
use crate::loaded::LoadError;
use crate::membership::Membership;

/// A node's surroundings. Clones share them.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The node's name.
    pub id: NodeId,
    /// Model and plan.
    pub served: Arc<Served>,
    /// Where streams come and go.
    pub endpoint: Endpoint,
    /// Where the endpoint listens.
    pub quic_address: SocketAddr,
    /// Where the admin face listens.
    pub admin_address: SocketAddr,
    /// The node's metrics.
    pub registry: Registry,
    /// Where the node's own face listens, if it has one.
    pub http_address: Option<SocketAddr>,
    /// Whether the node can take work.
    pub readiness: Readiness,
    /// How the process ends.
    pub shutdown: Shutdown,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificates.
    #[error(transparent)]
    Identity(#[from] transport::IdentityError),
    /// The model or its plan.
    #[error("cannot load the model: {0}")]
    Load(#[from] LoadError),
    /// Signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The QUIC socket.
    #[error(transparent)]
    Bind(#[from] transport::BindError),
    /// A listening address.
    #[error("cannot listen on {address}: {source}; choose another with --admin-listen or --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A flag out of range.
    #[error("{0}")]
    Flag(String),
    /// The node's own face.
    #[error(transparent)]
    Face(#[from] FaceError),
}

/// What a node has for those who ask it.
#[derive(Debug)]
pub struct Offer<L, S> {
    /// What it takes.
    pub register: Register,
    /// How busy it is.
    pub load: L,
    /// Takes a request stream; must not block.
    pub serve: S,
    /// What its face does when a cache that another node keeps cannot be had.
    pub prefill_failure: PrefillFailure,
}

impl Runtime {
    /// Binds the sockets and serves the admin face.
    ///
    /// # Errors
    /// For addresses that cannot be listened on and flags that make no sense.
    pub async fn bind(
        args: &NodeArgs,
        role: Role,
        served: Arc<Served>,
        identity: &Identity,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        if !(args.link_gbps.is_finite() && args.link_gbps >= 0.0) {
            return Err(StartError::Flag(format!("--link-gbps {} is no speed", args.link_gbps)));
        }
        let id = NodeId(args.node_id.clone().unwrap_or_else(|| random_name(role)));
        id.check().map_err(|reason| StartError::Flag(format!("--node-id: {reason}")))?;
        let link = LinkShaper::new(args.link_gbps);
        let config = EndpointConfig { link: link.clone(), ..EndpointConfig::default() };
        let endpoint = Endpoint::bind(args.listen, identity, served.hello(id.clone(), role), config)?;
        let listen = |source| StartError::Listen { address: args.admin_listen, source };
        let quic_address =
            endpoint.local_addr().map_err(|source| StartError::Listen { address: args.listen, source })?;
        let listener = TcpListener::bind(args.admin_listen).await.map_err(listen)?;
        let admin_address = listener.local_addr().map_err(listen)?;
        let (registry, readiness) = (Registry::new(), Readiness::starting());
        let face =
            admin::routes(readiness.clone(), registry.clone()).merge(link::routes(link, args.link_admin));
        serve_admin(listener, face, shutdown.clone());
        Ok(Self {
            id,
            served,
            endpoint,
            quic_address,
            admin_address,
            http_address: None,
            registry,
            readiness,
            shutdown,
        })
    }

    /// Joins the router's cluster in the background, until the shutdown's end, and comes up with a face of its own, as the
    /// flags say; the load is also a metric from now on.
    ///
    /// # Errors
    /// For a face that cannot come up.
    pub async fn join<L, S>(&mut self, args: &NodeArgs, offer: Offer<L, S>) -> Result<(), StartError>
    where
        L: Fn() -> Load + Send + Sync + 'static,
        S: Fn(Stream) + Send + Sync + 'static,
    {
        let Offer { register, load, serve, prefill_failure } = offer;
        let (load, serve) = (Arc::new(load), Arc::new(serve));
        let (shared, kv_capacity_tokens) = (Arc::clone(&load), register.kv_capacity_tokens);
        let model = self.served.model_id.clone();
        self.registry.collector(LoadGauges { load: move || shared(), kv_capacity_tokens, model });
        let cluster = args.cluster().map(|router| Membership {
            endpoint: self.endpoint.clone(),
            router,
            register: register.clone(),
            readiness: self.readiness.clone(),
            shutdown: self.shutdown.clone(),
        });
        let mut face = match args.face.http {
            None => None,
            Some(http) => Some(face::start(http, self, args, register, prefill_failure).await?),
        };
        if let Some((face, http)) = &mut face {
            self.http_address = Some(*http);
            if cluster.is_none() {
                face.readiness = self.readiness.clone();
            }
        }
        for membership in cluster.into_iter().chain(face.map(|(membership, _)| membership)) {
            let (load, serve) = (Arc::clone(&load), Arc::clone(&serve));
            tokio::spawn(membership.run(move || load(), move |stream| serve(stream)));
        }
        Ok(())
    }

    /// Waits for the drain and closes the connections.
    pub async fn finished(&self) {
        let drained = self.shutdown.finished().await;
        tracing::info!(node = %self.id, ?drained, "stopped");
        self.endpoint
            .close(CloseCode::DRAINING, "the node has stopped", std::time::Duration::from_secs(1))
            .await;
    }
}

fn serve_admin(listener: TcpListener, face: Router, until: Shutdown) {
    tokio::spawn(async move {
        if let Err(error) = admin::serve(listener, face, &until).await {
            error!(%error, "the admin face is gone");
        }
    });
}

fn random_name(role: Role) -> String {
    let suffix = transport::ids::RequestId::random().to_string();
    format!("{}-{}", role.name(), &suffix[..8])
}
