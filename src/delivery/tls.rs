//! TLS on a client's socket: the task that sends a frame encrypts and writes it at once. One lock orders the writers
//! and the connection's task, which reads; it is never held across an await.
//!
//! The library's other API keeps 4 KiB of buffer for each idle connection.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConfig;

use super::tls_session::Session;

/// Bound of the bytes that are encrypted at once, and with their records of those that the kernel has not accepted yet.
const MAX_UNSENT: usize = 32 * 1024;

/// One read from the kernel.
const READ_SIZE: usize = 4_096;

/// A TLS connection after its handshake.
pub struct TlsSocket {
    tcp: TcpStream,
    session: Mutex<Session>,
}

impl std::fmt::Debug for TlsSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSocket").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl TlsSocket {
    /// Performs the handshake. A client with which it fails is told why.
    pub async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Box<Self>> {
        let socket = Box::new(Self { tcp, session: Mutex::new(Session::new(config)?) });
        poll_fn(|cx| socket.poll_handshake(cx)).await?;
        Ok(socket)
    }

    fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.lock();
        loop {
            ready!(self.poll_until_done(cx, || self.flush(&mut session)))?;
            if !session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx, &mut session))?;
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Encrypts and writes. Accepts no bytes while earlier ones are unsent, so the unsent bytes are bounded.
    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        self.flush(&mut session)?;
        let accepted = match slices {
            [one] => session.encrypt(one.get(..MAX_UNSENT).unwrap_or(one))?,
            // One record for all.
            several => {
                let mut gathered = Vec::new();
                for slice in several {
                    let room = MAX_UNSENT - gathered.len();
                    gathered.extend_from_slice(slice.get(..room).unwrap_or(slice));
                }
                session.encrypt(&gathered)?
            }
        };
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

    fn flush(&self, session: &mut Session) -> io::Result<()> {
        while !session.outgoing.is_empty() {
            let count = self.tcp.try_write(&session.outgoing)?;
            session.outgoing.advance(count);
        }
        // Free its memory.
        session.outgoing = BytesMut::new();
        Ok(())
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut session = self.session.lock();
        loop {
            if let Some(count) = session.take_plaintext(buf) {
                return Poll::Ready(Ok(count));
            }
            ready!(self.poll_receive(cx, &mut session))?;
        }
    }

    /// Reads from the kernel once, and decrypts.
    fn poll_receive(&self, cx: &mut Context<'_>, session: &mut Session) -> Poll<io::Result<()>> {
        // On the stack: an idle connection has no buffer.
        let mut read = [0; READ_SIZE];
        let count = loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read(&mut read) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                count => break count?,
            }
        };
        if count == 0 {
            // An end without close_notify, which an attacker could have made.
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        let received = session.receive(read.get_mut(..count).unwrap_or_default());
        if received.is_err() {
            // The alert; if the client does not read, it cannot reach it.
            self.flush(session).ok();
        }
        Poll::Ready(received)
    }

    /// Closes the TLS session (RFC 8446, section 6.1), then shuts down writing on the socket.
    pub(super) fn finish_writing(&self) {
        self.send_close_notify();
        SockRef::from(&self.tcp).shutdown(Shutdown::Write).ok();
    }

    fn send_close_notify(&self) {
        let mut session = self.session.lock();
        session.close();
        // If the client does not read, the alert cannot reach it.
        self.flush(&mut session).ok();
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        self.send_close_notify();
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = ready!(Self::poll_read(&self, cx, buf.initialize_unfilled()))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_until_done(cx, || self.try_write_vectored(&[IoSlice::new(buf)]))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_until_done(cx, || self.try_flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.lock().close();
        ready!(self.poll_until_done(cx, || self.try_flush()))?;
        Poll::Ready(SockRef::from(&self.tcp).shutdown(Shutdown::Write))
    }
}

impl TlsSocket {
    /// Tries again whenever there is room.
    fn poll_until_done<T>(
        &self,
        cx: &mut Context<'_>,
        mut try_it: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match try_it() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_write_ready(cx))?,
                done => return Poll::Ready(done),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsConnector, client};

    use super::*;

    async fn pair() -> (Box<TlsSocket>, client::TlsStream<TcpStream>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = Arc::new(server.with_single_cert(vec![made.cert.into()], key).unwrap());
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(listener.accept(), far);
        let connector = TlsConnector::from(Arc::new(client));
        let shaking = connector.connect("localhost".try_into().unwrap(), far.unwrap());
        let (near, far) = tokio::join!(TlsSocket::accept(near.unwrap().0, server), shaking);
        (near.unwrap(), far.unwrap())
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

    #[tokio::test]
    async fn an_idle_session_has_no_buffer_whatever_was_sent_and_received_before() {
        let (tls, mut client) = pair().await;
        let (mut got, mut read) = (vec![0; 100_000], Vec::new());
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).take(100_000).collect();
        let sending = async {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
        };
        let reading = async {
            let mut some = [0; 1_000];
            while read.len() < sent.len() {
                let count = poll_fn(|cx| tls.poll_read(cx, &mut some)).await.unwrap();
                read.extend_from_slice(&some[..count]);
            }
        };
        tokio::join!(sending, reading);
        assert_eq!(read, sent);
        let written = async {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let count = poll_fn(|cx| tls.poll_until_done(cx, || tls.try_write_vectored(&[IoSlice::new(rest)])));
                rest = &rest[count.await.unwrap()..];
            }
            poll_fn(|cx| tls.poll_until_done(cx, || tls.try_flush())).await.unwrap();
        };
        let (received, ()) = tokio::join!(client.read_exact(&mut got), written);
        received.unwrap();
        assert_eq!(got, sent);
        assert_eq!(tls.session.lock().buffered(), 0);
    }
}
