//! The files of the listeners' certificate and its key, of the one presented to Redis, and of trusted authorities.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore};

use x509_parser::parse_x509_certificate;

use super::mask::shown_path;
use super::settings::Settings;

/// A certificate and its key, such as `server.tls_cert_file` and `server.tls_key_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The configuration keys of both.
    keys: [&'static str; 2],
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
        "{setting} = {:?}: {why}: expected a PEM file with the certificate itself, followed by its chain",
        shown_path(path)
    )]
    Certificate {
        /// Its configuration key.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key is unusable.
    #[error(
        "{setting} = {:?}: {why}: expected a PEM file with the unencrypted private key of the certificate",
        shown_path(path)
    )]
    Key {
        /// Its configuration key.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl TlsFiles {
    #[must_use]
    pub fn new(keys: [&'static str; 2], certificate: PathBuf, key: PathBuf) -> Self {
        Self { keys, certificate, key }
    }

    /// Requires both files or neither, and that they are usable.
    pub(super) fn from_settings(settings: &mut Settings, keys: [&'static str; 2]) -> Option<Self> {
        let files = keys.map(|key| settings.optional_text(key).map(PathBuf::from));
        let [Some(certificate), Some(key)] = files else {
            if let [Some(_), None] | [None, Some(_)] = files {
                let [certificate, key] = keys;
                settings.problem(format!("only one of {certificate} and {key} is set: expected both or neither"));
            }
            return None;
        };
        let files = Self::new(keys, certificate, key);
        match files.read().and_then(|pem| files.parse(&pem).map(|_| pem)) {
            Ok(pem) => {
                settings.note_hidden(keys[0], &pem.certificate);
                settings.note_hidden(keys[1], &pem.key);
            }
            Err(error) => settings.problem(error.to_string()),
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
                self.bad_key(format!("it is not the key of the certificate in {}", self.keys[0]))
            }
            Error::InvalidCertificate(error) => self.bad_certificate(format!("{error:?}")),
            _ => self.bad_key("it has no RSA, ECDSA or Ed25519 key"),
        })
    }

    /// The configuration key of the certificate.
    #[must_use]
    pub fn certificate_key(&self) -> &'static str {
        self.keys[0]
    }

    fn bad_certificate(&self, why: impl Into<String>) -> TlsError {
        TlsError::Certificate { setting: self.keys[0], path: self.certificate.clone(), why: why.into() }
    }

    fn bad_key(&self, why: impl Into<String>) -> TlsError {
        TlsError::Key { setting: self.keys[1], path: self.key.clone(), why: why.into() }
    }
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

impl Validity {
    /// Of each certificate in PEM, in their order; without those that cannot be parsed.
    #[must_use]
    pub fn of_each(pem: &[u8]) -> Vec<Self> {
        CertificateDer::pem_slice_iter(pem).filter_map(|certificate| Self::of(&certificate.ok()?)).collect()
    }

    /// `None` if the certificate cannot be parsed.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let validity = certificate.validity();
        Some(Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
    }
}

/// As many as 256 random bits have in base64.
const MIN_TICKET_SECRET: usize = 43;

impl Settings {
    /// A secret from which the keys of session tickets are derived. `is_used`: there are sessions.
    pub(super) fn ticket_secret(&mut self, key: &str, is_used: bool) -> Option<SecretString> {
        let secret = self.secret(key)?;
        if !is_used {
            self.problem(format!("{key} is set, but server.tls_cert_file is not: set both, or neither"));
        }
        if secret.expose_secret().len() < MIN_TICKET_SECRET {
            self.problem(format!(
                "{key} is shorter than {MIN_TICKET_SECRET} characters: expected a random secret, such as the output of \
                 openssl rand -hex 32"
            ));
        }
        Some(secret)
    }

    /// A PEM file of the authorities that may sign a server's certificate.
    pub(super) fn authorities(&mut self, key: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.optional_text(key)?);
        match check_authorities(&path) {
            Ok(pem) => self.note_hidden(key, pem),
            Err(why) => {
                let accepted = "a PEM file with the certificate of each trusted authority";
                self.problem(format!("{key} = {:?}: {why}: expected {accepted}", shown_path(&path)));
            }
        }
        Some(path)
    }
}

/// The contents of the file, which must have at least one certificate; each must be usable. The error does not quote the file.
fn check_authorities(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| "it is not a PEM file")?;
        roots.add(certificate).map_err(|_| "a certificate in it cannot be read")?;
    }
    if roots.is_empty() { Err("it has no certificate".into()) } else { Ok(pem) }
}

impl Pem {
    /// The certificate and its chain.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

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
