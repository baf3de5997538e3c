//! The contract of the history store. One set of tests checks it for the Redis and the in-memory implementation.
//!
//! The durable and ephemeral notifications of a user are published in one order. A durable notification is stored
//! before it is published, and the positions of a user are consecutive.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::layout::{Bucket, BucketSet, Layout};
use super::memory::MemoryHistory;
use super::redis::RedisHistory;
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{ConnectionId, Cursor, DEFAULT_EVENT, Event, EventName, UserId, wrap};
use crate::redis::{Feature, Scope};
use crate::shutdown::Shutdown;

/// How long an idempotency key is remembered.
pub const KEY_KEPT: Duration = Duration::from_secs(86_400);

pub const MAX_KEY_BYTES: usize = 256;

/// Read positions expire this many `history.ttl` after the last change: the notifications that follow one are stored
/// for up to one `history.ttl` after it, and a client may resume from it until they expire.
pub(super) const POSITIONS_KEPT: u32 = 2;

/// How long a user's place, the position of the newest notification, is kept. However short `history.ttl` is: a client that
/// returns after a weekend or a holiday has missed nothing if nothing was stored.
pub(super) fn places_kept(history_ttl: Duration) -> Duration {
    history_ttl.saturating_mul(8).max(Duration::from_secs(60 * 86_400))
}

/// Read positions of one user, one for each device.
pub const MAX_DEVICES: usize = 16;

pub const MAX_COLLAPSE_BYTES: usize = 128;

/// The longest time after which a notification escalates.
pub const MAX_ESCALATE: Duration = Duration::from_secs(2_592_000);

/// A validated notification to publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct Publication<'a> {
    pub event: &'a str,
    /// JSON.
    pub data: &'a str,
    pub durable: bool,
    /// Its own lifetime; ignored unless shorter than `history.ttl`.
    pub ttl: Option<Duration>,
    /// Idempotency key: published once to a user within `KEY_KEPT`.
    pub key: Option<&'a str>,
    /// Collapse key: retracts the user's earlier notification with this key. Only of a durable one.
    pub collapse: Option<&'a str>,
    /// Told to backends if no device has read it this long after it was stored. Only of a durable one, in Redis.
    pub escalate: Option<Duration>,
    /// A valid `traceparent` (W3C Trace Context).
    pub trace: Option<&'a str>,
}

impl<'a> Publication<'a> {
    /// The message that publishes it as an ephemeral notification.
    pub(super) fn message(&self) -> Cow<'a, str> {
        if self.event == DEFAULT_EVENT && self.trace.is_none() {
            return self.data.into();
        }
        wrap(&self.name(), self.data).into()
    }

    /// The event's name as it is published and stored, with the trace.
    pub(super) fn name(&self) -> String {
        EventName::quote(self.event, self.trace)
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
    pub collapse: Option<String>,
    pub trace: Option<String>,
}

impl Entry {
    /// As it is sent to a client.
    pub fn to_event(&self) -> Event<'_> {
        let (collapse, trace) = (self.collapse.as_deref(), self.trace.as_deref());
        Event { collapse, trace, ..Event::stored(&self.event, &self.data, self.cursor) }
    }
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

/// Of a reading that needs positions only.
pub(super) const NOTHING: PageSize = PageSize { entries: 0, bytes: 0 };

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whether everything after the requested position is still stored, except entries that were retracted or expired by
    /// their own `ttl`. If not, the page is empty.
    pub whole: bool,
    /// The requested position if [`Reading::whole`], otherwise the newest.
    pub from: Cursor,
    /// The position up to which this page reads, including those of entries that were retracted or have expired.
    pub upto: Cursor,
    /// The position of the newest, even if it has expired; its number is 0 if no notification is known.
    pub newest: Cursor,
    pub entries: Vec<Entry>,
    /// The device's read position, if it has one. `None` after a cursor: no client is told it then.
    pub acked: Option<Cursor>,
    pub unread: u64,
}

impl Reading {
    /// Whether this page reaches the newest position.
    pub fn is_complete(&self) -> bool {
        !self.upto.is_behind(&self.newest)
    }
}

impl Reading {
    /// Of a client that begins here, and has nothing to read.
    pub(super) fn beginning(Beginning { newest, unread }: Beginning) -> Self {
        let (from, upto) = (newest, newest);
        Self { whole: true, from, upto, newest, entries: Vec::new(), acked: None, unread }
    }
}

