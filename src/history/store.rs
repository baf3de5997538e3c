//! The contract of the history store. One set of tests checks it for the Redis and the in-memory implementation.
//!
//! The durable and ephemeral notifications of a user are published in one order. A durable notification is stored
//! before it is published, and the positions of a user are consecutive.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::memory::MemoryHistory;
use super::redis::RedisHistory;
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, DEFAULT_EVENT, UserId, wrap};
use crate::shutdown::Shutdown;

/// How long an idempotency key is remembered.
pub const KEY_KEPT: Duration = Duration::from_secs(86_400);

pub const MAX_KEY_BYTES: usize = 256;

/// Read positions expire this many `history.ttl` after the last change: the notifications that follow one are stored
/// for up to one `history.ttl` after it, and a client may resume from it until they expire.
pub(super) const POSITIONS_KEPT: u32 = 2;

/// Read positions of one user, one for each device.
pub const MAX_DEVICES: usize = 16;

/// A validated notification to publish.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    pub event: &'a str,
    /// JSON.
    pub data: &'a str,
    pub durable: bool,
    /// Its own lifetime; ignored unless shorter than `history.ttl`.
    pub ttl: Option<Duration>,
    /// Idempotency key: published once to a user within `KEY_KEPT`.
    pub key: Option<&'a str>,
}

impl<'a> Publication<'a> {
    /// The message that publishes it as an ephemeral notification.
    pub(super) fn message(&self) -> Cow<'a, str> {
        if self.event == DEFAULT_EVENT { self.data.into() } else { wrap(self.event, self.data).into() }
    }
}

/// The result of one publication for one user: the cursor of a durable notification, or the kind of the error (see
/// [`BackplaneError::kind`]).
pub type Published = Result<Option<Cursor>, &'static str>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub cursor: Cursor,
    pub event: String,
    /// JSON, byte for byte as published.
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// After the newest: reads only the position.
    Newest,
    /// From the oldest that is still stored.
    Oldest,
    After(Cursor),
    /// After the read position of this device; without one, from the first notification ever stored.
    Acked(String),
    /// Entries stored within this duration before now.
    Since(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    pub entries: usize,
    /// No entry is added once their data has this many bytes.
    pub bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whether everything after the requested position is still stored, except entries that expired by their own `ttl`.
    /// If not, the page is empty.
    pub whole: bool,
    /// The requested position if [`Reading::whole`], otherwise the newest.
    pub from: Cursor,
    /// The position up to which this page reads, expired entries included.
    pub upto: Cursor,
    pub newest: Cursor,
    pub entries: Vec<Entry>,
    /// The device's read position, if it has one.
    pub acked: Option<Cursor>,
    pub unread: u64,
}

impl Reading {
    /// Whether this page reaches the newest position.
    pub fn is_complete(&self) -> bool {
        !self.upto.is_behind(&self.newest)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPosition {
    /// `None` before the first `ack`.
    pub cursor: Option<Cursor>,
    /// The number of notifications after it.
    pub unread: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Never backwards.
    Forward,
    /// Also backwards.
    Exactly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// The read position is at the given cursor or after it.
    Kept,
    /// The cursor is of another user or epoch, or ahead of the newest.
    Foreign,
    /// The user has [`MAX_DEVICES`] other devices.
    TooManyDevices,
}

#[derive(Debug)]
pub enum HistoryStore {
    Memory(MemoryHistory),
    Redis(RedisHistory),
}

impl HistoryStore {
    pub fn new(config: &Config, backplane: &Backplane, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(match backplane {
            Backplane::Memory(memory) => {
                Self::Memory(MemoryHistory::new(config.history, Arc::clone(memory), Arc::clone(metrics)))
            }
            Backplane::Redis(backplane) => {
                Self::Redis(RedisHistory::new(Arc::clone(backplane.redis()), &config.redis.prefix, config.history))
            }
        })
    }

    /// Publishes to each of these users; returns the results in their order.
    pub async fn publish(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        match self {
            Self::Memory(memory) => {
                let mut published = Vec::with_capacity(users.len());
                for user in users {
                    published.push(memory.publish(user, publication));
                    // Many users must not starve the other tasks of this thread.
                    tokio::task::consume_budget().await;
                }
                published
            }
            Self::Redis(redis) => redis.publish(users, publication).await,
        }
    }

    /// Reads a page of a user's stored notifications, and the read position and unread count of `device`.
    pub async fn read(
        &self,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.read(user, from, device, page)),
            Self::Redis(store) => store.redis.counted(store.read(user, from, device, page).await),
        }
    }

    /// Returns the newest position of each user, in their order; its number is 0 if no notification is stored.
    pub async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.newest(users)),
            Self::Redis(store) => store.redis.counted(store.newest(users).await),
        }
    }

    /// Moves read positions; returns the results in their order. Idempotent: the call may be repeated after an error.
    pub async fn ack(&self, acks: &[(UserId, String, Cursor)], to: Move) -> Result<Vec<Acked>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.ack(acks, to)),
            Self::Redis(store) => store.redis.counted(store.ack(acks, to).await),
        }
    }

    pub async fn set_read_position(
        &self,
        user: &UserId,
        device: &str,
        cursor: Cursor,
    ) -> Result<Acked, BackplaneError> {
        let acked = self.ack(&[(user.clone(), device.to_owned(), cursor)], Move::Exactly).await?;
        acked.into_iter().next().ok_or_else(|| BackplaneError::unexpected("none"))
    }

    pub async fn read_position(&self, user: &UserId, device: &str) -> Result<ReadPosition, BackplaneError> {
        let nothing = PageSize { entries: 0, bytes: 0 };
        let reading = self.read(user, &ReadFrom::Newest, device, nothing).await?;
        Ok(ReadPosition { cursor: reading.acked, unread: reading.unread })
    }

    /// Looks for a gap before this event. Call it after the event was routed.
    pub fn observe(&self, event: &BackplaneEvent<'_>) {
        if let Self::Redis(redis) = self {
            redis.gaps().observe(event);
        }
    }

    /// Changes at each possible gap, including each new subscription: clients must then be compared with the store.
    pub fn missed(&self) -> watch::Receiver<u64> {
        match self {
            // Never has a gap.
            Self::Memory(memory) => memory.backplane.subscriptions(),
            Self::Redis(redis) => redis.gaps().missed(),
        }
    }

    /// Checks the count of the fleet periodically, to detect that even the last notification was missed.
    pub fn watch_gaps(self: &Arc<Self>, every: Duration, subscriptions: watch::Receiver<u64>, shutdown: &Shutdown) {
        if let Self::Redis(_) = &**self {
            let store = Arc::clone(self);
            shutdown.spawn_until_stop(async move {
                if let Self::Redis(redis) = &*store {
                    redis.watch_gaps(every, subscriptions).await;
                }
            });
        }
    }
}
