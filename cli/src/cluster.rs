//! A whole cluster in one process, over real QUIC and HTTP on loopback: for the demo, for tests, for trying things out.
//! Certificates live in memory only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use node::compute::Sizes;
use node::{DeviceChoice, Loaded, NodeArgs, Runtime, Served};
use service::Shutdown;
use transport::{Authority, Identity};

/// How long the cluster may take until the router has all nodes.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Model directory, for the router's tokenizer and configuration.
    pub model: PathBuf,
    /// Where the router listens for HTTP.
    pub listen: SocketAddr,
    /// The router's other settings.
    pub router: router::Config,
    /// Prefill nodes.
    pub prefill_nodes: usize,
    /// Decode nodes.
    pub decode_nodes: usize,
    /// Link that each prefill node sends over, in Gb/s; 0 leaves it unshaped.
    pub link_gbps: f64,
}

impl Options {
    /// One node of each kind, any port, no shaping.
    #[must_use]
    pub fn new(model: PathBuf) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            model,
            listen,
            router: router::Config::local(),
            prefill_nodes: 1,
            decode_nodes: 1,
            link_gbps: 0.0,
        }
    }
}

/// Where the nodes' model comes from.
#[derive(Debug, Clone)]
pub enum Models {
    /// All nodes share it, on the CPU.
    Host(Arc<Loaded>),
    /// Every node loads the options' model to this device for itself.
    Device(DeviceChoice),
}

impl From<&Arc<Loaded>> for Models {
    fn from(loaded: &Arc<Loaded>) -> Self {
        Self::Host(Arc::clone(loaded))
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct LocalCluster {
    /// The router.
    pub router: router::Running,
    /// Its prefill nodes.
    pub prefill: Vec<Runtime>,
    /// Its decode nodes.
    pub decode: Vec<Runtime>,
    authority: Authority,
    models: Models,
    options: Options,
    url: String,
    shutdown: Shutdown,
}

impl LocalCluster {
    /// Starts router and nodes and returns when the router can place requests on all of them.
    ///
    /// # Errors
    /// When an address is taken or the nodes do not find together in time.
    pub async fn start(
        models: impl Into<Models>,
        options: Options,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let models = models.into();
        let authority = Authority::new()?;
        let router = start_router(&options, &models, &authority.issue("router")?, shutdown.clone()).await?;
        let url = format!("http://{}", router.http);
        let nodes = (options.prefill_nodes, options.decode_nodes);
        let mut cluster =
            Self { router, prefill: vec![], decode: vec![], authority, models, options, url, shutdown };
        for _ in 0..nodes.1 {
            cluster.add_decode(|_| {}).await?;
        }
        for _ in 0..nodes.0 {
            cluster.add_prefill(|_| {}).await?;
        }
        cluster.until_joined(nodes.0 + nodes.1).await?;
        Ok(cluster)
    }

    /// Base URL of the router's API.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A certificate of the cluster's authority, for a process of one's own.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn identity(&self, name: &str) -> anyhow::Result<Identity> {
        Ok(self.authority.issue(name)?)
    }

    /// Starts one more prefill node, with settings changed by `adjust`; it has a shutdown of its own.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn add_prefill(
        &mut self,
        adjust: impl FnOnce(&mut prefill_node::Config),
    ) -> anyhow::Result<Runtime> {
        let mut config = prefill_node::Config::local(self.node_args());
        config.node.link_gbps = self.options.link_gbps;
        adjust(&mut config);
        let identity = self.identity("prefill")?;
        let node =
            prefill_node::start(&config, self.served(&config.node)?, &identity, self.node_shutdown()).await?;
        self.prefill.push(node.clone());
        Ok(node)
    }

    /// Starts one more decode node, as [`Self::add_prefill`].
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn add_decode(
        &mut self,
        adjust: impl FnOnce(&mut decode_node::Config),
    ) -> anyhow::Result<Runtime> {
        let mut config = decode_node::Config::local(self.node_args());
        adjust(&mut config);
        let identity = self.identity("decode")?;
        let node =
            decode_node::start(&config, self.served(&config.node)?, &identity, self.node_shutdown()).await?;
        self.decode.push(node.clone());
        Ok(node)
    }

    /// Waits until the router knows so many nodes.
    ///
    /// # Errors
    /// When they are not there in time.
    pub async fn until_joined(&self, nodes: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while self.router.nodes() != nodes {
            if Instant::now() > deadline {
                let joined = self.router.nodes();
                bail!(
                    "{joined} of {nodes} nodes joined within {READY_DEADLINE:?}; --log-level debug says why"
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits for the shutdown, then stops nodes and router.
    pub async fn finished(self) {
        self.shutdown.draining().await;
        for node in self.prefill.iter().chain(&self.decode) {
            node.shutdown.drain();
        }
        let nodes = tokio::task::JoinSet::from_iter(
            self.prefill.iter().chain(&self.decode).cloned().map(|node| async move { node.finished().await }),
        );
        tokio::select! {
            _ = nodes.join_all() => {}
            () = self.shutdown.ended() => {}
        }
        self.router.finished().await;
    }

    fn served(&self, args: &NodeArgs) -> anyhow::Result<Arc<Served>> {
        let served = match &self.models {
            Models::Host(loaded) => Served::on_host(Arc::clone(loaded)),
            Models::Device(_) => {
                let model_id = node::args::served_name(None, &args.model);
                Served::load(args.device, &args.model, args.plan.as_deref(), model_id, Sizes::of(args))?
            }
        };
        Ok(Arc::new(served))
    }

    fn node_args(&self) -> NodeArgs {
        let device = match &self.models {
            Models::Host(_) => DeviceChoice::Cpu,
            Models::Device(device) => *device,
        };
        NodeArgs { device, ..NodeArgs::local(&self.options.model, self.router.quic) }
    }

    fn node_shutdown(&self) -> Shutdown {
        Shutdown::new(Duration::from_secs(5))
    }
}

async fn start_router(
    options: &Options,
    models: &Models,
    identity: &Identity,
    shutdown: Shutdown,
) -> anyhow::Result<router::Running> {
    let config = router::Config { http: options.listen, ..options.router.clone() };
    let model_id = match models {
        Models::Host(loaded) => Some(loaded.model_id.as_str()),
        Models::Device(_) => None,
    };
    let model = router::RouterModel::load(&options.model, model_id)?;
    router::start(&config, model, identity, shutdown).await.context("cannot start the router")
}
