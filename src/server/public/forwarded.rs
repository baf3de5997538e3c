//! The client's address behind trusted proxies, from `Forwarded` (RFC 7239) or `X-Forwarded-For`.
//!
//! Hand-written because no maintained crate reads both headers from the right, past the trusted proxies.
//!
//! A proxy appends the address that it sees on the right; the client may have forged everything to the left of that. So
//! the client is the rightmost hop that is not a trusted proxy. If a header is malformed, or the two disagree (the proxy
//! may have passed one on unchanged), the client is the proxy itself: clients that forge share one limit.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Malformed;

/// `peer` is the remote end of the socket.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let forwarded = hops(headers, header::FORWARDED.as_str(), forwarded_for);
    let x_forwarded = hops(headers, X_FORWARDED_FOR, address);
    let client = |hops: Result<Vec<Result<IpAddr, Malformed>>, Malformed>| rightmost_untrusted(&hops?, trusted);
    match (client(forwarded), client(x_forwarded)) {
        (Ok(Some(one)), Ok(Some(other))) if one == other => one,
        (Ok(Some(client)), Ok(None)) | (Ok(None), Ok(Some(client))) => client,
        _ => peer,
    }
}

/// Whether this is a proxy's address, which the request's own may replace.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// `None` without hops. If all are trusted, the first of them.
fn rightmost_untrusted(hops: &[Result<IpAddr, Malformed>], trusted: &[IpNet]) -> Result<Option<IpAddr>, Malformed> {
    let mut client = None;
    for hop in hops.iter().rev() {
        let hop = (*hop)?;
        client = Some(hop);
        if !is_trusted(hop, trusted) {
            break;
        }
    }
    Ok(client)
}

/// The hops of a header, over all its lines, the farthest first.
fn hops(
    headers: &HeaderMap,
    name: &str,
    hop: impl Fn(&str) -> Result<IpAddr, Malformed>,
) -> Result<Vec<Result<IpAddr, Malformed>>, Malformed> {
    let mut all = Vec::new();
    for line in headers.get_all(name) {
        // Foreign bytes spoil only the hop that has them.
        let line = String::from_utf8_lossy(line.as_bytes());
        all.extend(split(&line, ',')?.into_iter().map(str::trim).filter(|element| !element.is_empty()).map(&hop));
    }
    Ok(all)
}

/// Splits at separators outside quoted strings (RFC 9110, section 5.6.4).
fn split(text: &str, separator: char) -> Result<Vec<&str>, Malformed> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|c| {
        let plain = !std::mem::take(&mut escaped);
        escaped = quoted && plain && c == '\\';
        quoted ^= plain && c == '"';
        c == separator && !quoted
    });
    let parts = parts.collect();
    if quoted { Err(Malformed) } else { Ok(parts) }
}

/// The `for` of one element of `Forwarded`, which must have just one.
fn forwarded_for(element: &str) -> Result<IpAddr, Malformed> {
    let mut found = None;
    for pair in split(element, ';')? {
        let (name, value) = pair.split_once('=').ok_or(Malformed)?;
        if name.trim().eq_ignore_ascii_case("for") && found.replace(value.trim()).is_some() {
            return Err(Malformed);
        }
    }
    let value = found.ok_or(Malformed)?;
    match value.strip_prefix('"') {
        // An address needs no escapes, so they are refused.
        Some(quoted) => address(quoted.strip_suffix('"').ok_or(Malformed)?),
        None => address(value),
    }
}

