//! Length-prefixed frames: how messages and KV bytes sit on a stream. Pure bytes in and out; no I/O, no clock.
//!
//! A frame is a 5-byte header, kind (u8) and payload length (u32, little endian), then the payload. The decoder
//! is fed whatever pieces the network delivers and gives the same frames for every way of cutting the bytes. It
//! checks a length before it sets memory aside, and its memory grows with what has arrived, never with what was
//! merely announced.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before each payload: kind and length.
pub const HEADER_BYTES: usize = 5;
/// Longest message payload. A prompt of 128 Ki tokens takes at most 640 KiB as postcard varints.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Longest data payload; senders should stay far below it, so that a receiver can work while bytes arrive.
pub const MAX_DATA_BYTES: usize = 64 << 20;

const KIND_MESSAGE: u8 = 1;
const KIND_DATA: u8 = 2;

/// What a receiver gets: a typed message, opaque bytes, or the clean end of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// A data frame.
    Data(Bytes),
    /// The sender finished the stream after a whole frame.
    End,
}

/// A frame whose message is still encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawFrame {
    /// Payload of a message frame, for [`decode_message`].
    Message(Bytes),
    /// Payload of a data frame.
    Data(Bytes),
}

/// Bytes that are not frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length above the limit of its kind.
    #[error("frame of {announced} bytes announced, the limit is {limit}")]
    TooLarge {
        /// Length in the header.
        announced: usize,
        /// [`MAX_MESSAGE_BYTES`] or [`MAX_DATA_BYTES`].
        limit: usize,
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {kind}")]
    UnknownKind {
        /// First byte of the header.
        kind: u8,
    },
    /// A payload that is not the expected message.
    #[error("message of {length} bytes cannot be read: {reason}")]
    Message {
        /// Length of the payload.
        length: usize,
        /// What the decoder or encoder said.
        reason: String,
    },
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame, {missing} bytes missing at least")]
    Truncated {
        /// Bytes that were certainly still to come.
        missing: usize,
    },
}

/// Writes a message as one whole frame, header included.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`MAX_MESSAGE_BYTES`]; [`FrameError::Message`] if the type cannot be encoded.
pub fn encode_message(message: &impl Serialize) -> Result<Bytes, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER_BYTES])
        .map_err(|e| FrameError::Message { length: 0, reason: e.to_string() })?;
    let header = header(KIND_MESSAGE, frame.len() - HEADER_BYTES, MAX_MESSAGE_BYTES)?;
    frame[..HEADER_BYTES].copy_from_slice(&header);
    Ok(frame.into())
}

/// Reads the payload of a message frame; every byte must belong to the message.
///
/// # Errors
/// [`FrameError::Message`] if the bytes are not an `M`, or if bytes are left over.
pub fn decode_message<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    let fail = |reason: String| FrameError::Message { length: payload.len(), reason };
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(fail(format!("{} bytes left over", rest.len()))),
        Err(e) => Err(fail(e.to_string())),
    }
}

/// Header of a data frame with a payload of `length` bytes, which the caller writes after it.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`MAX_DATA_BYTES`].
pub fn data_header(length: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    header(KIND_DATA, length, MAX_DATA_BYTES)
}

fn header(kind: u8, length: usize, limit: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    let too_large = FrameError::TooLarge { announced: length, limit };
    match u32::try_from(length) {
        Ok(short) if length <= limit => {
            let [a, b, c, d] = short.to_le_bytes();
            Ok([kind, a, b, c, d])
        }
        _ => Err(too_large),
    }
}

/// Turns arriving bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    arrived: VecDeque<Bytes>,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    body: Option<Body>,
}

/// A frame whose header was read and checked.
#[derive(Debug)]
struct Body {
    kind: u8,
    length: usize,
    payload: BytesMut,
}

