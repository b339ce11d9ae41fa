//! What the transport tests share: peers of one authority on the loopback, with a Hello to vary.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use transport::ids::NodeId;
use transport::message::{Hello, ModelIdentity, Role};
use transport::{Authority, Endpoint, EndpointConfig, Identity, Peer, Stream};

/// Longest wait of any test; passing tests take a fraction of it.
pub const SOON: Duration = Duration::from_secs(10);

pub fn hello(node: &str, role: Role) -> Hello {
    Hello {
        node: NodeId(node.into()),
        role,
        model: ModelIdentity {
            model_id: "tiny-llama".into(),
            fingerprint: [7; 16],
            kv_dtype: "bf16".into(),
            layers: 4,
            kv_heads: 2,
            head_dim: 64,
            plan_id: Some([9; 16]),
            kv_format_versions: vec![1],
        },
    }
}

pub fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub fn identity() -> Identity {
    Authority::new().unwrap().issue("node").unwrap()
}

pub fn endpoint(identity: &Identity, hello: Hello, config: EndpointConfig) -> (Endpoint, SocketAddr) {
    let endpoint = Endpoint::bind(loopback(), identity, hello, config).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A prefill node connected to a decode node. Both endpoints must be kept.
pub struct Pair {
    pub prefill: Peer,
    pub decode: Peer,
    pub dialler: Endpoint,
    pub dialled: Endpoint,
}

/// Connects the two. Each peer is named after the node that holds it; only the dialler is shaped.
pub async fn pair(config: EndpointConfig) -> Pair {
    let identity = identity();
    let (dialler, _) = endpoint(&identity, hello("prefill", Role::Prefill), config.clone());
    let unshaped = EndpointConfig { link: None, ..config };
    let (dialled, address) = endpoint(&identity, hello("decode", Role::Decode), unshaped);
    let (prefill, decode) = tokio::join!(dialler.connect(address), dialled.accept());
    Pair { prefill: prefill.unwrap(), decode: decode.unwrap().unwrap(), dialler, dialled }
}

impl Pair {
    /// A stream from prefill to decode whose first message has been sent and received.
    pub async fn stream(&self) -> (Stream, Stream) {
        let mut here = self.prefill.open().await.unwrap();
        here.sender.send(&0u8).await.unwrap();
        let mut there = self.decode.accept().await.unwrap();
        there.receiver.recv_message::<u8>(SOON).await.unwrap();
        (here, there)
    }
}
