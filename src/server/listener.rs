//! Accepts connections and speaks HTTP/1.1 on them, with a deadline on every stage.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tracing::{debug, warn};

use super::Tls;
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
        Ok(Self { listener, address })
    }
}

/// The other end of the socket that a request came on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// A connection as HTTP has it: TCP as it is, or TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Accepts until the instance stops. Each connection's head must come within `head_deadline`, its TLS handshake
/// included.
pub async fn serve(
    listener: Listener,
    router: axum::Router,
    tls: Option<Arc<Tls>>,
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
                let (router, tls, stopping) = (router.clone(), tls.clone(), stopping.clone());
                let metrics = Arc::clone(&metrics);
                shutdown.spawn_service(async move {
                    let deadline = Instant::now() + head_deadline;
                    let serving = async {
                        let stream = match tls {
                            None => Either::Left(socket),
                            Some(tls) => match encrypted(socket, &tls, deadline, &metrics).await {
                                Some(stream) => Either::Right(stream),
                                None => return,
                            },
                        };
                        http(stream, Peer(peer), router, deadline.duration_since(Instant::now())).await;
                    };
                    stopping.run_until_cancelled(serving).await;
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

async fn http(socket: Stream, peer: Peer, router: axum::Router, head_deadline: Duration) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
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
        Err(_) => {
            let message = "the request took too long";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message).into_response()
        }
    }
}
