//! The contract of the history store, which a Redis and an in-memory implementation keep; one set of tests holds both to
//! it.
//!
//! Publishing to a user has one order, durable notifications and ephemeral ones together. A durable notification is
//! stored first; the positions of a user have no gap.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::gap::Gaps;
use super::memory::MemoryHistory;
use super::redis::RedisHistory;
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, DEFAULT_EVENT, UserId, wrap};
use crate::shutdown::Shutdown;

/// How long an idempotency key is remembered.
pub const KEY_KEPT: Duration = Duration::from_secs(86_400);

/// Most bytes of such a key.
pub const MAX_KEY_BYTES: usize = 256;

/// For how many `history.ttl` read positions are kept after the last change: a notification behind one can be stored for
/// almost one `history.ttl` after that, and a client that resumes from it has missed nothing.
pub(super) const POSITIONS_KEPT: u32 = 2;

/// Most read positions of one user, one for each device.
pub const MAX_DEVICES: usize = 16;

/// One notification to publish, already validated.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The event's name.
    pub event: &'a str,
    /// JSON.
    pub data: &'a str,
    /// Whether it is stored.
    pub durable: bool,
    /// Its own lifetime, if it is shorter than `history.ttl`.
    pub ttl: Option<Duration>,
    /// Idempotency key: published once to a user within [`KEY_KEPT`].
    pub key: Option<&'a str>,
}

impl<'a> Publication<'a> {
    /// The message on the user's channel of an ephemeral notification.
    pub(super) fn message(&self) -> Cow<'a, str> {
        if self.event == DEFAULT_EVENT { self.data.into() } else { wrap(self.event, self.data).into() }
    }
}

/// The result of one publication for one user: the cursor of a durable notification, or the kind of the error (see
/// [`BackplaneError::kind`]).
pub type Published = Result<Option<Cursor>, &'static str>;

/// One stored notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub cursor: Cursor,
    /// The event's name.
    pub event: String,
    /// JSON, byte for byte as it was published.
    pub data: String,
}

/// Where to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// After the newest: reads no entries, only the position.
    Newest,
    /// The oldest that is still stored.
    Oldest,
    /// After this position.
    After(Cursor),
    /// After the read position of this device; without one, before the first that was ever stored.
    Acked(String),
    /// Entries stored in this last while.
    Since(Duration),
}

/// Limits of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Most entries.
    pub entries: usize,
    /// No entry is added once their data has this many bytes.
    pub bytes: usize,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whether everything after the requested position is still stored, entries expired by their own `ttl` aside. If not,
    /// nothing is read.
    pub whole: bool,
    /// The requested position if [`Reading::whole`], otherwise the newest.
    pub from: Cursor,
    /// The position up to which this page reads, expired entries included.
    pub upto: Cursor,
    /// The newest position.
    pub newest: Cursor,
    /// In order.
    pub entries: Vec<Entry>,
    /// The device's read position, if it has one.
    pub acked: Option<Cursor>,
    /// How many entries follow it.
    pub unread: u64,
}

impl Reading {
    /// Whether this page reaches the newest position.
    pub fn is_complete(&self) -> bool {
        !self.upto.is_behind(&self.newest)
    }
}

/// A device's read position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPosition {
    /// None before the first `ack`.
    pub cursor: Option<Cursor>,
    /// How many notifications follow it.
    pub unread: u64,
}

/// Where a read position may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Never back.
    Forward,
    /// Also back.
    Exactly,
}

/// The result of moving a read position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// It is at the given position, or after it.
    Kept,
    /// The cursor is of another user or epoch, or ahead of the newest.
    Foreign,
    /// The user has [`MAX_DEVICES`] others.
    TooManyDevices,
}

/// The store of this instance's backplane.
#[derive(Debug)]
pub enum HistoryStore {
    /// In this process.
    Memory(MemoryHistory),
    /// In Redis.
    Redis(RedisHistory),
}

impl HistoryStore {
    /// The store that belongs to this backplane.
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

    /// Publishes to each of these users; gives the results in their order.
    pub async fn publish(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        match self {
            Self::Memory(memory) => {
                let mut published = Vec::with_capacity(users.len());
                for user in users {
                    published.push(memory.publish(user, publication));
                    // Many users must not keep this thread from all other tasks.
                    tokio::task::consume_budget().await;
                }
                published
            }
            Self::Redis(redis) => redis.publish(users, publication).await,
        }
    }

    /// Reads a page of a user's stored notifications, and how many of them the device has not read.
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

    /// The newest position of each user, in their order; number 0 where nothing is stored.
    pub async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.newest(users)),
            Self::Redis(store) => store.redis.counted(store.newest(users).await),
        }
    }

    /// Moves read positions of users' devices; gives the results in their order. After an error the same call may be
    /// repeated.
    pub async fn ack(&self, acks: &[(UserId, String, Cursor)], to: Move) -> Result<Vec<Acked>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.ack(acks, to)),
            Self::Redis(store) => store.redis.counted(store.ack(acks, to).await),
        }
    }

    /// Sets a device's read position to exactly this cursor.
    pub async fn set_read_position(
        &self,
        user: &UserId,
        device: &str,
        cursor: Cursor,
    ) -> Result<Acked, BackplaneError> {
        let acked = self.ack(&[(user.clone(), device.to_owned(), cursor)], Move::Exactly).await?;
        acked.into_iter().next().ok_or_else(|| BackplaneError::unexpected("none"))
    }

    /// A device's read position and unread count.
    pub async fn read_position(&self, user: &UserId, device: &str) -> Result<ReadPosition, BackplaneError> {
        let nothing = PageSize { entries: 0, bytes: 0 };
        let reading = self.read(user, &ReadFrom::Newest, device, nothing).await?;
        Ok(ReadPosition { cursor: reading.acked, unread: reading.unread })
    }

    /// Notes an event of the backplane, after it was routed: a stored notification before it may have been missed.
    pub fn observe(&self, event: &BackplaneEvent<'_>) {
        if let Self::Redis(redis) = self {
            redis.gaps().observe(event);
        }
    }

    /// Changes whenever a stored notification may have been missed: the positions of clients must then be compared with
    /// the store. It changes with each new subscription.
    pub fn missed(&self) -> watch::Receiver<u64> {
        match self {
            // Nothing is ever missed.
            Self::Memory(_) => watch::Sender::default().subscribe(),
            Self::Redis(redis) => redis.gaps().missed(),
        }
    }

    /// Checks the count of the fleet again and again, so that a missed last notification is found, too.
    pub fn watch_gaps(self: &Arc<Self>, every: Duration, subscriptions: watch::Receiver<u64>, shutdown: &Shutdown) {
        if let Self::Redis(_) = &**self {
            let store = Arc::clone(self);
            shutdown.spawn_until_stop(async move {
                if let Self::Redis(redis) = &*store {
                    Gaps::watch(redis, every, subscriptions).await;
                }
            });
        }
    }
}
