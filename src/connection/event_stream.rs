//! A stream of Server-Sent Events: the client only receives, so nothing but its end is read from it.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Client, Turn, in_span};
use super::clock::Due;
use super::websocket::CLOSE_DEADLINE;
use super::{Context, Handshake};
use crate::delivery::{Registration, Socket};
use crate::limits::AdmissionPermits;
use crate::protocol::{Close, Dialect, RETRY_MS, ServerFrame};

/// A comment, which every client ignores.
pub const COMMENT: &[u8] = b":\n\n";

/// Output is looked for this often in each heartbeat, so that a comment is at most a fourth of one late.
const CHECKS_PER_HEARTBEAT: u32 = 4;

/// How long a probed client may leave data unacknowledged: the system counts from its first retransmission, some hundred
/// milliseconds later.
const PROBE_ACKNOWLEDGED: Duration = Duration::from_millis(1_500);

/// More than any client sends after its request.
const MAX_STRAY_BYTES: usize = 1_024;

/// One open stream.
pub struct EventStream {
    client: Client,
    /// Consecutive checks that found no output.
    quiet: u32,
    stray_bytes: usize,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("id", &self.client.handle.id).finish_non_exhaustive()
    }
}

impl EventStream {
    /// Takes the socket of an accepted request of the client at `address`.
    pub fn open(
        context: Arc<Context>,
        socket: Socket,
        dialect: Dialect,
        address: IpAddr,
        permits: AdmissionPermits,
    ) -> Self {
        Self { client: Client::new(context, socket, dialect, address, permits), quiet: 0, stray_bytes: 0 }
    }

    /// Runs to the stream's end. The handshake must have an identity: a stream has no `hello`.
    pub fn run(mut self, handshake: Handshake) -> impl Future<Output = ()> + Send {
        // Boxed, as the end is: short-lived state must not enlarge the future of every stream.
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
            // Without a welcome, nothing else has said it.
            let retry_ms = user.is_none().then(|| fastrand::u64(RETRY_MS));
            self.client.end(close, user.as_ref());
            drop(user);
            Box::pin(self.finish(close, retry_ms)).await;
        }
    }

    async fn begin(&mut self, handshake: Box<Handshake>) -> Result<Registration, Close> {
        self.expect_acknowledgement();
        let Handshake { identity, start, mut head, peer, begun } = *handshake;
        let identity = identity.ok_or(Close::BadToken)?;
        if !self.client.handle.dialect.has_frames() {
            // Without a welcome: some browsers report an open stream only once its body has begun.
            head.extend_from_slice(COMMENT);
        }
        let greeted = self.client.greet(&identity, &start, head).await;
        match &greeted {
            Ok(_) => self.client.count_handshake(begun),
            Err(close) => self.client.context.refusals.unwelcomed(&peer, *close, &identity.user),
        }
        greeted
    }

    async fn live(&mut self, registration: &Registration) -> Close {
        let user = registration.user();
        let mut check_at = self.next_check();
        loop {
            let Self { client, .. } = self;
            let handle = Arc::clone(&client.handle);
            let deadline = client.clock.next_of_stream(check_at, &client.context);
            let mut unread = [0; 64];
            tokio::select! {
                biased;
                turn = poll_fn(|cx| client.poll_turn(cx, Some(user))) => match turn {
                    Turn::Close(Close::WriteTimeout) => return client.clock.unacknowledged(),
                    Turn::Close(close) => return close,
                    Turn::Probed => self.probe(),
                    Turn::Again => {}
                },
                read = poll_fn(|cx| handle.queue.poll_read(cx, &mut unread)) => match read {
                    Ok(count @ 1..) if self.stray_bytes + count <= MAX_STRAY_BYTES => self.stray_bytes += count,
                    Ok(1..) => return Close::Protocol,
                    Err(error) if error.kind() == ErrorKind::TimedOut => return client.clock.unacknowledged(),
                    Ok(0) | Err(_) => return Close::Gone,
                },
                () = sleep_until(deadline) => match client.clock.due_of_stream(Instant::now(), check_at, &client.context) {
                    Due::Close(close) => return close,
                    Due::Ping => {
                        self.check_output();
                        check_at = self.next_check();
                    }
                    Due::Nothing => {}
                },
            }
        }
    }

    fn next_check(&self) -> Instant {
        Instant::now() + self.client.context.server.heartbeat / CHECKS_PER_HEARTBEAT
    }

    /// A client that never answers is gone once its system acknowledges nothing. Twice the timeout: one that reads too slowly
    /// is usually told so first.
    fn expect_acknowledgement(&self) {
        self.client.handle.queue.limit_unacknowledged(self.client.context.send_queue.write_timeout.saturating_mul(2));
    }

    /// Another connection of the user waits for room. The client cannot answer, but its system acknowledges a comment:
    /// unless it does so soon, it is gone.
    fn probe(&mut self) {
        self.client.clock.probe(Instant::now());
        self.client.handle.queue.limit_unacknowledged(PROBE_ACKNOWLEDGED);
        self.client.handle.queue.send(Bytes::from_static(COMMENT));
    }

    /// Sends a comment after a heartbeat without output: proxies close a silent stream.
    fn check_output(&mut self) {
        if self.client.clock.end_probe(Instant::now()) {
            self.expect_acknowledgement();
        }
        let queue = &self.client.handle.queue;
        self.quiet = if queue.take_written() { 0 } else { self.quiet + 1 };
        if self.quiet == CHECKS_PER_HEARTBEAT {
            queue.send(Bytes::from_static(COMMENT));
            queue.take_written();
            self.quiet = 0;
        }
    }

    /// Tells the client why the stream ends, and ends the body, within [`CLOSE_DEADLINE`].
    async fn finish(&mut self, close: Close, retry_ms: Option<u64>) {
        let handle = &self.client.handle;
        if close == Close::Gone {
            return;
        }
        if close.code() >= 4_000 && handle.dialect.has_frames() {
            let error = ServerFrame::Error { code: close.code(), message: close.reason(), reference: None };
            handle.queue.send(error.to_block(retry_ms, None));
        }
        let ending = async {
            if poll_fn(|cx| handle.queue.poll_flush(cx)).await.is_err() {
                return;
            }
            handle.queue.finish_writing();
            // Reads until the client's end: dropping a socket with unread data may discard the last block.
            let mut waste = [0; 64];
            while matches!(poll_fn(|cx| handle.queue.poll_read(cx, &mut waste)).await, Ok(1..)) {}
        };
        timeout(CLOSE_DEADLINE, ending).await.ok();
    }
}
