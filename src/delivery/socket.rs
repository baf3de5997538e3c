//! A client's socket, as its outbox uses it: shared, and never waited for but by the connection's task.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::tls::Tls;

/// Bytes in and out of one client.
#[derive(Debug)]
pub enum Socket {
    /// TCP as it is.
    Plain(TcpStream),
    /// TLS, apart: it is a hundred times as large.
    Tls(Box<Tls>),
}

impl From<TlsStream<TcpStream>> for Socket {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, session) = stream.into_inner();
        Self::Tls(Box::new(Tls::new(tcp, session)))
    }
}

impl Socket {
    /// Takes what it can of these bytes, now.
    ///
    /// # Errors
    /// The socket's; [`ErrorKind::WouldBlock`] when it takes nothing.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.try_write_vectored(&[IoSlice::new(bytes)]),
        }
    }

    /// As [`Socket::try_write`], of several slices in one go.
    ///
    /// # Errors
    /// As there.
    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write_vectored(slices),
        }
    }

    /// Whether the kernel has everything that was taken. Plain TCP keeps nothing to itself.
    ///
    /// # Errors
    /// The socket's; [`ErrorKind::WouldBlock`] when some is left.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.try_flush(),
        }
    }

    /// Ready when it is worth trying to write again.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// As [`tokio::io::AsyncRead`] does, on the shared socket.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => loop {
                ready!(tcp.poll_read_ready(cx))?;
                match tcp.try_read(buf) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done),
                }
            },
            Self::Tls(tls) => tls.poll_read(cx, buf),
        }
    }

    /// Tells the client that nothing more comes: it sees the end behind the last byte.
    pub(super) fn finish_writing(&self) {
        match self {
            // A socket that is broken already has told it.
            Self::Plain(tcp) => drop(SockRef::from(tcp).shutdown(Shutdown::Write)),
            Self::Tls(tls) => tls.finish_writing(),
        }
    }
}
