//! The in-memory implementation of the history store. Its memory is bounded.

mod erased;
mod history;
mod keys;
mod places;
mod runs;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use super::store::{
    Ack, Acked, Move, NewestPage, POSITIONS_KEPT, PageSize, Publication, Published, ReadFrom, Reading, Retracted,
    places_kept,
};
use crate::backplane::MemoryBackplane;
use crate::config;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, Notice, UserId, millis, unix_ms, wrap_stored};
use erased::Erased;
use history::{History, Moment, Position};
use keys::Keys;
use places::Places;

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
                return ([None, Some(publication.message())].into_iter().flatten(), None);
            }
            // Unlocks before the messages are passed on.
            let (messages, position) = match self.histories.lock().publish(user, publication) {
                Outcome::New { retracted, message, position } => ([notice(retracted), Some(message)], position),
                Outcome::Known { position } => ([None, None], position),
            };
            (messages.into_iter().flatten(), position)
        };
        Ok(self.backplane.publish(|| self.channel(user), store))
    }

    fn channel(&self, user: &UserId) -> String {
        format!("{}{user}", self.backplane.user_channel())
    }

    pub(super) fn retract(&self, user: &UserId, cursor: &Cursor) -> Retracted {
        let retract = || {
            let (retracted, outcome) = self.histories.lock().retract(user, cursor);
            (notice(retracted), outcome)
        };
        self.backplane.publish(|| self.channel(user), retract)
    }

    pub(super) fn erase(&self, user: &UserId) {
        let erase = || {
            let erased = self.histories.lock().erase(user);
            (Some(Notice::Erased { erased }.write().into()), ())
        };
        self.backplane.publish(|| self.channel(user), erase);
    }

    pub(super) fn read(&self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> Reading {
        self.histories.lock().read(user, from, device, page)
    }

    pub(super) fn newest(&self, users: &[UserId]) -> Vec<Cursor> {
        self.histories.lock().newest(users)
    }

    /// As [`super::HistoryStore::page`].
    pub(super) fn page(&self, user: &UserId, before: Option<&Cursor>, page: PageSize) -> Option<NewestPage> {
        self.histories.lock().page(user, before, page)
    }

    pub(super) fn ack(&self, acks: &[Ack], to: Move) -> Vec<Acked> {
        let one = |ack: &Ack| {
            let store = || {
                let (acked, notice) = self.histories.lock().ack(ack, to);
                (notice.map(|notice| notice.write().into()), acked)
            };
            self.backplane.publish(|| self.channel(&ack.user), store)
        };
        acks.iter().map(one).collect()
    }
}

