//! Error responses: a status, and a JSON body with the reason.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::backplane::BackplaneError;
use crate::limits::Limit;
use crate::protocol::UserId;

/// An error response: `{"error":{"code":"…","message":"…"}}`.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// For the log, where it is known.
    pub(super) user: Option<UserId>,
    /// Whether the user is over a limit only until the connections of a dead instance are released.
    pub(super) is_passing: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), user: None, is_passing: false }
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
            Limit::ConnectionsPerUserOrDead => {
                (StatusCode::TOO_MANY_REQUESTS, "too many connections of this user, some perhaps to a dead instance")
            }
            Limit::RatePerIp => (StatusCode::TOO_MANY_REQUESTS, "this address connects too often"),
            Limit::RatePerUser => (StatusCode::TOO_MANY_REQUESTS, "this user connects too often"),
        };
        let is_passing = limit == Limit::ConnectionsPerUserOrDead;
        Self { is_passing, ..Self::new(status, limit.name(), format!("{reason} (limits.{})", limit.name())) }
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
        with_headers((self.status, body).into_response())
    }
}

/// Adds the headers that belong to the status of a refusal.
pub(super) fn with_headers<T>(mut response: axum::http::Response<T>) -> axum::http::Response<T> {
    let extra = match response.status() {
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

/// The error code for a kind of backplane error: Redis is out of memory or unavailable, or too few replicas keep up.
pub(super) fn backplane_code(kind: &str) -> &'static str {
    match kind {
        "OOM" => "backplane_full",
        "not_replicated" => "not_replicated",
        _ => "backplane_down",
    }
}

pub(super) fn not_published(kind: &str) -> Refusal {
    let message = match kind {
        "not_replicated" => {
            "too few replicas have the notification yet (redis.wait_replicas), which may be delivered: \
                             repeat the request with the same Idempotency-Key"
                .to_owned()
        }
        _ => format!("the backplane did not accept the notification ({kind})"),
    };
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
