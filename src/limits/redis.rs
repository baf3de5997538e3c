//! The counts that instances share, for limits across the fleet: connects in a second, and connections of each user.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use crate::backplane::BackplaneError;
use crate::protocol::{UserId, millis};
use crate::redis::Redis;

/// How many permits of one user an instance has, and how many more it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub user: UserId,
    /// Written as it is.
    pub has: u32,
    /// Granted as far as there is room.
    pub wants: u32,
}

/// What became of some claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Of how many users the holder has permits now.
    pub size: usize,
    /// How many more it was granted, claim by claim.
    pub permits: Vec<u32>,
}

/// The shared counts in Redis.
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
    /// Under this prefix; holders have this lease.
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

    /// A key of the permits: all of them lie in one hash permit.
    fn key(&self, name: &str) -> String {
        format!("{{{}slots}}:{name}", self.prefix)
    }

    fn held(&self, holder: &str) -> String {
        self.key(&format!("held:{holder}"))
    }

    /// Counts one connect under this key; gives how many all instances counted in this second.
    pub async fn count_connect(&self, key: &str) -> Result<u32, BackplaneError> {
        let count = self.rate.key(format!("{}rate:{{{key}}}", self.prefix));
        self.redis.counted(self.redis.commands().script(&count).await)
    }

    /// Takes a lease for a new holder; that of the `earlier` one of the same instance ends. It may be repeated after an
    /// error.
    pub async fn hold(&self, holder: &str, earlier: Option<&str>) -> Result<(), BackplaneError> {
        let earlier = earlier.unwrap_or_default();
        let mut invocation = self.hold.key(self.key("holders"));
        invocation.key(self.held(earlier)).arg(holder).arg(millis(self.lease)).arg(earlier);
        self.redis.counted(self.redis.commands().script(&invocation).await)
    }

    /// Writes claims, of at most `most` permits for each user, and renews the lease of a holder that has permits of `size`
    /// users. `None`: the holder is fenced, and must start over under another name. After an error it must do so, too.
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
        let answer: Option<Vec<u32>> = self.redis.counted(self.redis.commands().script(&invocation).await)?;
        let Some((size, permits)) = answer.as_deref().and_then(<[u32]>::split_first) else { return Ok(None) };
        Ok(Some(Granted { size: usize::try_from(*size).unwrap_or(usize::MAX), permits: permits.to_vec() }))
    }
}
