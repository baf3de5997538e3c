//! The envelope of a message on a user's channel.
//!
//! A plain `PUBLISH` carries bare JSON, which never begins with `~`. A stored notification is published on the same
//! channel, to keep the order, as `~COUNT@TERM CURSOR "EVENT" DATA`, or without `@TERM` by an earlier
//! version, and with `="KEY"` before the event if it has a collapse key; a named one that is not stored as
//! `~"EVENT" DATA`. In each, the event may be `"EVENT","TRACEPARENT"`. `~!` begins a [`super::Notice`].

use serde::Deserialize;

use super::cursor::exact;
use super::{Cursor, traceparent};

/// The first byte of a message with an envelope.
pub const ENVELOPE_START: u8 = b'~';

/// Maximum bytes before the data: the numbers, and a name and a collapse key of maximum length with every byte escaped.
pub const MAX_ENVELOPE_BYTES: usize = 2_048;

/// Maximum bytes of a term.
const MAX_TERM_BYTES: usize = 64;

/// The position of a stored notification in the fleet's sequence and in its user's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The fleet's count of stored notifications, including this one.
    pub count: u64,
    /// The term in which it was counted, as `history/scripts/publish.lua` describes it.
    pub term: Option<&'a str>,
    pub cursor: Cursor,
}

/// A parsed message.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `None` if it is not stored.
    pub stored: Option<Stored<'a>>,
    /// The collapse key of a stored one.
    pub collapse: Option<String>,
    pub event: String,
    /// The trace of its publication.
    pub trace: Option<String>,
    pub data: &'a str,
}

impl<'a> Envelope<'a> {
    /// Parses a message that begins with [`ENVELOPE_START`]; `None` if it is malformed, so that tidings did not write
    /// it.
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix(char::from(ENVELOPE_START))?;
        if rest.starts_with('"') {
            let (EventName { event, trace }, data) = EventName::split(rest)?;
            return Some(Self { stored: None, collapse: None, event, trace, data });
        }
        let (count, rest) = rest.split_once(' ')?;
        let (cursor, rest) = rest.split_once(' ')?;
        let stored = Some(Stored::parse(count, cursor)?);
        let (collapse, rest) = match rest.strip_prefix('=') {
            Some(rest) => {
                let (key, rest) = split_string(rest)?;
                (Some(key), rest.strip_prefix(' ')?)
            }
            None => (None, rest),
        };
        let (EventName { event, trace }, data) = EventName::split(rest)?;
        Some(Self { stored, collapse, event, trace, data })
    }
}

/// The name of an event as it is published and stored: as JSON, and behind it the trace of its publication, if it has one.
#[derive(Debug, PartialEq, Eq)]
pub struct EventName {
    pub event: String,
    pub trace: Option<String>,
}

impl EventName {
    /// `"EVENT"`, or `"EVENT","TRACEPARENT"`.
    pub fn quote(event: &str, trace: Option<&str>) -> String {
        // A string always serialises.
        let mut text = serde_json::to_string(event).unwrap_or_default();
        if let Some(trace) = trace {
            text.extend([",\"", trace, "\""]);
        }
        text
    }

    /// The reverse of [`EventName::quote`].
    pub fn parse(text: &str) -> Option<Self> {
        let (name, rest) = Self::take(text)?;
        rest.is_empty().then_some(name)
    }

    /// The name at the start of a text, and the text after it and a space.
    fn split(text: &str) -> Option<(Self, &str)> {
        let (name, rest) = Self::take(text)?;
        Some((name, rest.strip_prefix(' ')?))
    }

    fn take(text: &str) -> Option<(Self, &str)> {
        let (event, rest) = split_string(text)?;
        let Some(rest) = rest.strip_prefix(',') else { return Some((Self { event, trace: None }, rest)) };
        let (trace, rest) = split_string(rest)?;
        traceparent(&trace)?;
        Some((Self { event, trace: Some(trace) }, rest))
    }
}

