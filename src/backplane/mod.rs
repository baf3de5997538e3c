//! What joins instances and backends: Redis, or this process alone.
//!
//! Both keep the same contract, which one set of tests holds against both:
//!
//! * what is published for a user is heard by every subscribed instance, in publishing order, at most once;
//! * hearing never waits for a client: the sink must not block;
//! * presence changes are applied as a batch, and the set and its event change together;
//! * a lost subscription is found and mended by itself, counted as a gap, and [`Backplane::not_ready`] says so.

mod history;
mod lease;
mod memory;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, InstanceId, Revocation, UserId};
use crate::shutdown::Shutdown;
use history::Move;
pub use history::{
    Acked, Entry, KEY_KEPT, MAX_DEVICES, MAX_KEY_BYTES, PageSize, Publication, Published, ReadFrom, ReadPosition,
    Reading,
};
pub use lease::{Applied, BadCursor, Batch, LiveInstance, Page, PageCursor, UserPresence};
pub use memory::Memory;
pub use redis::{Claim, Granted, Malformed, Redis};
#[doc(hidden)]
pub use redis::{count_replies, resp};

/// What a channel's name starts with, before the user's id.
pub const USER_CHANNEL: &str = "user:";

/// What the backplane hands to the router.
#[derive(Debug, Clone, Copy)]
pub enum Heard<'a> {
    /// One published message.
    Message {
        /// The channel's whole name.
        channel: &'a [u8],
        /// What was published.
        payload: &'a [u8],
    },
    /// A message larger than `limits.max_payload_bytes`, which was not kept.
    Oversize {
        /// The channel's whole name; empty where that was not kept either.
        channel: &'a [u8],
    },
    /// A message on the control channel.
    Control {
        /// What was published.
        payload: &'a [u8],
    },
    /// Nothing more is at hand: write what was routed.
    Pause,
}

/// Takes what is heard. Called from one place at a time, and must not block.
pub type Sink = Arc<dyn Fn(Heard<'_>) + Send + Sync>;

/// A string that somebody stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The string.
    pub bytes: Vec<u8>,
    /// Whether the backplane will end it by itself.
    pub expires: bool,
}

/// Why the backplane did not do something.
#[derive(Debug, thiserror::Error)]
pub enum BackplaneError {
    /// Its configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The client library's word.
    #[error("redis: {0}")]
    Redis(#[from] ::redis::RedisError),
    /// Redis answered with an error: its code, and the rest of the line.
    #[error("redis: {code} {message}")]
    Refused {
        /// Such as `NOAUTH`.
        code: String,
        /// For the operator.
        message: String,
    },
    /// The connection could not be made, or broke.
    #[error("redis: {0}")]
    Io(#[from] std::io::Error),
    /// Redis closed the connection.
    #[error("redis: the connection ended")]
    Ended,
    /// Nothing came on a subscription for so long that it must be dead.
    #[error("redis: nothing heard for {0:?}")]
    Silent(Duration),
    /// It could not be reached a moment ago, and is left alone for another.
    #[error("{why}")]
    Unreachable {
        /// Of the failure back then.
        kind: &'static str,
        /// Its words.
        why: String,
    },
    /// What came is not what Redis sends.
    #[error("redis: {0}")]
    Malformed(#[from] Malformed),
    /// No answer in time.
    #[error("redis: no answer within {0:?}")]
    Timeout(Duration),
    /// A script answered something that it never should.
    #[error("redis: unexpected answer {0}")]
    Answer(String),
}

/// Codes of Redis's errors that an operator may want to tell apart.
const KNOWN_CODES: [&str; 10] =
    ["LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED", "WRONGPASS"];

/// How Redis 7.0 begins when a script does what its user may not.
const SCRIPT_RIGHTS: &str = "The user executing the script can't ";

impl BackplaneError {
    /// From the line of an error reply.
    fn refused(line: &str) -> Self {
        let (code, message) = line.split_once(' ').unwrap_or((line, ""));
        Self::Refused { code: code.to_owned(), message: message.to_owned() }
    }

    /// Whether Redis answered, but would not.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let kind = self.kind();
        kind == "refused" || KNOWN_CODES.contains(&kind)
    }

    /// The label in metrics and logs: an error code of Redis as it is written, or a word of ours.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        let known = |code: &str| KNOWN_CODES.into_iter().find(|known| *known == code).unwrap_or("refused");
        match self {
            Self::Config(_) => "config",
            Self::Timeout(_) => "timeout",
            Self::Silent(_) => "silent",
            Self::Answer(_) | Self::Malformed(_) => "malformed",
            Self::Io(_) | Self::Ended => "connection",
            Self::Unreachable { kind, .. } => kind,
            Self::Redis(error) if error.is_timeout() => "timeout",
            Self::Redis(error) if error.is_io_error() || error.is_connection_dropped() => "connection",
            // The library does not keep the code of what answers AUTH, and Redis 7.0 gives a script's missing rights none.
            Self::Redis(error) if error.kind() == ::redis::ErrorKind::AuthenticationFailed => "WRONGPASS",
            Self::Redis(error) if error.detail().is_some_and(|detail| detail.starts_with(SCRIPT_RIGHTS)) => "NOPERM",
            Self::Redis(error) => error.code().map_or("refused", known),
            Self::Refused { code, .. } => known(code),
        }
    }
}

/// The two kinds.
#[derive(Debug)]
pub enum Backplane {
    /// This process alone.
    Memory(Box<Memory>),
    /// A Redis server that every instance and backend shares.
    Redis(Arc<Redis>),
}

impl Backplane {
    /// The configured one; nothing is connected yet.
    ///
    /// # Errors
    /// [`BackplaneError::Config`] where the Redis URL or its certificate cannot be used.
    pub fn new(config: &Config, instance: &InstanceId, metrics: &Arc<Metrics>) -> Result<Self, BackplaneError> {
        match &config.redis.url {
            None => {
                metrics.backplane_up.set(1);
                Ok(Self::Memory(Memory::new(config, Arc::clone(metrics)).into()))
            }
            Some(url) => Redis::new(config, url, instance, Arc::clone(metrics)).map(|redis| Self::Redis(redis.into())),
        }
    }

