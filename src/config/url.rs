//! URLs that may have a secret in them: only the parts that cannot be one are ever shown.

use std::fmt;
use std::net::Ipv6Addr;

use reqwest::Url;

use super::mask::MASK;

/// Scheme, host, port and path. A path with a `=` may be a mistyped query, so it is masked.
pub(crate) fn harmless_parts(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = if url.path().contains('=') { format!("/{MASK}") } else { url.path().to_owned() };
    format!("{}://{}{port}{path}", url.scheme(), url.host_str().unwrap_or_default())
}

/// Requires a host that is an IP address or a name. `Url` accepts most characters in a host, so that options after it,
/// such as `,password=…`, would be a part of it.
pub(crate) fn check_host(url: &Url) -> Result<(), &'static str> {
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("it has no host")?;
    if is_host(host) { Ok(()) } else { Err("its host is neither a name nor an IP address") }
}

/// Whether it is a name or an IP address, IPv6 in brackets.
pub(super) fn is_host(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    address.map_or(is_name, |address| address.parse::<Ipv6Addr>().is_ok())
}

/// `auth.jwks_url`, whose query may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySetUrl(Url);

impl KeySetUrl {
    /// Any URL.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// For the request only.
    #[must_use]
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for KeySetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&harmless_parts(&self.0))
    }
}
