//! Where clients begin: those that connect within a moment are read in one call of a script.
//!
//! The first client of a batch reads for all of it. If that one leaves, the others form another batch. A client that comes
//! alone does not wait, and none waits for the pages of a client that resumes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{FromRedisValue, Value};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};

use super::layout::{Bucket, Layout};
use super::publish::fresh_epoch;
use super::redis::RedisHistory;
use super::store::{Beginning, places_kept};
use crate::backplane::BackplaneError;
use crate::protocol::{UserId, millis};
use crate::redis::{Feature, Scope};

/// At least this long between two batches of a bucket.
const PACE: Duration = Duration::from_millis(1);

/// Clients in one call: Redis executes nothing else meanwhile.
const BATCH: usize = 100;

/// Calls of a bucket at a time: while they take longer, more clients share the next.
const CALLS: usize = 4;

/// Where a client begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) beginning: Beginning,
    /// The time of Redis, in milliseconds since 1970.
    pub(super) now: u64,
    /// The connection on which it was read.
    pub(super) connection: u64,
}

/// The batches of each bucket.
#[derive(Debug)]
pub(super) struct Starts(Vec<Gate>);

#[derive(Debug)]
struct Gate {
    open: Mutex<Open>,
    calls: Semaphore,
}

/// The batch that is not being read yet.
#[derive(Debug, Default)]
struct Open {
    batch: Weak<Batch>,
    /// When the last one left.
    left: Option<Instant>,
}

/// Owned by the first client; `None` once it is being read.
type Batch = Mutex<Option<Vec<Follower>>>;

#[derive(Debug)]
struct Follower {
    client: Client,
    reply: oneshot::Sender<Result<Start, BackplaneError>>,
}

#[derive(Debug, Clone)]
struct Client {
    user: UserId,
    device: Box<str>,
}

enum Joined {
    First(Arc<Batch>),
    Behind(oneshot::Receiver<Result<Start, BackplaneError>>),
}

impl Start {
    /// The time this long before it, in milliseconds since 1970.
    pub(super) fn since(&self, ago: Duration) -> u64 {
        self.now.saturating_sub(millis(ago))
    }
}

impl Starts {
    pub(super) fn new(layout: Layout) -> Self {
        let gate = |_| Gate { open: Mutex::default(), calls: Semaphore::new(CALLS) };
        Self(layout.buckets().map(gate).collect())
    }
}

impl Gate {
    fn join(&self, client: &Client) -> Joined {
        let mut open = self.open.lock();
        if let Some(batch) = open.batch.upgrade()
            && let Some(followers) = batch.lock().as_mut().filter(|followers| followers.len() + 1 < BATCH)
        {
            let (reply, behind) = oneshot::channel();
            followers.push(Follower { client: client.clone(), reply });
            return Joined::Behind(behind);
        }
        let batch = Arc::new(Mutex::new(Some(Vec::new())));
        open.batch = Arc::downgrade(&batch);
        Joined::First(batch)
    }

    /// Waits until a batch may leave.
    async fn pass(&self) {
        let left = self.open.lock().left;
        if let Some(next) = left.map(|left| left + PACE).filter(|next| *next > Instant::now()) {
            sleep_until(next).await;
        }
    }
}

impl RedisHistory {
    /// Reads where a client begins, together with others that connect now. The caller has a deadline.
    pub(super) async fn start(&self, user: &UserId, device: &str) -> Result<Start, BackplaneError> {
        let bucket = self.bucket(user);
        let gate = self.starts.0.get(usize::from(bucket)).ok_or(BackplaneError::Ended)?;
        let client = Client { user: user.clone(), device: device.into() };
        loop {
            match gate.join(&client) {
                Joined::First(batch) => return Box::pin(self.lead(bucket, gate, &client, &batch)).await,
                Joined::Behind(reply) => {
                    // Otherwise the first client has left.
                    if let Ok(reply) = reply.await {
                        return reply;
                    }
                }
            }
        }
    }

    /// Reads for this client and those behind it.
    async fn lead(&self, bucket: Bucket, gate: &Gate, first: &Client, batch: &Batch) -> Result<Start, BackplaneError> {
        gate.pass().await;
        // The semaphore is never closed.
        let _call = gate.calls.acquire().await.ok();
        gate.open.lock().left = Some(Instant::now());
        let mut followers = batch.lock().take().unwrap_or_default();
        // Those that have left.
        followers.retain(|follower| !follower.reply.is_closed());
        let clients: Vec<_> = std::iter::once(first).chain(followers.iter().map(|follower| &follower.client)).collect();
        let read = self.read_starts(bucket, &clients).await;
        let read = self.redis.observed(Feature::History, Scope::Part, read);
        let mut each = match read {
            Ok(each) => each.into_iter(),
            Err(error) => {
                followers.into_iter().for_each(|follower| drop(follower.reply.send(Err(error.again()))));
                return Err(error);
            }
        };
        let own = each.next().unwrap_or(Err(BackplaneError::Ended));
        for (follower, beginning) in followers.into_iter().zip(each) {
            // It may have left meanwhile.
            drop(follower.reply.send(beginning));
        }
        own
    }

    async fn read_starts(
        &self,
        bucket: Bucket,
        clients: &[&Client],
    ) -> Result<Vec<Result<Start, BackplaneError>>, BackplaneError> {
        let (names, ttl) = (self.args.names(), self.args.kept().ttl);
        let mut call = self.start.key(names.bucket(bucket));
        call.arg(fresh_epoch()).arg(millis(ttl)).arg(millis(places_kept(ttl)));
        for Client { user, device } in clients {
            call.key(names.stream(user)).key(names.positions(user)).key(names.retracted(user));
            call.key(names.expiring(user)).key(names.escalations(user));
            call.arg(user.as_str()).arg(&**device);
        }
        let bulk = self.redis.bulk();
        let check = async || self.compare_bucket(bucket).await;
        let read = async || {
            let (reply, connection) = bulk.numbered_script::<Vec<Value>>(&call).await?;
            Ok(((reply, connection), connection))
        };
        let (reply, connection) = self.checks.read(bucket, read, check).await?;
        let [now, each @ ..] = reply.as_slice() else { return Err(BackplaneError::unexpected("none")) };
        if each.len() != clients.len() {
            return Err(BackplaneError::unexpected("of the wrong length"));
        }
        let now = u64::from_redis_value_ref(now).map_err(|_| BackplaneError::unexpected(format!("{now:?}")))?;
        let start = |reply| Ok(Start { beginning: beginning(reply)?, now, connection });
        Ok(each.iter().map(|reply| self.redis.counted(start(reply))).collect())
    }
}

fn beginning(reply: &Value) -> Result<Beginning, BackplaneError> {
    let unexpected = || BackplaneError::unexpected(format!("{reply:?}"));
    let Value::BulkString(text) = reply else { return Err(unexpected()) };
    let text = str::from_utf8(text).map_err(|_| unexpected())?;
    if let Some(error) = BackplaneError::of_reply(text) {
        return Err(error);
    }
    let (newest, unread) = text.split_once(' ').ok_or_else(unexpected)?;
    Ok(Beginning {
        newest: newest.parse().map_err(|_| unexpected())?,
        unread: unread.parse().map_err(|_| unexpected())?,
    })
}
