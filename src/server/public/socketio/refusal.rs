//! Refusals in the format of Engine.IO: `{"code":N,"message":"…"}`.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response as HttpResponse, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::connection::Peer;
use crate::server::App;
use crate::server::public::handshake::note_refusal;
use crate::server::reply::{Refusal, with_headers};

const TRANSPORT_UNKNOWN: u8 = 0;
const SESSION_UNKNOWN: u8 = 1;
pub(super) const BAD_METHOD: u8 = 2;
const BAD_REQUEST: u8 = 3;
const FORBIDDEN: u8 = 4;
const PROTOCOL_UNSUPPORTED: u8 = 5;

#[derive(Debug)]
pub(super) struct EngineRefusal {
    number: u8,
    refusal: Refusal,
}

impl EngineRefusal {
    pub(super) fn bad(number: u8, message: impl Into<String>) -> Self {
        Self { number, refusal: Refusal::bad_request(message) }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::bad(BAD_REQUEST, message)
    }

    pub(super) fn transport_unknown() -> Self {
        Self::named(TRANSPORT_UNKNOWN, "transport_unknown", "Transport unknown")
    }

    pub(super) fn session_unknown() -> Self {
        Self::named(SESSION_UNKNOWN, "session_unknown", "Session ID unknown")
    }

    pub(super) fn protocol_unsupported() -> Self {
        Self::named(PROTOCOL_UNSUPPORTED, "protocol_unsupported", "Unsupported protocol version")
    }

    fn named(number: u8, code: &'static str, message: &str) -> Self {
        Self { number, refusal: Refusal::new(StatusCode::BAD_REQUEST, code, message) }
    }

    pub(super) fn too_large() -> Self {
        let message = "the body is too large (limits.max_inbound_bytes)";
        Self { number: BAD_REQUEST, refusal: Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message) }
    }

    /// Counts and logs the refusal.
    pub(super) fn note(&self, app: &App, peer: &Peer) {
        note_refusal(app, peer, &self.refusal);
    }
}

/// A reason that is not one of Engine.IO's: "forbidden", the code of a server that does not want the request, says most.
impl From<Refusal> for EngineRefusal {
    fn from(mut refusal: Refusal) -> Self {
        let number = if refusal.status == StatusCode::BAD_REQUEST { BAD_REQUEST } else { FORBIDDEN };
        if refusal.status == StatusCode::FORBIDDEN {
            "Forbidden".clone_into(&mut refusal.message);
        }
        Self { number, refusal }
    }
}

impl EngineRefusal {
    pub(super) fn response(&self) -> HttpResponse<Vec<u8>> {
        let body = json!({"code": self.number, "message": self.refusal.message});
        let mut response = HttpResponse::new(body.to_string().into_bytes());
        *response.status_mut() = self.refusal.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        with_headers(response)
    }
}

impl IntoResponse for EngineRefusal {
    fn into_response(self) -> Response {
        self.response().map(Body::from)
    }
}