enum Outcome<'a> {
    /// To publish as this message, after the notice of the notification that it replaces.
    New { retracted: Option<Cursor>, message: Cow<'a, str>, position: Option<Cursor> },
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
    places: Places,
    erased: Erased,
    /// Of the histories, without the places.
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
            places: Places::default(),
            erased: Erased::default(),
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
        let (retracted, message, position) = if publication.durable {
            let (cursor, retracted) = self.store(user, publication, at);
            self.count += 1;
            let Publication { data, collapse, .. } = *publication;
            let message = wrap_stored(self.count, &cursor, collapse, &publication.name(), data);
            (retracted, message.into(), Some(cursor))
        } else {
            (None, publication.message(), None)
        };
        if let Some(key) = publication.key
            && self.keys.insert(user, key, position, at.now)
        {
            self.lost("keys", 1);
        }
        Outcome::New { retracted, message, position }
    }

    /// Returns the cursor of the notification, and of the one that it replaces.
    fn store(&mut self, user: &UserId, publication: &Publication<'_>, at: Moment) -> (Cursor, Option<Cursor>) {
        let (epoch, max_len) = (self.epoch(user), self.kept.max_len);
        let (position, replaced) = self.change(user, |history| history.add(publication, max_len, at));
        self.make_room(at);
        (position.cursor(epoch), replaced.map(|position| position.cursor(epoch)))
    }

    /// Returns the cursor of the notification if it was stored.
    fn retract(&mut self, user: &UserId, cursor: &Cursor) -> (Option<Cursor>, Retracted) {
        let at = self.moment();
        let Some(position) = Position::of(self.epoch(user), cursor) else { return (None, Retracted::Foreign) };
        let newest = self.look(user, at, |history| history.place().map(|place| place.newest));
        if newest.is_some_and(|newest| position > newest) {
            return (None, Retracted::Foreign);
        }
        let is_stored = self.users.contains_key(user) && self.change(user, |history| history.retract(position));
        (is_stored.then_some(*cursor), Retracted::Gone)
    }

    /// Returns the user's position, in a new epoch.
    fn erase(&mut self, user: &UserId) -> Cursor {
        let at = self.moment();
        if let Some(history) = self.users.remove(user) {
            self.by_change.remove(&history.change);
            self.bytes -= history.bytes();
        }
        self.places.take(user);
        self.keys.erase(user);
        if let Some(ms) = self.erased.add(self.epochs.hash_one(user.as_str()), fastrand::u64(..), at.now) {
            // Cursors from before that erasure are of the user's epoch again.
            self.lost_upto = self.lost_upto.max(ms);
        }
        Position { ms: at.now, number: 0 }.cursor(self.epoch(user))
    }

    fn read(&mut self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> Reading {
        let (epoch, at) = (self.epoch(user), self.moment());
        self.look(user, at, |history| history.read(epoch, from, device, page, at))
    }

    fn newest(&mut self, users: &[UserId]) -> Vec<Cursor> {
        let (at, none) = (self.moment(), Position { ms: 0, number: 0 });
        let mut position = |user| self.look(user, at, History::place).map_or(none, |place| place.newest);
        let positions: Vec<_> = users.iter().map(&mut position).collect();
        users.iter().zip(positions).map(|(user, position)| position.cursor(self.epoch(user))).collect()
    }

    fn page(&mut self, user: &UserId, before: Option<&Cursor>, page: PageSize) -> Option<NewestPage> {
        let (epoch, at) = (self.epoch(user), self.moment());
        self.look(user, at, |history| history.page(epoch, before, page, at))
    }

    /// Returns also the notice of the move, if the read position moves.
    fn ack(&mut self, Ack { user, device, cursor, by }: &Ack, how: Move) -> (Acked, Option<Notice>) {
        let at = self.moment();
        let Some(position) = Position::of(self.epoch(user), cursor) else { return (Acked::Foreign, None) };
        if let Some(settled) = self.look(user, at, |history| history.ack_without_move(device, position, how, at)) {
            if settled == Acked::Kept {
                self.change(user, |history| history.renew_positions(at));
            }
            return (settled, None);
        }
        let unread = self.change(user, |history| {
            history.move_position(device, position, at);
            history.unread(device, at)
        });
        self.make_room(at);
        (Acked::Kept, Some(Notice::Read { read: *cursor, device: device.clone(), unread, by: *by }))
    }

    fn epoch(&self, user: &UserId) -> NonZeroU64 {
        let hash = self.epochs.hash_one(user.as_str());
        let salted = self.erased.salt(hash).map(|salt| self.epochs.hash_one((user.as_str(), salt)));
        NonZeroU64::new(salted.unwrap_or(hash)).unwrap_or(NonZeroU64::MIN)
    }

    fn moment(&self) -> Moment {
        self.moment_at(unix_ms())
    }

    fn moment_at(&self, ms: u64) -> Moment {
        let (now, ttl) = (ms.max(self.lost_upto + 1), self.kept.ttl);
        let since = |kept| now.saturating_sub(millis(kept));
        Moment {
            now,
            kept_since: since(ttl),
            positions_since: since(ttl.saturating_mul(POSITIONS_KEPT)),
            places_since: since(places_kept(ttl)),
        }
    }

    fn look<T>(&mut self, user: &UserId, at: Moment, look: impl FnOnce(&History) -> T) -> T {
        match self.users.get_mut(user) {
            Some(history) => {
                let bytes = history.bytes();
                history.take_out_ended(at);
                self.bytes = self.bytes - bytes + history.bytes();
                look(history)
            }
            None => look(&History::new(user, self.places.get(user), self.lost_upto)),
        }
    }

    fn change<T>(&mut self, user: &UserId, change: impl FnOnce(&mut History) -> T) -> T {
        self.changes += 1;
        let (mut history, bytes) = match self.users.remove(user) {
            Some(history) => {
                let bytes = history.bytes();
                (history, bytes)
            }
            None => (History::new(user, self.places.take(user), self.lost_upto), 0),
        };
        let outcome = change(&mut history);
        self.bytes = self.bytes - bytes + history.bytes();
        self.by_change.remove(&std::mem::replace(&mut history.change, self.changes));
        self.by_change.insert(self.changes, user.clone());
        self.users.insert(user.clone(), history);
        outcome
    }

    /// Drops expired histories except their places, then the oldest places, then the least recently changed histories.
    /// The one just changed keeps its newest entry.
    fn make_room(&mut self, at: Moment) {
        self.places.trim(at);
        while self.bytes + self.places.bytes() > self.max_bytes
            && let Some(place) = self.places.drop_oldest()
        {
            self.lost_upto = self.lost_upto.max(place.newest.ms);
            self.lost("users", 1);
        }
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
            history.take_out_ended(at);
            let (place, stored) = (history.place(), history.len());
            let user = first.remove();
            self.users.remove(&user);
            self.bytes -= bytes;
            match place {
                Some(place) if expired => self.places.add(user, place),
                Some(place) => {
                    self.lost_upto = self.lost_upto.max(place.newest.ms);
                    self.lost("notifications", stored);
                }
                None => {}
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

fn notice(retracted: Option<Cursor>) -> Option<Cow<'static, str>> {
    retracted.map(|retracted| Notice::Retracted { retracted }.write().into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    const DAY: u64 = 86_400_000;

    fn store(histories: &mut Histories, user: &str) -> Cursor {
        store_at(histories, user, unix_ms())
    }

    fn store_at(histories: &mut Histories, user: &str, ms: u64) -> Cursor {
        let publication = Publication { event: "notification", data: "1", durable: true, ..Publication::default() };
        histories.store(&UserId::new(user).unwrap(), &publication, histories.moment_at(ms)).0
    }

    fn is_whole_at(histories: &mut Histories, user: &str, cursor: Cursor, ms: u64) -> bool {
        let user = UserId::new(user).unwrap();
        let (epoch, at, page) = (histories.epoch(&user), histories.moment_at(ms), PageSize { entries: 1, bytes: 1 });
        histories.look(&user, at, |history| history.read(epoch, &ReadFrom::After(cursor), "0", page, at)).whole
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
        let mut histories = histories(Duration::from_millis(50), MAX_BYTES);
        let first = store(&mut histories, "a");
        store_at(&mut histories, "b", first.ms + 101);
        assert_eq!((histories.users.len(), histories.by_change.len(), histories.lost_upto), (1, 1, 0));
        assert!(histories.places.bytes() > 0, "the place is kept");
        store_at(&mut histories, "b", first.ms + 60 * DAY + 1);
        assert_eq!((histories.places.bytes(), histories.lost_upto), (0, 0));
        let bytes = histories.bytes;
        assert_eq!(bytes, histories.users.values().map(History::bytes).sum::<usize>());
    }

    #[test]
    fn places_are_kept_for_60_days_however_short_and_for_8_ttl_however_long_history_ttl_is() {
        for (ttl, kept) in [(Duration::from_secs(3_600), 60 * DAY), (Duration::from_secs(30 * 86_400), 240 * DAY)] {
            let mut histories = histories(ttl, MAX_BYTES);
            let first = store(&mut histories, "a");
            let never = Cursor { number: 0, epoch: histories.epoch(&UserId::new("never").unwrap()), ..first };
            store_at(&mut histories, "b", first.ms + kept - 1);
            for (user, cursor) in [("a", first), ("never", never)] {
                assert!(is_whole_at(&mut histories, user, cursor, first.ms + kept - 1), "{user} missed nothing");
            }
            assert!(!is_whole_at(&mut histories, "never", never, first.ms + kept + 1), "it may have had a place");
            assert_eq!(histories.newest(&[UserId::new("a").unwrap()])[0], first);
            store_at(&mut histories, "b", first.ms + kept + 1);
            assert!(!is_whole_at(&mut histories, "a", first, first.ms + kept + 1), "its place is gone");
            assert_eq!(store_at(&mut histories, "a", first.ms + kept + 1).number, 1);
        }
    }
}
