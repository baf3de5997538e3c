//! The shared counts in Redis, for limits across the fleet: connects in a second, and connections of each user.

use std::sync::Arc;

use redis::pipe;

use crate::backplane::BackplaneError;
use crate::protocol::UserId;
use crate::redis::{Redis, Script};

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

/// What is read of the leases.
#[derive(Debug)]
pub(super) struct Look {
    pub era: String,
    /// The number of the last renewal.
    pub last: f64,
    pub oldest: Option<f64>,
    /// Each with its number.
    pub found: Vec<(String, f64)>,
}

pub struct RedisLimits {
    redis: Arc<Redis>,
    prefix: String,
    rate: Script,
    hold: Script,
    claim: Script,
    expel: Script,
}

impl std::fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisLimits").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl RedisLimits {
    pub fn new(redis: Arc<Redis>, prefix: &str) -> Self {
        Self {
            redis,
            prefix: prefix.to_owned(),
            rate: Script::new(include_str!("scripts/rate.lua")),
            hold: Script::new(include_str!("scripts/hold.lua")),
            claim: Script::new(include_str!("scripts/claim.lua")),
            expel: Script::new(include_str!("scripts/expel.lua")),
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
        let mut invocation = self.hold.key(self.key("leases"));
        invocation.key(self.held(earlier)).key(self.key("renewed")).arg(holder).arg(earlier);
        self.redis.counted(self.redis.commands().script(&invocation).await)
    }

    /// Writes claims, of at most `most` permits for each user, and renews the lease of a holder that has permits for `size`
    /// users, however late. `None`: the holder is fenced. Then, and after an error, it must take a new lease under another name.
    pub async fn claim(
        &self,
        holder: &str,
        size: usize,
        most: u32,
        claims: &[Claim],
    ) -> Result<Option<Granted>, BackplaneError> {
        let mut invocation = self.claim.key(self.key("leases"));
        invocation.key(self.held(holder)).key(self.key("renewed"));
        invocation.arg(holder).arg(most).arg(size).arg(self.key("held:"));
        for claim in claims {
            invocation.arg(claim.user.as_str()).arg(claim.has).arg(claim.wants);
        }
        let reply: Option<Vec<u32>> = self.redis.counted(self.redis.commands().script(&invocation).await)?;
        let Some((size, permits)) = reply.as_deref().and_then(<[u32]>::split_first) else { return Ok(None) };
        Ok(Some(Granted { size: usize::try_from(*size).unwrap_or(usize::MAX), permits: permits.to_vec() }))
    }

    /// Reads the holders with numbers up to `dead_up_to`.
    pub(super) async fn look(&self, dead_up_to: f64) -> Result<Look, BackplaneError> {
        let holders = self.key("leases");
        let mut read = pipe();
        read.cmd("HMGET").arg(self.key("renewed")).arg("era").arg("number");
        read.cmd("ZRANGE").arg(&holders).arg(0).arg(0).arg("WITHSCORES");
        read.cmd("ZRANGEBYSCORE").arg(&holders).arg("-inf").arg(dead_up_to).arg("WITHSCORES");
        type Holders = Vec<(String, f64)>;
        let read: ((Option<String>, Option<f64>), Holders, Holders) =
            self.redis.counted(self.redis.commands().pipeline(&read).await)?;
        let ((era, last), oldest, found) = read;
        let oldest = oldest.first().map(|(_, number)| *number);
        Ok(Look { era: era.unwrap_or_default(), last: last.unwrap_or_default(), oldest, found })
    }

    /// Removes a dead holder and its permits, unless it has been renewed since.
    pub(super) async fn expel(&self, holder: &str, number: f64) -> Result<(), BackplaneError> {
        let mut invocation = self.expel.key(self.key("leases"));
        invocation.key(self.held(holder)).arg(holder).arg(number);
        self.redis.counted(self.redis.commands().script(&invocation).await)
    }
}
