//! Coded chunks into a session's cache: decodes them in order on a thread of its own and checks that every token of the
//! prompt arrived exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use codec::{Coding, Limits};
use node::Loaded;
use node::failure::{internal, transfer};
use node::prompt::import;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transport::message::Failure;

use crate::session::Session;

/// Chunks that may wait to be decoded; the reader of the stream waits beyond that.
const CHUNKS_AHEAD: usize = 8;

/// A session whose chunks were all decoded, and how long that took.
pub(crate) type Imported = Result<(Session, Duration), Failure>;

/// Starts importing chunks coded as announced into `session`; the import ends when the sender is dropped, or early at a
/// bad chunk.
pub(crate) fn start(
    loaded: Arc<Loaded>,
    session: Session,
    coding: Coding,
) -> (mpsc::Sender<Bytes>, JoinHandle<Imported>) {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let work = tokio::task::spawn_blocking(move || import_all(&loaded, session, coding, chunks));
    (sender, work)
}

fn import_all(
    loaded: &Loaded,
    mut session: Session,
    coding: Coding,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Imported {
    let limits = Limits { max_tokens: session.prompt_tokens, ..Limits::default() };
    let decoder = loaded.decoder(limits).map_err(internal)?.announced(coding);
    let (mut spent, mut next) = (Duration::ZERO, 0);
    while let Some(chunk) = chunks.blocking_recv() {
        let started = Instant::now();
        let block = decoder.decode(&chunk).map_err(|e| transfer(format!("chunk at token {next}: {e}")))?;
        let end = block.first_token + block.tokens;
        if block.first_token != next || end > session.prompt_tokens {
            let (first, prompt) = (block.first_token, session.prompt_tokens);
            let message =
                format!("a chunk holds tokens {first}..{end}, token {next} of {prompt} was to come");
            return Err(transfer(message));
        }
        import(&mut session.slot.cache, &block).map_err(internal)?;
        spent += started.elapsed();
        next = end;
    }
    if next != session.prompt_tokens {
        return Err(transfer(format!("only {next} of {} tokens arrived", session.prompt_tokens)));
    }
    session.slot.cache.set_len(next).map_err(internal)?;
    Ok((session, spent))
}
