//! The history store in Redis: one stream for each user, `{prefix}history:{USER}`, written and read only by scripts.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisResult, Script, Value, pipe};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::gap::{Fleet, Gaps};
use super::publish::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs, fresh_epoch};
use super::store::{
    Acked, Entry, KEY_KEPT, MAX_DEVICES, Move, POSITIONS_KEPT, PageSize, Publication, Published, ReadFrom, Reading,
};
use crate::backplane::{BackplaneError, USER_CHANNEL};
use crate::config;
use crate::protocol::{Cursor, UserId, millis};
use crate::redis::{Link, Pipelined, Redis};

/// Users in one script call, which holds the newest notification of each in memory.
const NEWEST_STEP: usize = 100;

/// Read positions in one pipeline.
const ACK_STEP: usize = 500;

pub struct RedisHistory {
    pub(super) redis: Arc<Redis>,
    args: PublishArgs,
    gaps: Gaps,
    publish: Pipelined,
    publish_once: Pipelined,
    read: Script,
    newest: Pipelined,
    ack: Pipelined,
    fleet: Script,
}

impl std::fmt::Debug for RedisHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHistory").field("args", &self.args).finish_non_exhaustive()
    }
}

impl RedisHistory {
    pub fn new(redis: Arc<Redis>, prefix: &str, kept: config::History) -> Self {
        Self {
            redis,
            args: PublishArgs::new(prefix, kept),
            gaps: Gaps::default(),
            publish: Pipelined::new(include_str!("scripts/publish.lua")),
            publish_once: Pipelined::new(include_str!("scripts/publish_once.lua")),
            read: Script::new(include_str!("scripts/read.lua")),
            newest: Pipelined::new(include_str!("scripts/newest.lua")),
            ack: Pipelined::new(include_str!("scripts/ack.lua")),
            fleet: Script::new(include_str!("scripts/fleet.lua")),
        }
    }

    pub(super) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    pub async fn publish(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        // An ephemeral notification must not wait behind pages of history.
        let stored = publication.durable || publication.key.is_some();
        let link = if stored { self.redis.bulk() } else { self.redis.commands() };
        let mut published = Vec::with_capacity(users.len());
        let step = (PUBLISH_BYTES / publication.data.len().max(1)).clamp(1, PUBLISH_STEP);
        for some in users.chunks(step) {
            match self.publish_some(link, some, publication).await {
                Ok(results) => published.extend(results),
                Err(error) => {
                    // The publications to the remaining users would fail the same way.
                    let kind = error.kind();
                    published.resize_with(users.len(), || Err(kind));
                    break;
                }
            }
        }
        let mut failed = published.iter().filter_map(|result| result.as_ref().err().copied());
        if let Some(kind) = failed.next() {
            self.redis.count_unpublished(kind, failed.count() + 1);
        }
        published
    }

    async fn publish_some(
        &self,
        link: &Link,
        users: &[UserId],
        publication: &Publication<'_>,
    ) -> Result<Vec<Published>, BackplaneError> {
        let Publication { durable, key, .. } = *publication;
        if !durable && key.is_none() {
            let mut publishes = pipe();
            let message = publication.message();
            for user in users {
                publishes.cmd("PUBLISH").arg(format!("{USER_CHANNEL}{user}")).arg(message.as_ref()).ignore();
            }
            link.pipeline::<()>(&publishes).await?;
            return Ok(vec![Ok(None); users.len()]);
        }
        let script = if durable { &self.publish } else { &self.publish_once };
        let calls: Vec<_> = users.iter().map(|user| self.publish_call(user, publication)).collect();
        let replies: Vec<RedisResult<String>> = link.scripts(script, &calls).await?;
        Ok(replies.into_iter().map(|reply| cursor(reply).map_err(|error| error.kind())).collect())
    }

    fn publish_call(&self, user: &UserId, publication: &Publication<'_>) -> Cmd {
        let Publication { durable, key, .. } = *publication;
        if !durable {
            let once = key.map(|key| self.args.once(user, key));
            let mut call = self.publish_once.call(&[once.unwrap_or_default()]);
            call.arg(user.as_str()).arg(publication.message().as_ref()).arg(millis(KEY_KEPT));
            return call;
        }
        let mut call = self.publish.call(&self.args.keys(user, key));
        self.args.add_to(&mut call, user, publication);
        call
    }

    pub async fn read(
        &self,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        let mut call = self.read.key(self.args.fleet_key());
        call.key(self.args.stream(user)).key(self.args.positions(user));
        call.arg(user.as_str()).arg(fresh_epoch()).arg(millis(self.args.kept().ttl)).arg(device);
        call.arg(page.entries).arg(page.bytes);
        match from {
            ReadFrom::Newest => call.arg("newest"),
            ReadFrom::Oldest => call.arg("oldest"),
            ReadFrom::After(cursor) => {
                call.arg("after").arg(format!("{:016x}", cursor.epoch)).arg(cursor.ms).arg(cursor.number)
            }
            ReadFrom::Acked(device) => call.arg("acked").arg(device),
            ReadFrom::Since(age) => call.arg("since").arg(millis(*age)),
        };
        let reply: Vec<Value> = self.redis.bulk().script(&call).await?;
        reading(&reply).ok_or_else(|| BackplaneError::unexpected(format!("{reply:?}")))
    }

