//! Origins of pages (RFC 6454), and the patterns of `server.allowed_origins`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A host and its port, as in `Host` and in an Origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// In lower case; an IPv6 address in brackets.
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Parses `host [":" port]`: no user info, no path, no empty host.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed.split_once(']')?;
                (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), rest)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                (host.to_ascii_lowercase(), rest)
            }
        };
        // The unreserved characters of RFC 3986: hosts have no others.
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !text.starts_with('[') && (host.is_empty() || !host.bytes().all(good)) {
            return None;
        }
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        Some(Self { host, port })
    }

    /// Whether it names this machine. Under DNS rebinding, `Host` has the attacker's name.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let name = self.host.trim_matches(['[', ']']);
        let loopback = name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        loopback || name == "localhost" || name.ends_with(".localhost")
    }
}

/// The Origin of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `null`: a sandboxed page, a `data:` URL, a local file in most browsers.
    Opaque,
    /// `file://`: a local file in some embedded browsers.
    File,
    /// A page that was served under a host, or by an app shell such as `capacitor://localhost`.
    Page(Page),
}

/// A scheme, and a host with its port unless that is the scheme's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    scheme: String,
    at: Authority,
}

impl Page {
    /// With the port as given.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, at) = text.split_once("://")?;
        let good = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(good);
        let scheme = scheme.to_ascii_lowercase();
        (is_scheme && scheme != "file").then_some(Self { scheme, at: Authority::parse(at)? })
    }

    fn is_default(&self, port: u16) -> bool {
        matches!((self.scheme.as_str(), port), ("https", 443) | ("http", 80))
    }

    fn has_default_port(&self) -> bool {
        self.at.port.is_some_and(|port| self.is_default(port))
    }
}

impl Origin {
    /// Parses an Origin as RFC 6454 serializes it: a scheme, a host and possibly a port, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "null" => Some(Self::Opaque),
            "file://" => Some(Self::File),
            _ => {
                let page = Page::parse(text)?;
                let port = page.at.port.filter(|port| !page.is_default(*port));
                Some(Self::Page(Page { at: Authority { port, ..page.at }, ..page }))
            }
        }
    }

    /// Whether it is a page of this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        matches!(self, Self::Page(page) if page.at.is_loopback())
    }

    /// Whether it is a page of this host and port, whatever the scheme.
    #[must_use]
    pub fn is_at(&self, host: &Authority) -> bool {
        let Self::Page(page) = self else { return false };
        let port = host.port.filter(|port| !page.is_default(*port));
        page.at.host == host.host && page.at.port == port
    }
}

/// An entry of `server.allowed_origins`.
#[derive(Debug, Clone)]
pub struct OriginPattern {
    text: String,
    allowed: Allowed,
}

#[derive(Debug, Clone)]
enum Allowed {
    Exact(Origin),
    /// Subdomains of the host at any depth, not the host itself.
    Subdomains(Page),
    /// Every port of every loopback name, under this scheme.
    Loopback(String),
}

impl OriginPattern {
    /// The patterns that are accepted, for error messages.
    pub(super) const ACCEPTED: &str = "a list of origins such as https://app.example.com, https://*.example.com, \
                                       http://localhost:*, capacitor://localhost, file:// or null, as browsers send \
                                       them: without a path, and without the default port (443 for https, 80 for http)";

    /// Parses a pattern. A default port is refused, because browsers never send it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = if let Some(page) = text.strip_suffix(":*") {
            let Page { scheme, at } = Page::parse(page)?;
            (at.port.is_none() && at.is_loopback()).then_some(Allowed::Loopback(scheme))
        } else if let Some((scheme, at)) = text.split_once("://*.") {
            let page = Page::parse(&format!("{scheme}://{at}"))?;
            let is_name = page.at.host.split('.').all(|label| !label.is_empty());
            (is_name && !page.has_default_port()).then_some(Allowed::Subdomains(page))
        } else {
            let has_default_port = Page::parse(text).is_some_and(|page| page.has_default_port());
            Origin::parse(text).filter(|_| !has_default_port).map(Allowed::Exact)
        };
        Some(Self { text: text.to_owned(), allowed: allowed? })
    }

    /// Whether the pattern allows this Origin.
    #[must_use]
    pub fn allows(&self, origin: &Origin) -> bool {
        match (&self.allowed, origin) {
            (Allowed::Exact(exact), origin) => exact == origin,
            (Allowed::Subdomains(apex), Origin::Page(page)) => {
                let below = page.at.host.strip_suffix(&apex.at.host).and_then(|rest| rest.strip_suffix('.'));
                page.scheme == apex.scheme
                    && page.at.port == apex.at.port
                    && below.is_some_and(|labels| labels.split('.').all(|label| !label.is_empty()))
            }
            (Allowed::Loopback(scheme), Origin::Page(page)) => page.scheme == *scheme && page.at.is_loopback(),
            _ => false,
        }
    }
}

/// As configured.
impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
