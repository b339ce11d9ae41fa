//! How streams end: finish, reset, stop, deadline, hostile bytes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::Duration;

use bytes::Bytes;
use kit::{SOON, greeted, pair};
use transport::{
    CloseCode, ConnectionLost, EndpointConfig, Frame, RecvError, SendEnd, SendError, StreamCode, frame,
};

async fn ends(end: impl Future<Output = SendEnd>) -> SendEnd {
    tokio::time::timeout(SOON, end).await.unwrap()
}

#[tokio::test]
async fn a_dropped_sender_resets_the_stream() {
    let pair = pair(EndpointConfig::default()).await;
    let (here, mut there) = pair.stream().await;
    drop(here.sender);
    let outcome = there.receiver.recv::<u8>(SOON).await;
    assert_eq!(outcome, Err(RecvError::Reset { code: StreamCode::CANCELLED }));
    assert_eq!(there.receiver.recv::<u8>(SOON).await, Err(RecvError::Closed));
}

#[tokio::test]
async fn a_finished_sender_may_be_dropped() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, mut there) = pair.stream().await;
    here.sender.send_data(Bytes::from(vec![1; 1 << 20])).await.unwrap();
    here.sender.finish().unwrap();
    let end = here.sender.stopped();
    drop(here.sender);
    assert!(matches!(there.receiver.recv::<u8>(SOON).await, Ok(Frame::Data(data)) if data.len() == 1 << 20));
    assert_eq!(there.receiver.recv::<u8>(SOON).await, Ok(Frame::End));
    assert_eq!(ends(end).await, SendEnd::Delivered);
}

#[tokio::test]
async fn a_dropped_receiver_stops_the_sender() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, there) = pair.stream().await;
    let end = here.sender.stopped();
    drop(there.receiver);
    assert_eq!(ends(end).await, SendEnd::Stopped { code: StreamCode::CANCELLED });
    assert_eq!(here.sender.send(&1u8).await, Err(SendError::Stopped { code: StreamCode::CANCELLED }));
    assert_eq!(here.sender.send(&1u8).await, Err(SendError::Closed));
}

#[tokio::test]
async fn codes_reach_the_other_side() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, mut there) = pair.stream().await;
    here.sender.reset(StreamCode::DEADLINE);
    there.sender.send(&1u8).await.unwrap();
    here.receiver.stop(StreamCode::DRAINING);
    assert_eq!(there.receiver.recv::<u8>(SOON).await, Err(RecvError::Reset { code: StreamCode::DEADLINE }));
    assert_eq!(ends(there.sender.stopped()).await, SendEnd::Stopped { code: StreamCode::DRAINING });
}

#[tokio::test]
async fn a_send_cancelled_inside_a_frame_closes_the_stream() {
    let pair = pair(EndpointConfig { stream_window: 64 * 1024, ..Default::default() }).await;
    let (mut here, mut there) = pair.stream().await;
    let sending = here.sender.send_data(Bytes::from(vec![1; 32 << 20]));
    assert!(tokio::time::timeout(Duration::from_millis(100), sending).await.is_err());
    assert_eq!(here.sender.send(&1u8).await, Err(SendError::Closed));
    assert_eq!(here.sender.finish(), Err(SendError::Closed));
    drop(here.sender);
    assert_eq!(there.receiver.recv::<u8>(SOON).await, Err(RecvError::Reset { code: StreamCode::CANCELLED }));
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_stalls_the_sender_only_so_long() {
    let write_timeout = Duration::from_millis(200);
    let config = EndpointConfig {
        stream_window: 64 * 1024,
        connection_window: 128 * 1024,
        write_timeout,
        ..Default::default()
    };
    let pair = pair(config).await;
    let (mut here, _there) = pair.stream().await;
    let outcome = here.sender.send_data(Bytes::from(vec![1; 4 << 20])).await;
    assert_eq!(outcome, Err(SendError::Stalled { after: write_timeout }));
}

#[tokio::test]
async fn a_passed_deadline_loses_no_bytes() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, mut there) = pair.stream().await;
    let after = Duration::from_millis(50);
    assert_eq!(there.receiver.recv::<u32>(after).await, Err(RecvError::Timeout { after }));
    here.sender.send(&70_000u32).await.unwrap();
    assert_eq!(there.receiver.recv::<u32>(SOON).await, Ok(Frame::Message(70_000)));
}

