//! The shared list of revoked tokens: `{prefix}revoked`, a sorted set of their `jti` by the end of the revocation.
//!
//! Without Redis there is no other instance, and nothing is stored.

use std::sync::Arc;

use redis::cmd;

use crate::backplane::{Backplane, BackplaneError};
use crate::protocol::Revocation;
use crate::redis::{Redis, Script};

/// Revocations read or written in one step.
const STEP: usize = 1_000;

pub enum RevocationStore {
    Memory,
    Redis(RedisRevocations),
}

pub struct RedisRevocations {
    redis: Arc<Redis>,
    key: String,
    revoke: Script,
}

impl std::fmt::Debug for RevocationStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if matches!(self, Self::Memory) { "Memory" } else { "Redis" };
        f.debug_tuple("RevocationStore").field(&name).finish()
    }
}

impl RevocationStore {
    pub fn new(prefix: &str, backplane: &Backplane) -> Self {
        let Some(redis) = backplane.redis() else { return Self::Memory };
        let revoke = Script::new(include_str!("scripts/revoke.lua"));
        Self::Redis(RedisRevocations { redis: Arc::clone(redis), key: format!("{prefix}revoked"), revoke })
    }

    /// Adds to the list, up to `most` entries, and drops those that ended more than a day ago; returns how many were refused
    /// because the list is full. May be repeated after an error.
    pub async fn add(&self, revocations: &[Revocation], most: usize) -> Result<u64, BackplaneError> {
        match self {
            Self::Memory => Ok(0),
            Self::Redis(store) => store.redis.counted(store.add(revocations, most).await),
        }
    }

    /// The number of revocations that end after `oldest`, in seconds since 1970.
    pub async fn count(&self, oldest: u64) -> Result<usize, BackplaneError> {
        match self {
            Self::Memory => Ok(0),
            Self::Redis(store) => store.redis.counted(store.count(oldest).await),
        }
    }

    /// A page of the list from an index, the latest end first, so that dropping ended entries moves no other; empty at the
    /// end.
    pub async fn page(&self, from: usize) -> Result<Vec<Revocation>, BackplaneError> {
        match self {
            Self::Memory => Ok(Vec::new()),
            Self::Redis(store) => store.redis.counted(store.page(from).await),
        }
    }
}

impl RedisRevocations {
    async fn add(&self, revocations: &[Revocation], most: usize) -> Result<u64, BackplaneError> {
        let mut refused = 0;
        for some in revocations.chunks(STEP) {
            let mut call = self.revoke.key(&self.key);
            call.arg(most);
            for Revocation { jti, until } in some {
                call.arg(*until).arg(jti);
            }
            refused += self.redis.commands().script::<u64>(&call).await?;
        }
        Ok(refused)
    }

    async fn count(&self, oldest: u64) -> Result<usize, BackplaneError> {
        let count = cmd("ZCOUNT").arg(&self.key).arg(format!("({oldest}")).arg("+inf").to_owned();
        self.redis.commands().command(&count).await
    }

    async fn page(&self, from: usize) -> Result<Vec<Revocation>, BackplaneError> {
        let range = cmd("ZREVRANGE").arg(&self.key).arg(from).arg(from + STEP - 1).arg("WITHSCORES").to_owned();
        let page: Vec<(Vec<u8>, f64)> = self.redis.commands().command(&range).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds, which the cast saturates")]
        let revocation = |(jti, until): (Vec<u8>, f64)| {
            // A foreign entry that is not UTF-8 matches no token.
            Revocation { jti: String::from_utf8_lossy(&jti).into_owned(), until: until as u64 }
        };
        Ok(page.into_iter().map(revocation).collect())
    }
}
