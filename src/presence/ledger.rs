//! Whom this instance wants to hold against whom the backplane has confirmed. No I/O; time is a parameter.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use crate::backplane::Batch;
use crate::protocol::UserId;

/// Most changes in one batch, so that no script holds Redis for long.
pub(super) const BATCH_USERS: usize = 1_000;

#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    wanted: bool,
    confirmed: bool,
    /// When the last connection ended; the user is wanted until the delay after it is over.
    left_at: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    users: HashMap<UserId, Standing, RandomState>,
    /// Users who left, oldest first. An entry counts only while the user's `left_at` is still the same.
    leaving: VecDeque<(Instant, UserId)>,
    /// Users whose `wanted` and `confirmed` may differ.
    differing: HashSet<UserId, RandomState>,
    confirmed: usize,
}

impl Ledger {
    /// A user has a connection, or has none any more.
    pub(super) fn observe(&mut self, user: UserId, connected: bool, now: Instant) {
        if connected {
            let standing = self.users.entry(user.clone()).or_default();
            standing.left_at = None;
            if !standing.wanted {
                standing.wanted = true;
                self.differing.insert(user);
            }
        } else if let Some(standing) = self.users.get_mut(&user)
            && standing.wanted
            && standing.left_at.is_none()
        {
            standing.left_at = Some(now);
            self.leaving.push_back((now, user));
        }
    }

    /// Gives up those who left at least `delay` ago.
    pub(super) fn expire(&mut self, now: Instant, delay: Duration) {
        while let Some((left_at, _)) = self.leaving.front() {
            if now.duration_since(*left_at) < delay {
                return;
            }
            let Some((left_at, user)) = self.leaving.pop_front() else { return };
            let Some(standing) = self.users.get_mut(&user) else { continue };
            if standing.left_at == Some(left_at) {
                *standing = Standing { wanted: false, left_at: None, ..*standing };
                self.differing.insert(user);
            }
        }
    }

    /// When [`Ledger::expire`] next has something to do.
    pub(super) fn next_expiry(&self, delay: Duration) -> Option<Instant> {
        self.leaving.front().map(|(left_at, _)| *left_at + delay)
    }

    /// Whether there is something to write.
    pub(super) fn differs(&self) -> bool {
        !self.differing.is_empty()
    }

    /// The next batch, empty where nothing differs. What it holds stays different until it is confirmed.
    pub(super) fn batch(&mut self, incarnation: &str, sequence: u64) -> Batch {
        let (mut online, mut offline, mut settled) = (Vec::new(), Vec::new(), Vec::new());
        for user in &self.differing {
            if online.len() + offline.len() == BATCH_USERS {
                break;
            }
            match self.users.get(user) {
                Some(Standing { wanted: true, confirmed: false, .. }) => online.push(user.clone()),
                Some(Standing { wanted: false, confirmed: true, .. }) => offline.push(user.clone()),
                _ => settled.push(user.clone()),
            }
        }
        for user in settled {
            self.differing.remove(&user);
            self.forget_if_gone(&user);
        }
        let held = self.confirmed + online.len() - offline.len();
        Batch { incarnation: incarnation.to_owned(), sequence, online, offline, held }
    }

    /// The backplane has written this batch.
    pub(super) fn confirm(&mut self, batch: &Batch) {
        let changes = batch.online.iter().map(|user| (user, true));
        for (user, confirmed) in changes.chain(batch.offline.iter().map(|user| (user, false))) {
            let Some(standing) = self.users.get_mut(user) else { continue };
            standing.confirmed = confirmed;
            if standing.wanted == confirmed {
                self.differing.remove(user);
            }
            self.forget_if_gone(user);
        }
        self.confirmed = batch.held;
    }

    /// A new incarnation holds nobody yet: everybody who is wanted differs.
    pub(super) fn start_over(&mut self) {
        self.confirmed = 0;
        self.differing.clear();
        self.users.retain(|user, standing| {
            standing.confirmed = false;
            if standing.wanted {
                self.differing.insert(user.clone());
            }
            standing.wanted
        });
    }

