//! The WebSocket of a client: it reads from the connection's socket, and writes through the send queue.
//!
//! The library's state, with its buffers, exists only from the first byte of a message to its end: an idle connection has
//! none.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message, Result};

use super::inbound::Read;
use crate::config;
use crate::delivery::ConnectionHandle;
use crate::limits::{InboundLimiter, InboundViolation};

/// Enough for most messages of browsers in one read. It is on the stack until there are bytes.
const READ_BUFFER: usize = 1_024;

/// Enough for the library's own pong and close frames; it writes no others.
const MAX_CONTROL_BYTES: usize = 4_096;

pub(super) struct Socket {
    input: Input,
    max_inbound_bytes: usize,
    protocol: Option<Box<WebSocketContext>>,
    /// Nothing more is read: the connection was closed, or failed.
    ended: bool,
}

impl Socket {
    /// `early` are the bytes that the client sent directly after its handshake.
    pub(super) fn new(handle: Arc<ConnectionHandle>, limits: &config::Limits, early: Vec<u8>) -> Self {
        let input = Input::new(handle, limits, &early);
        let mut socket = Self { input, max_inbound_bytes: limits.max_inbound_bytes, protocol: None, ended: false };
        if !early.is_empty() {
            socket.protocol = Some(socket.begin(early));
        }
        socket
    }

    /// When the client last sent a byte.
    pub(super) fn last_read(&self) -> Instant {
        self.input.last_read
    }

    /// The limit that the client has exceeded.
    pub(super) fn violation(&self) -> Option<InboundViolation> {
        self.input.violation
    }

    /// The next message; `None` after the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Read {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        if self.ended {
            return Poll::Ready(None);
        }
        let read = ready!(self.poll_read(cx));
        self.ended = read.is_err();
        Poll::Ready(match read {
            Err(Error::AlreadyClosed | Error::ConnectionClosed) => None,
            read => Some(read),
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message>> {
        let mut protocol = match self.protocol.take() {
            Some(protocol) => protocol,
            None => {
                let mut first = [0; READ_BUFFER];
                let count = ready!(self.input.poll_read(cx, &mut first))?;
                self.begin(first.get(..count).unwrap_or_default().to_vec())
            }
        };
        let read = pending_if_blocked(protocol.read(&mut self.input.io(cx)));
        let is_idle = read.is_pending()
            && self.input.limiter.is_between_messages()
            // No close handshake is under way, and no pong waits.
            && protocol.can_write()
            && protocol.flush(&mut self.input.io(cx)).is_ok();
        self.protocol = (!is_idle).then_some(protocol);
        read
    }

    /// Writes what the library has yet to write.
    pub(super) async fn flush(&mut self) -> Result<()> {
        let Self { input, protocol: Some(protocol), .. } = self else { return Ok(()) };
        poll_fn(|cx| pending_if_blocked(protocol.flush(&mut input.io(cx)))).await
    }

    /// Sends a close frame.
    pub(super) async fn close(&mut self, frame: CloseFrame) -> Result<()> {
        let protocol = self.protocol.take().unwrap_or_else(|| self.begin(Vec::new()));
        let protocol = self.protocol.insert(protocol);
        let (input, mut frame) = (&mut self.input, Some(frame));
        // The library takes the frame at the first call.
        poll_fn(|cx| pending_if_blocked(protocol.close(&mut input.io(cx), frame.take()))).await
    }

    fn begin(&self, read: Vec<u8>) -> Box<WebSocketContext> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_CONTROL_BYTES)
            .max_message_size(Some(self.max_inbound_bytes))
            .max_frame_size(Some(self.max_inbound_bytes));
        Box::new(WebSocketContext::from_partially_read(read, Role::Server, Some(config)))
    }
}

fn pending_if_blocked<T>(result: Result<T>) -> Poll<Result<T>> {
    match result {
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// What the client sends, within its limits.
#[derive(Debug)]
struct Input {
    handle: Arc<ConnectionHandle>,
    last_read: Instant,
    limiter: InboundLimiter,
    /// Set once the client has exceeded a limit; the library then gets no more bytes.
    violation: Option<InboundViolation>,
}

impl Input {
    /// `early` are the bytes that the library already has.
    fn new(handle: Arc<ConnectionHandle>, limits: &config::Limits, early: &[u8]) -> Self {
        let mut limiter = InboundLimiter::new(limits);
        let violation = limiter.take(early, Duration::ZERO).err();
        Self { handle, last_read: Instant::now(), limiter, violation }
    }

    fn io<'a, 'b>(&'a mut self, cx: &'a mut Context<'b>) -> Io<'a, 'b> {
        Io { input: self, cx }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let count = ready!(self.handle.queue.poll_read(cx, buf))?;
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.last_read, now));
        let read = buf.get(..count).unwrap_or_default();
        if let Err(exceeded) = self.limiter.take(read, elapsed) {
            self.violation.get_or_insert(exceeded);
        }
        if self.violation.is_some() {
            return Poll::Ready(Err(io::Error::other("the client exceeded an inbound limit")));
        }
        Poll::Ready(Ok(count))
    }
}

