//! Flags that both kinds of node have. Every flag has an environment variable.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use service::HostPort;

use crate::compute::{DeviceChoice, Served};
use crate::face::FaceArgs;

/// Where a router takes nodes unless it is told otherwise.
const ROUTER_PORT: u16 = 8081;

/// To be flattened into a node's own flags.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Hugging Face model directory: config.json, tokenizer.json, safetensors. Must not change while it is served.
    #[arg(long, env = "KVFERRY_MODEL", default_value_os_t = default_model_dir())]
    pub model: PathBuf,
    /// Calibrated plan of the model [default: plan.kvtc in the model directory, where there is one].
    #[arg(long, env = "KVFERRY_PLAN")]
    pub plan: Option<PathBuf>,
    /// Where model and codec run: cpu, cuda, or cuda:N for the GPU of that number. A GPU needs a build with CUDA (docs/gpu.md).
    #[arg(long, env = "KVFERRY_DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// Model id towards clients [default: name of the model directory].
    #[arg(long, env = "KVFERRY_SERVED_MODEL_NAME")]
    pub served_model_name: Option<String>,
    /// The router's QUIC address, `host:port` [default: 127.0.0.1:8081, or with --http no router].
    #[arg(long, env = "KVFERRY_ROUTER")]
    pub router: Option<HostPort>,
    /// Directory with ca.pem and this role's certificate and key, as `kvferry certs` writes it.
    #[arg(long, env = "KVFERRY_CERTS", default_value = "certs")]
    pub certs: PathBuf,
    /// Name of this node, unique in the cluster [default: role and a random suffix].
    #[arg(long, env = "KVFERRY_NODE_ID")]
    pub node_id: Option<String>,
    /// Address for QUIC; port 0 lets the system choose.
    #[arg(long, env = "KVFERRY_LISTEN", default_value = "0.0.0.0:0")]
    pub listen: SocketAddr,
    /// Address for /health, /live, /ready and /metrics over HTTP.
    #[arg(long, env = "KVFERRY_ADMIN_LISTEN", default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
    /// Shape everything this node sends to a link of so many Gb/s (loopback hides what a wire costs); 0 does not.
    #[arg(long, env = "KVFERRY_LINK_GBPS", default_value_t = 0.0)]
    pub link_gbps: f64,
    /// Let `PUT /link` on the admin face change that speed while the node runs, as `kvferry bench cluster` does.
    #[arg(long, env = "KVFERRY_LINK_ADMIN")]
    pub link_admin: bool,
    /// Tokens of a prompt that are run, coded and sent as one chunk. A GPU runs longer ones quicker, but has shorter ones on their way
    /// sooner; it runs prompts whole whose cache is coded at their end.
    #[arg(long, env = "KVFERRY_CHUNK_TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=8192))]
    pub chunk_tokens: u32,
    /// Prompts or sessions taken at once; more are refused as busy.
    #[arg(long, env = "KVFERRY_MAX_NUM_SEQS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_num_seqs: u32,
    /// KV cache over all prompts or sessions, in tokens; a decode session reserves its prompt plus max_tokens.
    #[arg(long, env = "KVFERRY_KV_CAPACITY_TOKENS", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(16..))]
    pub kv_capacity_tokens: u32,
    /// Longest prompt plus generation in tokens [default: what the model was made for].
    #[arg(long, env = "KVFERRY_MAX_MODEL_LEN", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,
    /// Its HTTP face.
    #[command(flatten)]
    pub face: FaceArgs,
}

impl NodeArgs {
    /// Settings of a node inside another process, on loopback, with everything else at its default.
    #[must_use]
    pub fn local(model: &Path, router: SocketAddr) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            model: model.to_owned(),
            plan: None,
            device: DeviceChoice::Cpu,
            served_model_name: None,
            router: Some(router.into()),
            certs: PathBuf::new(),
            node_id: None,
            listen: any_port,
            admin_listen: any_port,
            link_gbps: 0.0,
            link_admin: false,
            chunk_tokens: 256,
            max_num_seqs: 64,
            kv_capacity_tokens: 65_536,
            max_model_len: None,
            face: FaceArgs::default(),
        }
    }

    /// The router whose cluster the node joins: the one that is named; without a face, one on this machine.
    #[must_use]
    pub fn cluster(&self) -> Option<HostPort> {
        let here = || HostPort::from(SocketAddr::from(([127, 0, 0, 1], ROUTER_PORT)));
        self.router.clone().or_else(|| self.face.http.is_none().then(here))
    }

    /// Longest prompt plus generation that the node takes with this model.
    #[must_use]
    pub fn max_session_tokens(&self, served: &Served) -> u32 {
        let made_for = served.config.max_position_embeddings as u32;
        self.max_model_len.map_or(made_for, |asked| asked.min(made_for)).min(self.kv_capacity_tokens)
    }
}

/// The embedded model, looked for as `models/tiny-llama` in the working directory and beside and above the executable.
#[must_use]
pub fn default_model_dir() -> PathBuf {
    const EMBEDDED: &str = "models/tiny-llama";
    let executable = std::env::current_exe().unwrap_or_default();
    let mut candidates = std::iter::once(Path::new("")).chain(executable.ancestors().skip(1));
    let found = candidates.find(|dir| dir.join(EMBEDDED).join("config.json").exists());
    found.unwrap_or_else(|| Path::new("")).join(EMBEDDED)
}

/// The model id that clients see: as asked for, otherwise the directory's name.
#[must_use]
pub fn served_name(asked: Option<&str>, model_dir: &Path) -> String {
    let absolute = std::fs::canonicalize(model_dir).unwrap_or_else(|_| model_dir.to_owned());
    let directory =
        absolute.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    asked.filter(|name| !name.is_empty()).map_or(directory, str::to_owned)
}
