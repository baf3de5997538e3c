//! The `Host` of a request (RFC 9112, section 3.2).

use axum::http::{HeaderMap, StatusCode, Version, header};

use super::origin::origin;
use super::reply::Refusal;
use crate::config::{Authority, Origin};

/// Refuses a request without exactly one valid `Host`: two readers of it, such as a proxy and this server, could take it
/// for requests to different hosts. HTTP/1.0 does not require one.
pub(super) fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut given = headers.get_all(header::HOST).into_iter();
    let expected = match (given.next(), given.next()) {
        (None, _) if version < Version::HTTP_11 => return Ok(()),
        (None, _) => "the Host header is missing",
        (Some(_), Some(_)) => "more than one Host header",
        (Some(_), None) if host(headers).is_some() => return Ok(()),
        (Some(_), None) => "bad Host header: expected a host, possibly with a port",
    };
    Err(Refusal::bad_request(expected))
}

/// The host and port of `Host`, if it is valid.
pub(super) fn host(headers: &HeaderMap) -> Option<Authority> {
    Authority::parse(headers.get(header::HOST)?.to_str().ok()?)
}

/// Refuses requests whose `Host` or `Origin` is not a loopback name, such as those of foreign pages after DNS rebinding.
pub(super) fn check_loopback_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_own_host = !headers.contains_key(header::HOST) || host(headers).is_some_and(|host| host.is_loopback());
    let is_own_page = origin(headers).is_none_or(|text| Origin::parse(&text).is_some_and(|page| page.is_loopback()));
    if is_own_host && is_own_page {
        return Ok(());
    }
    let message = "only requests and pages of loopback host names are accepted";
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_forbidden", message))
}
