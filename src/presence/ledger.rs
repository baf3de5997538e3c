//! The users that this instance wants to hold, compared with those that the backplane has confirmed. No I/O; time is a
//! parameter, so that the model-based test of the presence scripts can drive it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::store::Batch;
use crate::protocol::UserId;

/// Maximum number of changes in one batch, so that no script holds Redis for long.
pub(super) const BATCH_USERS: usize = 1_000;

/// Tables for fewer users are not shrunk.
const ROOM_KEPT: usize = 128;

/// The number of connections with which a user is held; `None`: not held.
type Held = Option<u32>;

#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    wanted: Held,
    confirmed: Held,
    /// When the last connection ended. The user stays wanted, with 0 connections, until the offline delay has passed.
    left_at: Option<Instant>,
    /// Part of a batch that may have been written.
    sent: bool,
}

#[derive(Debug, Default)]
pub struct Ledger {
    users: HashMap<UserId, Standing, RandomState>,
    /// Users who left, oldest first.
    leaving: BTreeSet<(Instant, UserId)>,
    /// Users whose `wanted` and `confirmed` may differ.
    differing: HashSet<UserId, RandomState>,
    confirmed_count: usize,
    /// Users to add again without a presence event, because the backplane lost them.
    silent: HashSet<UserId, RandomState>,
}

impl Ledger {
    pub fn observe(&mut self, user: UserId, connections: usize, now: Instant) {
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        if connections == 0 && self.users.get(&user).is_none_or(|standing| standing.wanted.is_none()) {
            return;
        }
        let standing = self.users.entry(user.clone()).or_default();
        standing.wanted = Some(connections);
        if let Some(left_at) = standing.left_at.take() {
            self.leaving.remove(&(left_at, user.clone()));
        }
        if connections == 0 {
            // Also if the user had left before: a repeated change means that the user returned and left again.
            standing.left_at = Some(now);
            self.leaving.insert((now, user.clone()));
        }
        if standing.wanted != standing.confirmed {
            self.differing.insert(user);
        }
    }

    /// Stops wanting the users who left at least `delay` ago.
    pub fn expire(&mut self, now: Instant, delay: Duration) {
        while self.leaving.first().is_some_and(|(left_at, _)| now.duration_since(*left_at) >= delay) {
            let Some((_, user)) = self.leaving.pop_first() else { return };
            if let Some(standing) = self.users.get_mut(&user) {
                *standing = Standing { wanted: None, left_at: None, ..*standing };
                if standing.confirmed.is_some() || standing.sent || self.silent.contains(&user) {
                    self.differing.insert(user);
                } else {
                    // Never written: during an outage, the ledger must not grow with such users.
                    self.differing.remove(&user);
                    self.users.remove(&user);
                }
            }
        }
    }

    /// When [`Ledger::expire`] has to be called next.
    pub fn next_expiry(&self, delay: Duration) -> Option<Instant> {
        self.leaving.first().map(|(left_at, _)| *left_at + delay)
    }

    pub fn differs(&self) -> bool {
        !self.differing.is_empty() || !self.silent.is_empty()
    }

    /// The next batch, empty if nothing differs. Its users continue to differ until [`Ledger::confirm`].
    pub fn batch(&mut self, incarnation: &str, sequence: u64) -> Batch {
        let silent = !self.silent.is_empty();
        let source = if silent { &self.silent } else { &self.differing };
        let (mut held, mut released, mut settled, mut size) =
            (Vec::new(), Vec::new(), Vec::new(), self.confirmed_count);
        for user in source {
            if held.len() + released.len() == BATCH_USERS {
                break;
            }
            let Standing { wanted, confirmed, .. } = self.users.get(user).copied().unwrap_or_default();
            // Lost by the backplane, and gone since: added again first, so that the release publishes `offline`.
            let wanted = if silent { wanted.or(Some(0)) } else { wanted };
            match (wanted, confirmed) {
                (Some(connections), confirmed) if wanted != confirmed => {
                    held.push((user.clone(), connections));
                    size += usize::from(confirmed.is_none());
                }
                (None, Some(_)) => {
                    released.push(user.clone());
                    size -= 1;
                }
                _ => settled.push(user.clone()),
            }
        }
        for user in settled {
            self.settle(&user);
        }
        for (user, _) in &held {
            if let Some(standing) = self.users.get_mut(user) {
                standing.sent = true;
            }
        }
        Batch { incarnation: incarnation.to_owned(), sequence, held, released, size, silent }
    }

