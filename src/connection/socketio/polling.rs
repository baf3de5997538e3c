//! A polling session as the HTTP requests of its client see it, and the packets that they carry to its task.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::sessions::Listed;
use crate::connection::Context;
use crate::connection::inbound::Inbound;
use crate::connection::websocket::{CLOSE_DEADLINE, close_for_violation};
use crate::delivery::{ConnectionHandle, HeldRequest, HttpSocket, NotHeld};
use crate::limits::InboundLimiter;
use crate::protocol::socketio::{CLOSE, SEPARATOR};
use crate::protocol::{Close, text_frame};

/// The HTTP connections that a client may keep: for a held request, for what it sends, and for a probe or its next attempt.
const MAX_SEATS: u8 = 4;

#[derive(Debug)]
pub struct PollingSession {
    handle: Arc<ConnectionHandle>,
    inbox: Mutex<Inbox>,
    /// The session's task.
    waker: AtomicWaker,
    seats: Arc<AtomicU8>,
    is_probed: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    post: Option<Post>,
    /// The last post is not answered yet.
    is_busy: bool,
    upgrade: Option<Upgrade>,
    stage: Stage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The session's end is about to reach the client.
    Ending,
    /// The session has ended, or continues on a WebSocket.
    Over,
}

#[derive(Debug)]
struct Post {
    /// The packets that are not handled yet; `None` once all are.
    rest: Option<Bytes>,
    handled: oneshot::Sender<()>,
}

/// A WebSocket that replaces polling.
#[derive(Debug)]
pub struct Upgrade {
    pub socket: Arc<HttpSocket>,
    /// The bytes that the client sent directly after its upgrade packet.
    pub early: Vec<u8>,
}

/// Why a post is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPosted {
    /// Another one is handled: the client broke the protocol.
    Overlap,
    /// The session has ended, or continues on a WebSocket.
    Over,
}

impl PollingSession {
    pub(super) fn new(handle: Arc<ConnectionHandle>) -> Arc<Self> {
        Arc::new(Self {
            handle,
            inbox: Mutex::default(),
            waker: AtomicWaker::new(),
            seats: Arc::default(),
            is_probed: AtomicBool::new(false),
        })
    }

    /// Holds a request until there is a packet for it. A client with two of them broke the protocol.
    pub fn hold(&self, request: HeldRequest) -> Result<(), NotHeld> {
        self.handle.queue.hold(request).inspect_err(|NotHeld| self.end(Close::Protocol))
    }

    /// The client has closed this connection, and the session ends if it waited there for a response: a client that has its
    /// response may close the connection, and go on.
    pub fn left(&self, connection: &Arc<HttpSocket>) {
        if self.handle.queue.is_held_on(connection) {
            self.end(Close::Gone);
        }
    }

    /// Passes on the packets of a body. The receiver fails if they end the session as an error.
    pub fn post(&self, body: Bytes) -> Result<oneshot::Receiver<()>, NotPosted> {
        let (handled, handling) = oneshot::channel();
        let mut inbox = self.inbox.lock();
        match inbox.stage {
            Stage::Over => return Err(NotPosted::Over),
            Stage::Ending => {
                handled.send(()).ok();
                return Ok(handling);
            }
            Stage::Open if inbox.is_busy => {
                drop(inbox);
                self.end(Close::Protocol);
                return Err(NotPosted::Overlap);
            }
            Stage::Open => {
                inbox.is_busy = true;
                inbox.post = Some(Post { rest: Some(body), handled });
            }
        }
        drop(inbox);
        self.waker.wake();
        Ok(handling)
    }

    /// Ends the session.
    pub fn end(&self, close: Close) {
        self.handle.queue.close(close);
    }

    /// Begins a probe, unless there is one.
    pub fn probe(self: &Arc<Self>) -> Option<Probe> {
        let is_first = !self.is_probed.swap(true, Ordering::AcqRel);
        is_first.then(|| Probe { session: Arc::clone(self), is_over: false })
    }

    /// A seat for an HTTP connection that the client keeps open.
    pub fn seat(&self) -> Option<Seat> {
        let more = |taken: u8| (taken < MAX_SEATS).then_some(taken + 1);
        let seated = self.seats.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        seated.is_ok().then(|| Seat(Arc::clone(&self.seats)))
    }

    pub fn is_of(&self, seat: &Seat) -> bool {
        Arc::ptr_eq(&self.seats, &seat.0)
    }
}

