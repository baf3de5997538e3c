//! The socket as the WebSocket library sees it: reads go straight to it, writes through the outbox.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::registry::Member;

/// The library writes only whole frames and this takes all of them or none, so that its pongs and closes stand between
/// the events of other writers, never inside one.
#[derive(Debug)]
pub(super) struct Wire {
    member: Arc<Member>,
    /// When the client last sent a byte.
    pub(super) last_read: Instant,
}

impl Wire {
    pub(super) fn new(member: Arc<Member>) -> Self {
        Self { member, last_read: Instant::now() }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = ready!(self.member.outbox.poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(count);
        self.last_read = Instant::now();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Backpressure: while the socket takes nothing, the library keeps at most one pong.
        ready!(self.member.outbox.poll_flush(cx))?;
        self.member.outbox.send(Bytes::copy_from_slice(buf));
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.member.outbox.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
