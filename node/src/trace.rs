//! A request's trace on its way through a node: what came in a message becomes the parent of the node's spans.

use service::trace::Context;
use tracing::Span;
use transport::message::TraceContext;

/// Makes a fresh span, not entered yet, part of the trace that came with a message.
pub fn adopt(span: &Span, sent: Option<TraceContext>) {
    if let Some(context) = sent {
        received(context).adopt(span, None);
    }
}

/// Notes on a span that it takes what was sent under `sent`.
pub fn link(span: &Span, sent: Option<TraceContext>) {
    if let Some(context) = sent {
        received(context).link(span);
    }
}

/// A span for the next node; none while nothing is exported.
#[must_use]
pub fn context(span: &Span) -> Option<TraceContext> {
    let Context { trace_id, span_id, flags } = Context::of(span)?;
    Some(TraceContext { trace_id, span_id, flags })
}

fn received(TraceContext { trace_id, span_id, flags }: TraceContext) -> Context {
    Context { trace_id, span_id, flags }
}
