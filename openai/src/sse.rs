//! Server-sent events as the API uses them: `data: <JSON>` and an empty line per event, `data: [DONE]` at the end
//! (WHATWG HTML, section 9.2). [`encode`] writes them, [`Decoder`] reads them back, for clients and tests.

use serde::Serialize;

/// The event that ends a stream that went well.
pub const DONE: &str = "data: [DONE]\n\n";

/// Room for one token's event, which then is written without growing.
const TYPICAL_BYTES: usize = 256;

/// Longest line that a [`Decoder`] accepts, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// One event with a JSON payload.
///
/// # Errors
/// If the value cannot be written as JSON, which no type of this crate causes.
pub fn encode(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut event = Vec::with_capacity(TYPICAL_BYTES);
    event.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut event, value)?;
    event.extend_from_slice(b"\n\n");
    Ok(String::from_utf8(event).expect("JSON is UTF-8; this is a bug"))
}

/// What a stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The payload of one event.
    Data(String),
    /// The end of a stream that went well.
    Done,
}

/// Bytes that are not server-sent events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A line without an end in sight.
    #[error("line longer than {limit} bytes")]
    TooLong {
        /// [`MAX_LINE_BYTES`].
        limit: usize,
    },
    /// A line that is not UTF-8.
    #[error("line is not UTF-8 from byte {at}")]
    NotUtf8 {
        /// Where the text ends.
        at: usize,
    },
}

/// Reads events from bytes as the network cuts them. One line per event, as [`encode`] writes; comments and other
/// fields are skipped.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes and gives the events they complete.
    ///
    /// # Errors
    /// [`DecodeError`]; the stream is useless from there on.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, DecodeError> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                return Err(DecodeError::TooLong { limit: MAX_LINE_BYTES });
            }
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                events.extend(parse(&self.line)?);
                self.line.clear();
            }
        }
        Ok(events)
    }
}

fn parse(line: &[u8]) -> Result<Option<Event>, DecodeError> {
    let line = std::str::from_utf8(line).map_err(|e| DecodeError::NotUtf8 { at: e.valid_up_to() })?;
    let Some(payload) = line.trim_end_matches(['\r', '\n']).strip_prefix("data:") else { return Ok(None) };
    let payload = payload.strip_prefix(' ').unwrap_or(payload);
    Ok(Some(if payload == "[DONE]" { Event::Done } else { Event::Data(payload.to_owned()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_for_every_way_of_cutting_the_bytes() {
        let text = "line\nbreak é";
        let stream = format!("{}: comment\r\n\r\n{DONE}", encode(&text).unwrap());
        let expected = vec![Event::Data(serde_json::to_string(text).unwrap()), Event::Done];
        for size in 1..=stream.len() {
            let mut decoder = Decoder::default();
            let events: Vec<_> =
                stream.as_bytes().chunks(size).flat_map(|bytes| decoder.push(bytes).unwrap()).collect();
            assert_eq!(events, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&vec![b'x'; MAX_LINE_BYTES]), Ok(vec![]));
        assert_eq!(decoder.push(b"x"), Err(DecodeError::TooLong { limit: MAX_LINE_BYTES }));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(Decoder::default().push(b"data: \xff\n"), Err(DecodeError::NotUtf8 { at: 6 }));
    }
}
