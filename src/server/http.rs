//! HTTP/1.1 on one connection, with a deadline on every stage, up to where it becomes a WebSocket.

use std::net::SocketAddr;
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
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::App;
use super::listener::Stream;
use super::reply::Refusal;
use super::websocket::{self, Upgrade};
use crate::connection::Connection;
use crate::registry::Socket;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// From a request's head to the end of its answer, streams aside.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// For the end of TLS to leave.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// What a listener speaks.
#[derive(Debug)]
pub(super) struct Http {
    app: Arc<App>,
    router: TowerToHyperService<axum::Router>,
    /// Whether `/ws` is there. It goes past the router, whose price is that of all the rest of a handshake.
    websockets: bool,
}

impl Http {
    pub(super) fn new(app: &Arc<App>, router: axum::Router, websockets: bool) -> Self {
        let router = TowerToHyperService::new(router.layer(from_fn(answer_in_time)));
        Self { app: Arc::clone(app), router, websockets }
    }

    /// Answers until the client or a deadline ends the connection, or it has become a WebSocket, which runs on its own.
    pub(super) async fn speak(&self, stream: Stream, peer: SocketAddr, deadline: Instant) {
        let upgrade = Mutex::new(None);
        let agreed = &upgrade;
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            if !self.websockets {
                return self.router.call(request).await;
            }
            let mut answer = if request.uri().path() == websocket::PATH {
                let (answer, upgrade) = websocket::answer(&self.app, &request, peer, deadline).await;
                *agreed.lock() = upgrade;
                answer
            } else {
                self.router.call(request).await?
            };
            // A browser's connection is for one request: kept open between many, it would escape every limit.
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(deadline.saturating_duration_since(Instant::now()))
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let parts = match connection.without_shutdown().await {
            Ok(parts) => parts,
            Err(error) => return debug!(%error, "http connection ended"),
        };
        let mut stream = parts.io.into_inner();
        let Some(Upgrade { admitted, pass, in_hand }) = upgrade.lock().take() else {
            timeout(GOODBYE_DEADLINE, stream.shutdown()).await.ok();
            return;
        };
        let socket = match stream {
            Stream::Left(tcp) => Socket::Plain(tcp),
            Stream::Right(tls) => Socket::from(*tls),
        };
        // Copied: a slice, even an empty one, would keep the whole buffer of the handshake for as long as the connection.
        let early = parts.read_buf.to_vec();
        let context = Arc::clone(&self.app.context);
        let connection = Connection::open(context, socket, early, admitted.dialect, pass).await;
        self.app.context.shutdown.spawn_connection(connection.run(admitted.identity));
        drop(in_hand);
    }
}

async fn answer_in_time(request: axum::extract::Request, next: Next) -> Response<Body> {
    match timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Refusal::too_slow().into_response(),
    }
}
