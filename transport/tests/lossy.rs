//! A network that drops datagrams: some of them, or from some moment on all.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kit::{SOON, endpoint, eventually, hello, identity};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use transport::message::Role;
use transport::{ConnectionLost, Endpoint, EndpointConfig, Frame, Peer, RecvError, SendError, Stream};

/// Passes datagrams between one dialler and `target`, and loses some.
struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn start(target: SocketAddr, loss: f64) -> Self {
        let near = UdpSocket::bind(kit::loopback()).await.unwrap();
        let far = UdpSocket::bind(kit::loopback()).await.unwrap();
        far.connect(target).await.unwrap();
        let (address, cut) = (near.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(pass(near, far, loss, Arc::clone(&cut)));
        Self { address, cut, task }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(near: UdpSocket, far: UdpSocket, loss: f64, cut: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(1);
    let (mut from_near, mut from_far) = (vec![0; 65_536], vec![0; 65_536]);
    let mut dialler = None;
    loop {
        // Send errors are losses too: the other end may be gone.
        tokio::select! {
            Ok((length, sender)) = near.recv_from(&mut from_near) => {
                dialler = Some(sender);
                if !cut.load(Ordering::Relaxed) && !random.random_bool(loss) {
                    let _ = far.send(&from_near[..length]).await;
                }
            }
            Ok(length) = far.recv(&mut from_far) => {
                if let Some(dialler) = dialler && !cut.load(Ordering::Relaxed) && !random.random_bool(loss) {
                    let _ = near.send_to(&from_far[..length], dialler).await;
                }
            }
        }
    }
}

struct Net {
    relay: Relay,
    here: Peer,
    there: Peer,
    _endpoints: (Endpoint, Endpoint),
}

async fn net(loss: f64, config: EndpointConfig) -> Net {
    let identity = identity();
    let (dialled, target) = endpoint(&identity, hello("decode", Role::Decode), config.clone());
    let (dialler, _) = endpoint(&identity, hello("prefill", Role::Prefill), config);
    let relay = Relay::start(target, loss).await;
    let (here, there) = tokio::join!(dialler.connect(relay.address), dialled.accept());
    Net { relay, here: here.unwrap(), there: there.unwrap().unwrap(), _endpoints: (dialler, dialled) }
}

/// Sends chunks until it fails or `chunks` are sent, and finishes.
async fn send(mut stream: Stream, chunks: u8) -> Result<u64, SendError> {
    for i in 0..chunks {
        stream.sender.send_data(Bytes::from(vec![i; 64 * 1024])).await?;
    }
    stream.sender.finish()?;
    stream.sender.stopped().await;
    Ok(stream.sender.bytes_written())
}

#[tokio::test]
async fn a_transfer_over_a_lossy_network_is_complete_and_counted_once() {
    let net = net(0.03, EndpointConfig { handshake_timeout: SOON, ..Default::default() }).await;
    let sending = tokio::spawn(send(net.here.open().await.unwrap(), 64));
    let mut stream = net.there.accept().await.unwrap();
    for i in 0..64 {
        let Frame::Data(chunk) = stream.receiver.recv::<u8>(SOON).await.unwrap() else {
            panic!("chunk {i} missing")
        };
        assert!(chunk.len() == 64 * 1024 && chunk.iter().all(|byte| *byte == i), "chunk {i} is damaged");
    }
    assert_eq!(stream.receiver.recv::<u8>(SOON).await, Ok(Frame::End));
    assert_eq!(sending.await.unwrap(), Ok(stream.receiver.bytes_read()));
    assert!(net.here.stats().lost_packets > 0, "the network has lost nothing: the test shows nothing");
}

#[tokio::test]
async fn a_network_cut_in_the_middle_of_a_transfer_is_noticed_on_both_sides() {
    let idle_timeout = Duration::from_millis(500);
    let net =
        net(0.0, EndpointConfig { idle_timeout, keep_alive: idle_timeout / 5, ..Default::default() }).await;
    let sending = tokio::spawn(async move {
        let mut stream = net.here.open().await.unwrap();
        loop {
            if let Err(error) = stream.sender.send_data(Bytes::from(vec![1; 64 * 1024])).await {
                return error;
            }
        }
    });
    let mut stream = net.there.accept().await.unwrap();
    stream.receiver.recv::<u8>(SOON).await.unwrap();
    net.relay.cut();
    let receiving = async {
        loop {
            if let Err(error) = stream.receiver.recv::<u8>(SOON).await {
                return error;
            }
        }
    };
    let lost = ConnectionLost::TimedOut;
    assert_eq!(tokio::time::timeout(SOON, receiving).await.unwrap(), RecvError::ConnectionLost(lost.clone()));
    assert_eq!(tokio::time::timeout(SOON, sending).await.unwrap().unwrap(), SendError::ConnectionLost(lost));
    eventually("the connection knows why it is gone", || net.there.close_reason().is_some()).await;
}