/// Where a client begins that does not resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// The position of the newest, even if it has expired; its number is 0 if no notification is known.
    pub newest: Cursor,
    /// The number of stored notifications after the read position of the client's device.
    pub unread: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPosition {
    /// `None` before the first `ack`.
    pub cursor: Option<Cursor>,
    /// The number of stored notifications after it.
    pub unread: u64,
}

/// A page of a user's stored notifications, newest first: without those that have expired or were retracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestPage {
    pub entries: Vec<Entry>,
    /// The next page is before this position; `None`: there are no older ones.
    pub next: Option<Cursor>,
}

/// A read position to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub user: UserId,
    pub device: String,
    pub cursor: Cursor,
    /// The connection that moves it, which alone is not notified; `None`: over HTTP.
    pub by: Option<ConnectionId>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retracted {
    /// It is not stored, or not any more.
    Gone,
    /// The cursor is of another user or epoch, or ahead of the newest.
    Foreign,
}

#[derive(Debug)]
pub enum HistoryStore {
    Memory(Box<MemoryHistory>),
    Redis(Box<RedisHistory>),
}

impl HistoryStore {
    pub fn new(config: &Config, backplane: &Backplane, metrics: &Arc<Metrics>) -> Arc<Self> {
        let layout = backplane.redis().map_or(Layout::One, |redis| Layout::of(redis));
        Self::with_layout(config, backplane, metrics, layout)
    }

