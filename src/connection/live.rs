//! The greeted part of a connection's life: reads the client, keeps time, drives the outbox.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::clock::Due;
use super::seldom::Done;
use super::{Connection, Inbound, Read, close_for, echo, found, inbound};
use crate::auth::{Identity, TokenError};
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame};
use crate::registry::Driven;

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

impl Connection {
    pub(super) async fn live(&mut self) -> Close {
        loop {
            self.note_life();
            let deadline = self.clock.next(self.socket.get_ref().last_read, &self.context);
            let Self { member, socket, clock, seldom, .. } = self;
            tokio::select! {
                biased;
                driven = poll_fn(|cx| member.outbox.poll_drive(cx, clock.stalled_since)) => match driven {
                    Driven::Closing(close) => return close,
                    Driven::Stalled(since) => clock.stalled_since = since,
                    Driven::Behind => self.follow(),
                },
                // While the client does not read, it is not read either: its questions could fill its outbox.
                read = socket.next(), if clock.stalled_since.is_none() => match self.hear(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && self.member.dialect.has_frames()
                        {
                            self.answer(&text);
                        }
                        // A client that never pauses must not keep the clock from being looked at.
                        if let Some(close) = self.keep_time() {
                            return close;
                        }
                    }
                },
                done = poll_fn(|cx| seldom.as_mut().map_or(Poll::Pending, |seldom| seldom.poll(cx))) => match done {
                    Done::Verified(verified) => self.refresh(verified),
                    Done::Read(Some(reading)) if reading.whole => {
                        self.release(Some(found(reading, self.member.dialect)));
                    }
                    Done::Read(Some(_)) => return Close::Gap,
                    Done::Read(None) => return Close::BackplaneDown,
                },
                () = sleep_until(deadline) => {
                    if let Some(close) = self.keep_time() {
                        return close;
                    }
                }
            }
        }
    }

    /// Reads on from the client's place, until it is level.
    fn follow(&mut self) {
        let Some(registration) = &self.registration else { return };
        let (history, user) = (Arc::clone(&self.context.history), registration.user().clone());
        let place = self.member.outbox.begin_reading();
        let following = async move { history.follow(&user, place).await }.boxed();
        self.seldom.get_or_insert_default().following = Some(following);
    }

    fn hear(&self, read: Read) -> Inbound {
        if self.echo { echo::send_back(read, &self.context, &self.member) } else { inbound(read) }
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
                let json = self.member.dialect.pings_in_json();
                let ping = if json { ServerFrame::Ping.encode() } else { Bytes::from_static(PING) };
                self.member.outbox.send(ping);
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
            Ok(ClientFrame::Auth { .. }) if self.seldom.as_ref().is_some_and(|seldom| seldom.verifying.is_some()) => {
                (BAD_FRAME, "the token before this one is still being verified".into())
            }
            Ok(ClientFrame::Auth { token }) => {
                match self.context.identify_now(&token) {
                    Some(verified) => self.refresh(verified),
                    None => {
                        let context = Arc::clone(&self.context);
                        let verifying = async move { context.identify(&token).await }.boxed();
                        self.seldom.get_or_insert_default().verifying = Some(verifying);
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
        self.member.outbox.send(ServerFrame::Error { code, message }.encode());
    }

    /// Takes a fresh token of the same user; a refused one leaves the old one in place.
    fn refresh(&mut self, verified: Result<Identity, TokenError>) {
        let identity = match verified {
            Ok(identity) => identity,
            Err(error) => return self.refuse(close_for(&error).code(), &error.to_string()),
        };
        if self.registration.as_ref().is_none_or(|registration| *registration.user() != identity.user) {
            return self.refuse(Close::Forbidden.code(), "the token is another user's");
        }
        self.member.credential.set(identity.credential);
        // Whoever revokes it puts that into force first and then looks at connections: one of the two sees the other.
        if self.context.revocations.refuses(&identity) {
            return self.member.outbox.close(Close::Revoked);
        }
        self.clock.token_ends(self.context.verifier.ends_at(&identity));
        let expires = identity.expires.unwrap_or(u64::MAX);
        self.member.outbox.send(ServerFrame::Authenticated { expires }.encode());
    }
}
