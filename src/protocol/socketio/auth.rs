//! The `auth` of a CONNECT packet.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::BadPacket;
use crate::protocol::{Cursor, Resume, Start};

const BEARER: &str = "bearer ";

/// The known fields; all others are ignored. `null` counts as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// Without a leading `Bearer `; empty if it is not a string, so that no other token is used instead.
    pub token: Option<String>,
    /// The `pid` of the previous CONNECT, which the client repeats.
    pub pid: Option<String>,
    /// The last string that came with an event. The client sends it even after the server gave it another `pid`.
    pub offset: Option<String>,
    /// A cursor that the page kept itself.
    pub resume: Option<String>,
}

impl Auth {
    /// Parses the JSON of a CONNECT, an object or nothing. Of a field that occurs twice, the last one counts, as in a
    /// browser.
    pub(super) fn parse(json: &str) -> Result<Self, BadPacket> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        let mut deserializer = Deserializer::from_str(json);
        let auth = deserializer.deserialize_map(Fields).map_err(|_| BadPacket)?;
        deserializer.end().map_err(|_| BadPacket)?;
        Ok(auth)
    }

    /// How the client's connection starts.
    pub fn start(&self, device: Option<Box<str>>) -> Start {
        let positions = self.positions();
        let first = |cursors: &Vec<Cursor>| cursors.first().map_or(Resume::Unknown, |cursor| Resume::After(*cursor));
        Start {
            resume: positions.as_ref().map(first),
            other: positions.and_then(|cursors| cursors.get(1).copied()),
            pid: self.pid.as_deref().map(Box::from),
            device,
        }
    }

    /// The positions from which the client resumes, the best first: two only if they are of different epochs, of which one
    /// is over. `None`: it does not ask to resume; empty: no text that it sent is a cursor.
    fn positions(&self) -> Option<Vec<Cursor>> {
        let given = match (&self.pid, &self.resume) {
            (Some(pid), _) => [Some(pid), self.offset.as_ref()],
            (None, Some(resume)) => [Some(resume), None],
            (None, None) => return None,
        };
        let mut cursors: Vec<Cursor> = given.into_iter().flatten().filter_map(|text| text.parse().ok()).collect();
        cursors.sort_unstable_by_key(|cursor| std::cmp::Reverse((cursor.ms, cursor.number)));
        cursors.dedup_by_key(|cursor| cursor.epoch);
        Some(cursors)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Auth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Auth, A::Error> {
        let mut auth = Auth::default();
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let Some(name) = string(name) else { continue };
            match name.as_str() {
                "token" if value.get() == "null" => auth.token = None,
                "token" => auth.token = Some(string(value).map_or_else(String::new, |token| bare(&token).to_owned())),
                // A client with an empty one would not report a recovery.
                "pid" => auth.pid = string(value).filter(|pid| !pid.is_empty()),
                "offset" => auth.offset = string(value),
                "resume" => auth.resume = string(value),
                _ => {}
            }
        }
        Ok(auth)
    }
}

/// A string of JSON; `None` also for one that is not Unicode.
fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The token of a text that may be that of an `Authorization` header.
fn bare(token: &str) -> &str {
    match token.split_at_checked(BEARER.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => token.trim(),
        _ => token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0000000000000abc-1795000000123-17";
    const NEW: &str = "0000000000000abc-1795000000123-18";
    const OTHER: &str = "0000000000000def-1795000000000-99";

    fn parse(json: &str) -> Auth {
        Auth::parse(json).unwrap()
    }

    #[test]
    fn the_known_fields_are_read_and_the_others_ignored() {
        let auth = parse(r#" {"pid":"p","offset":"o","resume":"r","token":"T","name":[1],"\ud800":1} "#);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(auth, Auth { token: text("T"), pid: text("p"), offset: text("o"), resume: text("r") });
        assert_eq!(parse(""), Auth::default());
        assert_eq!(parse(r#"{"token":null,"pid":null,"offset":7,"resume":{}}"#), Auth::default());
        assert_eq!(parse(r#"{"token":"a","token":"b","pid":"a","pid":null}"#).token, text("b"));
    }

    #[test]
    fn a_leading_bearer_is_removed_and_a_token_that_is_not_text_is_a_bad_one() {
        let token = |json: &str| parse(json).token.unwrap();
        for written in ["T", "Bearer T", "bearer  T"] {
            assert_eq!(token(&format!(r#"{{"token":"{written}"}}"#)), "T", "{written}");
        }
        assert_eq!(token(r#"{"token":"BearerT"}"#), "BearerT");
        for json in [r#"{"token":5}"#, r#"{"token":{}}"#, r#"{"token":""}"#, r#"{"token":"Bearer "}"#] {
            assert_eq!(token(json), "", "{json}");
        }
    }

    #[test]
    fn the_later_cursor_of_pid_and_offset_comes_first_and_one_of_another_epoch_second() {
        let positions = |pid: Option<&str>, offset: Option<&str>, resume: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            let auth = Auth { token: None, pid: text(pid), offset: text(offset), resume: text(resume) };
            auth.positions().map(|cursors| cursors.iter().map(Cursor::to_string).collect::<Vec<_>>())
        };
        let found = |cursors: &[&str]| Some(cursors.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(positions(None, None, None), None);
        assert_eq!(positions(None, Some(NEW), None), None, "an offset of the page itself");
        assert_eq!(positions(Some(OLD), None, None), found(&[OLD]));
        assert_eq!(positions(Some(OLD), Some(NEW), None), found(&[NEW]));
        assert_eq!(positions(Some(NEW), Some(OLD), Some(OTHER)), found(&[NEW]));
        assert_eq!(positions(Some(OLD), Some("just text"), None), found(&[OLD]));
        assert_eq!(positions(Some("P1"), Some(NEW), None), found(&[NEW]));
        assert_eq!(positions(Some("P1"), Some("o"), Some(NEW)), found(&[]));
        assert_eq!(positions(Some(OTHER), Some(OLD), None), found(&[OLD, OTHER]));
        assert_eq!(positions(None, None, Some(NEW)), found(&[NEW]));
        assert_eq!(positions(None, None, Some("x")), found(&[]));
    }
}
