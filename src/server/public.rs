//! The public listener: `GET /ws` and the probes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::handshake::{self, Admitted, Head};
use super::listener::{Deadline, Peer};
use super::reply::Refusal;
use super::{App, healthz, readyz};
use crate::auth::OFFERED_PROTOCOL;
use crate::connection;
use crate::limits::Pass;

pub(super) fn router() -> axum::Router<Arc<App>> {
    axum::Router::new().route("/ws", any(websocket)).route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// The WebSocket handshake: everything is decided before the 101, but for a token that a `hello` will bring.
async fn websocket(State(app): State<Arc<App>>, mut request: Request) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let Deadline(deadline) = Deadline::of(&request, app.config.server.handshake_timeout);
    let head = Head { method: request.method(), uri: request.uri(), headers: request.headers(), peer };
    let mut pass = Pass::default();
    let admitted = timeout_at(deadline, handshake::admit(&app, &head, &mut pass)).await;
    let admitted = admitted.unwrap_or_else(|_| Err(Refusal::too_slow()));
    let remaining = pass.remaining;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (admitted, upgrade) = match (admitted, upgrade) {
        (Ok(admitted), Some(upgrade)) => (admitted, upgrade),
        (Ok(_), None) => {
            let refusal = Refusal::bad_request("the upgrade cannot be done on this connection");
            return with_remaining(refuse(&app, refusal), remaining);
        }
        (Err(refusal), _) => return with_remaining(refuse(&app, refusal), remaining),
    };
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, admitted.accept.clone());
    if admitted.offered {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(OFFERED_PROTOCOL));
    }
    app.context.shutdown.clone().spawn_connection(upgraded(app, upgrade, admitted, pass, deadline));
    with_remaining(response, remaining)
}

/// Tells how many more connects the rate allows in this second, where one is limited.
fn with_remaining(mut response: Response, remaining: Option<u32>) -> Response {
    if let Some(remaining) = remaining {
        response.headers_mut().insert("x-ratelimit-remaining", remaining.into());
    }
    response
}

/// Waits for the 101 to be out, then hands the bare socket to a task of its own.
async fn upgraded(app: Arc<App>, upgrade: OnUpgrade, admitted: Admitted, pass: Pass, deadline: Instant) {
    let Ok(Ok(io)) = timeout_at(deadline, upgrade).await else {
        debug!("the client left during its handshake");
        return;
    };
    let Ok(parts) = io.downcast::<TokioIo<TcpStream>>() else { return };
    // Copied: a slice, even an empty one, would keep the whole buffer of the handshake for as long as the connection.
    let (socket, early): (TcpStream, Vec<u8>) = (parts.io.into_inner(), parts.read_buf.to_vec());
    let Admitted { dialect, identity, .. } = admitted;
    let context = Arc::clone(&app.context);
    app.context.shutdown.spawn_connection(connection::run(context, socket, early, dialect, identity, pass));
}

fn refuse(app: &App, refusal: Refusal) -> Response {
    app.context.metrics.handshakes_refused.with_label_values(&[refusal.status.as_str()]).inc();
    let version_wanted = refusal.status == StatusCode::UPGRADE_REQUIRED || refusal.status == StatusCode::BAD_REQUEST;
    let mut response = refusal.into_response();
    if version_wanted {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}
