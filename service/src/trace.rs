//! Traces: which request a span belongs to, over process borders.
//!
//! Spans for traces carry the target [`TARGET`]; they go to the OTLP exporter and never into log lines, so that while
//! no exporter is set up such a span is one load of an atomic. A [`Context`] is what W3C calls a `traceparent`: taken from a
//! client, passed on in the cluster's messages, adopted by the spans of the next process.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Target of spans that are meant for traces and not for logs.
pub const TARGET: &str = "trace";

/// Longest `tracestate` that is kept; W3C asks for 512 characters at least.
const MAX_TRACESTATE: usize = 512;

static ON: AtomicBool = AtomicBool::new(false);

/// A span as another process knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span, parent of what follows.
    pub span_id: [u8; 8],
    /// W3C trace flags; the lowest bit says that the trace is recorded.
    pub flags: u8,
}

/// Whether spans are exported.
#[must_use]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

pub(crate) fn turn_on() {
    ON.store(true, Ordering::Relaxed);
}

impl Context {
    /// Reads a `traceparent` header; none where it is malformed, as W3C asks.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut fields = traceparent.trim().split('-');
        let [version] = hex::<1>(fields.next()?)?;
        let context = Self {
            trace_id: hex(fields.next()?)?,
            span_id: hex(fields.next()?)?,
            flags: hex::<1>(fields.next()?)?[0],
        };
        // Later versions may append fields; version 255 is forbidden.
        let is_known = if version == 0 { fields.next().is_none() } else { version != 0xff };
        (is_known && context.is_valid()).then_some(context)
    }

    /// The context of an exported span; none while nothing is exported.
    #[must_use]
    pub fn of(span: &Span) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let context = span.context();
        let span = context.span().span_context().clone();
        span.is_valid().then(|| Self {
            trace_id: span.trace_id().to_bytes(),
            span_id: span.span_id().to_bytes(),
            flags: span.trace_flags().to_u8(),
        })
    }

    /// Makes a fresh span, not entered yet, a child of this one. A `tracestate` that cannot be read is left out.
    pub fn adopt(self, span: &Span, tracestate: Option<&str>) {
        if is_on() && self.is_valid() {
            let parent = opentelemetry::Context::new().with_remote_span_context(self.remote(tracestate));
            // Fails for spans that are not exported, and they have no parent.
            drop(span.set_parent(parent));
        }
    }

    /// Notes on a span that it goes on with the work of this one, without being its child.
    pub fn link(self, span: &Span) {
        if is_on() && self.is_valid() {
            span.add_link(self.remote(None));
        }
    }

    fn is_valid(self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }

    fn remote(self, tracestate: Option<&str>) -> SpanContext {
        let state = tracestate.filter(|state| state.len() <= MAX_TRACESTATE);
        let state = state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
        let (trace, span) = (TraceId::from_bytes(self.trace_id), SpanId::from_bytes(self.span_id));
        SpanContext::new(trace, span, TraceFlags::new(self.flags), true, state)
    }
}

/// Marks a span as failed; costs nothing while nothing is exported.
pub fn fail(span: &Span, reason: &dyn std::fmt::Display) {
    if is_on() {
        span.set_status(Status::error(reason.to_string()));
    }
}

/// Lower-case hexadecimal digits of exactly N bytes.
fn hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let is_lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.as_bytes().iter().all(is_lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!((context.trace_id[0], context.trace_id[15]), (0x4b, 0x36));
        assert_eq!((context.span_id[0], context.span_id[7], context.flags), (0, 0xb7, 1));
    }

    #[test]
    fn a_later_version_may_have_more_fields() {
        let later = format!("01{}-anything", &GOOD[2..]);
        assert_eq!(Context::parse(&later), Context::parse(GOOD));
    }

    #[test]
    fn malformed_ones_are_not_taken() {
        let zero_trace = GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = GOOD.replace("00f067aa0ba902b7", &"0".repeat(16));
        let (upper, more) = (GOOD.to_uppercase(), format!("{GOOD}-00"));
        let (forbidden, short, cut) = (format!("ff{}", &GOOD[2..]), &GOOD[..54], GOOD.replace('-', ""));
        let euro = GOOD.replace("4b", "\u{20ac}");
        for bad in ["", "-", "00", &zero_trace, &zero_span, &upper, &more, &forbidden, short, &cut, &euro] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }
}
