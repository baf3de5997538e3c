//! Which pages may connect, by their Origin (RFC 6454). The browser sets it; a page cannot forge it.

use crate::config::{Origin, OriginPattern};

#[derive(Debug, Clone)]
pub struct OriginPolicy {
    allowed: Vec<OriginPattern>,
    loopback: bool,
}

impl OriginPolicy {
    /// `allowed` is `server.allowed_origins`; `loopback` adds every origin on this machine, and restricts an empty
    /// list.
    pub fn new(allowed: &[OriginPattern], loopback: bool) -> Self {
        Self { allowed: allowed.to_vec(), loopback }
    }

    /// Whether a page of this origin may use a token. A request without an Origin is not from a browser and may.
    pub fn allows_token(&self, origin: Option<&str>) -> bool {
        let unrestricted = self.allowed.is_empty() && !self.loopback;
        unrestricted || origin.is_none_or(|origin| self.names(origin))
    }

    /// Whether a page of this origin may use a cookie. A browser attaches cookies to requests of any page, so only
    /// listed pages may, and a request without an Origin may not; nor may `null` and `file://`, which are the Origin of
    /// any sandboxed page or local file.
    pub fn allows_cookie(&self, origin: Option<&str>) -> bool {
        let origin = origin.and_then(Origin::parse);
        origin.is_some_and(|origin| matches!(origin, Origin::Page(_)) && self.allows(&origin))
    }

    /// Whether this origin is listed, or on this machine if `loopback` is set.
    pub fn names(&self, origin: &str) -> bool {
        Origin::parse(origin).is_some_and(|origin| self.allows(&origin))
    }

    fn allows(&self, origin: &Origin) -> bool {
        (self.loopback && origin.is_loopback()) || self.allowed.iter().any(|pattern| pattern.allows(origin))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allows(allowed: &[&str], loopback: bool, origin: &str) -> bool {
        OriginPolicy::new(&patterns(allowed), loopback).allows_token(Some(origin))
    }

    fn patterns(allowed: &[&str]) -> Vec<OriginPattern> {
        allowed.iter().map(|pattern| OriginPattern::parse(pattern).unwrap()).collect()
    }

    #[test]
    fn an_exact_origin_matches_itself_alone() {
        let list = ["https://app.example.com"];
        assert!(allows(&list, false, "https://APP.example.com"));
        for other in ["http://app.example.com", "https://app.example.com:444", "https://app.example.com.evil.org"] {
            assert!(!allows(&list, false, other), "{other}");
        }
    }

    #[test]
    fn a_wildcard_matches_any_depth_below_but_not_the_apex() {
        let list = ["https://*.example.com"];
        assert!(allows(&list, false, "https://a.example.com"));
        assert!(allows(&list, false, "https://a.b.example.com"));
        for other in
            ["https://example.com", "https://.example.com", "https://evilexample.com", "http://a.example.com", "null"]
        {
            assert!(!allows(&list, false, other), "{other}");
        }
    }

    proptest! {
        /// As the parser of browsers (WHATWG) reads them.
        #[test]
        fn whatever_passes_a_wildcard_is_a_subdomain(
            below in "[a-z.:@/?#\\\\\\[\\]%* 0-9-]{0,12}", port in "(:[0-9]{0,5})?", path in "[/?#]?",
        ) {
            let origin = format!("https://{below}.wild.example{port}{path}");
            if allows(&["https://*.wild.example"], false, &origin) {
                let url = reqwest::Url::parse(&origin).unwrap();
                prop_assert!(url.host_str().unwrap().ends_with(".wild.example"), "{origin}");
                prop_assert!(url.username().is_empty() && url.password().is_none() && url.port().is_none(), "{origin}");
                prop_assert!(url.path() == "/" && path.is_empty(), "{origin}");
            }
        }
    }

    #[test]
    fn without_a_list_any_page_may_use_a_token() {
        assert!(allows(&[], false, "https://anything.example"));
    }

    #[test]
    fn a_cookie_needs_an_origin_that_is_named() {
        let policy = |allowed: &[&str]| OriginPolicy::new(&patterns(allowed), false);
        let named = policy(&["https://*.example.com", "null", "file://"]);
        assert!(named.allows_token(Some("null")) && named.allows_token(Some("file://")));
        assert!(named.allows_cookie(Some("https://app.example.com")));
        for other in [Some("https://evil.example"), Some("null"), Some("file://"), Some(""), None] {
            assert!(!named.allows_cookie(other), "{other:?}");
        }
        assert!(!policy(&[]).allows_cookie(Some("https://app.example.com")));
        let development = OriginPolicy::new(&[], true);
        assert!(development.allows_cookie(Some("http://localhost:3000")));
        assert!(!development.allows_cookie(None));
    }

    #[test]
    fn in_development_only_loopback_pages_may_connect() {
        for origin in ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:3000", "https://app.localhost"] {
            assert!(allows(&[], true, origin), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://localhost:x@evil.example",
            "http://evil.example/.localhost",
            "null",
        ] {
            assert!(!allows(&[], true, origin), "{origin}");
        }
        assert!(allows(&["https://app.example"], true, "https://app.example"));
    }
}
