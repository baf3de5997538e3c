//! Watches the buckets in Redis: compares their counts with those that this instance knows, and removes old places.

use std::time::Duration;

use redis::Cmd;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

use super::gap::{Fleet, Known};
use super::layout::{Bucket, BucketSet};
use super::publish::fresh_epoch;
use super::redis::RedisHistory;
use super::store::{NOTHING, ReadFrom, places_kept};
use crate::backoff::Backoff;
use crate::backplane::BackplaneError;
use crate::protocol::{DEFAULT_DEVICE, UserId, millis};
use crate::redis::{Feature, Scope};

/// Places looked at in one step of the scan for old ones, approximately.
const TRIM_STEP: usize = 100;

/// How long the marks of a user's relayed outbox entries are kept after the last one: a relay that has stored an entry then
/// has this long to remove it.
const MARKS_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How far the scan for old places is: one bucket after the other.
struct Scan {
    bucket: Bucket,
    cursor: String,
}

impl RedisHistory {
    /// Checks the fleet at each tick and at each new subscription, which may be to a Redis that lost data, and removes old
    /// places. Runs until dropped.
    pub(super) async fn watch_gaps(&self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut scan = Scan { bucket: 0, cursor: "0".into() };
        let mut is_out = false;
        loop {
            let unchecked = if is_out { self.layout.all() } else { self.gaps.unchecked() };
            let due = tokio::select! {
                _ = ticks.tick() => {
                    self.trim(&mut scan).await;
                    self.layout.all()
                }
                due = self.gaps.check_wanted() => due,
                () = sleep(backoff.next_delay()), if !unchecked.is_empty() => unchecked,
                // The check fails at the same node.
                () = self.redis.node_failed(), if !is_out => self.layout.all(),
            };
            // An error is counted and logged.
            let checked = self.check(due).await;
            if checked.is_ok() {
                backoff.reset();
            }
            is_out = self.redis.is_cluster() && (checked.is_err() || (is_out && due != self.layout.all()));
        }
    }

    /// Checks these buckets. In a cluster, a check of all of them asks every node with users, and shows whether the history
    /// works. Where one node has all users, its outage is one of the subscription, too; then only a refusal counts.
    async fn check(&self, due: BucketSet) -> Result<(), BackplaneError> {
        let checked = self.checks.run(due, |buckets| self.compare_buckets(buckets)).await;
        let reading = self.check_reading().await;
        if self.redis.is_cluster() {
            let checked = checked.and(reading);
            let is_whole = due == self.layout.all() || checked.is_err();
            let scope = if is_whole { Scope::Whole } else { Scope::Part };
            return self.redis.observed(Feature::History, scope, checked);
        }
        self.redis.observed(Feature::History, Scope::Whole, reading).ok();
        self.redis.counted(checked)
    }

    /// Reads one page, of any user, so that a refusal is known before a client resumes, and its end without one.
    async fn check_reading(&self) -> Result<(), BackplaneError> {
        let Ok(user) = UserId::new("0") else { return Ok(()) };
        match self.read(&user, &ReadFrom::Newest, DEFAULT_DEVICE, NOTHING).await {
            // While the slot moves, this user's keys are at two nodes or nowhere: the buckets show what works.
            Err(error) if error.kind() == "TRYAGAIN" => Ok(()),
            reading => reading.map(drop),
        }
    }

    /// Returns the number of the connection.
    pub(super) async fn compare_bucket(&self, bucket: Bucket) -> Result<u64, BackplaneError> {
        let compared = self.compare_buckets(vec![bucket]).await?;
        compared.into_iter().next().ok_or_else(|| BackplaneError::unexpected("none"))?
    }

    /// Compares each bucket with what this instance knows; returns the number of the connection of each. Redis begins a new
    /// epoch of a bucket if it lacks some of what is known.
    async fn compare_buckets(&self, buckets: Vec<Bucket>) -> Result<Vec<Result<u64, BackplaneError>>, BackplaneError> {
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let known: Vec<_> = buckets.iter().map(|bucket| (*bucket, self.gaps.known(*bucket))).collect();
        let calls: Vec<Cmd> = known.iter().map(|(bucket, known)| self.fleet_call(*bucket, known)).collect();
        // Through the link that also compares the clients: both then lead to the same server.
        let replies = self.redis.bulk().numbered_scripts(&self.fleet, &calls).await?;
        let (mut connections, mut lost) = (Vec::with_capacity(buckets.len()), 0);
        for ((bucket, known), (reply, connection)) in known.iter().zip(replies) {
            let compare = |(epoch, term, count)| {
                lost += u32::from(self.compare_known(*bucket, Fleet { epoch, term, count }, known));
                connection
            };
            connections.push(reply.map(compare).map_err(BackplaneError::from));
        }
        if lost > 0 {
            warn!(buckets = lost, "redis lost stored notifications: a new epoch begins");
        }
        Ok(connections)
    }

    fn fleet_call(&self, bucket: Bucket, (epoch, known): &(String, Vec<Known>)) -> Cmd {
        let mut call = self.fleet.call(&[self.args.names().bucket(bucket)]);
        call.arg(fresh_epoch()).arg(epoch);
        for (term, count) in known {
            call.arg(term).arg(count);
        }
        call
    }

    /// Returns whether Redis lost notifications that were known.
    fn compare_known(&self, bucket: Bucket, fleet: Fleet, (epoch, known): &(String, Vec<Known>)) -> bool {
        let is_new = !epoch.is_empty() && fleet.epoch != *epoch;
        let is_lost = is_new && known.iter().any(|(_, count)| *count > 0);
        if is_new {
            debug!(bucket, counted = fleet.count, is_lost, "a bucket begins a new epoch");
        }
        self.gaps.compare(bucket, fleet, known);
        is_lost
    }

    async fn trim(&self, scan: &mut Scan) {
        let mut call = self.trim.key(self.args.names().bucket(scan.bucket));
        call.arg(&scan.cursor).arg(TRIM_STEP).arg(millis(places_kept(self.args.kept().ttl)));
        call.arg(millis(MARKS_KEPT));
        let step: Result<(String, u64), _> = self.redis.counted(self.redis.bulk().script(&call).await);
        // An error is counted and logged, and the bucket is scanned from its start when it is next in turn.
        let (next, removed) = step.unwrap_or_else(|_| ("0".into(), 0));
        if next == "0" {
            scan.bucket = self.layout.after(scan.bucket);
        }
        scan.cursor = next;
        if removed > 0 {
            debug!(removed, "places and outbox marks of users to whom nothing was stored for a long time removed");
        }
    }
}
