//! The files of the listeners' certificate and its key, and of trusted authorities.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore};

use super::settings::Settings;

/// `server.tls_cert_file` and `server.tls_key_file`.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
}

/// The contents of both files.
pub struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// Why a certificate and its key cannot be used. The message never quotes the key's file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate is unusable.
    #[error(
        "server.tls_cert_file = {path:?}: {why}: expected a PEM file with the server's certificate, followed by \
         its chain"
    )]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key is unusable.
    #[error(
        "server.tls_key_file = {path:?}: {why}: expected a PEM file with the unencrypted private key of the certificate"
    )]
    Key {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl TlsFiles {
    #[must_use]
    pub fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key }
    }

    /// Requires both files or neither, and that they are usable.
    pub(super) fn from_settings(settings: &mut Settings) -> Option<Self> {
        const KEYS: [&str; 2] = ["server.tls_cert_file", "server.tls_key_file"];
        let files = KEYS.map(|key| settings.optional_text(key).map(PathBuf::from));
        let [Some(certificate), Some(key)] = files else {
            if let [Some(_), None] | [None, Some(_)] = files {
                let [certificate, key] = KEYS;
                settings.problem(format!("only one of {certificate} and {key} is set: expected both or neither"));
            }
            return None;
        };
        let files = Self::new(certificate, key);
        if let Err(error) = files.read().and_then(|pem| files.parse(&pem)) {
            settings.problem(error.to_string());
        }
        Some(files)
    }

    /// Reads both files without parsing them.
    pub fn read(&self) -> Result<Pem, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| error.to_string());
        Ok(Pem {
            certificate: read(&self.certificate).map_err(|why| self.bad_certificate(why))?,
            key: read(&self.key).map_err(|why| self.bad_key(why))?,
        })
    }

    /// Parses the chain and its key, and checks that they match.
    pub fn parse(&self, pem: &Pem) -> Result<CertifiedKey, TlsError> {
        let chain = CertificateDer::pem_slice_iter(&pem.certificate).collect::<Result<Vec<_>, pem::Error>>();
        let chain = chain.map_err(|error| self.bad_certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(self.bad_certificate("it has no certificate"));
        }
        // The library's error may quote the file, so it is not included.
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| self.bad_key("it has no private key"))?;
        CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                self.bad_key("it is not the key of the certificate in server.tls_cert_file")
            }
            Error::InvalidCertificate(error) => self.bad_certificate(format!("{error:?}")),
            _ => self.bad_key("it has no RSA, ECDSA or Ed25519 key"),
        })
    }

    fn bad_certificate(&self, why: impl Into<String>) -> TlsError {
        TlsError::Certificate { path: self.certificate.clone(), why: why.into() }
    }

    fn bad_key(&self, why: impl Into<String>) -> TlsError {
        TlsError::Key { path: self.key.clone(), why: why.into() }
    }
}

impl Settings {
    /// A PEM file of the authorities that may sign a server's certificate.
    pub(super) fn authorities(&mut self, key: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.optional_text(key)?);
        if let Err(why) = check_authorities(&path) {
            let accepted = "a PEM file with the certificate of each trusted authority";
            self.problem(format!("{key} = {path:?}: {why}: expected {accepted}"));
        }
        Some(path)
    }
}

/// Requires at least one certificate, and that each is usable. The error does not quote the file.
fn check_authorities(path: &Path) -> Result<(), String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| "it is not a PEM file")?;
        roots.add(certificate).map_err(|_| "a certificate in it cannot be read")?;
    }
    if roots.is_empty() { Err("it has no certificate".into()) } else { Ok(()) }
}

impl Pem {
    /// Differs if either file does.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.certificate, &self.key).hash(&mut hasher);
        hasher.finish()
    }
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}
