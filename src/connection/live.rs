//! The loop of a live WebSocket connection: reads from the client, enforces deadlines.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::{Instant, sleep_until};

use super::client::Turn;
use super::clock::Due;
use super::inbound::{Inbound, Read, inbound};
use super::{Connection, echo};
use crate::delivery::Registration;
use crate::protocol::{BAD_FRAME, ClientFrame, Close, ServerFrame, UserId};

/// An empty WebSocket ping (RFC 6455, section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];

impl Connection {
    /// Runs a greeted connection until it has to close; the registration proves that it was greeted.
    pub(super) async fn live(&mut self, registration: &Registration) -> Close {
        let user = registration.user();
        loop {
            self.note_read();
            let deadline = self.client.clock.next(self.socket.last_read(), &self.client.context);
            let Self { client, socket, .. } = self;
            let is_read = client.clock.stalled_since.is_none() && client.has_room_for_requests();
            tokio::select! {
                biased;
                turn = poll_fn(|cx| client.poll_turn(cx, Some(user))) => match turn {
                    Turn::Close(close) => return close,
                    Turn::Probed => self.probe(),
                    Turn::Again => {}
                },
                // While the client does not read, it is not read from: replies could fill its send queue.
                read = socket.next(), if is_read => match self.receive(read) {
                    ControlFlow::Break(close) => return close,
                    ControlFlow::Continue(text) => {
                        if let Some(text) = text
                            && self.client.handle.dialect.has_frames()
                        {
                            self.handle_text(user, &text);
                        }
                        // Here too, because a client that never pauses would starve the deadline.
                        if let Some(close) = self.enforce_deadlines() {
                            return close;
                        }
                    }
                },
                () = sleep_until(deadline) => {
                    if let Some(close) = self.enforce_deadlines() {
                        return close;
                    }
                }
            }
        }
    }

    fn receive(&self, read: Read) -> Inbound {
        if self.echo { echo::send_back(read, &self.client.context, &self.client.handle) } else { inbound(read) }
    }

    fn note_read(&mut self) {
        self.client.clock.received(self.socket.last_read());
    }

    fn enforce_deadlines(&mut self) -> Option<Close> {
        self.note_read();
        match self.client.clock.due(Instant::now(), self.socket.last_read(), &self.client.context) {
            Due::Nothing => None,
            Due::Close(close) => Some(close),
            Due::Ping => {
                self.ping();
                None
            }
        }
    }

    /// Another connection of the user waits for room: unless the client answers soon, this one is closed.
    fn probe(&mut self) {
        self.note_read();
        if self.client.clock.probe(Instant::now()) {
            self.ping();
        }
    }

    fn ping(&self) {
        let handle = &self.client.handle;
        if handle.dialect.pings_in_json() {
            handle.tell(&ServerFrame::Ping);
        } else {
            handle.queue.send(Bytes::from_static(PING));
        }
    }

    fn handle_text(&mut self, user: &UserId, text: &str) {
        let client = &mut self.client;
        let message = match ClientFrame::parse(text) {
            Ok(ClientFrame::Pong) => return,
            Ok(ClientFrame::Ack(cursor)) => return client.note_read(user, cursor),
            Ok(ClientFrame::History(request)) => return client.request_page(request),
            Ok(ClientFrame::Auth { .. }) if client.cold.as_ref().is_some_and(|cold| cold.verifying.is_some()) => {
                "the previous token is still being verified".to_owned()
            }
            Ok(ClientFrame::Auth { token }) => {
                match client.context.authenticator.authenticate_now(&token) {
                    Some(verified) => client.refresh(user, verified),
                    None => {
                        let context = Arc::clone(&client.context);
                        let verifying = async move { context.authenticator.authenticate(&token).await }.boxed();
                        client.cold.get_or_insert_default().verifying = Some(verifying);
                    }
                }
                return;
            }
            Ok(ClientFrame::Hello { .. }) => "this connection is already authenticated".to_owned(),
            Err(error) => return client.handle.refuse(BAD_FRAME, &error.to_string(), error.reference()),
        };
        client.refuse(BAD_FRAME, &message);
    }
}
