//! The sweep: each second, judges all escalations that are due.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::store::{Due, Escalations, Judged, USERS, USERS_IN_STEPS};
use crate::backplane::BackplaneError;
use crate::history::Bucket;
use crate::log::LogRate;
use crate::protocol::UserId;
use crate::redis::{Feature, Scope};

const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Interval at which old unread notifications are removed, also if none is added.
const TRIM_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Sweeper {
    escalations: Escalations,
    losses: LogRate,
}

/// One sweep.
#[derive(Default)]
struct Pass {
    /// The buckets that may have more due users, and how many of each to pass over: those that could not be judged.
    buckets: Vec<(Bucket, usize)>,
    /// Of the first look at each bucket.
    pending: u64,
    overdue: Duration,
    /// In three steps, once it has begun.
    token: String,
    judged: Judged,
    /// Why the first user or bucket could not be judged.
    error: Option<BackplaneError>,
}

impl Pass {
    fn note(&mut self, error: BackplaneError) {
        self.error.get_or_insert(error);
    }

    fn skip(&mut self, skipped: Bucket) {
        let bucket = self.buckets.iter_mut().find(|(bucket, _)| *bucket == skipped);
        bucket.into_iter().for_each(|(_, count)| *count += 1);
    }
}

impl Sweeper {
    pub(super) fn new(escalations: Escalations) -> Self {
        Self { escalations, losses: LogRate::new() }
    }

    /// Sweeps while `is_keeper` is true. Runs until dropped.
    pub(super) async fn run(&self, mut is_keeper: watch::Receiver<bool>) {
        let redis = &self.escalations.redis;
        let mut ticks = interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trimmed: Option<Instant> = None;
        while is_keeper.wait_for(|is_keeper| *is_keeper).await.is_ok() {
            ticks.tick().await;
            let swept = self.sweep(&is_keeper).await;
            // An error is counted and logged, and what could not be judged stays due.
            let swept = redis.observed(Feature::Escalation, Scope::Whole, swept);
            if swept.is_ok() && trimmed.is_none_or(|trimmed| trimmed.elapsed() > TRIM_EVERY) {
                redis.counted(self.escalations.trim().await).ok();
                trimmed = Some(Instant::now());
            }
            if !*is_keeper.borrow() {
                redis.metrics().escalation_users.set(0);
                redis.metrics().escalation_overdue_seconds.set(0);
            }
        }
    }

    /// Judges all that is due; fails with the first error, after everything else was judged.
    async fn sweep(&self, is_keeper: &watch::Receiver<bool>) -> Result<(), BackplaneError> {
        let buckets = self.escalations.layout.buckets().map(|bucket| (bucket, 0)).collect();
        let mut pass = Pass { buckets, ..Pass::default() };
        let step = if self.escalations.is_spread() { USERS_IN_STEPS } else { USERS };
        let mut is_first = true;
        while *is_keeper.borrow() && !pass.buckets.is_empty() {
            let due = self.due(&mut pass, std::mem::take(&mut is_first)).await?;
            for users in due.chunks(step) {
                if !self.judge(&mut pass, users).await? {
                    return Ok(());
                }
            }
        }
        let Judged { handed_over, read, lost } = pass.judged;
        if pass.judged != Judged::default() {
            debug!(handed_over, read, lost, "escalations judged");
        }
        pass.error.map_or(Ok(()), Err)
    }

    /// The next due users, with their buckets; what remains in the pass are the buckets that may have more.
    async fn due(&self, pass: &mut Pass, is_first: bool) -> Result<Vec<(Bucket, UserId)>, BackplaneError> {
        let looked_at = std::mem::take(&mut pass.buckets);
        let mut due = Vec::new();
        for ((bucket, skipped), reply) in looked_at.iter().zip(self.escalations.due(&looked_at).await?) {
            let Due { pending, overdue, dropped, users } = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    pass.note(error);
                    continue;
                }
            };
            if is_first {
                pass.pending += pending;
                pass.overdue = pass.overdue.max(overdue);
            }
            self.count(pass, Judged { lost: dropped, ..Judged::default() });
            if !users.is_empty() {
                pass.buckets.push((*bucket, *skipped));
            }
            for user in users {
                match UserId::new(&user) {
                    Ok(user) => due.push((*bucket, user)),
                    // Another program has written it.
                    Err(_) => pass.skip(*bucket),
                }
            }
        }
        if is_first {
            let metrics = self.escalations.redis.metrics();
            metrics.escalation_users.set(pass.pending.try_into().unwrap_or(i64::MAX));
            metrics.escalation_overdue_seconds.set(pass.overdue.as_secs().try_into().unwrap_or(i64::MAX));
        }
        Ok(due)
    }

    /// Returns whether the sweep goes on: no other has begun.
    async fn judge(&self, pass: &mut Pass, due: &[(Bucket, UserId)]) -> Result<bool, BackplaneError> {
        let users: Vec<_> = due.iter().map(|(_, user)| user.clone()).collect();
        let judged = if self.escalations.is_spread() {
            if pass.token.is_empty() {
                pass.token = self.escalations.begin().await?;
            }
            self.escalations.hand_over_in_steps(&pass.token, &users).await?
        } else {
            Some(self.escalations.hand_over(&users).await?)
        };
        let Some(judged) = judged else { return Ok(false) };
        for ((bucket, _), judged) in due.iter().zip(judged) {
            match judged {
                Ok(judged) => self.count(pass, judged),
                Err(error) => {
                    pass.skip(*bucket);
                    pass.note(error);
                }
            }
        }
        Ok(true)
    }

    fn count(&self, pass: &mut Pass, judged: Judged) {
        let metrics = self.escalations.redis.metrics();
        let Judged { handed_over, read, lost } = judged;
        for (result, count) in [("handed_over", handed_over), ("read", read)] {
            metrics.escalations.with_label_values(&[result]).inc_by(count);
        }
        metrics.escalations_lost.inc_by(lost);
        if lost > 0
            && let Some(held_back) = self.losses.admit()
        {
            warn!(
                lost,
                held_back, "escalations lost: their notifications are no longer stored (history.max_len, history.ttl)"
            );
        }
        pass.judged.handed_over += handed_over;
        pass.judged.read += read;
        pass.judged.lost += lost;
    }
}
