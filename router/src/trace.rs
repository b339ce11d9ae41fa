//! A request's trace: taken from the client, made where there is none, carried to the nodes. Nothing is done while no spans are
//! exported.

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use openai::KvTransfer;
use service::trace::{Context, TARGET, is_on};
use tracing::field::Empty;
use tracing::{Span, info_span};
use transport::ids::RequestId;
use transport::message::TraceContext;

/// The span of an API request, a child of what its `traceparent` names; a disabled one for everything else.
pub(crate) fn of_request(request: &Request, id: RequestId) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(route) = route.filter(|route| is_on() && route.starts_with("/v1/")) else { return Span::none() };
    let span = info_span!(
        target: TARGET, "request",
        otel.kind = "server", http.request.method = %request.method(), http.route = route, request = %id,
        http.response.status_code = Empty, gen_ai.request.model = Empty, gen_ai.usage.input_tokens = Empty,
        kv.source = Empty, kv.codec = Empty, kv.raw_bytes = Empty, kv.wire_bytes = Empty,
        kv.prefill_node = Empty, kv.decode_node = Empty,
    );
    if let Some(context) = header(request.headers(), "traceparent").as_deref().and_then(Context::parse) {
        context.adopt(&span, header(request.headers(), "tracestate").as_deref());
    }
    span
}

/// Notes on the current request's span what its cache was.
pub(crate) fn describe(model: &str, prompt_tokens: u32, transfer: &KvTransfer) {
    let span = Span::current();
    span.record("gen_ai.request.model", model).record("gen_ai.usage.input_tokens", prompt_tokens);
    let source = if transfer.codec.is_some() { "remote" } else { "local" };
    span.record("kv.source", source).record("kv.codec", transfer.codec.as_deref().unwrap_or("none"));
    span.record("kv.raw_bytes", transfer.raw_bytes).record("kv.wire_bytes", transfer.wire_bytes);
    span.record("kv.prefill_node", &*transfer.prefill_node).record("kv.decode_node", &*transfer.decode_node);
}

/// A span for a node; none while nothing is exported.
pub(crate) fn context(span: &Span) -> Option<TraceContext> {
    let Context { trace_id, span_id, flags } = Context::of(span)?;
    Some(TraceContext { trace_id, span_id, flags })
}

/// A header's only value, or for one that is a list, as `tracestate` is, all of them.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}