    pub async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        let call = |some: &[UserId]| {
            let mut keys = vec![self.args.fleet_key()];
            keys.extend(some.iter().map(|user| self.args.stream(user)));
            let mut call = self.newest.call(&keys);
            call.arg(fresh_epoch());
            for user in some {
                call.arg(user.as_str());
            }
            call
        };
        let calls: Vec<_> = users.chunks(NEWEST_STEP).map(call).collect();
        let replies: Vec<RedisResult<Vec<String>>> = self.redis.bulk().scripts(&self.newest, &calls).await?;
        let mut newest = Vec::with_capacity(users.len());
        for reply in replies {
            for pair in reply?.as_chunks::<2>().0 {
                let [epoch, position] = pair;
                let cursor = format!("{epoch}-{position}").parse();
                newest.push(cursor.map_err(|_| BackplaneError::unexpected(format!("{epoch}-{position}")))?);
            }
        }
        if newest.len() == users.len() { Ok(newest) } else { Err(BackplaneError::unexpected("of the wrong length")) }
    }

    pub async fn ack(&self, acks: &[(UserId, String, Cursor)], to: Move) -> Result<Vec<Acked>, BackplaneError> {
        let call = |(user, device, cursor): &(UserId, String, Cursor)| {
            let mut call = self.ack.call(&[self.args.fleet_key(), self.args.stream(user), self.args.positions(user)]);
            call.arg(user.as_str()).arg(device).arg(cursor.to_string());
            call.arg(if to == Move::Forward { "forward" } else { "exactly" });
            call.arg(MAX_DEVICES).arg(millis(self.args.kept().ttl.saturating_mul(POSITIONS_KEPT)));
            call
        };
        let mut acked = Vec::with_capacity(acks.len());
        for some in acks.chunks(ACK_STEP) {
            let calls: Vec<_> = some.iter().map(call).collect();
            let replies: Vec<RedisResult<String>> = self.redis.bulk().scripts(&self.ack, &calls).await?;
            for reply in replies {
                acked.push(match reply.as_deref() {
                    Ok("kept") => Acked::Kept,
                    Ok("foreign") => Acked::Foreign,
                    Ok("full") => Acked::TooManyDevices,
                    Ok(other) => return Err(BackplaneError::unexpected(other)),
                    // Another program wrote to this user's keys: this must not block the other users.
                    Err(error) if error.code() == Some("WRONGTYPE") => Acked::Foreign,
                    Err(error) => return Err(error.clone().into()),
                });
            }
        }
        if acked.len() == acks.len() { Ok(acked) } else { Err(BackplaneError::unexpected("of the wrong length")) }
    }

    /// Returns the fleet's epoch and count. Redis begins a new epoch if its count in `epoch` is below `count`.
    async fn fleet(&self, epoch: &str, count: u64) -> Result<Fleet, BackplaneError> {
        let mut call = self.fleet.key(self.args.fleet_key());
        call.arg(fresh_epoch()).arg(epoch).arg(count);
        let (epoch, count) = self.redis.counted(self.redis.commands().script(&call).await)?;
        Ok(Fleet { epoch, count })
    }

    /// Checks the fleet's count at each tick and at each new subscription, which may be to a Redis that lost data. Runs
    /// until dropped.
    pub(super) async fn watch_gaps(&self, every: Duration, mut subscriptions: watch::Receiver<u64>) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = subscriptions.changed() => {}
            }
            self.check_gaps().await;
        }
    }

    async fn check_gaps(&self) {
        let (epoch, count) = self.gaps.highest();
        // An error is counted and logged.
        let Ok(fleet) = self.fleet(&epoch, count).await else { return };
        if !epoch.is_empty() && fleet.epoch != epoch {
            warn!(counted = fleet.count, "redis lost stored notifications: a new epoch begins");
        }
        self.gaps.compare(fleet);
    }
}

fn cursor(reply: RedisResult<String>) -> Result<Option<Cursor>, BackplaneError> {
    match reply?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| BackplaneError::unexpected(text)),
    }
}

fn reading(reply: &[Value]) -> Option<Reading> {
    let text = |value: &Value| String::from_redis_value_ref(value).ok();
    let [epoch, whole, from, upto, newest, acked, unread, entries @ ..] = reply else { return None };
    let epoch = text(epoch)?;
    let cursor = |value: &Value| format!("{epoch}-{}", text(value)?).parse::<Cursor>().ok();
    let (triples, []) = entries.as_chunks::<3>() else { return None };
    let entry = |[position, event, data]: &[Value; 3]| {
        let event = serde_json::from_str(&text(event)?).ok()?;
        Some(Entry { cursor: cursor(position)?, event, data: text(data)? })
    };
    Some(Reading {
        whole: text(whole)? == "1",
        from: cursor(from)?,
        upto: cursor(upto)?,
        newest: cursor(newest)?,
        entries: triples.iter().map(entry).collect::<Option<_>>()?,
        acked: cursor(acked),
        unread: u64::from_redis_value_ref(unread).ok()?,
    })
}