    pub fn confirm(&mut self, batch: &Batch) {
        let held = batch.held.iter().map(|(user, connections)| (user, Some(*connections)));
        for (user, confirmed) in held.chain(batch.released.iter().map(|user| (user, None))) {
            if let Some(standing) = self.users.get_mut(user) {
                standing.confirmed = confirmed;
                standing.sent = false;
            }
            self.settle(user);
        }
        self.confirmed_count = batch.size;
    }

    /// Prepares for a new incarnation, which holds no user: every wanted user differs. If the backplane `forgot` everything,
    /// the confirmed users are added again silently, even if further leases are lost before that.
    pub fn start_over(&mut self, forgot: bool) {
        self.confirmed_count = 0;
        self.differing.clear();
        let earlier = std::mem::take(&mut self.silent);
        let Self { users, differing, silent, .. } = self;
        users.retain(|user, standing| {
            let confirmed = standing.confirmed.take().is_some();
            standing.sent = false;
            if earlier.contains(user) || (forgot && confirmed) {
                silent.insert(user.clone());
            }
            let keep = standing.wanted.is_some() || silent.contains(user);
            if keep {
                differing.insert(user.clone());
            }
            keep
        });
    }

    /// Removes a user who does not differ from the lists.
    fn settle(&mut self, user: &UserId) {
        self.silent.remove(user);
        let Standing { wanted, confirmed, .. } = self.users.get(user).copied().unwrap_or_default();
        if wanted == confirmed {
            self.differing.remove(user);
        }
        if wanted.is_none() && confirmed.is_none() {
            self.users.remove(user);
            self.shrink();
        }
    }

    /// Frees the memory of many users who have left.
    fn shrink(&mut self) {
        let most = self.users.len().max(ROOM_KEPT);
        if self.users.capacity() / 8 > most {
            self.users.shrink_to(2 * most);
            self.differing.shrink_to(2 * most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(5);

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    fn held(batch: &Batch) -> Vec<(&str, u32)> {
        let mut held: Vec<_> = batch.held.iter().map(|(user, connections)| (user.as_str(), *connections)).collect();
        held.sort_unstable();
        held
    }

    fn released(batch: &Batch) -> Vec<&str> {
        batch.released.iter().map(UserId::as_str).collect()
    }

    /// A ledger in which `42` is connected once and confirmed.
    fn settled(now: Instant) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), 1, now);
        let batch = ledger.batch("i", 1);
        assert_eq!((held(&batch), batch.size), (vec![("42", 1)], 1));
        ledger.confirm(&batch);
        assert!(!ledger.differs());
        ledger
    }

    /// A ledger in which `7` and `42` are confirmed, and `42` has left since.
    fn one_gone(now: Instant) -> Ledger {
        let mut ledger = settled(now);
        ledger.observe(user("7"), 1, now);
        let batch = ledger.batch("i", 2);
        ledger.confirm(&batch);
        ledger.observe(user("42"), 0, now);
        ledger.expire(now + DELAY, DELAY);
        ledger
    }

