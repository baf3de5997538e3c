//! An HTTP server that publishes a key set, or misbehaves on request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Authority;

/// What a request gets.
#[derive(Debug, Clone)]
pub enum Publishes {
    /// 200 and this body.
    Keys(String),
    /// These bytes, head and all.
    Bytes(String),
    /// Nothing yet: what is set next.
    Nothing,
    /// The end of the connection.
    Hangup,
}

/// Ends when dropped.
pub struct KeyServer {
    scheme: &'static str,
    address: SocketAddr,
    publishes: watch::Sender<Publishes>,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl KeyServer {
    pub async fn start(publishes: Publishes) -> Self {
        Self::serve("http", publishes, None).await
    }

    /// Over TLS, with a certificate of this authority.
    pub async fn start_tls(publishes: Publishes, authority: &Authority) -> Self {
        let [certificate, key] = authority.certificate(&["127.0.0.1"]);
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self::serve("https", publishes, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(scheme: &'static str, publishes: Publishes, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (publishes, requests) = (watch::Sender::new(publishes), Arc::new(AtomicUsize::new(0)));
        let (published, counted) = (publishes.subscribe(), Arc::clone(&requests));
        #[allow(clippy::disallowed_methods, reason = "it ends with the server's Drop")]
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (published, counted) = (published.clone(), Arc::clone(&counted));
                #[allow(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
                tokio::spawn({
                    let tls = tls.clone();
                    async move {
                        match tls {
                            None => answer(socket, published, counted).await,
                            Some(tls) => {
                                // A client that does not trust the certificate ends here.
                                let Ok(socket) = tls.accept(socket).await else { return };
                                answer(socket, published, counted).await;
                            }
                        }
                    }
                });
            }
        });
        Self { scheme, address, publishes, requests, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("{}://{}/keys", self.scheme, self.address)
    }

    /// From the next answer on, those that wait included.
    pub fn publish(&self, publishes: Publishes) {
        self.publishes.send_replace(publishes);
    }

    /// How many were asked of it.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    mut published: watch::Receiver<Publishes>,
    counted: Arc<AtomicUsize>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    counted.fetch_add(1, Ordering::SeqCst);
    let Ok(now) = published.wait_for(|now| !matches!(now, Publishes::Nothing)).await.map(|now| now.clone()) else {
        return;
    };
    let bytes = match now {
        Publishes::Keys(body) => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ),
        Publishes::Bytes(bytes) => bytes,
        Publishes::Nothing | Publishes::Hangup => return,
    };
    // The client may disconnect before the end.
    socket.write_all(bytes.as_bytes()).await.ok();
    socket.shutdown().await.ok();
}
