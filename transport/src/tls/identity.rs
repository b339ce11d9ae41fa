//! One process's certificate, key and authority: read from PEM files and checked before they are used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::CertificateError;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use super::{SERVER_NAME, provider};

/// Certificate chain and private key of one process, and the authority it trusts.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: CertificateDer<'static>,
}

/// A certificate, key or authority that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is not there or cannot be read.
    #[error("cannot read {}: {source}; `kvferry certs DIR` writes a full set", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM form: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What the reader said.
        reason: String,
    },
    /// Key and certificate are not a pair.
    #[error("{} is not the key of {}; copy both from one `kvferry certs` run", key.display(), certificate.display())]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// The certificate's time is over, or has not come.
    #[error("{} {problem}; check the clock, or issue a new one with `kvferry certs`", certificate.display())]
    Validity {
        /// The certificate.
        certificate: PathBuf,
        /// "has expired" or "is not valid yet".
        problem: &'static str,
    },
    /// The certificate was not issued by the authority.
    #[error("{} was not issued by {}; copy both from one `kvferry certs` run", certificate.display(), ca.display())]
    OtherAuthority {
        /// The certificate.
        certificate: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// TLS does not take it for another reason.
    #[error("certificate not usable: {reason}")]
    Unusable {
        /// What the TLS library said.
        reason: String,
    },
}

/// Where the parts of an identity came from, for messages.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// Reads `ca.pem`, `NAME.pem` and `NAME.key` from a directory and checks that they fit together now.
    ///
    /// # Errors
    /// Which file is missing, unreadable, expired, or of another authority.
    pub fn load(dir: &Path, name: &str) -> Result<Self, IdentityError> {
        let files = Files {
            ca: dir.join("ca.pem"),
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        let identity = Self {
            chain: certificates(&files.certificate)?,
            key: private_key(&files.key)?,
            ca: certificates(&files.ca)?.swap_remove(0),
        };
        identity.check(&files)?;
        Ok(identity)
    }

    pub(super) fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        ca: CertificateDer<'static>,
    ) -> Self {
        Self { chain, key, ca }
    }

    /// The certificate, followed by intermediates if there are any.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// A copy of the private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The authority whose certificates are trusted.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    fn check(&self, files: &Files) -> Result<(), IdentityError> {
        match CertifiedKey::from_der(self.chain.clone(), self.key(), &provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(IdentityError::KeyMismatch {
                    key: files.key.clone(),
                    certificate: files.certificate.clone(),
                });
            }
            Err(e) => return Err(unusable(e)),
        }
        match self.verify_chain() {
            Ok(()) => Ok(()),
            Err(rustls::Error::InvalidCertificate(reason)) => Err(chain_error(reason, files)),
            Err(e) => Err(unusable(e)),
        }
    }

    /// Checks the own certificate as a dialler would check it.
    fn verify_chain(&self) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| rustls::Error::General(e.to_string()))?;
        let [certificate, intermediates @ ..] = self.chain.as_slice() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        verifier
            .verify_server_cert(certificate, intermediates, &name, &[], UnixTime::now())
            .map(|_verified| ())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

pub(super) fn unusable(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Unusable { reason: error.to_string() }
}

fn chain_error(reason: CertificateError, files: &Files) -> IdentityError {
    let certificate = files.certificate.clone();
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            IdentityError::Validity { certificate, problem: "has expired" }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            IdentityError::Validity { certificate, problem: "is not valid yet" }
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            IdentityError::OtherAuthority { certificate, ca: files.ca.clone() }
        }
        other => IdentityError::Unusable { reason: format!("{}: {other}", certificate.display()) },
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = |reason: String| IdentityError::Content { path: path.into(), what: "certificate", reason };
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(content("no such section".into())),
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(content(e.to_string())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| IdentityError::Content {
        path: path.into(),
        what: "private key",
        reason: e.to_string(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::tls::Authority;

    #[test]
    fn a_certificate_outside_its_time_is_named() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let authority = Authority::new().unwrap();
        let files = Files { ca: "ca.pem".into(), certificate: "decode.pem".into(), key: "decode.key".into() };
        let past =
            authority.issue_for("decode", now - 2 * hour, now - hour).unwrap().check(&files).unwrap_err();
        assert!(past.to_string().starts_with("decode.pem has expired"), "{past}");
        let future =
            authority.issue_for("decode", now + hour, now + 2 * hour).unwrap().check(&files).unwrap_err();
        assert!(future.to_string().starts_with("decode.pem is not valid yet"), "{future}");
    }
}
