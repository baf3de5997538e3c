//! A WebSocket connection: greeted, live, closed. One task owns it from the upgrade to the end.

mod clock;
mod cold;
mod drain;
mod echo;
mod inbound;
mod live;
mod socket_adapter;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tracing::{debug, warn};

use crate::auth::{Authenticator, Identity, TokenError};
use crate::config;
use crate::delivery::{
    self, Backlog, CatchUpPage, ConnectionHandle, CredentialSlot, Driven, Position, Registration, Registry, SendQueue,
};
use crate::history::{Acks, Entry, History, Reading};
use crate::limits::{AdmissionPermits, InboundViolation, Limiter, UserLimit};
use crate::metrics::Metrics;
use crate::protocol::{
    ClientFrame, Close, ConnectionId, DEFAULT_DEVICE, Dialect, Event, InstanceId, ServerFrame, Start, UserId, millis,
};
use crate::shutdown::Shutdown;
use clock::Clock;
use cold::ColdState;
pub use drain::drain;
use inbound::inbound;
use socket_adapter::SocketAdapter;

/// Maximum time to send the queued frames and our close frame, and to receive the client's.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Enough for most messages of browsers. A larger one grows the buffer until the connection ends.
const READ_BUFFER: usize = 256;

/// Shared by all connections of an instance.
#[derive(Debug)]
pub struct Context {
    pub instance: InstanceId,
    pub server: config::Server,
    pub send_queue: config::SendQueue,
    pub limits: config::Limits,
    pub limiter: Limiter,
    /// The bytes in all send queues.
    pub backlog: Arc<Backlog>,
    pub authenticator: Authenticator,
    pub registry: Arc<Registry>,
    pub history: Arc<History>,
    pub acks: Arc<Acks>,
    pub metrics: Arc<Metrics>,
    pub shutdown: Shutdown,
}

/// Enough for the library's own pong and close frames; it writes no others.
const MAX_CONTROL_BYTES: usize = 4_096;

type Socket = WebSocketStream<SocketAdapter>;

/// One upgraded connection. Its size is the memory that an idle client costs, so no field is redundant.
pub struct Connection {
    context: Arc<Context>,
    handle: Arc<ConnectionHandle>,
    socket: Socket,
    clock: Clock,
    cold: Option<Box<ColdState>>,
    permits: AdmissionPermits,
    /// Whether to send messages back instead of handling them.
    echo: bool,
    _open: OpenGauge,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("id", &self.handle.id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes an upgraded socket. `early` are the bytes that the client sent directly after its handshake.
    pub async fn open(
        context: Arc<Context>,
        socket: delivery::Socket,
        early: Vec<u8>,
        dialect: Dialect,
        permits: AdmissionPermits,
    ) -> Self {
        context.metrics.connections_opened.inc();
        let open = OpenGauge::new(&context.metrics);
        let queue = SendQueue::new(socket, Arc::clone(&context.backlog));
        let (id, credential) = (ConnectionId::random(), CredentialSlot::default());
        let handle = Arc::new(ConnectionHandle { id, dialect, credential, queue });
        let limit = context.limits.max_inbound_bytes;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_CONTROL_BYTES)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let adapter = SocketAdapter::new(Arc::clone(&handle), &context.limits, &early);
        let socket = WebSocketStream::from_partially_read(adapter, early, Role::Server, Some(config)).await;
        Self { context, handle, socket, clock: Clock::default(), cold: None, permits, echo: false, _open: open }
    }

    /// Runs to the connection's end. Without an identity, the client must send a `hello`. `head` is the head of the 101,
    /// not sent yet.
    pub fn run(mut self, identity: Option<Identity>, start: Start, head: Vec<u8>) -> impl Future<Output = ()> + Send {
        // Boxed, as the end is: short-lived state must not enlarge the future of every connection.
        let handshake = Box::new((identity, start, head));
        async move {
            let greeted = Box::pin(self.begin(handshake)).await;
            let close = match greeted {
                Ok(registration) => self.live(&registration).await,
                Err(close) => close,
            };
            let close = self
                .socket
                .get_ref()
                .violation
                .map_or(close, |violation| close_for_violation(&self.context, violation));
            // A drain may have found the handle in the registry just before it was removed.
            self.handle.queue.close(close);
            // The user's next connection need not wait for the close handshake.
            self.permits.release_user();
            self.context.metrics.connections_closed.with_label_values(&[&close.code().to_string()]).inc();
            debug!(connection = %self.handle.id, code = close.code(), reason = close.reason(), "connection closed");
            Box::pin(finish(&mut self.socket, &self.handle, close)).await;
        }
    }

    /// Returns the registration that a connection is live by; until then, it is refused or closed.
    async fn begin(&mut self, handshake: Box<(Option<Identity>, Start, Vec<u8>)>) -> Result<Registration, Close> {
        let (identity, start, head) = *handshake;
        if let Some(identity) = identity {
            return self.greet(&identity, &start, head).await;
        }
        self.handle.queue.send(head.into());
        self.hello(start).await
    }

    /// `requested` is the start that the handshake asked for; that of the `hello` takes precedence.
    async fn hello(&mut self, requested: Start) -> Result<Registration, Close> {
        let (context, socket) = (Arc::clone(&self.context), &mut self.socket);
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
        let identity = context.authenticator.authenticate(&token).await.map_err(|error| close_for(&error))?;
        context.limiter.admit_user(&identity.user, &mut self.permits).await.map_err(|limit| match limit {
            UserLimit::Connections => Close::TooManyOfUser,
            UserLimit::Rate => Close::RateLimited,
        })?;
        let start = Start { resume: start.resume.or(requested.resume), device: start.device.or(requested.device) };
        self.greet(&identity, &start, Vec::new()).await
    }

