//! TLS for both listeners, with one certificate, which is reloaded while they serve.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::tickets::Tickets;
use crate::config::{TlsError, TlsFiles, Validity};
use crate::delivery::TlsSocket;
use crate::metrics::Metrics;

/// The tickets that a client gets in a handshake: one is used up by each return.
const TICKETS: usize = 1;

/// How often the files are read.
const POLL: Duration = Duration::from_secs(2);

pub struct Tls {
    files: Mutex<TlsFiles>,
    /// Of the files at the start.
    fingerprint: u64,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    reload: Notify,
}

/// The certificate and key for new connections.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl Tls {
    /// Reads the files; TLS 1.2 and 1.3, with session tickets under `secret` ([`Tickets::new`]).
    pub fn new(files: TlsFiles, secret: Option<&SecretString>) -> Result<Self, TlsError> {
        let pem = files.read()?;
        let current = Arc::new(Current(RwLock::new(Arc::new(files.parse(&pem)?))));
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Tickets need no memory on the server; stored sessions would.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match Tickets::new(secret) {
            Ok(tickets) => config.ticketer = Arc::new(tickets),
            Err(error) => warn!(%error, "no session tickets: returning clients need a full handshake"),
        }
        config.send_tls13_tickets = TICKETS;
        let config = Arc::new(config);
        let (fingerprint, files) = (pem.fingerprint(), Mutex::new(files));
        Ok(Self { fingerprint, files, current, config, reload: Notify::new() })
    }

    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<Box<TlsSocket>> {
        TlsSocket::accept(socket, Arc::clone(&self.config)).await
    }

    /// Requests that these files are read at once.
    pub fn reload(&self, files: TlsFiles) {
        *self.files.lock() = files;
        self.reload.notify_one();
    }

    /// Reports when the certificate in use expires.
    pub fn report_expiry(&self, metrics: &Metrics) {
        let pair = Arc::clone(&self.current.0.read());
        if let Some(first) = pair.cert.iter().filter_map(Validity::of).map(|validity| validity.until).min() {
            metrics.set_certificate_expiry(first);
        }
    }

    /// Reloads the pair when the files have changed, or on request. An unusable one is counted and logged, and the previous
    /// one stays. Never returns.
    pub async fn run_reload(&self, metrics: &Metrics) {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The fingerprints read last, and those loaded or refused last; `None`: the files could not be read.
        let (mut seen, mut settled) = (Some(self.fingerprint), Some(self.fingerprint));
        loop {
            let requested = tokio::select! {
                _ = ticks.tick() => false,
                () = self.reload.notified() => true,
            };
            let files = self.files.lock().clone();
            let reading = files.clone();
            let read = match spawn_blocking(move || reading.read()).await {
                Ok(read) => read,
                Err(error) => {
                    warn!(%error, "TLS files not read: the certificate is unchanged");
                    metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    continue;
                }
            };
            let fingerprint = read.as_ref().ok().map(crate::config::Pem::fingerprint);
            // The two files may be half-way through a change: a new pair must be read twice, unless a reload has checked it.
            let stable = std::mem::replace(&mut seen, fingerprint) == fingerprint;
            if fingerprint == settled || !(requested || stable) {
                continue;
            }
            settled = fingerprint;
            let result = match read.and_then(|pem| files.parse(&pem)) {
                Ok(pair) => {
                    *self.current.0.write() = Arc::new(pair);
                    self.report_expiry(metrics);
                    info!("TLS certificate reloaded");
                    "taken"
                }
                Err(error) => {
                    warn!(%error, "TLS certificate not reloaded: the previous one stays in use");
                    "refused"
                }
            };
            metrics.tls_reloads.with_label_values(&[result]).inc();
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &*self.files.lock()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;
    use tokio::time::sleep;

    use super::*;

    /// Writes a new certificate and its key, as far as asked.
    fn renew(dir: &Path, names: &[&str]) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pems = [("certificate.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())];
        for (name, pem) in pems.iter().filter(|(name, _)| names.contains(name)) {
            std::fs::write(dir.join(name), pem).unwrap();
        }
    }

    fn counts(metrics: &Metrics) -> [u64; 2] {
        ["taken", "refused"].map(|result| metrics.tls_reloads.with_label_values(&[result]).get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_with_the_same_pair_loads_nothing() {
        const BOTH: [&str; 2] = ["certificate.pem", "key.pem"];
        let dir = TempDir::new().unwrap();
        renew(dir.path(), &BOTH);
        let files = TlsFiles::new(BOTH, dir.path().join(BOTH[0]), dir.path().join(BOTH[1]));
        let (tls, metrics) = (Tls::new(files.clone(), None).unwrap(), Metrics::new());
        let steps = async {
            sleep(POLL / 4).await;
            tls.reload(files.clone());
            sleep(POLL / 4).await;
            assert_eq!(counts(&metrics), [0, 0]);
            renew(dir.path(), &BOTH);
            tls.reload(files);
            sleep(POLL / 4).await;
            assert_eq!(counts(&metrics), [1, 0], "another pair is loaded at once");
        };
        tokio::select! {
            () = steps => {}
            () = tls.run_reload(&metrics) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_that_is_half_written_at_one_look_is_not_judged_and_each_is_judged_once() {
        const BOTH: [&str; 2] = ["certificate.pem", "key.pem"];
        let dir = TempDir::new().unwrap();
        renew(dir.path(), &BOTH);
        let files = TlsFiles::new(BOTH, dir.path().join(BOTH[0]), dir.path().join(BOTH[1]));
        let (tls, metrics) = (Tls::new(files, None).unwrap(), Metrics::new());
        let steps = async {
            sleep(POLL / 2).await;
            renew(dir.path(), &["certificate.pem"]);
            sleep(POLL).await;
            renew(dir.path(), &BOTH);
            sleep(POLL * 2).await;
            assert_eq!(counts(&metrics), [1, 0]);
            sleep(POLL * 10).await;
            assert_eq!(counts(&metrics), [1, 0]);
            renew(dir.path(), &["key.pem"]);
            sleep(POLL * 10).await;
            assert_eq!(counts(&metrics), [1, 1]);
        };
        tokio::select! {
            () = steps => {}
            () = tls.run_reload(&metrics) => {}
        }
    }
}
