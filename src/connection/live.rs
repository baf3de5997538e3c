//! The greeted part of a connection's life: reads the client, keeps time, drives the outbox.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::clock::Due;
use super::cold::ColdEvent;
use super::{Connection, Inbound, Read, close_for, echo, found, inbound};
use crate::auth::{Identity, TokenError};
use crate::delivery::Driven;
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame};

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

impl Connection {
    pub(super) async fn live(&mut self) -> Close {
        loop {
            self.note_life();
            let deadline = self.clock.next(self.socket.get_ref().last_read, &self.context);
            let Self { handle, socket, clock, cold, .. } = self;
            tokio::select! {
                biased;
                driven = poll_fn(|cx| handle.queue.poll_drive(cx, clock.stalled_since)) => match driven {
                    Driven::Closing(close) => return close,
                    Driven::Stalled(since) => clock.stalled_since = since,
                    Driven::Behind => self.follow(),
                },
                // While the client does not read, it is not read either: its questions could fill its outbox.
                read = socket.next(), if clock.stalled_since.is_none() => match self.hear(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && self.handle.dialect.has_frames()
                        {
                            self.answer(&text);
                        }
                        // A client that never pauses must not keep the clock from being looked at.
                        if let Some(close) = self.keep_time() {
                            return close;
                        }
                    }
                },
                done = poll_fn(|cx| cold.as_mut().map_or(Poll::Pending, |cold| cold.poll(cx))) => match done {
                    ColdEvent::Verified(verified) => self.refresh(verified),
                    ColdEvent::Read(Some(reading)) if reading.whole => {
                        self.replay(Some(found(reading, self.handle.dialect)));
                    }
                    ColdEvent::Read(Some(_)) => return Close::Gap,
                    ColdEvent::Read(None) => return Close::BackplaneDown,
                },
                () = sleep_until(deadline) => {
                    if let Some(close) = self.keep_time() {
                        return close;
                    }
                }
            }
        }
    }

    /// Reads on from the client's position, until it is level.
    fn follow(&mut self) {
        let Some(registration) = &self.registration else { return };
        let (history, user) = (Arc::clone(&self.context.history), registration.user().clone());
        let position = self.handle.queue.begin_reading();
        let following = async move { history.follow(&user, position).await }.boxed();
        self.cold.get_or_insert_default().following = Some(following);
    }

    fn hear(&self, read: Read) -> Inbound {
        if self.echo { echo::send_back(read, &self.context, &self.handle) } else { inbound(read) }
    }

    fn note_life(&mut self) {
        self.clock.heard(self.socket.get_ref().last_read);
    }

    fn keep_time(&mut self) -> Option<Close> {
        self.note_life();
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

    fn answer(&mut self, text: &str) {
        let error = match ClientFrame::parse(text) {
            Ok(ClientFrame::Pong) => return,
            Ok(ClientFrame::Ack(cursor)) => {
                if let Some(registration) = &self.registration {
                    self.context.acks.note(registration.user(), self.device(), cursor);
                }
                return;
            }
            Ok(ClientFrame::Auth { .. }) if self.cold.as_ref().is_some_and(|cold| cold.verifying.is_some()) => {
                (BAD_FRAME, "the token before this one is still being verified".into())
            }
            Ok(ClientFrame::Auth { token }) => {
                match self.context.authenticator.authenticate_now(&token) {
                    Some(verified) => self.refresh(verified),
                    None => {
                        let context = Arc::clone(&self.context);
                        let verifying = async move { context.authenticator.authenticate(&token).await }.boxed();
                        self.cold.get_or_insert_default().verifying = Some(verifying);
                    }
                }
                return;
            }
            Ok(ClientFrame::Hello { .. }) => (BAD_FRAME, "this connection is authenticated already".into()),
            Err(error) => (BAD_FRAME, error.to_string()),
        };
        self.refuse(error.0, &error.1);
    }

    fn refuse(&self, code: u16, message: &str) {
        self.handle.queue.send(ServerFrame::Error { code, message }.encode());
    }

    /// Takes a fresh token of the same user; a refused one leaves the old one in position.
    fn refresh(&mut self, verified: Result<Identity, TokenError>) {
        let identity = match verified {
            Ok(identity) => identity,
            Err(error) => return self.refuse(close_for(&error).code(), &error.to_string()),
        };
        if self.registration.as_ref().is_none_or(|registration| *registration.user() != identity.user) {
            return self.refuse(Close::Forbidden.code(), "the token is another user's");
        }
        self.handle.credential.set(identity.credential);
        // Whoever revokes it puts that into force first and then looks at connections: one of the two sees the other.
        if self.context.authenticator.is_revoked(&identity) {
            return self.handle.queue.close(Close::Revoked);
        }
        self.clock.token_ends(self.context.authenticator.ends_at(&identity));
        let expires = identity.expires.unwrap_or(u64::MAX);
        self.handle.queue.send(ServerFrame::Authenticated { expires }.encode());
    }
}
