//! `GET /ws`: the response to a WebSocket handshake.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::handshake::{Admitted, Head, admit};
use crate::auth::OFFERED_PROTOCOL;
use crate::limits::AdmissionPermits;
use crate::server::App;
use crate::server::reply::Refusal;

pub(in crate::server) const PATH: &str = "/ws";

/// An accepted handshake; the connection begins with the 101.
#[derive(Debug)]
pub(in crate::server) struct Upgrade {
    pub(in crate::server) admitted: Admitted,
    pub(in crate::server) permits: AdmissionPermits,
    /// A drain waits for this as for a connection.
    pub(in crate::server) in_hand: TaskTrackerToken,
}

pub(in crate::server) async fn respond(
    app: &App,
    request: &Request<()>,
    peer: SocketAddr,
    deadline: Instant,
) -> (Response<Body>, Option<Upgrade>) {
    let in_hand = app.context.shutdown.connection_in_hand();
    let head = Head {
        method: request.method(),
        version: request.version(),
        uri: request.uri(),
        headers: request.headers(),
        peer,
    };
    let mut permits = AdmissionPermits::default();
    let admitted = timeout_at(deadline, admit(app, &head, &mut permits)).await;
    let remaining = permits.remaining;
    let (mut response, upgrade) = match admitted.unwrap_or_else(|_| Err(Refusal::too_slow())) {
        Ok(admitted) => (switch(&admitted), Some(Upgrade { admitted, permits, in_hand })),
        Err(refusal) => (refuse(app, refusal), None),
    };
    if let Some(remaining) = remaining {
        response.headers_mut().insert("x-ratelimit-remaining", remaining.into());
    }
    (response, upgrade)
}

fn switch(admitted: &Admitted) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, admitted.accept.clone());
    if admitted.offered {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(OFFERED_PROTOCOL));
    }
    response
}

fn refuse(app: &App, refusal: Refusal) -> Response<Body> {
    app.context.metrics.handshakes_refused.with_label_values(&[refusal.status.as_str()]).inc();
    let with_version = refusal.status == StatusCode::UPGRADE_REQUIRED || refusal.status == StatusCode::BAD_REQUEST;
    let mut response = refusal.into_response();
    if with_version {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}

/// Encodes the 101.
pub(in crate::server) fn encode(response: &Response<Body>) -> Vec<u8> {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
