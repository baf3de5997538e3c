//! TLS on a client's socket: the task that sends a frame encrypts and writes it at once. One lock orders the writers
//! and the connection's task, which reads; it is never held across an await.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConnection;

/// Bound of the encrypted bytes that the kernel has not accepted yet: two records.
const MAX_UNSENT: usize = 32 * 1024;

/// A TLS connection after its handshake.
#[derive(Debug)]
pub struct Tls {
    tcp: TcpStream,
    session: Mutex<ServerConnection>,
}

impl Tls {
    pub(super) fn new(tcp: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(MAX_UNSENT));
        Self { tcp, session: Mutex::new(session) }
    }

    /// Encrypts and writes. Accepts no bytes while earlier ones are unsent, so the unsent bytes are bounded.
    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        self.flush(&mut session)?;
        let accepted = session.writer().write_vectored(slices)?;
        if accepted == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        match self.flush(&mut session) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(accepted),
        }
    }

    pub(super) fn try_flush(&self) -> io::Result<()> {
        self.flush(&mut self.session.lock())
    }

    fn flush(&self, session: &mut ServerConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut Kernel(&self.tcp))?;
        }
        Ok(())
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut session = self.session.lock();
        loop {
            match session.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            match session.read_tls(&mut Kernel(&self.tcp)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                read => read?,
            };
            // On an error, the drop sends the alert at the latest.
            let processed = session.process_new_packets();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    /// Closes the TLS session (RFC 8446, section 6.1), then shuts down writing on the socket.
    pub(super) fn finish_writing(&self) {
        self.send_close_notify();
        SockRef::from(&self.tcp).shutdown(Shutdown::Write).ok();
    }

    fn send_close_notify(&self) {
        let mut session = self.session.lock();
        session.send_close_notify();
        // If the client does not read, the alert cannot reach it.
        self.flush(&mut session).ok();
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.send_close_notify();
    }
}

/// The socket as rustls uses it.
struct Kernel<'a>(&'a TcpStream);

impl Read for Kernel<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Kernel<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use super::*;

    async fn pair() -> (Tls, client::TlsStream<TcpStream>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(server.with_single_cert(vec![made.cert.into()], key).unwrap()));
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(listener.accept(), far);
        let connector = TlsConnector::from(Arc::new(client));
        let shaking = connector.connect("localhost".try_into().unwrap(), far.unwrap());
        let (near, far) = tokio::join!(acceptor.accept(near.unwrap().0), shaking);
        let (tcp, session) = near.unwrap().into_inner();
        (Tls::new(tcp, session), far.unwrap())
    }

    #[tokio::test]
    async fn bytes_encrypted_ahead_of_the_kernel_are_bounded_and_arrive() {
        let (tls, mut client) = pair().await;
        let plenty = vec![b'.'; 1 << 20];
        let mut taken = 0;
        loop {
            match tls.try_write_vectored(&[IoSlice::new(&plenty), IoSlice::new(&plenty)]) {
                Ok(count) => {
                    assert!(count <= MAX_UNSENT, "{count} bytes at once");
                    taken += count;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        assert_eq!(tls.try_flush().unwrap_err().kind(), ErrorKind::WouldBlock);
        let flushed = async {
            while tls.try_flush().is_err() {
                poll_fn(|cx| tls.poll_write_ready(cx)).await.unwrap();
            }
        };
        let mut got = vec![0; taken];
        let (read, ()) = tokio::join!(client.read_exact(&mut got), flushed);
        read.unwrap();
        assert!(got.iter().all(|byte| *byte == b'.'));
    }
}
