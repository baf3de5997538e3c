//! Where a handshake may carry its token, and in which order the places are looked at.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

/// The subprotocol that the server selects where it was offered.
pub const OFFERED_PROTOCOL: &str = "tidings.v1";

const BEARER_ENTRY: &str = "bearer.";

/// What a handshake says about who is there.
#[derive(Debug, PartialEq, Eq)]
pub enum Credential {
    /// A token, not yet verified.
    Token(String),
    /// A token in the query, which is not configured to be looked at.
    QueryNotAllowed,
    /// Nothing: a `hello` must follow.
    Hello,
}

impl Credential {
    /// Looks at `Authorization`, then the offered subprotocols, then the query: the first that is present decides.
    #[must_use]
    pub fn find(headers: &HeaderMap, query_token: Option<String>, query_allowed: bool) -> Self {
        if let Some(token) = bearer(headers) {
            return Self::Token(token);
        }
        if let Some(token) = protocols(headers).find_map(|entry| entry.strip_prefix(BEARER_ENTRY)) {
            return Self::Token(token.to_owned());
        }
        match query_token {
            Some(token) if query_allowed => Self::Token(token),
            Some(_) => Self::QueryNotAllowed,
            None => Self::Hello,
        }
    }
}

/// Whether the client offers `tidings.v1`.
#[must_use]
pub fn offers_tidings_v1(headers: &HeaderMap) -> bool {
    protocols(headers).any(|entry| entry == OFFERED_PROTOCOL)
}

/// The token of `Authorization: Bearer`, which may be empty; other schemes are a proxy's affair.
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

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn token(text: &str) -> Credential {
        Credential::Token(text.into())
    }

    #[test]
    fn the_first_place_that_holds_a_token_decides() {
        let all = headers(&[("authorization", "Bearer a"), ("sec-websocket-protocol", "tidings.v1, bearer.b")]);
        assert_eq!(Credential::find(&all, Some("c".into()), true), token("a"));
        let offered = headers(&[("sec-websocket-protocol", "tidings.v1"), ("sec-websocket-protocol", "bearer.b")]);
        assert_eq!(Credential::find(&offered, Some("c".into()), true), token("b"));
        assert!(offers_tidings_v1(&offered));
        let none = HeaderMap::new();
        assert_eq!(Credential::find(&none, Some("c".into()), true), token("c"));
        assert_eq!(Credential::find(&none, Some("c".into()), false), Credential::QueryNotAllowed);
        assert_eq!(Credential::find(&none, None, true), Credential::Hello);
    }

    #[test]
    fn a_bearer_without_a_token_is_present_all_the_same_and_another_scheme_is_not() {
        assert_eq!(Credential::find(&headers(&[("authorization", "bearer")]), None, true), token(""));
        assert_eq!(Credential::find(&headers(&[("authorization", "Basic eA==")]), None, true), Credential::Hello);
        assert_eq!(Credential::find(&headers(&[("authorization", "Bearerx")]), None, true), Credential::Hello);
    }
}
