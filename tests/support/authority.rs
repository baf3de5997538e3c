//! A certificate authority for one test.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority, and where it keeps what it has made.
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities are told apart by their names.
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        let (dir, key) = (TempDir::new().unwrap(), KeyPair::generate().unwrap());
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// Its own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The files of a certificate for these names and addresses, and of its key.
    pub fn certificate(&self, names: &[&str]) -> [PathBuf; 2] {
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let key = KeyPair::generate().unwrap();
        let write = |name: &str, pem: String| {
            let path = self.dir.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        [write("certificate.pem", certificate), write("key.pem", key.serialize_pem())]
    }
}
