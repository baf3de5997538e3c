//! The contract of the presence store, which a Redis and an in-memory implementation keep.
//!
//! An instance holds users under the lease of an incarnation. Batches are applied once and in order; the set of online
//! users, the counts and the presence event change together.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::broadcast;

use super::memory::MemoryPresence;
use super::redis::RedisPresence;
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config;
use crate::protocol::UserId;

/// Presence events that a slow receiver may lag behind before it has to take a new snapshot.
pub(super) const CHANGES_KEPT: usize = 256;

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
pub(super) fn instance_of(incarnation: &str) -> &str {
    incarnation.split_once('-').map_or(incarnation, |(instance, _)| instance)
}

/// The store of this instance's backplane.
#[derive(Debug)]
pub enum PresenceStore {
    /// In this process.
    Memory(MemoryPresence),
    /// In Redis.
    Redis(Box<RedisPresence>),
}

impl PresenceStore {
    /// The store that belongs to this backplane.
    pub fn new(config: &config::Presence, backplane: &Backplane) -> Arc<Self> {
        Arc::new(match backplane {
            Backplane::Memory(_) => Self::Memory(MemoryPresence::new(config.offline_delay)),
            Backplane::Redis(backplane) => {
                Self::Redis(RedisPresence::new(Arc::clone(backplane.redis()), config).into())
            }
        })
    }

    /// Takes a lease for a new incarnation, which holds no user yet. Gives the epoch of the store: another one than
    /// before means that it lost everything. After an error the incarnation must not be used.
    pub async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(String::new()),
            Self::Redis(store) => store.redis.counted(store.register(incarnation).await),
        }
    }

    /// Writes a batch, even an empty one, and renews the lease. After an error it is not known whether it was written:
    /// the same batch must be sent again.
    pub async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.apply(batch);
                Ok(Applied::Done)
            }
            Self::Redis(store) => store.redis.counted(store.apply(batch).await),
        }
    }

    /// Ends an incarnation and takes its users offline, unless another one holds them. After an error the lease expires.
    pub async fn release(&self, incarnation: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(store) => store.redis.counted(store.reap_one(incarnation, true).await).map(drop),
        }
    }

    /// Takes the users of expired incarnations offline; gives how many users it took from them. Any instance may call it
    /// at any time.
    pub async fn reap(&self) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(0),
            Self::Redis(store) => store.redis.counted(store.reap().await),
        }
    }

    /// Compares the presence keys. Where they disagree it repairs them from what incarnations hold, and gives how many
    /// users were wrong.
    pub async fn audit(&self) -> Result<Option<u64>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(None),
            Self::Redis(store) => store.redis.counted(store.audit().await),
        }
    }

    /// The presence of these users, in their order.
    pub async fn of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.presence_of(users)),
            Self::Redis(store) => store.redis.counted(store.presence_of(users).await),
        }
    }

    /// How many users are online.
    pub async fn online_count(&self) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_count()),
            Self::Redis(store) => store.redis.counted(store.online_count().await),
        }
    }

    /// At most `limit` online users; a few more where Redis gives them in one step.
    pub async fn online_page(&self, limit: usize, from: PageCursor) -> Result<Page, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_page(limit, &from)),
            Self::Redis(store) => store.redis.counted(store.online_page(limit, from).await),
        }
    }

    /// Every live instance; none for the in-process backplane.
    pub async fn instances(&self) -> Result<Vec<LiveInstance>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(Vec::new()),
            Self::Redis(store) => store.redis.counted(store.instances().await),
        }
    }

    /// Presence events as JSON; with Redis only where `server.demo` asks for them.
    pub fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        match self {
            Self::Memory(memory) => memory.changes(),
            Self::Redis(store) => store.changes.subscribe(),
        }
    }

    /// Notes an event of the backplane.
    pub fn observe(&self, event: &BackplaneEvent<'_>) {
        if let (Self::Redis(store), BackplaneEvent::Presence { payload }) = (self, event)
            && let Ok(json) = str::from_utf8(payload)
        {
            // Without a receiver there is nothing to do.
            store.changes.send(json.into()).ok();
        }
    }
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
