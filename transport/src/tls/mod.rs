//! Who may take part: every process holds a certificate of the cluster's own authority and shows it on every
//! connection, in both directions.
//!
//! Nodes are dialled by address, so every certificate carries the fixed name [`SERVER_NAME`], which the dialler
//! checks, beside the node's own name. A certificate proves membership of the cluster, not a particular
//! node id: replicas may share one. Only TLS 1.3 is spoken; sessions are never resumed, so each connection checks
//! both certificates.

mod authority;
mod identity;

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

pub use authority::{Authority, AuthorityError};
pub use identity::{Identity, IdentityError};

/// DNS name that every certificate of a cluster carries.
pub const SERVER_NAME: &str = "kvferry";
/// Protocol and version, agreed on in the TLS handshake.
pub const ALPN: &[u8] = b"kvferry/4";
pub(crate) const ALPN_TEXT: &str = "kvferry/4";

/// TLS for dialling out.
pub(crate) fn client_config(identity: &Identity) -> Result<quinn::ClientConfig, IdentityError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity::unusable)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(identity::unusable)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let quic = QuicClientConfig::try_from(tls).map_err(identity::unusable)?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// TLS for being dialled.
pub(crate) fn server_config(identity: &Identity) -> Result<quinn::ServerConfig, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider())
        .build()
        .map_err(identity::unusable)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity::unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .map_err(identity::unusable)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls).map_err(identity::unusable)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}

fn roots(identity: &Identity) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().clone()).map_err(identity::unusable)?;
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a TLS alert means for the person who runs the nodes. `error_code` is the QUIC transport error code; TLS
/// alerts are 0x100 plus the alert ([RFC 9001, section 4.8](https://www.rfc-editor.org/rfc/rfc9001#section-4.8)).
pub(crate) fn explain_alert(error_code: u64) -> Option<&'static str> {
    Some(match error_code.checked_sub(0x100)? {
        42 | 43 | 46 => "a certificate was refused",
        45 => "a certificate has expired; issue new ones with `kvferry certs`",
        // 51, a wrong signature: all our authorities bear one name, so a foreign one is found out by its key.
        48 | 51 => {
            "a certificate comes from another authority; give all nodes certificates of one `kvferry certs` run"
        }
        116 => "no certificate was shown",
        40 | 70 | 109 => "no common TLS 1.3 parameters",
        0..=255 => "TLS failed",
        _ => return None,
    })
}

/// The alert of peers that share no protocol version.
pub(crate) const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
