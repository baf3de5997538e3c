//! Which pages may connect, by their Origin (RFC 6454). The browser sets it; a page cannot forge it.

#[derive(Debug, Clone)]
pub struct OriginPolicy {
    allowed: Vec<String>,
    loopback: bool,
}

impl OriginPolicy {
    /// `allowed` is `server.allowed_origins`; `loopback` adds every origin on this machine, and restricts an empty
    /// list.
    pub fn new(allowed: &[String], loopback: bool) -> Self {
        Self { allowed: allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect(), loopback }
    }

    /// Whether a page of this origin may use a token. A request without an Origin is not from a browser and may.
    pub fn allows_token(&self, origin: Option<&str>) -> bool {
        let unrestricted = self.allowed.is_empty() && !self.loopback;
        unrestricted || origin.is_none_or(|origin| self.names(origin))
    }

    /// Whether a page of this origin may use a cookie. A browser attaches cookies to requests of any page, so only
    /// listed origins may, and a request without an Origin may not.
    pub fn allows_cookie(&self, origin: Option<&str>) -> bool {
        origin.is_some_and(|origin| self.names(origin))
    }

    /// Whether this origin is listed, or on this machine if `loopback` is set.
    pub fn names(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        (self.loopback && is_loopback(&origin)) || self.allowed.iter().any(|pattern| matches(pattern, &origin))
    }
}

fn matches(pattern: &str, origin: &str) -> bool {
    let Some((scheme, domain)) = pattern.split_once("://*.") else { return pattern == origin };
    let Some((origin_scheme, host)) = origin.split_once("://") else { return false };
    let below = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    scheme == origin_scheme && below.is_some_and(|labels| !labels.is_empty())
}

fn is_loopback(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, host)| is_loopback_host(host))
}

/// Whether a host, with or without a port, names this machine. Under DNS rebinding, `Host` has the attacker's name.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.to_ascii_lowercase();
    let loopback = name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    loopback || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(allowed: &[&str], loopback: bool, origin: &str) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|origin| (*origin).to_owned()).collect();
        OriginPolicy::new(&allowed, loopback).allows_token(Some(origin))
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

    #[test]
    fn without_a_list_any_page_may_use_a_token() {
        assert!(allows(&[], false, "https://anything.example"));
    }

    #[test]
    fn a_cookie_needs_an_origin_that_is_named() {
        let policy = |allowed: &[&str]| {
            OriginPolicy::new(&allowed.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>(), false)
        };
        let named = policy(&["https://*.example.com"]);
        assert!(named.allows_cookie(Some("https://app.example.com")));
        for other in [Some("https://evil.example"), Some("null"), Some(""), None] {
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
        for origin in ["https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "null"]
        {
            assert!(!allows(&[], true, origin), "{origin}");
        }
        assert!(allows(&["https://app.example"], true, "https://app.example"));
    }
}