/// The JSON string at the start of a text, and the text after it.
fn split_string(text: &str) -> Option<(String, &str)> {
    let mut strings = serde_json::Deserializer::from_str(text);
    let string = String::deserialize(&mut strings).ok()?;
    let end = strings.into_iter::<serde::de::IgnoredAny>().byte_offset();
    Some((string, text.get(end..)?))
}

impl<'a> Stored<'a> {
    fn parse(count: &'a str, cursor: &str) -> Option<Self> {
        let (count, term) = match count.split_once('@') {
            Some((count, term)) => (count, Some(term)),
            None => (count, None),
        };
        let valid =
            |term: &str| (1..=MAX_TERM_BYTES).contains(&term.len()) && term.bytes().all(|b| b.is_ascii_graphic());
        let valid = term.is_none_or(valid);
        valid.then_some(Self { count: exact(count)?, term, cursor: cursor.parse().ok()? })
    }
}

/// Wraps an event that is not stored. `name` is as [`EventName::quote`] returns it.
pub fn wrap(name: &str, data: &str) -> String {
    format!("{}{name} {data}", char::from(ENVELOPE_START))
}

/// Wraps a stored event, the fleet's `count`th. `name` is as [`EventName::quote`] returns it.
pub fn wrap_stored(count: u64, cursor: &Cursor, collapse: Option<&str>, name: &str, data: &str) -> String {
    // A string always serialises.
    let quoted = |text| serde_json::to_string(text).unwrap_or_default();
    let collapse = collapse.map(|key| format!("={} ", quoted(key))).unwrap_or_default();
    format!("{}{count} {cursor} {collapse}{name} {data}", char::from(ENVELOPE_START))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn an_envelope_with_any_name_round_trips() {
        let cursor: Cursor = "0000000000000abc-1795000000123-17".parse().unwrap();
        let text = format!(r#"~12 {cursor} "a \"b\" é" {{"n":1}}"#);
        let (event, data) = (r#"a "b" é"#.to_owned(), r#"{"n":1}"#);
        assert_eq!(wrap_stored(12, &cursor, None, &EventName::quote(&event, None), data), text);
        let stored = Stored { count: 12, term: None, cursor };
        let expected = Envelope { stored: Some(stored), collapse: None, event, trace: None, data };
        assert_eq!(Envelope::parse(&text), Some(expected));
        let keyed = wrap_stored(12, &cursor, Some("k \"1\""), &EventName::quote("paid", Some(TRACE)), "1");
        assert_eq!(keyed, format!(r#"~12 {cursor} ="k \"1\"" "paid","{TRACE}" 1"#));
        let (collapse, trace) = (Some("k \"1\"".to_owned()), Some(TRACE.to_owned()));
        let expected = Envelope { stored: Some(stored), collapse, event: "paid".into(), trace, data: "1" };
        assert_eq!(Envelope::parse(&keyed), Some(expected));
        let text = text.replacen("12", "12@?0a", 1);
        assert_eq!(Envelope::parse(&text).unwrap().stored, Some(Stored { term: Some("?0a"), ..stored }));
        let text = wrap(&EventName::quote("a \"b\"", None), " 1 ");
        let expected = Envelope { stored: None, collapse: None, event: "a \"b\"".into(), trace: None, data: " 1 " };
        assert_eq!(Envelope::parse(&text), Some(expected));
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
            &format!("~1@ {cursor} \"a\" 1"),
            &format!("~1@{} {cursor} \"a\" 1", "x".repeat(65)),
            &format!("~1@é {cursor} \"a\" 1"),
            &format!("~1 {cursor}"),
            &format!("~1 {cursor} =\"k\" 1"),
            &format!("~1 {cursor} =5 \"a\" 1"),
            &format!("~1 {cursor} =\"k\"\"a\" 1"),
            "~=\"k\" \"a\" 1",
            "~\"a\",\"b\" 1",
            "~\"a\", 1",
            &format!("~\"a\",\"{TRACE}\",\"{TRACE}\" 1"),
            "~1 1-1 \"a\" 1",
        ] {
            assert_eq!(Envelope::parse(text), None, "{text}");
        }
    }
}
