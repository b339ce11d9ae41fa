//! What the router's tests share: a router in this process, and stub nodes that speak the real protocol over loopback
//! and do what the test's script says.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::time::Duration;

use openai::sse::{Decoder, Event};
use openai::{Completion, ErrorBody};
use reqwest::Client;
use router::{Config, RouterModel, Running};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use service::Shutdown;
use tokio::sync::{mpsc, oneshot};
use transport::ids::{NodeId, Ticket};
use transport::message::{
    Control, Failure, FailureKind, FinishReason, FromDecode, FromPrefill, Hello, KvCoding, KvMode, KvSource,
    Load, Logprobs, ModelIdentity, PrefillStats, Register, Request, Reserve, Role, Transfer,
};
use transport::{Authority, Endpoint, EndpointConfig, Identity, Peer, SendEnd, Stream};

/// Longest wait of any test; passing tests take a fraction of it.
pub(crate) const SOON: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_millis(50);

/// A router, its identity for nodes to share, and a client.
pub(crate) struct Bench {
    pub(crate) router: Running,
    pub(crate) identity: Identity,
    pub(crate) model: RouterModel,
    pub(crate) client: Client,
    shutdown: Shutdown,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::local();
        change(&mut config);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
        let model = RouterModel::load(&dir, Some("tiny")).unwrap();
        let identity = Authority::new().unwrap().issue("node").unwrap();
        let shutdown = Shutdown::new(SOON);
        let router = router::start(&config, model.clone(), &identity, shutdown.clone()).await.unwrap();
        Self { router, identity, model, client: Client::new(), shutdown }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.router.http)
    }

    pub(crate) async fn post(&self, body: &Value) -> reqwest::Response {
        self.post_to("/v1/completions", body).await
    }

    pub(crate) async fn post_to(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = self.client.post(self.url(path)).body(body.to_string());
        tokio::time::timeout(SOON, request.send()).await.unwrap().unwrap()
    }

    /// A whole answer of any route as JSON.
    pub(crate) async fn json(&self, path: &str, body: &Value) -> Value {
        let response = self.post_to(path, body).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The chunks of a stream of any route, which must end well.
    pub(crate) async fn stream_of(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.post_to(path, body).await;
        assert_eq!(response.status(), 200);
        let bytes = tokio::time::timeout(SOON, response.bytes()).await.unwrap().unwrap();
        payloads(&Decoder::default().push(&bytes).unwrap())
    }

    /// Status, and the error object.
    pub(crate) async fn refused(&self, body: &Value) -> (u16, openai::ApiError) {
        let response = self.post(body).await;
        let status = response.status().as_u16();
        let body: ErrorBody = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        (status, body.error)
    }

    /// A whole answer.
    pub(crate) async fn answered(&self, body: &Value) -> Completion {
        let response = self.post(body).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// All events of a stream.
    pub(crate) async fn streamed(&self, body: &Value) -> Vec<Event> {
        let response = self.post(body).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = tokio::time::timeout(SOON, response.bytes()).await.unwrap().unwrap();
        Decoder::default().push(&bytes).unwrap()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.client.get(self.url("/metrics")).send().await.unwrap().text().await.unwrap()
    }

    pub(crate) async fn health(&self) -> (u16, String) {
        let response = self.client.get(self.url("/health")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Waits until the metrics hold a line.
    pub(crate) async fn sees(&self, line: &str) {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let metrics = self.metrics().await;
            if metrics.lines().any(|present| present == line) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no line {line:?} within {SOON:?} in\n{metrics}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A prefill node that delivers everything, and a decode node that follows the script, both registered.
    pub(crate) async fn pair(&self, script: Script) -> (Stub, Stub) {
        let prefill = self.node("p1", Role::Prefill, Script::default()).await;
        let decode = self.node("d1", Role::Decode, script).await;
        self.sees("kvferry_router_nodes{role=\"prefill\"} 1").await;
        self.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
        (prefill, decode)
    }

    pub(crate) async fn node(&self, name: &str, role: Role, script: Script) -> Stub {
        let identity =
            ModelIdentity { fingerprint: [7; 16], plan_id: Some([9; 16]), ..self.model.identity.clone() };
        self.node_of(name, role, script, identity).await
    }

    pub(crate) async fn node_of(&self, name: &str, role: Role, script: Script, model: ModelIdentity) -> Stub {
        let hello = Hello::new(NodeId(name.into()), role, model);
        let any_port = ([127, 0, 0, 1], 0).into();
        let endpoint = Endpoint::bind(any_port, &self.identity, hello, EndpointConfig::default()).unwrap();
        let kv_address = Some(endpoint.local_addr().unwrap());
        let peer = endpoint.connect(self.router.quic).await.unwrap();
        let (seen, requests) = mpsc::unbounded_channel();
        let (silence, silenced) = oneshot::channel();
        tokio::spawn(register(peer.clone(), kv_address, silenced));
        tokio::spawn(serve(peer.clone(), script, seen));
        Stub { peer, requests, silence: Some(silence), _endpoint: endpoint }
    }

    pub(crate) async fn shut_down(self) {
        self.shutdown.drain();
        tokio::time::timeout(SOON, self.router.finished()).await.unwrap();
    }

    pub(crate) fn drain(&self) {
        self.shutdown.drain();
    }
}

/// A stub node; it leaves when dropped.
pub(crate) struct Stub {
    pub(crate) peer: Peer,
    /// What it was asked, and how each request's stream ended if the router ended it early.
    requests: mpsc::UnboundedReceiver<Seen>,
    silence: Option<oneshot::Sender<()>>,
    _endpoint: Endpoint,
}

impl Stub {
    /// The next thing the node has seen.
    pub(crate) async fn seen(&mut self) -> Seen {
        tokio::time::timeout(SOON, self.requests.recv()).await.expect("nothing seen in time").unwrap()
    }

    /// Stops the heartbeats and nothing else.
    pub(crate) fn fall_silent(&mut self) {
        drop(self.silence.take());
    }

    /// Dies at once.
    pub(crate) fn die(&self) {
        self.peer.close(transport::CloseCode::DONE, "killed by the test");
    }
}

/// What a stub node has seen.
#[derive(Debug)]
pub(crate) enum Seen {
    Reserve(Box<Reserve>),
    Prefill(KvCoding, Vec<u32>),
    Cancelled,
}

/// What a node does with each request.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// Failure instead of the first answer.
    pub(crate) refuse: Option<FailureKind>,
    /// Tokens, the first included.
    pub(crate) tokens: Vec<u32>,
    /// Whether the cache of another node never comes.
    pub(crate) only_local: bool,
    /// How likely each of them was.
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) then: Then,
}

/// What a decode node does after its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Then {
    Finish(FinishReason),
    Fail(FailureKind),
    /// Says no more, and waits for the router to give up.
    Stall,
    Die,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            refuse: None,
            tokens: vec![],
            only_local: false,
            logprobs: None,
            then: Then::Finish(FinishReason::Length),
        }
    }
}