impl Decoder {
    /// Adds bytes in the order in which they arrived.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.arrived.push_back(bytes);
        }
    }

    /// The next whole frame, or none until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`] or [`FrameError::TooLarge`]; the stream is useless from there on.
    pub fn next_frame(&mut self) -> Result<Option<RawFrame>, FrameError> {
        if self.body.is_none() && !self.read_header()? {
            return Ok(None);
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(payload) = body.fill(&mut self.arrived) else { return Ok(None) };
        let frame =
            if body.kind == KIND_MESSAGE { RawFrame::Message(payload) } else { RawFrame::Data(payload) };
        self.body = None;
        Ok(Some(frame))
    }

    /// Whether a frame has begun and is not complete. Asked after [`Self::next_frame`] gave none.
    pub fn is_mid_frame(&self) -> bool {
        self.header_len > 0 || self.body.is_some() || !self.arrived.is_empty()
    }

    /// To be asked when the stream has ended and [`Self::next_frame`] gives none.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if the stream ended inside a frame.
    pub fn end(&self) -> Result<(), FrameError> {
        match &self.body {
            Some(body) => Err(FrameError::Truncated { missing: body.length - body.payload.len() }),
            None if self.is_mid_frame() => {
                Err(FrameError::Truncated { missing: HEADER_BYTES - self.header_len })
            }
            None => Ok(()),
        }
    }

    /// True once a header is complete and checked; its bytes are then consumed.
    fn read_header(&mut self) -> Result<bool, FrameError> {
        while self.header_len < HEADER_BYTES {
            let Some(front) = self.arrived.front_mut() else { return Ok(false) };
            let take = front.len().min(HEADER_BYTES - self.header_len);
            front.copy_to_slice(&mut self.header[self.header_len..self.header_len + take]);
            self.header_len += take;
            if front.is_empty() {
                self.arrived.pop_front();
            }
        }
        let [kind, length @ ..] = self.header;
        let limit = match kind {
            KIND_MESSAGE => MAX_MESSAGE_BYTES,
            KIND_DATA => MAX_DATA_BYTES,
            _ => return Err(FrameError::UnknownKind { kind }),
        };
        let announced = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(FrameError::TooLarge { announced, limit });
        }
        self.header_len = 0;
        self.body = Some(Body { kind, length: announced, payload: BytesMut::new() });
        Ok(true)
    }
}

impl Body {
    /// Moves arrived bytes into the payload; gives it when complete. A payload that lies in one piece is not copied.
    fn fill(&mut self, arrived: &mut VecDeque<Bytes>) -> Option<Bytes> {
        while self.payload.len() < self.length {
            let missing = self.length - self.payload.len();
            let front = arrived.front_mut()?;
            let take = front.len().min(missing);
            let piece = front.split_to(take);
            if front.is_empty() {
                arrived.pop_front();
            }
            if take == self.length {
                return Some(piece);
            }
            if self.payload.capacity() - self.payload.len() < take {
                // Doubling, but never beyond the frame: at most twice what has arrived is ever held.
                self.payload.reserve(missing.min(take.max(self.payload.len())));
            }
            self.payload.extend_from_slice(&piece);
        }
        Some(std::mem::take(&mut self.payload).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_what_has_arrived_not_what_was_announced() {
        let mut decoder = Decoder::default();
        decoder.push(Bytes::copy_from_slice(&data_header(MAX_DATA_BYTES).unwrap()));
        assert_eq!(decoder.next_frame(), Ok(None));
        let held = |decoder: &Decoder| decoder.body.as_ref().unwrap().payload.capacity();
        assert_eq!(held(&decoder), 0);
        let mut arrived = 0;
        for _ in 0..1000 {
            arrived += 1200;
            decoder.push(Bytes::from(vec![0; 1200]));
            assert_eq!(decoder.next_frame(), Ok(None));
            assert!(held(&decoder) <= 2 * arrived + 64, "{} held for {arrived}", held(&decoder));
        }
    }

    #[test]
    fn a_payload_in_one_piece_is_not_copied() {
        let piece = Bytes::from([&data_header(4).unwrap()[..], b"data"].concat());
        let place = piece[HEADER_BYTES..].as_ptr();
        let mut decoder = Decoder::default();
        decoder.push(piece);
        let Ok(Some(RawFrame::Data(payload))) = decoder.next_frame() else { panic!("no frame") };
        assert_eq!((payload.as_ptr(), &payload[..]), (place, &b"data"[..]));
    }
}
