//! Presence queries of backends and operators, on the keys that the scripts write.

use redis::{cmd, pipe};
use tokio::time::Instant;

use super::redis::RedisPresence;
use super::store::{LiveInstance, Page, PageCursor, UserPresence, instance_of};
use crate::backplane::BackplaneError;
use crate::protocol::{UserId, millis};

/// The incarnations that are not being reaped, each with the number of its last renewal, and the current time by Redis's
/// clock, for last-seen times.
struct Leases {
    now: u64,
    live: Vec<(String, f64)>,
}

impl RedisPresence {
    async fn leases(&self) -> Result<Leases, BackplaneError> {
        let mut both = pipe();
        both.cmd("TIME").cmd("ZRANGE").arg(self.key("instances")).arg(0).arg(-1).arg("WITHSCORES");
        let ((seconds, micros), all): ((u64, u64), Vec<(String, f64)>) = self.redis.commands().pipeline(&both).await?;
        let now = seconds * 1_000 + micros / 1_000;
        Ok(Leases { now, live: all.into_iter().filter(|(_, renewed)| *renewed > 0.0).collect() })
    }

    pub(super) async fn forget(&self, user: &UserId) -> Result<(), BackplaneError> {
        let forget = cmd("ZREM").arg(self.key("last_seen")).arg(user.as_str()).to_owned();
        self.redis.commands().command(&forget).await
    }

    pub(super) async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BackplaneError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let Leases { now, live } = self.leases().await?;
        let names = || users.iter().map(UserId::as_str);
        let mut commands = pipe();
        let mut query = |command: &str, key: String| {
            commands.cmd(command).arg(key);
            names().for_each(|name| {
                commands.arg(name);
            });
        };
        query("SMISMEMBER", self.set().to_owned());
        query("ZMSCORE", self.key("last_seen"));
        live.iter().for_each(|(incarnation, _)| query("HMGET", self.held(incarnation)));

        let mut replies: Vec<redis::Value> = self.redis.commands().pipeline(&commands).await?;
        let held: Vec<Vec<Option<u64>>> = replies
            .split_off(2)
            .into_iter()
            .map(redis::from_redis_value)
            .collect::<Result<_, _>>()
            .map_err(parse_error)?;
        let mut rest = replies.into_iter();
        let online: Vec<bool> =
            redis::from_redis_value(rest.next().unwrap_or(redis::Value::Nil)).map_err(parse_error)?;
        let seen: Vec<Option<f64>> =
            redis::from_redis_value(rest.next().unwrap_or(redis::Value::Nil)).map_err(parse_error)?;

        let connections =
            |index: usize| held.iter().filter_map(|counts| counts.get(index).copied().flatten()).sum::<u64>();
        Ok(names()
            .zip(online)
            .zip(seen)
            .enumerate()
            .map(|(index, ((user, online), seen))| {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds")]
                let last_seen = if online { Some(now) } else { seen.map(|seen| seen as u64) };
                UserPresence { user: user.to_owned(), online, connections: connections(index), last_seen }
            })
            .collect())
    }

    pub(super) async fn online_count(&self) -> Result<u64, BackplaneError> {
        self.redis.commands().command(cmd("SCARD").arg(self.set())).await
    }

    /// Users after a cursor: at most `limit`, unless a single bucket of Redis's hash table holds more.
    ///
    /// SSCAN returns a compactly encoded set whole, regardless of COUNT. Such a reply is sorted and cut, and the users up to
    /// the cut are omitted from later replies. A set that is scanned in steps is cut between two steps.
    pub(super) async fn online_page(&self, limit: usize, from: PageCursor) -> Result<Page, BackplaneError> {
        let (mut users, mut at) = (Vec::new(), from);
        loop {
            let count = limit.div_ceil(2);
            let scan = cmd("SSCAN").arg(self.set()).arg(at.position).arg("COUNT").arg(count).to_owned();
            let (position, mut step): (u64, Vec<String>) = self.redis.commands().command(&scan).await?;
            step.retain(|user| at.after.as_ref().is_none_or(|after| user > after));
            step.sort_unstable();
            step.dedup();
            if at.position == 0 && position == 0 {
                let more = step.len() > limit;
                step.truncate(limit);
                let next = PageCursor { position: 0, after: step.last().cloned() };
                return Ok(Page { users: step, next: more.then(|| next.to_string()) });
            }
            if !users.is_empty() && users.len() + step.len() > limit {
                return Ok(Page { users, next: Some(at.to_string()) });
            }
            users.extend(step);
            at.position = position;
            if position == 0 {
                return Ok(Page { users, next: None });
            }
            if users.len() >= limit {
                return Ok(Page { users, next: Some(at.to_string()) });
            }
        }
    }

    pub(super) async fn instances(&self) -> Result<Vec<LiveInstance>, BackplaneError> {
        let Leases { live, .. } = self.leases().await?;
        if live.is_empty() {
            return Ok(Vec::new());
        }
        let mut sizes = pipe();
        for (incarnation, _) in &live {
            sizes.cmd("HLEN").arg(self.held(incarnation));
        }
        let sizes: Vec<u64> = self.redis.commands().pipeline(&sizes).await?;
        let (watch, now) = (self.watch.lock(), Instant::now());
        Ok(live
            .iter()
            .zip(sizes)
            .map(|((incarnation, renewed), users)| LiveInstance {
                instance: instance_of(incarnation).to_owned(),
                users,
                lease_ms: millis(watch.remaining(*renewed, now)),
            })
            .collect())
    }
}

fn parse_error(error: redis::ParsingError) -> BackplaneError {
    BackplaneError::Redis(error.into())
}
