//! A client's socket. Every task may try to write to it; only the connection's task waits for it.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::tls::Tls;

#[derive(Debug)]
pub enum Socket {
    Plain(TcpStream),
    /// Boxed, because it is a hundred times as large.
    Tls(Box<Tls>),
}

impl From<TlsStream<TcpStream>> for Socket {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, session) = stream.into_inner();
        Self::Tls(Box::new(Tls::new(tcp, session)))
    }
}

impl Socket {
    /// Writes as many of these bytes as the socket accepts now; [`ErrorKind::WouldBlock`] if it accepts none.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.try_write_vectored(&[IoSlice::new(bytes)]),
        }
    }

    /// Like [`Socket::try_write`], for several slices at once.
    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write_vectored(slices),
        }
    }

    /// Passes all accepted bytes to the kernel; [`ErrorKind::WouldBlock`] if some are left. Plain TCP buffers none.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.try_flush(),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// Like [`tokio::io::AsyncRead`], on a shared socket.
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

    /// Shuts down writing: the client sees the end of the stream after the last byte.
    pub(super) fn finish_writing(&self) {
        match self {
            // It fails only if the connection is already broken.
            Self::Plain(tcp) => drop(SockRef::from(tcp).shutdown(Shutdown::Write)),
            Self::Tls(tls) => tls.finish_writing(),
        }
    }
}
