//! HTTP/1.1 on one connection, with a deadline on every stage, until the upgrade to a WebSocket.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, join, split};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::App;
use super::host::check_host;
use super::listener::Stream;
use super::public::events::{self, Accepted};
use super::public::socketio::{self, Arrival, SocketIoUpgrade, Visit};
use super::public::websocket::{self, Upgrade};
use super::public::{self, First, MAX_HEAD, note_refusal};
use super::reply::Refusal;
use crate::connection::{Connection, EventStream, Peer, SocketIo};
use crate::delivery::Socket;
use crate::limits::SocketPermits;

/// From a request's head to the end of its response, except for streams.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection to the admin listener may be idle after a response. Longer than the minute for which many clients
/// keep theirs, so that a client rarely sends a request on a connection that is being closed.
const IDLE_DEADLINE: Duration = Duration::from_secs(75);

/// The HTTP service of a listener.
#[derive(Debug)]
pub(super) struct Http {
    app: Arc<App>,
    router: TowerToHyperService<axum::Router>,
    /// Whether it serves `/ws`, `/events` and `/socket.io/`: without the router, which would cost as much as the rest of a handshake.
    websockets: bool,
}

impl Http {
    pub(super) fn new(app: &Arc<App>, router: axum::Router, websockets: bool) -> Self {
        let router = TowerToHyperService::new(router.layer(from_fn(respond_in_time)));
        Self { app: Arc::clone(app), router, websockets }
    }

    /// Responds until the client or a deadline ends the connection, or it is upgraded to a WebSocket, which has its own task.
    /// `permits` are those that the socket holds already.
    pub(super) async fn run(&self, mut stream: Stream, peer: SocketAddr, permits: SocketPermits, deadline: Instant) {
        if !self.websockets {
            return Box::pin(self.serve(stream, Vec::new(), None, deadline)).await;
        }
        let First { bytes, request } = match timeout_at(deadline, public::read_head(&mut stream)).await {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => return debug!(%error, "no request received"),
            Err(_) => return debug!("no request received in time"),
        };
        let path = request.as_ref().map(|(request, _)| request.uri().path());
        match (path, request.as_ref()) {
            (Some(websocket::PATH), Some((request, end))) => {
                match websocket::respond(&self.app, request, peer, permits.connection, deadline).await {
                    Err(response) => Box::pin(self.serve(stream, bytes, Some(response), deadline)).await,
                    Ok(upgrade) => {
                        let early = bytes.get(*end..).unwrap_or_default().to_vec();
                        self.upgrade(stream, upgrade, early);
                    }
                }
            }
            (Some(socketio::PATH), Some((request, end)))
                if self.app.config.server.socketio && socketio::opens_websocket(request.uri()) =>
            {
                match Box::pin(socketio::respond(&self.app, request, peer, permits.connection, deadline)).await {
                    Err(response) => Box::pin(self.serve(stream, bytes, Some(response), deadline)).await,
                    Ok(upgrade) => {
                        let early = bytes.get(*end..).unwrap_or_default().to_vec();
                        self.upgrade_socketio(stream, upgrade, early);
                    }
                }
            }
            (Some(socketio::PATH), Some((_, end))) if self.app.config.server.socketio => {
                let visit = Visit::new(&self.app, socket(stream), peer, bytes.get(*end..).unwrap_or_default().to_vec());
                // The task of the listener has a much larger future, which a held request would keep.
                if let Some((request, _)) = request {
                    let arrival = Box::new(Arrival { request, permits, deadline });
                    self.app.context.shutdown.spawn_until_stop(visit.run(arrival));
                }
            }
            (Some(events::PATH), Some((request, _))) if self.app.config.server.sse => {
                match Box::pin(events::respond(&self.app, request, peer, permits.connection, deadline)).await {
                    Err(response) => Box::pin(self.serve(stream, bytes, Some(response), deadline)).await,
                    Ok(accepted) => self.stream(stream, accepted),
                }
            }
            _ => {
                // One request with a deadline is not a connection to count.
                drop(permits);
                match path {
                    Some(_) => Box::pin(self.serve(stream, bytes, None, deadline)).await,
                    None => Box::pin(self.refuse(stream, bytes, peer, deadline)).await,
                }
            }
        }
    }

