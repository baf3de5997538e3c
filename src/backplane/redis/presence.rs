//! The presence scripts and their keys. All keys share the plain set's hash slot, by using its name as their hash tag.

use std::time::Duration;

use redis::{Script, ScriptInvocation, cmd};

use super::link::Link;
use crate::backplane::{Applied, BackplaneError, Batch};
use crate::config;

/// Users taken from a dead incarnation in one step, so that no script holds Redis for long.
const REAP_STEP: usize = 500;

/// Dead incarnations looked at in one round.
const REAP_ROUND: usize = 16;

pub(super) struct Presence {
    set: String,
    channel: String,
    lease: Duration,
    register: Script,
    apply: Script,
    expired: Script,
    reap: Script,
}

impl Presence {
    pub(super) fn new(config: &config::Presence) -> Self {
        Self {
            set: config.set.clone(),
            channel: config.channel.clone(),
            lease: config.lease,
            register: Script::new(include_str!("scripts/register.lua")),
            apply: Script::new(include_str!("scripts/apply.lua")),
            expired: Script::new(include_str!("scripts/expired.lua")),
            reap: Script::new(include_str!("scripts/reap.lua")),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.set)
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// The keys of `apply.lua` and `reap.lua`.
    fn keyed<'a>(&self, script: &'a Script, incarnation: &str) -> ScriptInvocation<'a> {
        let mut invocation = script.key(self.key("instances"));
        invocation.key(self.key("seq"));
        invocation.key(self.key(&format!("held:{incarnation}")));
        invocation.key(self.key("count"));
        invocation.key(&self.set);
        invocation
    }

    pub(super) async fn register(&self, link: &Link, incarnation: &str) -> Result<(), BackplaneError> {
        let mut invocation = self.register.key(self.key("instances"));
        invocation.key(self.key("seq")).arg(incarnation).arg(self.lease_ms());
        link.script::<String>(&invocation).await.map(|_| ())
    }

    pub(super) async fn apply(&self, link: &Link, batch: &Batch) -> Result<Applied, BackplaneError> {
        let mut invocation = self.keyed(&self.apply, &batch.incarnation);
        invocation.arg(&batch.incarnation).arg(self.lease_ms()).arg(batch.sequence).arg(batch.held);
        invocation.arg(&self.channel).arg(batch.online.len());
        for user in batch.online.iter().chain(&batch.offline) {
            invocation.arg(user.as_str());
        }
        match link.script::<String>(&invocation).await?.as_str() {
            "OK" | "DUP" => Ok(Applied::Done),
            "GONE" => Ok(Applied::Stale("the lease ended")),
            "GAP" => Ok(Applied::Stale("a batch is missing")),
            "BROKEN" => Ok(Applied::Stale("somebody else changed the held set")),
            other => Err(BackplaneError::Answer(other.to_owned())),
        }
    }

    pub(super) async fn reap(&self, link: &Link) -> Result<u64, BackplaneError> {
        let mut invocation = self.expired.key(self.key("instances"));
        let dead: Vec<String> = link.script(invocation.arg(REAP_ROUND)).await?;
        let mut taken = 0;
        for incarnation in &dead {
            taken += self.reap_one(link, incarnation, false).await?;
        }
        Ok(taken)
    }

    /// Takes every user of one incarnation; with `end`, its lease is ended first.
    pub(super) async fn reap_one(&self, link: &Link, incarnation: &str, end: bool) -> Result<u64, BackplaneError> {
        let mut all = 0;
        loop {
            let mut invocation = self.keyed(&self.reap, incarnation);
            invocation.arg(incarnation).arg(REAP_STEP).arg(&self.channel).arg(if end { "end" } else { "" });
            let (taken, left): (u64, u64) = link.script(&invocation).await?;
            all += taken;
            if left == 0 {
                return Ok(all);
            }
        }
    }

    pub(super) async fn online(&self, link: &Link, limit: usize) -> Result<(Vec<String>, u64), BackplaneError> {
        let count = link.command(cmd("SCARD").arg(&self.set)).await?;
        let mut users = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let page: (u64, Vec<String>) =
                link.command(cmd("SSCAN").arg(&self.set).arg(cursor).arg("COUNT").arg(limit)).await?;
            users.extend(page.1);
            cursor = page.0;
            if cursor == 0 || users.len() >= limit {
                users.truncate(limit);
                users.sort_unstable();
                users.dedup();
                return Ok((users, count));
            }
        }
    }
}
