//! The demo page, embedded in the binary, and its endpoints: an open sign-in, publishing, the presence event stream.

mod presence;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::auth::mint;
use crate::config::Origin;
use crate::protocol::UserId;
use crate::server::App;
use crate::server::admin::notifications::{Notification, from_page};
use crate::server::host::{check_loopback_host, host};
use crate::server::origin::{check_origin, origin};
use crate::server::page::{CSS, HTML, Page, SCRIPT, SVG};
use crate::server::reply::Refusal;
use crate::server::request::{bad_user, object};

const MAX_BODY: usize = 64 * 1024;

/// The lifetime of a page's token: long enough for a demo, short enough to see it refreshed.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

const PAGE: Page = Page {
    policy: "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; base-uri 'none'; \
             form-action 'self'; object-src 'none'; frame-ancestors 'none'",
    files: &[
        ("index.html", HTML, include_str!("../../../client-demo/index.html")),
        ("style.css", CSS, include_str!("../../../client-demo/style.css")),
        ("logo.svg", SVG, include_str!("../../../client-demo/logo.svg")),
        ("app.js", SCRIPT, include_str!("../../../client-demo/app.js")),
        ("api.js", SCRIPT, include_str!("../../../client-demo/api.js")),
        ("dom.js", SCRIPT, include_str!("../../../client-demo/dom.js")),
        ("network.js", SCRIPT, include_str!("../../../client-demo/network.js")),
        ("panel.js", SCRIPT, include_str!("../../../client-demo/panel.js")),
        ("presence.js", SCRIPT, include_str!("../../../client-demo/presence.js")),
        ("publish.js", SCRIPT, include_str!("../../../client-demo/publish.js")),
        ("signin.js", SCRIPT, include_str!("../../../client-demo/signin.js")),
        ("terminal.js", SCRIPT, include_str!("../../../client-demo/terminal.js")),
    ],
};

pub(super) fn router(app: &Arc<App>) -> axum::Router<Arc<App>> {
    axum::Router::new()
        .route("/", get(|| std::future::ready(PAGE.file("index.html"))))
        .route("/demo/{file}", get(|Path(name): Path<String>| std::future::ready(PAGE.file(&name))))
        .route("/demo/token", post(sign_in))
        .route("/demo/publish", post(send))
        .route("/demo/presence", get(presence::stream))
        .route("/demo/terminal", get(terminal::addresses))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Arc::clone(app), check_page))
}

#[derive(Debug, Deserialize)]
struct SignIn {
    user: String,
}

async fn sign_in(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let SignIn { user } = object(std::future::ready(body).await)?;
    let user = UserId::new(&user).map_err(bad_user)?;
    let auth = &app.config.auth;
    let cannot_sign = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "cannot_sign", "no secret to sign with");
    let secret = auth.hmac_secret.as_ref().ok_or_else(cannot_sign)?;
    let token = mint(auth, secret, &user, TOKEN_TTL).map_err(|_| cannot_sign())?;
    Ok(Json(json!({"token": token})).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    user: String,
    data: Box<RawValue>,
    event: Option<String>,
    #[serde(default)]
    durable: bool,
    ttl_s: Option<f64>,
    collapse: Option<String>,
}

async fn send(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let Message { user, data, event, durable, ttl_s, collapse } = object(body)?;
    let notification = Notification { data, event, durable, ttl_s, collapse, escalate_s: None };
    from_page(&app, &user, &notification).await
}

/// Refuses pages of other origins, which must not use the open sign-in; with `--dev`, also those of foreign host names that
/// resolve to this machine.
async fn check_page(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let checked = if app.config.dev {
        check_origin(&app, headers).and_then(|()| check_loopback_host(headers))
    } else {
        check_own_page(&app, headers)
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses pages that are neither of the requested host nor on the list; here an empty list allows no others.
fn check_own_page(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(text) = origin(headers) else { return Ok(()) };
    let own = Origin::parse(&text).zip(host(headers)).is_some_and(|(page, host)| page.is_at(&host));
    if own || app.origins.load().names(&text) {
        return Ok(());
    }
    let message = "only the demo page and pages of server.allowed_origins may use the demo";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::page::assert_embeds;

    #[test]
    fn every_file_of_the_page_is_embedded() {
        assert_embeds(&PAGE, "client-demo");
    }
}
