//! A connection of a socket.io client: its packets, heartbeat and end. [`join`] is its beginning.

mod join;
mod polling;
mod sessions;
mod transport;

use std::future::poll_fn;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::Context;
use super::client::{Client, Turn, in_span};
use super::clock::Due;
use super::socket::Socket;
use crate::delivery::{self, PollingSocket};
use crate::limits::AdmissionPermits;
use crate::protocol::socketio::{Action, Auth, DISCONNECT, Session, SessionId, UPGRADES, invalid_namespace};
use crate::protocol::{Close, Dialect, UserId, text_frame};
use join::open_packet;
pub use join::{SocketIoHandshake, Unidentified};
use polling::Poller;
pub use polling::{NotPosted, PollingSession, Probe, Seat, Upgrade};
pub use sessions::PollingSessions;
use transport::{Received, Transport};

/// The packet `2` in a WebSocket frame.
const PING: &[u8] = b"\x81\x012";

/// How long a client that was told to stay away may take to close.
const DISMISS_DEADLINE: Duration = Duration::from_secs(1);

/// A deadline, and the reason for the close at it.
type End<'a> = Option<&'a (Instant, Close)>;

/// One session.
pub struct SocketIo {
    client: Client,
    transport: Transport,
    session: Session,
    /// When the last ping was sent, or the session was opened.
    last_ping: Instant,
}

impl std::fmt::Debug for SocketIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketIo").field("id", &self.client.handle.id).finish_non_exhaustive()
    }
}

impl SocketIo {
    /// Takes an upgraded socket of the client at `address`. `early` are the bytes that the client sent directly after its
    /// handshake.
    pub fn open(
        context: Arc<Context>,
        socket: delivery::Socket,
        early: Vec<u8>,
        address: IpAddr,
        permits: AdmissionPermits,
    ) -> Self {
        let client = Client::new(context, socket, Dialect::SocketIo, address, permits);
        let socket = Socket::new(Arc::clone(&client.handle), &client.context.limits.get(), early);
        Self::new(client, Transport::WebSocket(socket))
    }

    /// Opens a session of a client that polls. Returns it with its open packet, and as its requests see it.
    pub fn open_polling(
        context: Arc<Context>,
        sid: SessionId,
        address: IpAddr,
        permits: AdmissionPermits,
    ) -> (Self, String, Arc<PollingSession>) {
        let packet = open_packet(&context, sid, UPGRADES);
        let socket = delivery::Socket::Polling(PollingSocket::new(context.send_queue.max_bytes).into());
        let client = Client::new(context, socket, Dialect::SocketIo, address, permits);
        let session = PollingSession::new(Arc::clone(&client.handle));
        let listed = client.context.polling.add(sid, Arc::clone(&session));
        let poller = Poller::new(Arc::clone(&session), listed, Arc::clone(&client.context));
        (Self::new(client, Transport::Polling(poller)), packet, session)
    }

    fn new(client: Client, transport: Transport) -> Self {
        Self { client, transport, session: Session::default(), last_ping: Instant::now() }
    }

    /// Runs to the connection's end.
    pub fn run(mut self, handshake: SocketIoHandshake) -> impl Future<Output = ()> + Send {
        // Boxed, as the end is: short-lived state must not enlarge the future of every connection.
        let handshake = Box::new(handshake);
        async move {
            let joined = Box::pin(self.join(handshake)).await;
            // Borrowed: a registration that is moved out of it would be there twice.
            let close = match &joined {
                Ok(registration) => {
                    let user = registration.user();
                    let span = self.client.span(user);
                    let ended = in_span(self.receive(Some(user), None), span).await;
                    // A session has one CONNECT: another is refused as a packet.
                    ended.err().unwrap_or(Close::Protocol)
                }
                Err(close) => *close,
            };
            let user = joined.ok().map(|registration| registration.user().clone());
            let close = self.transport.reason(&self.client, close);
            self.client.end(close, user.as_ref());
            drop(user);
            self.transport.end(close);
            if close != Close::Gone {
                Box::pin(self.settle()).await;
            }
            // After a close alone, the client would come back.
            if self.session.has_joined() && matches!(close, Close::Disconnected | Close::Revoked | Close::Replaced) {
                Box::pin(self.dismiss()).await;
            }
            Box::pin(self.transport.finish(&self.client.handle, close)).await;
        }
    }