/// The bound of a client's HTTP connections: each has one while it is open. It does not keep the session, which may end
/// before its connections.
#[derive(Debug)]
pub struct Seat(Arc<AtomicU8>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client that tries a WebSocket; polling continues if it is dropped.
#[derive(Debug)]
pub struct Probe {
    session: Arc<PollingSession>,
    /// The session has moved: no other probe may begin.
    is_over: bool,
}

impl Probe {
    /// Responds to the client's requests at once from here on: it waits for them before it sends its upgrade packet.
    pub fn answered(&self) {
        self.session.handle.queue.set_probed(true);
    }

    /// Moves the session to the WebSocket.
    pub fn upgrade(mut self, upgrade: Upgrade) {
        self.is_over = true;
        self.session.inbox.lock().upgrade = Some(upgrade);
        self.session.waker.wake();
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.is_over {
            self.session.handle.queue.set_probed(false);
            self.session.is_probed.store(false, Ordering::Release);
            self.session.waker.wake();
        }
    }
}

/// A polling client as its session's task sees it.
#[derive(Debug)]
pub(super) struct Poller {
    session: Arc<PollingSession>,
    context: Arc<Context>,
    /// The post whose packets are handled.
    current: Option<Post>,
    /// The WebSocket that the client moves to.
    upgrade: Option<Upgrade>,
    /// When the client last posted.
    last_read: Instant,
    limiter: InboundLimiter,
    _listed: Listed,
}

impl Poller {
    pub(super) fn new(session: Arc<PollingSession>, listed: Listed, context: Arc<Context>) -> Self {
        let limiter = InboundLimiter::new(&context.limits.get());
        let (current, upgrade, last_read) = (None, None, Instant::now());
        Self { session, context, current, upgrade, last_read, limiter, _listed: listed }
    }

    /// The next packet, or nothing if the client moves to a WebSocket. A post is answered once its last packet is handled
    /// and another one is asked for.
    pub(super) fn poll_next(&mut self, cx: &mut Task<'_>) -> Poll<Inbound> {
        loop {
            if let Some(rest) = self.current.as_mut().and_then(|post| post.rest.take()) {
                return Poll::Ready(self.split_packet(&rest));
            }
            self.answer();
            self.session.waker.register(cx.waker());
            let mut inbox = self.session.inbox.lock();
            let Some(post) = inbox.post.take() else {
                let Some(upgrade) = inbox.upgrade.take() else { return Poll::Pending };
                self.upgrade = Some(upgrade);
                return Poll::Ready(ControlFlow::Continue(None));
            };
            drop(inbox);
            let admitted = self.admit(post.rest.as_deref().unwrap_or_default());
            self.current = Some(post);
            if let Err(close) = admitted {
                return Poll::Ready(ControlFlow::Break(close));
            }
        }
    }

    /// Counts a body's packets against the limits on input.
    fn admit(&mut self, body: &[u8]) -> Result<(), Close> {
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.last_read, now));
        let packets = body.split(is_separator).count();
        let taken = self.limiter.take_packets(packets, body.len(), elapsed);
        taken.map_err(|violation| close_for_violation(&self.context, violation))
    }

    fn split_packet(&mut self, rest: &Bytes) -> Inbound {
        let end = rest.iter().position(is_separator);
        let packet = rest.slice(..end.unwrap_or(rest.len()));
        if let (Some(post), Some(end)) = (&mut self.current, end) {
            post.rest = Some(rest.slice(end + 1..));
        }
        match Utf8Bytes::try_from(packet) {
            Ok(text) => ControlFlow::Continue(Some(text)),
            Err(_) => ControlFlow::Break(Close::InvalidText),
        }
    }

    /// The packets of the current post are handled.
    fn answer(&mut self) {
        if let Some(post) = self.current.take() {
            self.session.inbox.lock().is_busy = false;
            post.handled.send(()).ok();
        }
    }

    /// Moves the send queue to the WebSocket of an upgrade. Returns the bytes read from it; `None` without one, or
    /// while a response is still being sent.
    pub(super) fn take_upgrade(&mut self) -> Option<Vec<u8>> {
        let Upgrade { socket, early } = self.upgrade.take()?;
        match self.session.handle.queue.upgrade(socket) {
            Ok(()) => {
                self.session.inbox.lock().stage = Stage::Over;
                Some(early)
            }
            Err(socket) => {
                self.upgrade = Some(Upgrade { socket, early });
                None
            }
        }
    }

    /// Waits until a probe has ended: a client that is about to upgrade sends no request before.
    pub(super) async fn probe_ended(&mut self) {
        poll_fn(|cx| {
            self.session.waker.register(cx.waker());
            if let Some(upgrade) = self.session.inbox.lock().upgrade.take() {
                self.upgrade = Some(upgrade);
            }
            let has_ended = self.upgrade.is_some() || !self.session.is_probed.load(Ordering::Acquire);
            if has_ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Waits until responses have all packets.
    pub(super) async fn flush(&self) {
        let queue = &self.session.handle.queue;
        poll_fn(|cx| queue.poll_flush(cx)).await.ok();
    }

    /// Handles no further packets: posts are answered at once where the client is to be told of the end.
    pub(super) fn end(&mut self, close: Close) {
        let ending = Ending::of(close);
        let mut inbox = self.session.inbox.lock();
        inbox.stage = if ending == Ending::Told { Stage::Ending } else { Stage::Over };
        let waiting = inbox.post.take();
        drop(inbox);
        if let Some(post) = waiting
            && matches!(ending, Ending::Told | Ending::Left)
        {
            post.handled.send(()).ok();
        }
    }

    /// Tells the client of the end, in the response to a request: one that is held, or that comes very soon.
    pub(super) async fn finish(&mut self, close: Close) {
        let ending = Ending::of(close);
        let queue = &self.session.handle.queue;
        let deadline = match ending {
            Ending::Silent => return,
            Ending::Left => {
                queue.release();
                return self.answer();
            }
            Ending::Error if queue.idle_since().is_some() => return,
            Ending::Error | Ending::Told => CLOSE_DEADLINE,
        };
        queue.send(text_frame(&[CLOSE.as_bytes()]));
        if ending == Ending::Told {
            self.answer();
        }
        timeout(deadline, self.flush()).await.ok();
    }
}

/// How a session's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client is gone, or does not read.
    Silent,
    /// The client has left: its request has a response without a packet.
    Left,
    /// The client broke the protocol, or does not answer: it is told only if it waits for a response.
    Error,
    /// The client learns that the session has ended.
    Told,
}

impl Ending {
    fn of(close: Close) -> Self {
        match close {
            Close::Gone | Close::WriteTimeout => Self::Silent,
            Close::Normal | Close::Left => Self::Left,
            Close::NoPong | Close::Unanswered => Self::Error,
            Close::Protocol | Close::Unsupported | Close::InvalidText | Close::TooBig => Self::Error,
            _ => Self::Told,
        }
    }
}

/// Its requests, which may outlive it, must not wait for a response.
impl Drop for Poller {
    fn drop(&mut self) {
        let mut inbox = self.session.inbox.lock();
        inbox.stage = Stage::Over;
        let (post, upgrade) = (inbox.post.take(), inbox.upgrade.take());
        drop(inbox);
        // The first is owned by a request that keeps the session.
        drop((post, upgrade));
        self.session.handle.queue.abandon();
    }
}

fn is_separator(byte: &u8) -> bool {
    char::from(*byte) == SEPARATOR
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::delivery::{Backlog, Driven, PollingSocket, SendQueue, Socket};
    use crate::metrics::Metrics;
    use crate::protocol::Dialect;

    fn session() -> Arc<PollingSession> {
        let socket = Socket::Polling(PollingSocket::new(100).into());
        let queue = SendQueue::new(socket, Backlog::new(&Metrics::new(), usize::MAX));
        PollingSession::new(Arc::new(ConnectionHandle::new(Dialect::SocketIo, Ipv4Addr::LOCALHOST.into(), queue)))
    }

    async fn closing(session: &PollingSession) -> Option<Close> {
        poll_fn(|cx| match session.handle.queue.poll_drive(cx, None) {
            Poll::Ready(Driven::Closing(close)) => Poll::Ready(Some(close)),
            _ => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_second_post_at_once_ends_the_session() {
        let session = session();
        let _first = session.post(Bytes::from_static(b"3")).unwrap();
        assert_eq!(closing(&session).await, None);
        assert_eq!(session.post(Bytes::from_static(b"3")).unwrap_err(), NotPosted::Overlap);
        assert_eq!(closing(&session).await, Some(Close::Protocol));
    }

    #[tokio::test]
    async fn a_client_that_closes_its_connection_has_left_only_if_a_request_is_held_there() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut connections = Vec::new();
        for _ in 0..2 {
            let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            connections.push((HttpSocket::new(Socket::Plain(listener.accept().await.unwrap().0)), far));
        }
        let [(first, _far), (second, _also_far)] = &connections[..] else { panic!("two connections") };
        let session = session();
        session.hold(HeldRequest::new(Arc::clone(first), Bytes::new())).unwrap();
        session.left(second);
        assert_eq!(closing(&session).await, None, "another connection");
        session.handle.queue.release();
        session.left(first);
        assert_eq!(closing(&session).await, None, "it has its response");
        session.hold(HeldRequest::new(Arc::clone(second), Bytes::new())).unwrap();
        session.left(second);
        assert_eq!(closing(&session).await, Some(Close::Gone));
    }

    #[tokio::test]
    async fn a_session_has_a_bounded_number_of_seats_and_one_probe() {
        let session = session();
        let mut seats: Vec<_> = (0..MAX_SEATS).map(|_| session.seat().unwrap()).collect();
        assert!(session.seat().is_none());
        seats.pop();
        assert!(session.is_of(&session.seat().unwrap()));
        let probe = session.probe().unwrap();
        assert!(session.probe().is_none());
        drop(probe);
        assert!(session.probe().is_some());
    }
}
