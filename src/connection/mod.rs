//! One socket's life: greeted, live, closed. One task owns it from the upgrade to the end.

mod clock;
mod cold;
mod drain;
mod echo;
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
use tokio_tungstenite::tungstenite::{self, Message};
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
    ClientFrame, Close, ConnectionId, DEFAULT_DEVICE, Dialect, Event, InstanceId, ServerFrame, Start, UserId,
};
use crate::shutdown::Shutdown;
use clock::Clock;
use cold::ColdState;
pub use drain::drain;
use socket_adapter::SocketAdapter;

/// From our close frame to the client's, and for what is still queued to leave before it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Enough for what browsers send; a larger message grows it for as long as the connection lives.
const READ_BUFFER: usize = 256;

/// What every connection of an instance shares.
#[derive(Debug)]
pub struct Context {
    /// This instance.
    pub instance: InstanceId,
    /// Deadlines.
    pub server: config::Server,
    /// The write timeout.
    pub send_queue: config::SendQueue,
    /// How much a client may send.
    pub limits: config::Limits,
    /// Who may connect, and how often.
    pub limiter: Limiter,
    /// What waits in all send queues together.
    pub backlog: Arc<Backlog>,
    /// Verifies tokens.
    pub authenticator: Authenticator,
    /// Where greeted connections are found.
    pub registry: Arc<Registry>,
    /// What their users' stored notifications are.
    pub history: Arc<History>,
    /// Their read positions.
    pub acks: Arc<Acks>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells when to leave.
    pub shutdown: Shutdown,
}

/// Room for the library's own pongs and closes, which is all that it writes.
const MAX_CONTROL_BYTES: usize = 4_096;

type Socket = WebSocketStream<SocketAdapter>;

/// One upgraded connection. Its size is what an idle client costs, so nothing lies in it twice.
pub struct Connection {
    context: Arc<Context>,
    handle: Arc<ConnectionHandle>,
    socket: Socket,
    clock: Clock,
    /// From the greeting on.
    registration: Option<Registration>,
    /// One arm of the loop: the outbox and the clock go on meanwhile.
    cold: Option<Box<ColdState>>,
    permits: AdmissionPermits,
    /// Sends messages back instead of acting on them.
    echo: bool,
    _open: OpenGauge,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("id", &self.handle.id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes an upgraded socket. `early` is what the client sent on the heels of its handshake, `permits` what the
    /// connection takes up of the limits.
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
        Self {
            context,
            handle,
            socket,
            clock: Clock::default(),
            registration: None,
            cold: None,
            permits,
            echo: false,
            _open: open,
        }
    }

    /// Runs to the connection's end; without an identity the client owes a `hello`. `answer` is the head of the 101,
    /// which is still to be sent.
    pub fn run(mut self, identity: Option<Identity>, start: Start, answer: Vec<u8>) -> impl Future<Output = ()> + Send {
        // Boxed, as the end is: what lasts for a moment must not make every connection larger for its whole life.
        let given = Box::new((identity, start, answer));
        async move {
            let greeted = Box::pin(self.begin(given)).await;
            let close = match greeted {
                Ok(()) => self.live().await,
                Err(close) => close,
            };
            let close =
                self.socket.get_ref().violation.map_or(close, |violation| sent_too_much(&self.context, violation));
            // A drain may have found it in the registry just before it leaves that.
            self.handle.queue.close(close);
            self.registration = None;
            // Whoever takes this one's position need not wait for its goodbye.
            self.permits.release_user();
            self.context.metrics.connections_closed.with_label_values(&[&close.code().to_string()]).inc();
            debug!(connection = %self.handle.id, code = close.code(), reason = close.reason(), "connection closed");
            Box::pin(finish(&mut self.socket, &self.handle, close)).await;
        }
    }

    async fn begin(&mut self, given: Box<(Option<Identity>, Start, Vec<u8>)>) -> Result<(), Close> {
        let (identity, start, answer) = *given;
        if let Some(identity) = identity {
            return self.greet(&identity, &start, answer).await;
        }
        self.handle.queue.send(answer.into());
        self.hello(start).await
    }

    /// `asked` is where the handshake wanted to start; a `hello` that says so, too, has the last word.
    async fn hello(&mut self, asked: Start) -> Result<(), Close> {
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
        let start = Start { resume: start.resume.or(asked.resume), device: start.device.or(asked.device) };
        self.greet(&identity, &start, Vec::new()).await
    }

    /// `greeting` is what goes out before the welcome, in the same write.
    async fn greet(&mut self, identity: &Identity, start: &Start, greeting: Vec<u8>) -> Result<(), Close> {
        let context = Arc::clone(&self.context);
        // Registered before the history is read: what is stored after that is heard.
        self.handle.queue.pause();
        self.handle.credential.set(identity.credential);
        let ends_at = context.authenticator.ends_at(identity);
        self.clock.token_ends(ends_at);
        self.registration = Some(context.registry.register(identity.user.clone(), Arc::clone(&self.handle)));
        if let Some(device) = &start.device {
            self.cold.get_or_insert_default().device = Some(device.clone());
        }
        let reading = tokio::select! {
            reading = context.history.start(&identity.user, start) => match reading {
                // To say that nothing is recovered would not be true.
                None if start.resumes() => Err(Close::BackplaneDown),
                reading => Ok(reading),
            },
            close = closing(&self.handle, &context, ends_at) => Err(close),
        };
        match reading {
            Ok(reading) => self.welcome(&identity.user, start, reading, greeting),
            Err(close) => {
                self.handle.queue.start((!greeting.is_empty()).then(|| greeting.into()));
                return Err(close);
            }
        }
        // A drain that began before the registration has not seen this connection, nor has a revocation.
        if context.shutdown.draining().is_cancelled() {
            return Err(Close::Draining);
        }
        if context.authenticator.is_revoked(identity) { Err(Close::Revoked) } else { Ok(()) }
    }