#[tokio::test]
async fn a_frame_that_arrives_in_pieces_survives_deadlines_and_takes_its_time() {
    let (connection, peer, _dialled) = greeted(EndpointConfig::default()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame::data_header(4).unwrap()).await.unwrap();
    send.write_all(b"da").await.unwrap();
    let mut stream = peer.accept().await.unwrap();
    let after = Duration::from_millis(100);
    assert_eq!(stream.receiver.recv::<u8>(after).await, Err(RecvError::Timeout { after }));
    send.write_all(b"ta").await.unwrap();
    assert_eq!(stream.receiver.recv::<u8>(SOON).await, Ok(Frame::Data(Bytes::from_static(b"data"))));
    let arriving = stream.receiver.receive_time();
    assert!(arriving >= Duration::from_millis(50), "{arriving:?}");
    // A wait between frames is no receive time.
    assert_eq!(stream.receiver.recv::<u8>(after).await, Err(RecvError::Timeout { after }));
    send.write_all(&frame::encode_message(&1u8).unwrap()).await.unwrap();
    assert_eq!(stream.receiver.recv::<u8>(SOON).await, Ok(Frame::Message(1)));
    assert!(stream.receiver.receive_time() < arriving + Duration::from_millis(50));
}

#[tokio::test]
async fn an_oversized_announcement_is_refused_and_the_sender_told() {
    let (connection, peer, _dialled) = greeted(EndpointConfig::default()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    let mut stream = peer.accept().await.unwrap();
    let refused = RecvError::TooLarge { announced: u32::MAX as usize, limit: frame::MAX_MESSAGE_BYTES };
    assert_eq!(stream.receiver.recv::<u8>(SOON).await, Err(refused));
    assert_eq!(send.stopped().await.unwrap(), Some(StreamCode::MALFORMED.0.into()));
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let (connection, peer, _dialled) = greeted(EndpointConfig::default()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[2, 10, 0, 0, 0, 1, 2, 3]).await.unwrap();
    send.finish().unwrap();
    let mut stream = peer.accept().await.unwrap();
    assert_eq!(stream.receiver.recv::<u8>(SOON).await, Err(RecvError::Truncated { missing: 7 }));
}

#[tokio::test]
async fn another_message_than_expected_is_malformed() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, mut there) = pair.stream().await;
    here.sender.send(&"a text, not a number").await.unwrap();
    assert!(matches!(there.receiver.recv::<u8>(SOON).await, Err(RecvError::Malformed { .. })));
    assert_eq!(ends(here.sender.stopped()).await, SendEnd::Stopped { code: StreamCode::MALFORMED });
}

#[tokio::test]
async fn data_where_a_message_is_due_is_named() {
    let pair = pair(EndpointConfig::default()).await;
    let (mut here, mut there) = pair.stream().await;
    here.sender.send_data(Bytes::from_static(b"kv")).await.unwrap();
    let outcome = there.receiver.recv_message::<u8>(SOON).await;
    assert_eq!(outcome, Err(RecvError::Unexpected { expected: "a message", got: "data" }));
}

#[tokio::test]
async fn a_closed_connection_tells_everybody_why() {
    let pair = pair(EndpointConfig::default()).await;
    let (here, mut there) = pair.stream().await;
    let closed = pair.decode.closed();
    pair.prefill.close(CloseCode::DRAINING, "going down for an update");
    let lost =
        ConnectionLost::ClosedByPeer { code: CloseCode::DRAINING, reason: "going down for an update".into() };
    assert_eq!(tokio::time::timeout(SOON, closed).await.unwrap(), lost);
    assert_eq!(there.receiver.recv::<u8>(SOON).await, Err(RecvError::ConnectionLost(lost.clone())));
    assert_eq!(ends(there.sender.stopped()).await, SendEnd::ConnectionLost(lost.clone()));
    assert_eq!(pair.decode.accept().await.unwrap_err(), lost);
    assert_eq!(ends(here.sender.stopped()).await, SendEnd::ConnectionLost(ConnectionLost::ClosedHere));
}
