//! Coded chunks into a session's cache: decodes them in order on a thread of its own and checks that every token of the
//! prompt arrived exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use codec::Coding;
use node::Served;
use node::failure::{internal, transfer};
use node::units::ms;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::field::Empty;
use tracing::{Span, debug, info_span};
use transport::message::Failure;

use crate::session::Session;

/// Chunks that may wait to be decoded; the reader of the stream waits beyond that.
const CHUNKS_AHEAD: usize = 8;

/// A session whose chunks were all decoded, and how long that took.
pub(crate) type Imported = Result<(Session, Duration), Failure>;

/// Starts importing chunks coded as announced into `session`; the import ends when the sender is dropped, or early at a
/// bad chunk.
pub(crate) fn start(
    served: Arc<Served>,
    session: Session,
    coding: Coding,
) -> (mpsc::Sender<Bytes>, JoinHandle<Imported>) {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let span = Span::current();
    let work = tokio::task::spawn_blocking(move || {
        let traced = info_span!(target: TARGET, parent: &span, "decode cache", decode_ms = Empty);
        traced.in_scope(|| import_all(&served, session, coding, chunks))
    });
    (sender, work)
}

fn import_all(
    served: &Served,
    mut session: Session,
    coding: Coding,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Imported {
    let importer = served.importer(coding, session.prompt_tokens)?;
    let (mut spent, mut next) = (Duration::ZERO, 0);
    while let Some(chunk) = chunks.blocking_recv() {
        let started = Instant::now();
        next = importer.import(&chunk, &mut session.slot.cache, next, session.prompt_tokens)?;
        spent += started.elapsed();
        debug!(next, "chunk decoded");
    }
    if next != session.prompt_tokens {
        return Err(transfer(format!("only {next} of {} tokens arrived", session.prompt_tokens)));
    }
    Span::current().record("decode_ms", ms(spent));
    session.slot.cache.set_len(next).map_err(internal)?;
    Ok((session, spent))
}
