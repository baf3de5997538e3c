//! Refuses pages of origins that are not configured.

use std::borrow::Cow;

use axum::http::{HeaderMap, StatusCode, header};

use super::App;
use super::reply::Refusal;

pub(super) fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    if app.origins.load().allows_token(origin(headers).as_deref()) {
        return Ok(());
    }
    let message = "pages of this origin may not connect (server.allowed_origins)";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}

pub(super) fn check_cookie_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    if app.origins.load().allows_cookie(origin(headers).as_deref()) {
        return Ok(());
    }
    let message = "a cookie is accepted only with an Origin in server.allowed_origins";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}

/// The Origin; several are one that no page has.
pub(super) fn origin(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut given = headers.get_all(header::ORIGIN).into_iter();
    let origin = String::from_utf8_lossy(given.next()?.as_bytes());
    Some(if given.next().is_some() { Cow::Borrowed("") } else { origin })
}
