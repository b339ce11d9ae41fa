//! What the transport tests share: peers of one authority on the loopback, with a Hello to vary.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use transport::ids::NodeId;
use transport::message::{Hello, ModelIdentity, Role};
use transport::{Authority, Endpoint, EndpointConfig, Identity, LinkShaper, Peer, Stream};

/// Longest wait of any test; passing tests take a fraction of it.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn hello(node: &str, role: Role) -> Hello {
    let model = ModelIdentity {
        model_id: "tiny-llama".into(),
        fingerprint: [7; 16],
        kv_dtype: "bf16".into(),
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        plan_id: Some([9; 16]),
        kv_format_versions: vec![1],
    };
    Hello::new(NodeId(node.into()), role, model)
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn identity() -> Identity {
    Authority::new().unwrap().issue("node").unwrap()
}

pub(crate) fn endpoint(identity: &Identity, hello: Hello, config: EndpointConfig) -> (Endpoint, SocketAddr) {
    let endpoint = Endpoint::bind(loopback(), identity, hello, config).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A prefill node connected to a decode node. Both endpoints must be kept.
pub(crate) struct Pair {
    pub(crate) prefill: Peer,
    pub(crate) decode: Peer,
    pub(crate) dialler: Endpoint,
    pub(crate) dialled: Endpoint,
}

/// Connects the two. Each peer is named after the node that holds it; only the dialler is shaped.
pub(crate) async fn pair(config: EndpointConfig) -> Pair {
    let identity = identity();
    let (dialler, _) = endpoint(&identity, hello("prefill", Role::Prefill), config.clone());
    let unshaped = EndpointConfig { link: LinkShaper::unshaped(), ..config };
    let (dialled, address) = endpoint(&identity, hello("decode", Role::Decode), unshaped);
    let (prefill, decode) = tokio::join!(dialler.connect(address), dialled.accept());
    Pair { prefill: prefill.unwrap(), decode: decode.unwrap().unwrap(), dialler, dialled }
}

impl Pair {
    /// A stream from prefill to decode whose first message has been sent and received.
    pub(crate) async fn stream(&self) -> (Stream, Stream) {
        let mut here = self.prefill.open().await.unwrap();
        here.sender.send(&0u8).await.unwrap();
        let mut there = self.decode.accept().await.unwrap();
        there.receiver.recv_message::<u8>(SOON).await.unwrap();
        (here, there)
    }
}

/// A dialler that is not ours: its own certificate, trust and protocol.
pub(crate) async fn dial(
    address: SocketAddr,
    own: &Identity,
    trusted: rustls::pki_types::CertificateDer<'static>,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(own.chain().to_vec(), own.key())
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    endpoint.connect_with(config, address, transport::tls::SERVER_NAME).unwrap().await
}

/// A connection that is not ours but has passed the handshake as a prefill node. The endpoint must be kept.
pub(crate) async fn greeted(config: EndpointConfig) -> (quinn::Connection, Peer, Endpoint) {
    let identity = identity();
    let (dialled, address) = endpoint(&identity, hello("decode", Role::Decode), config);
    let connection = dial(address, &identity, identity.ca().clone(), transport::tls::ALPN).await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let greeting = transport::frame::encode_message(&hello("prefill", Role::Prefill)).unwrap();
    send.write_all(&greeting).await.unwrap();
    send.finish().unwrap();
    let peer = dialled.accept().await.unwrap().unwrap();
    (connection, peer, dialled)
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
