//! An answer as server-sent events: one token per event, then the usage where it was asked for, then `[DONE]`. After
//! the first event an error can only be an event itself, and no `[DONE]` follows it.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openai::sse;
use prometheus_client::metrics::histogram::Histogram;
use service::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{Instrument, info};

use crate::api::Answer;

/// Events that may wait for a client to read them; beyond it the generation waits.
const QUEUED_EVENTS: usize = 32;

type Sink = mpsc::Sender<Sent>;

/// Events on their way to the client's connection.
struct Sent {
    bytes: Bytes,
    /// When the token was read from its node; none of an error.
    read: Option<Instant>,
}

/// The client does not take what it is sent.
struct ClientGone;

/// Starts the stream. It goes on in a task, which the shutdown waits for and which ends when the body is dropped.
pub(crate) fn respond(
    answer: Answer,
    shutdown: &Shutdown,
    client_deadline: Duration,
    token_seconds: Histogram,
) -> Response {
    let (sink, events) = mpsc::channel(QUEUED_EVENTS);
    // In a box, since every future around it would set aside room for it twice.
    let run = Box::pin(run(answer, sink, client_deadline));
    shutdown.spawn(run.in_current_span());
    response(ReceiverStream::new(events).map(move |Sent { bytes, read }| {
        read.into_iter().for_each(|read| token_seconds.observe(read.elapsed().as_secs_f64()));
        Ok(bytes)
    }))
}

/// The answer whose body is these events.
pub(crate) fn response(events: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Sends events until the end; a client that leaves ends the generation, even between two tokens.
async fn run(mut answer: Answer, sink: Sink, client_deadline: Duration) {
    let closed = sink.clone();
    let sent = tokio::select! {
        sent = events(&mut answer, &sink, client_deadline) => sent,
        () = closed.closed() => Err(ClientGone),
    };
    if let Err(ClientGone) = sent {
        info!("the client has left");
    }
}

async fn events(answer: &mut Answer, sink: &Sink, deadline: Duration) -> Result<(), ClientGone> {
    loop {
        match answer.next().await {
            Ok(Some(item)) => {
                let read = item.read;
                let is_last = item.piece.end.is_some() && answer.sequences.is_over();
                let mut event = answer.frame.chunk(item);
                if is_last {
                    answer.succeeded();
                    event += &answer.frame.usage(&answer.sequences);
                    event += sse::DONE;
                }
                send(sink, event, Some(read), deadline).await?;
                if is_last {
                    return Ok(());
                }
            }
            // The last piece has ended the stream already.
            Ok(None) => return Ok(()),
            Err(error) => {
                answer.failed(&error);
                return send(sink, answer.frame.error(&error), None, deadline).await;
            }
        }
    }
}

async fn send(
    sink: &Sink,
    events: String,
    read: Option<Instant>,
    deadline: Duration,
) -> Result<(), ClientGone> {
    let sent = Sent { bytes: events.into(), read };
    sink.send_timeout(sent, deadline).await.map_err(|_unsent| ClientGone)
}
