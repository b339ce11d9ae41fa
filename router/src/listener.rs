//! The API's listener, with TLS where certificates are given.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use service::Shutdown;

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that is missing or no PEM.
    #[error("cannot use {path} for TLS: {reason}; --tls-cert and --tls-key take PEM files")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key that do not go together, or that rustls refuses.
    #[error("--tls-cert and --tls-key cannot be used together: {0}")]
    Pair(#[from] rustls::Error),
}

/// A listener as the async runtime wants it.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Reads a certificate chain and its key.
pub(crate) fn tls(cert: &Path, key: &Path) -> Result<RustlsConfig, TlsError> {
    let bad = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cert).map_err(|e| bad(cert, e.to_string()))?.collect();
    let chain = chain.map_err(|e| bad(cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(bad(cert, "it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(RustlsConfig::from_config(Arc::new(config)))
}

/// Serves until the shutdown drains, and then what is under way until it ends.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<RustlsConfig>,
    shutdown: &Shutdown,
) -> std::io::Result<()> {
    let handle: Handle<SocketAddr> = Handle::new();
    let (draining, ended, stop) = (shutdown.draining(), shutdown.ended(), handle.clone());
    let watch = tokio::spawn(async move {
        draining.await;
        stop.graceful_shutdown(None::<Duration>);
        ended.await;
        stop.shutdown();
    });
    let (server, app) = (axum_server::from_tcp(listener)?.handle(handle), app.into_make_service());
    // Without delay: a token is a small packet, and the next one must not wait for its acknowledgement.
    let at_once = NoDelayAcceptor::new();
    let served = match tls {
        Some(tls) => server.acceptor(RustlsAcceptor::new(tls).acceptor(at_once)).serve(app).await,
        None => server.acceptor(at_once).serve(app).await,
    };
    watch.abort();
    served
}
