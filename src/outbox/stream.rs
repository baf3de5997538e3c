//! The outbox in Redis: the stream `{prefix}outbox` of the backends, the relay's lease and the rejected entries.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Value};

use super::entry::{Entry, Invalid, MAX_FIELD_BYTES, MAX_FIELDS, Reason, Valid};
use super::lease::LeaseId;
use crate::backplane::BackplaneError;
use crate::config::{Config, LiveLimits};
use crate::history::{Bucket, Layout, PUBLISH_BYTES, PUBLISH_STEP, PublishArgs, batches};
use crate::protocol::{InstanceId, UserId, millis};
use crate::redis::{Pipelined, Redis, Script};

/// The lease of the relay expires this long after its last renewal.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// Rejected entries to keep, approximately.
const MAX_REJECTED: usize = 10_000;

/// Stores, publishes and removes entries.
const RELAY: &str = concat!(
    include_str!("../history/scripts/position.lua"),
    include_str!("../history/scripts/user.lua"),
    include_str!("../history/scripts/keys.lua"),
    include_str!("../history/scripts/publish.lua"),
    include_str!("scripts/ids.lua"),
    include_str!("scripts/relay.lua"),
);

const REJECT: &str = concat!(include_str!("scripts/guard.lua"), include_str!("scripts/reject.lua"));

const REJECT_ANY: &str = concat!(include_str!("scripts/guard_any.lua"), include_str!("scripts/reject.lua"));

/// Stores and publishes entries: the first of two steps.
const STORE: &str = concat!(
    include_str!("../history/scripts/position.lua"),
    include_str!("../history/scripts/user.lua"),
    include_str!("../history/scripts/keys.lua"),
    include_str!("../history/scripts/publish.lua"),
    include_str!("scripts/lease.lua"),
    include_str!("scripts/ids.lua"),
    include_str!("scripts/store.lua"),
);

const STORABLE: &str = concat!(include_str!("scripts/lease.lua"), include_str!("scripts/storable.lua"));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryOutcome {
    /// Stored and published.
    Relayed,
    /// Its idempotency key was published before.
    Known,
    Rejected,
    /// It stays in the outbox: the user's keys are usable.
    Storable,
    /// Not the oldest entry of the outbox, or no longer in it.
    Behind,
    /// This instance has lost the lease.
    Fenced,
}

/// What became of an entry in its user's bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Stored and published, now or before.
    Done,
    /// Its idempotency key was published before.
    Known,
    /// The user's preceding entry was not stored.
    Behind,
    /// Another program has written to the user's keys.
    Unstorable,
    /// A later lease has written to the bucket: the number of the latest.
    Fenced(u64),
}

pub(super) struct OutboxStream {
    redis: Arc<Redis>,
    history: PublishArgs,
    stream: String,
    lock: String,
    fence: String,
    rejected: String,
    /// Whether users and outbox are in different slots.
    is_spread: bool,
    in_two_steps: bool,
    instance: InstanceId,
    limits: LiveLimits,
    acquire: Script,
    read: Script,
    relay: Pipelined,
    reject: Pipelined,
    reject_any: Pipelined,
    store: Pipelined,
    storable: Script,
    remove: Script,
    release: Script,
    lag: Script,
}

