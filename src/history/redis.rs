//! The history store in Redis: one stream for each user, written only by scripts. `layout.rs` names the keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::{Cmd, FromRedisValue, RedisResult, Value};

use super::after::TypicalBytes;
use super::checks::Checks;
use super::gap::Gaps;
use super::layout::{Bucket, Layout};
use super::publish::{PUBLISH_BYTES, PUBLISH_STEP, PublishArgs, batches, fresh_epoch};
use super::starts::Starts;
use super::store::{
    Ack, Acked, Entry, KEY_KEPT, MAX_DEVICES, Move, POSITIONS_KEPT, PageSize, Publication, Published, ReadFrom,
    Reading, places_kept,
};
use crate::backplane::BackplaneError;
use crate::config::{self, Subscribe};
use crate::protocol::{Cursor, EventName, UserId, millis};
use crate::redis::{Feature, Message, Pipelined, Redis, Script, ScriptInvocation, is_wrong_type};

/// Users in one script call, which holds the newest notification of each in memory.
const NEWEST_STEP: usize = 100;

/// Read positions in one pipeline.
const ACK_STEP: usize = 500;

pub struct RedisHistory {
    pub(super) redis: Arc<Redis>,
    pub(super) args: PublishArgs,
    pub(super) layout: Layout,
    pub(super) gaps: Gaps,
    pub(super) checks: Checks,
    pub(super) starts: Starts,
    pub(super) typical: TypicalBytes,
    publish: Pipelined,
    publish_once: Pipelined,
    read: Script,
    pub(super) start: Script,
    pub(super) page: Script,
    newest: Pipelined,
    ack: Pipelined,
    pub(super) retract: Script,
    pub(super) erase: Script,
    pub(super) fleet: Pipelined,
    pub(super) trim: Script,
}

impl std::fmt::Debug for RedisHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHistory").field("args", &self.args).finish_non_exhaustive()
    }
}

