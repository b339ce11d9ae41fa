//! Connections over time: idle, silent, lost and dialled again.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::Duration;

use kit::{SOON, endpoint, eventually, hello, identity, pair};
use transport::message::{KvReply, Role};
use transport::{Backoff, CloseCode, ConnectError, ConnectionLost, Dialer, EndpointConfig, OpenError};

const QUICK: Backoff = Backoff { first: Duration::from_millis(10), max: Duration::from_millis(50) };

#[tokio::test]
async fn a_connection_without_traffic_stays_alive() {
    let idle_timeout = Duration::from_millis(300);
    let pair =
        pair(EndpointConfig { idle_timeout, keep_alive: idle_timeout / 4, ..Default::default() }).await;
    let outcome = tokio::time::timeout(idle_timeout * 4, pair.prefill.closed()).await;
    assert!(outcome.is_err(), "closed: {outcome:?}");
    pair.stream().await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_given_up() {
    // No keep-alives within the idle timeout: the same as a peer whose machine has died.
    let idle_timeout = Duration::from_millis(200);
    let pair = pair(EndpointConfig { idle_timeout, keep_alive: SOON, ..Default::default() }).await;
    let lost = tokio::time::timeout(SOON, pair.prefill.closed()).await.unwrap();
    assert_eq!(lost, ConnectionLost::TimedOut);
}

#[tokio::test]
async fn no_more_streams_than_the_peer_allows() {
    let open_timeout = Duration::from_millis(100);
    let pair = pair(EndpointConfig { max_concurrent_streams: 2, open_timeout, ..Default::default() }).await;
    let first = pair.stream().await;
    let _second = pair.stream().await;
    assert!(matches!(pair.prefill.open().await, Err(OpenError::Timeout { after }) if after == open_timeout));
    drop(first);
    let mut reopened = pair.prefill.open().await;
    for _ in 0..50 {
        if reopened.is_ok() {
            break;
        }
        reopened = pair.prefill.open().await;
    }
    reopened.unwrap();
}

#[tokio::test]
async fn a_dialer_keeps_one_connection_per_address() {
    let identity = identity();
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), EndpointConfig::default());
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let dialer = Dialer::new(here, QUICK);
    let (first, second) = tokio::join!(dialer.peer(address, SOON), dialer.peer(address, SOON));
    assert_eq!(first.unwrap().connection_id(), second.unwrap().connection_id());
    there.accept().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_is_let_go_lives_as_long_as_its_streams() {
    let identity = identity();
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), EndpointConfig::default());
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let dialer = Dialer::new(here, QUICK);
    let first = dialer.peer(address, SOON).await.unwrap();
    let seen = there.accept().await.unwrap().unwrap();
    let mut stream = first.open().await.unwrap();
    dialer.forget(address, &first);
    let second = dialer.peer(address, SOON).await.unwrap();
    there.accept().await.unwrap().unwrap();
    assert_ne!(first.connection_id(), second.connection_id());
    // It is not the one that others are given any more.
    dialer.forget(address, &first);
    assert_eq!(dialer.peer(address, SOON).await.unwrap().connection_id(), second.connection_id());
    drop(first);
    stream.sender.send(&KvReply::Accepted).await.unwrap();
    let mut taken = seen.accept().await.unwrap();
    assert_eq!(taken.receiver.recv_message::<KvReply>(SOON).await.unwrap(), KvReply::Accepted);
    drop(stream);
    let lost = tokio::time::timeout(SOON, seen.closed()).await.unwrap();
    assert!(matches!(lost, ConnectionLost::ClosedByPeer { .. }), "{lost}");
}

#[tokio::test]
async fn a_dialer_finds_a_node_that_comes_back() {
    let identity = identity();
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), EndpointConfig::default());
    let config = EndpointConfig { handshake_timeout: Duration::from_millis(100), ..Default::default() };
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), config);
    let dialer = Dialer::new(here, QUICK);
    let first = dialer.peer(address, SOON).await.unwrap();
    there.close(CloseCode::DRAINING, "restart", SOON).await;
    drop(there);
    tokio::time::timeout(SOON, first.closed()).await.unwrap();
    let deadline = Duration::from_millis(300);
    let error = dialer.peer(address, deadline).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
    let mut again = None;
    eventually("the port is free again", || {
        let config = EndpointConfig::default();
        again = transport::Endpoint::bind(address, &identity, hello("decode", Role::Decode), config).ok();
        again.is_some()
    })
    .await;
    let second = dialer.peer(address, SOON).await.unwrap();
    assert_ne!(first.connection_id(), second.connection_id());
}

#[tokio::test]
async fn a_dialer_does_not_repeat_what_only_a_person_can_mend() {
    let identity = identity();
    let mut other = hello("decode", Role::Decode);
    other.model.model_id = "other".into();
    let (_there, address) = endpoint(&identity, other, EndpointConfig::default());
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let refused = tokio::time::timeout(SOON / 2, Dialer::new(here, QUICK).peer(address, SOON)).await;
    assert!(matches!(refused, Ok(Err(ConnectError::Refused { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_closed_endpoint_accepts_nobody_and_tells_its_peers() {
    let pair = pair(EndpointConfig::default()).await;
    let waiting = tokio::spawn({
        let dialled = pair.dialled.clone();
        async move { dialled.accept().await.is_none() }
    });
    pair.dialled.close(CloseCode::DRAINING, "update", SOON).await;
    assert!(tokio::time::timeout(SOON, waiting).await.unwrap().unwrap());
    let lost = tokio::time::timeout(SOON, pair.prefill.closed()).await.unwrap();
    assert_eq!(lost, ConnectionLost::ClosedByPeer { code: CloseCode::DRAINING, reason: "update".into() });
}
