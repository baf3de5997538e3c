//! Detects gaps: the fleet counts the stored notifications of each bucket, and each one carries the count when it is
//! published.

use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::layout::{Bucket, BucketSet, Layout};
use crate::backplane::BackplaneEvent;
use crate::protocol::{ENVELOPE_START, Envelope, Stored};

/// Terms known at a time: as many as Redis records.
const MAX_TERMS: usize = 128;

/// The term of notifications that an earlier version counted.
const NO_TERM: &str = "-";

/// A bucket at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) epoch: String,
    pub(super) term: String,
    pub(super) count: u64,
}

/// A term, and the highest count that this instance knows of it.
pub(super) type Known = (String, u64);

/// The gap detectors of this instance, and their signals.
#[derive(Debug)]
pub(super) struct Gaps {
    layout: Layout,
    user_channel: String,
    /// One for each bucket.
    detectors: Mutex<Vec<GapDetector>>,
    /// The buckets whose clients may have missed something, until they are taken.
    behind: Mutex<BucketSet>,
    missed: watch::Sender<u64>,
    /// The buckets to be checked at once, until they are taken.
    due: Mutex<BucketSet>,
    check: Notify,
}

impl Gaps {
    /// If this instance receives only its own users' notifications, it does not receive every count.
    pub(super) fn new(user_channel: &str, layout: Layout, is_exact: bool) -> Self {
        let detector = |_| GapDetector { is_exact, ..GapDetector::default() };
        Self {
            layout,
            user_channel: user_channel.to_owned(),
            detectors: Mutex::new(layout.buckets().map(detector).collect()),
            behind: Mutex::default(),
            missed: watch::Sender::default(),
            due: Mutex::default(),
            check: Notify::new(),
        }
    }

    /// The epoch and count of each bucket at its last check.
    pub(super) fn counted(&self) -> Vec<Option<(String, u64)>> {
        let counted = |detector: &GapDetector| detector.fleet.as_ref().map(|fleet| (fleet.epoch.clone(), fleet.count));
        self.detectors.lock().iter().map(counted).collect()
    }

    pub(super) fn observe(&self, event: &BackplaneEvent<'_>) {
        match event {
            BackplaneEvent::Subscribed { .. } => {
                self.detectors.lock().iter_mut().for_each(GapDetector::start_over);
                self.request_check(self.layout.all());
            }
            BackplaneEvent::UserMissed { user, .. } => self.signal(self.layout.bucket(user.as_str())),
            _ => {
                if let Some((user, payload)) = self.envelope(event) {
                    self.receive(user, payload);
                }
            }
        }
    }

    /// Whether this was stored by a server that another has replaced: one that stood still publishes on its return what
    /// is not stored.
    pub(super) fn is_outdated(&self, event: &BackplaneEvent<'_>) -> bool {
        self.envelope(event).is_some_and(|(user, payload)| {
            let detectors = self.detectors.lock();
            let detector = detectors.get(usize::from(self.layout.bucket(user)));
            detector.is_some_and(|detector| detector.is_outdated(payload))
        })
    }

    /// The user and the payload of an event that may be a stored notification.
    fn envelope<'a>(&self, event: &BackplaneEvent<'a>) -> Option<(&'a str, &'a [u8])> {
        let BackplaneEvent::Message { channel, payload } = *event else { return None };
        // First, as most messages are no envelope.
        if payload.first() != Some(&ENVELOPE_START) {
            return None;
        }
        let user = channel.strip_prefix(self.user_channel.as_bytes())?;
        Some((str::from_utf8(user).ok()?, payload))
    }

    fn receive(&self, user: &str, payload: &[u8]) {
        let bucket = self.layout.bucket(user);
        let mut detectors = self.detectors.lock();
        let Some(detector) = detectors.get_mut(usize::from(bucket)) else { return };
        let (missed, terms) = (detector.observe(user, payload), detector.known.len());
        drop(detectors);
        if terms > 1 {
            self.request_check(BucketSet::from_iter([bucket]));
        }
        if missed {
            self.signal(bucket);
        }
    }

    fn request_check(&self, buckets: BucketSet) {
        *self.due.lock() |= buckets;
        self.check.notify_one();
    }

    fn signal(&self, bucket: Bucket) {
        self.behind.lock().insert(bucket);
        self.missed.send_modify(|count| *count += 1);
    }

    pub(super) fn missed(&self) -> watch::Receiver<u64> {
        self.missed.subscribe()
    }

    /// The buckets that were signalled since the last call.
    pub(super) fn take_missed(&self) -> BucketSet {
        std::mem::take(&mut self.behind.lock())
    }

    /// Waits until buckets must be checked at once: a subscription began, or another server stores.
    pub(super) async fn check_wanted(&self) -> BucketSet {
        self.check.notified().await;
        std::mem::take(&mut self.due.lock())
    }

    /// The buckets without a check since a subscription began.
    pub(super) fn unchecked(&self) -> BucketSet {
        let detectors = self.detectors.lock();
        let unchecked = self.layout.buckets().zip(detectors.iter()).filter(|(_, detector)| detector.unchecked);
        unchecked.map(|(bucket, _)| bucket).collect()
    }

    /// Returns the bucket's epoch and the terms known in it.
    pub(super) fn known(&self, bucket: Bucket) -> (String, Vec<Known>) {
        let detectors = self.detectors.lock();
        let Some(detector) = detectors.get(usize::from(bucket)) else { return Default::default() };
        (detector.fleet.as_ref().map_or_else(String::new, |fleet| fleet.epoch.clone()), detector.known.clone())
    }

    /// Detects a missed stored notification, even the last one. Redis has all of `confirmed`, unless the epoch is another.
    pub(super) fn compare(&self, bucket: Bucket, fleet: Fleet, confirmed: &[Known]) {
        let mut detectors = self.detectors.lock();
        let missed = detectors.get_mut(usize::from(bucket)).is_some_and(|detector| detector.compare(fleet, confirmed));
        drop(detectors);
        if missed {
            self.signal(bucket);
        }
    }
}

