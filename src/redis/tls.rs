//! TLS to Redis: the trusted authorities, and the certificate that this instance presents. The files are read for each
//! connection, so that a renewed certificate needs no restart.

use std::path::PathBuf;
use std::sync::Arc;

use redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Error;
use crate::config::{self, TlsFiles};

#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    ca_file: Option<PathBuf>,
    certificate: Option<TlsFiles>,
}

impl Tls {
    pub(super) fn new(config: &config::Redis) -> Self {
        Self { ca_file: config.ca_file.clone(), certificate: config.certificate.clone() }
    }

    /// A client of redis-rs, which connects to nothing yet.
    pub(super) fn client(&self, info: ConnectionInfo) -> Result<Client, Error> {
        if self.ca_file.is_none() && self.certificate.is_none() {
            return Client::open(info).map_err(|error| Error::Config(format!("redis.url: {error}")));
        }
        let root_cert = self.ca_file.as_ref().map(|path| std::fs::read(path).map_err(|error| self.bad_ca(error)));
        let pem = self.certificate.as_ref().map(|files| files.read().map_err(|error| Error::Config(error.to_string())));
        let client_tls = pem
            .transpose()?
            .map(|pem| ClientTlsConfig { client_cert: pem.certificate().to_vec(), client_key: pem.key().to_vec() });
        let certificates = TlsCertificates { client_tls, root_cert: root_cert.transpose()? };
        Client::build_with_tls(info, certificates).map_err(|error| self.bad_ca(error))
    }

    /// The same for a connection of our own.
    pub(super) fn connector(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| self.bad_ca(error))? {
                    let certificate = certificate.map_err(|error| self.bad_ca(error))?;
                    roots.add(certificate).map_err(|error| self.bad_ca(error))?;
                }
                if roots.is_empty() {
                    return Err(self.bad_ca("no certificate in it"));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        Ok(Arc::new(match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let pair = files.read().and_then(|pem| files.parse(&pem));
                let pair = pair.map_err(|error| Error::Config(error.to_string()))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
            }
        }))
    }

    fn bad_ca(&self, error: impl std::fmt::Display) -> Error {
        match &self.ca_file {
            Some(path) => Error::Config(format!("redis.ca_file = {path:?}: {error}")),
            None => Error::Config(format!("redis.cert_file, redis.key_file: {error}")),
        }
    }
}

/// Appends the configuration key that corrects a TLS failure.
pub(super) fn with_advice(message: &str) -> String {
    let advice = [
        ("UnknownIssuer", "set redis.ca_file to the authority that signed the server's certificate"),
        ("not valid for name", "redis.url must have a name in the server's certificate"),
        ("CertificateRequired", "the server requires a certificate: set redis.cert_file and redis.key_file"),
        ("HandshakeFailure", "the server may require a certificate: redis.cert_file and redis.key_file"),
        ("UnknownCA", "the server does not trust the authority of redis.cert_file"),
        ("BadCertificate", "the server does not accept redis.cert_file"),
        ("CertificateUnknown", "the server does not accept redis.cert_file"),
        ("CertificateExpired", "the server does not accept redis.cert_file"),
    ];
    let found = advice.iter().find(|(part, _)| message.contains(part));
    found.map_or_else(|| message.to_owned(), |(_, advice)| format!("{message} ({advice})"))
}
