//! The public listener, for browsers, and the admin listener, for operators and backends.

mod admin;
mod cors;
mod demo;
mod fd_limit;
mod host;
mod http;
mod listener;
mod origin;
mod page;
mod proxy_protocol;
mod public;
mod reply;
mod request;
mod tickets;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
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
use crate::roster::Roster;
use crate::sessions::Sessions;

pub use fd_limit::{browsers_allowed, raise_limit};
pub use listener::{Listener, serve};
pub use proxy_protocol::read_header;
pub use public::client_address;
pub use tls::Tls;

/// The state of every request handler.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub context: Arc<Context>,
    pub backplane: Backplane,
    pub history: Arc<HistoryStore>,
    pub presence: Arc<PresenceStore>,
    pub tls: Option<Arc<Tls>>,
    pub origins: ArcSwap<OriginPolicy>,
    pub sessions: Option<Arc<Sessions>>,
    pub revocations: Arc<RevocationList>,
    pub roster: Arc<Roster>,
    pub started: std::time::Instant,
    /// The address of the admin listener, once it is bound.
    pub admin: OnceLock<SocketAddr>,
}

/// The routes of the public listener, except the WebSocket.
pub fn public(app: &Arc<App>) -> axum::Router {
    with_fallbacks(public::router(app)).with_state(Arc::clone(app))
}

pub fn admin(app: &Arc<App>) -> axum::Router {
    with_fallbacks(admin::router(app)).with_state(Arc::clone(app))
}

fn with_fallbacks(router: axum::Router<Arc<App>>) -> axum::Router<Arc<App>> {
    router
        .fallback(|| std::future::ready(reply::not_found()))
        .method_not_allowed_fallback(|| std::future::ready(reply::method_not_allowed()))
}

async fn healthz() -> Json<serde_json::Value> {
    std::future::ready(Json(json!({"alive": true}))).await
}

impl App {
    /// Why this instance cannot serve new connections; `None` if it can.
    fn not_ready(&self) -> Option<String> {
        if self.context.shutdown.draining().is_cancelled() {
            return Some("draining".to_owned());
        }
        let revoked = || self.revocations.not_ready().map(|why| self.backplane.problem().unwrap_or(why));
        self.backplane.not_ready().or_else(revoked).or_else(|| self.backplane.refused_condition())
    }
}

/// 200 while this instance can serve new connections; else 503 with the reason.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    let (gaps, refused) = (app.context.metrics.backplane_gaps.get(), app.backplane.refused());
    let response = match app.not_ready() {
        None => (StatusCode::OK, Json(json!({"ready": true, "gaps": gaps, "refused": refused}))),
        Some(reason) => {
            let body = json!({"ready": false, "reason": reason, "gaps": gaps, "refused": refused});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    };
    std::future::ready(response).await.into_response()
}
