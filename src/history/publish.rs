//! Keys and arguments of the publish scripts, shared by the history store and the outbox relay.

use redis::Cmd;

use super::store::{KEY_KEPT, Publication};
use crate::config;
use crate::protocol::{UserId, millis};

/// Publications in one pipeline.
pub const PUBLISH_STEP: usize = 500;

/// Bytes of data in one pipeline, which one publication may exceed: every instance receives them in one burst.
pub const PUBLISH_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct PublishArgs {
    prefix: String,
    kept: config::History,
}

impl PublishArgs {
    pub fn new(prefix: &str, kept: config::History) -> Self {
        Self { prefix: prefix.to_owned(), kept }
    }

    pub fn kept(&self) -> config::History {
        self.kept
    }

    /// The hash of the fleet's epoch and count.
    pub fn fleet_key(&self) -> String {
        format!("{}history", self.prefix)
    }

    /// The stream of a user's stored notifications.
    pub fn stream(&self, user: &UserId) -> String {
        format!("{}history:{{{user}}}", self.prefix)
    }

    /// The hash of a user's read positions, by device.
    pub fn positions(&self, user: &UserId) -> String {
        format!("{}read:{{{user}}}", self.prefix)
    }

    /// The record of an idempotency key. User and key may contain any character, so the length of the user is included.
    pub fn once(&self, user: &UserId, key: &str) -> String {
        format!("{}key:{}:{{{user}}}:{key}", self.prefix, user.as_str().len())
    }

    /// The keys of `publish.lua`.
    pub fn keys(&self, user: &UserId, key: Option<&str>) -> Vec<String> {
        let mut keys = vec![self.fleet_key(), self.stream(user)];
        keys.extend(key.map(|key| self.once(user, key)));
        keys
    }

    /// Adds the arguments of `publish.lua`.
    pub fn add_to(&self, call: &mut Cmd, user: &UserId, publication: &Publication<'_>) {
        let Publication { event, data, ttl, .. } = *publication;
        let ttl = ttl.filter(|ttl| *ttl < self.kept.ttl);
        call.arg(user.as_str()).arg(fresh_epoch());
        // Serialising a string cannot fail.
        call.arg(serde_json::to_string(event).unwrap_or_default()).arg(data);
        call.arg(self.kept.max_len).arg(millis(self.kept.ttl));
        call.arg(ttl.map_or_else(String::new, |ttl| millis(ttl).to_string())).arg(millis(KEY_KEPT));
    }
}

/// Used if Redis has no epoch.
pub fn fresh_epoch() -> String {
    format!("{:016x}", fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    #[test]
    fn keys_of_different_users_never_collide() {
        let args = PublishArgs::new("tidings:", Config::load(Layers::default()).unwrap().history);
        let once = |user: &str, key: &str| args.once(&UserId::new(user).unwrap(), key);
        assert_eq!(once("42", "k"), "tidings:key:2:{42}:k");
        assert_ne!(once("a}:b", "k"), once("a", "b}:k"));
        assert_ne!(once("a}:1", "y}:6:k"), once("a", "1}:y}:6:k"));
    }
}