    /// What counts for all instances together; the in-process backplane has only the one.
    #[must_use]
    pub fn fleet(&self) -> Option<Arc<Redis>> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => Some(Arc::clone(redis)),
        }
    }

    /// Starts hearing, for as long as the instance runs.
    pub fn subscribe(&self, sink: Sink, shutdown: &Shutdown) {
        match self {
            Self::Memory(memory) => memory.subscribe(sink),
            Self::Redis(redis) => redis.subscribe(sink, shutdown),
        }
    }

    /// Stores and publishes what backends add to the outbox, whenever no other instance does. In memory there is none.
    pub fn relay_outbox(&self, shutdown: &Shutdown) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.relay_outbox(shutdown),
        }
    }

    /// Publishes to each of these users; gives what became of it, in their order. What is durable is stored first, and
    /// has one order with everything else that is published to the user.
    pub async fn publish(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        match self {
            Self::Memory(memory) => {
                let mut published = Vec::with_capacity(users.len());
                for user in users {
                    published.push(memory.publish(user, publication));
                    // Many of them must not keep this thread from everybody else.
                    tokio::task::consume_budget().await;
                }
                published
            }
            Self::Redis(redis) => redis.publish_to_many(users, publication).await,
        }
    }

    /// Reads a user's stored notifications, and how many of them the device has not read.
    ///
    /// # Errors
    /// [`BackplaneError`] where they cannot be read now.
    pub async fn read_history(
        &self,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.read_history(user, from, device, page)),
            Self::Redis(redis) => redis.read_history(user, from, device, page).await,
        }
    }

    /// Where each user's newest stored notification is, in their order; with number 0 where nothing is stored.
    ///
    /// # Errors
    /// [`BackplaneError`] where they cannot be read now.
    pub async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.newest(users)),
            Self::Redis(redis) => redis.newest(users).await,
        }
    }

    /// Moves read positions forward, each of a user's device, to where all is read; gives what became of each, in their
    /// order.
    ///
    /// # Errors
    /// [`BackplaneError`] where not all are known to be kept; they may be given again.
    pub async fn ack(&self, acks: &[(UserId, String, Cursor)]) -> Result<Vec<Acked>, BackplaneError> {
        self.move_positions(acks, Move::Forward).await
    }

    /// Puts a device's read position exactly where it is told, also back.
    ///
    /// # Errors
    /// [`BackplaneError`] where it is not known to be kept.
    pub async fn set_read_position(
        &self,
        user: &UserId,
        device: &str,
        cursor: Cursor,
    ) -> Result<Acked, BackplaneError> {
        let one = [(user.clone(), device.to_owned(), cursor)];
        let acked = self.move_positions(&one, Move::Exactly).await?;
        acked.into_iter().next().ok_or_else(|| BackplaneError::Answer("none".into()))
    }

    async fn move_positions(
        &self,
        positions: &[(UserId, String, Cursor)],
        how: Move,
    ) -> Result<Vec<Acked>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.ack(positions, how)),
            Self::Redis(redis) => redis.ack(positions, how).await,
        }
    }

    /// Where a device of a user has read up to, and how much it has not.
    ///
    /// # Errors
    /// [`BackplaneError`] where it cannot be read now.
    pub async fn read_position(&self, user: &UserId, device: &str) -> Result<ReadPosition, BackplaneError> {
        let nothing = PageSize { entries: 0, bytes: 0 };
        let reading = self.read_history(user, &ReadFrom::Newest, device, nothing).await?;
        Ok(ReadPosition { cursor: reading.acked, unread: reading.unread })
    }

    /// Publishes a command to every instance.
    ///
    /// # Errors
    /// [`BackplaneError`] where it is not known to have been done.
    pub async fn publish_command(&self, json: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.publish_command(json);
                Ok(())
            }
            Self::Redis(redis) => redis.publish_command(json).await,
        }
    }

    /// How many subscriptions there have been: with each new one, commands may have been missed.
    #[must_use]
    pub fn subscriptions(&self) -> watch::Receiver<u64> {
        match self {
            Self::Memory(memory) => memory.subscriptions(),
            Self::Redis(redis) => redis.subscriptions(),
        }
    }

    /// Changes whenever a stored notification may not have been heard: then what clients have must be compared with what
    /// is stored. It does with each new subscription.
    #[must_use]
    pub fn missed(&self) -> watch::Receiver<u64> {
        match self {
            // Nothing is ever missed.
            Self::Memory(memory) => memory.subscriptions(),
            Self::Redis(redis) => redis.missed(),
        }
    }

    /// Keeps revocations for instances that start later, `most` of them, and drops those that ended more than a day ago;
    /// gives how many found no room. In memory there are no others, and nothing is kept.
    ///
    /// # Errors
    /// [`BackplaneError`]; they may be given again.
    pub async fn keep_revoked(&self, revocations: &[Revocation], most: usize) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(0),
            Self::Redis(redis) => redis.keep_revoked(revocations, most).await,
        }
    }

    /// How many revocations are kept that had not ended at `oldest`.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn count_revoked(&self, oldest: u64) -> Result<usize, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(0),
            Self::Redis(redis) => redis.count_revoked(oldest).await,
        }
    }

    /// Some of the kept revocations, from a place on; none at the end.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn revoked_page(&self, from: usize) -> Result<Vec<Revocation>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(Vec::new()),
            Self::Redis(redis) => redis.revoked_page(from).await,
        }
    }

    /// The strings at these keys, in the order asked, of each at most one byte more than `most`. In memory there are none.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer for all of them.
    pub async fn read(&self, keys: &[String], most: usize) -> Result<Vec<Option<Stored>>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(vec![None; keys.len()]),
            Self::Redis(redis) => redis.read(keys, most).await,
        }
    }

    /// Why this instance would not hear everything now; `None` while it would.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => redis.not_ready(),
        }
    }

    /// `memory` or `redis`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }

    /// Takes a lease for a fresh incarnation, which holds nobody yet. Gives the name of the backplane's memory: another
    /// one than before means that it has forgotten everything.
    ///
    /// # Errors
    /// [`BackplaneError`]; the incarnation must then not be used.
    pub async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(String::new()),
            Self::Redis(redis) => redis.register(incarnation).await,
        }
    }

    /// Writes a batch of presence changes, an empty one too, and renews the lease.
    ///
    /// # Errors
    /// [`BackplaneError`] where it is not known whether it was written: the same batch must be sent again.
    pub async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        match self {
            Self::Memory(memory) => {
                memory.apply(batch);
                Ok(Applied::Done)
            }
            Self::Redis(redis) => redis.apply(batch).await,
        }
    }

    /// Ends an incarnation and takes its users offline, unless another holds them.
    ///
    /// # Errors
    /// [`BackplaneError`]; the lease then ends by itself.
    pub async fn release(&self, incarnation: &str) -> Result<(), BackplaneError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(redis) => redis.release(incarnation).await,
        }
    }

    /// Takes the users of incarnations whose lease has ended offline; gives how many it took from them.
    ///
    /// # Errors
    /// [`BackplaneError`]; any instance may go on with it later.
    pub async fn reap(&self) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(0),
            Self::Redis(redis) => redis.reap().await,
        }
    }

    /// Compares the presence keys, and where they do not agree puts them right from what instances hold; gives how many
    /// users were wrong then.
    ///
    /// # Errors
    /// [`BackplaneError`]; any instance may go on with it later.
    pub async fn audit(&self) -> Result<Option<u64>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(None),
            Self::Redis(redis) => redis.audit().await,
        }
    }

    /// What the fleet knows of these users, in the order asked.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.presence_of(users)),
            Self::Redis(redis) => redis.presence_of(users).await,
        }
    }

    /// How many users are online.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn online_count(&self) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_count()),
            Self::Redis(redis) => redis.online_count().await,
        }
    }

    /// At most `limit` of the users who are online.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn online_page(&self, limit: usize, from: PageCursor) -> Result<Page, BackplaneError> {
        match self {
            Self::Memory(memory) => Ok(memory.online_page(limit, &from)),
            Self::Redis(redis) => redis.online_page(limit, from).await,
        }
    }

    /// Every live instance that others know of; the in-process backplane has none.
    ///
    /// # Errors
    /// [`BackplaneError`] where Redis did not answer.
    pub async fn instances(&self) -> Result<Vec<LiveInstance>, BackplaneError> {
        match self {
            Self::Memory(_) => Ok(Vec::new()),
            Self::Redis(redis) => redis.instances().await,
        }
    }

    /// Presence changes as they are published, as JSON; with Redis only where `server.demo` asks for them.
    #[must_use]
    pub fn presence_events(&self) -> broadcast::Receiver<Arc<str>> {
        match self {
            Self::Memory(memory) => memory.presence_events(),
            Self::Redis(redis) => redis.presence_events(),
        }
    }
}
