//! TLS for both listeners, with one certificate, which is reloaded while they serve.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::Ticketer;
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::config::{TlsError, TlsFiles};
use crate::metrics::Metrics;

/// How often the files are read.
const POLL: Duration = Duration::from_secs(2);

pub struct Tls {
    files: TlsFiles,
    /// Of the files at the start.
    fingerprint: u64,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
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
    /// Reads the files; TLS 1.2 and 1.3, with session tickets.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let pem = files.read()?;
        let current = Arc::new(Current(RwLock::new(Arc::new(files.parse(&pem)?))));
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Tickets need no memory on the server; stored sessions would.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match Ticketer::new() {
            Ok(ticketer) => config.ticketer = ticketer,
            Err(error) => warn!(%error, "no session tickets: returning clients need a full handshake"),
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { fingerprint: pem.fingerprint(), files, current, acceptor, reload: Notify::new() })
    }

    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        self.acceptor.accept(socket).await.map(Box::new)
    }

    /// Requests a reload, even if the files have not changed.
    pub fn reload(&self) {
        self.reload.notify_one();
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
            let files = self.files.clone();
            let read = match spawn_blocking(move || files.read()).await {
                Ok(read) => read,
                Err(error) => {
                    warn!(%error, "TLS files not read: the certificate is unchanged");
                    metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    continue;
                }
            };
            let fingerprint = read.as_ref().ok().map(crate::config::Pem::fingerprint);
            // The two files may be half-way through a change: a new pair must be read twice.
            let stable = std::mem::replace(&mut seen, fingerprint) == fingerprint;
            if !requested && (fingerprint == settled || !stable) {
                continue;
            }
            settled = fingerprint;
            let result = match read.and_then(|pem| self.files.parse(&pem)) {
                Ok(pair) => {
                    *self.current.0.write() = Arc::new(pair);
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
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
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
    async fn a_pair_that_is_half_written_at_one_look_is_not_judged_and_each_is_judged_once() {
        const BOTH: [&str; 2] = ["certificate.pem", "key.pem"];
        let dir = TempDir::new().unwrap();
        renew(dir.path(), &BOTH);
        let files = TlsFiles::new(dir.path().join(BOTH[0]), dir.path().join(BOTH[1]));
        let (tls, metrics) = (Tls::new(files).unwrap(), Metrics::new());
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
