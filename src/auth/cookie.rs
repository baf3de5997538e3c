//! Cookies of a request (RFC 6265, section 4.2), parsed as Express parses them, so that both read the same value.

use axum::http::HeaderMap;
use axum::http::header::COOKIE;

/// The first cookie with this name, possibly empty.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    // Several headers form one list: HTTP/2 may split it (RFC 9113, section 8.2.3).
    let mut pairs = headers.get_all(COOKIE).into_iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b';'));
    let value = pairs.find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (given, value) = (pair.get(..at)?, pair.get(at + 1..)?);
        (trim(given) == name.as_bytes()).then(|| trim(value))
    })?;
    let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    // Node reads headers as Latin-1.
    let value: String = value.iter().copied().map(char::from).collect();
    Some(decode(&value).unwrap_or(value))
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Like `decodeURIComponent`; `None` where that throws.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? * 16 + digit(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn find(headers: &[&str], name: &str) -> Option<String> {
        let headers = headers.iter().map(|value| (COOKIE, value.parse().unwrap())).collect();
        cookie(&headers, name)
    }

    #[test]
    fn the_first_cookie_with_the_name_counts() {
        let list = "theme=dark; connect.sid=s%3Aa.b%2Fc; x = 1 ;connect.sid=second; q=\"quoted\"; flag; e=a=b";
        assert_eq!(find(&[list], "connect.sid").unwrap(), "s:a.b/c");
        assert_eq!(find(&[list], "x").unwrap(), "1");
        assert_eq!(find(&[list], "q").unwrap(), "quoted");
        assert_eq!(find(&[list], "e").unwrap(), "a=b");
        for other in ["flag", "sid", "connect", "CONNECT.SID", ""] {
            assert_eq!(find(&[list], other), None, "{other}");
        }
        assert_eq!(find(&["a=1", "b=2"], "b").unwrap(), "2");
        assert_eq!(find(&["a=; a=2"], "a").unwrap(), "", "the first one counts, also empty");
        assert_eq!(find(&[], "a"), None);
    }

    #[test]
    fn a_value_that_express_does_not_decode_stays_unchanged() {
        for raw in ["100%", "%zz", "%4", "%ff", "%+1", "%C3%28"] {
            assert_eq!(find(&[&format!("a={raw}")], "a").unwrap(), raw);
        }
    }

    #[test]
    fn foreign_bytes_are_read_as_express_reads_them_and_hide_no_other_cookie() {
        let foreign = HeaderValue::from_bytes(b"name=Jos\xe9; \xff; \xe9=1; a=b%20c; d=%\xe9").unwrap();
        let headers = [(COOKIE, foreign)].into_iter().collect();
        assert_eq!(cookie(&headers, "a").unwrap(), "b c");
        assert_eq!(cookie(&headers, "name").unwrap(), "Jos\u{e9}");
        assert_eq!(cookie(&headers, "d").unwrap(), "%\u{e9}");
    }

    /// Like `encodeURIComponent`.
    fn encode(text: &str) -> String {
        let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte);
        text.bytes().map(|b| if kept(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    }

    proptest! {
        #[test]
        fn every_value_that_express_writes_is_read_back(
            values in prop::collection::vec(("[a-z]{1,3}", "\\PC{1,20}"), 1..6),
        ) {
            let list = values.iter().map(|(name, value)| format!("{name}={}", encode(value)));
            let list = list.collect::<Vec<_>>().join("; ");
            for (name, _) in &values {
                let first = values.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
                prop_assert_eq!(find(&[&list], name), first);
            }
        }

        #[test]
        fn any_header_is_accepted(list in "[ -~\\t]{0,60}", name in "[ -~]{0,3}") {
            if let Some(value) = find(&[&list], &name) {
                prop_assert!(value.len() <= list.len());
            }
        }
    }
}
