//! A position in one user's stored history.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Largest number that Lua counts exactly; Redis's scripts compare these.
const MAX_EXACT: u64 = 1 << 53;

/// A position in one user's stored history: behind the notification that it names. Opaque outside, as text
/// `EPOCH-MS-NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Of this user, and of the backplane's memory: another after that has lost something.
    pub epoch: NonZeroU64,
    /// When the notification was stored, in milliseconds since 1970; never less than the one's before it. With number 0:
    /// when nothing was stored yet.
    pub ms: u64,
    /// The first stored notification has 1, each next one more; 0 is before the first.
    pub number: u64,
}

/// How a stored event follows what a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing lies between.
    Next,
    /// The client has it.
    Known,
    /// Something may lie between.
    Gap,
}

impl Cursor {
    /// What a client that is here should do about the event at `event`.
    pub fn followed_by(&self, event: &Self) -> Continuity {
        // In another epoch nobody knows what this one had at its end.
        if event.epoch != self.epoch {
            return Continuity::Gap;
        }
        // Where all have ended a history begins anew, and nothing can be missing before its first.
        if event.number == self.number + 1 || (event.number == 1 && event.ms > self.ms) {
            Continuity::Next
        } else if (event.ms, event.number) <= (self.ms, self.number) {
            Continuity::Known
        } else {
            Continuity::Gap
        }
    }

    /// Whether something is stored that a client here does not have, where the newest stored is at `newest`.
    pub fn is_behind(&self, newest: &Self) -> bool {
        newest.number > 0 && !self.is_same_position(newest) && self.followed_by(newest) != Continuity::Known
    }

    /// The same notification, also under another epoch: a client that has it has lost nothing.
    pub fn is_same_position(&self, other: &Self) -> bool {
        (self.ms, self.number) == (other.ms, other.number)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.epoch, self.ms, self.number)
    }
}

/// A text that no cursor of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is an \"id\" or \"cursor\" that this gateway gave out, unchanged")]
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

/// A number as we write it: digits alone, without a leading zero, and no larger than Lua counts.
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
    fn a_cursor_is_read_as_it_is_written_and_nothing_else_is_one() {
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
    fn what_follows_a_place_is_told_from_what_is_known_and_from_a_gap() {
        let here = at(1, 1_000, 5);
        assert_eq!(here.followed_by(&at(1, 1_000, 6)), Continuity::Next);
        assert_eq!(here.followed_by(&here), Continuity::Known);
        assert_eq!(here.followed_by(&at(1, 900, 4)), Continuity::Known);
        assert_eq!(here.followed_by(&at(1, 1_100, 7)), Continuity::Gap);
        assert_eq!(here.followed_by(&at(1, 1_100, 1)), Continuity::Next, "the old ones have ended");
        assert_eq!(here.followed_by(&at(1, 1_100, 5)), Continuity::Gap, "redis went back");
        assert_eq!(here.followed_by(&at(2, 900, 1)), Continuity::Gap, "redis lost the history");
        assert_eq!(here.followed_by(&at(2, 1_100, 6)), Continuity::Gap);
        let nothing = at(1, 1_000, 0);
        assert_eq!(nothing.followed_by(&at(1, 999, 1)), Continuity::Next, "whatever the clock says");
        assert_eq!(nothing.followed_by(&at(2, 1_001, 1)), Continuity::Gap, "what came in between is lost");
        assert_eq!(nothing.followed_by(&at(1, 1_001, 2)), Continuity::Gap);
    }

    #[test]
    fn who_has_the_newest_is_not_behind_whatever_the_epoch() {
        let here = at(1, 1_000, 5);
        assert!(!here.is_behind(&here) && !here.is_behind(&at(2, 1_000, 5)) && !here.is_behind(&at(2, 9_000, 0)));
        assert!(!here.is_behind(&at(1, 900, 4)));
        assert!(here.is_behind(&at(1, 1_000, 6)) && here.is_behind(&at(1, 1_100, 5)) && here.is_behind(&at(2, 2, 2)));
        assert!(at(1, 1_000, 0).is_behind(&at(1, 1_001, 1)));
    }
}
