//! The contract of the presence store, implemented in Redis and in memory.
//!
//! An instance holds users under the lease of an incarnation. Batches are applied once and in order; the set of online
//! users and the counts change, and the presence event is published, atomically.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast;

use super::memory::MemoryPresence;
use super::redis::RedisPresence;
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config;
use crate::protocol::UserId;
use crate::redis::{Feature, Scope};

/// Presence events buffered for a slow receiver; one that lags further needs a new snapshot.
pub(super) const CHANGES_KEPT: usize = 256;

/// The time between two audits of the fleet, whichever instances make them.
pub(super) const AUDIT_EVERY: Duration = Duration::from_secs(5);

/// Changes to the users that an incarnation holds, numbered so that each batch is applied once and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub incarnation: String,
    /// 1 for the first batch, then one more for each.
    pub sequence: u64,
    /// Users with their number of connections: 0 for a user who has just left.
    pub held: Vec<(UserId, u32)>,
    pub released: Vec<UserId>,
    /// The number of held users afterwards: another number means that another program wrote to the key.
    pub size: usize,
    /// The backplane lost its data, without `offline` events for these users: adding them again publishes no `online`,
    /// unless an `offline` has been published since.
    pub silent: bool,
}

/// The outcome of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Written, now or by an earlier attempt.
    Done,
    /// The incarnation is fenced: register a new one and add all users again.
    Stale(&'static str),
}

/// The outcome of one round of reaping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Users removed from dead incarnations.
    pub users: u64,
    /// Until the next round is due; zero if dead incarnations are left.
    pub next_in: Duration,
    /// The fleet has not audited for [`AUDIT_EVERY`].
    pub audit_due: bool,
}

/// The presence of one user across the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserPresence {
    pub user: String,
    pub online: bool,
    /// The sum over all live instances.
    pub connections: u64,
    /// In milliseconds since 1970; the current time if the user is online.
    pub last_seen: Option<u64>,
}

/// A page of online users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page {
    /// In an unspecified order.
    pub users: Vec<String>,
    /// The cursor of the next page; `None` after the last. A user who stays online throughout is on at least one page.
    pub next: Option<String>,
}

/// A position between two pages. As text: `POSITION` or `POSITION.USER`, the user in hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCursor {
    /// The SSCAN cursor.
    pub(super) position: u64,
    /// All users up to this one have been returned.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a cursor returned as \"next\"")]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveInstance {
    pub instance: String,
    pub users: u64,
    /// How long its users stay online if it does not renew its lease.
    pub lease_ms: u64,
}

/// The instance in an incarnation's name, `INSTANCE-RANDOM`.
pub(super) fn instance_of(incarnation: &str) -> &str {
    incarnation.split_once('-').map_or(incarnation, |(instance, _)| instance)
}

#[derive(Debug)]
pub enum PresenceStore {
    Memory(MemoryPresence),
    Redis(Box<RedisPresence>),
}

impl PresenceStore {
    pub fn new(config: &config::Presence, backplane: &Backplane) -> Arc<Self> {
        Arc::new(match backplane {
            Backplane::Memory(_) => Self::Memory(MemoryPresence::new(config.offline_delay)),
            Backplane::Redis(backplane) => {
                Self::Redis(RedisPresence::new(Arc::clone(backplane.redis()), config).into())
            }
        })
    }

    /// Takes a lease for a new incarnation, which holds no user. Returns the store's epoch: a different one than before
    /// means that it lost all data. After an error the incarnation must not be used.
    pub async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(String::new()),
            Self::Redis(store) => {
                store.redis.observed(Feature::Presence, Scope::Whole, store.register(incarnation).await)
            }
        }
    }

    /// Writes a batch, even an empty one, and renews the lease, however late, unless reaping has begun. After an error the outcome is unknown: the same batch must
    /// be sent again.
    pub async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.apply(batch);
                Ok(Applied::Done)
            }
            Self::Redis(store) => store.redis.observed(Feature::Presence, Scope::Whole, store.apply(batch).await),
        }
    }

    /// Ends an incarnation and reaps its users. After an error, other instances reap it a lease later.
    pub async fn release(&self, incarnation: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(store) => store.redis.counted(store.release(incarnation).await),
        }
    }

    /// Looks at the leases, and takes users offline whom only dead incarnations hold: those not renewed for a whole lease
    /// of such looks.
    pub async fn reap(&self) -> Result<Reaped, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(Reaped { next_in: AUDIT_EVERY, ..Reaped::default() }),
            Self::Redis(store) => store.redis.counted(store.reap().await),
        }
    }

    /// Checks the presence keys, unless another instance has since the last look at the leases. If they are inconsistent,
    /// repairs them from the held users, and returns how many users were wrong.
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

    /// Forgets when a user was last seen, unless the user is online.
    pub async fn forget(&self, user: &UserId) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.forget(user);
                Ok(())
            }
            Self::Redis(store) => store.redis.counted(store.forget(user).await),
        }
    }

    pub async fn online_count(&self) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_count()),
            Self::Redis(store) => store.redis.counted(store.online_count().await),
        }
    }

    /// At most `limit` online users, or a few more if Redis returns them in one step.
    pub async fn online_page(&self, limit: usize, from: PageCursor) -> Result<Page, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_page(limit, &from)),
            Self::Redis(store) => store.redis.counted(store.online_page(limit, from).await),
        }
    }

    /// The live instances; empty for the in-process backplane.
    pub async fn instances(&self) -> Result<Vec<LiveInstance>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(Vec::new()),
            Self::Redis(store) => store.redis.counted(store.instances().await),
        }
    }

    /// Presence events as JSON; with Redis, only if `server.demo` is on.
    pub fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        match self {
            Self::Memory(memory) => memory.changes(),
            Self::Redis(store) => store.changes.subscribe(),
        }
    }

    pub fn observe(&self, event: &BackplaneEvent<'_>) {
        if let (Self::Redis(store), BackplaneEvent::Presence { payload }) = (self, event)
            && let Ok(json) = str::from_utf8(payload)
        {
            // Fails only without receivers.
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
