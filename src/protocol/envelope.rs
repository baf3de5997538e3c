//! The envelope of a message on a user's channel.
//!
//! A plain `PUBLISH` carries bare JSON, which never begins with `~`. A stored notification is published on the same
//! channel, to keep the order, as `~COUNT CURSOR "EVENT" DATA`; a named one that is not stored as `~"EVENT" DATA`.

use serde::Deserialize;

use super::Cursor;
use super::cursor::exact;

/// The first byte of a message with an envelope.
pub const ENVELOPE_START: u8 = b'~';

/// Maximum bytes before the data: the numbers, and a name of maximum length with every byte escaped.
pub const MAX_ENVELOPE_BYTES: usize = 2_048;

/// A parsed message.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The fleet's count of stored notifications, including this one, and its position; `None` if it is not stored.
    pub stored: Option<(u64, Cursor)>,
    pub event: String,
    pub data: &'a str,
}

impl<'a> Envelope<'a> {
    /// Parses a message that begins with [`ENVELOPE_START`]; `None` if it is malformed, so that tidings did not write
    /// it.
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix(char::from(ENVELOPE_START))?;
        let (stored, rest) = if rest.starts_with('"') {
            (None, rest)
        } else {
            let (count, rest) = rest.split_once(' ')?;
            let (cursor, rest) = rest.split_once(' ')?;
            (Some((exact(count)?, cursor.parse().ok()?)), rest)
        };
        let mut names = serde_json::Deserializer::from_str(rest);
        let event = String::deserialize(&mut names).ok()?;
        let end = names.into_iter::<serde::de::IgnoredAny>().byte_offset();
        let data = rest.get(end..)?.strip_prefix(' ')?;
        Some(Self { stored, event, data })
    }
}

/// Wraps an event that is not stored.
pub fn wrap(event: &str, data: &str) -> String {
    // A string always serialises.
    let event = serde_json::to_string(event).unwrap_or_default();
    format!("{}{event} {data}", char::from(ENVELOPE_START))
}

/// Wraps a stored event, the fleet's `count`th.
pub fn wrap_stored(count: u64, cursor: &Cursor, event: &str, data: &str) -> String {
    let event = serde_json::to_string(event).unwrap_or_default();
    format!("{}{count} {cursor} {event} {data}", char::from(ENVELOPE_START))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_with_any_name_round_trips() {
        let cursor: Cursor = "0000000000000abc-1795000000123-17".parse().unwrap();
        let text = format!(r#"~12 {cursor} "a \"b\" é" {{"n":1}}"#);
        assert_eq!(wrap_stored(12, &cursor, r#"a "b" é"#, r#"{"n":1}"#), text);
        let envelope = Envelope::parse(&text).unwrap();
        assert_eq!(envelope, Envelope { stored: Some((12, cursor)), event: r#"a "b" é"#.into(), data: r#"{"n":1}"# });
        let text = wrap("a \"b\"", " 1 ");
        assert_eq!(Envelope::parse(&text).unwrap(), Envelope { stored: None, event: "a \"b\"".into(), data: " 1 " });
    }

    #[test]
    fn a_malformed_envelope_is_not_parsed() {
        let cursor = "0000000000000abc-1795000000123-17";
        for text in [
            "",
            "~",
            "{}",
            "~{}",
            "~\"a",
            "~\"a\"",
            "~\"a\"1",
            &format!("~1 {cursor} 5 1"),
            &format!("~x {cursor} \"a\" 1"),
            &format!("~18446744073709551614 {cursor} \"a\" 1"),
            &format!("~01 {cursor} \"a\" 1"),
            &format!("~1 {cursor}"),
            "~1 1-1 \"a\" 1",
        ] {
            assert_eq!(Envelope::parse(text), None, "{text}");
        }
    }
}
