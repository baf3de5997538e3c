//! Accepts connections, and hands each to HTTP after its PROXY header and TLS handshake.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::either::Either;
use tracing::{debug, info, warn};

use super::fd_limit::Threshold;
use super::http::Http;
use super::proxy_protocol::{HeaderError, read_header};
use super::public::is_trusted;
use super::{App, Tls};
use crate::connection::Context;
use crate::delivery::{TlsSocket, limit_unacknowledged};
use crate::limits::SocketPermits;
use crate::log::LogRate;
use crate::metrics::Metrics;

/// Enough for the reconnects of many clients at once.
const BACKLOG: u32 = 4_096;

/// How long written data may stay unacknowledged before the system ends the connection (TCP_USER_TIMEOUT, tcp(7)). It
/// bounds HTTP responses, and must not be shorter than the write timeout of WebSockets.
const UNACKNOWLEDGED_DEADLINE: Duration = Duration::from_secs(60);

/// The pause in accepting when the system lacks resources, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a socket of an address at its limit may take to send its request, which is then refused.
const OVER_LIMIT_DEADLINE: Duration = Duration::from_secs(2);

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
pub(super) type Stream = Either<TcpStream, Box<TlsSocket>>;

/// Accepts until the instance stops.
pub async fn serve(app: Arc<App>, listener: Listener, router: axum::Router) {
    let Context { metrics, shutdown, .. } = &*app.context;
    let http = Arc::new(Http::new(&app, router, listener.browsers.is_some()));
    set_options(&listener.listener, UNACKNOWLEDGED_DEADLINE.max(app.config.send_queue.write_timeout));
    let refused = LogRate::new();
    loop {
        let accepted = shutdown.stopping().run_until_cancelled(listener.listener.accept()).await;
        match accepted {
            None => return,
            Some(Ok((socket, peer))) => {
                if listener.browsers.is_some_and(|browsers| browsers.threshold.is_passed_by(&socket)) {
                    refuse(&socket, app.tls.is_some(), metrics);
                    continue;
                }
                // The client of a proxied socket is known only after its header.
                let permits = match listener.browsers {
                    None => Some(SocketPermits::default()),
                    Some(browsers) if browsers.proxy_protocol => None,
                    Some(_) => match admit_socket(&app, peer) {
                        None => continue,
                        admitted => admitted,
                    },
                };
                let (app, http) = (Arc::clone(&app), Arc::clone(&http));
                shutdown.spawn_service(async move {
                    // `run_until_cancelled` would hold this future, the largest of a handshake, twice.
                    tokio::select! {
                        () = serve_connection(&app, &http, (socket, peer), permits) => {}
                        () = app.context.shutdown.stopping().cancelled() => {}
                    }
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

/// Accepted sockets inherit these options, which saves two system calls for each.
fn set_options(listener: &TcpListener, unacknowledged: Duration) {
    // An optimization: if the system refuses it, the connections still work.
    SockRef::from(listener).set_tcp_nodelay(true).ok();
    limit_unacknowledged(listener, unacknowledged);
}

/// Whether the system lacks resources. Any other error concerns one connection, which is gone (accept(2)).
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.iter().any(|shortage| shortage.raw_os_error() == code))
}

/// The PROXY header, the TLS handshake and the first request share one deadline. Without `permits`, the socket begins with
/// a PROXY header. What few connections need is boxed where it branches off, here and in what this calls: the future of
/// every handshake would have room for it.
async fn serve_connection(
    app: &App,
    http: &Http,
    (socket, peer): (TcpStream, SocketAddr),
    permits: Option<SocketPermits>,
) {
    let metrics = &app.context.metrics;
    let deadline = Instant::now() + app.config.server.handshake_timeout;
    let (socket, peer, permits) = match permits {
        Some(permits) => (socket, peer, permits),
        None => {
            let unwrapped = Box::pin(unwrap_proxied(socket, peer, metrics, deadline)).await;
            let Some((socket, peer)) = unwrapped else { return };
            let Some(permits) = admit_socket(app, peer) else { return };
            (socket, peer, permits)
        }
    };
    let over_limit = permits.is_over_limit().then(|| Instant::now() + OVER_LIMIT_DEADLINE);
    let deadline = over_limit.map_or(deadline, |earlier| deadline.min(earlier));
    let stream = match &app.tls {
        None => Some(Either::Left(socket)),
        Some(tls) => Box::pin(encrypted(socket, tls, deadline, metrics)).await.map(Either::Right),
    };
    if let Some(stream) = stream {
        http.run(stream, peer, permits, deadline).await;
    }
}

/// Counts a socket for its address, unless that is a proxy's: then the client's address is known only with the request.
/// `None`: the address has too many.
fn admit_socket(app: &App, peer: SocketAddr) -> Option<SocketPermits> {
    static REFUSED: LogRate = LogRate::new();
    if is_trusted(peer.ip(), &app.config.limits.get().trusted_proxies) {
        return Some(SocketPermits::default());
    }
    let admitted = app.context.limiter.admit_socket(peer.ip());
    if let Err(limit) = &admitted
        && let Some(held_back) = REFUSED.admit()
    {
        info!(address = %peer.ip(), limit = limit.name(), held_back, "socket closed: its address has too many");
    }
    admitted.ok()
}

/// Performs the TLS handshake; a failure is counted.
async fn encrypted(socket: TcpStream, tls: &Tls, deadline: Instant, metrics: &Metrics) -> Option<Box<TlsSocket>> {
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
    cache-control: no-store\r\nconnection: close\r\ncontent-length: 88\r\n\r\n\
    {\"error\":{\"code\":\"over_capacity\",\"message\":\"this instance has no free file descriptor\"}}";

fn refuse(socket: &TcpStream, encrypted: bool, metrics: &Metrics) {
    static REFUSED: LogRate = LogRate::new();
    metrics.limited.with_label_values(&["file_descriptors"]).inc();
    metrics.refusals.with_label_values(&["over_capacity"]).inc();
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

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_accepted_socket_has_the_options_of_its_listener() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        set_options(&listener.listener, UNACKNOWLEDGED_DEADLINE);
        let (_client, accepted) = tokio::join!(TcpStream::connect(listener.address), listener.listener.accept());
        let accepted = accepted.unwrap().0;
        assert!(accepted.nodelay().unwrap());
        assert_eq!(SockRef::from(&accepted).tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_DEADLINE));
    }

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