    /// `early` are the bytes that the client sent directly after its handshake.
    fn upgrade(&self, stream: Stream, upgrade: Upgrade, early: Vec<u8>) {
        let Upgrade { dialect, handshake, permits, in_hand } = upgrade;
        let context = Arc::clone(&self.app.context);
        let connection = Connection::open(context, socket(stream), early, dialect, handshake.peer.address, permits);
        // The 101 and the greeting are sent in one write.
        self.app.context.shutdown.spawn_connection(connection.run(handshake));
        drop(in_hand);
    }

    fn upgrade_socketio(&self, stream: Stream, upgrade: SocketIoUpgrade, early: Vec<u8>) {
        let SocketIoUpgrade { handshake, permits, in_hand } = upgrade;
        let context = Arc::clone(&self.app.context);
        let connection = SocketIo::open(context, socket(stream), early, handshake.peer.address, permits);
        self.app.context.shutdown.spawn_connection(connection.run(handshake));
        drop(in_hand);
    }

    fn stream(&self, stream: Stream, accepted: Accepted) {
        let Accepted { dialect, handshake, permits, in_hand } = accepted;
        let context = Arc::clone(&self.app.context);
        let events = EventStream::open(context, socket(stream), dialect, handshake.peer.address, permits);
        self.app.context.shutdown.spawn_connection(events.run(handshake));
        drop(in_hand);
    }

    /// Responds to a head that is too long or malformed, and counts that as a refused handshake.
    async fn refuse(&self, stream: Stream, read: Vec<u8>, peer: SocketAddr, deadline: Instant) {
        let Err(error) = self.exchange(stream, read, None, deadline).await else { return };
        match unparsed(&error) {
            Some(refusal) => note_refusal(&self.app, &Peer::of_socket(peer), &refusal),
            None => debug!(%error, "http connection ended"),
        }
    }

    async fn serve(&self, stream: Stream, read: Vec<u8>, decided: Option<Response<Body>>, deadline: Instant) {
        if let Err(error) = self.exchange(stream, read, decided, deadline).await {
            debug!(%error, "http connection ended");
        }
    }

    /// Serves everything but connections. `read` are the bytes read already; `decided`, if present, is the first response.
    async fn exchange(
        &self,
        stream: Stream,
        read: Vec<u8>,
        decided: Option<Response<Body>>,
        deadline: Instant,
    ) -> hyper::Result<()> {
        let (decided, requested) = (&Mutex::new(decided), &Notify::new());
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            requested.notify_one();
            let decided = decided.lock().take();
            let mut response = match decided {
                Some(response) => response,
                None => self.router.call(request).await?,
            };
            // From a cache, an instance that is gone would still be ready.
            response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
            // One request per browser connection: a persistent one would bypass the limits.
            if self.websockets {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let (reading, writing) = split(stream);
        let stream = join(Cursor::new(read).chain(reading), writing);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_DEADLINE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // In this order: a response that was decided at the deadline is still sent.
            biased;
            ended = &mut connection => ended,
            () = requested.notified() => connection.await,
            () = sleep_until(deadline) => {
                debug!("no request received in time");
                Ok(())
            }
        }
    }
}

/// Why hyper has refused a head; `None` if it has not: the client left, or began HTTP/2, to which it responds nothing.
fn unparsed(error: &hyper::Error) -> Option<Refusal> {
    if error.is_parse_too_large() {
        let message = "the request head is over 16 KiB, or has over 100 headers";
        return Some(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", message));
    }
    let is_malformed = error.is_parse() && !error.is_parse_version_h2();
    is_malformed.then(|| Refusal::bad_request(format!("the request head is malformed: {error}")))
}

fn socket(stream: Stream) -> Socket {
    match stream {
        Stream::Left(tcp) => Socket::Plain(tcp),
        Stream::Right(tls) => Socket::Tls(tls),
    }
}

async fn respond_in_time(request: axum::extract::Request, next: Next) -> Response<Body> {
    if let Err(refusal) = check_host(request.version(), request.headers()) {
        return refusal.into_response();
    }
    match timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::too_slow().into_response(),
    }
}
