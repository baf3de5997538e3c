//! The two listeners: one for browsers, one for operators and backends.

mod admin;
mod demo;
mod fd_limit;
mod http;
mod listener;
mod proxy_protocol;
mod public;
mod reply;
mod request;
mod tls;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::auth::OriginPolicy;
use crate::backplane::Backplane;
use crate::config::Config;
use crate::connection::Context;
use crate::history::HistoryStore;
use crate::presence::PresenceStore;
use crate::revocation::RevocationList;
use crate::sessions::Sessions;

pub use fd_limit::raise_limit;
pub use listener::{Listener, serve};
pub use proxy_protocol::read_header;
pub use public::client_address;
pub use tls::Tls;

/// What every request handler can reach.
#[derive(Debug)]
pub struct App {
    /// The configuration as it was validated.
    pub config: Config,
    /// What connections share.
    pub context: Arc<Context>,
    /// Connects this instance with others and with backends.
    pub backplane: Backplane,
    /// Stored notifications.
    pub history: Arc<HistoryStore>,
    /// Online users.
    pub presence: Arc<PresenceStore>,
    /// Where the listeners speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Looks sessions up, where that is configured.
    pub sessions: Option<Arc<Sessions>>,
    /// Revoked tokens, for readiness.
    pub revocations: Arc<RevocationList>,
    /// When the instance started.
    pub started: std::time::Instant,
}

/// The paths of the public listener, but for the WebSocket.
pub fn public(app: &Arc<App>) -> axum::Router {
    with_fallbacks(public::router(app)).with_state(Arc::clone(app))
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
        app.backplane.not_ready().or_else(|| app.revocations.not_ready())
    };
    let gaps = app.context.metrics.backplane_gaps.get();
    let answer = match why {
        None => (StatusCode::OK, Json(json!({"ready": true, "gaps": gaps}))),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"ready": false, "reason": why, "gaps": gaps}))),
    };
    std::future::ready(answer).await.into_response()
}
