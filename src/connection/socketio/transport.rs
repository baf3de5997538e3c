//! The transport of a session: a WebSocket, or requests of a client that polls, until it upgrades.

use std::sync::Arc;
use std::task::{Context as Task, Poll};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::polling::Poller;
use crate::config;
use crate::connection::Context;
use crate::connection::client::Client;
use crate::connection::clock::{Clock, Due};
use crate::connection::inbound::{Inbound, inbound};
use crate::connection::socket::Socket;
use crate::connection::websocket::{finish, unless_violated};
use crate::delivery::ConnectionHandle;
use crate::protocol::Close;

pub(super) enum Transport {
    WebSocket(Socket),
    Polling(Poller),
}

/// A packet of the client.
pub(super) enum Received {
    Inbound(Inbound),
    /// A binary WebSocket frame. In a polling body, an attachment is a text.
    Attachment,
}

impl Transport {
    /// Whether packets are handled now: not while a WebSocket's client does not read, because replies could fill its send
    /// queue. A client that polls has no request open now and then; replies to it are bounded as events are.
    pub(super) fn is_read(&self, clock: &Clock) -> bool {
        matches!(self, Self::Polling(_)) || clock.stalled_since.is_none()
    }

    pub(super) fn poll_next(&mut self, cx: &mut Task<'_>) -> Poll<Received> {
        match self {
            Self::WebSocket(socket) => socket.poll_next(cx).map(|read| match read {
                Some(Ok(Message::Binary(_))) => Received::Attachment,
                read => Received::Inbound(inbound(read)),
            }),
            Self::Polling(poller) => poller.poll_next(cx).map(Received::Inbound),
        }
    }

    /// Continues on the WebSocket that the client has moved to, if it has.
    pub(super) fn upgrade(&mut self, handle: &Arc<ConnectionHandle>, limits: &config::Limits) {
        if let Self::Polling(poller) = self
            && let Some(early) = poller.take_upgrade()
        {
            *self = Self::WebSocket(Socket::new(Arc::clone(handle), limits, early));
        }
    }

    /// Handles no further packets.
    pub(super) fn end(&mut self, close: Close) {
        if let Self::Polling(poller) = self {
            poller.end(close);
        }
    }

    /// Lets a client that is moving to a WebSocket arrive there, so that it learns of the end.
    pub(super) async fn settle(&mut self, handle: &Arc<ConnectionHandle>, limits: &config::Limits) {
        if let Self::Polling(poller) = self {
            poller.probe_ended().await;
            self.upgrade(handle, limits);
        }
    }

    /// As [`Clock::next`].
    pub(super) fn next_deadline(&self, client: &mut Client, last_ping: Instant) -> Instant {
        let next = self.with_clock(client, |clock, context| clock.next(last_ping, context));
        self.requested_by(&client.context, &client.handle).map_or(next, |at| at.min(next))
    }

    /// As [`Clock::due`].
    pub(super) fn due(&self, client: &mut Client, now: Instant, last_ping: Instant) -> Due {
        if self.requested_by(&client.context, &client.handle).is_some_and(|at| now >= at) {
            return Due::Close(Close::NoPong);
        }
        self.with_clock(client, |clock, context| clock.due(now, last_ping, context))
    }

    /// When a client that polls, and has no request open, must have sent one: as late as it could answer a ping.
    fn requested_by(&self, context: &Context, handle: &ConnectionHandle) -> Option<Instant> {
        let (Self::Polling(_), server) = (self, &context.server) else { return None };
        handle.queue.idle_since().map(|since| since + server.heartbeat + server.pong_timeout)
    }

    /// For a client that polls, the time without a request is no stall: [`Transport::requested_by`] bounds it.
    fn with_clock<T>(&self, client: &mut Client, read: impl FnOnce(&mut Clock, &Arc<Context>) -> T) -> T {
        let Client { clock, context, handle, .. } = client;
        let Self::Polling(_) = self else { return read(clock, context) };
        let armed = std::mem::replace(&mut clock.stalled_since, handle.queue.write_stall());
        let result = read(clock, context);
        clock.stalled_since = armed;
        result
    }

    /// The reason for the end: that of `close`, unless the client exceeded a limit on its input.
    pub(super) fn reason(&self, client: &Client, close: Close) -> Close {
        match self {
            Self::WebSocket(socket) => unless_violated(client, socket, close),
            Self::Polling(_) => close,
        }
    }

    /// Waits until the client closes its WebSocket, or until a response has all packets so far: a client handles the end of
    /// a session before the other packets of the same response.
    pub(super) async fn closed_by_client(&mut self) {
        match self {
            Self::WebSocket(socket) => while let Some(Ok(_)) = socket.next().await {},
            Self::Polling(poller) => poller.flush().await,
        }
    }

    /// Tells the client of the end.
    pub(super) async fn finish(&mut self, handle: &ConnectionHandle, close: Close) {
        match self {
            Self::WebSocket(socket) => finish(socket, handle, close).await,
            Self::Polling(poller) => poller.finish(close).await,
        }
    }
}
