//! Admission of a WebSocket handshake: every check before the response, except of a token in a `hello`.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::forwarded::client_address;
use crate::auth::{Credential, Identity, QueryAuth, SessionError, TokenError, offers_tidings_v1};
use crate::connection::{Known, Peer};
use crate::limits::{AdmissionPermits, Limit};
use crate::protocol::{Dialect, Start};
use crate::server::App;
use crate::server::host::check_host;
use crate::server::origin::{check_cookie_origin, check_origin, origin};
use crate::server::reply::{Refusal, unavailable};
use crate::sessions::Refused;

#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(in crate::server) method: &'a Method,
    pub(in crate::server) version: Version,
    pub(in crate::server) uri: &'a Uri,
    pub(in crate::server) headers: &'a HeaderMap,
    /// The client's address, which may not be the socket's remote end.
    pub(in crate::server) address: IpAddr,
}

impl<'a> Head<'a> {
    /// `peer` is the remote end of the socket.
    pub(super) fn of(app: &App, request: &'a Request<()>, peer: SocketAddr) -> Self {
        let (method, version, uri, headers) = (request.method(), request.version(), request.uri(), request.headers());
        let address = client_address(peer.ip(), headers, &app.config.limits.get().trusted_proxies);
        Self { method, version, uri, headers, address }
    }

    /// The client, as the log names it.
    pub(super) fn peer(&self) -> Peer {
        Peer::new(self.address, origin(self.headers).as_deref())
    }
}

/// Counts and logs a refusal.
pub(in crate::server) fn note_refusal(app: &App, peer: &Peer, refusal: &Refusal) {
    let known = Known { user: refusal.user.clone(), why: Some(refusal.message.clone()) };
    app.context.refusals.handshake(peer, refusal.status.as_u16(), refusal.code, &known);
}

/// An accepted handshake.
#[derive(Debug)]
pub(in crate::server) struct Admitted {
    /// The value of `Sec-WebSocket-Accept`.
    pub(in crate::server) accept: String,
    pub(in crate::server) dialect: Dialect,
    pub(in crate::server) offered: bool,
    pub(in crate::server) identity: Option<Identity>,
    pub(in crate::server) start: Start,
}

/// The query of a handshake.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Parameters {
    token: Option<String>,
    auth: Option<String>,
    pub(super) format: Option<String>,
    pub(super) resume: Option<String>,
    pub(super) device: Option<String>,
}

impl Parameters {
    pub(super) fn read(uri: &Uri) -> Result<Self, Refusal> {
        let read = Query::<Self>::try_from_uri(uri);
        let Query(parameters) =
            read.map_err(|_| Refusal::bad_request("the query is malformed or has a duplicate parameter"))?;
        Ok(parameters)
    }

    /// The position that a client asks for, and its device.
    pub(super) fn start(&self, resume: Option<&str>) -> Result<Start, Refusal> {
        Start::new(resume, self.device.as_deref()).map_err(|error| Refusal::bad_request(format!("?device=: {error}")))
    }
}

/// Checks a handshake. The connection's permits are added to `permits`.
pub(super) async fn admit(app: &App, head: &Head<'_>, permits: &mut AdmissionPermits) -> Result<Admitted, Refusal> {
    let Head { uri, headers, .. } = *head;
    check_host(head.version, headers)?;
    let accept = check_upgrade(head)?;
    admit_address(app, head, permits).await?;
    let parameters = Parameters::read(uri)?;
    let offered = offers_tidings_v1(headers);
    let dialect = match parameters.format.as_deref() {
        None if offered => Dialect::TidingsV1,
        None => Dialect::Plain,
        Some("raw") => Dialect::Raw,
        Some(_) => return Err(bad_format()),
    };
    let start = parameters.start(parameters.resume.as_deref())?;
    let identity = admit_user(app, headers, parameters, permits).await?;
    Ok(Admitted { accept, dialect, offered, identity, start })
}

pub(super) fn bad_format() -> Refusal {
    Refusal::bad_request("?format=: expected \"raw\"")
}

/// Admits one more connection of this address. Its permits are added to `permits`.
pub(super) async fn admit_address(app: &App, head: &Head<'_>, permits: &mut AdmissionPermits) -> Result<(), Refusal> {
    if app.context.shutdown.draining().is_cancelled() {
        return Err(Refusal::draining());
    }
    app.context.limiter.admit_connection(permits)?;
    app.context.limiter.admit_address(head.address, permits).await?;
    Ok(())
}

/// Admits the user of a credential, if there is one, for pages of this Origin.
pub(super) async fn admit_user(
    app: &App,
    headers: &HeaderMap,
    parameters: Parameters,
    permits: &mut AdmissionPermits,
) -> Result<Option<Identity>, Refusal> {
    let query = query_auth(parameters.token, parameters.auth.as_deref())?;
    check_origin(app, headers)?;
    let identity = identify(app, headers, query).await?;
    if let Some(identity) = &identity {
        let user = || Some(identity.user.clone());
        let refuse = |limit| Refusal { user: user(), ..Limit::from(limit).into() };
        tokio::select! {
            admitted = app.context.limiter.admit_user(&identity.user, permits) => admitted.map_err(refuse)?,
            () = app.context.shutdown.draining().cancelled() => return Err(Refusal::draining()),
        }
    }
    Ok(identity)
}

fn query_auth(token: Option<String>, auth: Option<&str>) -> Result<QueryAuth, Refusal> {
    match auth {
        None => Ok(QueryAuth { token, no_cookies: false }),
        Some("hello") => Ok(QueryAuth { token, no_cookies: true }),
        Some(_) => Err(Refusal::bad_request("?auth=: expected \"hello\"")),
    }
}

/// The client's identity; `None` if a `hello` will follow.
pub(super) async fn identify(app: &App, headers: &HeaderMap, query: QueryAuth) -> Result<Option<Identity>, Refusal> {
    let credential = Credential::find(headers, query, &app.config.auth);
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
            let authenticator = &app.context.authenticator;
            let refuse = |error| Refusal { user: authenticator.refused_user(&token, &error), ..bad_token(&error) };
            authenticator.authenticate(&token).await.map(Some).map_err(refuse)
        }
        Credential::SessionCookie(cookie) => match &app.sessions {
            Some(sessions) => Box::pin(sessions.identify(&cookie)).await.map(Some).map_err(bad_session),
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
        TokenError::Bad(_) | TokenError::Claims(_) => (StatusCode::UNAUTHORIZED, "bad_token"),
        TokenError::User(_) => (StatusCode::UNAUTHORIZED, "bad_user"),
        TokenError::Revoked => (StatusCode::UNAUTHORIZED, "token_revoked"),
        TokenError::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
    };
    Refusal::new(status, code, error.to_string())
}

/// Checks the request (RFC 6455, section 4.2.1); returns the value of `Sec-WebSocket-Accept`.
pub(super) fn check_upgrade(head: &Head<'_>) -> Result<String, Refusal> {
    let Head { method, version, headers, .. } = *head;
    let has_token = |name: header::HeaderName, wanted: &str| {
        let mut tokens =
            headers.get_all(name).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
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
    Ok(derive_accept_key(key))
}

/// 16 bytes as base64: 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'+' || *byte == b'/';
    key.len() == 24 && key.ends_with(b"==") && key.iter().take(22).all(base64)
}
