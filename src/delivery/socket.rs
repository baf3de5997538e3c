//! A client's socket. Every task may try to write to it; only the connection's task waits for it.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::polling::PollingSocket;
use super::tls::TlsSocket;

/// Maximum number of slices in one write.
const MAX_SLICES: usize = 32;

#[derive(Debug)]
pub enum Socket {
    Plain(TcpStream),
    /// Boxed, because it is a hundred times as large.
    Tls(Box<TlsSocket>),
    /// Boxed, so that the others are no larger.
    Polling(Box<PollingSocket>),
}

impl Socket {
    /// Writes as many bytes of these slices, or of the first of them, as the socket accepts now;
    /// [`ErrorKind::WouldBlock`] if it accepts none.
    pub(super) fn try_write_first<'a>(&self, mut slices: impl ExactSizeIterator<Item = &'a [u8]>) -> io::Result<usize> {
        if let Self::Polling(polling) = self {
            return polling.try_write_first(slices);
        }
        if slices.len() == 1 {
            return self.try_write(slices.next().unwrap_or_default());
        }
        let mut first = [IoSlice::new(&[]); MAX_SLICES];
        let mut used = 0;
        for (slot, slice) in first.iter_mut().zip(slices) {
            *slot = IoSlice::new(slice);
            used += 1;
        }
        self.try_write_vectored(first.get(..used).unwrap_or_default())
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            _ => self.try_write_vectored(&[IoSlice::new(bytes)]),
        }
    }

    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write_vectored(slices),
            Self::Polling(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Passes all accepted bytes to the kernel; [`ErrorKind::WouldBlock`] if some are left. Plain TCP buffers none.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.try_flush(),
            Self::Polling(polling) => polling.try_flush(),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
            Self::Polling(polling) => polling.poll_write_ready(cx),
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
            Self::Polling(polling) => polling.poll_read(cx, buf),
        }
    }

    /// The bytes that it has accepted and buffers without a small bound.
    pub(super) fn unsent(&self) -> usize {
        match self {
            Self::Polling(polling) => polling.unsent(),
            _ => 0,
        }
    }

    /// The socket of a client that polls, or did so before.
    pub(super) fn polling(&self) -> Option<&PollingSocket> {
        match self {
            Self::Polling(polling) => Some(polling),
            _ => None,
        }
    }

    /// See [`limit_unacknowledged`].
    pub(super) fn limit_unacknowledged(&self, limit: Duration) {
        match self {
            Self::Plain(tcp) => limit_unacknowledged(tcp, limit),
            Self::Tls(tls) => limit_unacknowledged(tls.tcp(), limit),
            // Its requests have their own sockets.
            Self::Polling(_) => {}
        }
    }

    /// Shuts down writing: the client sees the end of the stream after the last byte.
    pub(super) fn finish_writing(&self) {
        match self {
            // It fails only if the connection is already broken.
            Self::Plain(tcp) => drop(SockRef::from(tcp).shutdown(Shutdown::Write)),
            Self::Tls(tls) => tls.finish_writing(),
            Self::Polling(polling) => polling.finish_writing(),
        }
    }
}

/// Makes the system end a connection whose client acknowledges nothing for this long: reads and writes then fail with
/// [`ErrorKind::TimedOut`]. The connections that a listener accepts inherit its limit.
#[cfg(target_os = "linux")]
pub fn limit_unacknowledged(socket: &impl AsFd, limit: Duration) {
    // An optimization: if the system refuses it, the connection still works.
    SockRef::from(socket).set_tcp_user_timeout(Some(limit)).ok();
}

/// Only Linux has the option; elsewhere the system's retransmission limits apply, and `send_queue.write_timeout`.
#[cfg(not(target_os = "linux"))]
pub fn limit_unacknowledged(_: &impl AsFd, _: Duration) {}
