//! The admin listener, for operators and backends.

mod broadcast;
mod connections;
mod history;
pub(super) mod notifications;
mod presence;
mod read_position;
mod retraction;
mod ui;

use std::sync::Arc;

use axum::Json;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::auth::bearer;
use crate::config::secret_bytes;
use crate::connection::Context;
use crate::metrics::Format;
use crate::server::host::check_loopback_host;
use crate::server::reply::Refusal;
use crate::server::{App, healthz, readyz};

const MAX_BODY: usize = 64 * 1024;

/// For a notification to many users.
const MAX_BATCH_BODY: usize = 4 * 1024 * 1024;

const OPENAPI: &str = include_str!("../../../docs/openapi.json");

type Paths = Vec<(&'static str, MethodRouter<Arc<App>>)>;

/// Paths that need no key.
fn open_paths() -> Paths {
    vec![("/healthz", get(healthz)), ("/readyz", get(readyz)), ("/metrics", get(render_metrics))]
}

fn guarded_paths() -> Paths {
    let large = DefaultBodyLimit::max(MAX_BATCH_BODY);
    vec![
        ("/v1/notifications", post(notifications::to_many).route_layer(large)),
        ("/v1/broadcast", post(broadcast::send)),
        ("/v1/users/{id}/notifications", get(history::page).post(notifications::to_one)),
        ("/v1/users/{id}/notifications/{cursor}", delete(retraction::retract)),
        ("/v1/users/{id}", delete(retraction::erase)),
        ("/v1/users/{id}/read-position", get(read_position::get).put(read_position::put)),
        ("/v1/users/{id}/presence", get(presence::one)),
        ("/v1/users/{id}/connections", get(connections::list).delete(connections::close)),
        ("/v1/presence", get(presence::page).post(presence::many)),
        ("/v1/presence/count", get(presence::count)),
        ("/v1/info", get(info)),
        ("/v1/openapi.json", get(openapi)),
    ]
}

fn routes(paths: Paths) -> axum::Router<Arc<App>> {
    paths.into_iter().fold(axum::Router::new(), |router, (path, methods)| router.route(path, methods))
}

pub(super) fn router(app: &Arc<App>) -> axum::Router<Arc<App>> {
    let guarded = routes(guarded_paths())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route_layer(from_fn_with_state(Arc::clone(app), require_key));
    routes(open_paths()).merge(ui::router()).merge(guarded)
}

/// Accepts requests with one of the configured keys. Without keys, which the configuration allows on loopback only, it
/// accepts all but those of foreign pages, which any browser on this machine could send.
async fn require_key(State(app): State<Arc<App>>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let keys = &app.config.admin_keys;
    if keys.is_empty() {
        return match check_loopback_host(&headers) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    let given = bearer(&headers).unwrap_or_default();
    // Every key is compared, in constant time.
    let matching = keys.iter().filter(|(_, key)| secret_bytes(key).ct_eq(given.as_bytes()).into()).count();
    if matching > 0 {
        return next.run(request).await;
    }
    Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "send Authorization: Bearer <api key>").into_response()
}

async fn render_metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Context { metrics, registry, shutdown, .. } = &*app.context;
    metrics.users.set(i64::try_from(registry.users()).unwrap_or(i64::MAX));
    metrics.backplane_lag_seconds.set(app.backplane.lag().as_secs_f64());
    metrics.ready.set(app.not_ready().is_none().into());
    metrics.draining.set(shutdown.draining().is_cancelled().into());
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::preferred(accept);
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")];
    std::future::ready((headers, metrics.render(format))).await.into_response()
}

async fn openapi() -> Response {
    std::future::ready(([(header::CONTENT_TYPE, "application/json")], OPENAPI)).await.into_response()
}

/// This instance, and the other live instances unless the backplane is away.
async fn info(State(app): State<Arc<App>>) -> Json<serde_json::Value> {
    let registry = &app.context.registry;
    let own = app.context.instance.as_str();
    let others = app.presence.instances().await.ok();
    let others = others.map(|all| all.into_iter().filter(|other| other.instance != own).collect::<Vec<_>>());
    Json(json!({
        "instance": own,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started.elapsed().as_secs(),
        "connections": registry.connections(),
        "users": registry.users(),
        "backplane": app.backplane.name(),
        "instances": others,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_has_every_path_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let paths = open_paths().into_iter().chain(guarded_paths());
        assert_eq!(described, paths.map(|(path, _)| path).collect());
    }
}
