//! A certificate authority for one test.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::now;

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

    /// Arguments for a redis-server with a certificate for loopback; `clients`: whether those of TLS need one of the same
    /// authority, `yes` or `no`.
    pub fn redis_args(&self, names: &[&str], clients: &str) -> Vec<String> {
        let [certificate, key] = self.certificate(names).map(|path| path.display().to_string());
        let ca = self.ca_file().display().to_string();
        let args = [
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &ca],
            ["--tls-auth-clients", clients],
        ];
        args.concat().into_iter().map(str::to_owned).collect()
    }

    /// The files of a certificate for these names and addresses, and of its key.
    pub fn certificate(&self, names: &[&str]) -> [PathBuf; 2] {
        self.write(&Self::params(names))
    }

    /// As [`Authority::certificate`], of years ago.
    pub fn expired_certificate(&self, names: &[&str]) -> [PathBuf; 2] {
        let mut params = Self::params(names);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        self.write(&params)
    }

    /// As [`Authority::certificate`], that ends in so many days.
    pub fn certificate_for_days(&self, names: &[&str], days: u64) -> [PathBuf; 2] {
        let mut params = Self::params(names);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now() + days * 86_400);
        self.write(&params)
    }

    fn params(names: &[&str]) -> CertificateParams {
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn write(&self, params: &CertificateParams) -> [PathBuf; 2] {
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
