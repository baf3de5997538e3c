//! The presence scripts and their keys. The plain set's name is the hash tag of all keys, so they share its hash slot.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::cmd;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::store::{AUDIT_EVERY, Applied, Batch, CHANGES_KEPT, Reaped};
use crate::backplane::BackplaneError;
use crate::config;
use crate::lease_watch::LeaseWatch;
use crate::protocol::millis;
use crate::redis::{Feature, Redis, Script, ScriptInvocation};

/// Maximum number of users reaped or repaired by one script call, so that no script holds Redis for long.
const STEP: usize = 500;

/// Maximum number of dead incarnations reaped in one round.
const REAP_ROUND: usize = 16;

/// Minimum time between two looks at the leases: an incarnation that another instance is about to reap is due at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// In place of a sequence, to `reap.lua`: the instance is stopping.
const END: &str = "end";

/// Retention of last-seen times.
const LAST_SEEN_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// The reply of `observe.lua`.
type Observed = (String, f64, usize, String, String, Vec<(String, f64, String)>);

pub struct RedisPresence {
    pub(super) redis: Arc<Redis>,
    pub(super) changes: broadcast::Sender<Arc<str>>,
    set: String,
    channel: String,
    lease: Duration,
    offline_delay: Duration,
    /// The leases of all incarnations, as the reaper reads them.
    pub(super) watch: Mutex<LeaseWatch>,
    /// The fleet's number of audits, and since when it is that.
    audits: Mutex<(String, Instant)>,
    register: Script,
    apply: Script,
    observe: Script,
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
        redis.health().require(Feature::Presence);
        Self {
            redis,
            changes: broadcast::channel(CHANGES_KEPT).0,
            set: config.set.clone(),
            channel: config.channel.clone(),
            lease: config.lease,
            offline_delay: config.offline_delay,
            register: Script::new(include_str!("scripts/register.lua")),
            apply: Script::new(include_str!("scripts/apply.lua")),
            observe: Script::new(include_str!("scripts/observe.lua")),
            watch: Mutex::new(LeaseWatch::new(config.lease)),
            audits: Mutex::new((String::new(), Instant::now())),
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

    /// Adds the keys of `reap.lua`, with which those of `apply.lua` begin.
    fn with_held<'a>(&self, script: &'a Script, incarnation: &str) -> ScriptInvocation<'a> {
        let mut invocation = script.key(self.key("instances"));
        invocation.key(self.key("seq")).key(self.held(incarnation)).key(self.key("count")).key(&self.set);
        invocation.key(self.key("total")).key(self.key("last_seen"));
        invocation
    }

    /// Adds the keys of `repair.lua`, with which those of `audit.lua` begin, and the first argument of both.
    fn over_all<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut invocation = script.key(self.key("instances"));
        invocation.key(self.key("count")).key(&self.set).key(self.key("total")).key(self.key("last_seen"));
        invocation.arg(self.key("held:"));
        invocation
    }

    /// Returns the epoch.
    pub(super) async fn register(&self, incarnation: &str) -> Result<String, BackplaneError> {
        let mut invocation = self.register.key(self.key("instances"));
        invocation.key(self.key("seq")).key(self.key("epoch")).key(self.key("renewed"));
        invocation.arg(incarnation).arg(millis(self.lease)).arg(incarnation);
        self.redis.commands().script(&invocation).await
    }

    pub(super) async fn apply(&self, batch: &Batch) -> Result<Applied, BackplaneError> {
        let mut invocation = self.with_held(&self.apply, &batch.incarnation);
        invocation.key(self.key("renewed"));
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
            "GONE" => Ok(Applied::Stale("it was reaped, or Redis lost its data")),
            "GAP" => Ok(Applied::Stale("a batch is missing")),
            "BROKEN" => Ok(Applied::Stale("another program changed the held users")),
            other => Err(BackplaneError::unexpected(other)),
        }
    }

    /// One step for each dead incarnation, so that the next look at the leases is never far.
    pub(super) async fn reap(&self) -> Result<Reaped, BackplaneError> {
        let (dead, mut reaped) = self.observe().await?;
        let mut unfinished = dead.len() > REAP_ROUND;
        for (incarnation, sequence) in dead.iter().take(REAP_ROUND) {
            let (users, left) = self.reap_step(incarnation, sequence).await?;
            reaped.users += users;
            unfinished |= left > 0;
        }
        if unfinished {
            reaped.next_in = Duration::ZERO;
        }
        Ok(reaped)
    }

    /// Returns the incarnations that are dead or already being reaped, each with its sequence, and what is due when.
    async fn observe(&self) -> Result<(Vec<(String, String)>, Reaped), BackplaneError> {
        let sought = self.watch.lock().dead_up_to(Instant::now());
        let mut invocation = self.observe.key(self.key("instances"));
        invocation.key(self.key("seq")).key(self.key("renewed")).key(self.key("audits")).arg(&self.channel).arg(sought);
        let (era, last, size, oldest, audits, found): Observed = self.redis.commands().script(&invocation).await?;

        let (now, mut watch) = (Instant::now(), self.watch.lock());
        watch.observe(now, era, last);
        // What was dead by the time of the request may not be by that of the reply: it may have taken long.
        let dead_up_to = watch.dead_up_to(now);
        let dead = found.into_iter().filter(|(_, number, _)| *number <= dead_up_to);
        let dead = dead.map(|(incarnation, _, sequence)| (incarnation, sequence)).collect();
        let until_dead = oldest.parse().map_or(self.lease, |oldest: f64| watch.remaining(oldest, now));
        let next_in = until_dead.max(SHORTEST_PAUSE).min(LeaseWatch::interval(self.lease, size));
        Ok((dead, Reaped { users: 0, next_in, audit_due: self.is_audit_due(audits, now) }))
    }

    fn is_audit_due(&self, audits: String, now: Instant) -> bool {
        let mut seen = self.audits.lock();
        if seen.0 != audits {
            *seen = (audits, now);
        }
        now.duration_since(seen.1) >= AUDIT_EVERY
    }

    /// Ends the lease of this instance's own incarnation, and reaps all its users.
    pub(super) async fn release(&self, incarnation: &str) -> Result<(), BackplaneError> {
        while self.reap_step(incarnation, END).await?.1 > 0 {}
        Ok(())
    }

    /// Reaps some users of an incarnation that still has this sequence; returns their number and that of the users left.
    async fn reap_step(&self, incarnation: &str, sequence: &str) -> Result<(u64, u64), BackplaneError> {
        let mut invocation = self.with_held(&self.reap, incarnation);
        invocation.arg(incarnation).arg(STEP).arg(&self.channel).arg(sequence).arg(millis(self.lease));
        self.redis.commands().script(&invocation).await
    }

    /// Returns the number of repaired users, or `None` if the keys are consistent.
    pub(super) async fn audit(&self) -> Result<Option<u64>, BackplaneError> {
        let mut invocation = self.over_all(&self.audit);
        let audits = self.audits.lock().0.clone();
        invocation.key(self.key("audits")).arg(millis(LAST_SEEN_KEPT)).arg(audits);
        if self.redis.commands().script::<bool>(&invocation).await? {
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
