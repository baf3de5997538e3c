//! The in-memory implementation of the history store. Its memory is bounded.

mod history;
mod keys;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use super::store::{Acked, Move, POSITIONS_KEPT, PageSize, Publication, Published, ReadFrom, Reading};
use crate::backplane::{MemoryBackplane, USER_CHANNEL};
use crate::config;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, UserId, millis, unix_ms, wrap_stored};
use history::{History, Moment, Position};
use keys::Keys;

/// Approximate memory of all histories together. Beyond it, the least recently changed history is dropped.
const MAX_BYTES: usize = 64 << 20;

pub struct MemoryHistory {
    histories: Mutex<Histories>,
    pub(super) backplane: Arc<MemoryBackplane>,
}

impl std::fmt::Debug for MemoryHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryHistory").finish_non_exhaustive()
    }
}

impl MemoryHistory {
    pub fn new(kept: config::History, backplane: Arc<MemoryBackplane>, metrics: Arc<Metrics>) -> Self {
        Self { histories: Mutex::new(Histories::new(kept, metrics)), backplane }
    }

    pub(super) fn publish(&self, user: &UserId, publication: &Publication<'_>) -> Published {
        let store = || {
            if !publication.durable && publication.key.is_none() {
                return (Some(publication.message()), None);
            }
            // Unlocks before the message is passed on.
            match self.histories.lock().publish(user, publication) {
                Outcome::New { message, position } => (Some(message), position),
                Outcome::Known { position } => (None, position),
            }
        };
        Ok(self.backplane.publish(|| format!("{USER_CHANNEL}{user}"), store))
    }

    pub(super) fn read(&self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> Reading {
        self.histories.lock().read(user, from, device, page)
    }

    pub(super) fn newest(&self, users: &[UserId]) -> Vec<Cursor> {
        self.histories.lock().newest(users)
    }

    pub(super) fn ack(&self, acks: &[(UserId, String, Cursor)], to: Move) -> Vec<Acked> {
        let one =
            |(user, device, cursor): &(UserId, String, Cursor)| self.histories.lock().ack(user, device, cursor, to);
        acks.iter().map(one).collect()
    }
}

enum Outcome<'a> {
    /// To publish as this message.
    New { message: Cow<'a, str>, position: Option<Cursor> },
    /// Its idempotency key was published before, at this position.
    Known { position: Option<Cursor> },
}

struct Histories {
    kept: config::History,
    max_bytes: usize,
    /// Derives the users' epochs, which differ in every process.
    epochs: RandomState,
    count: u64,
    users: HashMap<UserId, History>,
    /// Least recently changed first.
    by_change: BTreeMap<u64, UserId>,
    changes: u64,
    bytes: usize,
    /// The newest time of a notification that was dropped with its whole history. Notifications stored later have a
    /// later time, so that an earlier cursor never matches an entry of a new history.
    lost_upto: u64,
    keys: Keys,
    metrics: Arc<Metrics>,
    losses: LogRate,
}

impl Histories {
    fn new(kept: config::History, metrics: Arc<Metrics>) -> Self {
        Self {
            kept,
            max_bytes: MAX_BYTES,
            epochs: RandomState::new(),
            count: 0,
            users: HashMap::new(),
            by_change: BTreeMap::new(),
            changes: 0,
            bytes: 0,
            lost_upto: 0,
            keys: Keys::default(),
            metrics,
            losses: LogRate::new(),
        }
    }

