//! Extractors of request parameters and bodies, with JSON errors.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::reply::Refusal;
use crate::protocol::{BadCursorText, UserId, UserIdError};

/// The user `{id}` of a path.
pub(super) struct UserPath(pub(super) UserId);

impl<S: Send + Sync> FromRequestParts<S> for UserPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|_| bad_user(UserIdError::NotUtf8))?;
        UserId::new(&id).map(Self).map_err(bad_user)
    }
}

pub(super) fn bad_user(error: UserIdError) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_user", error.to_string())
}

pub(super) fn bad_cursor(parameter: &str) -> impl Fn(BadCursorText) -> Refusal {
    move |error| Refusal::new(StatusCode::BAD_REQUEST, "bad_cursor", format!("{parameter}: {error}"))
}

/// Maximum number of entries of one page.
const MAX_PAGE: usize = 1_000;

/// The `limit` of a page, 100 by default.
pub(super) fn page_limit(given: Option<usize>) -> Result<usize, Refusal> {
    let limit = given.unwrap_or(100);
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(limit);
    }
    Err(Refusal::bad_request(format!("?limit={limit}: expected 1 to {MAX_PAGE}")))
}

/// The body as one JSON object. An array, which serde accepts for a struct, is refused.
pub(super) fn object<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body?;
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::bad_request("the body must be a JSON object"));
    }
    serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))
}