impl Script {
    pub(crate) fn says(text: &str, then: Then) -> Self {
        Self { tokens: ids(text), then, ..Self::default() }
    }

    pub(crate) fn refuses(kind: FailureKind) -> Self {
        Self { refuse: Some(kind), ..Self::default() }
    }
}

/// Token ids of a text, without begin-of-text.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
    openai::Tokenizer::load(&dir).unwrap().encode(text).unwrap()[1..].to_vec()
}

/// A good body, with some fields changed.
pub(crate) fn body(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "Once upon a time"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The chunks of a stream, which must have ended well.
pub(crate) fn chunks(events: &[Event]) -> Vec<Completion> {
    payloads(events)
}

fn payloads<T: DeserializeOwned>(events: &[Event]) -> Vec<T> {
    let (done, data) = events.split_last().unwrap();
    assert_eq!(*done, Event::Done);
    data.iter()
        .map(|event| match event {
            Event::Data(json) => serde_json::from_str(json).unwrap(),
            Event::Done => panic!("[DONE] before the end"),
        })
        .collect()
}

async fn register(peer: Peer, kv_address: Option<std::net::SocketAddr>, mut silenced: oneshot::Receiver<()>) {
    let register = Register {
        kv_address,
        max_session_tokens: 4096,
        kv_capacity_tokens: 65_536,
        max_sessions: 8,
        chunk_tokens: 256,
        after_chunk_tokens: 2048,
        prefix_cache_tokens: 16_384,
    };
    let mut control = peer.open().await.unwrap();
    control.sender.send(&Control::Register(register)).await.unwrap();
    let mut beat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            _ = beat.tick() => if control.sender.send(&Control::Heartbeat(Load::default())).await.is_err() { return },
            _ = &mut silenced => break,
        }
    }
    peer.closed().await;
}

