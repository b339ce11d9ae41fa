//! Certificate files: written, read, and refused with the file and the reason.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::fs;

use kit::{endpoint, hello};
use tempfile::TempDir;
use transport::message::Role;
use transport::tls::{AuthorityError, IdentityError};
use transport::{Authority, EndpointConfig, Identity};

fn written() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    authority.write(dir.path()).unwrap();
    for name in ["router", "decode"] {
        authority.write_issued(dir.path(), name).unwrap();
    }
    dir
}

#[tokio::test]
async fn written_identities_connect() {
    let dir = written();
    let router = Identity::load(dir.path(), "router").unwrap();
    let decode = Identity::load(dir.path(), "decode").unwrap();
    let (there, address) = endpoint(&router, hello("router", Role::Router), EndpointConfig::default());
    let (here, _) = endpoint(&decode, hello("decode", Role::Decode), EndpointConfig::default());
    let (connected, accepted) = tokio::join!(here.connect(address), there.accept());
    assert!(connected.is_ok() && accepted.unwrap().is_ok());
}

#[test]
fn an_authority_read_again_issues_for_the_same_cluster() {
    let dir = written();
    Authority::load(dir.path()).unwrap().write_issued(dir.path(), "prefill-2").unwrap();
    let late = Identity::load(dir.path(), "prefill-2").unwrap();
    assert_eq!(late.ca(), Identity::load(dir.path(), "router").unwrap().ca());
}

#[cfg(unix)]
#[test]
fn keys_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = written();
    for key in ["ca.key", "router.key", "decode.key"] {
        assert_eq!(fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let dir = written();
    let error = Identity::load(dir.path(), "prefill").unwrap_err();
    assert!(matches!(&error, IdentityError::Read { path, .. } if path.ends_with("prefill.pem")), "{error}");
    assert!(error.to_string().contains("kvferry certs"), "{error}");
}

#[test]
fn a_file_with_other_content_is_named() {
    let dir = written();
    fs::write(dir.path().join("decode.key"), "not a key").unwrap();
    let error = Identity::load(dir.path(), "decode").unwrap_err();
    assert!(matches!(&error, IdentityError::Content { path, .. } if path.ends_with("decode.key")), "{error}");
}

#[test]
fn the_key_of_another_certificate_is_noticed() {
    let dir = written();
    fs::copy(dir.path().join("router.key"), dir.path().join("decode.key")).unwrap();
    let error = Identity::load(dir.path(), "decode").unwrap_err();
    assert!(matches!(error, IdentityError::KeyMismatch { .. }), "{error}");
}

#[test]
fn a_certificate_of_another_authority_is_noticed() {
    let (dir, other) = (written(), written());
    fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
    let error = Identity::load(dir.path(), "decode").unwrap_err();
    assert!(matches!(error, IdentityError::OtherAuthority { .. }), "{error}");
}

#[test]
fn names_that_would_leave_the_directory_or_shadow_the_authority_are_refused() {
    let authority = Authority::new().unwrap();
    for name in ["", "ca", "../router", "a b", "müller"] {
        assert!(matches!(authority.issue(name), Err(AuthorityError::Name { .. })), "{name:?}");
    }
}