/// The stream of the library, within one poll. It writes only whole frames, and this accepts all of a write or none: so its
/// pong and close frames never interrupt the frames of other writers.
struct Io<'a, 'b> {
    input: &'a mut Input,
    cx: &'a mut Context<'b>,
}

impl io::Read for Io<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        or_blocked(self.input.poll_read(self.cx, buf))
    }
}

impl io::Write for Io<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // Backpressure: while the socket is stalled, the library buffers at most one pong.
        self.flush()?;
        self.input.handle.queue.send(Bytes::copy_from_slice(buf));
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        or_blocked(self.input.handle.queue.poll_flush(self.cx))
    }
}

fn or_blocked<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::config::{Config, Layers};
    use crate::delivery::{self, Backlog, SendQueue};
    use crate::metrics::Metrics;
    use crate::protocol::{Dialect, text_frame};

    async fn sockets() -> (TcpStream, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4_096).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let near = near.unwrap();
        near.writable().await.unwrap();
        (near, far.unwrap().0)
    }

    fn handle(near: TcpStream, metrics: &Metrics) -> Arc<ConnectionHandle> {
        let queue = SendQueue::new(delivery::Socket::Plain(near), Backlog::new(metrics, usize::MAX));
        Arc::new(ConnectionHandle::new(Dialect::TidingsV1, Ipv4Addr::LOCALHOST.into(), queue))
    }

    fn masked(mut frame: Frame) -> Vec<u8> {
        frame.header_mut().mask = Some([1, 2, 3, 4]);
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    fn fragment(text: &str, opcode: Data, is_last: bool) -> Vec<u8> {
        masked(Frame::message(text.to_owned(), OpCode::Data(opcode), is_last))
    }

    /// The next message; `None` if the socket waits for more bytes than these.
    async fn read_after(socket: &mut Socket, client: &mut TcpStream, bytes: &[u8]) -> Option<Message> {
        let until = Instant::now();
        client.write_all(bytes).await.unwrap();
        loop {
            match poll_fn(|cx| Poll::Ready(socket.poll_next(cx))).await {
                Poll::Ready(message) => return Some(message.unwrap().unwrap()),
                Poll::Pending if socket.last_read() > until => return None,
                Poll::Pending => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn the_state_of_the_library_is_kept_within_a_message_only() {
        let (near, mut client) = sockets().await;
        let config = Config::load(Layers::default()).unwrap();
        let mut socket = Socket::new(handle(near, &Metrics::new()), &config.limits.get(), Vec::new());
        let (long, whole) = ("x".repeat(16_000), |text: &str| fragment(text, Data::Text, true));
        let cut = whole("cut");
        let steps: [(&[u8], Option<&str>, bool); 7] = [
            (&whole("one"), Some("one"), false),
            (&cut[..3], None, true),
            (&cut[3..], Some("cut"), false),
            (&fragment("two ", Data::Text, false), None, true),
            (&fragment("parts", Data::Continue, true), Some("two parts"), false),
            (&whole(&long), Some(&long), false),
            (&masked(Frame::pong(Vec::new())), None, false),
        ];
        for (bytes, wanted, is_within) in steps {
            match (read_after(&mut socket, &mut client, bytes).await, wanted) {
                (Some(Message::Text(text)), Some(wanted)) => assert_eq!(text.as_str(), wanted),
                (Some(Message::Pong(_)) | None, None) => {}
                other => panic!("{other:?}"),
            }
            assert!(poll_fn(|cx| Poll::Ready(socket.poll_next(cx))).await.is_pending());
            assert_eq!(socket.protocol.is_some(), is_within, "after {} bytes", bytes.len());
        }

        // The pong is sent before the state is dropped.
        let ping = read_after(&mut socket, &mut client, &masked(Frame::ping(vec![7]))).await;
        assert_eq!(ping, Some(Message::Ping(vec![7].into())));
        assert!(poll_fn(|cx| Poll::Ready(socket.poll_next(cx))).await.is_pending());
        assert!(socket.protocol.is_none());
        let mut pong = [0; 3];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [0x8a, 1, 7]);
    }

    #[tokio::test]
    async fn while_the_client_reads_nothing_no_pong_is_queued() {
        let (near, mut client) = sockets().await;
        let (config, metrics) = (Config::load(Layers::default()).unwrap(), Metrics::new());
        let handle = handle(near, &metrics);
        let mut input = Input::new(Arc::clone(&handle), &config.limits.get(), &[]);
        let pong = [0x8a, 0];
        let mut write = |cx: &mut Context<'_>| match io::Write::write(&mut input.io(cx), &pong) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
            written => Poll::Ready(written),
        };

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
