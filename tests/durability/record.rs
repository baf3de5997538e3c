//! The record of a run: what was published, what is stored, and what each client received.

use std::fmt;

use tidings::internals::Cursor;

/// How a backend published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `XADD tidings:outbox`
    Outbox,
    /// `POST /v1/users/{id}/notifications`
    One,
    /// `POST /v1/notifications`
    Batch,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Outbox, Self::One, Self::Batch];

    pub fn name(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::One => "one",
            Self::Batch => "batch",
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
    pub published: Vec<Publication>,
    /// Everything that was ever stored, in order. Where Redis lost everything the epoch changes.
    pub stored: Vec<Notification>,
    /// What is stored at the end, as XRANGE gives it, and as HTTP does.
    pub kept: Vec<Notification>,
    pub listed: Vec<Notification>,
    pub clients: Vec<Vec<Entry>>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |cursor: &Option<Cursor>| cursor.map_or_else(|| "none".to_owned(), |cursor| cursor.to_string());
        match self {
            Self::Welcome { instance, asked, recovered, cursor } => write!(
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
