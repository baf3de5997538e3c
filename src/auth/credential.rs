//! Finds the token or session of a handshake.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

use super::cookie::cookie;
use crate::config::Auth;

/// The subprotocol that the server selects if the client offers it.
pub const OFFERED_PROTOCOL: &str = "tidings.v1";

const BEARER_ENTRY: &str = "bearer.";

/// The credential of a handshake, not yet verified.
#[derive(Debug, PartialEq, Eq)]
pub enum Credential {
    Token(String),
    /// A token in the configured cookie. A browser sends cookies from any page, so the Origin must be checked too.
    TokenCookie(String),
    /// The value of the session cookie; its Origin must be checked too.
    SessionCookie(String),
    /// A token in the query although `auth.query_token` is off.
    QueryNotAllowed,
    /// No credential: a `hello` must follow.
    Hello,
}

impl Credential {
    /// Returns the first of `Authorization`, the offered subprotocols, the session cookie, the token cookie and the
    /// query.
    pub fn find(headers: &HeaderMap, query_token: Option<String>, config: &Auth) -> Self {
        if let Some(token) = bearer(headers) {
            return Self::Token(token);
        }
        if let Some(token) = protocols(headers).find_map(|entry| entry.strip_prefix(BEARER_ENTRY)) {
            return Self::Token(token.to_owned());
        }
        let named = |name: &String| cookie(headers, name);
        if let Some(value) = config.sessions.as_ref().and_then(|sessions| named(&sessions.cookie)) {
            return Self::SessionCookie(value);
        }
        if let Some(token) = config.token_cookie.as_ref().and_then(named) {
            return Self::TokenCookie(token);
        }
        match query_token {
            Some(token) if config.query_token => Self::Token(token),
            Some(_) => Self::QueryNotAllowed,
            None => Self::Hello,
        }
    }
}

pub fn offers_tidings_v1(headers: &HeaderMap) -> bool {
    protocols(headers).any(|entry| entry == OFFERED_PROTOCOL)
}

/// The token of `Authorization: Bearer`, possibly empty. Other schemes are ignored: a proxy may use them.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let scheme = value.get(..6)?;
    let rest = value.get(6..)?;
    let ends = rest.first().is_none_or(|byte| *byte == b' ');
    (scheme.eq_ignore_ascii_case(b"bearer") && ends).then(|| String::from_utf8_lossy(rest).trim().to_owned())
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    const COOKIES: (&str, &str) = ("cookie", "connect.sid=d; token=e");

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn token(text: &str) -> Credential {
        Credential::Token(text.into())
    }

    fn config(flags: &[(&str, &str)]) -> Auth {
        let flags = flags.iter().map(|(key, value)| ("--set".into(), (*key).into(), (*value).into())).collect();
        Config::load(Layers { flags, ..Layers::default() }).unwrap().auth
    }

    /// Finds a credential in a request whose query has a token.
    fn find(headers: &HeaderMap, flags: &[(&str, &str)]) -> Credential {
        Credential::find(headers, Some("c".into()), &config(flags))
    }

    #[test]
    fn the_first_place_that_holds_a_token_decides() {
        let (query, session) = (("auth.query_token", "true"), ("auth.session_secret", "secret"));
        let every_place = [query, session, ("auth.token_cookie", "token")];
        let protocols = ("sec-websocket-protocol", "tidings.v1, bearer.b");
        let all = headers(&[("authorization", "Bearer a"), protocols, COOKIES]);
        assert_eq!(find(&all, &every_place), token("a"));
        let offered =
            headers(&[("sec-websocket-protocol", "tidings.v1"), ("sec-websocket-protocol", "bearer.b"), COOKIES]);
        assert_eq!(find(&offered, &every_place), token("b"));
        assert!(offers_tidings_v1(&offered));
        let cookies = headers(&[COOKIES]);
        assert_eq!(find(&cookies, &every_place), Credential::SessionCookie("d".into()));
        assert_eq!(find(&cookies, &every_place[2..]), Credential::TokenCookie("e".into()));
        assert_eq!(find(&cookies, &every_place[..1]), token("c"));
        assert_eq!(find(&cookies, &[]), Credential::QueryNotAllowed);
        assert_eq!(Credential::find(&cookies, None, &config(&[query])), Credential::Hello);
    }

    #[test]
    fn an_empty_bearer_counts_and_another_scheme_does_not() {
        assert_eq!(find(&headers(&[("authorization", "bearer")]), &[]), token(""));
        assert_eq!(find(&headers(&[("authorization", "Basic eA==")]), &[]), Credential::QueryNotAllowed);
        assert_eq!(find(&headers(&[("authorization", "Bearerx")]), &[]), Credential::QueryNotAllowed);
    }
}
