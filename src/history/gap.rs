//! Detects gaps: the fleet counts its stored notifications, and each one carries the count when it is published.

use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backplane::{BackplaneEvent, USER_CHANNEL};
use crate::protocol::{ENVELOPE_START, Envelope};

/// Epoch and count of the fleet at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) epoch: String,
    pub(super) count: u64,
}

/// The gap detector of this instance, and its signal.
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
                payload.first() == Some(&ENVELOPE_START) && self.detector.lock().observe(channel, payload)
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

    /// Returns the epoch and the highest count known in it.
    pub(super) fn highest(&self) -> (String, u64) {
        let detector = self.detector.lock();
        let (epoch, count) = detector.highest();
        (epoch.to_owned(), count)
    }

    /// Detects a missed stored notification, even the last one.
    pub(super) fn compare(&self, fleet: Fleet) {
        if self.detector.lock().compare(fleet) {
            self.signal();
        }
    }
}

#[derive(Debug, Default)]
struct GapDetector {
    /// The last count received in this subscription.
    last: Option<u64>,
    /// The fleet at the last check.
    fleet: Option<Fleet>,
}

impl GapDetector {
    /// A subscription begins: keeps the highest count received, but not the last one, since messages may be missing.
    fn start_over(&mut self) {
        if let (Some(fleet), Some(last)) = (&mut self.fleet, self.last.take()) {
            fleet.count = fleet.count.max(last);
        }
    }

    /// Returns whether a stored notification before this message was missed. Ignores an envelope whose epoch is not
    /// this user's in this fleet, since any backend may publish one.
    fn observe(&mut self, channel: &[u8], payload: &[u8]) -> bool {
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

    /// The epoch, and its highest known count: if Redis has less, it lost data.
    fn highest(&self) -> (&str, u64) {
        let Some(fleet) = &self.fleet else { return ("", 0) };
        (&fleet.epoch, fleet.count.max(self.last.unwrap_or_default()))
    }

    /// Returns whether a new epoch has begun, or a notification counted at the previous check has still not arrived.
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
                // The comparison at the start of the subscription found the clients that were behind.
                self.last = Some(count);
                false
            }
            _ => false,
        }
    }
}

/// Derives a user's epoch from the fleet's, as the scripts do.
fn user_epoch(fleet: &str, user: &str) -> Option<NonZeroU64> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{fleet}:{user}").as_bytes());
    NonZeroU64::new(u64::from_be_bytes(*digest.as_ref().first_chunk()?))
}