impl OutboxStream {
    pub(super) fn new(redis: Arc<Redis>, config: &Config, instance: &InstanceId, layout: Layout) -> Self {
        let (prefix, limits) = (&config.redis.prefix, config.limits.clone());
        let stream = format!("{prefix}outbox");
        let is_spread = layout != Layout::One;
        let name = |companion: &str| name_beside(prefix, layout, companion);
        Self {
            redis,
            history: PublishArgs::new(&config.redis, config.history, layout),
            lock: name("lock"),
            fence: name("fence"),
            rejected: name("rejected"),
            is_spread,
            in_two_steps: is_spread || config.redis.wait_replicas > 0,
            stream,
            instance: instance.clone(),
            limits,
            acquire: Script::new(include_str!("scripts/acquire.lua")),
            read: Script::new(include_str!("scripts/read.lua")),
            relay: Pipelined::naming_server(RELAY),
            reject: Pipelined::new(REJECT),
            reject_any: Pipelined::new(REJECT_ANY),
            store: Pipelined::naming_server(STORE),
            storable: Script::new(STORABLE),
            remove: Script::new(include_str!("scripts/remove.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            lag: Script::new(include_str!("scripts/lag.lua")),
        }
    }

    pub(super) fn stream(&self) -> &str {
        &self.stream
    }

    pub(super) fn rejected(&self) -> &str {
        &self.rejected
    }

    pub(super) fn is_spread(&self) -> bool {
        self.is_spread
    }

    /// Whether an entry is stored in one step and removed in another, not in one script.
    pub(super) fn in_two_steps(&self) -> bool {
        self.in_two_steps
    }

    pub(super) fn bucket(&self, user: &UserId) -> Bucket {
        self.history.bucket(user)
    }

    /// Acquires the lease if it is free; its token is never reused, and its number is at least `least`.
    pub(super) async fn acquire_lease(&self, least: u64) -> Result<Option<LeaseId>, BackplaneError> {
        let token = format!("{}-{:016x}", self.instance, fastrand::u64(..));
        let mut acquire = self.acquire.key(&self.lock);
        acquire.key(&self.fence).arg(&token).arg(millis(LEASE)).arg(least);
        let number: Option<u64> = self.redis.commands().script(&acquire).await?;
        Ok(number.map(|number| LeaseId { token, number }))
    }

    pub(super) async fn release(&self, token: &str) -> Result<(), BackplaneError> {
        self.redis.commands().script(self.release.key(&self.lock).arg(token)).await
    }

    /// Renews the lease and reads the oldest entries, or the oldest after the entry with this id. Returns `None` if the lease
    /// was lost.
    pub(super) async fn read(&self, token: &str, after: Option<&str>) -> Result<Option<Vec<Entry>>, BackplaneError> {
        let mut call = self.read.key(&self.lock);
        call.key(&self.stream).arg(token).arg(millis(LEASE)).arg(PUBLISH_STEP).arg(PUBLISH_BYTES);
        call.arg(self.limits.max_payload_bytes()).arg(MAX_FIELD_BYTES).arg(MAX_FIELDS);
        call.arg(after.map_or_else(|| "-".into(), |id| format!("({id}")));
        let page: Option<Vec<Vec<Value>>> = self.redis.bulk().script(&call).await?;
        let entries = page.map(|page| page.into_iter().map(Entry::new).collect::<Option<_>>());
        entries.map(|entries| entries.ok_or_else(|| BackplaneError::unexpected("not an outbox entry"))).transpose()
    }

    /// Stores and publishes these entries, oldest first; returns the outcome of each.
    pub(super) async fn relay(
        &self,
        token: &str,
        entries: &[Valid<'_>],
    ) -> Result<Vec<Result<EntryOutcome, BackplaneError>>, BackplaneError> {
        let batches: Vec<&[Valid<'_>]> = batches(entries, bytes).collect();
        let call = |batch: &&[Valid<'_>]| {
            let mut keys = vec![self.lock.clone(), self.stream.clone()];
            keys.extend(self.history.bucket_keys(0));
            batch.iter().for_each(|(_, user, publication)| keys.extend(self.history.keys_of(user, publication)));
            let mut call = self.relay.call(&keys);
            self.history.add_shared(&mut call);
            call.arg(token);
            for (entry, user, publication) in *batch {
                self.history.add_to(&mut call, user, publication, &[&entry.id, &entry.mark()], false);
            }
            call
        };
        let calls: Vec<_> = batches.iter().map(call).collect();
        let replies: Vec<RedisResult<Vec<String>>> = self.redis.bulk().scripts(&self.relay, &calls).await?;
        let outcomes = batches.iter().zip(replies).flat_map(|(batch, reply)| of_each(reply, batch.len()));
        Ok(outcomes.map(|reply| outcome(&reply?)).collect())
    }

    /// Moves these to the rejected entries, oldest first; returns the outcome of each.
    pub(super) async fn reject(
        &self,
        token: &str,
        entries: &[Invalid<'_>],
    ) -> Result<Vec<Result<EntryOutcome, BackplaneError>>, BackplaneError> {
        let keys = [self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        let script = if self.in_two_steps { &self.reject_any } else { &self.reject };
        let call = |(entry, reason): &Invalid<'_>| self.reject_call(script, &keys, token, entry, *reason);
        let calls: Vec<_> = entries.iter().map(call).collect();
        let replies: Vec<RedisResult<String>> = self.redis.bulk().scripts(script, &calls).await?;
        Ok(replies.into_iter().map(|reply| outcome(&reply?)).collect())
    }

    /// Rejects an entry that Redis refused to store, if the reason is the type of the user's own keys.
    pub(super) async fn reject_unstorable(
        &self,
        token: &str,
        (entry, user, publication): &Valid<'_>,
    ) -> Result<EntryOutcome, BackplaneError> {
        let mut keys = vec![self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        keys.extend(self.history.keys(user, publication.key));
        let call = self.reject_call(&self.reject, &keys, token, entry, Reason::Unstorable);
        let replies: Vec<RedisResult<String>> = self.redis.bulk().scripts(&self.reject, &[call]).await?;
        outcome(&replies.into_iter().next().ok_or_else(|| BackplaneError::unexpected("none"))??)
    }

    fn reject_call(
        &self,
        script: &Pipelined,
        keys: &[String],
        token: &str,
        entry: &Entry,
        reason: Reason,
    ) -> redis::Cmd {
        let mut call = script.call(keys);
        call.arg(token).arg(&entry.id).arg(reason.label()).arg(MAX_REJECTED);
        for (name, value) in &entry.fields {
            call.arg(name).arg(value.get(..MAX_FIELD_BYTES).unwrap_or(value));
        }
        call
    }

    /// Stores and publishes these entries, unless that was done before; each with the mark of the user's preceding entry.
    /// `oldest` is the id of the oldest entry of the outbox.
    pub(super) async fn store(
        &self,
        lease: &LeaseId,
        oldest: &str,
        entries: &[Valid<'_>],
    ) -> Result<Vec<Result<Stored, BackplaneError>>, BackplaneError> {
        let mut preceding: HashMap<&UserId, String> = HashMap::new();
        let mut by_bucket: BTreeMap<Bucket, Vec<Marked<'_>>> = BTreeMap::new();
        for (index, valid) in entries.iter().enumerate() {
            let mark = valid.0.mark();
            let preceding = preceding.insert(&valid.1, mark.clone()).unwrap_or_default();
            by_bucket.entry(self.bucket(&valid.1)).or_default().push(Marked { index, valid, mark, preceding });
        }
        let steps: Vec<(Bucket, &[Marked<'_>])> = by_bucket
            .iter()
            .flat_map(|(bucket, all)| batches(all, |one| bytes(one.valid)).map(|batch| (*bucket, batch)))
            .collect();
        let calls: Vec<_> =
            steps.iter().map(|(bucket, batch)| self.store_call(lease, oldest, *bucket, batch)).collect();
        let replies: Vec<RedisResult<Vec<String>>> = self.redis.durable().scripts(&self.store, &calls).await?;
        let mut all: Vec<_> = entries.iter().map(|_| Ok(Stored::Behind)).collect();
        for ((_, batch), reply) in steps.iter().zip(replies) {
            for (one, reply) in batch.iter().zip(of_each(reply, batch.len())) {
                if let Some(place) = all.get_mut(one.index) {
                    *place = reply.and_then(|reply| stored(&reply));
                }
            }
        }
        Ok(all)
    }

    fn store_call(&self, lease: &LeaseId, oldest: &str, bucket: Bucket, batch: &[Marked<'_>]) -> redis::Cmd {
        let mut keys = Vec::from(self.history.bucket_keys(bucket));
        for Marked { valid: (_, user, publication), .. } in batch {
            keys.extend(self.history.keys_of(user, publication));
        }
        let mut call = self.store.call(&keys);
        self.history.add_shared(&mut call);
        call.arg(lease.number).arg(&lease.token).arg(oldest).arg(PUBLISH_STEP);
        for Marked { valid: (_, user, publication), mark, preceding, .. } in batch {
            self.history.add_to(&mut call, user, publication, &[mark, preceding], false);
        }
        call
    }

    /// Whether an entry that Redis refused to store could be stored, or the types of the user's own keys are wrong.
    pub(super) async fn is_storable(
        &self,
        lease: &LeaseId,
        (_, user, publication): &Valid<'_>,
    ) -> Result<Option<Stored>, BackplaneError> {
        let [history, _] = self.history.bucket_keys(self.bucket(user));
        let mut call = self.storable.key(history);
        for key in self.history.keys(user, publication.key) {
            call.key(key);
        }
        let reply: String = self.redis.bulk().script(call.arg(lease.number).arg(&lease.token)).await?;
        if reply == "SOUND" { Ok(None) } else { stored(&reply).map(Some) }
    }

    /// Removes these entries. Returns whether this instance holds the lease.
    pub(super) async fn remove(&self, token: &str, ids: &[&str]) -> Result<bool, BackplaneError> {
        let mut call = self.remove.key(&self.lock);
        call.key(&self.stream).arg(token).arg(ids);
        self.redis.bulk().script(&call).await
    }

    /// The number of entries in the outbox, and the age of the oldest in seconds.
    pub(super) async fn lag(&self) -> Result<(i64, i64), BackplaneError> {
        self.redis.commands().script(&self.lag.key(&self.stream)).await
    }
}

/// The name of a key in the outbox's slot.
pub(super) fn name_beside(prefix: &str, layout: Layout, companion: &str) -> String {
    match layout {
        Layout::One => format!("{prefix}outbox:{companion}"),
        // The plain name of the outbox is its hash tag.
        Layout::Buckets => format!("{{{prefix}outbox}}:{companion}"),
    }
}

/// An entry to be stored, with its mark and that of the user's preceding entry.
struct Marked<'a> {
    index: usize,
    valid: &'a Valid<'a>,
    mark: String,
    preceding: String,
}

fn bytes((_, _, publication): &Valid<'_>) -> usize {
    publication.data.len()
}

/// The replies for each entry of a batch. An error of the whole is that of the first; the others are behind it.
fn of_each(reply: RedisResult<Vec<String>>, count: usize) -> Vec<Result<String, BackplaneError>> {
    let mut error = match reply {
        Ok(replies) if replies.len() == count => {
            let each = |reply: String| BackplaneError::of_reply(&reply).map_or(Ok(reply), Err);
            return replies.into_iter().map(each).collect();
        }
        Ok(_) => Some(BackplaneError::unexpected("of the wrong length")),
        Err(error) => Some(error.into()),
    };
    (0..count).map(|_| error.take().map_or_else(|| Ok("BEHIND".to_owned()), Err)).collect()
}

fn stored(reply: &str) -> Result<Stored, BackplaneError> {
    Ok(match reply {
        "BEHIND" => Stored::Behind,
        "KNOWN" => Stored::Known,
        "UNSTORABLE" => Stored::Unstorable,
        text => match text.strip_prefix("FENCED ") {
            Some(number) => Stored::Fenced(number.parse().map_err(|_| BackplaneError::unexpected(text))?),
            None => Stored::Done,
        },
    })
}

fn outcome(reply: &str) -> Result<EntryOutcome, BackplaneError> {
    Ok(match reply {
        "FENCED" => EntryOutcome::Fenced,
        "BEHIND" => EntryOutcome::Behind,
        "KNOWN" => EntryOutcome::Known,
        "REJECTED" => EntryOutcome::Rejected,
        "SOUND" => EntryOutcome::Storable,
        _ => EntryOutcome::Relayed,
    })
}
