//! What stands before the data of a message on a user's channel, where it is more than the data alone.
//!
//! A plain `PUBLISH` carries JSON, which never begins with `~`. A stored notification travels the same channel, so that
//! the order of all is kept, as `~COUNT CURSOR "EVENT" DATA`; one that is not stored but has a name as `~"EVENT" DATA`.

use serde::Deserialize;

use super::Cursor;
use super::cursor::exact;

/// What a stamped message begins with.
pub const ENVELOPE_START: u8 = b'~';

/// Most bytes that stand before the data: the numbers, and a name of the longest kind with everything escaped.
pub const MAX_ENVELOPE_BYTES: usize = 2_048;

/// A message with its stamp taken off.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Where it is stored, and how many the fleet had stored with it; none: nowhere.
    pub stored: Option<(u64, Cursor)>,
    /// The event's name.
    pub event: String,
    /// The rest.
    pub data: &'a str,
}

impl<'a> Envelope<'a> {
    /// Reads a message that begins with [`ENVELOPE_START`]; none where nobody of ours wrote it.
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

/// The stamp of an event that is not stored.
pub fn wrap(event: &str, data: &str) -> String {
    // A text always serialises.
    let event = serde_json::to_string(event).unwrap_or_default();
    format!("{}{event} {data}", char::from(ENVELOPE_START))
}

/// The stamp of a stored event, the fleet's `count`th.
pub fn wrap_stored(count: u64, cursor: &Cursor, event: &str, data: &str) -> String {
    let event = serde_json::to_string(event).unwrap_or_default();
    format!("{}{count} {cursor} {event} {data}", char::from(ENVELOPE_START))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_taken_off_whatever_the_name_is() {
        let cursor: Cursor = "0000000000000abc-1795000000123-17".parse().unwrap();
        let text = format!(r#"~12 {cursor} "a \"b\" é" {{"n":1}}"#);
        assert_eq!(wrap_stored(12, &cursor, r#"a "b" é"#, r#"{"n":1}"#), text);
        let envelope = Envelope::parse(&text).unwrap();
        assert_eq!(envelope, Envelope { stored: Some((12, cursor)), event: r#"a "b" é"#.into(), data: r#"{"n":1}"# });
        let text = wrap("a \"b\"", " 1 ");
        assert_eq!(Envelope::parse(&text).unwrap(), Envelope { stored: None, event: "a \"b\"".into(), data: " 1 " });
    }

    #[test]
    fn what_nobody_of_ours_wrote_has_no_stamp() {
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
