//! The loop of a live connection: reads from the client, enforces deadlines, drives the send queue.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::clock::Due;
use super::cold::ColdEvent;
use super::inbound::{Inbound, Read, inbound};
use super::{Connection, close_for, echo, to_page};
use crate::auth::{Identity, TokenError};
use crate::delivery::{Driven, Registration};
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame, UserId};

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

impl Connection {
    /// Runs a greeted connection until it has to close; the registration proves that it was greeted.
    pub(super) async fn live(&mut self, registration: &Registration) -> Close {
        loop {
            self.note_read();
            let deadline = self.clock.next(self.socket.get_ref().last_read, &self.context);
            let Self { handle, socket, clock, cold, .. } = self;
            tokio::select! {
                biased;
                driven = poll_fn(|cx| handle.queue.poll_drive(cx, clock.stalled_since)) => match driven {
                    Driven::Closing(close) => return close,
                    Driven::Stalled(since) => clock.stalled_since = since,
                    Driven::Behind => self.catch_up(registration.user()),
                },
                // While the client does not read, it is not read from: replies could fill its send queue.
                read = socket.next(), if clock.stalled_since.is_none() => match self.receive(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && self.handle.dialect.has_frames()
                        {
                            self.handle_text(registration.user(), &text);
                        }
                        // Here too, because a client that never pauses would starve the deadline.
                        if let Some(close) = self.enforce_deadlines() {
                            return close;
                        }
                    }
                },
                event = poll_fn(|cx| cold.as_mut().map_or(Poll::Pending, |cold| cold.poll(cx))) => match event {
                    ColdEvent::Verified(verified) => self.refresh(registration.user(), verified),
                    ColdEvent::Read(Some(reading)) if reading.whole => {
                        self.replay(Some(to_page(reading, self.handle.dialect)));
                    }
                    ColdEvent::Read(Some(_)) => return Close::Gap,
                    ColdEvent::Read(None) => return Close::BackplaneDown,
                },
                () = sleep_until(deadline) => {
                    if let Some(close) = self.enforce_deadlines() {
                        return close;
                    }
                }
            }
        }
    }

    /// Starts a read from the client's position, until the client has caught up.
    fn catch_up(&mut self, user: &UserId) {
        let (history, user) = (Arc::clone(&self.context.history), user.clone());
        let position = self.handle.queue.begin_reading();
        let reading = async move { history.follow(&user, position).await }.boxed();
        self.cold.get_or_insert_default().reading = Some(reading);
    }

    fn receive(&self, read: Read) -> Inbound {
        if self.echo { echo::send_back(read, &self.context, &self.handle) } else { inbound(read) }
    }

    fn note_read(&mut self) {
        self.clock.received(self.socket.get_ref().last_read);
    }

    fn enforce_deadlines(&mut self) -> Option<Close> {
        self.note_read();
        match self.clock.due(Instant::now(), self.socket.get_ref().last_read, &self.context) {
            Due::Nothing => None,
            Due::Close(close) => Some(close),
            Due::Ping => {
                let json = self.handle.dialect.pings_in_json();
                let ping = if json { ServerFrame::Ping.encode() } else { Bytes::from_static(PING) };
                self.handle.queue.send(ping);
                None
            }
        }
    }

    fn handle_text(&mut self, user: &UserId, text: &str) {
        let message = match ClientFrame::parse(text) {
            Ok(ClientFrame::Pong) => return,
            Ok(ClientFrame::Ack(cursor)) => {
                return self.context.acks.note(user, self.device(), cursor);
            }
            Ok(ClientFrame::Auth { .. }) if self.cold.as_ref().is_some_and(|cold| cold.verifying.is_some()) => {
                "the previous token is still being verified".to_owned()
            }
            Ok(ClientFrame::Auth { token }) => {
                match self.context.authenticator.authenticate_now(&token) {
                    Some(verified) => self.refresh(user, verified),
                    None => {
                        let context = Arc::clone(&self.context);
                        let verifying = async move { context.authenticator.authenticate(&token).await }.boxed();
                        self.cold.get_or_insert_default().verifying = Some(verifying);
                    }
                }
                return;
            }
            Ok(ClientFrame::Hello { .. }) => "this connection is already authenticated".to_owned(),
            Err(error) => error.to_string(),
        };
        self.refuse(BAD_FRAME, &message);
    }

    fn refuse(&self, code: u16, message: &str) {
        self.handle.queue.send(ServerFrame::Error { code, message }.encode());
    }

    /// Replaces the token by a new one of the same user; if that is refused, the old one stays in force.
    fn refresh(&mut self, user: &UserId, verified: Result<Identity, TokenError>) {
        let identity = match verified {
            Ok(identity) => identity,
            Err(error) => return self.refuse(close_for(&error).code(), &error.to_string()),
        };
        if *user != identity.user {
            return self.refuse(Close::Forbidden.code(), "the token belongs to another user");
        }
        self.handle.credential.set(identity.credential);
        // A revocation is put into force before connections are checked: so either that check or this one finds the token.
        if self.context.authenticator.is_revoked(&identity) {
            return self.handle.queue.close(Close::Revoked);
        }
        self.clock.set_expiry(self.context.authenticator.ends_at(&identity));
        let expires = identity.expires.unwrap_or(u64::MAX);
        self.handle.queue.send(ServerFrame::Authenticated { expires }.encode());
    }
}