    /// Lets everything out: the welcome, what was found in the history, and what came meanwhile.
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
                heartbeat_ms: u64::try_from(context.server.heartbeat.as_millis()).unwrap_or(u64::MAX),
            };
            greeting.extend_from_slice(&welcome.encode());
        }
        let found = reading.map(|reading| {
            handle.queue.start_at(Position::At(reading.from));
            found(reading, handle.dialect)
        });
        self.replay(found);
        handle.queue.start((!greeting.is_empty()).then(|| greeting.into()));
    }

    fn device(&self) -> &str {
        self.cold.as_ref().and_then(|cold| cold.device.as_deref()).unwrap_or(DEFAULT_DEVICE)
    }

    fn replay(&self, found: Option<CatchUpPage>) {
        let (sent, foreign) = self.handle.queue.replay(found);
        self.context.metrics.deliveries.inc_by(sent as u64);
        if foreign > 0 {
            self.context.metrics.messages_dropped.with_label_values(&["stamp"]).inc_by(foreign as u64);
            warn!(connection = %self.handle.id, foreign, "events with positions that the history does not have were dropped");
        }
    }
}

/// Waits for anything that ends a connection before it is greeted.
async fn closing(handle: &ConnectionHandle, context: &Context, ends_at: Option<Instant>) -> Close {
    let asked = poll_fn(|cx| match handle.queue.poll_drive(cx, None) {
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
        close = asked => close,
        () = context.shutdown.draining().cancelled() => Close::Draining,
        () = token_ends => Close::TokenExpired,
    }
}

/// What was read, as this client is told it.
fn found(reading: Reading, dialect: Dialect) -> CatchUpPage {
    let complete = reading.is_complete();
    let frame = |entry: Entry| {
        let event = Event { name: &entry.event, data: &entry.data, cursor: Some(entry.cursor) };
        (entry.cursor, event.encode(dialect))
    };
    CatchUpPage { events: reading.entries.into_iter().map(frame).collect(), upto: reading.upto, complete }
}

/// How a refused token is told on a WebSocket.
fn close_for(error: &TokenError) -> Close {
    match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::Revoked => Close::Revoked,
        TokenError::Bad(_) | TokenError::User(_) => Close::BadToken,
        TokenError::Unavailable => Close::KeysUnavailable,
    }
}

fn sent_too_much(context: &Context, violation: InboundViolation) -> Close {
    context.metrics.limited.with_label_values(&[violation.name()]).inc();
    match violation {
        InboundViolation::Frames | InboundViolation::Bytes => Close::RateLimited,
        InboundViolation::Fragments => Close::TooBig,
    }
}

/// What the WebSocket library gives at each read.
type Read = Option<tungstenite::Result<Message>>;

/// What one read means: a text to handle, nothing to handle, or the end.
type Inbound = ControlFlow<Close, Option<tungstenite::Utf8Bytes>>;

fn inbound(read: Read) -> Inbound {
    use tungstenite::Error;
    match read {
        Some(Ok(Message::Text(text))) => ControlFlow::Continue(Some(text)),
        Some(Ok(Message::Binary(_))) => ControlFlow::Break(Close::Unsupported),
        Some(Ok(Message::Close(_))) => ControlFlow::Break(Close::Normal),
        Some(Ok(_)) => ControlFlow::Continue(None),
        Some(Err(Error::Capacity(_))) => ControlFlow::Break(Close::TooBig),
        Some(Err(Error::Utf8(_))) => ControlFlow::Break(Close::InvalidText),
        Some(Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake))) => {
            ControlFlow::Break(Close::Gone)
        }
        Some(Err(Error::Protocol(_))) => ControlFlow::Break(Close::Protocol),
        Some(Err(_)) | None => ControlFlow::Break(Close::Gone),
    }
}

/// Says goodbye, and waits a little for the client to have heard it.
async fn finish(socket: &mut Socket, handle: &ConnectionHandle, close: Close) {
    if close == Close::Gone {
        return;
    }
    let goodbye = async {
        if close != Close::Normal {
            let frame = CloseFrame { code: close.code().into(), reason: close.reason().into() };
            // The library would put a pong that it still owes behind the close frame.
            if socket.flush().await.is_err() || socket.close(Some(frame)).await.is_err() {
                return;
            }
        }
        // Until the client's own close: a socket dropped with unread data in it may lose our last frame.
        while let Some(Ok(_)) = socket.next().await {}
        if matches!(close, Close::Protocol | Close::InvalidText | Close::TooBig | Close::RateLimited) {
            // The library reads no further after these, but the client may not have stopped sending.
            handle.queue.finish_writing();
            let mut waste = [0; 1_024];
            while matches!(poll_fn(|cx| handle.queue.poll_read(cx, &mut waste)).await, Ok(1..)) {}
        }
    };
    // A client that reads nothing sees only the end.
    timeout(CLOSE_DEADLINE, goodbye).await.ok();
}

/// Counts an open connection for as long as it lives, whatever ends it.
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
