//! How the answer is sent: whole or as a stream, with what beside the text.

use crate::error::InvalidRequest;
use crate::fields::Fields;

/// How the answer is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Whether tokens are sent as they come.
    pub stream: bool,
    /// Whether a stream ends with a usage chunk.
    pub include_usage: bool,
    /// Whether every chunk of a stream carries the usage up to it.
    pub continuous_usage: bool,
}

pub(super) fn read(fields: &mut Fields) -> Result<Delivery, InvalidRequest> {
    const PARAM: &str = "stream_options";
    let stream = fields.bool("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object(PARAM, "stream_options.")? else {
        return Ok(Delivery { stream, ..Delivery::default() });
    };
    if !stream {
        return Err(InvalidRequest::Dependent { param: PARAM.into(), needs: "stream is true" });
    }
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    // As vLLM has it: the usage of every chunk is an addition to the usage at the end.
    let continuous_usage = options.bool("continuous_usage_stats")?.unwrap_or(false) && include_usage;
    Ok(Delivery { stream, include_usage, continuous_usage })
}
