//! Accepts connections and speaks HTTP/1.1 on them, with a deadline on every stage.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::descriptors::Threshold;
use super::proxy_protocol::{HeaderError, read_header};
use super::reply::Refusal;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// Enough for a herd of reconnects to wait in.
const BACKLOG: u32 = 4_096;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// From a request's head to the end of its answer, streams aside.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// How long what was written may stay unread before the system ends the connection (TCP_USER_TIMEOUT, tcp(7)): the
/// bound for HTTP answers; WebSockets have a shorter one of their own.
const UNREAD_DEADLINE: Duration = Duration::from_secs(60);

/// How long to leave accepting alone when the system refuses, as it does without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Whether connections begin with a PROXY protocol header.
    proxy_protocol: bool,
    /// Where browsers are turned away, so that others find a file descriptor; operators and backends never are.
    threshold: Option<Threshold>,
    /// Where it listens, the port never 0.
    pub address: SocketAddr,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// The system's, such as a port that is taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, proxy_protocol: false, threshold: None, address })
    }

    /// The same for browsers: it turns them away before file descriptors run out, and may stand behind a TCP proxy.
    #[must_use]
    pub fn public(self, proxy_protocol: bool) -> Self {
        Self { proxy_protocol, threshold: Some(Threshold::now()), ..self }
    }
}

/// The other end of the socket that a request came on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Until when the handshake that a request begins must be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

impl Deadline {
    /// As the listener set it.
    pub(super) fn of<B>(request: &hyper::Request<B>, otherwise: Duration) -> Self {
        request.extensions().get().copied().unwrap_or_else(|| Self(Instant::now() + otherwise))
    }
}

/// Accepts until the instance stops. Each connection's head must come within `head_deadline`.
pub async fn serve(
    listener: Listener,
    router: axum::Router,
    head_deadline: Duration,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) {
    let router = router.layer(axum::middleware::from_fn(answer_in_time));
    let refused = LogRate::new();
    let stopping = shutdown.stopping().clone();
    loop {
        let Some(accepted) = stopping.run_until_cancelled(listener.listener.accept()).await else { return };
        match accepted {
            Ok((socket, peer)) => {
                // A refusal of these by the system costs speed or a slot for a while, no more.
                socket.set_nodelay(true).ok();
                SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD_DEADLINE)).ok();
                if listener.threshold.is_some_and(|threshold| threshold.is_passed_by(&socket)) {
                    turn_away(&socket, &metrics);
                    continue;
                }
                let deadline = Instant::now() + head_deadline;
                let (router, stopping) = (router.clone(), stopping.clone());
                let metrics = listener.proxy_protocol.then(|| Arc::clone(&metrics));
                shutdown.spawn_service(async move {
                    let connection = async {
                        if let Some((socket, peer)) = unwrap_proxied(socket, peer, metrics, deadline).await {
                            http(socket, Peer(peer), router, deadline, head_deadline).await;
                        }
                    };
                    stopping.run_until_cancelled(connection).await;
                });
            }
            Err(error) => {
                metrics.accept_errors.inc();
                if let Some(held_back) = refused.admit() {
                    warn!(%error, held_back, "connection not accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All that is said to a browser that comes when nearly no file descriptor is left.
const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
    connection: close\r\ncontent-length: 78\r\n\r\n\
    {\"error\":{\"code\":\"over_capacity\",\"message\":\"no file descriptor is left here\"}}";

fn turn_away(socket: &TcpStream, metrics: &Metrics) {
    static REFUSED: LogRate = LogRate::new();
    metrics.limited.with_label_values(&["file_descriptors"]).inc();
    if let Some(held_back) = REFUSED.admit() {
        warn!(held_back, "connection refused: file descriptors are kept back for Redis, logs and operators");
    }
    // Best effort: whoever is here for long would need the very descriptor that is not there.
    socket.try_write(TURNED_AWAY).ok();
}

/// Behind a TCP proxy (then there are `metrics` to count in), takes its header off; `None` where there is no good one.
async fn unwrap_proxied(
    mut socket: TcpStream,
    peer: SocketAddr,
    metrics: Option<Arc<Metrics>>,
    deadline: Instant,
) -> Option<(TcpStream, SocketAddr)> {
    static REFUSED: LogRate = LogRate::new();
    let Some(metrics) = metrics else { return Some((socket, peer)) };
    match timeout_at(deadline, read_header(&mut socket)).await {
        Ok(Ok(client)) => return Some((socket, client.unwrap_or(peer))),
        Ok(Err(HeaderError::Empty)) => {}
        Ok(Err(error)) => {
            metrics.proxy_headers_refused.inc();
            if let Some(held_back) = REFUSED.admit() {
                warn!(%peer, %error, held_back, "connection closed (server.proxy_protocol)");
            }
        }
        Err(_) => metrics.proxy_headers_refused.inc(),
    }
    None
}

async fn http(socket: TcpStream, peer: Peer, router: axum::Router, deadline: Instant, head_deadline: Duration) {
    let router = TowerToHyperService::new(router);
    // The first request's time runs since the accept, that of a later one since its head is whole.
    let first = Cell::new(Some(Deadline(deadline)));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let deadline = first.take().unwrap_or_else(|| Deadline(Instant::now() + head_deadline));
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(deadline);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadline.saturating_duration_since(Instant::now()))
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        debug!(%error, "http connection ended");
    }
}

async fn answer_in_time(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    match timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Refusal::too_slow().into_response(),
    }
}
