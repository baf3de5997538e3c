//! The record of a run: what was published, what is stored, and what each client received.

use std::fmt;

use tidings::internals::Cursor;

use super::taking_back::Changes;

/// How a backend published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `XADD tidings:outbox`
    Outbox,
    /// `POST /v1/users/{id}/notifications`
    One,
    /// `POST /v1/notifications`
    Batch,
    /// By the scripts directly, at a server that took over before any instance was connected to it.
    Fork,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Outbox, Self::One, Self::Batch, Self::Fork];
    /// Those of backends.
    pub const BACKENDS: [Self; 3] = [Self::Outbox, Self::One, Self::Batch];

    pub fn name(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::One => "one",
            Self::Batch => "batch",
            Self::Fork => "fork",
        }
    }
}

/// A publication to one user that was confirmed.
#[derive(Debug, Clone)]
pub struct Publication {
    pub way: Way,
    /// Of this user and way: 0, 1, 2, …
    pub number: u64,
    /// Where the answer told it.
    pub id: Option<Cursor>,
    /// Whether it is handed over unless a device reads it.
    pub escalates: bool,
}

/// What a backend did, in milliseconds since the run began: not before it asked for it, and all of it once it was done.
#[derive(Debug, Clone)]
pub struct Done<T> {
    pub what: T,
    pub asked: u64,
    pub done: u64,
}

/// A notification as it is stored, and as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub id: Cursor,
    pub ts: u64,
    pub event: String,
    /// Byte for byte.
    pub data: String,
}

/// What a client saw.
#[derive(Debug, Clone)]
pub enum Seen {
    Welcome {
        instance: String,
        /// When it began to connect, in milliseconds since the run began.
        begun: u64,
        /// The `resume` that it asked for.
        asked: Option<Cursor>,
        recovered: bool,
        cursor: Option<Cursor>,
    },
    Event(Notification),
    /// What is published last, to everybody.
    Marker,
    /// The connection ended, or was not had: by the client itself, or with this code.
    End(Option<u16>),
}

#[derive(Debug, Clone)]
pub struct Entry {
    /// Milliseconds since the run began.
    pub at: u64,
    pub seen: Seen,
}

/// One user, and all that concerns them.
#[derive(Debug, Default)]
pub struct User {
    pub name: String,
    /// When the run began, in milliseconds since 1970.
    pub begun_ms: u64,
    pub published: Vec<Publication>,
    pub changes: Changes,
    /// Everything that was ever stored, in order. Where Redis lost everything the epoch changes.
    pub stored: Vec<Notification>,
    /// Each time at which Redis evicted everything stored so far, and how many those were.
    pub evicted: Vec<(u64, usize)>,
    /// What is stored at the end, of the time since another server took over, as XRANGE gives it, and as HTTP does.
    pub kept: Vec<Notification>,
    pub listed: Vec<Notification>,
    /// What is counted as unread at the end, for a device that has read nothing.
    pub unread: Option<u64>,
    /// What was handed over as unread.
    pub handed_over: Vec<Cursor>,
    pub clients: Vec<Vec<Entry>>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |cursor: &Option<Cursor>| cursor.map_or_else(|| "none".to_owned(), |cursor| cursor.to_string());
        match self {
            Self::Welcome { instance, asked, recovered, cursor, .. } => write!(
                f,
                "welcome of {instance}: resume {}, recovered {recovered}, cursor {}",
                or_none(asked),
                or_none(cursor)
            ),
            Self::Event(event) => write!(f, "event {} {} {}", event.id, event.event, event.data),
            Self::Marker => f.write_str("the marker of the end"),
            Self::End(None) => f.write_str("left"),
            Self::End(Some(code)) => write!(f, "was sent away with {code}"),
        }
    }
}