    /// `greeting` is sent before the welcome, in the same write.
    async fn greet(&mut self, identity: &Identity, start: &Start, greeting: Vec<u8>) -> Result<Registration, Close> {
        let context = Arc::clone(&self.context);
        // Registered before the history is read, so that notifications stored after that are received.
        self.handle.queue.pause();
        self.handle.credential.set(identity.credential);
        let ends_at = context.authenticator.ends_at(identity);
        self.clock.set_expiry(ends_at);
        let registration = context.registry.register(identity.user.clone(), Arc::clone(&self.handle));
        if let Some(device) = &start.device {
            self.cold.get_or_insert_default().device = Some(device.clone());
        }
        let reading = tokio::select! {
            reading = context.history.start(&identity.user, start) => match reading {
                // `recovered:false` would be wrong: the history may be complete.
                None if start.resumes() => Err(Close::BackplaneDown),
                reading => Ok(reading),
            },
            close = closed_early(&self.handle, &context, ends_at) => Err(close),
        };
        match reading {
            Ok(reading) => self.welcome(&identity.user, start, reading, greeting),
            Err(close) => {
                self.handle.queue.start((!greeting.is_empty()).then(|| greeting.into()));
                return Err(close);
            }
        }
        // A drain or a revocation before the registration has not found this connection.
        if context.shutdown.draining().is_cancelled() {
            return Err(Close::Draining);
        }
        if context.authenticator.is_revoked(identity) { Err(Close::Revoked) } else { Ok(registration) }
    }

    /// Sends the welcome, then the notifications of the history, then those received meanwhile.
    fn welcome(&self, user: &UserId, start: &Start, reading: Option<Reading>, mut greeting: Vec<u8>) {
        let Self { context, handle, .. } = self;
        if handle.dialect.has_frames() {
            let cursor = reading.as_ref().map(|reading| reading.from.to_string());
            let welcome = ServerFrame::Welcome {
                connection: &handle.id.to_string(),
                user: user.as_str(),
                instance: context.instance.as_str(),
                cursor: cursor.as_deref(),
                recovered: start.resumes() && reading.as_ref().is_some_and(|reading| reading.whole),
                unread: reading.as_ref().map(|reading| reading.unread),
                heartbeat_ms: millis(context.server.heartbeat),
            };
            greeting.extend_from_slice(&welcome.encode());
        }
        let page = reading.map(|reading| {
            handle.queue.start_at(Position::At(reading.from));
            to_page(reading, handle.dialect)
        });
        self.replay(page);
        handle.queue.start((!greeting.is_empty()).then(|| greeting.into()));
    }

    fn device(&self) -> &str {
        self.cold.as_ref().and_then(|cold| cold.device.as_deref()).unwrap_or(DEFAULT_DEVICE)
    }

    fn replay(&self, page: Option<CatchUpPage>) {
        let (sent, foreign) = self.handle.queue.replay(page);
        self.context.metrics.deliveries.inc_by(sent as u64);
        if foreign > 0 {
            self.context.metrics.messages_dropped.with_label_values(&["stamp"]).inc_by(foreign as u64);
            warn!(connection = %self.handle.id, foreign, "dropped events whose positions are not in the history");
        }
    }
}

/// Waits for an event that ends a connection before it is greeted.
async fn closed_early(handle: &ConnectionHandle, context: &Context, ends_at: Option<Instant>) -> Close {
    let closing = poll_fn(|cx| match handle.queue.poll_drive(cx, None) {
        Poll::Ready(Driven::Closing(close)) => Poll::Ready(close),
        _ => Poll::Pending,
    });
    let token_ends = async {
        match ends_at {
            Some(ends_at) => sleep_until(ends_at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        close = closing => close,
        () = context.shutdown.draining().cancelled() => Close::Draining,
        () = token_ends => Close::TokenExpired,
    }
}

/// Encodes the entries that were read for this client.
fn to_page(reading: Reading, dialect: Dialect) -> CatchUpPage {
    let complete = reading.is_complete();
    let frame = |entry: Entry| {
        let event = Event { name: &entry.event, data: &entry.data, cursor: Some(entry.cursor) };
        (entry.cursor, event.encode(dialect))
    };
    CatchUpPage { events: reading.entries.into_iter().map(frame).collect(), upto: reading.upto, complete }
}

fn close_for(error: &TokenError) -> Close {
    match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::Revoked => Close::Revoked,
        TokenError::Bad(_) | TokenError::User(_) => Close::BadToken,
        TokenError::Unavailable => Close::KeysUnavailable,
    }
}

fn close_for_violation(context: &Context, violation: InboundViolation) -> Close {
    context.metrics.limited.with_label_values(&[violation.name()]).inc();
    match violation {
        InboundViolation::Frames | InboundViolation::Bytes => Close::RateLimited,
        InboundViolation::Fragments => Close::TooBig,
    }
}

/// Performs the close handshake, within [`CLOSE_DEADLINE`].
async fn finish(socket: &mut Socket, handle: &ConnectionHandle, close: Close) {
    if close == Close::Gone {
        return;
    }
    let handshake = async {
        if close != Close::Normal {
            let frame = CloseFrame { code: close.code().into(), reason: close.reason().into() };
            // Flushed first: the library would send a pending pong after the close frame.
            if socket.flush().await.is_err() || socket.close(Some(frame)).await.is_err() {
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

/// Counts an open connection until it is dropped.
struct OpenGauge(prometheus::IntGauge);

impl OpenGauge {
    fn new(metrics: &Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics.connections.clone())
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}
