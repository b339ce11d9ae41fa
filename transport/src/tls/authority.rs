//! The cluster's own certificate authority: makes certificates, in memory or as files.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{Identity, SERVER_NAME};

/// How long certificates last, and how far back they begin, so that clocks may differ a little.
const LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Issues the certificates of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate could not be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The name cannot stand in a certificate or in a file name.
    #[error("node name {name:?} is not usable: 1 to 63 of a-z, A-Z, 0-9, '-' and '_', and not \"ca\"")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The certificate library refused.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} is not what `kvferry certs` wrote: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
}

impl Authority {
    /// A new authority with a fresh key.
    ///
    /// # Errors
    /// [`AuthorityError::Make`] if the system gives no randomness.
    pub fn new() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = authority_params().self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(authority_params(), key),
        })
    }

    /// Reads `ca.pem` and `ca.key`, as [`Authority::write`] left them, to issue further certificates.
    ///
    /// # Errors
    /// Which file is missing or not usable.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let pem = read(&certificate_path)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| AuthorityError::Content { path: certificate_path, reason: e.to_string() })?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|e| AuthorityError::Content { path: key_path, reason: e.to_string() })?;
        Ok(Self { issuer: Issuer::new(authority_params(), key), certificate, pem })
    }

    /// A certificate for the node `name`, valid from yesterday for five years.
    ///
    /// # Errors
    /// [`AuthorityError::Name`] if the name is not usable.
    pub fn issue(&self, name: &str) -> Result<Identity, AuthorityError> {
        let now = SystemTime::now();
        self.issue_for(name, now - CLOCK_SKEW, now + LIFETIME)
    }

    /// A certificate for the node `name` with a validity of the caller's choice.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_for(
        &self,
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Identity, AuthorityError> {
        let (key, certificate) = self.certify(name, not_before, not_after)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Identity::from_parts(vec![certificate.der().clone()], key.into(), self.certificate.clone()))
    }

    /// Writes `ca.pem` and `ca.key` into `dir`, which is made if need be. The key's mode is 0600.
    ///
    /// # Errors
    /// Which file could not be written.
    pub fn write(&self, dir: &Path) -> Result<(), AuthorityError> {
        fs::create_dir_all(dir).map_err(|source| AuthorityError::File { path: dir.into(), source })?;
        write(&dir.join("ca.pem"), &self.pem, 0o644)?;
        write(&dir.join("ca.key"), &self.issuer.key().serialize_pem(), 0o600)
    }

    /// Issues a certificate for the node `name` and writes `NAME.pem` and `NAME.key`, for [`Identity::load`].
    ///
    /// # Errors
    /// As [`Authority::issue`], or which file could not be written.
    pub fn write_issued(&self, dir: &Path, name: &str) -> Result<(), AuthorityError> {
        let now = SystemTime::now();
        let (key, certificate) = self.certify(name, now - CLOCK_SKEW, now + LIFETIME)?;
        write(&dir.join(format!("{name}.pem")), &certificate.pem(), 0o644)?;
        write(&dir.join(format!("{name}.key")), &key.serialize_pem(), 0o600)
    }

    fn certify(
        &self,
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<(KeyPair, rcgen::Certificate), AuthorityError> {
        if !is_usable_name(name) {
            return Err(AuthorityError::Name { name: name.into() });
        }
        let mut params = CertificateParams::new(vec![SERVER_NAME.into(), name.into()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((key, certificate))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// The same for every authority but for the validity, so that one can be taken up again from its key alone.
fn authority_params() -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kvferry cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + 2 * LIFETIME).into();
    params
}

fn is_usable_name(name: &str) -> bool {
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=63).contains(&name.len()) && name.chars().all(usable) && name != "ca"
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::File { path: path.into(), source })
}

/// Writes a file that has the given mode from its first byte on.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(path).and_then(|mut file| file.write_all(content.as_bytes()));
    written.map_err(|source| AuthorityError::File { path: path.into(), source })
}