impl RedisHistory {
    pub fn new(redis: Arc<Redis>, config: &config::Redis, kept: config::History, layout: Layout) -> Self {
        redis.health().require(Feature::History);
        let is_exact = config.subscribe != Subscribe::Pattern;
        Self {
            redis,
            args: PublishArgs::new(config, kept, layout),
            gaps: Gaps::new(&config.user_channel, layout, is_exact),
            checks: Checks::new(layout),
            starts: Starts::new(layout),
            typical: TypicalBytes::default(),
            layout,
            publish: Pipelined::naming_server(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/keys.lua"),
                include_str!("scripts/publish.lua"),
                include_str!("scripts/publish_all.lua")
            )),
            publish_once: Pipelined::new(concat!(
                include_str!("scripts/keys.lua"),
                include_str!("scripts/publish_once.lua")
            )),
            read: Script::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/read.lua")
            )),
            start: Script::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/start.lua")
            )),
            page: Script::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/page.lua")
            )),
            newest: Pipelined::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/newest.lua")
            )),
            ack: Pipelined::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/ack.lua")
            )),
            retract: Script::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/retract.lua")
            )),
            erase: Script::new(concat!(
                include_str!("scripts/position.lua"),
                include_str!("scripts/user.lua"),
                include_str!("scripts/erase.lua")
            )),
            fleet: Pipelined::new(include_str!("scripts/fleet.lua")),
            trim: Script::new(include_str!("scripts/trim.lua")),
        }
    }

    /// The bucket of a user's history.
    pub(super) fn bucket(&self, user: &UserId) -> Bucket {
        self.layout.bucket(user.as_str())
    }

    pub async fn publish(&self, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        let mut published = Vec::with_capacity(users.len());
        let step = (PUBLISH_BYTES / publication.data.len().max(1)).clamp(1, PUBLISH_STEP);
        for some in users.chunks(step) {
            match self.publish_some(some, publication).await {
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
        users: &[UserId],
        publication: &Publication<'_>,
    ) -> Result<Vec<Published>, BackplaneError> {
        let Publication { durable, key, .. } = *publication;
        if !durable && key.is_none() {
            // Not through the link of the history: it must not wait behind pages.
            let message = publication.message();
            let message = |user: &UserId| Message {
                channel: self.args.channel(user),
                payload: &message,
                // Where the scripts publish what is stored for this user.
                beside: Some(self.args.names().bucket_of(user)),
            };
            let messages: Vec<_> = users.iter().map(message).collect();
            self.redis.publish(&messages).await?;
            return Ok(vec![Ok(None); users.len()]);
        }
        if durable {
            return self.publish_durable(users, publication).await;
        }
        let calls: Vec<_> = users.iter().map(|user| self.once_call(user, publication)).collect();
        let replies: Vec<RedisResult<String>> = self.redis.bulk().scripts(&self.publish_once, &calls).await?;
        let published = |reply: RedisResult<String>| cursor(&reply?);
        Ok(replies.into_iter().map(|reply| published(reply).map_err(|error| error.kind())).collect())
    }

    fn once_call(&self, user: &UserId, publication: &Publication<'_>) -> Cmd {
        let once = publication.key.map(|key| self.args.names().once(user, key));
        let mut call = self.publish_once.call(&[once.unwrap_or_default(), self.args.names().keys(user)]);
        call.arg(user.as_str()).arg(publication.message().as_ref()).arg(millis(KEY_KEPT));
        call.arg(self.args.channel(user));
        call
    }

    /// One call of the script for many users of a bucket: Redis spends less on each.
    async fn publish_durable(
        &self,
        users: &[UserId],
        publication: &Publication<'_>,
    ) -> Result<Vec<Published>, BackplaneError> {
        let by_bucket = self.by_bucket(users);
        let of_bucket = |(bucket, indices)| {
            batches(indices, |_| publication.data.len()).map(move |indices: &[usize]| (bucket, indices))
        };
        let steps: Vec<(&Bucket, &[usize])> =
            by_bucket.iter().flat_map(|(bucket, indices)| of_bucket((bucket, indices))).collect();
        let call = |(bucket, indices): &(&Bucket, &[usize])| {
            let some: Vec<_> = indices.iter().filter_map(|index| users.get(*index)).collect();
            self.publish_call(**bucket, &some, publication)
        };
        let calls: Vec<_> = steps.iter().map(call).collect();
        let replies: Vec<RedisResult<Vec<String>>> = self.redis.durable().scripts(&self.publish, &calls).await?;
        let mut published: Vec<Published> = vec![Err("malformed"); users.len()];
        for ((_, indices), reply) in steps.iter().zip(replies) {
            let each = reply.map_err(|error| BackplaneError::from(error).kind());
            for (place, index) in indices.iter().enumerate() {
                let result = match &each {
                    Ok(each) => {
                        each.get(place).map_or(Err("malformed"), |reply| cursor(reply).map_err(|error| error.kind()))
                    }
                    Err(kind) => Err(*kind),
                };
                published.get_mut(*index).into_iter().for_each(|published| *published = result);
            }
        }
        Ok(published)
    }

    fn publish_call(&self, bucket: Bucket, users: &[&UserId], publication: &Publication<'_>) -> Cmd {
        let mut keys = Vec::from(self.args.bucket_keys(bucket));
        users.iter().for_each(|user| keys.extend(self.args.keys_of(user, publication)));
        let mut call = self.publish.call(&keys);
        self.args.add_shared(&mut call);
        for (place, user) in users.iter().enumerate() {
            self.args.add_to(&mut call, user, publication, &[], place > 0);
        }
        call
    }

    /// The indices of these users in each bucket.
    fn by_bucket(&self, users: &[UserId]) -> BTreeMap<Bucket, Vec<usize>> {
        let mut by_bucket: BTreeMap<Bucket, Vec<usize>> = BTreeMap::new();
        for (index, user) in users.iter().enumerate() {
            by_bucket.entry(self.bucket(user)).or_default().push(index);
        }
        by_bucket
    }

    pub async fn read(
        &self,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        let call = self.read_call(user, from, device, page);
        let bulk = self.redis.bulk();
        let bucket = self.bucket(user);
        let check = async || self.compare_bucket(bucket).await;
        let reply: Vec<Value> = self.checks.read(bucket, || bulk.numbered_script(&call), check).await?;
        reading(&reply).ok_or_else(|| BackplaneError::unexpected(format!("{reply:?}")))
    }

    fn read_call(&self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> ScriptInvocation<'_> {
        let names = self.args.names();
        let mut call = self.read.key(names.bucket_of(user));
        call.key(names.stream(user)).key(names.positions(user)).key(names.retracted(user));
        call.key(names.expiring(user)).key(names.escalations(user));
        call.arg(user.as_str())
            .arg(fresh_epoch())
            .arg(millis(self.args.kept().ttl))
            .arg(millis(places_kept(self.args.kept().ttl)));
        call.arg(device).arg(page.entries).arg(page.bytes);
        match from {
            ReadFrom::Newest => call.arg("newest"),
            ReadFrom::Oldest => call.arg("oldest"),
            ReadFrom::After(cursor) => {
                call.arg("after").arg(format!("{:016x}", cursor.epoch)).arg(cursor.ms).arg(cursor.number)
            }
            ReadFrom::Acked(device) => call.arg("acked").arg(device),
            ReadFrom::Since(age) => call.arg("since").arg(millis(*age)),
        };
        call
    }

    /// The newest position of each user; `None` if its bucket cannot be read now, whose error is returned, too.
    pub async fn newest(
        &self,
        users: &[UserId],
    ) -> Result<(Vec<Option<Cursor>>, Option<BackplaneError>), BackplaneError> {
        let by_bucket = self.by_bucket(users);
        let steps: Vec<(Bucket, &[usize])> = by_bucket
            .iter()
            .flat_map(|(bucket, indices)| indices.chunks(NEWEST_STEP).map(|indices| (*bucket, indices)))
            .collect();
        let call = |(bucket, indices): &(Bucket, &[usize])| {
            let some = indices.iter().filter_map(|index| users.get(*index));
            self.newest_call(*bucket, some.collect::<Vec<_>>().as_slice())
        };
        let calls: Vec<_> = steps.iter().map(call).collect();
        let replies: Vec<RedisResult<Vec<String>>> = self.redis.bulk().scripts(&self.newest, &calls).await?;
        let (mut newest, mut failed) = (vec![None; users.len()], None);
        for ((_, indices), reply) in steps.iter().zip(replies) {
            let cursors = positions(reply, indices.len()).unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            });
            for (index, cursor) in indices.iter().zip(cursors) {
                newest.get_mut(*index).into_iter().for_each(|newest| *newest = Some(cursor));
            }
        }
        Ok((newest, failed))
    }

    fn newest_call(&self, bucket: Bucket, users: &[&UserId]) -> Cmd {
        let names = self.args.names();
        let mut keys = vec![names.bucket(bucket)];
        // In a cluster no version stored without a place, and a script with one key is executed even while its slot moves.
        if self.layout == Layout::One {
            keys.extend(users.iter().map(|user| names.stream(user)));
        }
        let mut call = self.newest.call(&keys);
        call.arg(fresh_epoch());
        for user in users {
            call.arg(user.as_str());
        }
        call
    }

    /// Moves read positions; each may fail separately.
    pub async fn ack(&self, acks: &[Ack], to: Move) -> Result<Vec<Result<Acked, BackplaneError>>, BackplaneError> {
        let call = |ack: &Ack| self.ack_call(ack, to);
        let mut moved = Vec::with_capacity(acks.len());
        for some in acks.chunks(ACK_STEP) {
            let calls: Vec<_> = some.iter().map(call).collect();
            moved.extend(self.redis.bulk().scripts(&self.ack, &calls).await?.iter().map(acked));
        }
        if moved.len() == acks.len() { Ok(moved) } else { Err(BackplaneError::unexpected("of the wrong length")) }
    }

    fn ack_call(&self, Ack { user, device, cursor, by }: &Ack, to: Move) -> Cmd {
        let (names, ttl) = (self.args.names(), self.args.kept().ttl);
        let mut call = self.ack.call(&[
            names.bucket_of(user),
            names.stream(user),
            names.positions(user),
            names.retracted(user),
            names.expiring(user),
            names.escalations(user),
        ]);
        call.arg(user.as_str()).arg(device).arg(cursor.to_string());
        call.arg(if to == Move::Forward { "forward" } else { "exactly" });
        call.arg(MAX_DEVICES).arg(millis(ttl.saturating_mul(POSITIONS_KEPT)));
        call.arg(millis(ttl)).arg(millis(places_kept(ttl))).arg(self.args.channel(user));
        call.arg(by.map_or_else(String::new, |by| by.to_string()));
        call
    }
}

