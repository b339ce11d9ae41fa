//! The answer to a request whose cache is to be kept: one token, and where the cache is for the request that goes on from it.

use std::sync::Arc;

use axum::response::Response;
use openai::Usage;
use tracing::info;
use transport::ids::RequestId;

use super::Kind;
use super::ask::Ask;
use super::frame::{Ending, Frame, Whole};
use crate::app::App;
use crate::board::Sizes;
use crate::error::Error;
use crate::generation::Text;
use crate::handover;
use crate::metrics::Record;
use crate::relay::{Drawn, Job};
use crate::sequences::{Item, sampling};

/// Runs the prompt and says where its cache is kept.
pub(super) async fn answer(
    app: &Arc<App>,
    id: RequestId,
    kind: Kind,
    ask: Ask,
    record: &mut Record,
) -> Result<Response, Error> {
    let frame = Frame::new(kind, id, &ask);
    let prompt = &ask.prompts[0];
    let (prompt_tokens, entry) = (prompt.tokens(), record.entry());
    entry.admitted(id, Sizes { sequences: 1, prompt_tokens, max_tokens: 1 });
    let keeping = app.relay.keep(&job(id, &ask, record)).await?;
    let read = std::time::Instant::now();
    let kept = &keeping.kept;
    let cached_tokens = kept.stats.cached_tokens;
    let mut course = app.metrics.kept(record.arrived(), prompt_tokens, &kept.stats);
    let first = Drawn { id: kept.first_token, logprobs: kept.logprobs.clone() };
    let text = Text::new(&app.tokenizer, prompt.echo.clone(), ask.sampling.stop.clone());
    let piece = text.only(first, kept.reason);
    course.token();
    entry.token();
    piece.end.into_iter().for_each(|reason| course.finished(reason));
    info!(prompt_tokens, prefill_node = %keeping.holder.node, lease = %kept.lease, "kept for a decode node");
    let kv_transfer_params = Some(handover::params(keeping, &ask, id)?);
    let mut whole = Whole::new(1);
    whole.add(Item { index: 0, prompt_tokens, cached_tokens, piece, read });
    let ending =
        Ending { usage: Usage::new(prompt_tokens, 1, cached_tokens), transfer: None, kv_transfer_params };
    record.end("ok", 200);
    Ok(frame.whole(whole, ending))
}

fn job(id: RequestId, ask: &Ask, record: &Record) -> Job {
    Job {
        request: id,
        token_ids: ask.prompts[0].token_ids.clone(),
        max_tokens: 1,
        sampling: sampling(&ask.sampling, ask.logprobs),
        kv: ask.kv,
        pins: ask.pins.clone(),
        kept: None,
        entry: record.entry(),
        arrived: Some(record.arrived()),
    }
}
