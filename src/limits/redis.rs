//! The shared counts in Redis, for limits across the fleet: connects in a second, and connections of each user.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use crate::backplane::BackplaneError;
use crate::protocol::{UserId, millis};
use crate::redis::Redis;

/// The permits that an instance holds for one user, and the number that it requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub user: UserId,
    /// Written regardless of the limit.
    pub has: u32,
    /// Granted up to the limit.
    pub wants: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The number of users for whom the holder has permits now.
    pub size: usize,
    /// The number granted, for each claim.
    pub permits: Vec<u32>,
}

pub struct RedisLimits {
    redis: Arc<Redis>,
    prefix: String,
    lease: Duration,
    rate: Script,
    hold: Script,
    claim: Script,
}

impl std::fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisLimits").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl RedisLimits {
    pub fn new(redis: Arc<Redis>, prefix: &str, lease: Duration) -> Self {
        Self {
            redis,
            prefix: prefix.to_owned(),
            lease,
            rate: Script::new(include_str!("scripts/rate.lua")),
            hold: Script::new(include_str!("scripts/hold.lua")),
            claim: Script::new(include_str!("scripts/claim.lua")),
        }
    }

    /// A key of the permits; all of them share one hash slot.
    fn key(&self, name: &str) -> String {
        format!("{{{}slots}}:{name}", self.prefix)
    }

    fn held(&self, holder: &str) -> String {
        self.key(&format!("held:{holder}"))
    }

    /// Counts one connect under this key; returns the fleet's number in this second.
    pub async fn count_connect(&self, key: &str) -> Result<u32, BackplaneError> {
        let count = self.rate.key(format!("{}rate:{{{key}}}", self.prefix));
        self.redis.counted(self.redis.commands().script(&count).await)
    }

    /// Takes a lease for a new holder, and ends that of the instance's `earlier` one. May be repeated after an error.
    pub async fn hold(&self, holder: &str, earlier: Option<&str>) -> Result<(), BackplaneError> {
        let earlier = earlier.unwrap_or_default();
        let mut invocation = self.hold.key(self.key("holders"));
        invocation.key(self.held(earlier)).arg(holder).arg(millis(self.lease)).arg(earlier);
        self.redis.counted(self.redis.commands().script(&invocation).await)
    }

    /// Writes claims, of at most `most` permits for each user, and renews the lease of a holder that has permits for `size`
    /// users. `None`: the holder is fenced. Then, and after an error, it must take a new lease under another name.
    pub async fn claim(
        &self,
        holder: &str,
        size: usize,
        most: u32,
        claims: &[Claim],
    ) -> Result<Option<Granted>, BackplaneError> {
        let mut invocation = self.claim.key(self.key("holders"));
        invocation.key(self.held(holder)).arg(holder).arg(millis(self.lease)).arg(most).arg(size);
        invocation.arg(self.key("held:"));
        for claim in claims {
            invocation.arg(claim.user.as_str()).arg(claim.has).arg(claim.wants);
        }
        let reply: Option<Vec<u32>> = self.redis.counted(self.redis.commands().script(&invocation).await)?;
        let Some((size, permits)) = reply.as_deref().and_then(<[u32]>::split_first) else { return Ok(None) };
        Ok(Some(Granted { size: usize::try_from(*size).unwrap_or(usize::MAX), permits: permits.to_vec() }))
    }
}
