//! Finds missed notifications where an instance receives only those of its own users.
//!
//! It does not receive every count of the fleet, so a count shows no gap. A user's own positions are consecutive: a gap
//! shows at the user's next notification. That the last one was missed is found here, by comparing the clients with the
//! store after the fleet's count has moved, and sometimes although it has not.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info};

use super::{COMPARE_BATCH, History};
use crate::protocol::UserId;

/// Every client is compared in one of so many rounds, even if the count has not moved.
const FULL_ROUNDS: u32 = 2;

/// Pause after each batch, so that other commands do not wait for many of them.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// Added to the lag: within this time, notifications that are on their way arrive.
const ARRIVAL: Duration = Duration::from_secs(1);

impl History {
    /// Runs until dropped.
    pub async fn run_audit(&self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut audited, mut skipped) = (Vec::new(), 0);
        loop {
            ticks.tick().await;
            let counted = self.store.counted();
            let all = skipped + 1 >= FULL_ROUNDS;
            let moved = |user: &UserId| {
                let bucket = usize::from(self.store.bucket(user));
                all || counted.get(bucket) != audited.get(bucket)
            };
            let users: Vec<UserId> = self.registry.user_ids().into_iter().filter(moved).collect();
            skipped = if all { 0 } else { skipped + 1 };
            if users.is_empty() || self.audit(&users).await {
                audited = counted;
            }
        }
    }

    /// Returns whether the newest position of every user could be read.
    async fn audit(&self, users: &[UserId]) -> bool {
        let mut positions = Vec::with_capacity(users.len());
        for some in users.chunks(COMPARE_BATCH) {
            // An error is counted and logged, and the next round repeats the audit.
            let Ok(newest) = self.store.newest_each(some).await else { return false };
            positions.extend(newest);
            sleep(BATCH_PAUSE).await;
        }
        sleep(ARRIVAL + self.backplane.lag()).await;
        let mut behind = 0;
        for (some, newest) in users.chunks(COMPARE_BATCH).zip(positions.chunks(COMPARE_BATCH)) {
            for (user, newest) in some.iter().zip(newest) {
                behind += newest.as_ref().map(|newest| self.catch_up(user, newest, true)).unwrap_or_default();
            }
            tokio::task::yield_now().await;
        }
        if behind > 0 {
            info!(users = users.len(), behind, "clients missed stored events: catch-up started");
        } else {
            debug!(users = users.len(), "audit: no client is behind the history, as far as it could be read");
        }
        positions.iter().all(Option::is_some)
    }
}