async fn serve(peer: Peer, script: Script, seen: mpsc::UnboundedSender<Seen>) {
    while let Ok(stream) = peer.accept().await {
        tokio::spawn(answer(peer.clone(), stream, script.clone(), seen.clone()));
    }
}

async fn answer(peer: Peer, mut stream: Stream, script: Script, seen: mpsc::UnboundedSender<Seen>) {
    let Ok(request) = stream.receiver.recv_message::<Request>(SOON).await else { return };
    let failure = |kind| Failure { kind, message: format!("scripted {kind:?}") };
    match (request, script.refuse) {
        (Request::Reserve(reserve), None) => {
            let is_local = matches!(reserve.source, KvSource::Local { .. });
            let _ = seen.send(Seen::Reserve(Box::new(reserve)));
            decode(&peer, &mut stream, &script, is_local).await;
            if matches!(stream.sender.stopped().await, SendEnd::Stopped { .. }) {
                let _ = seen.send(Seen::Cancelled);
            }
        }
        (Request::Reserve(reserve), Some(kind)) => {
            let _ = seen.send(Seen::Reserve(Box::new(reserve)));
            let _ = stream.sender.send(&FromDecode::Fail(failure(kind))).await;
            let _ = stream.sender.finish();
        }
        (Request::Deliver(_), _) => panic!("a router asks for no deliveries"),
        (Request::Prefill(prefill), refuse) => {
            let _ = seen.send(Seen::Prefill(prefill.coding, prefill.token_ids));
            let outcome = refuse.map_or(FromPrefill::Prefilled, |kind| FromPrefill::Fail(failure(kind)));
            let _ = stream.sender.send(&outcome).await;
            let _ = stream.sender.finish();
            if matches!(stream.sender.stopped().await, SendEnd::Stopped { .. }) {
                let _ = seen.send(Seen::Cancelled);
            }
        }
    }
}

/// The decode side; a script without tokens reserves and then waits for a cache that never comes.
async fn decode(peer: &Peer, stream: &mut Stream, script: &Script, is_local: bool) {
    let _ = stream.sender.send(&FromDecode::Reserved { ticket: Ticket::random() }).await;
    let Some((&first_token, rest)) = script.tokens.split_first() else { return };
    if script.only_local && !is_local {
        return;
    }
    let _ = stream
        .sender
        .send(&FromDecode::Ready {
            first_token,
            logprobs: script.logprobs.clone(),
            transfer: transfer(is_local),
        })
        .await;
    for &id in rest {
        let _ = stream.sender.send(&FromDecode::Token { id, logprobs: script.logprobs.clone() }).await;
    }
    match script.then {
        Then::Finish(reason) => {
            let _ = stream.sender.send(&FromDecode::Finished { reason }).await;
            let _ = stream.sender.finish();
        }
        Then::Fail(kind) => {
            let failure = Failure { kind, message: format!("scripted {kind:?}") };
            let _ = stream.sender.send(&FromDecode::Fail(failure)).await;
            let _ = stream.sender.finish();
        }
        Then::Stall => {}
        Then::Die => {
            // What was sent must have arrived before the connection goes.
            let _ = stream.sender.finish();
            stream.sender.stopped().await;
            peer.close(transport::CloseCode::DONE, "killed by the test");
        }
    }
}

fn transfer(is_local: bool) -> Transfer {
    let coding = (!is_local).then(|| KvCoding { codec: "kvtc".into(), tier: 32, mode: KvMode::After });
    let prefill = PrefillStats {
        cached_tokens: 0,
        queue_ms: 1.0,
        prefill_ms: 20.0,
        encode_ms: 3.0,
        overlap: 0.25,
        link_gbps: 40.0,
    };
    Transfer {
        prefill_node: coding.is_some().then(|| NodeId("p1".into())),
        coding,
        raw_bytes: 320_000,
        wire_bytes: if is_local { 0 } else { 16_000 },
        wire_ms: 4.0,
        decode_ms: 5.0,
        prefill,
    }
}
