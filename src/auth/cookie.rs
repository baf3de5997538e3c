//! Cookies of a request (RFC 6265, section 4.2), parsed as Express parses them, so that both read the same value.

use axum::http::HeaderMap;
use axum::http::header::COOKIE;

/// The first cookie with this name; `None` if its value is empty, which means deleted.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    // Several headers form one list: HTTP/2 may split it (RFC 9113, section 8.2.3).
    let lists = headers.get_all(COOKIE).into_iter().filter_map(|list| str::from_utf8(list.as_bytes()).ok());
    let mut pairs = lists.flat_map(|list| list.split(';')).filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(given, _)| trim(given) == name)?;
    let value = trim(value);
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    Some(decode(value).unwrap_or_else(|| value.to_owned())).filter(|value| !value.is_empty())
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
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
        assert_eq!(find(&["a=; a=2"], "a"), None, "the first one counts, and it is deleted");
        assert_eq!(find(&[], "a"), None);
    }

    #[test]
    fn a_value_that_express_does_not_decode_stays_unchanged() {
        for raw in ["100%", "%zz", "%4", "%ff", "%+1", "%C3%28"] {
            assert_eq!(find(&[&format!("a={raw}")], "a").unwrap(), raw);
        }
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
                prop_assert!(!value.is_empty() && value.len() <= list.len());
            }
        }
    }
}
