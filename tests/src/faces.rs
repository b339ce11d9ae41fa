//! A prefill and a decode node with an HTTP face each and no router that both know; and a proxy between them that does, request
//! by request, what vLLM's own does with its instances.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use node::{NodeArgs, Runtime, Served, StartError};
use openai::sse::{Decoder, Event};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use service::Shutdown;
use transport::Authority;

use crate::kit::{PATIENCE, client, eventually, loaded, metric, model_dir};

/// The two nodes.
#[derive(Debug)]
pub struct Faces {
    /// Keeps caches.
    pub prefill: Runtime,
    /// Goes on from them.
    pub decode: Runtime,
    http: Client,
}

/// An answer as the proxy's client gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// All of the text.
    pub text: String,
    /// The whole answer; of a stream, its last chunk.
    pub body: Value,
}

/// How long a node that drains may take for what it has begun.
const GRACE: Duration = Duration::from_secs(10);

/// Flags of a node with a face and no router.
fn args() -> NodeArgs {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut args = NodeArgs { router: None, ..NodeArgs::local(&model_dir(), any_port) };
    args.face.http = Some(any_port);
    args
}

/// A prefill node's settings, for tests of what it refuses.
#[must_use]
pub fn prefill_config() -> prefill_node::Config {
    prefill_node::Config::local(args())
}

/// Starts a prefill node.
///
/// # Errors
/// When it refuses its settings.
///
/// # Panics
/// When no certificate can be made.
pub async fn start_prefill(
    config: &prefill_node::Config,
    authority: &Authority,
) -> Result<Runtime, StartError> {
    let identity = authority.issue("prefill").expect("a certificate");
    let served = std::sync::Arc::new(Served::on_host(loaded()));
    prefill_node::start(config, served, &identity, Shutdown::new(GRACE)).await
}

impl Faces {
    /// Both nodes, with settings changed by `adjust`, once their faces are ready.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start(adjust: impl FnOnce(&mut prefill_node::Config, &mut decode_node::Config)) -> Self {
        let (mut prefill, mut decode) = (prefill_config(), decode_node::Config::local(args()));
        adjust(&mut prefill, &mut decode);
        let authority = Authority::new().expect("an authority");
        let identity = authority.issue("decode").expect("a certificate");
        let served = std::sync::Arc::new(Served::on_host(loaded()));
        let shutdown = Shutdown::new(GRACE);
        let decode = decode_node::start(&decode, served, &identity, shutdown).await.expect("decode starts");
        let prefill = start_prefill(&prefill, &authority).await.expect("prefill starts");
        Self::of(prefill, decode).await
    }

    /// Nodes that run already, once their faces are ready.
    ///
    /// # Panics
    /// When they do not get ready.
    pub async fn of(prefill: Runtime, decode: Runtime) -> Self {
        let faces = Self { prefill, decode, http: client() };
        faces.until_ready(&faces.prefill).await;
        faces.until_ready(&faces.decode).await;
        faces
    }

    async fn until_ready(&self, node: &Runtime) {
        let (url, deadline) = (url(node, "/ready"), Instant::now() + PATIENCE);
        loop {
            let answer = self.http.get(&url).send().await.expect("a face answers");
            if answer.status().is_success() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", answer.text().await.expect("a body"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a body to a node's face.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn post(&self, node: &Runtime, path: &str, body: &Value) -> Response {
        let sent = self.http.post(url(node, path)).header("x-request-id", "a-request").json(body).send();
        tokio::time::timeout(PATIENCE, sent).await.expect("answered in time").expect("the face answers")
    }

    /// The proxy's request to the prefill node, and what that says of the cache that it keeps.
    ///
    /// # Panics
    /// When it keeps none.
    pub async fn keep(&self, path: &str, body: &Value) -> (Answer, Value) {
        let mut first = body.clone();
        let fields = first.as_object_mut().expect("a body is an object");
        fields.remove("stream_options");
        if fields.contains_key("max_completion_tokens") {
            fields.insert("max_completion_tokens".into(), 1.into());
        }
        fields.insert("max_tokens".into(), 1.into());
        fields.insert("stream".into(), false.into());
        fields.insert(
            "kv_transfer_params".into(),
            json!({
                "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                "remote_block_ids": null, "remote_host": null, "remote_port": null,
            }),
        );
        let answer = self.post(&self.prefill, path, &first).await;
        assert_eq!(answer.headers()["x-request-id"], "a-request");
        let answer = whole(answer).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let params = answer.body["kv_transfer_params"].clone();
        assert!(params.is_object(), "{}", answer.body);
        (answer, params)
    }

    /// The proxy's request to the decode node.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn take(&self, path: &str, body: &Value, params: &Value) -> Answer {
        let mut second = body.clone();
        second["kv_transfer_params"] = params.clone();
        let answer = self.post(&self.decode, path, &second).await;
        assert_eq!(answer.headers()["x-request-id"], "a-request");
        if body["stream"] == true && answer.status().is_success() {
            return streamed(answer).await;
        }
        whole(answer).await
    }

    /// Both, as one request of a client's.
    ///
    /// # Panics
    /// When the prefill node keeps nothing, or the decode node does not answer.
    pub async fn proxied(&self, path: &str, body: &Value) -> Answer {
        let (_, params) = self.keep(path, body).await;
        self.take(path, body, &params).await
    }

    /// Waits until nothing is kept, and nothing is held on either node.
    ///
    /// # Panics
    /// When something stays.
    pub async fn until_free(&self) {
        let is_free = || {
            metric(&self.prefill.registry, "kvferry_prefill_kv_leases_active") == 0.0
                && metric(&self.prefill.registry, "vllm:kv_cache_usage_perc") == 0.0
                && metric(&self.decode.registry, "kvferry_decode_kv_used_tokens") == 0.0
        };
        eventually("leases and slots are free", is_free).await;
    }

    /// Stops both nodes and waits for their end.
    ///
    /// # Panics
    /// When they do not end in time.
    pub async fn stop(self) {
        for node in [&self.prefill, &self.decode] {
            node.shutdown.drain();
            tokio::time::timeout(PATIENCE, node.finished()).await.expect("stopped in time");
        }
    }
}

fn url(node: &Runtime, path: &str) -> String {
    format!("http://{}{path}", node.http_address.expect("the node has a face"))
}

fn text_of(choice: &Value) -> &str {
    let texts = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
    texts.into_iter().find_map(Value::as_str).unwrap_or_default()
}

/// An answer that comes whole.
///
/// # Panics
/// When it does not come, or is no JSON.
pub async fn whole(answer: Response) -> Answer {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.expect("an object");
    Answer { status, text: text_of(&body["choices"][0]).to_owned(), body }
}

async fn streamed(answer: Response) -> Answer {
    let bytes = tokio::time::timeout(PATIENCE, answer.bytes()).await.expect("in time").expect("a stream");
    let events = Decoder::default().push(&bytes).expect("server-sent events");
    assert_eq!(events.last(), Some(&Event::Done), "the stream ends well");
    let chunks = events.iter().filter_map(|event| match event {
        Event::Data(json) => Some(serde_json::from_str::<Value>(json).expect("a chunk")),
        Event::Done => None,
    });
    let chunks: Vec<_> = chunks.collect();
    let text = chunks.iter().map(|chunk| text_of(&chunk["choices"][0])).collect();
    Answer { status: 200, text, body: chunks.last().expect("a chunk at least").clone() }
}
