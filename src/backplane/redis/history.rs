//! Users' stored notifications: `{prefix}history:{USER}`, a stream each, written and read by scripts alone.

use redis::{Cmd, FromRedisValue, Script, Value, pipe};

use super::link::{Link, Pipelined};
use crate::backplane::history::{
    Acked, Entry, KEY_KEPT, MAX_DEVICES, Move, POSITIONS_KEPT, PageSize, Publication, Published, ReadFrom, Reading,
};
use crate::backplane::memory::millis;
use crate::backplane::{BackplaneError, USER_CHANNEL};
use crate::config;
use crate::protocol::{Cursor, UserId};

/// Most publications sent to Redis at once.
pub(super) const PUBLISH_STEP: usize = 500;

/// Most bytes of them, one aside: they reach every instance at once.
pub(super) const PUBLISH_BYTES: usize = 1 << 20;

/// Users asked for in one script: it has the newest notification of each in memory.
const NEWEST_STEP: usize = 100;

/// Read positions sent at once.
const ACK_STEP: usize = 500;

pub(super) struct History {
    prefix: String,
    kept: config::History,
    publish: Pipelined,
    publish_once: Pipelined,
    read: Script,
    newest: Pipelined,
    ack: Pipelined,
}

impl History {
    pub(super) fn new(prefix: &str, kept: config::History) -> Self {
        Self {
            prefix: prefix.to_owned(),
            kept,
            publish: Pipelined::new(include_str!("scripts/publish.lua")),
            publish_once: Pipelined::new(include_str!("scripts/publish_once.lua")),
            read: Script::new(include_str!("scripts/read.lua")),
            newest: Pipelined::new(include_str!("scripts/newest.lua")),
            ack: Pipelined::new(include_str!("scripts/ack.lua")),
        }
    }

    /// The fleet's: epoch and count.
    pub(super) fn key(&self) -> String {
        format!("{}history", self.prefix)
    }

    pub(super) fn stream(&self, user: &UserId) -> String {
        format!("{}history:{{{user}}}", self.prefix)
    }

    /// By device.
    pub(super) fn positions(&self, user: &UserId) -> String {
        format!("{}read:{{{user}}}", self.prefix)
    }

    /// Both may have any character in them: the length tells where the user ends.
    fn once(&self, user: &UserId, key: &str) -> String {
        format!("{}key:{}:{{{user}}}:{key}", self.prefix, user.as_str().len())
    }

