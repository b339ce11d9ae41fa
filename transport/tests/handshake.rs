//! Who may connect, and what is said to those who may not.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::{Duration, SystemTime};

use kit::{SOON, dial, endpoint, hello, identity};
use transport::message::{Hello, Role};
use transport::{
    AcceptError, Authority, CloseCode, ConnectError, ConnectionLost, EndpointConfig, Identity, Peer,
};

type Both = (Result<Peer, ConnectError>, Result<Peer, AcceptError>);

async fn meet(dialler: (&Identity, Hello), dialled: (&Identity, Hello)) -> Both {
    let (here, _) = endpoint(dialler.0, dialler.1, EndpointConfig::default());
    let (there, address) = endpoint(dialled.0, dialled.1, EndpointConfig::default());
    let (connected, accepted) = tokio::join!(here.connect(address), there.accept());
    (connected, accepted.unwrap())
}

/// Lets a prefill node with a changed Hello dial a decode node and gives the words of both sides.
async fn refusal(change: impl FnOnce(&mut Hello)) -> (String, String) {
    let identity = identity();
    let mut changed = hello("prefill", Role::Prefill);
    change(&mut changed);
    match meet((&identity, changed), (&identity, hello("decode", Role::Decode))).await {
        (
            Err(ConnectError::Refused { reason: dialler, .. }),
            Err(AcceptError::Refused { reason: dialled, .. }),
        ) => (dialler, dialled),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn equal_nodes_meet_and_know_each_other() {
    let pair = kit::pair(EndpointConfig::default()).await;
    assert_eq!(pair.prefill.hello(), pair.dialled.hello());
    assert_eq!(pair.decode.hello(), pair.dialler.hello());
    assert_ne!(pair.dialler.hello().instance, pair.dialled.hello().instance);
    assert_eq!(pair.decode.remote_address(), pair.dialler.local_addr().unwrap());
}

#[tokio::test]
async fn another_model_is_refused() {
    let (dialler, dialled) = refusal(|hello| hello.model.model_id = "other".into()).await;
    assert_eq!(dialler, r#"model differs: here "other", there "tiny-llama"; serve one model on all nodes"#);
    assert_eq!(dialled, r#"model differs: here "tiny-llama", there "other"; serve one model on all nodes"#);
}

#[tokio::test]
async fn other_weights_are_refused() {
    let (dialler, _) = refusal(|hello| hello.model.fingerprint = [0xab; 16]).await;
    assert_eq!(
        dialler,
        "weights differ: here abababab…, there 07070707…; copy one model directory to both nodes"
    );
}

#[tokio::test]
async fn another_plan_is_refused() {
    let (dialler, dialled) = refusal(|hello| hello.model.plan_id = Some([0x12; 16])).await;
    let advice = "calibrate once and copy the plan to both nodes";
    assert_eq!(dialler, format!("plan differs: here 12121212…, there 09090909…; {advice}"));
    assert_eq!(dialled, format!("plan differs: here 09090909…, there 12121212…; {advice}"));
}

#[tokio::test]
async fn another_cache_layout_is_refused() {
    let (dialler, _) = refusal(|hello| hello.model.kv_heads = 8).await;
    assert!(dialler.starts_with("cache layout differs: here 4 x 8 x 64, there 4 x 2 x 64"), "{dialler}");
}

#[tokio::test]
async fn another_element_type_is_refused() {
    let (dialler, _) = refusal(|hello| hello.model.kv_dtype = "f16".into()).await;
    assert_eq!(dialler, r#"cache element type differs: here "f16", there "bf16""#);
}

#[tokio::test]
async fn formats_without_overlap_are_refused() {
    let (_, dialled) = refusal(|hello| hello.model.kv_format_versions = vec![2, 3]).await;
    assert!(dialled.starts_with("no common KV format version: here [1], there [2, 3]"), "{dialled}");
}

#[tokio::test]
async fn a_node_without_a_plan_is_let_in() {
    let identity = identity();
    let mut plain = hello("prefill", Role::Prefill);
    plain.model.plan_id = None;
    let (connected, accepted) = meet((&identity, plain), (&identity, hello("decode", Role::Decode))).await;
    assert!(connected.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn a_router_needs_no_weights_but_the_same_model() {
    let identity = identity();
    let mut router = hello("router", Role::Router);
    router.model.fingerprint = [0; 16];
    router.model.plan_id = None;
    let met = meet((&identity, hello("decode", Role::Decode)), (&identity, router.clone())).await;
    assert!(met.0.is_ok() && met.1.is_ok());
    router.model.layers = 5;
    let met = meet((&identity, hello("decode", Role::Decode)), (&identity, router)).await;
    assert!(matches!(met.0, Err(ConnectError::Refused { .. })), "{met:?}");
}

#[tokio::test]
async fn another_authority_is_not_trusted() {
    let (ours, theirs) = (identity(), identity());
    let met = meet((&theirs, hello("prefill", Role::Prefill)), (&ours, hello("decode", Role::Decode))).await;
    let (Err(ConnectError::Tls { reason, .. }), Err(AcceptError::Tls { .. })) = met else {
        panic!("{met:?}")
    };
    assert!(reason.contains("another authority"), "{reason}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_not_accepted_from_a_dialler() {
    // The dialler trusts the cluster's authority but shows a certificate of its own.
    let ours = Authority::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    Authority::new().unwrap().write(dir.path()).unwrap();
    Authority::new().unwrap().write_issued(dir.path(), "stranger").unwrap();
    let (_there, address) =
        endpoint(&ours.issue("decode").unwrap(), hello("decode", Role::Decode), EndpointConfig::default());
    let stranger = Authority::new().unwrap().issue("stranger").unwrap();
    let connection =
        dial(address, &stranger, ours.issue("x").unwrap().ca().clone(), transport::tls::ALPN).await;
    // In TLS 1.3 the dialler is done before its certificate is looked at; the refusal comes right after.
    let closed = tokio::time::timeout(SOON, connection.unwrap().closed()).await.unwrap();
    assert!(matches!(closed, quinn::ConnectionError::ConnectionClosed(_)), "{closed:?}");
}

#[tokio::test]
async fn another_protocol_version_is_refused() {
    let identity = identity();
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), EndpointConfig::default());
    let (connected, accepted) =
        tokio::join!(dial(address, &identity, identity.ca().clone(), b"kvferry/1"), there.accept());
    assert!(connected.is_err());
    let Some(Err(error @ AcceptError::Version { .. })) = accepted else { panic!("{accepted:?}") };
    assert!(error.to_string().contains("does not speak kvferry/4"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_the_reason() {
    let authority = Authority::new().unwrap();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let expired = authority.issue_for("prefill", now - 2 * hour, now - hour).unwrap();
    let good = authority.issue("decode").unwrap();
    let met = meet((&expired, hello("prefill", Role::Prefill)), (&good, hello("decode", Role::Decode))).await;
    let Err(ConnectError::Tls { reason, .. }) = met.0 else { panic!("{met:?}") };
    assert!(reason.contains("expired"), "{reason}");
    let met = meet((&good, hello("prefill", Role::Prefill)), (&expired, hello("decode", Role::Decode))).await;
    let Err(ConnectError::Tls { reason, .. }) = met.0 else { panic!("{met:?}") };
    assert!(reason.contains("expired"), "{reason}");
}

#[tokio::test]
async fn a_stalled_handshake_blocks_nobody_and_ends() {
    let identity = identity();
    let config = EndpointConfig { handshake_timeout: Duration::from_millis(500), ..Default::default() };
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), config);
    let staller = dial(address, &identity, identity.ca().clone(), transport::tls::ALPN).await.unwrap();
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let (connected, accepted) = tokio::join!(here.connect(address), there.accept());
    assert!(connected.is_ok() && accepted.unwrap().is_ok());
    assert!(matches!(there.accept().await, Some(Err(AcceptError::Timeout { .. }))));
    let closed = ConnectionLost::from(tokio::time::timeout(SOON, staller.closed()).await.unwrap());
    assert!(matches!(closed, ConnectionLost::ClosedByPeer { code: CloseCode::HANDSHAKE, .. }), "{closed:?}");
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_refused() {
    let identity = identity();
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), EndpointConfig::default());
    let stranger = dial(address, &identity, identity.ca().clone(), transport::tls::ALPN).await.unwrap();
    let (mut send, _receive) = stranger.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(there.accept().await, Some(Err(AcceptError::Protocol { .. }))));
}

#[tokio::test]
async fn nobody_at_the_address_is_a_timeout() {
    let silent = std::net::UdpSocket::bind(kit::loopback()).unwrap();
    let config = EndpointConfig { handshake_timeout: Duration::from_millis(200), ..Default::default() };
    let (here, _) = endpoint(&identity(), hello("prefill", Role::Prefill), config);
    let outcome = here.connect(silent.local_addr().unwrap()).await;
    assert!(matches!(outcome, Err(ConnectError::Timeout { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_node_id_that_cannot_be_shown_is_refused() {
    let identity = identity();
    for node in ["", "two words", &"x".repeat(129)] {
        let met =
            meet((&identity, hello(node, Role::Prefill)), (&identity, hello("decode", Role::Decode))).await;
        let (Err(_), Err(AcceptError::Protocol { error, .. })) = &met else { panic!("{met:?}") };
        assert!(error.to_string().contains("printable ASCII"), "{error}");
    }
}

#[tokio::test]
async fn under_pressure_a_dialler_proves_its_address_and_gets_in() {
    let identity = identity();
    let config = EndpointConfig { max_pending_handshakes: 2, ..Default::default() };
    let (there, address) = endpoint(&identity, hello("decode", Role::Decode), config);
    let _staller = dial(address, &identity, identity.ca().clone(), transport::tls::ALPN).await.unwrap();
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let (connected, accepted) = tokio::join!(here.connect(address), there.accept());
    assert!(connected.is_ok() && accepted.unwrap().is_ok());
}

#[tokio::test]
async fn beyond_the_bound_diallers_are_turned_away_but_may_try_again() {
    let identity = identity();
    let config = EndpointConfig { max_pending_handshakes: 1, ..Default::default() };
    let (_there, address) = endpoint(&identity, hello("decode", Role::Decode), config);
    let _staller = dial(address, &identity, identity.ca().clone(), transport::tls::ALPN).await.unwrap();
    let (here, _) = endpoint(&identity, hello("prefill", Role::Prefill), EndpointConfig::default());
    let error = here.connect(address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Lost { .. }) && !error.is_permanent(), "{error:?}");
}