    fn publish<'a>(&mut self, user: &UserId, publication: &Publication<'a>) -> Outcome<'a> {
        let at = self.moment();
        if let Some(key) = publication.key
            && let Some(position) = self.keys.get(user, key, at.now)
        {
            return Outcome::Known { position };
        }
        let (message, position) = if publication.durable {
            let cursor = self.store(user, publication, at);
            self.count += 1;
            let message = wrap_stored(self.count, &cursor, publication.event, publication.data);
            (message.into(), Some(cursor))
        } else {
            (publication.message(), None)
        };
        if let Some(key) = publication.key
            && self.keys.insert(user, key, position, at.now)
        {
            self.lost("keys", 1);
        }
        Outcome::New { message, position }
    }

    fn store(&mut self, user: &UserId, publication: &Publication<'_>, at: Moment) -> Cursor {
        let max_len = self.kept.max_len;
        let position = self.change(user, |history| history.add(publication, max_len, at));
        self.make_room(at);
        position.cursor(self.epoch(user))
    }

    fn read(&self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> Reading {
        let (epoch, at) = (self.epoch(user), self.moment());
        self.look(user, |history| history.read(epoch, from, device, page, at))
    }

    fn newest(&self, users: &[UserId]) -> Vec<Cursor> {
        let at = self.moment();
        let none = Position { ms: 0, number: 0 };
        let position = |user| self.users.get(user).and_then(|history| history.last_kept(at)).unwrap_or(none);
        users.iter().map(|user| position(user).cursor(self.epoch(user))).collect()
    }

    fn ack(&mut self, user: &UserId, device: &str, cursor: &Cursor, how: Move) -> Acked {
        let at = self.moment();
        let Some(position) = Position::of(self.epoch(user), cursor) else { return Acked::Foreign };
        if let Some(settled) = self.look(user, |history| history.ack_without_move(device, position, how, at)) {
            if settled == Acked::Kept {
                self.change(user, |history| history.renew_positions(at));
            }
            return settled;
        }
        self.change(user, |history| history.move_position(device, position, at));
        self.make_room(at);
        Acked::Kept
    }

    fn epoch(&self, user: &UserId) -> NonZeroU64 {
        NonZeroU64::new(self.epochs.hash_one(user.as_str())).unwrap_or(NonZeroU64::MIN)
    }

    fn moment(&self) -> Moment {
        let now = unix_ms().max(self.lost_upto + 1);
        let since = |times| now.saturating_sub(millis(self.kept.ttl).saturating_mul(times));
        Moment { now, kept_since: since(1), positions_since: since(POSITIONS_KEPT.into()) }
    }

    fn look<T>(&self, user: &UserId, look: impl FnOnce(&History) -> T) -> T {
        match self.users.get(user) {
            Some(history) => look(history),
            None => look(&History::new(user, self.lost_upto)),
        }
    }

    fn change<T>(&mut self, user: &UserId, change: impl FnOnce(&mut History) -> T) -> T {
        self.changes += 1;
        let (mut history, bytes) = match self.users.remove(user) {
            Some(history) => {
                let bytes = history.bytes();
                (history, bytes)
            }
            None => (History::new(user, self.lost_upto), 0),
        };
        let outcome = change(&mut history);
        self.bytes = self.bytes - bytes + history.bytes();
        self.by_change.remove(&std::mem::replace(&mut history.change, self.changes));
        self.by_change.insert(self.changes, user.clone());
        self.users.insert(user.clone(), history);
        outcome
    }

    /// Drops expired histories, then the least recently changed. The one just changed keeps its newest entry.
    fn make_room(&mut self, at: Moment) {
        while let Some(first) = self.by_change.first_entry() {
            let Some(history) = self.users.get_mut(first.get()) else { break };
            let excess = self.bytes.saturating_sub(self.max_bytes);
            let (expired, bytes) = (history.has_expired(at), history.bytes());
            if excess == 0 && !expired {
                break;
            }
            if *first.key() == self.changes {
                let dropped = history.shrink(excess);
                self.bytes = self.bytes - bytes + history.bytes();
                self.lost("notifications", dropped);
                break;
            }
            let (last, stored) = (history.last_kept(at), history.len());
            self.users.remove(&first.remove());
            self.bytes -= bytes;
            if let Some(last) = last {
                self.lost_upto = self.lost_upto.max(last.ms);
                self.lost("notifications", stored);
            }
            if !expired {
                self.lost("users", 1);
            }
        }
    }

    /// Counts and logs dropped data.
    fn lost(&self, what: &str, count: usize) {
        if count == 0 {
            return;
        }
        self.metrics.history_dropped.with_label_values(&[what]).inc_by(count as u64);
        if let Some(held_back) = self.losses.admit() {
            warn!(what, count, held_back, "in-memory history is full: dropped the oldest notifications or keys");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    fn store(histories: &mut Histories, user: &str) -> Cursor {
        let publication = Publication { event: "notification", data: "1", durable: true, ttl: None, key: None };
        match histories.publish(&UserId::new(user).unwrap(), &publication) {
            Outcome::New { position: Some(position), .. } => position,
            _ => panic!("not stored"),
        }
    }

    fn histories(ttl: Duration, max_bytes: usize) -> Histories {
        let kept = config::History { max_len: 10, ttl };
        Histories { max_bytes, ..Histories::new(kept, Arc::default()) }
    }

    #[test]
    fn no_position_is_reused_however_fast_histories_are_dropped() {
        // Room for one history only.
        let mut histories = histories(Duration::from_secs(60), 500);
        let mut positions = HashSet::new();
        for _ in 0..500 {
            assert!(positions.insert(store(&mut histories, "a").to_string()));
            assert!(positions.insert(store(&mut histories, "b").to_string()));
            assert_eq!(histories.users.len(), 1);
        }
    }

    #[test]
    fn expired_histories_take_no_memory() {
        let mut histories = histories(Duration::from_millis(5), MAX_BYTES);
        let first = store(&mut histories, "a");
        while store(&mut histories, "b").ms <= first.ms + 5 {}
        assert_eq!((histories.users.len(), histories.by_change.len(), histories.lost_upto), (1, 1, 0));
        let bytes = histories.bytes;
        assert_eq!(bytes, histories.users.values().map(History::bytes).sum::<usize>());
    }
}
