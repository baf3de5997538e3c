//! HTTP/1.1 on one connection, with a deadline on every stage, up to where it becomes a WebSocket.

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

/// From a request's head to the end of its answer, streams aside.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

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
    pub(super) async fn speak(&self, mut stream: Stream, peer: SocketAddr, deadline: Instant) {
        if !self.websockets {
            return self.serve(stream, Vec::new(), None, deadline).await;
        }
        let First { bytes, request } = match timeout_at(deadline, public::read_head(&mut stream)).await {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => return debug!(%error, "no request came"),
            Err(_) => return debug!("no request came in time"),
        };
        let Some((request, end)) = request.filter(|(request, _)| request.uri().path() == public::PATH) else {
            return self.serve(stream, bytes, None, deadline).await;
        };
        match public::answer(&self.app, &request, peer, deadline).await {
            (answer, None) => self.serve(stream, bytes, Some(answer), deadline).await,
            (answer, Some(upgrade)) => {
                let (head, early) = (public::encode(&answer), bytes.get(end..).unwrap_or_default().to_vec());
                drop(answer);
                self.upgrade(stream, head, upgrade, early).await;
            }
        }
    }

    /// `head` is that of the 101, `early` what the client sent on the heels of its own.
    async fn upgrade(&self, stream: Stream, head: Vec<u8>, upgrade: Upgrade, early: Vec<u8>) {
        let Upgrade { admitted, permits, in_hand } = upgrade;
        let socket = match stream {
            Stream::Left(tcp) => Socket::Plain(tcp),
            Stream::Right(tls) => Socket::from(*tls),
        };
        let context = Arc::clone(&self.app.context);
        let connection = Connection::open(context, socket, early, admitted.dialect, permits).await;
        // The answer and the greeting are one write.
        let running = connection.run(admitted.identity, admitted.start, head);
        self.app.context.shutdown.spawn_connection(running);
        drop(in_hand);
    }

    /// Everything but WebSockets. `read` is what was read already; `decided`, where there is one, answers it.
    async fn serve(&self, stream: Stream, read: Vec<u8>, decided: Option<Response<Body>>, deadline: Instant) {
        let decided = &Mutex::new(decided);
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            let decided = decided.lock().take();
            let mut answer = match decided {
                Some(answer) => answer,
                None => self.router.call(request).await?,
            };
            // A browser's connection is for one request: kept open between many, it would escape every limit.
            if self.websockets {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
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

async fn answer_in_time(request: axum::extract::Request, next: Next) -> Response<Body> {
    match timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Refusal::too_slow().into_response(),
    }
}
