//! `host:port` flags: their form, and names behind them.

use std::time::Duration;

use service::HostPort;
use service::address::{AddressError, reachable};

#[test]
fn names_and_addresses_are_taken() {
    for given in ["decode-1:7001", "10.0.0.2:7001", "[fd00::2]:7001", "localhost:0"] {
        assert_eq!(given.parse::<HostPort>().unwrap().to_string(), given);
    }
}

#[test]
fn other_forms_are_refused() {
    for given in
        ["", ":7001", "decode", "decode:", "decode:70000", "fd00::2:7001", "[x]:1", "a b:1", "quic://a:1"]
    {
        assert_eq!(given.parse::<HostPort>(), Err(AddressError::Form { given: given.into() }), "{given:?}");
    }
}

#[tokio::test]
async fn a_known_name_is_resolved() {
    let address =
        "localhost:7001".parse::<HostPort>().unwrap().resolve(Duration::from_secs(5)).await.unwrap();
    assert!(address.ip().is_loopback());
    assert_eq!(address.port(), 7001);
    let literal = "[::1]:7".parse::<HostPort>().unwrap().resolve(Duration::from_secs(5)).await.unwrap();
    assert_eq!(literal.to_string(), "[::1]:7");
}

#[tokio::test]
async fn an_unknown_name_is_given_up_at_the_deadline() {
    let name = "no-such-host.invalid:7001".parse::<HostPort>().unwrap();
    let error = name.resolve(Duration::from_millis(100)).await.unwrap_err();
    assert!(
        error.to_string().starts_with("no-such-host.invalid:7001 cannot be resolved within 100ms"),
        "{error}"
    );
}

#[test]
fn who_listens_everywhere_is_reached_where_it_was_seen() {
    let seen = "10.0.0.9".parse().unwrap();
    assert_eq!(reachable("0.0.0.0:7001".parse().unwrap(), seen).to_string(), "10.0.0.9:7001");
    assert_eq!(reachable("10.1.1.1:7001".parse().unwrap(), seen).to_string(), "10.1.1.1:7001");
    assert_eq!(
        reachable("[::]:7001".parse().unwrap(), "::ffff:10.0.0.9".parse().unwrap()).to_string(),
        "10.0.0.9:7001"
    );
}
