//! The in-process backplane: one instance, nothing to install, nothing survives the process.

mod histories;
mod history;
mod keys;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::history::Move;
use super::{
    Acked, Batch, Heard, Page, PageCursor, PageSize, Publication, Published, ReadFrom, Reading, Sink, USER_CHANNEL,
    UserPresence,
};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{Cursor, UserId};
use histories::{Histories, Outcome};

/// Presence events that a slow reader may lag behind before it is told to start over.
pub(super) const EVENTS_KEPT: usize = 256;

/// Most users of whom it is remembered when they were last seen; beyond, the longest unseen are forgotten.
const LAST_SEEN_USERS: usize = 100_000;

/// See the module.
pub struct Memory {
    /// Locked while it stores and delivers, which keeps the publishing order.
    sink: Mutex<Option<Sink>>,
    histories: Mutex<Histories>,
    directory: Mutex<Directory>,
    events: broadcast::Sender<Arc<str>>,
    subscriptions: watch::Sender<u64>,
    /// How long users had been gone when they are released.
    offline_delay: Duration,
}

#[derive(Default)]
struct Directory {
    online: BTreeMap<UserId, u32>,
    last_seen: HashMap<UserId, u64>,
    by_last_seen: BTreeSet<(u64, UserId)>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    /// Nobody is online, nobody hears, nothing is stored.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        Self {
            sink: Mutex::default(),
            histories: Mutex::new(Histories::new(config.history, metrics)),
            directory: Mutex::default(),
            events,
            subscriptions: watch::Sender::default(),
            offline_delay: config.presence.offline_delay,
        }
    }

    pub(super) fn subscribe(&self, sink: Sink) {
        *self.sink.lock() = Some(sink);
    }

    pub(super) fn publish(&self, user: &UserId, publication: &Publication<'_>) -> Published {
        let sink = self.sink.lock();
        let outcome = if publication.durable || publication.key.is_some() {
            // Let go of before anybody hears of it.
            self.histories.lock().publish(user, publication)
        } else {
            Outcome::New { message: publication.message(), place: None }
        };
        let (message, place) = match outcome {
            Outcome::Known { place } => return Ok(place),
            Outcome::New { message, place } => (message, place),
        };
        if let Some(sink) = sink.as_ref() {
            let channel = format!("{USER_CHANNEL}{user}");
            sink(Heard::Message { channel: channel.as_bytes(), payload: message.as_bytes() });
            sink(Heard::Pause);
        }
        Ok(place)
    }

    pub(super) fn read_history(&self, user: &UserId, from: &ReadFrom, device: &str, page: PageSize) -> Reading {
        self.histories.lock().read(user, from, device, page)
    }

    pub(super) fn newest(&self, users: &[UserId]) -> Vec<Cursor> {
        self.histories.lock().newest(users)
    }

    pub(super) fn ack(&self, acks: &[(UserId, String, Cursor)], how: Move) -> Vec<Acked> {
        let one =
            |(user, device, cursor): &(UserId, String, Cursor)| self.histories.lock().ack(user, device, cursor, how);
        acks.iter().map(one).collect()
    }

    pub(super) fn publish_command(&self, json: &str) {
        if let Some(sink) = self.sink.lock().as_ref() {
            sink(Heard::Control { payload: json.as_bytes() });
        }
    }

    /// There is one, from the beginning to the end.
    pub(super) fn subscriptions(&self) -> watch::Receiver<u64> {
        self.subscriptions.subscribe()
    }

    pub(super) fn apply(&self, batch: &Batch) {
        let now = wall_clock_ms();
        let mut directory = self.directory.lock();
        for (user, connections) in &batch.held {
            if directory.online.insert(user.clone(), *connections).is_none() {
                self.tell(user, "online", now);
            }
        }
        for user in &batch.released {
            if directory.online.remove(user).is_some() {
                directory.seen(user, now.saturating_sub(millis(self.offline_delay)));
                self.tell(user, "offline", now);
            }
        }
    }

    fn tell(&self, user: &UserId, status: &str, at: u64) {
        let event = serde_json::json!({"user": user.as_str(), "status": status, "at": at});
        // Nobody listening is fine.
        self.events.send(event.to_string().into()).ok();
    }

    pub(super) fn presence_of(&self, users: &[UserId]) -> Vec<UserPresence> {
        let (now, directory) = (wall_clock_ms(), self.directory.lock());
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

    pub(super) fn presence_events(&self) -> broadcast::Receiver<Arc<str>> {
        self.events.subscribe()
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

fn wall_clock_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(now)
}

/// In whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
