//! The outbox in Redis: `{prefix}outbox`, a stream that backends write; the lease of the instance that relays from it;
//! and the entries that were rejected.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Script, cmd};

use super::entry::{Bad, Entry, Good, MAX_FIELD_BYTES, MAX_FIELDS, Reason};
use crate::backplane::BackplaneError;
use crate::config::Config;
use crate::history::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs};
use crate::protocol::{InstanceId, millis};
use crate::redis::{Pipelined, Redis};

/// Whoever relays does so for this long after it was last heard of.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// Rejected entries that are kept, or a few more.
const MAX_REJECTED: usize = 10_000;

/// Stores, publishes and takes off. `publish.lua` is a whole script, and a function's body as well.
const RELAY: &str = concat!(
    "local function publish(KEYS, ARGV)\n",
    include_str!("../history/scripts/publish.lua"),
    "end\n",
    include_str!("scripts/guard.lua"),
    include_str!("scripts/relay.lua"),
);

const REJECT: &str = concat!(include_str!("scripts/guard.lua"), include_str!("scripts/reject.lua"));

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Stored and published.
    Relayed,
    /// Its key was published before.
    Known,
    /// Moved to those that were rejected.
    Rejected,
    /// It is still there: there is nothing wrong with it.
    Sound,
    /// It is not the oldest.
    Behind,
    /// The lease was lost.
    Fenced,
}

/// The outbox stream, as the relay uses it.
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

    /// Takes the lease where nobody has it; gives its token, which is never used twice.
    pub(super) async fn take(&self) -> Result<Option<String>, BackplaneError> {
        let token = format!("{}-{:016x}", self.instance, fastrand::u64(..));
        let take = cmd("SET").arg(&self.lock).arg(&token).arg("NX").arg("PX").arg(millis(LEASE)).to_owned();
        let taken: Option<String> = self.redis.commands().command(&take).await?;
        Ok(taken.map(|_| token))
    }

    pub(super) async fn release(&self, token: &str) -> Result<(), BackplaneError> {
        self.redis.commands().script(self.release.key(&self.lock).arg(token)).await
    }

    /// Renews the lease and reads the oldest entries; nothing where the lease was lost.
    pub(super) async fn read(&self, token: &str) -> Result<Option<Vec<Entry>>, BackplaneError> {
        let mut call = self.read.key(&self.lock);
        call.key(&self.stream).arg(token).arg(millis(LEASE)).arg(PUBLISH_STEP).arg(PUBLISH_BYTES);
        call.arg(self.max_payload_bytes).arg(MAX_FIELD_BYTES).arg(MAX_FIELDS);
        let page: Option<Vec<Vec<Vec<u8>>>> = self.redis.bulk().script(&call).await?;
        let entries = page.map(|page| page.into_iter().map(Entry::new).collect::<Option<_>>());
        entries.map(|entries| entries.ok_or_else(|| BackplaneError::unexpected("not an outbox entry"))).transpose()
    }

    /// Stores and publishes these, the oldest first; gives what became of each.
    pub(super) async fn relay(
        &self,
        token: &str,
        entries: &[Good<'_>],
    ) -> Result<Vec<Result<Taken, BackplaneError>>, BackplaneError> {
        let call = |(entry, user, publication): &Good<'_>| {
            let mut keys = vec![self.lock.clone(), self.stream.clone()];
            keys.extend(self.history.keys(user, publication.key));
            let mut call = self.relay.call(&keys);
            call.arg(token).arg(&entry.id);
            self.history.add_to(&mut call, user, publication);
            call
        };
        let calls: Vec<_> = entries.iter().map(call).collect();
        Ok(self.redis.bulk().scripts(&self.relay, &calls).await?.into_iter().map(taken).collect())
    }

    /// Moves these to the rejected, the oldest first; gives what became of each.
    pub(super) async fn reject(
        &self,
        token: &str,
        entries: &[Bad<'_>],
    ) -> Result<Vec<Result<Taken, BackplaneError>>, BackplaneError> {
        let keys = [self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        let call = |(entry, reason): &Bad<'_>| self.reject_call(&keys, token, entry, *reason);
        let calls: Vec<_> = entries.iter().map(call).collect();
        Ok(self.redis.bulk().scripts(&self.reject, &calls).await?.into_iter().map(taken).collect())
    }

    /// Rejects one that Redis would not store, if that is because of what its user's own keys hold.
    pub(super) async fn reject_unstorable(
        &self,
        token: &str,
        (entry, user, publication): &Good<'_>,
    ) -> Result<Taken, BackplaneError> {
        let mut keys = vec![self.lock.clone(), self.stream.clone(), self.rejected.clone()];
        keys.extend(self.history.keys(user, publication.key).into_iter().skip(1));
        let call = self.reject_call(&keys, token, entry, Reason::Unstorable);
        let answers = self.redis.bulk().scripts(&self.reject, &[call]).await?;
        answers.into_iter().next().map_or_else(|| Err(BackplaneError::unexpected("none")), taken)
    }

    fn reject_call(&self, keys: &[String], token: &str, entry: &Entry, reason: Reason) -> redis::Cmd {
        let mut call = self.reject.call(keys);
        call.arg(token).arg(&entry.id).arg(reason.label()).arg(MAX_REJECTED);
        for (name, value) in &entry.fields {
            call.arg(name).arg(value.get(..MAX_FIELD_BYTES).unwrap_or(value));
        }
        call
    }

    /// How many entries wait, and the age of the oldest in seconds.
    pub(super) async fn lag(&self) -> Result<(i64, i64), BackplaneError> {
        self.redis.commands().script(&self.lag.key(&self.stream)).await
    }
}

fn taken(answer: RedisResult<String>) -> Result<Taken, BackplaneError> {
    Ok(match answer?.as_str() {
        "FENCED" => Taken::Fenced,
        "BEHIND" => Taken::Behind,
        "KNOWN" => Taken::Known,
        "REJECTED" => Taken::Rejected,
        "SOUND" => Taken::Sound,
        _ => Taken::Relayed,
    })
}
