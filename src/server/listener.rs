//! Accepts connections, and hands each to HTTP after its PROXY header and TLS handshake.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tracing::{debug, warn};

use super::fd_limit::Threshold;
use super::http::Http;
use super::proxy_protocol::{HeaderError, read_header};
use super::{App, Tls};
use crate::connection::Context;
use crate::log::LogRate;
use crate::metrics::Metrics;

/// Enough for the reconnects of many clients at once.
const BACKLOG: u32 = 4_096;

/// How long written data may stay unacknowledged before the system ends the connection (TCP_USER_TIMEOUT, tcp(7)). It
/// bounds HTTP responses, and must not be shorter than the write timeout of WebSockets.
const UNACKNOWLEDGED_DEADLINE: Duration = Duration::from_secs(60);

/// The pause in accepting when the system lacks resources, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The particulars of the public listener.
#[derive(Debug, Clone, Copy)]
struct Browsers {
    /// Whether connections begin with a PROXY protocol header.
    proxy_protocol: bool,
    /// Browsers are refused from this on; operators and backends never are.
    threshold: Threshold,
}

#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Set for the public listener.
    browsers: Option<Browsers>,
    /// With the actual port, never 0.
    pub address: SocketAddr,
}

impl Listener {
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, browsers: None, address })
    }

    /// Makes it the listener for browsers: it refuses them before file descriptors run out, and may be behind a TCP proxy.
    pub fn public(self, proxy_protocol: bool) -> Self {
        Self { browsers: Some(Browsers { proxy_protocol, threshold: Threshold::now() }), ..self }
    }
}

/// Plain TCP or TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Accepts until the instance stops.
pub async fn serve(app: Arc<App>, listener: Listener, router: axum::Router) {
    let Context { metrics, shutdown, .. } = &*app.context;
    let http = Arc::new(Http::new(&app, router, listener.browsers.is_some()));
    let unacknowledged = UNACKNOWLEDGED_DEADLINE.max(app.config.send_queue.write_timeout);
    let refused = LogRate::new();
    loop {
        let accepted = shutdown.stopping().run_until_cancelled(listener.listener.accept()).await;
        match accepted {
            None => return,
            Some(Ok((socket, peer))) => {
                // Both are optimizations: if the system refuses them, the connection still works.
                socket.set_nodelay(true).ok();
                limit_unacknowledged(&socket, unacknowledged);
                if listener.browsers.is_some_and(|browsers| browsers.threshold.is_passed_by(&socket)) {
                    refuse(&socket, app.tls.is_some(), metrics);
                    continue;
                }
                let proxied = listener.browsers.is_some_and(|browsers| browsers.proxy_protocol);
                let (app, http) = (Arc::clone(&app), Arc::clone(&http));
                shutdown.spawn_service(async move {
                    let serving = serve_connection(&app, &http, socket, peer, proxied);
                    app.context.shutdown.stopping().run_until_cancelled(serving).await;
                });
            }
            Some(Err(error)) => {
                metrics.accept_errors.inc();
                if let Some(held_back) = refused.admit() {
                    warn!(%error, held_back, "connection not accepted");
                }
                if is_shortage(&error) {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Makes the system end a connection whose client acknowledges nothing for this long.
#[cfg(target_os = "linux")]
fn limit_unacknowledged(socket: &TcpStream, limit: Duration) {
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(limit)).ok();
}

/// Only Linux has the option; elsewhere the system's retransmission limits apply, and `send_queue.write_timeout`.
#[cfg(not(target_os = "linux"))]
fn limit_unacknowledged(_: &TcpStream, _: Duration) {}

/// Whether the system lacks resources. Any other error concerns one connection, which is gone (accept(2)).
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.iter().any(|shortage| shortage.raw_os_error() == code))
}

/// The PROXY header, the TLS handshake and the first request share one deadline.
async fn serve_connection(app: &App, http: &Http, socket: TcpStream, peer: SocketAddr, proxied: bool) {
    let metrics = &app.context.metrics;
    let deadline = Instant::now() + app.config.server.handshake_timeout;
    let unwrapped = if proxied { unwrap_proxied(socket, peer, metrics, deadline).await } else { Some((socket, peer)) };
    let Some((socket, peer)) = unwrapped else { return };
    let stream = match &app.tls {
        None => Some(Either::Left(socket)),
        Some(tls) => encrypted(socket, tls, deadline, metrics).await.map(Either::Right),
    };
    if let Some(stream) = stream {
        http.run(stream, peer, deadline).await;
    }
}

/// Performs the TLS handshake; a failure is counted.
async fn encrypted(
    socket: TcpStream,
    tls: &Tls,
    deadline: Instant,
    metrics: &Metrics,
) -> Option<Box<TlsStream<TcpStream>>> {
    match timeout_at(deadline, tls.accept(socket)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
        Ok(stream) => Some(stream),
        Err(error) => {
            metrics.tls_handshakes_failed.inc();
            debug!(%error, "tls handshake failed");
            None
        }
    }
}

/// The response to a browser when only reserved file descriptors are left.
const OVER_CAPACITY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
    connection: close\r\ncontent-length: 88\r\n\r\n\
    {\"error\":{\"code\":\"over_capacity\",\"message\":\"this instance has no free file descriptor\"}}";

fn refuse(socket: &TcpStream, encrypted: bool, metrics: &Metrics) {
    static REFUSED: LogRate = LogRate::new();
    metrics.limited.with_label_values(&["file_descriptors"]).inc();
    if let Some(held_back) = REFUSED.admit() {
        warn!(
            held_back,
            "connection refused: the remaining file descriptors are reserved for Redis, logs and operators"
        );
    }
    // Best effort: a TLS handshake would occupy a reserved descriptor for longer.
    if !encrypted {
        socket.try_write(OVER_CAPACITY).ok();
    }
}

/// Reads a TCP proxy's header; `None` if it is missing or invalid.
async fn unwrap_proxied(
    mut socket: TcpStream,
    peer: SocketAddr,
    metrics: &Metrics,
    deadline: Instant,
) -> Option<(TcpStream, SocketAddr)> {
    static REFUSED: LogRate = LogRate::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shortage_pauses_accepting() {
        for shortage in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(is_shortage(&shortage.into()), "{shortage}");
        }
        for other in [Errno::CONNABORTED, Errno::CONNRESET, Errno::PROTO, Errno::HOSTUNREACH, Errno::INTR] {
            assert!(!is_shortage(&other.into()), "{other}");
        }
    }
}
