//! One socket's life: greeted, live, closed. One task owns it from the upgrade to the end.

mod drain;
mod echo;
mod live;
mod wire;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::debug;

use crate::auth::{Identity, TokenError, Verifier};
use crate::config;
use crate::metrics::Metrics;
use crate::protocol::{ClientFrame, Close, ConnectionId, Dialect, InstanceId, ServerFrame};
use crate::registry::{Member, Outbox, Registry};
use crate::shutdown::Shutdown;
pub use drain::drain;
#[doc(hidden)]
pub use echo::echo;
use live::Live;
use wire::Wire;

/// From our close frame to the client's, and for what is still queued to leave before it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Enough for what browsers send; a larger message grows it for as long as the connection lives.
const READ_BUFFER: usize = 512;

/// What every connection of an instance shares.
#[derive(Debug)]
pub struct Context {
    /// This instance.
    pub instance: InstanceId,
    /// Deadlines.
    pub server: config::Server,
    /// The write timeout.
    pub outbox: config::Outbox,
    /// The largest inbound message.
    pub limits: config::Limits,
    /// Verifies tokens of `hello` and `auth`.
    pub verifier: Verifier,
    /// Where greeted connections are found.
    pub registry: Arc<Registry>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells when to leave.
    pub shutdown: Shutdown,
}

/// Room for the library's own pongs and closes, which is all that it writes.
const MAX_CONTROL_BYTES: usize = 4_096;

type Socket = WebSocketStream<Wire>;

/// Runs one upgraded connection to its end. `early` is what the client sent on the heels of its handshake; without an
/// identity the client owes a `hello`.
pub async fn run(
    context: Arc<Context>,
    socket: TcpStream,
    early: Vec<u8>,
    dialect: Dialect,
    identity: Option<Identity>,
) {
    context.metrics.connections_opened.inc();
    let _open = OpenGauge::new(&context.metrics);
    let (member, mut socket) = open(&context, socket, early, dialect).await;

    let identity = match identity {
        Some(identity) => Ok(identity),
        // Boxed, as the end is: what lasts for seconds must not make every connection larger for its whole life.
        None => Box::pin(hello(&context, &mut socket)).await,
    };
    let close = match identity {
        Ok(identity) => live(&context, &mut socket, &member, identity).await,
        Err(close) => close,
    };
    // A drain may have found it in the registry just before it left.
    member.outbox.close(close);
    context.metrics.connections_closed.with_label_values(&[&close.code().to_string()]).inc();
    debug!(connection = %member.id, code = close.code(), reason = close.reason(), "connection closed");
    Box::pin(finish(&mut socket, &member, close)).await;
}

/// The connection as others see it, and its socket as the WebSocket library does.
async fn open(context: &Context, socket: TcpStream, early: Vec<u8>, dialect: Dialect) -> (Arc<Member>, Socket) {
    let member = Arc::new(Member { id: ConnectionId::random(), dialect, outbox: Outbox::new(socket) });
    let limit = context.limits.max_inbound_bytes;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_CONTROL_BYTES)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let wire = Wire::new(Arc::clone(&member));
    let socket = WebSocketStream::from_partially_read(wire, early, Role::Server, Some(config)).await;
    (member, socket)
}

async fn hello(context: &Context, socket: &mut Socket) -> Result<Identity, Close> {
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
    let Ok(ClientFrame::Hello { token }) = ClientFrame::parse(&text) else { return Err(Close::HelloExpected) };
    context.verifier.verify(&token).map_err(|error| match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::Bad(_) | TokenError::User(_) => Close::BadToken,
    })
}

async fn live(context: &Context, socket: &mut Socket, member: &Arc<Member>, identity: Identity) -> Close {
    let connection = member.id.to_string();
    let heartbeat = context.server.heartbeat;
    let welcome = ServerFrame::Welcome {
        connection: &connection,
        user: identity.user.as_str(),
        instance: context.instance.as_str(),
        cursor: None,
        recovered: false,
        heartbeat_ms: u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX),
    };
    let welcome = member.dialect.has_frames().then(|| welcome.encode());
    // Registered before it is greeted: what is published once the client has its welcome reaches it.
    member.outbox.hold();
    let registration = context.registry.register(identity.user.clone(), Arc::clone(member));
    member.outbox.open(welcome);
    // A drain that began before the registration has not seen this connection.
    if context.shutdown.draining().is_cancelled() {
        return Close::Draining;
    }
    let close = Live::new(context, member, identity).run(socket).await;
    drop(registration);
    close
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
async fn finish(socket: &mut Socket, member: &Member, close: Close) {
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
        if matches!(close, Close::Protocol | Close::InvalidText | Close::TooBig) {
            // The library reads no further after these, but the client may not have stopped sending.
            member.outbox.finish_writing();
            let mut waste = [0; 1_024];
            while matches!(poll_fn(|cx| member.outbox.poll_read(cx, &mut waste)).await, Ok(1..)) {}
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
