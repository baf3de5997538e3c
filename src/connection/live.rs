//! The greeted part of a connection's life: reads the client, keeps time, drives the outbox.

use std::future::poll_fn;
use std::ops::ControlFlow;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::clock::Due;
use super::{Connection, inbound};
use crate::auth::TokenError;
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame};
use crate::registry::Driven;

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

impl Connection {
    pub(super) async fn live(&mut self) -> Close {
        loop {
            self.note_life();
            let deadline = self.clock.next(self.socket.get_ref().last_read, &self.context);
            let Self { member, socket, clock, .. } = self;
            tokio::select! {
                biased;
                driven = poll_fn(|cx| member.outbox.poll_drive(cx, clock.stalled_since)) => match driven {
                    Driven::Closing(close) => return close,
                    Driven::Stalled(since) => clock.stalled_since = since,
                },
                // While the client does not read, it is not read either: its questions could fill its outbox.
                read = socket.next(), if clock.stalled_since.is_none() => match inbound(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && member.dialect.has_frames()
                        {
                            self.answer(&text);
                        }
                        // A client that never pauses must not keep the clock from being looked at.
                        if let Some(close) = self.keep_time() {
                            return close;
                        }
                    }
                },
                () = sleep_until(deadline) => {
                    if let Some(close) = self.keep_time() {
                        return close;
                    }
                }
            }
        }
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
            Ok(ClientFrame::Pong | ClientFrame::Ack) => return,
            Ok(ClientFrame::Auth { token }) => match self.refresh(&token) {
                Ok(()) => return,
                Err(refused) => refused,
            },
            Ok(ClientFrame::Hello { .. }) => (BAD_FRAME, "this connection is authenticated already".into()),
            Err(error) => (BAD_FRAME, error.to_string()),
        };
        self.member.outbox.send(ServerFrame::Error { code: error.0, message: &error.1 }.encode());
    }

    /// Takes a fresh token of the same user; a refused one leaves the old one in place.
    fn refresh(&mut self, token: &str) -> Result<(), (u16, String)> {
        let identity = self.context.identify(token).map_err(|error| {
            let close = if error == TokenError::Expired { Close::TokenExpired } else { Close::BadToken };
            (close.code(), error.to_string())
        })?;
        if self.registration.as_ref().is_none_or(|registration| *registration.user() != identity.user) {
            return Err((Close::Forbidden.code(), "the token is another user's".into()));
        }
        self.member.credential.set(identity.credential);
        // Whoever revokes it puts that into force first and then looks at connections: one of the two sees the other.
        if self.context.revocations.refuses(&identity) {
            self.member.outbox.close(Close::Revoked);
        }
        self.clock.token_ends(self.context.verifier.ends_at(&identity));
        let expires = identity.expires.unwrap_or(u64::MAX);
        self.member.outbox.send(ServerFrame::Authenticated { expires }.encode());
        Ok(())
    }
}
