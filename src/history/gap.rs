//! Whether every stored notification was received: the fleet counts what it stores, and each stored notification that is
//! published carries the count.

use std::num::NonZeroU64;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::redis::RedisHistory;
use crate::backplane::{BackplaneEvent, USER_CHANNEL};
use crate::protocol::{ENVELOPE_START, Envelope};

/// Epoch and count of the fleet at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) epoch: String,
    pub(super) count: u64,
}

/// The gap detector of this instance, and the signal that it found a gap.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    detector: Mutex<GapDetector>,
    missed: watch::Sender<u64>,
}

impl Gaps {
    pub(super) fn observe(&self, event: &BackplaneEvent<'_>) {
        let missed = match event {
            BackplaneEvent::Subscribed => {
                self.detector.lock().start_over();
                true
            }
            BackplaneEvent::Message { channel, payload } => {
                payload.first() == Some(&ENVELOPE_START) && self.detector.lock().note(channel, payload)
            }
            _ => false,
        };
        if missed {
            self.signal();
        }
    }

    fn signal(&self) {
        self.missed.send_modify(|count| *count += 1);
    }

    pub(super) fn missed(&self) -> watch::Receiver<u64> {
        self.missed.subscribe()
    }

    /// Checks the fleet's count at each tick, and at each new subscription: that may be to a Redis that lost data, which
    /// must be known before anything is received from it. Runs until it is dropped.
    pub(super) async fn watch(history: &RedisHistory, every: Duration, mut subscriptions: watch::Receiver<u64>) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = subscriptions.changed() => {}
            }
            history.gaps().check(history).await;
        }
    }

    /// Finds out whether a stored notification was missed, even the last one, or Redis has lost some.
    async fn check(&self, history: &RedisHistory) {
        let (epoch, count) = {
            let detector = self.detector.lock();
            let (epoch, count) = detector.known();
            (epoch.to_owned(), count)
        };
        // An error is counted and logged by the store.
        let Ok(fleet) = history.fleet(&epoch, count).await else { return };
        if !epoch.is_empty() && fleet.epoch != epoch {
            warn!(counted = fleet.count, "redis has lost stored notifications: a new epoch begins");
        }
        if self.detector.lock().compare(fleet) {
            self.signal();
        }
    }
}

/// What one instance knows of the fleet's count.
#[derive(Debug, Default)]
struct GapDetector {
    /// The last count received; none since the subscription began.
    last: Option<u64>,
    /// The fleet at the last check.
    fleet: Option<Fleet>,
}

impl GapDetector {
    /// A subscription begins: messages from before it are unknown, but not the counts received until then.
    fn start_over(&mut self) {
        if let (Some(fleet), Some(last)) = (&mut self.fleet, self.last.take()) {
            fleet.count = fleet.count.max(last);
        }
    }

    /// Notes a message; gives whether a stored notification before it was missed. An envelope that this fleet did not
    /// make for this very user says nothing: any backend may publish one.
    fn note(&mut self, channel: &[u8], payload: &[u8]) -> bool {
        let Some(count) = self.count_of(channel, payload) else { return false };
        let before = self.last.replace(count);
        before.is_some_and(|before| count != before + 1)
    }

    fn count_of(&self, channel: &[u8], payload: &[u8]) -> Option<u64> {
        let fleet = self.fleet.as_ref()?;
        let user = str::from_utf8(channel.strip_prefix(USER_CHANNEL.as_bytes())?).ok()?;
        let (count, cursor) = Envelope::parse(str::from_utf8(payload).ok()?)?.stored?;
        (cursor.epoch == user_epoch(&fleet.epoch, user)?).then_some(count)
    }

    /// The epoch, and the highest count known in it: what Redis must not have lost.
    fn known(&self) -> (&str, u64) {
        let Some(fleet) = &self.fleet else { return ("", 0) };
        (&fleet.epoch, fleet.count.max(self.last.unwrap_or_default()))
    }

    /// Compares with the fleet's count; gives whether another epoch has begun, or a notification that was counted at the
    /// check before has still not been received.
    fn compare(&mut self, fleet: Fleet) -> bool {
        let (epoch, count) = (fleet.epoch.clone(), fleet.count);
        let before = self.fleet.replace(fleet);
        match (self.last, before) {
            (_, Some(before)) if before.epoch != epoch => {
                self.last = None;
                true
            }
            (Some(last), Some(before)) if last < before.count => {
                self.last = Some(before.count);
                true
            }
            (None, _) => {
                // A client that is behind was found when the subscription began.
                self.last = Some(count);
                false
            }
            _ => false,
        }
    }
}

/// A user's epoch within the fleet's, as the scripts make it.
fn user_epoch(fleet: &str, user: &str) -> Option<NonZeroU64> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{fleet}:{user}").as_bytes());
    NonZeroU64::new(u64::from_be_bytes(*digest.as_ref().first_chunk()?))
}