#[derive(Debug, Default)]
struct GapDetector {
    /// Counts are not consecutive here: see `audit.rs`.
    is_exact: bool,
    /// The last count received in this subscription.
    last: Option<u64>,
    /// The fleet at the last check.
    fleet: Option<Fleet>,
    /// The terms of the present epoch, oldest first. Those that the last check confirmed are forgotten, except the one
    /// that lasts: if it has fewer notifications later, Redis lost some.
    known: Vec<Known>,
    /// The terms that a check has found replaced by another.
    ended: Vec<String>,
    /// A subscription has begun, and its server has not been checked.
    unchecked: bool,
}

impl GapDetector {
    /// A subscription begins: messages may be missing, and the server may be another.
    fn start_over(&mut self) {
        self.last = None;
        self.unchecked = true;
    }

    /// Returns whether a stored notification before this message was missed. Ignores an envelope whose epoch is not
    /// this user's in this fleet, since any backend may publish one.
    fn observe(&mut self, user: &str, payload: &[u8]) -> bool {
        let Some(stored) = self.stored(user, payload) else { return false };
        let (term, count) = (stored.term.or(self.term()).unwrap_or(NO_TERM).to_owned(), stored.count);
        self.learn(&term, count);
        let before = self.last.replace(count);
        !self.is_exact && before.is_some_and(|before| count != before + 1)
    }

    /// The present term, in which an earlier version also counts.
    fn term(&self) -> Option<&str> {
        self.fleet.as_ref().map(|fleet| fleet.term.as_str())
    }

    fn is_outdated(&self, payload: &[u8]) -> bool {
        let stored = || Envelope::parse(str::from_utf8(payload).ok()?)?.stored?.term;
        !self.ended.is_empty() && stored().is_some_and(|term| self.ended.iter().any(|ended| ended == term))
    }

    /// A check has found this term to be the present one; `confirmed` was known before it.
    fn end_others(&mut self, present: &str, confirmed: &[Known]) {
        let before = self.term().map(str::to_owned);
        for other in confirmed.iter().map(|known| known.0.clone()).chain(before) {
            if !self.ended.contains(&other) {
                self.ended.push(other);
            }
        }
        // A restored backup may be in an earlier one again.
        self.ended.retain(|ended| ended != present);
        let surplus = self.ended.len().saturating_sub(MAX_TERMS);
        self.ended.drain(..surplus);
    }

    fn stored<'a>(&self, user: &str, payload: &'a [u8]) -> Option<Stored<'a>> {
        let fleet = self.fleet.as_ref()?;
        let stored = Envelope::parse(str::from_utf8(payload).ok()?)?.stored?;
        (stored.cursor.epoch == user_epoch(&fleet.epoch, user)?).then_some(stored)
    }

    fn learn(&mut self, term: &str, count: u64) {
        match self.known.iter_mut().rfind(|known| known.0 == term) {
            Some(known) => known.1 = known.1.max(count),
            None => {
                if self.known.len() == MAX_TERMS {
                    self.known.remove(0);
                }
                self.known.push((term.to_owned(), count));
            }
        }
    }

    /// Returns whether clients may have missed something: a subscription or a new epoch has begun, or a notification
    /// counted at the previous check has still not arrived.
    fn compare(&mut self, fleet: Fleet, confirmed: &[Known]) -> bool {
        let (term, count) = (fleet.term.clone(), fleet.count);
        let unchecked = std::mem::take(&mut self.unchecked);
        self.end_others(&term, confirmed);
        let before = self.fleet.replace(fleet);
        if before.as_ref().is_some_and(|before| Some(&before.epoch) != self.fleet.as_ref().map(|fleet| &fleet.epoch)) {
            self.known = vec![(term, count)];
            self.last = None;
            return true;
        }
        self.known.retain(|known| known.0 == term || !confirmed.contains(known));
        self.learn(&term, count);
        match (self.last, before) {
            (Some(last), Some(before)) if last < before.count && !self.is_exact => {
                self.last = Some(before.count);
                true
            }
            (None, _) => {
                // The comparison at the start of the subscription finds the clients that are behind.
                self.last = Some(count);
                unchecked
            }
            _ => unchecked,
        }
    }
}

/// Derives a user's epoch from the fleet's, as the scripts do.
fn user_epoch(fleet: &str, user: &str) -> Option<NonZeroU64> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{fleet}:{user}").as_bytes());
    NonZeroU64::new(u64::from_be_bytes(*digest.as_ref().first_chunk()?))
}

#[cfg(test)]
mod tests;
