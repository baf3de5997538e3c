//! The in-memory implementation of the presence store, for a single instance.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::store::{Batch, CHANGES_KEPT, Page, PageCursor, UserPresence};
use crate::protocol::{UserId, millis, unix_ms};

/// Maximum number of last-seen times; beyond it, the oldest is dropped.
const LAST_SEEN_USERS: usize = 100_000;

#[derive(Debug)]
pub struct MemoryPresence {
    directory: Mutex<Directory>,
    changes: broadcast::Sender<Arc<str>>,
    /// The time between a user's last connection and the release.
    offline_delay: Duration,
}

#[derive(Debug, Default)]
struct Directory {
    online: BTreeMap<UserId, u32>,
    last_seen: HashMap<UserId, u64>,
    by_last_seen: BTreeSet<(u64, UserId)>,
}

impl MemoryPresence {
    pub fn new(offline_delay: Duration) -> Self {
        Self { directory: Mutex::default(), changes: broadcast::channel(CHANGES_KEPT).0, offline_delay }
    }

    pub(super) fn apply(&self, batch: &Batch) {
        let now = unix_ms();
        let mut directory = self.directory.lock();
        for (user, connections) in &batch.held {
            if directory.online.insert(user.clone(), *connections).is_none() {
                self.announce(user, "online", now);
            }
        }
        for user in &batch.released {
            if directory.online.remove(user).is_some() {
                directory.seen(user, now.saturating_sub(millis(self.offline_delay)));
                self.announce(user, "offline", now);
            }
        }
    }

    fn announce(&self, user: &UserId, status: &str, at: u64) {
        let event = serde_json::json!({"user": user.as_str(), "status": status, "at": at});
        // Fails only without receivers.
        self.changes.send(event.to_string().into()).ok();
    }

    pub(super) fn presence_of(&self, users: &[UserId]) -> Vec<UserPresence> {
        let (now, directory) = (unix_ms(), self.directory.lock());
        let one = |user: &UserId| {
            let connections = directory.online.get(user).copied();
            let last_seen = if connections.is_some() { Some(now) } else { directory.last_seen.get(user).copied() };
            UserPresence {
                user: user.to_string(),
                online: connections.is_some(),
                connections: connections.unwrap_or_default().into(),
                last_seen,
            }
        };
        users.iter().map(one).collect()
    }

    pub(super) fn online_count(&self) -> u64 {
        self.directory.lock().online.len() as u64
    }

    pub(super) fn online_page(&self, limit: usize, from: &PageCursor) -> Page {
        let directory = self.directory.lock();
        let start = from.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut users: Vec<String> = directory
            .online
            .range::<str, _>((start, Bound::Unbounded))
            .take(limit + 1)
            .map(|(user, _)| user.to_string())
            .collect();
        let more = users.len() > limit;
        users.truncate(limit);
        let next = PageCursor { position: 0, after: users.last().cloned() };
        Page { users, next: more.then(|| next.to_string()) }
    }

    pub(super) fn forget(&self, user: &UserId) {
        let mut directory = self.directory.lock();
        if let Some(at) = directory.last_seen.remove(user) {
            directory.by_last_seen.remove(&(at, user.clone()));
        }
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        self.changes.subscribe()
    }
}

impl Directory {
    fn seen(&mut self, user: &UserId, now: u64) {
        if let Some(earlier) = self.last_seen.insert(user.clone(), now) {
            self.by_last_seen.remove(&(earlier, user.clone()));
        }
        self.by_last_seen.insert((now, user.clone()));
        if self.last_seen.len() > LAST_SEEN_USERS
            && let Some((_, longest_unseen)) = self.by_last_seen.pop_first()
        {
            self.last_seen.remove(&longest_unseen);
        }
    }
}
