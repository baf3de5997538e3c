//! The presence scripts and their keys. The plain set's name is the hash tag of all keys, so they share its hash slot.

use std::sync::Arc;
use std::time::Duration;

use redis::{Script, ScriptInvocation, cmd};
use tokio::sync::broadcast;

use super::store::{Applied, Batch, CHANGES_KEPT};
use crate::backplane::BackplaneError;
use crate::config;
use crate::protocol::millis;
use crate::redis::Redis;

/// Users reaped or repaired by one script call, so that no script holds Redis for long.
const STEP: usize = 500;

/// Maximum number of dead incarnations reaped in one round.
const REAP_ROUND: usize = 16;

/// Retention of last-seen times.
const LAST_SEEN_KEPT: Duration = Duration::from_secs(30 * 86_400);

pub struct RedisPresence {
    pub(super) redis: Arc<Redis>,
    pub(super) changes: broadcast::Sender<Arc<str>>,
    set: String,
    channel: String,
    lease: Duration,
    offline_delay: Duration,
    register: Script,
    apply: Script,
    expired: Script,
    reap: Script,
    audit: Script,
    repair: Script,
}

impl std::fmt::Debug for RedisPresence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisPresence").field("set", &self.set).finish_non_exhaustive()
    }
}

impl RedisPresence {
    pub(super) fn new(redis: Arc<Redis>, config: &config::Presence) -> Self {
        Self {
            redis,
            changes: broadcast::channel(CHANGES_KEPT).0,
            set: config.set.clone(),
            channel: config.channel.clone(),
            lease: config.lease,
            offline_delay: config.offline_delay,
            register: Script::new(include_str!("scripts/register.lua")),
            apply: Script::new(include_str!("scripts/apply.lua")),
            expired: Script::new(include_str!("scripts/expired.lua")),
            reap: Script::new(include_str!("scripts/reap.lua")),
            audit: Script::new(include_str!("scripts/audit.lua")),
            repair: Script::new(include_str!("scripts/repair.lua")),
        }
    }

    pub(super) fn set(&self) -> &str {
        &self.set
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.set)
    }

    pub(super) fn held(&self, incarnation: &str) -> String {
        self.key(&format!("held:{incarnation}"))
    }

    /// Adds the keys of `apply.lua` and `reap.lua`.
    fn with_held<'a>(&self, script: &'a Script, incarnation: &str) -> ScriptInvocation<'a> {
        let mut invocation = script.key(self.key("instances"));
        invocation.key(self.key("seq")).key(self.held(incarnation)).key(self.key("count")).key(&self.set);
        invocation.key(self.key("total")).key(self.key("last_seen"));
        invocation
    }

    /// Adds the keys of `audit.lua` and `repair.lua`, and their first argument.
    fn over_all<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut invocation = script.key(self.key("instances"));
        invocation.key(self.key("count")).key(&self.set).key(self.key("total")).key(self.key("last_seen"));
        invocation.arg(self.key("held:"));
        invocation
    }

    /// Returns the epoch.
    pub(super) async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        let mut invocation = self.register.key(self.key("instances"));
        invocation.key(self.key("seq")).key(self.key("epoch"));
        invocation.arg(incarnation).arg(millis(self.lease)).arg(incarnation);
        self.redis.commands().script(&invocation).await
    }

    pub(super) async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        let mut invocation = self.with_held(&self.apply, &batch.incarnation);
        invocation.arg(&batch.incarnation).arg(millis(self.lease)).arg(batch.sequence).arg(batch.size);
        invocation.arg(&self.channel).arg(millis(self.offline_delay)).arg(u8::from(batch.silent));
        invocation.arg(batch.held.len());
        for (user, connections) in &batch.held {
            invocation.arg(user.as_str()).arg(*connections);
        }
        for user in &batch.released {
            invocation.arg(user.as_str());
        }
        match self.redis.commands().script::<String>(&invocation).await?.as_str() {
            "OK" | "DUP" => Ok(Applied::Done),
            "GONE" => Ok(Applied::Stale("the lease ended")),
            "GAP" => Ok(Applied::Stale("a batch is missing")),
            "BROKEN" => Ok(Applied::Stale("another program changed the held users")),
            other => Err(BackplaneError::unexpected(other)),
        }
    }

    pub(super) async fn reap(&self) -> Result<u64, BackplaneError> {
        let mut invocation = self.expired.key(self.key("instances"));
        let dead: Vec<String> = self.redis.commands().script(invocation.arg(REAP_ROUND)).await?;
        let mut taken = 0;
        for incarnation in &dead {
            taken += self.reap_one(incarnation, false).await?;
        }
        Ok(taken)
    }

    /// Reaps every user of one incarnation; with `end`, its lease is ended first.
    pub(super) async fn reap_one(&self, incarnation: &str, end: bool) -> Result<u64, BackplaneError> {
        let mut all = 0;
        loop {
            let mut invocation = self.with_held(&self.reap, incarnation);
            invocation.arg(incarnation).arg(STEP).arg(&self.channel);
            invocation.arg(if end { "end" } else { "" }).arg(millis(self.lease));
            let (taken, left): (u64, u64) = self.redis.commands().script(&invocation).await?;
            all += taken;
            if left == 0 {
                return Ok(all);
            }
        }
    }

    /// Returns the number of repaired users, or `None` if the keys are consistent.
    pub(super) async fn audit(&self) -> Result<Option<u64>, BackplaneError> {
        let mut invocation = self.over_all(&self.audit);
        if self.redis.commands().script::<bool>(invocation.arg(millis(LAST_SEEN_KEPT))).await? {
            return Ok(None);
        }
        let mut wrong = self.repair_members("SSCAN", &self.set).await?;
        wrong += self.repair_members("HSCAN", &self.key("count")).await?;
        let instances = self.key("instances");
        let incarnations: Vec<String> =
            self.redis.commands().command(cmd("ZRANGE").arg(&instances).arg(0).arg(-1)).await?;
        for incarnation in &incarnations {
            wrong += self.repair_members("HSCAN", &self.held(incarnation)).await?;
        }
        wrong += self.repair_users(&[], true).await?;
        Ok(Some(wrong))
    }

    /// Repairs every user in a set or a hash.
    async fn repair_members(&self, scan: &str, key: &str) -> Result<u64, BackplaneError> {
        let (mut wrong, mut cursor) = (0, 0_u64);
        loop {
            let page: (u64, Vec<String>) =
                self.redis.commands().command(cmd(scan).arg(key).arg(cursor).arg("COUNT").arg(STEP)).await?;
            // HSCAN returns fields and values.
            let users: Vec<String> = page.1.into_iter().step_by(if scan == "HSCAN" { 2 } else { 1 }).collect();
            for some in users.chunks(STEP) {
                wrong += self.repair_users(some, false).await?;
            }
            cursor = page.0;
            if cursor == 0 {
                return Ok(wrong);
            }
        }
    }

    async fn repair_users(&self, users: &[String], last: bool) -> Result<u64, BackplaneError> {
        let mut invocation = self.over_all(&self.repair);
        invocation.arg(&self.channel).arg(if last { "1" } else { "" });
        for user in users {
            invocation.arg(user);
        }
        self.redis.commands().script(&invocation).await
    }
}