    /// Publishes to each of these users; gives what became of it, in their order.
    pub(super) async fn publish(&self, link: &Link, users: &[UserId], publication: &Publication<'_>) -> Vec<Published> {
        let mut published = Vec::with_capacity(users.len());
        let step = (PUBLISH_BYTES / publication.data.len().max(1)).clamp(1, PUBLISH_STEP);
        for some in users.chunks(step) {
            match self.publish_some(link, some, publication).await {
                Ok(outcomes) => published.extend(outcomes),
                Err(error) => {
                    // Whoever comes after would meet the same.
                    let kind = error.kind();
                    published.resize_with(users.len(), || Err(kind));
                    break;
                }
            }
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
        let calls: Vec<_> = users.iter().map(|user| self.call(user, publication)).collect();
        let answers: Vec<redis::RedisResult<String>> = link.scripts(script, &calls).await?;
        Ok(answers.into_iter().map(|answer| place(answer).map_err(|error| error.kind())).collect())
    }

    fn call(&self, user: &UserId, publication: &Publication<'_>) -> Cmd {
        let Publication { durable, key, .. } = *publication;
        if !durable {
            let once = key.map(|key| self.once(user, key));
            let mut call = self.publish_once.call(&[once.unwrap_or_default()]);
            call.arg(user.as_str()).arg(publication.message().as_ref()).arg(millis(KEY_KEPT));
            return call;
        }
        let mut call = self.publish.call(&self.publish_keys(user, key));
        self.add_publish_args(&mut call, user, publication);
        call
    }

    /// The keys of `publish.lua`.
    pub(super) fn publish_keys(&self, user: &UserId, key: Option<&str>) -> Vec<String> {
        let mut keys = vec![self.key(), self.stream(user)];
        keys.extend(key.map(|key| self.once(user, key)));
        keys
    }

    /// The arguments of `publish.lua`.
    pub(super) fn add_publish_args(&self, call: &mut Cmd, user: &UserId, publication: &Publication<'_>) {
        let Publication { event, data, ttl, .. } = *publication;
        let ttl = ttl.filter(|ttl| *ttl < self.kept.ttl);
        call.arg(user.as_str()).arg(fresh_epoch());
        // A text always serialises.
        call.arg(serde_json::to_string(event).unwrap_or_default()).arg(data);
        call.arg(self.kept.max_len).arg(millis(self.kept.ttl));
        call.arg(ttl.map_or_else(String::new, |ttl| millis(ttl).to_string())).arg(millis(KEY_KEPT));
    }

    pub(super) async fn read(
        &self,
        link: &Link,
        user: &UserId,
        from: &ReadFrom,
        device: &str,
        page: PageSize,
    ) -> Result<Reading, BackplaneError> {
        let mut call = self.read.key(self.key());
        call.key(self.stream(user)).key(self.positions(user));
        call.arg(user.as_str()).arg(fresh_epoch()).arg(millis(self.kept.ttl)).arg(device);
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
        let answer: Vec<Value> = link.script(&call).await?;
        reading(&answer).ok_or_else(|| BackplaneError::Answer(format!("{answer:?}").chars().take(80).collect()))
    }

    /// Where the newest of each is, in their order; with number 0 where nothing is stored.
    pub(super) async fn newest(&self, link: &Link, users: &[UserId]) -> Result<Vec<Cursor>, BackplaneError> {
        let call = |some: &[UserId]| {
            let mut keys = vec![self.key()];
            keys.extend(some.iter().map(|user| self.stream(user)));
            let mut call = self.newest.call(&keys);
            call.arg(fresh_epoch());
            for user in some {
                call.arg(user.as_str());
            }
            call
        };
        let calls: Vec<_> = users.chunks(NEWEST_STEP).map(call).collect();
        let answers: Vec<redis::RedisResult<Vec<String>>> = link.scripts(&self.newest, &calls).await?;
        let mut newest = Vec::with_capacity(users.len());
        for answer in answers {
            for pair in answer?.as_chunks::<2>().0 {
                let [epoch, place] = pair;
                let cursor = format!("{epoch}-{place}").parse();
                newest.push(cursor.map_err(|_| BackplaneError::Answer(format!("{epoch}-{place}")))?);
            }
        }
        if newest.len() == users.len() { Ok(newest) } else { Err(BackplaneError::Answer("of another length".into())) }
    }
}

impl History {
    /// Moves read positions; gives what became of each, in their order.
    pub(super) async fn ack(
        &self,
        link: &Link,
        acks: &[(UserId, String, Cursor)],
        how: Move,
    ) -> Result<Vec<Acked>, BackplaneError> {
        let call = |(user, device, cursor): &(UserId, String, Cursor)| {
            let mut call = self.ack.call(&[self.key(), self.stream(user), self.positions(user)]);
            call.arg(user.as_str()).arg(device).arg(cursor.to_string());
            call.arg(if how == Move::Forward { "forward" } else { "exactly" });
            call.arg(MAX_DEVICES).arg(millis(self.kept.ttl.saturating_mul(POSITIONS_KEPT)));
            call
        };
        let mut acked = Vec::with_capacity(acks.len());
        for some in acks.chunks(ACK_STEP) {
            let calls: Vec<_> = some.iter().map(call).collect();
            let answers: Vec<redis::RedisResult<String>> = link.scripts(&self.ack, &calls).await?;
            for answer in answers {
                acked.push(match answer.as_deref() {
                    Ok("kept") => Acked::Kept,
                    Ok("foreign") => Acked::Foreign,
                    Ok("full") => Acked::TooManyDevices,
                    Ok(other) => return Err(BackplaneError::Answer(other.chars().take(80).collect())),
                    // Somebody else wrote to this user's keys: the others need not wait for that.
                    Err(error) if error.code() == Some("WRONGTYPE") => Acked::Foreign,
                    Err(error) => return Err(error.clone().into()),
                });
            }
        }
        if acked.len() == acks.len() { Ok(acked) } else { Err(BackplaneError::Answer("of another length".into())) }
    }
}

/// For a Redis that has none, or has lost it.
fn fresh_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The cursor of a script's answer, where it is one.
fn place(answer: redis::RedisResult<String>) -> Result<Option<Cursor>, BackplaneError> {
    match answer?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| BackplaneError::Answer(text.chars().take(80).collect())),
    }
}

fn reading(answer: &[Value]) -> Option<Reading> {
    let text = |value: &Value| String::from_redis_value_ref(value).ok();
    let [epoch, whole, from, upto, newest, acked, unread, entries @ ..] = answer else { return None };
    let epoch = text(epoch)?;
    let cursor = |value: &Value| format!("{epoch}-{}", text(value)?).parse::<Cursor>().ok();
    let (triples, []) = entries.as_chunks::<3>() else { return None };
    let entry = |[place, event, data]: &[Value; 3]| {
        let event = serde_json::from_str(&text(event)?).ok()?;
        Some(Entry { cursor: cursor(place)?, event, data: text(data)? })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    #[test]
    fn no_key_of_one_user_is_another_of_another_user() {
        let history = History::new("tidings:", Config::load(Layers::default()).unwrap().history);
        let once = |user: &str, key: &str| history.once(&UserId::new(user).unwrap(), key);
        assert_eq!(once("42", "k"), "tidings:key:2:{42}:k");
        assert_ne!(once("a}:b", "k"), once("a", "b}:k"));
        assert_ne!(once("a}:1", "y}:6:k"), once("a", "1}:y}:6:k"));
    }
}
