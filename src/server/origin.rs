//! Refuses pages of origins that are not configured.

use std::borrow::Cow;

use axum::http::{HeaderMap, StatusCode, header};

use super::App;
use super::reply::Refusal;

pub(super) fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    if app.origins.allows_token(origin(headers).as_deref()) {
        return Ok(());
    }
    let message = "pages of this origin may not connect (server.allowed_origins)";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}

pub(super) fn check_cookie_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    if app.origins.allows_cookie(origin(headers).as_deref()) {
        return Ok(());
    }
    let message = "a cookie is accepted only with an Origin in server.allowed_origins";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}

fn origin(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()))
}
