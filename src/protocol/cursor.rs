//! Positions in the stored history of a user.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// The scripts in Redis compare these numbers, and Lua represents integers exactly only below this bound.
const MAX_EXACT: u64 = 1 << 53;

/// A position in the stored history of a user: directly after the notification that it names. Its text is
/// `EPOCH-MS-NUMBER`, opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Identifies the user's history; a new epoch means that the backplane lost data.
    pub epoch: NonZeroU64,
    /// When the notification was stored, in milliseconds since 1970; never decreases. With number 0: when the history
    /// was empty.
    pub ms: u64,
    /// Counts stored notifications from 1; 0 is before the first.
    pub number: u64,
}

/// How a stored event relates to the position of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// The event directly follows.
    Next,
    /// The client already has the event.
    Known,
    /// Events may be missing in between.
    Gap,
}

impl Cursor {
    /// Compares the position of a client with that of an event.
    pub fn followed_by(&self, event: &Self) -> Continuity {
        // The end of an old epoch is unknown, so events may be missing.
        if event.epoch != self.epoch {
            return Continuity::Gap;
        }
        // After all notifications have expired, numbers restart at 1, and nothing can be missing before the first.
        if event.number == self.number + 1 || (event.number == 1 && event.ms > self.ms) {
            Continuity::Next
        } else if (event.ms, event.number) <= (self.ms, self.number) {
            Continuity::Known
        } else {
            Continuity::Gap
        }
    }

    /// Whether a client at this position lacks stored events, the newest of which is at `newest`.
    pub fn is_behind(&self, newest: &Self) -> bool {
        newest.number > 0 && !self.is_same_position(newest) && self.followed_by(newest) != Continuity::Known
    }

    /// Whether both name the same notification, even in different epochs: then the client has missed nothing.
    pub fn is_same_position(&self, other: &Self) -> bool {
        (self.ms, self.number) == (other.ms, other.number)
    }
}

/// As its text.
impl serde::Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From its text.
impl<'de> serde::Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.epoch, self.ms, self.number)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is an \"id\" or \"cursor\" as this gateway sent it")]
pub struct BadCursorText;

impl FromStr for Cursor {
    type Err = BadCursorText;

    fn from_str(text: &str) -> Result<Self, BadCursorText> {
        let parse = || {
            let (epoch, position) = text.split_once('-')?;
            let (ms, number) = position.split_once('-')?;
            let hex = epoch.len() == 16 && epoch.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let epoch = hex.then(|| u64::from_str_radix(epoch, 16).ok()).flatten().and_then(NonZeroU64::new)?;
            Some(Self { epoch, ms: exact(ms)?, number: exact(number)? })
        };
        parse().ok_or(BadCursorText)
    }
}

/// Parses a number in canonical form: only digits, no leading zero, below [`MAX_EXACT`].
pub(super) fn exact(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|number| plain && *number < MAX_EXACT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, ms: u64, number: u64) -> Cursor {
        Cursor { epoch: NonZeroU64::new(epoch).unwrap(), ms, number }
    }

    #[test]
    fn a_cursor_round_trips_and_other_text_is_refused() {
        let cursor = at(0xabc, 1_795_000_000_123, 17);
        assert_eq!(cursor.to_string(), "0000000000000abc-1795000000123-17");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in [
            "",
            "-",
            "acked",
            "0000000000000abc-1",
            "abc-1-1",
            "0000000000000ABC-1-1",
            "0000000000000000-1-1",
            "0000000000000abc-1-1-1",
            "0000000000000abc-+1-1",
            "0000000000000abc-01-1",
            "0000000000000abc-1-9007199254740992",
            "0000000000000abc-1-99999999999999999999",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(BadCursorText), "{text}");
        }
    }

    #[test]
    fn the_next_event_is_distinguished_from_known_ones_and_from_gaps() {
        let here = at(1, 1_000, 5);
        assert_eq!(here.followed_by(&at(1, 1_000, 6)), Continuity::Next);
        assert_eq!(here.followed_by(&here), Continuity::Known);
        assert_eq!(here.followed_by(&at(1, 900, 4)), Continuity::Known);
        assert_eq!(here.followed_by(&at(1, 1_100, 7)), Continuity::Gap);
        assert_eq!(here.followed_by(&at(1, 1_100, 1)), Continuity::Next, "the old ones have expired");
        assert_eq!(here.followed_by(&at(1, 1_100, 5)), Continuity::Gap, "redis rolled back");
        assert_eq!(here.followed_by(&at(2, 900, 1)), Continuity::Gap, "redis lost the history");
        assert_eq!(here.followed_by(&at(2, 1_100, 6)), Continuity::Gap);
        let nothing = at(1, 1_000, 0);
        assert_eq!(nothing.followed_by(&at(1, 999, 1)), Continuity::Next, "whatever the clock says");
        assert_eq!(nothing.followed_by(&at(2, 1_001, 1)), Continuity::Gap, "events in between are lost");
        assert_eq!(nothing.followed_by(&at(1, 1_001, 2)), Continuity::Gap);
    }

    #[test]
    fn a_client_with_the_newest_event_is_not_behind_in_any_epoch() {
        let here = at(1, 1_000, 5);
        assert!(!here.is_behind(&here) && !here.is_behind(&at(2, 1_000, 5)) && !here.is_behind(&at(2, 9_000, 0)));
        assert!(!here.is_behind(&at(1, 900, 4)));
        assert!(here.is_behind(&at(1, 1_000, 6)) && here.is_behind(&at(1, 1_100, 5)) && here.is_behind(&at(2, 2, 2)));
        assert!(at(1, 1_000, 0).is_behind(&at(1, 1_001, 1)));
    }
}
