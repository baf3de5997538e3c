//! Accepts connections, and makes of each what HTTP is spoken on: past a PROXY header, past TLS.

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

/// Enough for a herd of reconnects to wait in.
const BACKLOG: u32 = 4_096;

/// How long what was written may stay unread before the system ends the connection (TCP_USER_TIMEOUT, tcp(7)): the
/// bound for HTTP answers; WebSockets have one of their own, which this must not undercut.
const UNREAD_DEADLINE: Duration = Duration::from_secs(60);

/// How long to leave accepting alone when the system has no room, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is particular to the public listener.
#[derive(Debug, Clone, Copy)]
struct Browsers {
    /// Whether connections begin with a PROXY protocol header.
    proxy_protocol: bool,
    /// Where browsers are turned away, so that others find a file descriptor; operators and backends never are.
    threshold: Threshold,
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// What it does for browsers, where it is theirs.
    browsers: Option<Browsers>,
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
        Ok(Self { listener, browsers: None, address })
    }

    /// The same for browsers: it turns them away before file descriptors run out, and may stand behind a TCP proxy.
    pub fn public(self, proxy_protocol: bool) -> Self {
        Self { browsers: Some(Browsers { proxy_protocol, threshold: Threshold::now() }), ..self }
    }
}

/// A connection as HTTP has it: TCP as it is, or TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Accepts until the instance stops.
pub async fn serve(app: Arc<App>, listener: Listener, router: axum::Router) {
    let Context { metrics, shutdown, .. } = &*app.context;
    let http = Arc::new(Http::new(&app, router, listener.browsers.is_some()));
    let unread_deadline = UNREAD_DEADLINE.max(app.config.send_queue.write_timeout);
    let refused = LogRate::new();
    loop {
        let accepted = shutdown.stopping().run_until_cancelled(listener.listener.accept()).await;
        match accepted {
            None => return,
            Some(Ok((socket, peer))) => {
                // A refusal of these by the system costs speed or a slot for a while, no more.
                socket.set_nodelay(true).ok();
                limit_unacknowledged(&socket, unread_deadline);
                if listener.browsers.is_some_and(|browsers| browsers.threshold.is_passed_by(&socket)) {
                    turn_away(&socket, app.tls.is_some(), metrics);
                    continue;
                }
                let proxied = listener.browsers.is_some_and(|browsers| browsers.proxy_protocol);
                let (app, http) = (Arc::clone(&app), Arc::clone(&http));
                shutdown.spawn_service(async move {
                    let serving = speak(&app, &http, socket, peer, proxied);
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

/// Has the system give up a connection whose client acknowledges nothing for so long.
#[cfg(target_os = "linux")]
fn limit_unacknowledged(socket: &TcpStream, limit: Duration) {
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(limit)).ok();
}

/// Only Linux can be told; elsewhere its own limits of retransmission hold, and `send_queue.write_timeout`.
#[cfg(not(target_os = "linux"))]
fn limit_unacknowledged(_: &TcpStream, _: Duration) {}

/// Whether the system has no room for a connection. Any other error is one connection's alone, which is gone (accept(2)).
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.iter().any(|shortage| shortage.raw_os_error() == code))
}

/// One connection, from what comes before HTTP on. All that, and the first request, has one deadline.
async fn speak(app: &App, http: &Http, socket: TcpStream, peer: SocketAddr, proxied: bool) {
    let metrics = &app.context.metrics;
    let deadline = Instant::now() + app.config.server.handshake_timeout;
    let unwrapped = if proxied { unwrap_proxied(socket, peer, metrics, deadline).await } else { Some((socket, peer)) };
    let Some((socket, peer)) = unwrapped else { return };
    let stream = match &app.tls {
        None => Some(Either::Left(socket)),
        Some(tls) => encrypted(socket, tls, deadline, metrics).await.map(Either::Right),
    };
    if let Some(stream) = stream {
        http.speak(stream, peer, deadline).await;
    }
}

/// Shakes hands; a client that cannot, or is too slow, is counted.
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

/// All that is said to a browser that comes when nearly no file descriptor is left.
const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
    connection: close\r\ncontent-length: 78\r\n\r\n\
    {\"error\":{\"code\":\"over_capacity\",\"message\":\"no file descriptor is left here\"}}";

fn turn_away(socket: &TcpStream, encrypted: bool, metrics: &Metrics) {
    static REFUSED: LogRate = LogRate::new();
    metrics.limited.with_label_values(&["file_descriptors"]).inc();
    if let Some(held_back) = REFUSED.admit() {
        warn!(held_back, "connection refused: file descriptors are kept back for Redis, logs and operators");
    }
    // Best effort: whoever is here for long, as for a TLS handshake, would need the very descriptor that is not there.
    if !encrypted {
        socket.try_write(TURNED_AWAY).ok();
    }
}

/// Takes a TCP proxy's header off; `None` where there is no good one.
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
        for one_s_own in [Errno::CONNABORTED, Errno::CONNRESET, Errno::PROTO, Errno::HOSTUNREACH, Errno::INTR] {
            assert!(!is_shortage(&one_s_own.into()), "{one_s_own}");
        }
    }
}
