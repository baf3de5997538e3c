//! Cross-origin requests (the CORS protocol of the Fetch standard): which pages may read the responses of `/events` and
//! `/socket.io/`.

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::App;
use super::origin::{check_origin, origin};
use super::reply::Refusal;
use crate::config::Origin;

/// How long a browser may use the answer to a preflight, in seconds: as long as all browsers keep one.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The page of a request, if it has an Origin; the page may read the response, whatever its status.
#[derive(Debug, Clone, Default)]
pub(super) struct Cors {
    origin: Option<HeaderValue>,
    /// Whether the page may send cookies. An Origin that is not listed may not.
    credentials: bool,
}

impl Cors {
    /// Refuses a page that may not connect; the refusal has no CORS headers, so that the page cannot read it.
    pub(super) fn check(app: &App, headers: &HeaderMap) -> Result<Self, Refusal> {
        check_origin(app, headers)?;
        let mut given = headers.get_all(ORIGIN).into_iter();
        // Several are one that no page has, as is a malformed one.
        let is_page = |value: &&HeaderValue| value.to_str().is_ok_and(|text| Origin::parse(text).is_some());
        let origin_value = given.next().filter(|_| given.next().is_none()).filter(is_page).cloned();
        Ok(Self { origin: origin_value, credentials: app.origins.load().allows_cookie(origin(headers).as_deref()) })
    }

    /// Lets the page read a response.
    pub(super) fn apply(&self, response: &mut HeaderMap) {
        let Some(origin) = &self.origin else { return };
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        response.insert(VARY, HeaderValue::from_static("Origin"));
    }

    /// The response to a preflight: the methods and the headers that the page's requests may have.
    pub(super) fn preflight(&self, methods: &'static str, allowed: &'static str) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.apply(headers);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
        response
    }
}
