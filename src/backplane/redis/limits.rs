//! What instances count together, for limits that hold across the fleet: connects in a second, and slots of users.

use std::time::Duration;

use redis::Script;

use super::link::Link;
use crate::backplane::BackplaneError;
use crate::backplane::memory::millis;
use crate::protocol::UserId;

/// How many slots of one user an instance has, and how many more it wants.
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
    /// Of how many users the holder has slots now.
    pub size: usize,
    /// How many more it was granted, claim by claim.
    pub slots: Vec<u32>,
}

pub(super) struct Limits {
    prefix: String,
    lease: Duration,
    rate: Script,
    hold: Script,
    claim: Script,
}

impl Limits {
    pub(super) fn new(prefix: &str, lease: Duration) -> Self {
        Self {
            prefix: prefix.to_owned(),
            lease,
            rate: Script::new(include_str!("scripts/rate.lua")),
            hold: Script::new(include_str!("scripts/hold.lua")),
            claim: Script::new(include_str!("scripts/claim.lua")),
        }
    }

    /// A key of the slots: all of them lie in one hash slot.
    fn key(&self, name: &str) -> String {
        format!("{{{}slots}}:{name}", self.prefix)
    }

    fn held(&self, holder: &str) -> String {
        self.key(&format!("held:{holder}"))
    }

    pub(super) async fn count(&self, link: &Link, key: &str) -> Result<u32, BackplaneError> {
        link.script(&self.rate.key(format!("{}rate:{{{key}}}", self.prefix))).await
    }

    pub(super) async fn hold(&self, link: &Link, holder: &str, earlier: Option<&str>) -> Result<(), BackplaneError> {
        let earlier = earlier.unwrap_or_default();
        let mut invocation = self.hold.key(self.key("holders"));
        invocation.key(self.held(earlier)).arg(holder).arg(millis(self.lease)).arg(earlier);
        link.script(&invocation).await
    }

    pub(super) async fn claim(
        &self,
        link: &Link,
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
        let answer: Option<Vec<u32>> = link.script(&invocation).await?;
        let Some((size, slots)) = answer.as_deref().and_then(<[u32]>::split_first) else { return Ok(None) };
        Ok(Some(Granted { size: usize::try_from(*size).unwrap_or(usize::MAX), slots: slots.to_vec() }))
    }
}
