//! Finds the token or session of a handshake.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

use super::cookie::cookie;
use crate::config::Auth;

/// The subprotocol that the server selects if the client offers it.
pub const OFFERED_PROTOCOL: &str = "tidings.v1";

const BEARER_ENTRY: &[u8] = b"bearer.";

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

/// The part of a handshake's query that concerns authentication.
#[derive(Debug, Default)]
pub struct QueryAuth {
    pub token: Option<String>,
    /// Cookies are not looked at. A browser cannot omit them, so a page whose token follows in a `hello` says so.
    pub no_cookies: bool,
}

impl Credential {
    /// Returns the first of `Authorization`, the offered subprotocols, the session cookie, the token cookie and the
    /// query.
    pub fn find(headers: &HeaderMap, query: QueryAuth, config: &Auth) -> Self {
        if let Some(token) = bearer(headers) {
            return Self::Token(token);
        }
        if let Some(token) = protocols(headers).find_map(|entry| entry.strip_prefix(BEARER_ENTRY)) {
            return Self::Token(String::from_utf8_lossy(token).into_owned());
        }
        let named = |name: &String| if query.no_cookies { None } else { cookie(headers, name) };
        if let Some(value) = config.sessions.as_ref().and_then(|sessions| named(&sessions.cookie)) {
            return Self::SessionCookie(value);
        }
        if let Some(token) = config.token_cookie.as_ref().and_then(named) {
            return Self::TokenCookie(token);
        }
        match query.token {
            Some(token) if config.query_token => Self::Token(token),
            Some(_) => Self::QueryNotAllowed,
            None => Self::Hello,
        }
    }
}

pub fn offers_tidings_v1(headers: &HeaderMap) -> bool {
    protocols(headers).any(|entry| entry == OFFERED_PROTOCOL.as_bytes())
}

/// The token of `Authorization: Bearer`, possibly empty. Other schemes are ignored: a proxy may use them.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<String> {
    headers.get_all(AUTHORIZATION).into_iter().find_map(|value| {
        let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
        let ends = rest.first().is_none_or(|byte| *byte == b' ');
        (scheme.eq_ignore_ascii_case(b"bearer") && ends).then(|| String::from_utf8_lossy(rest).trim().to_owned())
    })
}

/// As bytes: what other entries hold does not matter.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
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
        Credential::find(headers, QueryAuth { token: Some("c".into()), no_cookies: false }, &config(flags))
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
        assert_eq!(Credential::find(&cookies, QueryAuth::default(), &config(&[query])), Credential::Hello);
        let emptied = headers(&[("cookie", "connect.sid="), COOKIES]);
        assert_eq!(find(&emptied, &every_place), Credential::SessionCookie(String::new()));
    }

    #[test]
    fn a_client_that_says_so_is_not_judged_by_its_cookies() {
        let every_place =
            config(&[("auth.query_token", "true"), ("auth.session_secret", "secret"), ("auth.token_cookie", "token")]);
        let find = |lines: &[_], token: Option<&str>| {
            Credential::find(
                &headers(lines),
                QueryAuth { token: token.map(Into::into), no_cookies: true },
                &every_place,
            )
        };
        assert_eq!(find(&[COOKIES], None), Credential::Hello);
        assert_eq!(find(&[COOKIES], Some("c")), token("c"));
        assert_eq!(find(&[COOKIES, ("authorization", "Bearer a")], None), token("a"));
        assert_eq!(find(&[COOKIES, ("sec-websocket-protocol", "bearer.b")], None), token("b"));
    }

    #[test]
    fn an_empty_bearer_counts_and_another_scheme_does_not() {
        assert_eq!(find(&headers(&[("authorization", "bearer")]), &[]), token(""));
        assert_eq!(find(&headers(&[("authorization", "Basic eA==")]), &[]), Credential::QueryNotAllowed);
        assert_eq!(find(&headers(&[("authorization", "Bearerx")]), &[]), Credential::QueryNotAllowed);
    }
}
