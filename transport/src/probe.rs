//! What one connection carries, for benchmarks: bytes from one endpoint of this process to another, over the loopback.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::ids::NodeId;
use crate::message::{Hello, ModelIdentity, Role};
use crate::stats::PeerStats;
use crate::{Authority, Endpoint, EndpointConfig, Frame, LinkShaper, Peer};

const CHUNK: usize = 256 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

/// Why nothing was measured.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Goodput {
    /// Bytes that arrived.
    pub bytes: usize,
    /// From the first to the last of them.
    pub seconds: f64,
    /// What the sender's end of the connection counted.
    pub sender: PeerStats,
    /// What the receiver's end counted.
    pub receiver: PeerStats,
}

impl Goodput {
    /// Bits of content a second, in 10^9.
    #[must_use]
    pub fn gbps(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.seconds
    }
}

/// Sends `bytes` over `streams` streams of one connection whose link is shaped to `gbps`; 0 is unshaped.
///
/// # Errors
/// When the endpoints cannot be bound or the connection breaks.
pub async fn goodput(bytes: usize, gbps: f64, streams: usize) -> Result<Goodput, Failure> {
    let authority = Authority::new()?;
    let config = EndpointConfig { link: LinkShaper::new(gbps), ..Default::default() };
    let bind = |role, config| {
        Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &authority.issue("node")?, hello(role), config)
            .map_err(Failure::from)
    };
    let (here, there) = (bind(Role::Prefill, config)?, bind(Role::Decode, EndpointConfig::default())?);
    let address = there.local_addr()?;
    let (sender, receiver) = tokio::join!(here.connect(address), there.accept());
    let (sender, receiver) = (sender?, receiver.ok_or("endpoint closed")??);
    let begin = Instant::now();
    let each = bytes / streams.max(1);
    let sending: Vec<_> = (0..streams.max(1)).map(|_| tokio::spawn(send(sender.clone(), each))).collect();
    let receiving: Vec<_> = (0..streams.max(1)).map(|_| tokio::spawn(drain(receiver.clone()))).collect();
    let mut received = 0;
    for task in receiving {
        received += task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    for task in sending {
        task.await??;
    }
    Ok(Goodput { bytes: received, seconds, sender: sender.stats(), receiver: receiver.stats() })
}

async fn send(peer: Peer, bytes: usize) -> Result<(), Failure> {
    let mut stream = peer.open().await?;
    let chunk = Bytes::from(vec![7; CHUNK]);
    for _ in 0..bytes.div_ceil(CHUNK) {
        stream.sender.send_data(chunk.clone()).await?;
    }
    stream.sender.finish()?;
    stream.sender.stopped().await;
    Ok(())
}

async fn drain(peer: Peer) -> Result<usize, Failure> {
    let mut receiver = peer.accept().await?.receiver;
    let mut total = 0;
    while let Frame::Data(data) = receiver.recv::<()>(DEADLINE).await? {
        total += data.len();
    }
    Ok(total)
}

fn hello(role: Role) -> Hello {
    let model = ModelIdentity {
        model_id: "goodput".into(),
        fingerprint: [0; 16],
        kv_dtype: "bf16".into(),
        layers: 1,
        kv_heads: 1,
        head_dim: 64,
        plan_id: None,
        kv_format_versions: vec![1],
    };
    Hello::new(NodeId("goodput".into()), role, model)
}
