//! An answer as server-sent events: one token per event, then the usage where it was asked for, then `[DONE]`. After
//! the first event an error can only be an event itself, and no `[DONE]` follows it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use openai::sse;
use service::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{Instrument, info};

use crate::api::Answer;

/// Events that may wait for a client to read them; beyond it the generation waits.
const QUEUED_EVENTS: usize = 32;

type Sink = mpsc::Sender<Result<Bytes, Infallible>>;

/// The client does not take what it is sent.
struct ClientGone;

/// Starts the stream. It goes on in a task, which the shutdown waits for and which ends when the body is dropped.
pub(crate) fn respond(answer: Answer, shutdown: &Shutdown, client_deadline: Duration) -> Response {
    let (sink, events) = mpsc::channel(QUEUED_EVENTS);
    shutdown.spawn(run(answer, sink, client_deadline).in_current_span());
    response(events)
}

/// The answer whose body is these events.
pub(crate) fn response(events: mpsc::Receiver<Result<Bytes, Infallible>>) -> Response {
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(events)));
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
                let is_last = item.piece.end.is_some() && answer.sequences.is_over();
                let mut event = answer.frame.chunk(item);
                if is_last {
                    answer.succeeded();
                    event += &answer.frame.usage(&answer.sequences);
                    event += sse::DONE;
                }
                send(sink, event, deadline).await?;
                if is_last {
                    return Ok(());
                }
            }
            // The last piece has ended the stream already.
            Ok(None) => return Ok(()),
            Err(error) => {
                answer.failed(&error);
                return send(sink, answer.frame.error(&error), deadline).await;
            }
        }
    }
}

async fn send(sink: &Sink, events: String, deadline: Duration) -> Result<(), ClientGone> {
    sink.send_timeout(Ok(events.into()), deadline).await.map_err(|_unsent| ClientGone)
}