fn positions(reply: RedisResult<Vec<String>>, count: usize) -> Result<Vec<Cursor>, BackplaneError> {
    let reply = reply?;
    let (pairs, []) = reply.as_chunks::<2>() else { return Err(BackplaneError::unexpected("of the wrong length")) };
    if pairs.len() != count {
        return Err(BackplaneError::unexpected("of the wrong length"));
    }
    let cursor = |[epoch, position]: &[String; 2]| {
        let text = format!("{epoch}-{position}");
        text.parse().map_err(|_| BackplaneError::unexpected(text))
    };
    pairs.iter().map(cursor).collect()
}

fn acked(reply: &RedisResult<String>) -> Result<Acked, BackplaneError> {
    match reply.as_deref() {
        Ok("kept") => Ok(Acked::Kept),
        Ok("foreign") => Ok(Acked::Foreign),
        Ok("full") => Ok(Acked::TooManyDevices),
        Ok(other) => Err(BackplaneError::unexpected(other)),
        // Another program wrote to this user's keys.
        Err(error) if is_wrong_type(error) => Ok(Acked::Foreign),
        Err(error) => Err(error.clone().into()),
    }
}

fn cursor(reply: &str) -> Result<Option<Cursor>, BackplaneError> {
    if let Some(error) = BackplaneError::of_reply(reply) {
        return Err(error);
    }
    match reply {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| BackplaneError::unexpected(text)),
    }
}

fn reading(reply: &[Value]) -> Option<Reading> {
    let text = |value: &Value| String::from_redis_value_ref(value).ok();
    let [epoch, whole, from, upto, newest, acked, unread, entries @ ..] = reply else { return None };
    let epoch = text(epoch)?;
    let cursor = |value: &Value| format!("{epoch}-{}", text(value)?).parse::<Cursor>().ok();
    let (fours, []) = entries.as_chunks::<4>() else { return None };
    let entry = |[position, event, data, collapse]: &[Value; 4]| {
        let EventName { event, trace } = EventName::parse(&text(event)?)?;
        let collapse = Some(text(collapse)?).filter(|key| !key.is_empty());
        let collapse = collapse.map(|key| serde_json::from_str(&key)).transpose().ok()?;
        Some(Entry { cursor: cursor(position)?, event, data: text(data)?, collapse, trace })
    };
    Some(Reading {
        whole: text(whole)? == "1",
        from: cursor(from)?,
        upto: cursor(upto)?,
        newest: cursor(newest)?,
        entries: fours.iter().map(entry).collect::<Option<_>>()?,
        acked: cursor(acked),
        unread: u64::from_redis_value_ref(unread).ok()?,
    })
}
