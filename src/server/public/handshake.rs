//! Admission of a WebSocket handshake: every check before the response, except of a token in a `hello`.

use std::net::SocketAddr;

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::forwarded::client_address;
use crate::auth::{Credential, Identity, SessionError, TokenError, offers_tidings_v1};
use crate::limits::{AdmissionPermits, Limit};
use crate::protocol::{Dialect, Start};
use crate::server::App;
use crate::server::origin::{check_cookie_origin, check_origin};
use crate::server::reply::{Refusal, unavailable};
use crate::sessions::Refused;

#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(in crate::server) method: &'a Method,
    pub(in crate::server) version: Version,
    pub(in crate::server) uri: &'a Uri,
    pub(in crate::server) headers: &'a HeaderMap,
    /// The remote end of the socket, which may be a proxy.
    pub(in crate::server) peer: SocketAddr,
}

/// An accepted handshake.
#[derive(Debug)]
pub(in crate::server) struct Admitted {
    pub(in crate::server) accept: HeaderValue,
    pub(in crate::server) dialect: Dialect,
    pub(in crate::server) offered: bool,
    pub(in crate::server) identity: Option<Identity>,
    pub(in crate::server) start: Start,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    token: Option<String>,
    format: Option<String>,
    resume: Option<String>,
    device: Option<String>,
}

/// Checks a handshake. The connection's permits are added to `permits`.
pub(super) async fn admit(app: &App, head: &Head<'_>, permits: &mut AdmissionPermits) -> Result<Admitted, Refusal> {
    let Head { uri, headers, .. } = *head;
    let accept = check_upgrade(head)?;
    if app.context.shutdown.draining().is_cancelled() {
        return Err(Refusal::draining());
    }
    let limiter = &app.context.limiter;
    limiter.admit_connection(permits)?;
    let address = client_address(head.peer.ip(), headers, &app.config.limits.trusted_proxies);
    limiter.admit_address(address, permits).await?;
    let Query(parameters) = Query::<Parameters>::try_from_uri(uri)
        .map_err(|_| Refusal::bad_request("the query is malformed or has a duplicate parameter"))?;
    let offered = offers_tidings_v1(headers);
    let dialect = match parameters.format.as_deref() {
        None if offered => Dialect::TidingsV1,
        None => Dialect::Plain,
        Some("raw") => Dialect::Raw,
        Some(_) => return Err(Refusal::bad_request("?format=: expected \"raw\"")),
    };
    let start = Start::new(parameters.resume.as_deref(), parameters.device.as_deref())
        .map_err(|error| Refusal::bad_request(format!("?device=: {error}")))?;
    check_origin(app, headers)?;
    let identity = identify(app, headers, parameters.token).await?;
    if let Some(identity) = &identity {
        limiter.admit_user(&identity.user, permits).await.map_err(Limit::from)?;
    }
    Ok(Admitted { accept, dialect, offered, identity, start })
}

/// The client's identity; `None` if a `hello` will follow.
async fn identify(app: &App, headers: &HeaderMap, query_token: Option<String>) -> Result<Option<Identity>, Refusal> {
    let credential = Credential::find(headers, query_token, &app.config.auth);
    if matches!(credential, Credential::TokenCookie(_) | Credential::SessionCookie(_)) {
        check_cookie_origin(app, headers)?;
    }
    match credential {
        Credential::Hello => Ok(None),
        Credential::QueryNotAllowed => {
            let message = "?token= is not accepted here (auth.query_token is off): send the token as a Bearer, as a \
                           subprotocol bearer.<jwt>, or in a hello";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "query_token_not_allowed", message))
        }
        Credential::Token(token) | Credential::TokenCookie(token) => {
            app.context.authenticator.authenticate(&token).await.map(Some).map_err(|error| bad_token(&error))
        }
        Credential::SessionCookie(cookie) => match &app.sessions {
            Some(sessions) => sessions.identify(&cookie).await.map(Some).map_err(bad_session),
            None => Ok(None),
        },
    }
}

fn bad_session(error: Refused) -> Refusal {
    let code = match error {
        Refused::Unavailable(error) => return unavailable(error),
        Refused::TooMany => {
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", error.to_string());
        }
        Refused::Session(SessionError::Signature | SessionError::Malformed) => "bad_session",
        Refused::Session(SessionError::Ended) => "session_ended",
        Refused::Session(SessionError::NoUser) => "not_logged_in",
    };
    Refusal::new(StatusCode::UNAUTHORIZED, code, error.to_string())
}

fn bad_token(error: &TokenError) -> Refusal {
    let (status, code) = match error {
        TokenError::Expired => (StatusCode::UNAUTHORIZED, "token_expired"),
        TokenError::Bad(_) => (StatusCode::UNAUTHORIZED, "bad_token"),
        TokenError::User(_) => (StatusCode::UNAUTHORIZED, "bad_user"),
        TokenError::Revoked => (StatusCode::UNAUTHORIZED, "token_revoked"),
        TokenError::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
    };
    Refusal::new(status, code, error.to_string())
}

/// RFC 6455, section 4.2.1.
fn check_upgrade(head: &Head<'_>) -> Result<HeaderValue, Refusal> {
    let Head { method, version, headers, .. } = *head;
    let has_token = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    if !has_token(header::UPGRADE, "websocket") {
        let message = "this is a WebSocket endpoint: send an upgrade request";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    }
    if version < Version::HTTP_11 {
        return Err(Refusal::bad_request("a WebSocket upgrade requires HTTP/1.1"));
    }
    if method != Method::GET {
        return Err(Refusal::bad_request("a WebSocket upgrade must be a GET"));
    }
    if !has_token(header::CONNECTION, "upgrade") {
        return Err(Refusal::bad_request("\"Connection: Upgrade\" is missing"));
    }
    match headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) {
        Some(b"13") => {}
        Some(_) => {
            let message = "only version 13 of the WebSocket protocol is supported";
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
