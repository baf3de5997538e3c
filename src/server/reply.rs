//! Error responses: a status, and a JSON body with the reason.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::auth::is_loopback_host;
use crate::backplane::BackplaneError;
use crate::limits::Limit;

/// An error response: `{"error":{"code":"…","message":"…"}}`.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "the request took too long")
    }

    pub(super) fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "this instance is stopping: connect again")
    }
}

impl From<Limit> for Refusal {
    fn from(limit: Limit) -> Self {
        let (status, reason) = match limit {
            Limit::Connections => {
                (StatusCode::SERVICE_UNAVAILABLE, "this instance has reached its maximum of connections")
            }
            Limit::ConnectionsPerIp => (StatusCode::TOO_MANY_REQUESTS, "too many connections from this address"),
            Limit::ConnectionsPerUser => (StatusCode::TOO_MANY_REQUESTS, "too many connections of this user"),
            Limit::RatePerIp => (StatusCode::TOO_MANY_REQUESTS, "this address connects too often"),
            Limit::RatePerUser => (StatusCode::TOO_MANY_REQUESTS, "this user connects too often"),
        };
        Self::new(status, limit.name(), format!("{reason} (limits.{})", limit.name()))
    }
}

impl From<BytesRejection> for Refusal {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large")
            }
            _ => Self::bad_request("the body could not be read"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({"error": {"code": self.code, "message": self.message}}));
        let mut response = (self.status, body).into_response();
        let extra = match self.status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::UPGRADE_REQUIRED => Some((header::UPGRADE, "websocket")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The error code for a kind of backplane error: Redis is out of memory, or unavailable.
pub(super) fn backplane_code(kind: &str) -> &'static str {
    if kind == "OOM" { "backplane_full" } else { "backplane_down" }
}

pub(super) fn not_published(kind: &str) -> Refusal {
    let message = format!("the backplane did not accept the notification ({kind})");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, backplane_code(kind), message)
}

#[allow(clippy::needless_pass_by_value, reason = "the signature for map_err")]
pub(super) fn unavailable(error: BackplaneError) -> Refusal {
    let message = format!("the backplane did not reply correctly ({})", error.kind());
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, backplane_code(error.kind()), message)
}

pub(super) fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "this path does not exist")
}

pub(super) fn method_not_allowed() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not support the method")
}

/// Refuses requests whose `Host` or `Origin` is not a loopback name, such as those of foreign pages after DNS rebinding.
pub(super) fn check_loopback_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()));
    let host = text(header::HOST).is_none_or(|host| is_loopback_host(&host));
    let origin = text(header::ORIGIN)
        .is_none_or(|origin| origin.split_once("://").is_some_and(|(_, host)| is_loopback_host(host)));
    if host && origin {
        return Ok(());
    }
    let message = "only requests and pages of loopback host names are accepted";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}
