//! The two listeners: one for browsers, one for operators and backends.

mod admin;
mod demo;
mod descriptors;
mod forwarded;
mod handshake;
mod head;
mod history;
mod http;
mod listener;
mod notifications;
mod presence;
mod proxy_protocol;
mod read_position;
mod reply;
mod request;
mod tls;
mod websocket;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::auth::OriginPolicy;
use crate::backplane::Backplane;
use crate::config::Config;
use crate::connection::Context;
use crate::control::Control;
use crate::sessions::Sessions;

pub use descriptors::raise_limit;
#[doc(hidden)]
pub use forwarded::client_address;
pub use listener::{Listener, serve};
#[doc(hidden)]
pub use proxy_protocol::{HeaderError, read_header};
pub use tls::Tls;

/// What every request handler can reach.
#[derive(Debug)]
pub struct App {
    /// The configuration as it was validated.
    pub config: Config,
    /// What connections share.
    pub context: Arc<Context>,
    /// Where notifications come from and go to.
    pub backplane: Arc<Backplane>,
    /// Where the listeners speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Looks sessions up, where that is configured.
    pub sessions: Option<Arc<Sessions>>,
    /// Obeys what backends command.
    pub control: Arc<Control>,
    /// When the instance started.
    pub started: std::time::Instant,
}

/// The paths of the public listener, but for the WebSocket.
pub fn public(app: &Arc<App>) -> axum::Router {
    let mut router = axum::Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    if app.config.server.demo {
        router = router.merge(demo::router(app));
    }
    with_fallbacks(router).with_state(Arc::clone(app))
}

/// The paths of the admin listener.
pub fn admin(app: &Arc<App>) -> axum::Router {
    with_fallbacks(admin::router(app)).with_state(Arc::clone(app))
}

fn with_fallbacks(router: axum::Router<Arc<App>>) -> axum::Router<Arc<App>> {
    router
        .fallback(|| std::future::ready(reply::not_found()))
        .method_not_allowed_fallback(|| std::future::ready(reply::method_not_allowed()))
}

/// 200 while the process lives.
async fn healthz() -> Json<serde_json::Value> {
    std::future::ready(Json(json!({"alive": true}))).await
}

/// 200 while this instance would serve a new connection well; else 503 and why.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    let why = if app.context.shutdown.draining().is_cancelled() {
        Some("draining".to_owned())
    } else {
        app.backplane.not_ready().or_else(|| app.control.not_ready())
    };
    let gaps = app.context.metrics.backplane_gaps.get();
    let answer = match why {
        None => (StatusCode::OK, Json(json!({"ready": true, "gaps": gaps}))),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"ready": false, "reason": why, "gaps": gaps}))),
    };
    std::future::ready(answer).await.into_response()
}
