//! A client as lean as can be, so that it takes little of the time that the router is measured with: HTTP/1.1 over a
//! connection of its own, one streamed completion after another.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use openai::sse::{Decoder, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport::ids::RequestId;

use super::track::{Samples, Track, Tracked, Tracks, seconds};

/// Longest wait for the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 16 << 10;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// The chunk that ends a body (RFC 9112, section 7.1), behind the end of the one before.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// A connection to the router.
#[derive(Debug)]
pub(super) struct Client {
    connection: TcpStream,
    router: SocketAddr,
    /// What the last read brought, and the last bytes of all reads of an answer.
    buffer: Vec<u8>,
    tail: Vec<u8>,
    decoder: Decoder,
}

/// What every request says.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) prompt: String,
    pub(super) max_tokens: u32,
}

/// What one read brought, and when.
struct Arrived {
    at: Instant,
    events: Vec<Event>,
}

impl Client {
    pub(super) async fn connect(router: SocketAddr) -> anyhow::Result<Self> {
        let connection = TcpStream::connect(router).await.context("a client cannot reach the router")?;
        connection.set_nodelay(true)?;
        let (buffer, tail, decoder) = (Vec::with_capacity(4096), Vec::new(), Decoder::default());
        Ok(Self { connection, router, buffer, tail, decoder })
    }

    /// Sends a request and waits for its first event, after which the stub node is silent. The stream is open until both
    /// the client and what is returned are dropped.
    pub(super) async fn begin(&mut self, ask: &Ask, tracks: &Tracks) -> anyhow::Result<Tracked> {
        let tracked = tracks.begin(RequestId::random(), None);
        self.send(ask, tracked.id).await?;
        let mut arrived = self.head().await?;
        while arrived.events.is_empty() {
            arrived = self.read().await?;
        }
        Ok(tracked)
    }

    /// One request from its first byte to its last. Times of what began behind `from` are added to the samples.
    pub(super) async fn complete(
        &mut self,
        ask: &Ask,
        tracks: &Tracks,
        from: Instant,
        samples: &mut Samples,
    ) -> anyhow::Result<()> {
        let tracked = tracks.begin(RequestId::random(), Some(ask.max_tokens));
        let asked = Instant::now();
        self.send(ask, tracked.id).await?;
        let mut arrived = self.head().await?;
        if asked >= from {
            called(&tracked.track, asked, samples)?;
        }
        let (mut seen, mut done) = (0, false);
        loop {
            for event in &arrived.events {
                match event {
                    Event::Done => done = true,
                    Event::Data(_) => {
                        samples.event(&tracked.track, seen, from, arrived.at)?;
                        seen += 1;
                    }
                }
            }
            if done && self.tail.ends_with(LAST_CHUNK) {
                break;
            }
            arrived = self.read().await?;
        }
        ensure!(seen == ask.max_tokens as usize, "{seen} events for {} tokens", ask.max_tokens);
        Ok(())
    }

    /// Writes a request at once, head and body.
    async fn send(&mut self, ask: &Ask, id: RequestId) -> anyhow::Result<()> {
        let Ask { model, prompt, max_tokens } = ask;
        let body = serde_json::json!({
            "model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true, "stream": true,
        });
        let (body, host) = (body.to_string(), self.router);
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\ncontent-length: {}\r\n\r\n",
            body.len(),
        );
        Ok(self.connection.write_all((head + &body).as_bytes()).await?)
    }

    /// Reads an answer's head, and gives the events that came with it.
    async fn head(&mut self) -> anyhow::Result<Arrived> {
        self.decoder = Decoder::default();
        self.tail.clear();
        let mut head = Vec::new();
        let (at, body) = loop {
            let at = self.fill().await?;
            head.extend_from_slice(&self.buffer);
            if let Some(end) = head.windows(HEAD_END.len()).position(|window| window == HEAD_END) {
                break (at, head.split_off(end + HEAD_END.len()));
            }
            ensure!(
                head.len() <= MAX_HEAD_BYTES,
                "the head of an answer is longer than {MAX_HEAD_BYTES} bytes"
            );
        };
        if !head.starts_with(b"HTTP/1.1 200 ") {
            let status =
                String::from_utf8_lossy(head.split(|&byte| byte == b'\r').next().unwrap_or_default());
            bail!("the router answered {status}: {}", String::from_utf8_lossy(&body));
        }
        let events = self.parse(&body)?;
        Ok(Arrived { at, events })
    }

    async fn read(&mut self) -> anyhow::Result<Arrived> {
        let at = self.fill().await?;
        let buffer = std::mem::take(&mut self.buffer);
        let events = self.parse(&buffer);
        self.buffer = buffer;
        Ok(Arrived { at, events: events? })
    }

    /// The next bytes into the buffer; says when they were there.
    async fn fill(&mut self) -> anyhow::Result<Instant> {
        self.buffer.clear();
        let read = tokio::time::timeout(PATIENCE, self.connection.read_buf(&mut self.buffer)).await;
        let at = Instant::now();
        let read = read.context("the router fell silent in the middle of an answer")??;
        ensure!(read > 0, "the router closed a connection in the middle of an answer");
        Ok(at)
    }

    /// Every event is in a chunk of its own, so the sizes between them are lines that mean nothing to the decoder.
    fn parse(&mut self, body: &[u8]) -> anyhow::Result<Vec<Event>> {
        self.tail.extend_from_slice(&body[body.len().saturating_sub(LAST_CHUNK.len())..]);
        self.tail.drain(..self.tail.len().saturating_sub(LAST_CHUNK.len()));
        Ok(self.decoder.push(body)?)
    }
}

/// Adds what a request took until the prefill node had it.
fn called(track: &Track, asked: Instant, samples: &mut Samples) -> anyhow::Result<()> {
    let noted = (track.reserve.get(), track.reserved.get(), track.prefill.get());
    let (Some(&reserve), Some(&reserved), Some(&prefill)) = noted else {
        bail!("a request was answered without one of the stub nodes");
    };
    samples.prefill_call.push(seconds(asked, prefill));
    samples.reserve.push(seconds(asked, reserve));
    samples.prefill.push(seconds(reserved, prefill));
    Ok(())
}

impl Samples {
    /// Adds what a token took from its node to its client.
    fn event(&mut self, track: &Track, token: usize, from: Instant, at: Instant) -> anyhow::Result<()> {
        let handed = track.handed(token).context("an event came for which there was no token")?;
        if handed >= from {
            let of = if token == 0 { &mut self.first_token } else { &mut self.token };
            of.push(seconds(handed, at));
        }
        Ok(())
    }
}
