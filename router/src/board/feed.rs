//! The board over HTTP: `GET /board` once, `GET /board/events` as it changes. Each listener is told what is new to it a
//! few times per second; one that reads slowly is told less often and more at a time, since nothing is queued for it
//! but the event under way.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;

use crate::app::App;
use crate::board::Board;
use crate::board::view::{Change, LinkView, NodeView, Snapshot};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::model::RouterModel;
use crate::sse;

/// Feeds served at once: each costs a look at the board per tick.
const MAX_LISTENERS: usize = 32;
/// Between two looks at the board.
const TICK: Duration = Duration::from_millis(250);
/// After so long without an event a comment is sent, so that proxies and clients see that the feed lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where the board's readers get it; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    board: Board,
    cluster: Cluster,
    model: String,
    max_model_len: u32,
    listeners: Arc<Semaphore>,
}

/// What a listener has been told.
#[derive(Debug, Default)]
struct Told {
    version: u64,
    tokens: HashMap<u64, u32>,
    nodes: BTreeMap<String, NodeView>,
    links: Vec<LinkView>,
}

type Sink = mpsc::Sender<Result<Bytes, Infallible>>;

impl Feed {
    pub(crate) fn new(board: Board, cluster: Cluster, model: &RouterModel) -> Self {
        let listeners = Arc::new(Semaphore::new(MAX_LISTENERS));
        let (name, max_model_len) = (model.served_name.clone(), model.max_model_len);
        Self { board, cluster, model: name, max_model_len, listeners }
    }

    /// Everything, and the listener that has been told it.
    fn snapshot(&self) -> (Snapshot, Told) {
        let mut told = Told::default();
        let Change { now, totals, nodes, links, requests, .. } = self.change(&mut told);
        let snapshot = Snapshot {
            now,
            model: self.model.clone(),
            max_model_len: self.max_model_len,
            totals: totals.expect("the first read has the totals; this is a bug"),
            nodes,
            links: links.unwrap_or_default(),
            requests,
        };
        (snapshot, told)
    }

    /// What is new to a listener, which knows it from now on.
    fn change(&self, told: &mut Told) -> Change {
        let read = self.board.read(told.version);
        told.version = read.version;
        let (nodes, gone) = told.nodes(self.cluster.nodes());
        let tokens = told.tokens(read.tokens);
        let links = Some(self.cluster.links()).filter(|links| *links != told.links);
        if let Some(links) = &links {
            told.links.clone_from(links);
        }
        let (now, requests) = (self.board.now(), read.requests);
        Change { now, totals: read.totals, nodes, gone, links, requests, tokens }
    }
}

impl Told {
    /// New and changed nodes, and the ids of those that have left.
    fn nodes(&mut self, present: Vec<NodeView>) -> (Vec<NodeView>, Vec<String>) {
        let present: BTreeMap<String, NodeView> =
            present.into_iter().map(|node| (node.id.clone(), node)).collect();
        let gone = self.nodes.keys().filter(|id| !present.contains_key(*id)).cloned().collect();
        let news = present.iter().filter(|(id, node)| self.nodes.get(*id) != Some(*node));
        let news = news.map(|(_, node)| node.clone()).collect();
        self.nodes = present;
        (news, gone)
    }

    /// The counts that have risen. Those of requests that are told as a whole are told again once, which does no harm.
    fn tokens(&mut self, running: Vec<(u64, u32)>) -> Vec<(u64, u32)> {
        let known: HashMap<u64, u32> = running.iter().copied().collect();
        let before = std::mem::replace(&mut self.tokens, known);
        running.into_iter().filter(|(number, count)| before.get(number) != Some(count)).collect()
    }
}

/// `GET /board`.
pub(crate) async fn show(State(app): State<Arc<App>>) -> Response {
    let no_store = [(axum::http::header::CACHE_CONTROL, "no-store")];
    (no_store, Json(app.feed.snapshot().0)).into_response()
}

/// `GET /board/events`.
pub(crate) async fn events(State(app): State<Arc<App>>) -> Result<Response, Error> {
    let full = |_| Error::TooManyListeners { limit: MAX_LISTENERS };
    let permit = Arc::clone(&app.feed.listeners).try_acquire_owned().map_err(full)?;
    let (sink, events) = mpsc::channel(1);
    let (feed, draining, deadline) = (app.feed.clone(), app.shutdown.draining(), app.client_deadline);
    app.shutdown.spawn(async move {
        let closed = sink.clone();
        tokio::select! {
            () = listen(&feed, &sink, deadline, permit) => {}
            () = closed.closed() => {}
            () = draining => {}
        }
    });
    Ok(sse::response(ReceiverStream::new(events)))
}

/// Tells one listener everything and then the news, until it has not read for `deadline`.
async fn listen(feed: &Feed, sink: &Sink, deadline: Duration, _permit: OwnedSemaphorePermit) {
    let (snapshot, mut told) = feed.snapshot();
    let mut event = Some(encode("snapshot", &snapshot));
    drop(snapshot);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut spoke = Instant::now();
    loop {
        if let Some(event) = event.take() {
            if sink.send_timeout(Ok(event.into()), deadline).await.is_err() {
                return;
            }
            spoke = Instant::now();
        }
        tick.tick().await;
        let change = feed.change(&mut told);
        if !change.is_empty() {
            event = Some(encode("change", &change));
        } else if spoke.elapsed() >= HEARTBEAT {
            event = Some(":\n\n".to_owned());
        }
    }
}

fn encode(name: &str, value: &impl Serialize) -> String {
    let data = openai::sse::encode(value).expect("the board has string keys and no maps; this is a bug");
    format!("event: {name}\n{data}")
}
