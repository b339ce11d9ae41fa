//! The frame codec on any cutting of any bytes. No I/O.

use bytes::Bytes;
use proptest::prelude::*;
use transport::frame::{
    Decoder, FrameError, HEADER_BYTES, MAX_DATA_BYTES, MAX_MESSAGE_BYTES, RawFrame, data_header,
    decode_message, encode_message,
};
use transport::message::{Control, FromDecode, Hello, KvReply, KvStream, Request};

/// A message frame of a token list, or a data frame.
#[derive(Debug, Clone)]
enum Sent {
    Message(Vec<u32>),
    Data(Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        prop::collection::vec(any::<u32>(), 0..200).prop_map(Sent::Message),
        prop::collection::vec(any::<u8>(), 0..3000).prop_map(Sent::Data),
    ]
}

fn encode(frames: &[Sent]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    for frame in frames {
        match frame {
            Sent::Message(ids) => bytes.extend(encode_message(ids)?),
            Sent::Data(payload) => {
                bytes.extend(data_header(payload.len())?);
                bytes.extend(payload);
            }
        }
    }
    Ok(bytes)
}

/// Feeds `bytes`, cut into pieces of the given lengths over and over, and takes frames out after every piece.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<RawFrame>, FrameError> {
    let (mut decoder, mut frames, mut rest) = (Decoder::default(), Vec::new(), bytes);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap_or(&1)));
        decoder.push(Bytes::copy_from_slice(piece));
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        rest = after;
    }
    decoder.end()?;
    Ok(frames)
}

fn raw(frame: &Sent) -> Result<RawFrame, FrameError> {
    Ok(match frame {
        Sent::Message(ids) => RawFrame::Message(encode_message(ids)?.slice(HEADER_BYTES..)),
        Sent::Data(payload) => RawFrame::Data(payload.clone().into()),
    })
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_frames(
        frames in prop::collection::vec(sent(), 0..8),
        cuts in prop::collection::vec(1usize..2000, 1..20),
    ) {
        let expected: Vec<_> = frames.iter().map(raw).collect::<Result<_, _>>()?;
        prop_assert_eq!(decode(&encode(&frames)?, &cuts)?, expected);
    }

    #[test]
    fn every_truncation_is_noticed(frames in prop::collection::vec(sent(), 1..4), at in any::<prop::sample::Index>()) {
        let bytes = encode(&frames)?;
        let cut = at.index(bytes.len());
        let mut boundaries = vec![0];
        for frame in &frames {
            boundaries.push(boundaries[boundaries.len() - 1] + encode(std::slice::from_ref(frame))?.len());
        }
        match decode(&bytes[..cut], &[7]) {
            Ok(_) => prop_assert!(boundaries.contains(&cut)),
            Err(FrameError::Truncated { missing }) => {
                prop_assert!(!boundaries.contains(&cut));
                prop_assert!(missing > 0 && missing <= bytes.len() - cut);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn garbage_gives_frames_or_errors_and_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
        cuts in prop::collection::vec(1usize..300, 1..5),
    ) {
        let _ = decode(&bytes, &cuts);
        let _ = decode_message::<Request>(&bytes);
        let _ = decode_message::<Hello>(&bytes);
        let _ = decode_message::<Control>(&bytes);
        let _ = decode_message::<FromDecode>(&bytes);
        let _ = decode_message::<KvStream>(&bytes);
        let _ = decode_message::<KvReply>(&bytes);
    }
}

#[test]
fn limits_are_exact() {
    let header = |kind: u8, length: usize| [&[kind][..], &(length as u32).to_le_bytes()].concat();
    for (kind, limit) in [(1, MAX_MESSAGE_BYTES), (2, MAX_DATA_BYTES)] {
        assert!(
            matches!(decode(&header(kind, limit), &[5]), Err(FrameError::Truncated { missing }) if missing == limit)
        );
        let announced = limit + 1;
        assert_eq!(decode(&header(kind, announced), &[5]), Err(FrameError::TooLarge { announced, limit }));
    }
    assert_eq!(decode(&header(3, 0), &[5]), Err(FrameError::UnknownKind { kind: 3 }));
    assert_eq!(
        data_header(MAX_DATA_BYTES + 1),
        Err(FrameError::TooLarge { announced: MAX_DATA_BYTES + 1, limit: MAX_DATA_BYTES })
    );
}

#[test]
fn a_message_that_is_too_large_is_not_encoded() {
    let message = vec![u32::MAX; MAX_MESSAGE_BYTES / 4];
    assert!(matches!(encode_message(&message), Err(FrameError::TooLarge { limit: MAX_MESSAGE_BYTES, .. })));
}

#[test]
fn bytes_after_a_message_are_an_error() {
    let error = decode_message::<u8>(&[1, 2]).expect_err("one byte too many");
    assert_eq!(error.to_string(), "message of 2 bytes cannot be read: 1 bytes left over");
}

#[test]
fn a_list_that_announces_more_than_it_holds_is_an_error() {
    // A postcard list of 2^32 - 1 elements of which none follows.
    assert!(decode_message::<Vec<u64>>(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
}
