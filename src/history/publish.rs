//! Keys and arguments of the publish scripts, shared by the history store and the outbox relay.

use std::time::Duration;

use redis::Cmd;

use super::layout::{Bucket, Keys, Layout};
use super::store::{KEY_KEPT, Publication, places_kept};
use crate::config;
use crate::protocol::{UserId, millis};

/// The first keys of a notification, all that a plain one has.
const PLAIN_KEYS: usize = 4;

/// Publications in one pipeline.
pub const PUBLISH_STEP: usize = 500;

/// Notifications in one call of a script, and the bytes of their data, which one may exceed: Redis executes nothing else meanwhile.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 64 * 1024;

/// Bytes of data in one pipeline, which one publication may exceed: every instance receives them in one burst.
pub const PUBLISH_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct PublishArgs {
    keys: Keys,
    user_channel: String,
    kept: config::History,
}

impl PublishArgs {
    pub fn new(redis: &config::Redis, kept: config::History, layout: Layout) -> Self {
        Self { keys: Keys::new(&redis.prefix, layout), user_channel: redis.user_channel.clone(), kept }
    }

    pub fn kept(&self) -> config::History {
        self.kept
    }

    /// The channel on which a user's notifications are published.
    pub fn channel(&self, user: &UserId) -> String {
        format!("{}{user}", self.user_channel)
    }

    /// The bucket of a user's history.
    pub fn bucket(&self, user: &UserId) -> Bucket {
        self.keys.layout.bucket(user.as_str())
    }

    pub(super) fn names(&self) -> &Keys {
        &self.keys
    }

    /// The keys of `publish.lua` that a bucket has.
    pub fn bucket_keys(&self, bucket: Bucket) -> [String; 2] {
        [self.keys.bucket(bucket), self.keys.bucket_escalations(bucket)]
    }

    /// The keys of `publish.lua` that this notification has.
    pub fn keys_of(&self, user: &UserId, publication: &Publication<'_>) -> Vec<String> {
        let mut keys = self.keys(user, publication.key);
        if self.form(publication).is_empty() {
            keys.truncate(PLAIN_KEYS);
        }
        keys
    }

    /// The keys of `publish.lua` that a notification may have.
    pub fn keys(&self, user: &UserId, key: Option<&str>) -> Vec<String> {
        let names = &self.keys;
        let mut keys = vec![
            names.stream(user),
            names.retracted(user),
            names.expiring(user),
            names.collapse(user),
            names.escalations(user),
            names.keys(user),
        ];
        keys.extend(key.map(|key| self.keys.once(user, key)));
        keys
    }

    /// The keys with which a user's due escalations are judged: history, stream, read positions, and the escalations
    /// of the user and of the bucket.
    pub fn escalation_keys(&self, user: &UserId) -> [String; 5] {
        let names = &self.keys;
        [
            names.bucket_of(user),
            names.stream(user),
            names.positions(user),
            names.escalations(user),
            names.bucket_escalations(self.bucket(user)),
        ]
    }

    /// Adds the arguments of `publish.lua` that all notifications of a call share.
    pub fn add_shared(&self, call: &mut Cmd) {
        call.arg(fresh_epoch()).arg(self.kept.max_len).arg(millis(self.kept.ttl)).arg(millis(KEY_KEPT));
        call.arg(millis(places_kept(self.kept.ttl))).arg(&self.user_channel);
    }

    /// Adds the arguments of a notification, with those that the script adds, and event and data unless they are those of the one
    /// before.
    pub fn add_to(&self, call: &mut Cmd, user: &UserId, publication: &Publication<'_>, more: &[&str], is_same: bool) {
        let named = if is_same { "" } else { "d" };
        call.arg(user.as_str()).arg(format!("{named}{}", self.form(publication))).arg(more);
        if !is_same {
            call.arg(publication.name()).arg(publication.data);
        }
        if let Some(ttl) = self.own_ttl(publication) {
            call.arg(millis(ttl));
        }
        if let Some(key) = publication.collapse {
            // Serialising a string cannot fail.
            call.arg(serde_json::to_string(key).unwrap_or_default());
        }
        if let Some(after) = publication.escalate {
            call.arg(millis(after));
        }
    }

    /// What a notification has beside event and data, as `publish.lua` names it: nothing of a plain one.
    fn form(&self, publication: &Publication<'_>) -> String {
        let has = [
            (self.own_ttl(publication).is_some(), 't'),
            (publication.collapse.is_some(), 'c'),
            (publication.escalate.is_some(), 'e'),
            (publication.key.is_some(), 'k'),
        ];
        has.into_iter().filter_map(|(has, letter)| has.then_some(letter)).collect()
    }

    fn own_ttl(&self, publication: &Publication<'_>) -> Option<Duration> {
        publication.ttl.filter(|ttl| *ttl < self.kept.ttl)
    }
}

/// Divides notifications, each with the bytes of its data, into runs for one call of a script each.
pub fn batches<T>(mut all: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut total = 0;
        let fits = |one: &&T| {
            total += bytes(one);
            total <= BATCH_BYTES
        };
        let count = all.iter().take(BATCH).take_while(fits).count().clamp(usize::from(!all.is_empty()), all.len());
        let (batch, rest) = all.split_at_checked(count).filter(|(batch, _)| !batch.is_empty())?;
        all = rest;
        Some(batch)
    })
}

/// Used if Redis has no epoch.
pub fn fresh_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_so_many_notifications_and_bytes_at_most_and_one_at_least() {
        let sizes = |all: &[usize]| batches(all, |size| *size).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 250]), [100, 100, 50]);
        assert_eq!(sizes(&[BATCH_BYTES + 1, 1, BATCH_BYTES - 1, 1]), [1, 2, 1]);
    }
}
