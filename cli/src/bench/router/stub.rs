//! Nodes without a model: they speak the real protocol over QUIC, reserve at once, run no prompt and send tokens at a
//! steady rate.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;
use transport::ids::{NodeId, Ticket};
use transport::message::{
    Control, FromDecode, FromPrefill, Hello, KvCoding, KvMode, Load, ModelIdentity, PrefillStats, Register,
    Request, Role, Transfer,
};
use transport::{Endpoint, EndpointConfig, Frame, Identity, Peer, Stream};

use super::pacer::{Generating, Pacer};
use super::track::{Track, Tracks};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// For whatever the router says or ends; a stream that is idle on purpose is silent for less.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a node says it can take: more than is ever asked.
const ROOM: u32 = 1 << 20;

/// What every stub shares.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) tracks: Tracks,
    pub(super) pacer: Pacer,
    /// Request streams on decode nodes that have not ended.
    pub(super) open: Arc<AtomicUsize>,
    /// The id of every first token.
    pub(super) first_token: u32,
}

/// Stub nodes; they leave when dropped.
#[derive(Debug)]
pub(super) struct Stubs {
    _endpoints: Vec<Endpoint>,
    _tasks: JoinSet<()>,
}

impl Stubs {
    /// Connects so many nodes of each role.
    pub(super) async fn join(
        (prefill, decode): (u32, u32),
        router: SocketAddr,
        identity: &Identity,
        model: &ModelIdentity,
        shared: &Shared,
    ) -> anyhow::Result<Self> {
        let roles = [(Role::Prefill, prefill), (Role::Decode, decode)];
        let nodes = roles.into_iter().flat_map(|(role, count)| (0..count).map(move |nth| (role, nth)));
        let (mut endpoints, mut tasks) = (Vec::new(), JoinSet::new());
        for (role, nth) in nodes {
            let name = NodeId(format!("{}-{nth}", role.name()));
            let hello = Hello::new(name, role, ModelIdentity { fingerprint: [1; 16], ..model.clone() });
            let any_port = (Ipv4Addr::LOCALHOST, 0).into();
            let endpoint = Endpoint::bind(any_port, identity, hello, EndpointConfig::default())?;
            let peer = endpoint.connect(router).await.context("a stub node cannot reach the router")?;
            let kv_address = (role == Role::Decode).then(|| endpoint.local_addr()).transpose()?;
            tasks.spawn(register(peer.clone(), kv_address));
            tasks.spawn(serve(peer, shared.clone()));
            endpoints.push(endpoint);
        }
        Ok(Self { _endpoints: endpoints, _tasks: tasks })
    }
}

/// Joins the cluster and stays.
async fn register(peer: Peer, kv_address: Option<SocketAddr>) {
    let register = Register {
        kv_address,
        max_session_tokens: ROOM,
        kv_capacity_tokens: ROOM,
        max_sessions: ROOM,
        chunk_tokens: 256,
        after_chunk_tokens: 2048,
        prefix_cache_tokens: 16_384,
    };
    let Ok(mut control) = peer.open().await else { return };
    let mut said = control.sender.send(&Control::Register(register)).await;
    let mut beat = tokio::time::interval(HEARTBEAT);
    while said.is_ok() {
        beat.tick().await;
        said = control.sender.send(&Control::Heartbeat(Load::default())).await;
    }
}

async fn serve(peer: Peer, shared: Shared) {
    let mut requests = JoinSet::new();
    while let Ok(stream) = peer.accept().await {
        while requests.try_join_next().is_some() {}
        requests.spawn(answer(stream, shared.clone()));
    }
}

/// One request stream. Whatever fails drops it, which tells the router.
async fn answer(mut stream: Stream, shared: Shared) {
    let Ok(request) = stream.receiver.recv_message::<Request>(PATIENCE).await else { return };
    let arrived = Instant::now();
    match request {
        Request::Reserve(reserve) => {
            let Some(track) = shared.tracks.get(reserve.request) else { return };
            let _ = track.reserve.set(arrived);
            let _counted = Counted::new(&shared.open);
            let raw_bytes = u64::from(reserve.prompt_tokens) * 1024;
            // None: the client has left, or the stream was silent on purpose.
            let _ = decode(stream, &track, raw_bytes, &shared).await;
        }
        Request::Prefill(prefill) => {
            let Some(track) = shared.tracks.get(prefill.request) else { return };
            let _ = track.prefill.set(arrived);
            track.delivered.notify_one();
            if stream.sender.send(&FromPrefill::Prefilled).await.is_ok() {
                let _ = stream.sender.finish();
            }
            until_the_end(&mut stream).await;
        }
        // Decode nodes ask for these, routers never.
        Request::Deliver(_) => {}
    }
}

/// Reserves, waits for what would be the cache, sends the first token and leaves the others to the pacer.
async fn decode(mut stream: Stream, track: &Arc<Track>, raw_bytes: u64, shared: &Shared) -> Option<()> {
    let _ = track.reserved.set(Instant::now());
    stream.sender.send(&FromDecode::Reserved { ticket: Ticket::random() }).await.ok()?;
    tokio::time::timeout(PATIENCE, track.delivered.notified()).await.ok()?;
    let first_token = shared.first_token;
    let ready = FromDecode::Ready { first_token, logprobs: None, transfer: transfer(raw_bytes) };
    track.hand();
    stream.sender.send(&ready).await.ok()?;
    let Some(tokens) = track.tokens else {
        until_the_end(&mut stream).await;
        return None;
    };
    let Stream { sender, mut receiver } = stream;
    shared.pacer.take(Generating { sender, track: Arc::clone(track), left: tokens.saturating_sub(1) });
    receiver.recv::<Request>(PATIENCE).await.ok().map(drop)
}

/// Waits until the router has finished, reset or dropped the stream.
async fn until_the_end(stream: &mut Stream) {
    while let Ok(Frame::Message(_) | Frame::Data(_)) = stream.receiver.recv::<Request>(PATIENCE).await {}
}

fn transfer(raw_bytes: u64) -> Transfer {
    Transfer {
        coding: Some(KvCoding { codec: "raw".into(), tier: 32, mode: KvMode::Stream }),
        prefill_node: Some(NodeId("prefill-0".into())),
        raw_bytes,
        wire_bytes: raw_bytes,
        wire_ms: 1.0,
        decode_ms: 1.0,
        prefill: PrefillStats { prefill_ms: 10.0, encode_ms: 1.0, link_gbps: 10.0, ..Default::default() },
    }
}

/// One more of what is counted, for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