    #[test]
    fn a_reload_within_the_delay_releases_no_user() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), 0, now);
        ledger.observe(user("42"), 1, now + Duration::from_secs(1));
        ledger.expire(now + DELAY * 2, DELAY);
        let batch = ledger.batch("i", 2);
        assert!(batch.held.is_empty() && batch.released.is_empty() && !ledger.differs());
    }

    #[test]
    fn a_second_departure_counts_from_its_own_moment() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), 0, now);
        ledger.observe(user("42"), 1, now + Duration::from_secs(3));
        ledger.observe(user("42"), 0, now + Duration::from_secs(4));
        ledger.expire(now + DELAY, DELAY);
        assert_eq!(held(&ledger.batch("i", 2)), [("42", 0)]);
        ledger.expire(now + DELAY + Duration::from_secs(4), DELAY);
        assert_eq!(released(&ledger.batch("i", 2)), ["42"]);
    }

    #[test]
    fn a_return_and_departure_between_two_steps_restart_the_delay() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), 0, now);
        ledger.observe(user("42"), 0, now + Duration::from_secs(4));
        ledger.expire(now + DELAY, DELAY);
        assert!(released(&ledger.batch("i", 2)).is_empty());
        assert_eq!(ledger.leaving.len(), 1);
    }

    #[test]
    fn the_memory_of_many_users_who_left_is_freed() {
        const MANY: usize = 10_000;
        let (now, mut ledger) = (Instant::now(), Ledger::default());
        let mut write = |connections, at| {
            (0..MANY).for_each(|number| ledger.observe(user(&number.to_string()), connections, at));
            ledger.expire(at + DELAY, DELAY);
            while ledger.differs() {
                let batch = ledger.batch("i", 1);
                ledger.confirm(&batch);
            }
            (ledger.users.len(), ledger.users.capacity(), ledger.differing.capacity())
        };
        assert!(write(1, now).1 >= MANY);
        let (users, room, room_to_differ) = write(0, now);
        assert!(users == 0 && room < MANY / 4 && room_to_differ < MANY / 4, "{users} users, {room}, {room_to_differ}");
    }

    #[test]
    fn a_change_in_the_number_of_connections_is_written() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), 3, now);
        let batch = ledger.batch("i", 2);
        assert_eq!((held(&batch), batch.size), (vec![("42", 3)], 1));
    }

    #[test]
    fn a_user_who_left_is_forgotten_once_that_is_confirmed() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), 0, now);
        ledger.expire(now + DELAY, DELAY);
        let batch = ledger.batch("i", 2);
        assert_eq!((released(&batch), batch.size), (vec!["42"], 0));
        ledger.confirm(&batch);
        assert!(ledger.users.is_empty() && ledger.leaving.is_empty() && !ledger.differs());
    }

    #[test]
    fn a_change_while_a_batch_is_in_flight_is_written_by_the_next() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), 1, now);
        let batch = ledger.batch("i", 1);
        ledger.observe(user("42"), 0, now);
        ledger.expire(now, Duration::ZERO);
        ledger.confirm(&batch);
        assert!(ledger.differs());
        let next = ledger.batch("i", 2);
        assert_eq!((released(&next), next.size), (vec!["42"], 0));
    }

    #[test]
    fn a_user_who_came_and_went_before_any_batch_is_never_written() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), 1, now);
        ledger.observe(user("42"), 0, now);
        ledger.expire(now, Duration::ZERO);
        let batch = ledger.batch("i", 1);
        assert!(batch.held.is_empty() && batch.released.is_empty());
        assert!(ledger.users.is_empty() && !ledger.differs());
    }

    #[test]
    fn a_user_who_left_during_an_outage_is_forgotten_unless_a_batch_may_have_been_written() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(user("sent"), 1, now);
        let batch = ledger.batch("i", 1);
        for name in ["sent", "unseen"] {
            ledger.observe(user(name), 1, now);
            ledger.observe(user(name), 0, now);
        }
        ledger.expire(now + DELAY, DELAY);
        assert_eq!(ledger.users.keys().collect::<Vec<_>>(), [&user("sent")]);
        assert_eq!(ledger.differing.len(), 1);
        ledger.confirm(&batch);
        assert_eq!(released(&ledger.batch("i", 2)), ["sent"]);
    }

    #[test]
    fn starting_over_adds_all_wanted_users_again() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("7"), 1, now);
        ledger.observe(user("42"), 0, now);
        ledger.start_over(false);
        let batch = ledger.batch("j", 1);
        assert_eq!((held(&batch), batch.size, batch.silent), (vec![("42", 0), ("7", 1)], 2, false));
        ledger.confirm(&batch);
        ledger.expire(now + DELAY, DELAY);
        assert_eq!(released(&ledger.batch("j", 2)), ["42"]);
    }

    #[test]
    fn lost_users_are_added_silently_and_departures_meanwhile_are_published() {
        let now = Instant::now();
        let mut ledger = one_gone(now);
        ledger.observe(user("new"), 1, now);

        ledger.start_over(true);
        let silent = ledger.batch("j", 1);
        assert_eq!((held(&silent), silent.size, silent.silent), (vec![("42", 0), ("7", 1)], 2, true));
        ledger.confirm(&silent);
        let told = ledger.batch("j", 2);
        assert_eq!((held(&told), released(&told)), (vec![("new", 1)], vec!["42"]));
        assert_eq!((told.size, told.silent), (2, false));
        ledger.confirm(&told);
        assert!(!ledger.differs());
    }

    #[test]
    fn a_lease_lost_before_the_silent_addition_keeps_it_silent() {
        let now = Instant::now();
        let mut ledger = one_gone(now);
        ledger.start_over(true);
        ledger.start_over(false);
        let silent = ledger.batch("k", 1);
        assert_eq!((held(&silent), silent.silent), (vec![("42", 0), ("7", 1)], true));
        ledger.confirm(&silent);
        let told = ledger.batch("k", 2);
        assert_eq!((held(&told), released(&told), told.silent), (vec![], vec!["42"], false));
    }

    #[test]
    fn many_changes_are_split_into_batches() {
        let mut ledger = Ledger::default();
        for number in 0..BATCH_USERS + 1 {
            ledger.observe(user(&number.to_string()), 1, Instant::now());
        }
        let first = ledger.batch("i", 1);
        assert_eq!((first.held.len(), first.size), (BATCH_USERS, BATCH_USERS));
        ledger.confirm(&first);
        assert_eq!(ledger.batch("i", 2).size, BATCH_USERS + 1);
    }
}