    async fn settle(&mut self) {
        let (handle, limits) = (&self.client.handle, self.client.context.limits.get());
        timeout(DISMISS_DEADLINE, self.transport.settle(handle, &limits)).await.ok();
    }

    /// Tells the client to stay away, and leaves the close to it for a moment: one that handles packets in several threads
    /// may see a close that follows at once before the packet, and come back.
    async fn dismiss(&mut self) {
        self.say(DISCONNECT);
        timeout(DISMISS_DEADLINE, self.transport.closed_by_client()).await.ok();
    }

    /// Handles packets and deadlines until the client sends a CONNECT, whose `auth` is returned. `user` is known once the
    /// session is greeted.
    async fn receive(&mut self, user: Option<&UserId>, end: End<'_>) -> Result<Box<Auth>, Close> {
        loop {
            self.transport.upgrade(&self.client.handle, &self.client.context.limits.get());
            let deadline = self.transport.next_deadline(&mut self.client, self.last_ping);
            let deadline = end.map_or(deadline, |(at, _)| deadline.min(*at));
            let Self { client, transport, .. } = self;
            let is_read = transport.is_read(&client.clock);
            tokio::select! {
                biased;
                turn = poll_fn(|cx| client.poll_turn(cx, user)) => match turn {
                    Turn::Close(close) => return Err(close),
                    Turn::Probed => self.probe(),
                    Turn::Again => {}
                },
                received = poll_fn(|cx| transport.poll_next(cx)), if is_read => {
                    let action = self.take(received)?;
                    if let Some(auth) = self.act(action, user) {
                        return Ok(auth);
                    }
                    // Here too, because a client that never pauses would starve the deadline.
                    self.enforce_deadlines(end)?;
                }
                () = sleep_until(deadline) => self.enforce_deadlines(end)?,
            }
        }
    }

    fn take(&mut self, received: Received) -> Result<Action, Close> {
        match received {
            Received::Attachment => self.session.attachment(),
            Received::Inbound(ControlFlow::Break(close)) => Err(close),
            Received::Inbound(ControlFlow::Continue(None)) => Ok(Action::Nothing),
            Received::Inbound(ControlFlow::Continue(Some(text))) => self.session.receive(&text),
        }
    }

    /// Acts on a packet, whichever transport brought it. Returns the `auth` of a CONNECT.
    fn act(&mut self, action: Action, user: Option<&UserId>) -> Option<Box<Auth>> {
        let context = &self.client.context;
        match action {
            // Only this answers a ping: the client must see its own part of the heartbeat.
            Action::Pong => self.client.clock.received(Instant::now()),
            Action::Connect(auth) => return Some(auth),
            Action::InvalidNamespace(namespace) => {
                let frame = text_frame(&[invalid_namespace(&namespace).as_bytes()]);
                let queue = &self.client.handle.queue;
                queue.push(frame, None, &context.send_queue);
                queue.flush();
            }
            Action::Read(cursor) => {
                user.into_iter().for_each(|user| self.client.note_read(user, cursor));
            }
            Action::Ignored => context.metrics.socketio_ignored.inc(),
            Action::Nothing => {}
        }
        None
    }

    fn enforce_deadlines(&mut self, end: End<'_>) -> Result<(), Close> {
        let now = Instant::now();
        if let Some((at, close)) = end
            && now >= *at
        {
            return Err(*close);
        }
        match self.transport.due(&mut self.client, now, self.last_ping) {
            Due::Nothing => Ok(()),
            Due::Close(close) => Err(close),
            Due::Ping => {
                self.ping(now);
                Ok(())
            }
        }
    }

    /// Another connection of the user waits for room: unless the client answers soon, this one is closed.
    fn probe(&mut self) {
        let now = Instant::now();
        if self.client.clock.probe(now) {
            self.ping(now);
        }
    }

    fn ping(&mut self, now: Instant) {
        self.last_ping = now;
        self.client.handle.queue.send(Bytes::from_static(PING));
    }

    fn say(&self, packet: &str) {
        self.client.handle.queue.send(text_frame(&[packet.as_bytes()]));
    }
}