    /// Tests also use the layout of a cluster on a single Redis.
    pub fn with_layout(config: &Config, backplane: &Backplane, metrics: &Arc<Metrics>, layout: Layout) -> Arc<Self> {
        Arc::new(match backplane {
            Backplane::Memory(memory) => {
                let (memory, metrics) = (Arc::clone(memory), Arc::clone(metrics));
                Self::Memory(Box::new(MemoryHistory::new(config.history, memory, metrics)))
            }
            Backplane::Redis(backplane) => {
                let redis = Arc::clone(backplane.redis());
                Self::Redis(Box::new(RedisHistory::new(redis, &config.redis, config.history, layout)))
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
            Self::Redis(store) => {
                let reading = match from {
                    ReadFrom::After(cursor) => store.read_after(user, *cursor, device, page).await,
                    from => store.read(user, from, device, page).await,
                };
                store.redis.observed(Feature::History, Scope::Part, reading)
            }
        }
    }

    /// Reads where a client begins that does not resume: together with others that connect now.
    pub async fn start(&self, user: &UserId, device: &str) -> Result<Beginning, BackplaneError> {
        match self {
            Self::Memory(memory) => {
                let Reading { newest, unread, .. } = memory.read(user, &ReadFrom::Newest, device, NOTHING);
                Ok(Beginning { newest, unread })
            }
            Self::Redis(store) => Ok(store.start(user, device).await?.beginning),
        }
    }

    /// Returns the newest position of each user, in their order; even if it has expired; its number is 0 if
    /// no notification is known.
    pub async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.newest(users)),
            Self::Redis(store) => {
                let newest = store.newest(users).await.and_then(|(newest, failed)| failed.map_or(Ok(newest), Err));
                Ok(store.redis.counted(newest)?.into_iter().flatten().collect())
            }
        }
    }

    /// As [`HistoryStore::newest`]; `None` for a user whose position cannot be read now while that of others can.
    pub async fn newest_each(&self, users: &[UserId]) -> Result<Vec<Option<Cursor>>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.newest(users).into_iter().map(Some).collect()),
            Self::Redis(store) => {
                let (newest, failed) = store.redis.counted(store.newest(users).await)?;
                store.redis.counted(failed.map_or(Ok(()), Err)).ok();
                Ok(newest)
            }
        }
    }

    /// Reads the page of at most `page.entries` notifications before a position, or of the newest; its data and event names
    /// together have at most `page.bytes`, unless it is a single notification. `None`: `before` is of another user, of an
    /// earlier epoch or after the newest.
    pub async fn page(
        &self,
        user: &UserId,
        before: Option<&Cursor>,
        page: PageSize,
    ) -> Result<Option<NewestPage>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.page(user, before, page)),
            Self::Redis(store) => {
                let read = store.page(user, before, page).await;
                store.redis.observed(Feature::History, Scope::Part, read)
            }
        }
    }

    /// Moves read positions, and notifies the users' connections of each move; returns the results in their order.
    /// Idempotent: the call may be repeated after an error.
    pub async fn ack(&self, acks: &[Ack], to: Move) -> Result<Vec<Acked>, BackplaneError> {
        self.ack_each(acks, to).await?.into_iter().collect()
    }

    /// As [`HistoryStore::ack`], but each may fail separately: users need not be on the same server.
    pub async fn ack_each(&self, acks: &[Ack], to: Move) -> Result<Vec<Result<Acked, BackplaneError>>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.ack(acks, to).into_iter().map(Ok).collect()),
            Self::Redis(store) => {
                let mut acked = store.redis.counted(store.ack(acks, to).await)?;
                if let Some(failed) = acked.iter_mut().find(|acked| acked.is_err()) {
                    let error = std::mem::replace(failed, Err(BackplaneError::Ended));
                    *failed = store.redis.counted(error);
                }
                Ok(acked)
            }
        }
    }

    pub async fn set_read_position(
        &self,
        user: &UserId,
        device: &str,
        cursor: Cursor,
    ) -> Result<Acked, BackplaneError> {
        let ack = Ack { user: user.clone(), device: device.to_owned(), cursor, by: None };
        let acked = self.ack(&[ack], Move::Exactly).await?;
        acked.into_iter().next().ok_or_else(|| BackplaneError::unexpected("none"))
    }

    pub async fn read_position(&self, user: &UserId, device: &str) -> Result<ReadPosition, BackplaneError> {
        let reading = self.read(user, &ReadFrom::Newest, device, NOTHING).await?;
        Ok(ReadPosition { cursor: reading.acked, unread: reading.unread })
    }

    /// Takes a notification back: no reading or count has it any more, every cursor stays valid, and nothing counts as missed.
    /// The user's connections are notified.
    pub async fn retract(&self, user: &UserId, cursor: &Cursor) -> Result<Retracted, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.retract(user, cursor)),
            Self::Redis(store) => store.redis.counted(store.retract(user, cursor).await),
        }
    }

    /// Erases a user's notifications, read positions and idempotency keys; earlier cursors are then of another epoch. The
    /// user's connections are notified. Idempotent: the call may be repeated after an error.
    pub async fn erase(&self, user: &UserId) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.erase(user);
                Ok(())
            }
            Self::Redis(store) => store.redis.counted(store.erase(user).await),
        }
    }

    /// Looks for a gap before this event. Call it after the event was routed.
    pub fn observe(&self, event: &BackplaneEvent<'_>) {
        if let Self::Redis(redis) = self {
            redis.gaps.observe(event);
        }
    }

    /// Whether this must not be routed: a server published it that another had replaced.
    pub fn is_outdated(&self, event: &BackplaneEvent<'_>) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis(redis) => redis.gaps.is_outdated(event),
        }
    }

    /// The epoch of each bucket, and its count of stored notifications, at the last check.
    pub fn counted(&self) -> Vec<Option<(String, u64)>> {
        match self {
            Self::Memory(_) => Vec::new(),
            Self::Redis(redis) => redis.gaps.counted(),
        }
    }

    /// The bucket of a user's history: see [`HistoryStore::take_missed`].
    pub fn bucket(&self, user: &UserId) -> Bucket {
        match self {
            Self::Memory(_) => 0,
            Self::Redis(redis) => redis.bucket(user),
        }
    }

    /// The buckets with a possible gap since the last call: clients of their users must be compared with the store.
    pub fn take_missed(&self) -> BucketSet {
        match self {
            Self::Memory(_) => BucketSet::default(),
            Self::Redis(redis) => redis.gaps.take_missed(),
        }
    }

    /// Changes at each possible gap, including each new subscription.
    pub fn missed(&self) -> watch::Receiver<u64> {
        match self {
            // Never has a gap.
            Self::Memory(memory) => memory.backplane.subscriptions(),
            Self::Redis(redis) => redis.gaps.missed(),
        }
    }

    /// Checks the count of the fleet periodically, to detect that even the last notification was missed, and removes the
    /// places of users to whom nothing was stored for a long time.
    pub fn watch_gaps(self: &Arc<Self>, every: Duration, shutdown: &Shutdown) {
        if let Self::Redis(_) = &**self {
            let store = Arc::clone(self);
            shutdown.spawn_until_stop(async move {
                if let Self::Redis(redis) = &*store {
                    redis.watch_gaps(every).await;
                }
            });
        }
    }
}
