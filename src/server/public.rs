//! The public listener: `GET /ws` and the probes.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::reply::Refusal;
use super::{App, healthz, readyz};
use crate::auth::{Credential, Identity, OFFERED_PROTOCOL, TokenError, offers_tidings_v1};
use crate::connection;
use crate::protocol::Dialect;

pub(super) fn router() -> axum::Router<Arc<App>> {
    axum::Router::new().route("/ws", any(websocket)).route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    token: Option<String>,
    format: Option<String>,
}

/// A handshake that may be answered with 101.
struct Admitted {
    accept: HeaderValue,
    dialect: Dialect,
    offered: bool,
    identity: Option<Identity>,
}

/// The WebSocket handshake: everything is decided before the 101, but for a token that a `hello` will bring.
async fn websocket(State(app): State<Arc<App>>, mut request: Request) -> Response {
    let admitted = admit(&app, request.method(), request.uri(), request.headers());
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (admitted, upgrade) = match (admitted, upgrade) {
        (Ok(admitted), Some(upgrade)) => (admitted, upgrade),
        (Ok(_), None) => return refuse(&app, Refusal::bad_request("the upgrade cannot be done on this connection")),
        (Err(refusal), _) => return refuse(&app, refusal),
    };
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, admitted.accept.clone());
    if admitted.offered {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(OFFERED_PROTOCOL));
    }
    app.context.shutdown.clone().spawn_connection(upgraded(app, upgrade, admitted));
    std::future::ready(response).await
}

/// Waits for the 101 to be out, then hands the bare socket to a task of its own.
async fn upgraded(app: Arc<App>, upgrade: OnUpgrade, admitted: Admitted) {
    let Ok(Ok(io)) = timeout(app.config.server.handshake_timeout, upgrade).await else {
        debug!("the client left during its handshake");
        return;
    };
    let Ok(parts) = io.downcast::<TokioIo<TcpStream>>() else { return };
    // Copied: a slice, even an empty one, would keep the whole buffer of the handshake for as long as the connection.
    let (socket, early): (TcpStream, Vec<u8>) = (parts.io.into_inner(), parts.read_buf.to_vec());
    let Admitted { dialect, identity, .. } = admitted;
    let context = Arc::clone(&app.context);
    app.context.shutdown.spawn_connection(connection::run(context, socket, early, dialect, identity));
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

fn admit(app: &App, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Admitted, Refusal> {
    let accept = check_upgrade(method, headers)?;
    if app.context.shutdown.draining().is_cancelled() {
        return Err(Refusal::draining());
    }
    let Query(parameters) = Query::<Parameters>::try_from_uri(uri)
        .map_err(|_| Refusal::bad_request("the query is malformed or names something twice"))?;
    let offered = offers_tidings_v1(headers);
    let dialect = match parameters.format.as_deref() {
        None if offered => Dialect::TidingsV1,
        None => Dialect::Plain,
        Some("raw") => Dialect::Raw,
        Some(_) => return Err(Refusal::bad_request("?format= is \"raw\" or absent")),
    };
    check_origin(app, headers)?;
    let identity = match Credential::find(headers, parameters.token, app.config.auth.query_token) {
        Credential::Hello => None,
        Credential::QueryNotAllowed => {
            let message = "?token= is not accepted here (auth.query_token is off): send the token as a Bearer, as a \
                           subprotocol bearer.<jwt>, or in a hello";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "query_token_not_allowed", message));
        }
        Credential::Token(token) => Some(app.context.verifier.verify(&token).map_err(|error| {
            let code = match error {
                TokenError::Expired => "token_expired",
                TokenError::Bad(_) => "bad_token",
                TokenError::User(_) => "bad_user",
            };
            Refusal::new(StatusCode::UNAUTHORIZED, code, error.to_string())
        })?),
    };
    Ok(Admitted { accept, dialect, offered, identity })
}

/// RFC 6455, section 4.2.1.
fn check_upgrade(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let has_token = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    if !has_token(header::UPGRADE, "websocket") {
        let message = "this is a WebSocket endpoint: send an upgrade request";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    }
    if method != Method::GET {
        return Err(Refusal::bad_request("a WebSocket upgrade is a GET"));
    }
    if !has_token(header::CONNECTION, "upgrade") {
        return Err(Refusal::bad_request("\"Connection: Upgrade\" is missing"));
    }
    match headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) {
        Some(b"13") => {}
        Some(_) => {
            let message = "only version 13 of the WebSocket protocol is spoken here";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
        }
        None => return Err(Refusal::bad_request("\"Sec-WebSocket-Version: 13\" is missing")),
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).filter(|key| is_key(key));
    let key = key.ok_or_else(|| Refusal::bad_request("\"Sec-WebSocket-Key\" must be 16 bytes as base64"))?;
    HeaderValue::from_str(&derive_accept_key(key)).map_err(|_| Refusal::bad_request("bad \"Sec-WebSocket-Key\""))
}

/// 16 bytes as base64: 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'+' || *byte == b'/';
    key.len() == 24 && key.ends_with(b"==") && key.iter().take(22).all(base64)
}

pub(super) fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    let origin = headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()));
    if app.origins.allows_token(origin.as_deref()) {
        return Ok(());
    }
    let message = "pages of this origin may not connect (server.allowed_origins)";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}
