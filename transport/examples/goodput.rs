//! Measures what one connection carries on the loopback: `cargo run --release -p transport --example goodput`.
//!
//! Arguments: mebibytes to send (default 1024), link in Gb/s (default 0: unshaped), parallel streams (default 1).
#![allow(clippy::print_stdout, reason = "a measurement prints its result")]

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use transport::ids::NodeId;
use transport::message::{Hello, ModelIdentity, Role};
use transport::{Authority, Endpoint, EndpointConfig, Frame, LinkShaper, Peer};

const CHUNK: usize = 256 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(1024), |value| value.parse())?;
    let gbps: f64 = arguments.next().map_or(Ok(0.0), |value| value.parse())?;
    let streams: usize = arguments.next().map_or(Ok(1), |value| value.parse())?;
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
    let each = mebibytes * (1 << 20) / streams;
    let sending: Vec<_> = (0..streams).map(|_| tokio::spawn(send(sender.clone(), each))).collect();
    let receiving: Vec<_> = (0..streams).map(|_| tokio::spawn(drain(receiver.clone()))).collect();
    let mut received = 0;
    for task in receiving {
        received += task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    for task in sending {
        task.await??;
    }
    report(received, seconds, &sender, &receiver);
    Ok(())
}

fn report(received: usize, seconds: f64, sender: &Peer, receiver: &Peer) {
    let (sent, got) = (sender.stats(), receiver.stats());
    println!("{:.2} Gb/s: {received} bytes in {seconds:.3} s", received as f64 * 8e-9 / seconds);
    println!(
        "  wire / stream bytes {:.4}, lost packets {}",
        got.udp_rx_bytes as f64 / received as f64,
        sent.lost_packets
    );
    println!(
        "  mtu {} bytes, rtt {:?}, window {} bytes",
        sent.mtu_bytes, sent.rtt, sent.congestion_window_bytes
    );
}

async fn send(peer: Peer, bytes: usize) -> Result<(), Failure> {
    let mut stream = peer.open().await?;
    let chunk = Bytes::from(vec![7; CHUNK]);
    for _ in 0..bytes / CHUNK {
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
