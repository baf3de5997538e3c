//! The routes of the public listener, for browsers.

pub(super) mod events;
mod forwarded;
mod handshake;
mod head;
mod sdk;
pub(super) mod socketio;
pub(super) mod websocket;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use axum::routing::get;

pub use forwarded::client_address;
pub(super) use forwarded::is_trusted;
pub(super) use handshake::note_refusal;
pub(super) use head::{First, MAX_HEAD, read as read_head};

use super::{App, demo, healthz, readyz};

/// All routes but those of connections, which [`super::http`] handles without a router.
pub(super) fn router(app: &Arc<App>) -> axum::Router<Arc<App>> {
    let router = axum::Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).merge(sdk::router());
    if app.config.server.demo { router.merge(demo::router(app)) } else { router }
}

/// Encodes the head of a response that a connection begins with.
fn encode(response: &Response<Body>) -> Vec<u8> {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
