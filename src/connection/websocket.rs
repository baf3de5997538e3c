//! A WebSocket connection: its handshake's end, `hello` and close handshake. [`super::live`] is its loop.

use std::future::poll_fn;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::client::{Client, close_for, in_span};
use super::inbound::inbound;
use super::socket::Socket;
use super::{Context, Handshake, Known};
use crate::delivery::{self, ConnectionHandle, Registration};
use crate::limits::{AdmissionPermits, InboundViolation};
use crate::protocol::{ClientFrame, Close, Dialect, Start};

/// Maximum time to send the queued frames and our close frame, and to receive the client's.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// One upgraded connection.
pub struct Connection {
    pub(super) client: Client,
    pub(super) socket: Socket,
    /// Whether to send messages back instead of handling them.
    pub(super) echo: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("id", &self.client.handle.id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes an upgraded socket of the client at `address`. `early` are the bytes that the client sent directly after its
    /// handshake.
    pub fn open(
        context: Arc<Context>,
        socket: delivery::Socket,
        early: Vec<u8>,
        dialect: Dialect,
        address: IpAddr,
        permits: AdmissionPermits,
    ) -> Self {
        let client = Client::new(context, socket, dialect, address, permits);
        let socket = Socket::new(Arc::clone(&client.handle), &client.context.limits.get(), early);
        Self { client, socket, echo: false }
    }

    /// Runs to the connection's end.
    pub fn run(mut self, handshake: Handshake) -> impl Future<Output = ()> + Send {
        // Boxed, as the end is: short-lived state must not enlarge the future of every connection.
        let handshake = Box::new(handshake);
        async move {
            let greeted = Box::pin(self.begin(handshake)).await;
            // Borrowed: a registration that is moved out of it would be there twice.
            let close = match &greeted {
                Ok(registration) => {
                    let span = self.client.span(registration.user());
                    in_span(self.live(registration), span).await
                }
                Err(close) => *close,
            };
            let user = greeted.ok().map(|registration| registration.user().clone());
            let close = unless_violated(&self.client, &self.socket, close);
            self.client.end(close, user.as_ref());
            drop(user);
            Box::pin(finish(&mut self.socket, &self.client.handle, close)).await;
        }
    }

    /// Returns the registration that a connection is live by; until then, it is refused or closed.
    async fn begin(&mut self, handshake: Box<Handshake>) -> Result<Registration, Close> {
        let Handshake { identity, start, head, peer, begun } = *handshake;
        if let Some(identity) = identity {
            return self.client.greet(&identity, &start, head).await.inspect(|_| self.client.count_handshake(begun));
        }
        self.client.handle.queue.send(head.into());
        self.client.count_handshake(begun);
        let mut known = Known::default();
        // Boxed: few clients have it.
        let greeted = Box::pin(self.hello(start, &mut known)).await;
        if let Err(close) = &greeted {
            self.client.context.refusals.hello(&peer, *close, &known);
        }
        greeted
    }

    /// `requested` is the start that the handshake asked for; that of the `hello` takes precedence. `known` is for the
    /// log of a refusal.
    async fn hello(&mut self, requested: Start, known: &mut Known) -> Result<Registration, Close> {
        let (context, socket) = (Arc::clone(&self.client.context), &mut self.socket);
        let first_text = async {
            loop {
                match inbound(socket.next().await) {
                    ControlFlow::Break(close) => return Err(close),
                    ControlFlow::Continue(None) => {}
                    ControlFlow::Continue(Some(text)) => return Ok(text),
                }
            }
        };
        let text = tokio::select! {
            text = timeout(context.server.hello_timeout, first_text) => text.map_err(|_| Close::HelloTimeout)??,
            () = context.shutdown.draining().cancelled() => return Err(Close::Draining),
        };
        let Ok(ClientFrame::Hello { token, start }) = ClientFrame::parse(&text) else {
            return Err(Close::HelloExpected);
        };
        let authenticated = context.authenticator.authenticate(&token).await;
        let identity = authenticated.map_err(|error| {
            known.user = context.authenticator.refused_user(&token, &error);
            known.why = Some(error.to_string());
            close_for(&error)
        })?;
        known.user = Some(identity.user.clone());
        self.client.admit_user(&identity.user).await?;
        let (resume, device) = (start.resume.or(requested.resume), start.device.or(requested.device));
        let start = Start { resume, device, ..Start::default() };
        self.client.greet(&identity, &start, Vec::new()).await
    }
}

/// The reason for the end: that of `close`, unless the client exceeded a limit on its input.
pub(super) fn unless_violated(client: &Client, socket: &Socket, close: Close) -> Close {
    socket.violation().map_or(close, |violation| close_for_violation(&client.context, violation))
}

pub(super) fn close_for_violation(context: &Context, violation: InboundViolation) -> Close {
    context.metrics.limited.with_label_values(&[violation.name()]).inc();
    match violation {
        InboundViolation::Frames | InboundViolation::Bytes => Close::RateLimited,
        InboundViolation::Fragments => Close::TooBig,
    }
}

/// Performs the close handshake, within [`CLOSE_DEADLINE`].
pub(super) async fn finish(socket: &mut Socket, handle: &ConnectionHandle, close: Close) {
    if close == Close::Gone {
        return;
    }
    let handshake = async {
        if close != Close::Normal {
            let frame = CloseFrame { code: close.code().into(), reason: close.reason().into() };
            // Flushed first: the library would send a pending pong after the close frame.
            if socket.flush().await.is_err() || socket.close(frame).await.is_err() {
                return;
            }
        }
        // Reads until the client's close frame: dropping a socket with unread data may discard our last frame.
        while let Some(Ok(_)) = socket.next().await {}
        if matches!(close, Close::Protocol | Close::InvalidText | Close::TooBig | Close::RateLimited) {
            // The library stops reading after these, but the client may still be sending.
            handle.queue.finish_writing();
            let mut waste = [0; 1_024];
            while matches!(poll_fn(|cx| handle.queue.poll_read(cx, &mut waste)).await, Ok(1..)) {}
        }
    };
    timeout(CLOSE_DEADLINE, handshake).await.ok();
}
