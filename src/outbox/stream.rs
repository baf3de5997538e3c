//! The outbox in Redis: the stream `{prefix}outbox` of the backends, the relay's lease and the rejected entries.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Script, cmd};

use super::entry::{Entry, Invalid, MAX_FIELD_BYTES, MAX_FIELDS, Reason, Valid};
use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::history::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs};
use crate::protocol::{InstanceId, millis};
use crate::redis::{Pipelined, Redis};

/// The lease of the relay expires this long after its last renewal.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// Rejected entries to keep, approximately.
const MAX_REJECTED: usize = 10_000;

/// Stores, publishes and removes an entry. `publish.lua` is a script of its own, and the body of a function here.
const RELAY: &str = concat!(
    "local function publish(KEYS, ARGV)\n",
    include_str!("../history/scripts/publish.lua"),
    "end\n",
    include_str!("scripts/guard.lua"),
    include_str!("scripts/relay.lua"),
);

const REJECT: &str = concat!(include_str!("scripts/guard.lua"), include_str!("scripts/reject.lua"));

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

pub(super) struct OutboxStream {
    redis: Arc<Redis>,
    history: PublishArgs,
    stream: String,
    lock: String,
    rejected: String,
    instance: InstanceId,
    max_payload_bytes: usize,
    read: Script,
    relay: Pipelined,
    reject: Pipelined,
    release: Script,
    lag: Script,
}

impl OutboxStream {
    pub(super) fn new(redis: Arc<Redis>, config: &Config, instance: &InstanceId) -> Self {
        let (prefix, max_payload_bytes) = (&config.redis.prefix, config.limits.max_payload_bytes);
        let stream = format!("{prefix}outbox");
        Self {
            redis,
            history: PublishArgs::new(prefix, config.history),
            lock: format!("{stream}:lock"),
            rejected: format!("{stream}:rejected"),
            stream,
            instance: instance.clone(),
            max_payload_bytes,
            read: Script::new(include_str!("scripts/read.lua")),
            relay: Pipelined::new(RELAY),
            reject: Pipelined::new(REJECT),
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

    /// Acquires the lease if it is free; returns its token, which is never reused.
    pub(super) async fn acquire_lease(&self) -> Result<Option<String>, BackplaneError> {
        let token = format!("{}-{:016x}", self.instance, fastrand::u64(..));
        let acquire = cmd("SET").arg(&self.lock).arg(&token).arg("NX").arg("PX").arg(millis(LEASE)).to_owned();
        let acquired: Option<String> = self.redis.commands().command(&acquire).await?;
        Ok(acquired.map(|_| token))
    }

    pub(super) async fn release(&self, token: &str) -> Result<(), BackplaneError> {
        self.redis.commands().script(self.release.key(&self.lock).arg(token)).await
    }

    /// Renews the lease and reads the oldest entries. Returns `None` if the lease was lost.
    pub(super) async fn read(&self, token: &str) -> Result<Option<Vec<Entry>>, BackplaneError> {
        let mut call = self.read.key(&self.lock);
        call.key(&self.stream).arg(token).arg(millis(LEASE)).arg(PUBLISH_STEP).arg(PUBLISH_BYTES);
        call.arg(self.max_payload_bytes).arg(MAX_FIELD_BYTES).arg(MAX_FIELDS);
        let page: Option<Vec<Vec<Vec<u8>>>> = self.redis.bulk().script(&call).await?;
        let entries = page.map(|page| page.into_iter().map(Entry::new).collect::<Option<_>>());
        entries.map(|entries| entries.ok_or_else(|| BackplaneError::unexpected("not an outbox entry"))).transpose()
    }

    /// Stores and publishes these entries, oldest first; returns the outcome of each.
    pub(super) async fn relay(
        &self,
        token: &str,
        entries: &[Valid<'_>],
    ) -> Result<Vec<Result<EntryOutcome, BackplaneError>>, BackplaneError> {
        let call = |(entry, user, publication): &Valid<'_>| {
            let mut keys = vec![self.lock.clone(), self.stream.clone()];
            keys.extend(self.history.keys(user, publication.key));
            let mut call = self.relay.call(&keys);
            call.arg(token).arg(&entry.id);
            self.history.add_to(&mut call, user, publication);
            call
        };
        let calls: Vec<_> = entries.iter().map(call).collect();
        Ok(self.redis.bulk().scripts(&self.relay, &calls).await?.into_iter().map(outcome).collect())
    }

    /// Moves these to the rejected entries, oldest first; returns the outcome of each.
    pub(super) async fn reject(
        &self,
        token: &str,
        entries: &[Invalid<'_>],
    ) -> Result<Vec<Result<EntryOutcome, BackplaneError>>, BackplaneError> {
        let keys = [self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        let call = |(entry, reason): &Invalid<'_>| self.reject_call(&keys, token, entry, *reason);
        let calls: Vec<_> = entries.iter().map(call).collect();
        Ok(self.redis.bulk().scripts(&self.reject, &calls).await?.into_iter().map(outcome).collect())
    }

    /// Rejects an entry that Redis refused to store, if the reason is the type of the user's own keys.
    pub(super) async fn reject_unstorable(
        &self,
        token: &str,
        (entry, user, publication): &Valid<'_>,
    ) -> Result<EntryOutcome, BackplaneError> {
        let mut keys = vec![self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        keys.extend(self.history.keys(user, publication.key).into_iter().skip(1));
        let call = self.reject_call(&keys, token, entry, Reason::Unstorable);
        let replies = self.redis.bulk().scripts(&self.reject, &[call]).await?;
        replies.into_iter().next().map_or_else(|| Err(BackplaneError::unexpected("none")), outcome)
    }

    fn reject_call(&self, keys: &[String], token: &str, entry: &Entry, reason: Reason) -> redis::Cmd {
        let mut call = self.reject.call(keys);
        call.arg(token).arg(&entry.id).arg(reason.label()).arg(MAX_REJECTED);
        for (name, value) in &entry.fields {
            call.arg(name).arg(value.get(..MAX_FIELD_BYTES).unwrap_or(value));
        }
        call
    }

    /// The number of entries in the outbox, and the age of the oldest in seconds.
    pub(super) async fn lag(&self) -> Result<(i64, i64), BackplaneError> {
        self.redis.commands().script(&self.lag.key(&self.stream)).await
    }
}

fn outcome(reply: RedisResult<String>) -> Result<EntryOutcome, BackplaneError> {
    Ok(match reply?.as_str() {
        "FENCED" => EntryOutcome::Fenced,
        "BEHIND" => EntryOutcome::Behind,
        "KNOWN" => EntryOutcome::Known,
        "REJECTED" => EntryOutcome::Rejected,
        "SOUND" => EntryOutcome::Storable,
        _ => EntryOutcome::Relayed,
    })
}