/// An address, with or without a port; an IPv6 one with a port in brackets.
fn address(text: &str) -> Result<IpAddr, Malformed> {
    let bare = || text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn client(peer: &str, lines: &[(&str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|network| network.parse().unwrap());
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    fn through(lines: &[(&str, &str)]) -> String {
        client(PROXY, lines)
    }

    #[test]
    fn headers_of_an_untrusted_peer_are_ignored() {
        let forged = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client("203.0.113.9", &forged), "203.0.113.9");
        assert_eq!(client("::ffff:203.0.113.9", &forged), "203.0.113.9");
    }

    #[test]
    fn a_trusted_proxy_is_believed_also_under_its_mapped_address() {
        let lines = [("x-forwarded-for", "192.0.2.1")];
        assert_eq!(through(&lines), "192.0.2.1");
        assert_eq!(client("::ffff:10.0.0.1", &lines), "192.0.2.1");
        assert_eq!(client("2001:db8:ffff::1", &lines), "192.0.2.1");
    }

    #[test]
    fn forged_hops_on_the_left_are_ignored() {
        assert_eq!(through(&[("x-forwarded-for", "6.6.6.6, 192.0.2.1")]), "192.0.2.1");
        assert_eq!(through(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.1, 10.9.9.9")]), "192.0.2.1");
        assert_eq!(through(&[("x-forwarded-for", "rubbish, , \"quoted, 192.0.2.1")]), PROXY, "an open quote");
        assert_eq!(through(&[("x-forwarded-for", "rubbish, , 192.0.2.1")]), "192.0.2.1");
        assert_eq!(through(&[("forwarded", "for=6.6.6.6, for=192.0.2.1;proto=https")]), "192.0.2.1");
    }

    #[test]
    fn a_forged_header_beside_the_proxy_s_own_gains_nothing() {
        for lines in [
            [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.1")],
            [("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "6.6.6.6")],
            [("forwarded", "rubbish"), ("x-forwarded-for", "192.0.2.1")],
        ] {
            assert_eq!(through(&lines), PROXY);
        }
        assert_eq!(through(&[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1")]), "192.0.2.1");
    }

    #[test]
    fn an_address_comes_in_many_spellings() {
        for (line, expected) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(through(&[("x-forwarded-for", line)]), expected, "{line}");
        }
        for (line, expected) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("For=\"192.0.2.43:47011\"; by=10.0.0.1", "192.0.2.43"),
            ("by=10.0.0.1;FOR=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=\"[2001:db8::7]\";host=\"a,b;c\\\"for=6.6.6.6\"", "2001:db8::7"),
        ] {
            assert_eq!(through(&[("forwarded", line)]), expected, "{line}");
        }
    }

    #[test]
    fn a_malformed_header_leaves_the_proxy() {
        for line in ["", " , ", "unknown", "192.0.2.1.5", "192.0.2.1, _hidden", "1.2.3.4:x", "[::1", "[1.2.3.4]"] {
            assert_eq!(through(&[("x-forwarded-for", line)]), PROXY, "{line}");
        }
        for line in [
            "for=unknown",
            "for=_secret",
            "for=",
            "proto=https",
            "for=1.1.1.1;for=2.2.2.2",
            "for=\"1.1.1.1",
            "192.0.2.1",
        ] {
            assert_eq!(through(&[("forwarded", line)]), PROXY, "{line}");
        }
        assert_eq!(through(&[("x-forwarded-for", "192.0.2.1\u{ff}")]), PROXY);
        assert_eq!(through(&[("x-forwarded-for", "\u{ff}, 192.0.2.1")]), "192.0.2.1", "only that hop is malformed");
        assert_eq!(through(&[]), PROXY);
    }

    #[test]
    fn if_all_hops_are_trusted_the_client_is_the_first() {
        assert_eq!(through(&[("x-forwarded-for", "10.1.1.1, 10.2.2.2")]), "10.1.1.1");
    }

    proptest! {
        /// Regardless of the forged part, the client is the appended address or the proxy.
        #[test]
        fn a_client_cannot_forge_another_address(
            forged in prop::collection::vec("[ -~]{0,40}", 0..4),
            own in any::<[u8; 4]>(),
        ) {
            let own = IpAddr::from(own);
            prop_assume!(!is_trusted(own, &["10.0.0.0/8".parse().unwrap()]));
            let own = own.to_string();
            let mut lines: Vec<(&str, &str)> = forged.iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
            lines.push(("x-forwarded-for", &own));
            prop_assert!([own.as_str(), PROXY].contains(&through(&lines).as_str()));
        }

        /// The same where the proxy appends to the last line, and the client sends the other header too.
        #[test]
        fn nor_does_a_forged_part_of_the_same_line(forged in "[ -~]{0,60}", other in "[ -~]{0,60}", own in any::<[u8; 4]>()) {
            let own = IpAddr::from(own);
            prop_assume!(!is_trusted(own, &["10.0.0.0/8".parse().unwrap()]));
            let line = format!("{forged}, {own}");
            let client = through(&[("x-forwarded-for", &line), ("forwarded", &other)]);
            prop_assert!([own.to_string(), PROXY.to_owned()].contains(&client));
        }
    }
}
