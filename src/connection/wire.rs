//! The socket as the WebSocket library sees it: reads go straight to it, writes through the outbox.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config;
use crate::limits::{Meter, Over};
use crate::registry::Member;

/// The library writes only whole frames and this takes all of them or none, so that its pongs and closes stand between
/// the events of other writers, never inside one.
#[derive(Debug)]
pub(super) struct Wire {
    member: Arc<Member>,
    /// When the client last sent a byte.
    pub(super) last_read: Instant,
    meter: Meter,
    /// What the client sent too much of: nothing more of it is given to the library.
    pub(super) over: Option<Over>,
}

impl Wire {
    /// `early` is what the library has been given already.
    pub(super) fn new(member: Arc<Member>, limits: &config::Limits, early: &[u8]) -> Self {
        let mut meter = Meter::new(limits);
        let over = meter.take(early, Duration::ZERO).err();
        Self { member, last_read: Instant::now(), meter, over }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { member, last_read, meter, over } = &mut *self;
        let count = ready!(member.outbox.poll_read(cx, buf.initialize_unfilled()))?;
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(last_read, now));
        let read = buf.initialize_unfilled().get(..count).unwrap_or_default();
        if let Err(too_much) = meter.take(read, elapsed) {
            over.get_or_insert(too_much);
        }
        if over.is_some() {
            return Poll::Ready(Err(io::Error::other("the client sends too much")));
        }
        buf.advance(count);
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
