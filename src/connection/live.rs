//! The greeted part of a connection's life: reads the client, keeps time, drives the outbox.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::{Context, Inbound, Read, Socket, echo, inbound};
use crate::auth::{Identity, TokenError};
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame};
use crate::registry::{Driven, Member};

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

pub(super) struct Live<'a> {
    context: &'a Context,
    member: &'a Arc<Member>,
    identity: Identity,
    /// When the token ends, leeway included.
    ends_at: Option<Instant>,
    /// When the client last sent a byte: part of a message is a sign of life too.
    last_heard: Instant,
    /// When the ping was sent that nothing has answered yet.
    pinged_at: Option<Instant>,
    /// Since when the socket takes nothing.
    stalled_since: Option<Instant>,
    /// Sends messages back instead of acting on them.
    pub(super) echo: bool,
}

impl<'a> Live<'a> {
    pub(super) fn new(context: &'a Context, member: &'a Arc<Member>, identity: Identity) -> Self {
        let now = Instant::now();
        let mut live = Self {
            context,
            member,
            identity,
            ends_at: None,
            last_heard: now,
            pinged_at: None,
            stalled_since: None,
            echo: false,
        };
        live.reset_end();
        live
    }

    pub(super) async fn run(mut self, socket: &mut Socket) -> Close {
        loop {
            self.note_life(socket);
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                driven = poll_fn(|cx| self.member.outbox.poll_drive(cx, self.stalled_since)) => match driven {
                    Driven::Closing(close) => return close,
                    Driven::Stalled(since) => self.stalled_since = since,
                },
                // While the client does not read, it is not read either: its questions could fill its outbox.
                read = socket.next(), if self.stalled_since.is_none() => match self.hear(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && self.member.dialect.has_frames()
                        {
                            self.answer(&text);
                        }
                        // A client that never pauses must not keep the clock from being looked at.
                        self.note_life(socket);
                        if let Some(close) = self.keep_time(Instant::now()) {
                            return close;
                        }
                    }
                },
                () = sleep_until(deadline) => {
                    self.note_life(socket);
                    if let Some(close) = self.keep_time(Instant::now()) {
                        return close;
                    }
                }
            }
        }
    }

    fn hear(&self, read: Read) -> Inbound {
        if self.echo { echo::send_back(read, self.context, self.member) } else { inbound(read) }
    }

    fn note_life(&mut self, socket: &Socket) {
        self.last_heard = socket.get_ref().last_read;
        self.pinged_at = self.pinged_at.filter(|pinged_at| self.last_heard <= *pinged_at);
    }

    fn next_deadline(&self) -> Instant {
        let server = &self.context.server;
        let silence = match (self.stalled_since, self.pinged_at) {
            (Some(since), _) => since + self.context.outbox.write_timeout,
            (None, Some(pinged_at)) => pinged_at + server.pong_timeout,
            (None, None) => self.last_heard + server.heartbeat,
        };
        self.ends_at.map_or(silence, |ends_at| silence.min(ends_at))
    }

    fn keep_time(&mut self, now: Instant) -> Option<Close> {
        let server = &self.context.server;
        if self.ends_at.is_some_and(|ends_at| now >= ends_at) {
            return Some(Close::TokenExpired);
        }
        match (self.stalled_since, self.pinged_at) {
            (Some(since), _) if now >= since + self.context.outbox.write_timeout => return Some(Close::WriteTimeout),
            (Some(_), _) => {}
            (None, Some(pinged_at)) if now >= pinged_at + server.pong_timeout => return Some(Close::NoPong),
            (None, None) if now >= self.last_heard + server.heartbeat => {
                let json = self.member.dialect.pings_in_json();
                let ping = if json { ServerFrame::Ping.encode() } else { Bytes::from_static(PING) };
                self.member.outbox.send(ping);
                self.pinged_at = Some(now);
            }
            (None, _) => {}
        }
        None
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
        let identity = self.context.verifier.verify(token).map_err(|error| {
            let close = if error == TokenError::Expired { Close::TokenExpired } else { Close::BadToken };
            (close.code(), error.to_string())
        })?;
        if identity.user != self.identity.user {
            return Err((Close::Forbidden.code(), "the token is another user's".into()));
        }
        self.identity = identity;
        self.reset_end();
        let expires = self.identity.expires.unwrap_or(u64::MAX);
        self.member.outbox.send(ServerFrame::Authenticated { expires }.encode());
        Ok(())
    }

    fn reset_end(&mut self) {
        // Tokio's clock cannot hold every moment that a token can name. One that ends in more than a year never does.
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        let left = self.identity.expires.map(|expires| self.context.verifier.time_left(expires));
        self.ends_at = left.filter(|left| *left < FAR).map(|left| Instant::now() + left);
    }
}
