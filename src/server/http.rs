//! HTTP/1.1 on one connection, with a deadline on every stage, until the upgrade to a WebSocket.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, join, split};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::App;
use super::listener::Stream;
use super::public::{self, First, MAX_HEAD, Upgrade};
use super::reply::Refusal;
use crate::connection::Connection;
use crate::delivery::Socket;

/// From a request's head to the end of its response, except for streams.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// The HTTP service of a listener.
#[derive(Debug)]
pub(super) struct Http {
    app: Arc<App>,
    router: TowerToHyperService<axum::Router>,
    /// Whether it serves `/ws`: without the router, which would cost as much as the rest of a handshake.
    websockets: bool,
}

impl Http {
    pub(super) fn new(app: &Arc<App>, router: axum::Router, websockets: bool) -> Self {
        let router = TowerToHyperService::new(router.layer(from_fn(respond_in_time)));
        Self { app: Arc::clone(app), router, websockets }
    }

    /// Responds until the client or a deadline ends the connection, or it is upgraded to a WebSocket, which has its own task.
    pub(super) async fn run(&self, mut stream: Stream, peer: SocketAddr, deadline: Instant) {
        if !self.websockets {
            return self.serve(stream, Vec::new(), None, deadline).await;
        }
        let First { bytes, request } = match timeout_at(deadline, public::read_head(&mut stream)).await {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => return debug!(%error, "no request received"),
            Err(_) => return debug!("no request received in time"),
        };
        let Some((request, end)) = request.filter(|(request, _)| request.uri().path() == public::PATH) else {
            return self.serve(stream, bytes, None, deadline).await;
        };
        match public::respond(&self.app, &request, peer, deadline).await {
            (response, None) => self.serve(stream, bytes, Some(response), deadline).await,
            (response, Some(upgrade)) => {
                let (head, early) = (public::encode(&response), bytes.get(end..).unwrap_or_default().to_vec());
                drop(response);
                self.upgrade(stream, head, upgrade, early).await;
            }
        }
    }

    /// `head` is the head of the 101, `early` are the bytes that the client sent directly after its own.
    async fn upgrade(&self, stream: Stream, head: Vec<u8>, upgrade: Upgrade, early: Vec<u8>) {
        let Upgrade { admitted, permits, in_hand } = upgrade;
        let socket = match stream {
            Stream::Left(tcp) => Socket::Plain(tcp),
            Stream::Right(tls) => Socket::from(*tls),
        };
        let context = Arc::clone(&self.app.context);
        let connection = Connection::open(context, socket, early, admitted.dialect, permits).await;
        // The 101 and the greeting are sent in one write.
        let running = connection.run(admitted.identity, admitted.start, head);
        self.app.context.shutdown.spawn_connection(running);
        drop(in_hand);
    }

    /// Serves everything but WebSockets. `read` are the bytes read already; `decided`, if present, is the first response.
    async fn serve(&self, stream: Stream, read: Vec<u8>, decided: Option<Response<Body>>, deadline: Instant) {
        let decided = &Mutex::new(decided);
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            let decided = decided.lock().take();
            let mut response = match decided {
                Some(response) => response,
                None => self.router.call(request).await?,
            };
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
            .header_read_timeout(deadline.saturating_duration_since(Instant::now()))
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            debug!(%error, "http connection ended");
        }
    }
}

async fn respond_in_time(request: axum::extract::Request, next: Next) -> Response<Body> {
    match timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::too_slow().into_response(),
    }
}
