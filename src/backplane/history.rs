//! What is published and what is read of users' stored notifications, in words that both backplanes share.

use std::borrow::Cow;
use std::time::Duration;

use crate::protocol::{Cursor, DEFAULT_EVENT, stamp};

/// How long it is remembered that a key was published to a user.
pub const KEY_KEPT: Duration = Duration::from_secs(86_400);

/// Most bytes of such a key.
pub const MAX_KEY_BYTES: usize = 256;

/// How many times as long as notifications read positions are kept after one was given: what lies behind one can be
/// stored for almost as long as it is after that, and whoever resumes from it has missed nothing.
pub(super) const POSITIONS_KEPT: u32 = 2;

/// Read positions of one user, by device: more are refused.
pub const MAX_DEVICES: usize = 16;

/// One notification to publish. Whoever makes it has checked all of it.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The event's name.
    pub event: &'a str,
    /// JSON.
    pub data: &'a str,
    /// Whether it is stored.
    pub durable: bool,
    /// When it ends before `history.ttl` does.
    pub ttl: Option<Duration>,
    /// What is published once to a user in [`KEY_KEPT`].
    pub key: Option<&'a str>,
}

impl<'a> Publication<'a> {
    /// What is published on the user's channel, where it is not stored.
    pub(super) fn message(&self) -> Cow<'a, str> {
        if self.event == DEFAULT_EVENT { self.data.into() } else { stamp(self.event, self.data).into() }
    }
}

/// What became of one publication for one user: its place, which one that is not stored does not have; or the kind of
/// the backplane's error (see [`super::BackplaneError::kind`]).
pub type Published = Result<Option<Cursor>, &'static str>;

/// One stored notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub cursor: Cursor,
    /// The event's name.
    pub event: String,
    /// JSON, byte for byte as it was published.
    pub data: String,
}

/// Where to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// Behind the newest: nothing is read, but where that is.
    Newest,
    /// The oldest that is still stored.
    Oldest,
    /// Behind this place.
    After(Cursor),
    /// Behind the read position of this device; where it has none, before the first that was ever stored.
    Acked(String),
    /// What was stored in this last while.
    Since(Duration),
}

/// How much to read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Most entries.
    pub entries: usize,
    /// When their data has so many bytes, no other is added.
    pub bytes: usize,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whether everything behind the asked-for place that has not ended by its own `ttl` is stored. If not, nothing is
    /// read.
    pub whole: bool,
    /// The place asked for, where it is [`Reading::whole`]; else the newest.
    pub from: Cursor,
    /// The place up to which was read: one that has ended moves it, too.
    pub upto: Cursor,
    /// The place of the newest.
    pub newest: Cursor,
    /// In order.
    pub entries: Vec<Entry>,
    /// The device's read position, where it has one.
    pub acked: Option<Cursor>,
    /// How many lie behind it.
    pub unread: u64,
}

impl Reading {
    /// Whether nothing newer was stored at the time.
    #[must_use]
    pub fn is_level(&self) -> bool {
        !self.upto.is_behind(&self.newest)
    }
}

/// A device's read position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPosition {
    /// None yet.
    pub cursor: Option<Cursor>,
    /// How many notifications lie behind it.
    pub unread: u64,
}

/// How a read position may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Never back.
    Forward,
    /// To where it was told, also back.
    Exactly,
}

/// What became of a read position that somebody gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// It is there, or further.
    Kept,
    /// The cursor is none of this user's, or of another epoch, or ahead of what is stored.
    Foreign,
    /// The user has [`MAX_DEVICES`] others.
    TooManyDevices,
}