    fn forget_if_gone(&mut self, user: &UserId) {
        if self.users.get(user).is_some_and(|standing| !standing.wanted && !standing.confirmed) {
            self.users.remove(user);
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

    fn names(users: &[UserId]) -> Vec<&str> {
        users.iter().map(UserId::as_str).collect()
    }

    /// A ledger in which `42` is connected and confirmed.
    fn settled(now: Instant) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), true, now);
        let batch = ledger.batch("i", 1);
        assert_eq!((names(&batch.online), batch.held), (vec!["42"], 1));
        ledger.confirm(&batch);
        assert!(!ledger.differs());
        ledger
    }

    #[test]
    fn a_reload_within_the_delay_is_no_change() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), false, now);
        ledger.observe(user("42"), true, now + Duration::from_secs(1));
        ledger.expire(now + DELAY * 2, DELAY);
        assert!(!ledger.differs());
    }

    #[test]
    fn a_second_departure_counts_from_its_own_moment() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), false, now);
        ledger.observe(user("42"), true, now + Duration::from_secs(3));
        ledger.observe(user("42"), false, now + Duration::from_secs(4));
        ledger.expire(now + DELAY, DELAY);
        assert!(!ledger.differs());
        ledger.expire(now + DELAY + Duration::from_secs(4), DELAY);
        assert_eq!(names(&ledger.batch("i", 2).offline), ["42"]);
    }

    #[test]
    fn a_user_who_left_is_forgotten_once_that_is_confirmed() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("42"), false, now);
        ledger.expire(now + DELAY, DELAY);
        let batch = ledger.batch("i", 2);
        assert_eq!(batch.held, 0);
        ledger.confirm(&batch);
        assert!(ledger.users.is_empty() && ledger.leaving.is_empty() && !ledger.differs());
    }

    #[test]
    fn a_change_of_mind_while_a_batch_is_under_way_is_written_by_the_next() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), true, now);
        let batch = ledger.batch("i", 1);
        ledger.observe(user("42"), false, now);
        ledger.expire(now, Duration::ZERO);
        ledger.confirm(&batch);
        assert!(ledger.differs());
        let next = ledger.batch("i", 2);
        assert_eq!((names(&next.offline), next.held), (vec!["42"], 0));
    }

    #[test]
    fn a_user_who_came_and_went_before_any_batch_is_never_written() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.observe(user("42"), true, now);
        ledger.observe(user("42"), false, now);
        ledger.expire(now, Duration::ZERO);
        let batch = ledger.batch("i", 1);
        assert!(batch.online.is_empty() && batch.offline.is_empty());
        assert!(ledger.users.is_empty() && !ledger.differs());
    }

    #[test]
    fn starting_over_adds_everybody_who_is_wanted_again() {
        let now = Instant::now();
        let mut ledger = settled(now);
        ledger.observe(user("7"), true, now);
        ledger.observe(user("42"), false, now);
        ledger.start_over();
        let mut batch = ledger.batch("j", 1);
        batch.online.sort();
        assert_eq!((names(&batch.online), batch.held), (vec!["42", "7"], 2));
        ledger.confirm(&batch);
        ledger.expire(now + DELAY, DELAY);
        assert_eq!(names(&ledger.batch("j", 2).offline), ["42"]);
    }

    #[test]
    fn many_changes_are_split_into_batches() {
        let mut ledger = Ledger::default();
        for number in 0..BATCH_USERS + 1 {
            ledger.observe(user(&number.to_string()), true, Instant::now());
        }
        let first = ledger.batch("i", 1);
        assert_eq!((first.online.len(), first.held), (BATCH_USERS, BATCH_USERS));
        ledger.confirm(&first);
        assert_eq!(ledger.batch("i", 2).held, BATCH_USERS + 1);
    }
}
