//! `GET /ws`: the response to a WebSocket handshake.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::handshake::{Admitted, Head, admit, note_refusal};
use crate::auth::OFFERED_PROTOCOL;
use crate::connection::{Handshake, Peer};
use crate::limits::AdmissionPermits;
use crate::protocol::Dialect;
use crate::server::App;
use crate::server::reply::Refusal;

/// The path of the endpoint.
pub(in crate::server) const PATH: &str = "/ws";

/// The beginning of a 101.
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n";

const REMAINING: &str = "x-ratelimit-remaining";

/// Room for a 101 and the welcome after it.
const GREETING: usize = 512;

/// An accepted handshake; the connection begins with the 101.
#[derive(Debug)]
pub(in crate::server) struct Upgrade {
    pub(in crate::server) dialect: Dialect,
    pub(in crate::server) handshake: Handshake,
    pub(in crate::server) permits: AdmissionPermits,
    /// A drain waits for this as for a connection.
    pub(in crate::server) in_hand: TaskTrackerToken,
}

/// Returns the upgrade, or the response that refuses it.
pub(in crate::server) async fn respond(
    app: &App,
    request: &Request<()>,
    peer: SocketAddr,
    mut permits: AdmissionPermits,
    deadline: Instant,
) -> Result<Upgrade, Response<Body>> {
    let (in_hand, begun) = (app.context.shutdown.connection_in_hand(), Instant::now());
    let head = Head::of(app, request, peer);
    let peer = head.peer();
    let admitted = timeout_at(deadline, admit(app, &head, &mut permits)).await;
    match admitted.unwrap_or_else(|_| Err(Refusal::too_slow())) {
        Ok(admitted) => {
            let Admitted { accept, dialect, offered, identity, start } = admitted;
            let head = switch(&accept, offered, permits.remaining);
            Ok(Upgrade { dialect, handshake: Handshake { identity, start, head, peer, begun }, permits, in_hand })
        }
        Err(refusal) => {
            let mut response = refuse(app, &peer, refusal);
            if let Some(remaining) = permits.remaining {
                response.headers_mut().insert(REMAINING, remaining.into());
            }
            Err(response)
        }
    }
}

/// Encodes the 101. `offered`: the client offered `tidings.v1`; `remaining`: the connects that its rate still allows.
pub(super) fn switch(accept: &str, offered: bool, remaining: Option<u32>) -> Vec<u8> {
    let mut head = Vec::with_capacity(GREETING);
    let protocol = if offered { ["sec-websocket-protocol: ", OFFERED_PROTOCOL, "\r\n"] } else { [""; 3] };
    for part in [SWITCHING, "sec-websocket-accept: ", accept, "\r\n"].into_iter().chain(protocol) {
        head.extend_from_slice(part.as_bytes());
    }
    if let Some(remaining) = remaining {
        head.extend_from_slice(format!("{REMAINING}: {remaining}\r\n").as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn refuse(app: &App, peer: &Peer, refusal: Refusal) -> Response<Body> {
    note_refusal(app, peer, &refusal);
    let with_version = refusal.status == StatusCode::UPGRADE_REQUIRED || refusal.status == StatusCode::BAD_REQUEST;
    let mut response = refusal.into_response();
    if with_version {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}
