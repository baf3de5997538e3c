//! The socket of the WebSocket library: it reads from the connection's socket, and writes through the send queue.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config;
use crate::delivery::ConnectionHandle;
use crate::limits::{InboundLimiter, InboundViolation};

/// The library writes only whole frames, and the adapter accepts all of a write or none. So its pong and close frames never
/// interrupt the frames of other writers.
#[derive(Debug)]
pub(super) struct SocketAdapter {
    handle: Arc<ConnectionHandle>,
    /// When the client last sent a byte.
    pub(super) last_read: Instant,
    limiter: InboundLimiter,
    /// Set once the client has exceeded a limit; the library then gets no more bytes.
    pub(super) violation: Option<InboundViolation>,
}

impl SocketAdapter {
    /// `early` are the bytes that the library already has.
    pub(super) fn new(handle: Arc<ConnectionHandle>, limits: &config::Limits, early: &[u8]) -> Self {
        let mut limiter = InboundLimiter::new(limits);
        let violation = limiter.take(early, Duration::ZERO).err();
        Self { handle, last_read: Instant::now(), limiter, violation }
    }
}

impl AsyncRead for SocketAdapter {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { handle, last_read, limiter, violation } = &mut *self;
        let count = ready!(handle.queue.poll_read(cx, buf.initialize_unfilled()))?;
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(last_read, now));
        let read = buf.initialize_unfilled().get(..count).unwrap_or_default();
        if let Err(exceeded) = limiter.take(read, elapsed) {
            violation.get_or_insert(exceeded);
        }
        if violation.is_some() {
            return Poll::Ready(Err(io::Error::other("the client exceeded an inbound limit")));
        }
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SocketAdapter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Backpressure: while the socket is stalled, the library buffers at most one pong.
        ready!(self.handle.queue.poll_flush(cx))?;
        self.handle.queue.send(Bytes::copy_from_slice(buf));
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.queue.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::config::{Config, Layers};
    use crate::delivery::{Backlog, CredentialSlot, SendQueue, Socket};
    use crate::metrics::Metrics;
    use crate::protocol::{ConnectionId, Dialect, text_frame};

    #[tokio::test]
    async fn while_the_client_reads_nothing_no_pong_is_queued() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4_096).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let (near, mut client) = (near.unwrap(), far.unwrap().0);
        near.writable().await.unwrap();

        let (config, metrics) = (Config::load(Layers::default()).unwrap(), Metrics::new());
        let queue = SendQueue::new(Socket::Plain(near), Backlog::new(&metrics, usize::MAX));
        let (id, credential) = (ConnectionId::random(), CredentialSlot::default());
        let handle = Arc::new(ConnectionHandle { id, dialect: Dialect::TidingsV1, credential, queue });
        let mut adapter = SocketAdapter::new(Arc::clone(&handle), &config.limits, &[]);
        let pong = [0x8a, 0];
        let mut write = |cx: &mut Context<'_>| Pin::new(&mut adapter).poll_write(cx, &pong);

        let event = text_frame(&[&[b'x'; 10_000]]);
        let mut sent = 0;
        while metrics.backlog_bytes.get() == 0 {
            handle.queue.send(event.clone());
            sent += event.len();
        }
        let waiting = metrics.backlog_bytes.get();
        for _ in 0..1_000 {
            assert!(poll_fn(|cx| Poll::Ready(write(cx))).await.is_pending());
        }
        assert_eq!(metrics.backlog_bytes.get(), waiting);

        // Once the client reads, the library's pong follows all earlier frames.
        let mut got = vec![0; sent + pong.len()];
        let written = async {
            assert_eq!(poll_fn(write).await.unwrap(), pong.len());
            poll_fn(|cx| handle.queue.poll_flush(cx)).await.unwrap();
        };
        let (read, ()) = tokio::join!(client.read_exact(&mut got), written);
        read.unwrap();
        assert_eq!(got[sent..], pong);
    }
}
