//! The routes of the public listener, for browsers.

mod forwarded;
mod handshake;
mod head;
mod websocket;

use std::sync::Arc;

use axum::routing::get;

pub use forwarded::client_address;
pub(super) use head::{First, MAX_HEAD, read as read_head};
pub(super) use websocket::{PATH, Upgrade, encode, respond};

use super::{App, demo, healthz, readyz};

/// All routes but the WebSocket's, which [`super::http`] handles without a router.
pub(super) fn router(app: &Arc<App>) -> axum::Router<Arc<App>> {
    let router = axum::Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    if app.config.server.demo { router.merge(demo::router(app)) } else { router }
}
