//! How an instance tells the fleet whom it holds, and what the fleet answers.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::protocol::UserId;

/// One step of an incarnation's held users, numbered so that it is applied once and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Who holds them.
    pub incarnation: String,
    /// One more than the last applied; the first is 1.
    pub sequence: u64,
    /// Users who are held, and with how many connections: none for one who has just left.
    pub held: Vec<(UserId, u32)>,
    /// Users who are held no more.
    pub released: Vec<UserId>,
    /// How many are held afterwards: anything else means that somebody else wrote to it.
    pub size: usize,
    /// The backplane lost what it knew: nobody was told that these users went, so nobody is told that they came, unless
    /// it has told of their going since.
    pub silent: bool,
}

/// What became of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Written, now or by an earlier try.
    Done,
    /// Nothing can be written under this incarnation any more: take a new one and add everybody again.
    Stale(&'static str),
}

/// What the fleet knows of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserPresence {
    /// Who.
    pub user: String,
    /// Whether in the set.
    pub online: bool,
    /// On all live instances together.
    pub connections: u64,
    /// When last known to be connected, in milliseconds since 1970; now, for one who is online.
    pub last_seen: Option<u64>,
}

/// Some of the users who are online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page {
    /// In no order that means anything.
    pub users: Vec<String>,
    /// Where to go on; `None` after the last page. Who is online all the while is in some page.
    pub next: Option<String>,
}

/// A place between two pages, as it is written for a client: `POSITION` or `POSITION.USER`, the user in hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCursor {
    /// Where Redis goes on.
    pub(super) position: u64,
    /// Everybody up to this user has been given.
    pub(super) after: Option<String>,
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.position)?;
        let Some(after) = &self.after else { return Ok(()) };
        f.write_str(".")?;
        after.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PageCursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (position, after) = text.split_once('.').map_or((text, None), |(position, after)| (position, Some(after)));
        let position = position.parse().map_err(|_| BadCursor)?;
        let after = after.map(from_hex).transpose()?;
        Ok(Self { position, after })
    }
}

/// A text that is no [`PageCursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accepted is a cursor as \"next\" gave it")]
pub struct BadCursor;

fn from_hex(text: &str) -> Result<String, BadCursor> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(BadCursor);
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(BadCursor) };
    for [high, low] in pairs {
        bytes.push(digit(*high)? * 16 + digit(*low)?);
    }
    String::from_utf8(bytes).map_err(|_| BadCursor)
}

/// One live instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveInstance {
    /// Its id.
    pub instance: String,
    /// Users it holds.
    pub users: u64,
    /// How long its lease still runs.
    pub lease_ms: u64,
}

/// What comes before the incarnation's own part in its name.
#[must_use]
pub(super) fn instance_of(incarnation: &str) -> &str {
    incarnation.split_once('-').map_or(incarnation, |(instance, _)| instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_cursor_is_read_as_it_was_written() {
        for after in [None, Some(String::new()), Some("a.b é".to_owned())] {
            let cursor = PageCursor { position: 7, after };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for wrong in ["", "x", "1.0", "1.zz", "-1", "1.ff"] {
            assert_eq!(wrong.parse::<PageCursor>(), Err(BadCursor), "{wrong}");
        }
    }
}
