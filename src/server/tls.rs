//! TLS on the listeners: one certificate for both, replaced while they serve.

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

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);

/// What both listeners shake hands with.
pub struct Tls {
    files: TlsFiles,
    /// Of the pair in use.
    fingerprint: u64,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
    asked: Notify,
}

/// The pair that new connections get; those that are open keep theirs.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl Tls {
    /// Reads the files; TLS 1.2 and 1.3, with session tickets.
    ///
    /// # Errors
    /// [`TlsError`] where they cannot be used.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let pem = files.read()?;
        let current = Arc::new(Current(RwLock::new(Arc::new(files.parse(&pem)?))));
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Tickets need no memory here; a few sessions are not kept besides.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match Ticketer::new() {
            Ok(ticketer) => config.ticketer = ticketer,
            Err(error) => warn!(%error, "no session tickets: clients that return need a whole handshake"),
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { fingerprint: pem.fingerprint(), files, current, acceptor, asked: Notify::new() })
    }

    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        self.acceptor.accept(socket).await.map(Box::new)
    }

    /// Looks at the files soon, changed or not.
    pub fn reload(&self) {
        self.asked.notify_one();
    }

    /// Takes a new pair when the files have changed, or when asked to. One that cannot be used is counted and logged,
    /// and the one before stays. Runs until it is dropped.
    pub async fn run_reload(&self, metrics: &Metrics) {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was looked at last, and what was taken or refused last; no fingerprint: the files could not be read.
        let (mut seen, mut settled) = (Some(self.fingerprint), Some(self.fingerprint));
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                () = self.asked.notified() => true,
            };
            let files = self.files.clone();
            let read = match spawn_blocking(move || files.read()).await {
                Ok(read) => read,
                Err(error) => {
                    warn!(%error, "the TLS files could not be looked at: the certificate stays as it is");
                    metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    continue;
                }
            };
            let fingerprint = read.as_ref().ok().map(crate::config::Pem::fingerprint);
            // The two files may be half-way through a change: what is new is looked at twice.
            let still = std::mem::replace(&mut seen, fingerprint) == fingerprint;
            if !asked && (fingerprint == settled || !still) {
                continue;
            }
            settled = fingerprint;
            let result = match read.and_then(|pem| self.files.parse(&pem)) {
                Ok(pair) => {
                    *self.current.0.write() = Arc::new(pair);
                    info!("the TLS certificate was loaded anew");
                    "taken"
                }
                Err(error) => {
                    warn!(%error, "the TLS certificate was not loaded anew: the one before stays");
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
